"""A teacher from text: it learns, stops and goes on, equal on any devices, and is a teacher."""

import json
import random
import shutil
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import transformers

from tests.started import launch
from xdistil_jax import DataSpec, RunConfig, TeacherConfig, backbone, cli, trees
from xdistil_jax import pretrain as pretraining
from xdistil_jax.data.corpus import CorpusError
from xdistil_jax.data.tokenizer import load_tokenizer
from xdistil_jax.distill.loop import InterruptedRunError, StopFlag
from xdistil_jax.distill.stages import Schedule, StopRule
from xdistil_jax.distill.strategies import Recipe
from xdistil_jax.experiment import settings
from xdistil_jax.models.functional import build
from xdistil_jax.models.masked_lm import load_masked_lm
from xdistil_jax.pretrain import Pretraining, pretrain
from xdistil_jax.sharding import make_mesh

HOMES = {
    "Anna": "Ulm", "Boris": "Kiel", "Clara": "Bonn", "David": "Mainz", "Emma": "Trier",
    "Frank": "Essen",
}  # fmt: skip
RECIPE = Recipe(Schedule(peak=1e-2, warmup=0.1), StopRule(epochs=60, evaluations=0.1, patience=9))


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory):
    """One device, and what one test has compiled is there for the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xdistil_jax.session.make_mesh", lambda: make_mesh(jax.devices()[:1]))
        jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
        yield
        jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder with de.txt: who lives where, a sentence a row of 8."""
    folder = tmp_path_factory.mktemp("text")
    lines = [f"{name} wohnt in {home}" for name, home in HOMES.items()] * 60
    random.Random(0).shuffle(lines)
    (folder / "de.txt").write_text("\n".join(lines) + "\n")
    return folder


def small(text, out, epochs=60, **options):
    recipe = replace(RECIPE, stop=replace(RECIPE.stop, epochs=epochs))
    config = Pretraining(
        str(out),
        DataSpec(unlabelled_root=str(text)),
        TeacherConfig(
            width=32, layers=1, heads=2, feed_forward=32, vocab_size=120, max_length=8, dropout=0,
            token_budget=512, recipe=recipe,
        ),
        RunConfig(buckets=1, steps_per_call=4, save_every_s=0),
    )  # fmt: skip
    return replace(config, **options)


@pytest.fixture(scope="module")
def made(text, tmp_path_factory):
    """(folder, report) of a run that is long enough to learn."""
    out = tmp_path_factory.mktemp("made") / "teacher"
    return out, pretrain(small(text, out))


@pytest.fixture(scope="module")
def short(text, tmp_path_factory):
    """(folder, report) of two epochs, in one go."""
    out = tmp_path_factory.mktemp("short") / "teacher"
    return out, pretrain(small(text, out, epochs=2))


