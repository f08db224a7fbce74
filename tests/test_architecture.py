"""The house keeps its order: imports point down, each dependency has one home, parts stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import xdistil_jax

ROOT = Path(xdistil_jax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# Design.md, section 2: a room may import from lower numbers. Equal numbers are neighbours that
# don't know each other.
RANKS = {
    "bucket": -2,
    **dict.fromkeys(("storage", "chains"), -1),
    **dict.fromkeys(("types", "labels", "text", "files", "lazy", "compilation", "weights"), 0),
    "markdown": 0,
    **dict.fromkeys(("launch", "chips"), 0),
    **dict.fromkeys(("trees", "scoring", "sizes", "label_map"), 1),
    **dict.fromkeys(("sharding", "hosts"), 2),
    **dict.fromkeys(("data", "models"), 3),
    "teacher": 4,
    "distill": 5,
    **dict.fromkeys(("report", "deploy"), 6),
    "configs": 6.5,
    **dict.fromkeys(("experiment", "terminal", "arguments"), 7),
    "serving": 7.5,
    **dict.fromkeys(("session", "estimate"), 8),
    **dict.fromkeys(("latency", "tagging"), 8.5),
    **dict.fromkeys(("evaluation", "training", "transplant", "gate"), 9),
    **dict.fromkeys(("classification", "alignment"), 9),
    "backbone": 9.5,
    **dict.fromkeys(("finetune", "finished"), 10),
    "start": 10.5,
    **dict.fromkeys(("students", "pretrain"), 11),
    **dict.fromkeys(("targets", "counting"), 11.5),
    "student": 12,
    "languages": 12.5,
    **dict.fromkeys(("pipeline", "sizing", "export", "benchmark"), 13),
    **dict.fromkeys(("quickstart", "planning"), 14),
    **dict.fromkeys(("study", "finishing"), 15),
    "cli": 16,
    "__main__": 17,
}
ANYWHERE = {"numpy", "jax", "jaxtyping"}
HOMES = {
    "babel": ("data/names.py",),
    "datasets": ("data/tables.py",),
    "faker": ("data/names.py",),
    "flax": ("models/",),
    "fsspec": ("bucket.py",),
    "huggingface_hub": ("models/hub.py",),
    "ml_dtypes": ("teacher/codec.py",),
    "onnx": ("deploy/nodes.py", "deploy/onnx.py"),
    "onnxruntime": ("deploy/runtime.py",),
    "optax": ("distill/",),
    # Its barriers are the public ones that don't keep the devices waiting.
    "orbax": ("distill/checkpoint.py", "hosts.py"),
    "safetensors": ("models/tensors.py", "deploy/bundle.py"),
    "seqeval": ("report/metrics.py",),
    "tensorboardX": ("report/writers.py",),
    # A peer that is timed where it is installed, and never needed.
    "torch": ("benchmark/in_torch.py",),
    "tokenizers": ("data/tokenizer.py", "data/cutting.py"),
    "tqdm": ("report/writers.py",),
    "transformers": ("data/tokenizer.py", "benchmark/in_torch.py"),
    "tyro": ("arguments.py",),
}
WITHOUT_JAX = (
    *("labels.py", "chains.py", "text.py", "files.py", "lazy.py", "weights.py"),
    *("data/", "deploy/"),
    *("bucket.py", "storage.py", "models/hub.py"),
    # So that `xdistil plan` touches no device.
    *("experiment.py", "estimate.py", "sizes.py", "chips.py"),
    *("distill/stages.py", "distill/strategies.py"),
)
TRAIN_ONLY = (
    *("jax", "jaxlib", "flax", "optax", "orbax", "transformers", "datasets", "seqeval", "tyro"),
    *("tqdm", "tensorboardX", "faker", "babel", "torch", "fsspec", "gcsfs", "s3fs"),
    "onnx",
)
BASE_NAMES = ("Sentence", "TagSet", "Tagger", "DataSpec", "load_corpus", "Experiment", "plan")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path, *, types=True):
    """Dotted modules that a file imports at any level; of ours with the names taken from them."""
    tree = tree_of(path)
    hidden = set()
    if not types:
        guards = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
        guards = [node for node in guards if ast.unparse(node.test) == "TYPE_CHECKING"]
        hidden = {each for guard in guards for each in ast.walk(guard)}
    found = set()
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name_of(path)}: a relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def ours(path, **options):
    """The files of the package that a file imports."""
    found = set()
    for module in imported(path, **options):
        parts = module.split(".")
        if parts[0] != "xdistil_jax":
            continue
        target = ROOT.joinpath(*parts[1:])
        candidates = [target.with_suffix(".py"), target.parent.with_suffix(".py")]
        if target == ROOT or not any(each.is_file() for each in candidates):
            candidates = [target / "__init__.py", target.parent / "__init__.py"]
        found.add(next(each for each in candidates if each.is_file()))
    return found


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def belongs(path, homes):
    return any(name_of(path) == home or name_of(path).startswith(home) for home in homes)


def test_every_room_has_a_rank():
    assert {room(path) for path in FILES} - {"__init__"} == set(RANKS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path):
    if path == ROOT / "__init__.py":
        assert {room(each) for each in ours(path)} == {"lazy"}
        return
    upward = [
        f"{name_of(path)} imports {name_of(other)}"
        for other in ours(path)
        if room(other) != room(path) and not RANKS[room(other)] < RANKS[room(path)]
    ]
    assert not upward


def test_packages_are_lazy():
    """A room's __init__ that imported its modules would load them all for one."""
    for path in FILES:
        if path.name == "__init__.py" and path.parent != ROOT:
            assert imported(path) <= {"xdistil_jax.lazy"}, name_of(path)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_dependency_has_one_home(path):
    outside = {module.split(".")[0] for module in imported(path)}
    outside -= sys.stdlib_module_names | ANYWHERE | {"xdistil_jax"}
    strangers = {each for each in outside if not belongs(path, HOMES.get(each, ()))}
    assert not strangers, f"{name_of(path)} imports {strangers}; their homes are {HOMES}"


