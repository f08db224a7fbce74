"""What is timed is what was meant: the same arithmetic, everyone in turn, the fastest as peer."""

import json
import os
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tests.deploy.test_onnx import saved
from tests.deploy.toys import MAX_LENGTH, TAGS, TOKENIZER, save_toy, toy_spec
from xdistil_jax.benchmark import bench, runtimes, subjects, tables, turns
from xdistil_jax.benchmark.subjects import Contender, teacher_spec
from xdistil_jax.deploy.bundle import load_bundle, seal
from xdistil_jax.deploy.onnx import save_graph
from xdistil_jax.export import GRAPHS
from xdistil_jax.labels import ClassSet
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.families import write_config
from xdistil_jax.models.transformer import TransformerSpec

TINY = EncoderSpec(40, 8, 2, 2, 16, positions=70, classes=len(TAGS))


def exported(folder, spec=None, **changes):
    save_toy(folder, spec, **changes)
    return with_graphs(folder)


def with_graphs(folder):
    bundle = load_bundle(folder)
    for name, graph in GRAPHS.items():
        save_graph(graph(bundle), folder / name)
    seal(folder, GRAPHS)
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("bench") / "student")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    (folder / "config.json").write_text(json.dumps({**write_config(TINY), "num_labels": 7}))
    return str(folder)


@pytest.mark.parametrize("spec", [None, TINY], ids=["student", "teacher"])
def test_a_model_is_the_same_in_jax_and_onnxruntime(student, spec):
    ways = {"JAX": "fp32", "onnxruntime": "fp32", "int8": "int8"}
    found = {}
    for name, precision in ways.items():
        runtime = "JAX" if name == "JAX" else "onnxruntime"
        made = Contender("any", runtime, precision, str(student), spec, threads=1)
        found[name] = np.asarray(runtimes.prepare(made)["pieces"](3, 9)())
    assert found["JAX"].shape == (3, 9, len(TAGS))
    np.testing.assert_allclose(found["JAX"], found["onnxruntime"], atol=1e-5)
    np.testing.assert_allclose(found["int8"], found["JAX"], atol=0.1 * np.ptp(found["JAX"]))


def test_bfloat16_is_computed_in_bfloat16(student):
    made = partial(Contender, "teacher", "JAX", folder=str(student), spec=TINY)
    half, full = (
        runtimes.prepare(made(precision=each))["pieces"](2, 5)() for each in ("bf16", "fp32")
    )
    off = np.abs(np.asarray(half, np.float32) - full)
    assert 0 < off.max() < 0.05 * np.ptp(full)