class StopsAfter:
    """A writer that raises a flag at its n-th progress record."""

    def __init__(self, flag, calls):
        self.flag, self.left = flag, calls

    def write(self, record):
        """Nothing."""

    def progress(self, record):
        self.left -= 1
        self.flag.raised = self.left <= 0

    def close(self):
        """Nothing."""


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def records(folder):
    lines = (folder / "pretraining" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_loss_goes_down_and_a_hidden_word_is_known(made):
    out, report = made
    losses = [record["held_out/mlm"] for record in records(out)]
    assert losses[0] == pytest.approx(np.log(report["vocabulary"]), abs=0.5)
    assert min(losses) == pytest.approx(report["loss"])
    assert min(losses) < 0.5 * losses[0]
    assert report["perplexity"] == pytest.approx(np.exp(report["loss"]))
    spec, params = load_masked_lm(out, key=jax.random.key(0))
    tokenizer = load_tokenizer(out)
    rows = []
    for name in HOMES:
        words = [number for word in (name, "wohnt", "in") for number in _pieces(tokenizer, word)]
        rows.append(
            [tokenizer.cls_id, *words, tokenizer.backend.token_to_id("[MASK]"), tokenizer.sep_id]
        )
    assert len(set(map(len, rows))) == 1
    tokens = np.array(rows, np.int32)
    places = np.full((len(rows), 1), tokens.shape[1] - 2, np.int32)
    lengths = np.full(len(rows), tokens.shape[1], np.int32)
    logits = build(spec).apply(params, tokens, lengths, places=places).logits[:, 0]
    told = [tokenizer.backend.id_to_token(int(number)) for number in logits.argmax(-1)]
    assert told == list(HOMES.values())


def _pieces(tokenizer, word):
    return tokenizer.word_pieces([word])[0].tolist()


def test_the_best_parameters_are_kept(made):
    """The figure in the report is that of what was saved: so a run that goes on begins with it."""
    out, report = made
    steps = {record["step"]: record["held_out/mlm"] for record in records(out)}
    assert steps[report["best_step"]] == min(steps.values())


def test_going_on_from_a_checkpoint_begins_where_it_ended(text, made, tmp_path):
    before, report = made
    config = small(text, tmp_path / "more", epochs=0.2)
    teacher = replace(config.teacher, checkpoint=str(before))
    pretrain(replace(config, teacher=teacher))
    assert records(tmp_path / "more")[0]["held_out/mlm"] == pytest.approx(report["loss"], abs=1e-5)
    again = load_tokenizer(tmp_path / "more")
    assert again.fingerprint == load_tokenizer(before).fingerprint


def test_going_on_with_another_vocabulary_keeps_what_it_knows(made, tmp_path):
    """Pieces that both have keep their vectors; the bias of each piece begins anew."""
    before, _ = made
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Zebra", "wohnt", "in"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    tokenizer = load_tokenizer(tmp_path / "vocab.txt")
    config = TeacherConfig(checkpoint=str(before), max_length=8)
    spec, params = pretraining._start(config, tokenizer)
    assert (spec.vocab_size, spec.positions) == (len(pieces), 16)
    np.testing.assert_array_equal(params["head"]["bias"], np.zeros(len(pieces)))
    _, theirs = load_masked_lm(before, key=jax.random.key(0))
    for word in ("wohnt", "in"):
        [own], [their] = _pieces(tokenizer, word), _pieces(load_tokenizer(before), word)
        np.testing.assert_array_equal(
            params["embed"]["table"][own], theirs["embed"]["table"][their]
        )


def test_transformers_load_it(made):
    pytest.importorskip("torch")
    out, report = made
    model = transformers.AutoModelForMaskedLM.from_pretrained(out)
    assert model.num_parameters() == report["parameters"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ours = load_tokenizer(out)
    assert tokenizer.mask_token_id == ours.backend.token_to_id("[MASK]")
    batch = tokenizer("Anna wohnt in [MASK]", return_tensors="pt")
    told = model.eval()(**batch).logits[0, -2].argmax()
    assert tokenizer.decode([int(told)]).strip() == "Ulm"


def test_it_is_a_teacher(made):
    out, _ = made
    config = TeacherConfig(checkpoint=str(out), max_length=8)
    tags = ("O", "B-LOC", "I-LOC")
    spec, params, own = backbone.start_backbone(
        config, load_tokenizer(out), tags, jax.random.key(0)
    )
    assert own == tags
    whole, before = load_masked_lm(out, key=jax.random.key(0))
    assert spec == replace(whole.encoder(3), stacked=True)
    np.testing.assert_array_equal(params["embed"]["table"], before["embed"]["table"])
    assert params["head"]["kernel"].shape == (32, 3)


def test_a_stopped_run_goes_on_bit_for_bit(text, short, tmp_path):
    config, stop = small(text, tmp_path / "x", epochs=2), StopFlag()
    with pytest.raises(InterruptedRunError, match="repeat the command"):
        pretrain(config, progress=StopsAfter(stop, 1), stop=stop)
    assert not (tmp_path / "x" / "config.json").exists()
    pretrain(config)
    assert weights(tmp_path / "x") == weights(short[0])
    assert records(tmp_path / "x") == records(short[0])


def test_a_run_stops_by_itself_and_goes_on(text, short, tmp_path):
    config = small(text, tmp_path / "x", epochs=2)
    soon = replace(config, run=replace(config.run, stop_after_s=1e-9))
    with pytest.raises(InterruptedRunError, match="step 0 saved"):
        pretrain(soon)
    pretrain(replace(config, run=replace(config.run, stop_after_s=1e9)))
    assert weights(tmp_path / "x") == weights(short[0])


def test_resident_text_is_the_same_text(text, short, tmp_path):
    config = small(text, tmp_path / "x", epochs=2)
    pretrain(replace(config, run=replace(config.run, placement="resident")))
    assert weights(tmp_path / "x") == weights(short[0])


@pytest.mark.slow
def test_eight_devices_are_as_good_as_one(text, short, tmp_path, monkeypatch):
    monkeypatch.setattr("xdistil_jax.session.make_mesh", make_mesh)
    assert len(jax.devices()) == 8
    pretrain(small(text, tmp_path / "x", epochs=2))
    for one, other in zip(records(tmp_path / "x"), records(short[0]), strict=True):
        assert one["pieces"] == other["pieces"]
        assert one["held_out/mlm"] == pytest.approx(other["held_out/mlm"], abs=1e-3)
        if "train/mlm" in one:
            assert one["train/mlm"] == pytest.approx(other["train/mlm"], abs=1e-3)


FLAGS = (
    "--teacher.width 32 --teacher.layers 1 --teacher.heads 2 --teacher.feed-forward 32 "
    "--teacher.vocab-size 120 --teacher.max-length 8 --teacher.dropout 0 "
    "--teacher.token-budget 512 --teacher.recipe.schedule.peak 1e-2 "
    "--teacher.recipe.schedule.decay cosine --teacher.recipe.schedule.weight-decay 0 "
    "--teacher.recipe.schedule.warmup 0.1 --teacher.recipe.stop.epochs 2 "
    "--teacher.recipe.stop.evaluations 0.1 --teacher.recipe.stop.patience 9 "
    "--run.buckets 1 --run.steps-per-call 4 --run.save-every-s 0"
)


@pytest.mark.slow
def test_several_processes_are_as_good_as_one(text, short, tmp_path):
    """By the command, stopped in between: one teacher, made by both, held by the first."""
    out = tmp_path / "x"
    command = ("pretrain", "--out", out, "--data.unlabelled-root", text, *FLAGS.split())
    again = partial(launch, "xdistil_jax", 2, *command, compiled=tmp_path / "compiled")
    code, said = again("--run.stop-after-s", 1e-9)
    assert code != 0
    assert "saved; repeat the command to go on" in said
    assert not (out / "config.json").exists()
    code, said = again()
    assert code == 0, said
    for one, other in zip(records(out), records(short[0]), strict=True):
        assert one["pieces"] == other["pieces"]
        assert one["held_out/mlm"] == pytest.approx(other["held_out/mlm"], abs=1e-3)
    assert load_tokenizer(out).fingerprint == load_tokenizer(short[0]).fingerprint
    spec, params = load_masked_lm(out, key=jax.random.key(0))
    theirs, alone = load_masked_lm(short[0], key=jax.random.key(0))
    assert spec == theirs
    wanted = dict(trees.leaves(alone))
    for path, leaf in trees.leaves(params):
        np.testing.assert_allclose(leaf, wanted[path], atol=2e-3, err_msg=path)


def test_a_finished_one_is_found(text, short):
    out, report = short
    before = weights(out), (out / "pretraining" / "report.json").read_bytes()
    again = pretrain(small(text, out, epochs=2))
    assert (weights(out), (out / "pretraining" / "report.json").read_bytes()) == before
    assert again["loss"] == report["loss"]
    assert not again["compilations"]["programs"], "nothing was computed"


def test_other_settings_or_text_are_refused(text, short, tmp_path):
    out, _ = short
    with pytest.raises(
        ValueError, match=r"begun with teacher.recipe.stop.epochs 2, and now it is 3"
    ):
        pretrain(small(text, out, epochs=3))
    other = tmp_path / "text"
    other.mkdir()
    (other / "de.txt").write_text((text / "de.txt").read_text())
    config = small(other, tmp_path / "x", epochs=2)
    with pytest.raises(InterruptedRunError):
        pretrain(replace(config, run=replace(config.run, stop_after_s=1e-9)))
    (other / "de.txt").write_text((text / "de.txt").read_text() + "Anna wohnt in Bonn\n")
    with pytest.raises(ValueError, match="its text or its checkpoint has changed"):
        pretrain(config)


@pytest.mark.parametrize("whole", [False, True])
def test_a_folder_of_an_earlier_version_is_found(text, short, tmp_path, whole):
    """One whose settings have ``whole_vocabulary`` beside the teacher, and not in it."""
    out = tmp_path / "x"
    shutil.copytree(short[0], out)
    file = out / "pretraining" / "settings.json"
    config = small(text, out, epochs=2)
    if whole:
        vocab = str(out / "tokenizer.json")
        config = replace(config, teacher=replace(config.teacher, tokenizer=vocab))
    old = {**settings(config), "out": "", "whole_vocabulary": whole}
    file.write_text(json.dumps(old))
    other = replace(config, teacher=replace(config.teacher, whole_vocabulary=True))
    asked, refused = (other, config) if whole else (config, replace(config, rate=0.2))
    assert pretrain(asked)["loss"] == short[1]["loss"]
    with pytest.raises(ValueError, match="whole_vocabulary True, and now" if whole else "rate"):
        pretrain(refused)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teacher": TeacherConfig(codec="int8")}, "teacher.codec means nothing in pretraining"),
        ({"run": RunConfig(out="x")}, "run.out means nothing .* --out"),
        ({"teacher": TeacherConfig(whole_vocabulary=True)}, "name it, teacher.tokenizer"),
        ({"teacher": TeacherConfig(max_length=512)}, "fills 4 rows of 512 pieces, too few"),
        ({"rate": 1.5}, "a masking rate of 1.5"),
        ({"data": DataSpec()}, "no text: name files"),
    ],
)
def test_what_can_not_be_done_is_said(text, tmp_path, change, said):
    with pytest.raises(ValueError, match=said):
        pretrain(small(text, tmp_path / "x", **change))


