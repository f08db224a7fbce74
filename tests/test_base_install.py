"""The base install alone tags: numpy, tokenizers and onnxruntime, and nothing beside them."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.deploy.toys import reseal, save_toy

ROOT = Path(__file__).parents[1]
LOADED = """
import json, sys
from xdistil_jax.deploy import Tagger
tagger = Tagger.load(sys.argv[1])
found = [[list(each) for each in entities] for entities in tagger(["Anna Berg fuhr nach Berlin"])]
print(json.dumps([found, sorted({name.split(".")[0] for name in sys.modules})]))
"""
# Beside those of the train extra: each costs a first answer tens of milliseconds.
HEAVY = {"jax", "jaxtyping", "safetensors", "asyncio", "unittest", "http", "ssl", "huggingface_hub"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    onnx = pytest.importorskip("onnx")
    from xdistil_jax.deploy.bundle import load_bundle
    from xdistil_jax.deploy.onnx import build_graph

    folder = tmp_path_factory.mktemp("base") / "student"
    save_toy(folder)
    onnx.save(build_graph(load_bundle(folder)), folder / "model.onnx")
    reseal(folder)
    return folder


def run(python, folder, **environment):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-c", LOADED, str(folder)],
        capture_output=True, text=True, check=False, cwd=folder, env=kept | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_first_answer_imports_nothing_heavy(folder):
    _, loaded = run(sys.executable, folder, PYTHONPATH=str(ROOT))
    assert not HEAVY & set(loaded)


@pytest.mark.slow
def test_tags_in_a_bare_environment(folder, tmp_path):
    venv.create(tmp_path / "bare", with_pip=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    # A build leaves its files beside the sources.
    source = tmp_path / "source"
    shutil.copytree(ROOT / "xdistil_jax", source / "xdistil_jax")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    install = [python, "-m", "pip", "install", "--quiet", str(source)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("the package index can't be reached")
    assert done.returncode == 0, done.stderr
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True
    )
    names = {each["name"] for each in json.loads(listed.stdout)}
    assert {"numpy", "tokenizers", "onnxruntime", "xdistil_jax"} <= names
    assert not names & {"jax", "jaxtyping", "safetensors", "onnx", "transformers"}
    found, _ = run(python, folder)
    assert found == run(sys.executable, folder, PYTHONPATH=str(ROOT))[0] != [[]]
    (folder / "model.onnx").unlink()
    reseal(folder)
    assert [[e[:4] for e in each] for each in run(python, folder)[0]] == [
        [e[:4] for e in each] for each in found
    ]
    tagged = subprocess.run(
        [python, "-m", "xdistil_jax", "tag", str(folder)],
        input="Anna Berg fuhr nach Berlin\n", capture_output=True, text=True, cwd=folder,
        check=False,
    )  # fmt: skip
    assert tagged.returncode == 0, tagged.stderr
    assert json.loads(tagged.stdout)["entities"]