@pytest.mark.parametrize("spec", [None, TINY], ids=["student", "teacher"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_pytorch_has_the_same_sizes(student, spec, precision):
    pytest.importorskip("torch")
    made = Contender("any", "PyTorch", precision, str(student), spec, threads=1)
    found = runtimes.prepare(made)["pieces"](3, 9)()
    assert tuple(found.shape) == (3, 9, len(TAGS))
    assert str(found.dtype) == ("torch.bfloat16" if precision == "bf16" else "torch.float32")


def test_pytorch_has_as_many_parameters(student):
    pytest.importorskip("torch")
    from xdistil_jax.benchmark.in_torch import _bilstm, _encoder

    bundle = load_bundle(student)
    ours = sum(leaf.size for leaf in bundle.weights.values())
    # Its LSTM has a second bias.
    assert sum(each.numel() for each in _bilstm(bundle).parameters()) == ours + 2 * 4 * 5
    assert sum(each.numel() for each in _encoder(TINY).parameters()) == bench._count(TINY)


def test_text_comes_to_as_many_pieces(student):
    """And the makers answer with entities, or classes."""
    bundle = load_bundle(student)
    words = runtimes.single_pieces(bundle)
    assert len(words) > 20
    pieces, offsets = TOKENIZER.word_pieces(words)
    assert len(pieces) == len(words) == len(offsets) - 1
    answers = []
    for runtime in ("onnxruntime", "JAX"):
        made = Contender("student", runtime, "fp32", str(student))
        texts = runtimes.prepare(made)["text"](4, 12)
        assert {len(text.split()) for text in texts.args[0]} == {10}
        answers.append([[each[:4] for each in found] for found in texts()])
    assert len(answers[0]) == 4
    assert answers[0] == answers[1]


def test_a_student_without_token_types_is_timed_in_pytorch(student):
    pytest.importorskip("torch")
    spec = replace(TINY, token_types=0)
    found = runtimes.prepare(Contender("any", "PyTorch", "fp32", str(student), spec))
    assert tuple(found["pieces"](2, 5)().shape) == (2, 5, len(TAGS))


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("pool", ["max", "last"])
def test_a_classifier_is_asked_for_classes(tmp_path, pool, pairs):
    """In PyTorch, too, whose projection reads one vector of a text, as ours does."""
    folder = tmp_path / "student"
    spec = replace(toy_spec(), classes=2, pool=pool)
    exported(folder, spec, tagset=ClassSet(("a", "b")), pairs=pairs)
    found = runtimes.prepare(Contender("student", "onnxruntime", "fp32", str(folder)))
    assert [each.label in ("a", "b") for each in found["text"](2, 6)()] == [True, True]
    pytest.importorskip("torch")
    theirs = runtimes.prepare(Contender("student", "PyTorch", "fp32", str(folder)))
    assert tuple(theirs["pieces"](3, 6)().shape) == (3, 2)


def test_batches_are_no_longer_than_a_transformer_reads(tmp_path, checkpoint, monkeypatch):
    _Worker.alive, _Worker.log = [], []
    monkeypatch.setattr(bench, "Worker", _Worker)
    encoder = EncoderSpec(
        TOKENIZER.vocab_size, 8, 2, 2, 16, positions=MAX_LENGTH, classes=len(TAGS), stacked=False
    )
    folder = tmp_path / "student"
    saved(folder, TransformerSpec(encoder, imitates=()))
    with_graphs(folder)
    found = bench.bench(folder, teacher=checkpoint, grid=((1, 8), (1, 64)))
    of_pieces = {task.length for _, task in _Worker.log if task.kind == "pieces"}
    assert of_pieces == {8, MAX_LENGTH}
    assert {task.length for _, task in _Worker.log if task.kind == "text"} == {8, 64}
    assert set(found["fastest"]) == {f"{rows}x{MAX_LENGTH}" for rows in (32, 1)}
    made = Contender("student", "onnxruntime", "fp32", str(folder))
    assert runtimes.prepare(made)["pieces"](2, 9)().shape == (2, 9, len(TAGS))
    assert tables.render(found).count("| 1 × 64 |") == 1


def test_a_worker_gives_seconds_and_says_why_not(student, tmp_path):
    task = turns.Task("pieces", 2, 5)
    worker = turns.Worker(Contender("student", "onnxruntime", "fp32", str(student), threads=1))
    found = turns.take_turns([worker], task, 0.0)
    assert len(found[worker.contender]) == turns.ROUNDS
    assert all(each > 0 for each in found[worker.contender])
    assert len(turns.take_turns([worker], task, 0.0, calls=12)[worker.contender]) == 15
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(turns.LeftOutError, match="ended with code -9") as caught:
        turns.take_turns([worker], task, 0.0)
    assert caught.value.contender == worker.contender
    with pytest.raises(turns.LeftOutError, match=r"BundleError: .*config\.json"):
        turns.Worker(Contender("student", "onnxruntime", "fp32", str(tmp_path)))


def test_the_median_and_the_99th_percentile():
    seconds = [0.001 * n for n in range(1, 201)]
    assert turns.summary(seconds) == pytest.approx(
        {"median_ms": 100.5, "p99_ms": np.percentile(1e3 * np.array(seconds), 99), "calls": 200}
    )
    assert "p99_ms" not in turns.summary(seconds[:99])


class _Worker:
    """Takes a time that its precision tells; PyTorch isn't there, and the 6 layers fail later."""

    alive, log = [], []

    def __init__(self, contender):
        self.contender = contender
        if contender.runtime == "PyTorch":
            raise turns.LeftOutError(contender, "no torch")
        self.alive.append(contender)

    def seconds(self, task, budget_s, least):
        if self.contender.model == subjects.SIX and task.rows == 1:
            self.alive.remove(self.contender)
            raise turns.LeftOutError(self.contender, "died")
        self.log.append((str(self.contender), task))
        slow = {"student": 1, "teacher": 100}.get(self.contender.model, 10)
        return [1e-3 * slow * {"fp32": 4, "bf16": 2, "int8": 1}[self.contender.precision]] * 20

    def close(self):
        self.alive.remove(self.contender)


@pytest.fixture
def found(student, checkpoint, monkeypatch):
    _Worker.alive, _Worker.log = [], []
    monkeypatch.setattr(bench, "Worker", _Worker)
    (student / "README.md").write_text("# Card\n\n## Sizes and latency\n\nold\n\n## More\n\nkept\n")
    return bench.bench(student, teacher=checkpoint, grid=((32, 32), (8, 16)))


def test_the_fastest_teacher_is_the_peer(found, student):
    assert _Worker.alive == []
    assert set(found["fastest"].values()) == {"onnxruntime int8"}
    there = {
        (each["model"], each["runtime"], each["precision"])
        for each in found["times"]
        if (each["rows"], each["length"], each["kind"]) == (8, 16, "pieces")
    }
    assert {each[1:] for each in there if each[0] == "teacher"} == {("onnxruntime", "int8")}
    assert {each[0] for each in there} == {"student", "teacher"}
    texts = [each for each in found["times"] if each["kind"] == "text"]
    assert {each["model"] for each in texts} == {"student"}
    assert {each["runtime"] for each in texts} == {"onnxruntime", "JAX"}
    assert len(texts) == 6
    assert found["left_out"]["teacher, PyTorch int8"] == "no torch"
    assert found["left_out"][f"{subjects.SIX}, JAX fp32"] == "died"
    rates = {
        (each["precision"], each["threads"]): each["pieces_per_s"] for each in found["threads"]
    }
    assert rates["int8", 1] == pytest.approx(1024 / 1e-3)
    assert {count for _, count in rates} >= {1, os.cpu_count()}


def test_what_was_found_is_stored_and_stands_in_the_card(found, student):
    assert json.loads((student / "bench.json").read_text()) == found
    card = (student / "README.md").read_text()
    assert card.startswith("# Card\n\n## Sizes and latency\n\n|")
    assert card.endswith("\n\n## More\n\nkept\n")
    assert "old" not in card
    assert tables.into_card(card, found) == card
    assert tables.into_card("# Card\n", found).endswith(tables.render(found) + "\n")


def test_the_tables_say_it(found):
    said = tables.render(found)
    assert "| student, onnxruntime int8 | 1.00 | 1.00 | 100× | 1.00 | 1.00 | 100× |" in said
    assert "| teacher, JAX fp32 | 400 | 400 | 0.25× | 400 | 400 | 0.25× |" in said
    assert "own form in PyTorch was not timed" in said
    assert "Left out: teacher, PyTorch bf16: no torch." in said
    assert "| 8 × 16 | 4.00 (4.00) | 1.00 (1.00) | 4.00 (4.00) | 100 (100) |" in said
    assert f"| teacher, {found['teacher']['name']} |" in said


def test_sizes_are_those_of_the_files_and_of_the_teacher(found, student):
    bundle = load_bundle(student)
    count = sum(leaf.size for leaf in bundle.weights.values())
    assert found["student"]["parameters"] == count
    assert found["compression"] == pytest.approx(bench._count(TINY) / count)
    assert found["student"]["bytes"]["model.onnx"] == (student / "model.onnx").stat().st_size


def test_teachers_are_known_by_name():
    """Their published sizes, heads apart."""
    sizes = {"mbert-base": 177_853_440, "xlm-r-base": 278_043_648, "xlm-r-large": 559_890_432}
    for name, size in sizes.items():
        spec = teacher_spec(name, 9)
        poolers = spec.width * (spec.width + 1)
        assert bench._count(spec) == size - poolers + 9 * (spec.width + 1)
        assert spec.classes == 9


def test_wrong_teachers_and_folders_are_named(student, tmp_path):
    with pytest.raises(ValueError, match=r"--teacher .*nowhere.*mbert-base"):
        bench.bench(student, teacher=str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"--teacher .*gpt2"):
        bench.bench(student, teacher=str(tmp_path))
    bare = tmp_path / "bare"
    save_toy(bare)
    with pytest.raises(ValueError, match=r"bare has no model.onnx: .*xdistil export"):
        bench.bench(bare)


@pytest.mark.slow
def test_the_command_times_a_student(student, checkpoint, capsys):
    from xdistil_jax import cli

    cli.main(["bench", str(student), "--teacher", checkpoint, "--seconds", "0.01"])
    said = capsys.readouterr().out
    assert "| student, onnxruntime int8 |" in said
    stored = json.loads((student / "bench.json").read_text())
    assert stored["left_out"] == {}
    assert len([each for each in stored["times"] if each["kind"] == "text"]) == 3 * len(bench.GRID)
    assert {each["model"] for each in stored["times"]} == {"student", "teacher", subjects.SIX}
