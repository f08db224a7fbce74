"""The commands: what they print, what they pass on, and how they answer mistakes."""

import importlib
import io
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

import xdistil_jax
from tests.deploy.toys import save_toy
from tests.teacher.toys import build_toy, make_store, random_rows
from xdistil_jax import cli, terminal
from xdistil_jax.configs import StudentConfig
from xdistil_jax.data.corpus import DataSpec
from xdistil_jax.experiment import Experiment

EXPERIMENT = """
from xdistil_jax import DataSpec, Experiment, RunConfig
experiment = Experiment(name="toy", strategy="D1", data=DataSpec(root="there"))
"""

COMMANDS = (
    *("quickstart", "distil", "run", "table", "plan", "eval", "export", "tag", "push", "predict"),
    *("pretrain", "transfer", "cache"),
)


@pytest.fixture
def told(capsys):
    """Run a command that must end with a message on stderr, and give the message."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        said = capsys.readouterr().err
        code = caught.value.code
        message = code if isinstance(code, str) else said
        assert code not in (0, None), message
        assert "Traceback" not in message
        return " ".join(message.replace("│", " ").split())

    return run


@pytest.fixture
def printed(capsys):
    """Run a command that must end well, and give what it printed."""

    def run(*arguments):
        cli.main(arguments)
        return capsys.readouterr().out

    return run


@pytest.fixture
def started(monkeypatch):
    """What ``pipeline.run`` is called with, without running it."""
    calls = []

    class StartedError(Exception):
        pass

    def run(experiment, **options):
        calls.append((experiment, options))
        raise StartedError

    monkeypatch.setattr("xdistil_jax.pipeline.run", run)

    def start(*arguments):
        with pytest.raises(StartedError):
            cli.main(arguments)
        return calls[-1]

    return start


def test_a_folder_that_is_none_is_refused_before_anything_is_computed(tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "runs"
    with pytest.raises(SystemExit) as caught:
        cli.main(["quickstart", "--out", str(out)])
    assert str(caught.value) == (
        f"xdistil quickstart: {out}: expected a folder in which you may write, found: Not a "
        "directory. Choose another with run.out"
    )


def test_usage_names_every_command(printed):
    for arguments in ((), ("-h",), ("--help",)):
        usage = printed(*arguments)
        for name in COMMANDS:
            assert f"\n  {name} " in usage


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_no_failure(name, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert f"usage: xdistil {name}" in capsys.readouterr().out


def test_a_reader_that_has_enough_is_no_failure():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        ended = subprocess.run(
            [sys.executable, "-m", "xdistil_jax", "--help"],
            stdout=stdout, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(("name", "near"), [("pln", "plan"), ("distill", "distil")])
def test_an_unknown_command_is_answered_with_the_nearest(told, name, near):
    assert f"no command '{name}'; did you mean {near}?" in told(name)
    assert "did you mean" not in told("xyzzy")


D42 = """\
1 repr repr projection, bilstm, embed 0% transfer loss
2 logit/head logit head 0% transfer loss
3 logit/projection logit head, projection 0% transfer loss
4 logit/bilstm logit head, projection, bilstm 0% transfer loss
5 logit/embed logit head, projection, bilstm, embed 0% transfer loss
6 ce/head ce head 100% dev f1
7 ce/projection ce head, projection 100% dev f1
8 ce/bilstm ce head, projection, bilstm 100% dev f1
9 ce/embed ce head, projection, bilstm, embed 100% dev f1
"""


def test_plan_prints_the_nine_stages(printed):
    lines = printed("plan", "d4.2").splitlines()
    stages = [" ".join(line.split()) for line in lines[3:]]
    assert [stage.split(" cosine ")[0] for stage in stages] == D42.splitlines()
    assert "schedule" in lines[2]


def test_plan_touches_no_device():
    code = (
        "import sys; from xdistil_jax.cli import main; main(['plan', 'd4.2'])\n"
        "print(sorted({'jax', 'flax', 'optax', 'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "ce/embed" in done
    assert done.splitlines()[-1] == "[]"


def test_plan_of_an_experiment_file(printed, tmp_path):
    file = tmp_path / "toy.py"
    file.write_text(EXPERIMENT)
    assert printed("plan", str(file)).startswith("toy, D1; cached as bf16, imitated as states\n")
    assert "; cached as int8, " in printed("plan", str(file), "--teacher.codec", "int8")
    assert "logit/embed" in printed("plan", str(file), "D4.2")
    assert "joint 2·ce + logit" in " ".join(
        printed("plan", str(file), "--tuning.alpha", "2").split()
    )


def test_what_the_paper_leaves_open_is_an_option(printed, told):
    def stages(*arguments):
        return [" ".join(line.split()) for line in printed("plan", *arguments).splitlines()[3:]]

    found = stages(
        *("d4.2", "--tuning.repr-loss", "repr_kld_keras", "--tuning.unfreezing", "coarse"),
        *("--tuning.logit-loss", "logit_log_odds_all", "--tuning.fresh-head", "True"),
        *("--tuning.logit.schedule.decay", "restarts", "--tuning.logit.schedule.every", "epoch"),
    )  # fmt: skip
    assert len(found) == 7
    assert found[0].startswith("1 repr repr_kld_keras projection, bilstm, embed 0%")
    assert found[3].startswith("4 logit/bilstm..embed logit_log_odds_all head, projection, bilstm")
    assert "restarts 0.001 (period 50, ×2) by epoch" in found[3]
    assert found[4].startswith("5 ce/head ce head (fresh: head) 100%")
    assert len(stages("d4.2", "--tuning.unfreeze-repr", "True")) == 11
    weights = ("--tuning.alpha", "10", "--tuning.beta", "0.1", "--tuning.gamma", "3")
    assert "10·ce + 3·logit + 0.1·repr" in stages("d2", *weights)[0]
    assert stages("repr-logit", *weights)[0].startswith("1 repr+logit 0.1·repr + 3·logit head")
    said = told("plan", "--tuning.ce.schedule.decay", "exponential", *NO_FLOOR)
    assert "schedule.floor is 0" in said
    assert "such as 1e-7" in said


NO_FLOOR = ("--tuning.ce.schedule.floor", "0")


def test_mistaken_places_are_answered(told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.py").write_text(EXPERIMENT)
    assert "did you mean d4.2 or d4.1?" in told("plan", "d4.3")
    assert "missing.py is not there; in its folder there is toy.py" in told("run", "missing.py")
    assert "found 'd1' too" in told("plan", "toy.py", "d4.2", "d1")
    assert "no .py file" in told("run", "nowhere/missing.py")
    (tmp_path / "toy.py").write_text("experiment = 3")
    assert "toy.py defines no `experiment` that is an Experiment" in told("run", "toy.py")


def test_every_field_can_be_overridden(started, tmp_path):
    file = tmp_path / "toy.py"
    file.write_text(EXPERIMENT)
    chosen, options = started(
        *("run", str(file), "d4.1", "--student.embed", "100", "--data.root", "here"),
        *("--tuning.ce.schedule.peak", "2e-3", "--run.latency", "False"),
        *("--data.languages", "de", "vi"),
    )  # fmt: skip
    assert (chosen.name, chosen.strategy, chosen.student.embed) == ("toy", "d4.1", 100)
    assert chosen.data == DataSpec(root="here", languages=("de", "vi"))
    assert (chosen.tuning.ce.schedule.peak, chosen.run.latency) == (2e-3, False)
    assert not options["evaluate_test"]
    assert started("run", str(file), "--test")[1]["evaluate_test"]


def test_a_mistyped_field_is_answered_with_the_nearest(told, tmp_path):
    file = tmp_path / "toy.py"
    file.write_text(EXPERIMENT)
    said = told("run", str(file), "--student.embd", "100")
    assert "--student.embd" in said
    assert "Perhaps you meant: --student.embed" in said
    said = told("distil", *DISTIL, "--student.embd", "3")
    assert "Perhaps you meant: --student.embed" in said
    assert "invalid" in told("run", str(file), "--student.embed", "many").lower()


DISTIL = ("--train", "a.txt", "--dev", "b.txt", "--teacher", "bert")


def test_distil_builds_an_experiment(started):
    chosen, options = started(
        *("distil", *DISTIL, "--unlabelled", "c.txt", "d.txt", "--student", "base"),
        *("--on-mismatch", "skip", "--run.seed", "3", "--student.hidden", "50"),
    )  # fmt: skip
    assert chosen.data == DataSpec(
        train="a.txt", dev="b.txt", unlabelled=("c.txt", "d.txt"), on_mismatch="skip"
    )
    assert chosen.teacher.checkpoint == "bert"
    assert chosen.student == StudentConfig(embed=300, hidden=50)
    assert (chosen.run.seed, chosen.strategy) == (3, Experiment().strategy)
    assert not options["evaluate_test"]
    assert started("distil", *DISTIL, "--test", "t.txt")[1]["evaluate_test"]


def test_distil_answers_mistakes(told):
    assert "--train" in told("distil", "--dev", "b.txt")
    assert "'tny': did you mean tiny?" in told("distil", *DISTIL, "--student", "tny")
    assert "no option --studnt; did you mean --student?" in told("distil", *DISTIL, "--studnt", "x")
    assert "did you mean d3.2 or d3.1?" in told("distil", *DISTIL, "--strategy", "d3.3")


def test_a_bad_file_is_named_with_its_line(told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text("Anna\tB-PER\n\nBerlin\n")
    (tmp_path / "dev.txt").write_text("Anna\tB-PER\n")
    files = ("--train", "train.txt", "--dev", "dev.txt", "--teacher", "nowhere")
    assert "xdistil distil: train.txt, line 3: no tag in 'Berlin'" in told("distil", *files)
    (tmp_path / "train.txt").unlink()
    assert "train.txt" in told("distil", *files)


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(arguments):
        return {}["nothing"]

    monkeypatch.setattr(cli, "_plan", broken)
    with pytest.raises(KeyError):
        cli.main(["plan"])
    # A ValueError from somebody else's code is a bug of ours.
    monkeypatch.setattr(cli, "_plan", lambda arguments: np.zeros(2).reshape(3))
    with pytest.raises(ValueError, match="reshape"):
        cli.main(["plan"])


def test_a_missing_dependency_comes_with_the_pip_command(told, monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert told("plan") == (
        'xdistil plan needs tyro, which is not installed: pip install "xdistil_jax[train]"'
    )


def test_errors_of_ours_are_of_a_kind_that_is_told():
    kinds = set()
    for found in pkgutil.walk_packages(xdistil_jax.__path__, "xdistil_jax."):
        for each in vars(importlib.import_module(found.name)).values():
            if isinstance(each, type) and issubclass(each, BaseException):
                kinds |= {each} if each.__module__.startswith("xdistil_jax") else set()
    assert len(kinds) >= 9
    assert all(issubclass(kind, OSError | ValueError | RuntimeError) for kind in kinds)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_toy(folder / "student")
    return str(folder)


def test_tag_prints_a_line_for_each_text(printed, student):
    text = "Anna Berg fuhr nach Berlin, dann weiter."
    first, empty, again = printed("tag", student, text, "", text).splitlines()
    assert first == again
    assert empty == ""
    for entity in first.split("\t"):
        surface, _, rest = entity.rpartition(" [")
        kind, place = rest.removesuffix("]").split()
        start, end = map(int, place.split(":"))
        assert text[start:end] == surface
        assert kind in ("LOC", "PER")


def test_tag_reads_lines_on_stdin(printed, student, monkeypatch):
    content = "Anna Berg\r\n\nنص عربي 東京 Москва\nlast without newline".encode()

    def run(*options):
        stdin = io.TextIOWrapper(io.BytesIO(content), encoding="ascii")
        monkeypatch.setattr(sys, "stdin", stdin)
        return [json.loads(line) for line in printed("tag", student, *options).splitlines()]

    found = run()
    assert [each["text"] for each in found] == content.decode().splitlines()
    shown = printed("tag", student, *content.decode().splitlines()).splitlines()
    for each, line in zip(found, shown, strict=True):
        entities = each["entities"]
        assert [f"{e['text']} [{e['type']} {e['start']}:{e['end']}]" for e in entities] == (
            line.split("\t") if line else []
        )
    assert all("tagged" in each for each in run("--aggregate", "none"))


def test_tag_passes_over_bad_lines_where_it_is_asked_to(student, monkeypatch, capsys):
    content = b'{"text": "Anna"}\nno json\n{"text": "Berlin"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    cli.main(["tag", student, "--on-bad", "skip"])
    out, err = capsys.readouterr()
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["Anna", "Berlin"]
    assert err.startswith("stdin, line 2: expected a JSON object")


def test_tag_takes_options_before_and_behind_the_texts(printed, student):
    text = "Anna Berg fuhr nach Berlin."
    found = printed("tag", student, text)
    assert found == printed("tag", student, "--threads", "1", text)
    assert found == printed("tag", student, text, "--threads", "1")


def test_tag_ends_quietly_where_no_one_reads_on(student):
    command = f"yes Anna Berg | {sys.executable} -m xdistil_jax tag {student} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["text"] == "Anna Berg"
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


def test_tag_answers_mistakes(told, student, tmp_path, monkeypatch, capsys):
    assert "config.json is missing" in told("tag", str(tmp_path), "text")
    assert "usage: xdistil tag RUN" in told("tag")
    with pytest.raises(SystemExit):
        cli.main(["tag", student, "--threads", "one"])
    assert "usage: xdistil tag RUN" in capsys.readouterr().err
    stdin = io.TextIOWrapper(io.BytesIO(b"good\nb\xe4d\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert "xdistil tag: stdin, line 2: expected UTF-8" in told("tag", student)


def test_eval_answers_mistakes(told, tmp_path):
    assert "is no finished run" in told("eval", str(tmp_path))
    assert "usage: xdistil eval RUN" in told("eval", "--split", "test")
    assert "invalid choice" in told("eval", str(tmp_path), "--split", "train")


@pytest.fixture(scope="module")
def teacher_cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("caches")
    build_toy(root / "cache", make_store(random_rows(20)))
    return root


def test_cache_ls_and_rm(printed, told, teacher_cache, tmp_path):
    out = str(shutil.copytree(teacher_cache, tmp_path / "out"))
    (line,) = printed("cache", "ls", "--out", out).splitlines()
    identity = line.split()[0]
    assert (tmp_path / "out" / "cache" / identity).is_dir()
    assert "MiB" in line
    assert "20 rows  embedding, layer_2, bf16  complete" in line
    assert f"no cache starts with 'xyz'; there are: {identity}" in told(
        "cache", "rm", "xyz", "--out", out
    )
    assert printed("cache", "rm", identity[:4], "--out", out) == f"removed {identity}\n"
    assert printed("cache", "ls", "--out", out) == ""
    assert "there are: none" in told("cache", "rm", identity, "--out", out)


def test_cache_ls_shows_what_is_damaged(printed, teacher_cache, tmp_path):
    out = shutil.copytree(teacher_cache, tmp_path / "out")
    (manifest,) = out.glob("cache/*/manifest.json")
    manifest.write_text("{")
    assert "damaged, or of a newer version" in printed("cache", "ls", "--out", str(out))


@pytest.mark.parametrize("arguments", [(), ("list",), ("rm",), ("ls", "--out"), ("ls", "x")])
def test_cache_answers_mistakes(told, arguments):
    assert "usage: xdistil cache ls | xdistil cache rm ID" in told("cache", *arguments)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_raises_the_flag_where_somebody_listens(number):
    before = signal.getsignal(number)
    with terminal.signals() as flag:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert not flag.raised
        flag.listening = True
        signal.raise_signal(number)
        assert flag.raised
        # Who asks twice doesn't want to wait for the call under way.
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_an_interrupt_is_no_traceback(told, monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_plan", interrupted)
    assert told("plan") == "interrupted; repeat the command to go on"