@pytest.mark.parametrize(
    "slip",
    [
        {"teacher": {"whole_vocabulary": True}},
        {"data": {"unlabelled_root": "", "unlabelled": ("nowhere.txt",)}},
        {"teacher": {"max_length": 512, "vocab_size": 99}},
        {"rate": 1.5},
    ],
)
def test_a_first_mistake_does_not_spoil_the_folder(text, short, tmp_path, slip):
    """The mended command makes there what it makes in a folder of its own."""
    config = small(text, tmp_path / "x", epochs=2)
    wrong = {
        name: replace(getattr(config, name), **change) if isinstance(change, dict) else change
        for name, change in slip.items()
    }
    with pytest.raises(ValueError, match=r"name it|nowhere|too few|masking rate"):
        pretrain(replace(config, **wrong))
    pretrain(config)
    assert weights(tmp_path / "x") == weights(short[0])


def test_a_tokenizer_without_a_mask_is_refused(text, tmp_path):
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(chr, range(65, 123))]))
    config = small(text, tmp_path / "x")
    config = replace(config, teacher=replace(config.teacher, tokenizer=str(vocab)))
    with pytest.raises(ValueError, match=r"has no \[MASK\] or <mask> to hide"):
        pretrain(config)


@pytest.mark.slow
def test_the_command_cuts_a_given_vocabulary_or_keeps_it(text, tmp_path, capsys):
    vocab = tmp_path / "vocab.txt"
    words = {word for pair in HOMES.items() for word in pair} | {"wohnt", "in", "Zebra", "Yak"}
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]
    vocab.write_text("\n".join(pieces))
    sizes = {}
    for flag in ("False", "True"):
        out = tmp_path / flag
        cli.main([
            "pretrain", "--out", str(out), "--data.unlabelled", str(text / "de.txt"),
            *("--teacher.width", "8", "--teacher.layers", "1", "--teacher.heads", "1"),
            *("--teacher.feed-forward", "8", "--teacher.max-length", "8"),
            *("--teacher.tokenizer", str(vocab), "--teacher.whole-vocabulary", flag),
            *("--teacher.recipe.stop.epochs", "0.1", "--run.buckets", "1"),
        ])  # fmt: skip
        said = capsys.readouterr()
        assert f"A teacher: --teacher {out}" in said.out
        assert "train step mlm" in said.out
        assert "perplexity" in said.out
        assert "100% full" not in said.err
        sizes[flag] = load_tokenizer(out).vocab_size
    assert sizes == {"False": len(pieces) - 2, "True": len(pieces)}


def test_labelled_files_give_their_words(text, tmp_path):
    lines = "".join(f"{word}\tO\n" for word in ("Anna", "wohnt", "in", "Ulm")) + "\n"
    for name in ("train", "dev"):
        (tmp_path / f"{name}.txt").write_text(lines * 200)
    data = DataSpec(str(tmp_path / "train.txt"), str(tmp_path / "dev.txt"))
    with pytest.raises(ValueError, match=r"no text|too few|no sentence has a word"):
        pretrain(small(text, tmp_path / "x", data=data))
    (tmp_path / "dev.txt").write_text(lines.replace("Anna", "Boris"))
    report = pretrain(small(text, tmp_path / "y", epochs=0.1, data=data))
    assert report["pieces"] > 800


def test_a_missing_folder_is_named(text, tmp_path):
    with pytest.raises(CorpusError, match="nowhere"):
        pretrain(small(tmp_path / "nowhere", tmp_path / "x"))