def test_what_the_base_install_serves_has_no_way_to_jax():
    for path in FILES:
        if not belongs(path, WITHOUT_JAX):
            continue
        seen, left = {path}, [path]
        while left:
            new = ours(left.pop(), types=False) - seen
            seen |= new
            left += new
        for each in seen:
            roots = {module.split(".")[0] for module in imported(each, types=False)}
            assert not roots & {"jax", "flax", "optax"}, f"{name_of(path)} by {name_of(each)}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{name_of(path)}: {node.name}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_say_what_they_are(path):
    assert ast.get_docstring(tree_of(path))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_prints_exits_or_runs_foreign_code(path):
    assert not {module.split(".")[0] for module in imported(path)} & {"pickle", "dill", "joblib"}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.keyword):
            said = node.arg, ast.unparse(node.value)
            assert said not in (("trust_remote_code", "True"), ("allow_pickle", "True"))
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "torch.load"), name_of(path)
            if path.name not in ("cli.py", "terminal.py"):
                assert called not in ("print", "sys.exit", "exit", "quit"), name_of(path)


def python(code, *arguments):
    """Run in a fresh interpreter; gives what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "statement",
    [
        "import xdistil_jax; dir(xdistil_jax)",
        "import xdistil_jax.deploy.tagger, xdistil_jax.deploy.runtime",
        "from xdistil_jax import Tagger",
        "from xdistil_jax import Experiment; Experiment().plan()",
        "import xdistil_jax.data.batches, xdistil_jax.data.synthetic, xdistil_jax.data.leaks",
    ],
)
def test_light_imports_leave_jax_alone(statement):
    heavy = f"sorted(set({TRAIN_ONLY}) & set(sys.modules))"
    assert python(f"{statement}\nimport sys; print({heavy})").strip() == "[]"


BLOCKED = f"""
import sys
for name in {TRAIN_ONLY}:
    sys.modules[name] = None
import xdistil_jax
for name in sys.argv[1:] or xdistil_jax.__all__:
    try:
        getattr(xdistil_jax, name)
        print(name, "works")
    except ImportError as error:
        print(name, error)
"""


def test_the_base_install_names_the_pip_command():
    said = dict(line.split(" ", 1) for line in python(BLOCKED).splitlines())
    assert set(said) == set(xdistil_jax.__all__)
    assert {name for name in BASE_NAMES if said[name] != "works"} == set()
    refused = {name: text for name, text in said.items() if text != "works"}
    assert {"run", "distil", "evaluate", "prepare_teacher"} <= set(refused)
    for name, text in refused.items():
        assert f"xdistil_jax.{name} needs jax" in text
        assert 'pip install "xdistil_jax[train]"' in text
