"""An exported run is a whole bundle that the tagger reads, or nothing at all."""

import json
import re
from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.deploy.test_onnx import saved
from tests.deploy.test_transformer import SPECS as ENCODERS
from tests.deploy.toys import MAX_LENGTH, TOKENIZER, edit_json, save_toy, toy_spec
from xdistil_jax import DataSpec, Experiment, cli, files
from xdistil_jax import export as exporting
from xdistil_jax.deploy.bundle import BundleError, load_bundle
from xdistil_jax.deploy.runtime import Runtime
from xdistil_jax.deploy.tagger import Tagger
from xdistil_jax.deploy.words import LOGITS
from xdistil_jax.experiment import settings
from xdistil_jax.export import export
from xdistil_jax.gate import GateError
from xdistil_jax.labels import ClassSet
from xdistil_jax.models.transformer import TransformerSpec

BUNDLE = {"model.safetensors", "config.json", "tokenizer.json", "labels.json"}
WHOLE = BUNDLE | {"model.onnx", "model.int8.onnx", "README.md"}
LINES = "Anna B-PER\nBerg I-PER\nfuhr O\nnach O\nBerlin B-LOC\n\nМосква B-LOC\n, O\ndann O\n"


@pytest.fixture
def run(tmp_path):
    """A run folder as ``pipeline.run`` leaves it, of a student that was never trained."""
    return make_run(tmp_path)


def make_run(folder, spec=None, strategy="D1", *, dev_from_train=None, **student):
    for split in ("train", "dev"):
        own = "".join(f"\n{split} O\n{number} O\n" for number in range(10))
        (folder / f"{split}.txt").write_text(LINES + own, encoding="utf-8")
    files_of_it = str(folder / "train.txt"), str(folder / "dev.txt")
    data = DataSpec(*files_of_it, dev_from_train=dev_from_train)
    run = folder / "runs" / "toy" / f"{strategy}-12345678"
    save_toy(run / "student", spec, **student)
    experiment = Experiment(name="toy", strategy=strategy, data=data)
    (run / "config.json").write_text(json.dumps(settings(experiment)), encoding="utf-8")
    return run


def test_a_bundle_is_whole_and_sealed(run, tmp_path):
    to = export(run, tmp_path / "out", licence="mit")
    assert {path.name for path in to.iterdir()} == WHOLE
    config = json.loads((to / "config.json").read_text(encoding="utf-8"))
    assert set(config["checksums"]) == WHOLE - {"config.json", "README.md"}
    for name, known in config["checksums"].items():
        assert files.checksum(to / name) == known
    for name in BUNDLE - {"config.json"}:
        assert (to / name).read_bytes() == (run / "student" / name).read_bytes()
    texts = ["Anna Berg fuhr nach Berlin, dann weiter.", ""]
    for ours, theirs in zip(Tagger.load(to)(texts), Tagger.load(run)(texts), strict=True):
        assert [each[:4] for each in ours] == [each[:4] for each in theirs]
        assert [each.score for each in ours] == pytest.approx([each.score for each in theirs])


def test_its_graphs_are_the_student(run, tmp_path):
    to = export(run, tmp_path / "out")
    bundle = load_bundle(to)
    tokens = np.random.default_rng(0).integers(0, TOKENIZER.vocab_size, (5, 9))
    lengths = np.array([9, 4, 1, 0, 7])
    wanted = LOGITS[bundle.kind](bundle, tokens, lengths)
    found = Runtime(to / "model.onnx").logits(tokens, lengths)
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)


def test_the_card_says_what_there_is_to_say(run, tmp_path):
    to = export(run, tmp_path / "out", licence="mit")
    text = (to / "README.md").read_text(encoding="utf-8")
    yaml = pytest.importorskip("yaml")
    _, head, body = text.split("---\n", 2)
    header = yaml.safe_load(head)
    assert header["license"] == "mit"
    assert header["pipeline_tag"] == "token-classification"
    assert header["metrics"] == ["f1"]
    assert header["library_name"] == "xdistil_jax"
    assert [each["type"] for each in header["model-index"][0]["results"][0]["metrics"]] == [
        "f1"
    ] * 2
    assert "expected calibration error" in body
    for part in ("How it was made", "F1 by language", "On words", "On raw text", "Sizes", "limits"):
        assert part in body
    for name in ("model.safetensors", "model.onnx", "model.int8.onnx"):
        size = (to / name).stat().st_size / 1e6
        assert f"| `{name}` | {size:.2f} |" in body
    assert re.search(r"\| `model.onnx` \| \d+\.\d\d \| \d+\.\d\d \|", body)
    assert "trained from scratch" in body
    assert "D1" in body
    assert "allow-drop" not in body
    assert "Dev decided when training stopped" in body


def test_a_dev_set_that_decided_nothing_is_not_said_to_have(tmp_path):
    run = make_run(tmp_path, dev_from_train=0.3)
    body = (export(run, tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    assert "F1 by language" in body
    assert "Dev decided" not in body


def test_a_worse_artefact_is_refused_with_its_figures_unless_allowed(run, tmp_path, monkeypatch):
    def damaged(bundle):
        weights = {path: -leaf for path, leaf in bundle.weights.items()}
        return exporting.build_graph(replace(bundle, weights=weights))

    monkeypatch.setitem(exporting.GRAPHS, "model.onnx", damaged)
    with pytest.raises(GateError, match=r"model\.onnx: a logit differs by .* --allow-drop"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not [*tmp_path.glob(".out*")]
    export(run, tmp_path / "out", allow_drop=True)
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Exported with `--allow-drop`" in text
    assert "- model.onnx: a logit differs by" in text


@pytest.mark.parametrize("name", ["pairs", "plain", "types"])
def test_a_transformer_is_one_in_pytorch_too(tmp_path, name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    spec = TransformerSpec(replace(ENCODERS[name], separator=-1), imitates=())
    bundle, _ = saved(tmp_path / "student", spec)
    assert exporting.write_transformers(tmp_path / "theirs", bundle)
    model = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "theirs")
    cut = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert cut.vocab_size == TOKENIZER.vocab_size
    tokens = np.random.default_rng(0).integers(0, TOKENIZER.vocab_size, (3, 8))
    lengths = np.array([8, 5, 1])
    real = np.arange(8) < lengths[:, None]
    with torch.no_grad():
        given = torch.tensor(tokens), torch.tensor(real.astype(int))
        theirs = model.eval()(given[0], attention_mask=given[1]).logits.numpy()
    ours = LOGITS["transformer"](bundle, tokens, lengths)
    np.testing.assert_allclose(theirs[real], ours[real], atol=1e-4, rtol=0)
    assert model.config.id2label == dict(enumerate(bundle.tagset.tags))


def test_a_transformers_bundle_has_their_form_beside_ours(tmp_path):
    spec = TransformerSpec(ENCODERS["plain"], imitates=())
    run = make_run(tmp_path, spec, kind="transformer")
    to = export(run, tmp_path / "out", allow_drop=True)
    assert {path.name for path in to.iterdir()} == WHOLE | {"transformers"}
    there = {path.name for path in (to / "transformers").iterdir()}
    assert there >= {"config.json", "model.safetensors", "tokenizer.json"}
    text = (to / "README.md").read_text(encoding="utf-8")
    assert 'from_pretrained("DIR", subfolder="transformers")' in text


def test_a_bilstm_has_no_form_of_theirs(tmp_path):
    assert not exporting.write_transformers(tmp_path / "t", saved(tmp_path / "s", toy_spec())[0])
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    "spec", [toy_spec(), toy_spec(pool="max"), TransformerSpec(ENCODERS["pairs"], imitates=())]
)
def test_stablehlo_takes_any_batch_and_length(tmp_path, spec):
    bundle, _ = saved(tmp_path / "s", spec)
    name = exporting.write_stablehlo(tmp_path, bundle)
    assert re.fullmatch(r"model-20\d\d-\d\d-\d\d\.stablehlo", name)
    loaded = jax.export.deserialize(bytearray((tmp_path / name).read_bytes()))
    for rows, width in ((1, 1), (5, MAX_LENGTH)):
        tokens = np.random.default_rng(0).integers(0, TOKENIZER.vocab_size, (rows, width), np.int32)
        lengths = np.full(rows, width, np.int32)
        wanted = LOGITS[bundle.kind](bundle, tokens, lengths)
        found = np.asarray(loaded.call(tokens, lengths))
        np.testing.assert_allclose(found, wanted, atol=1e-3, rtol=1e-3)


def test_a_classifier_is_exported(tmp_path):
    tagset = ClassSet(("a", "b", "c", "d", "e"))
    run = make_run(tmp_path, toy_spec(pool="max"), tagset=tagset)
    for split in ("train", "dev"):
        lines = "".join(f"Anna {name} Berg {split}\t{name}\n" for name in tagset.classes)
        (tmp_path / f"{split}.txt").write_text(lines, encoding="utf-8")
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    edit_json(run / "config.json", data={**config["data"], "task": "classification"})
    text = (export(run, tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-classification" in text
    assert "accuracy by language" in text
    assert "| macro-F1 |" in text
    assert "xdistil predict DIR" in text


def test_mistakes_are_answered(run, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is no finished run: it has no student"):
        export(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match=r"there is there already: name a new folder"):
        export(run, tmp_path / "there")
    report = {"figures": {"dev": {"sentences": "of another dev set"}}}
    (run / "report.json").write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(ValueError, match=r"dev set of .* has changed since"):
        export(run, tmp_path / "out")
    (run / "report.json").unlink()
    (run / "student" / "labels.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BundleError, match=r"labels\.json is damaged"):
        export(run, tmp_path / "out")
    (run / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no run folder: config\.json is missing"):
        export(run, tmp_path / "out")


def test_one_of_several_students_is_to_be_named(tmp_path):
    run = make_run(tmp_path)
    for code in ("de", "ru"):
        save_toy(run / code / "student")
    (run / "student").rename(run / "kept")
    with pytest.raises(ValueError, match=r"a student for each of de, ru: export one, such as .*de"):
        export(run, tmp_path / "out")


def test_the_command_passes_its_options_on(run, tmp_path, capsys):
    cli.main(["export", str(run), "--to", str(tmp_path / "out"), "--stablehlo", "--licence", "mit"])
    assert "see README.md there" in capsys.readouterr().out
    assert [*(tmp_path / "out").glob("model-*.stablehlo")]
    assert 'license: "mit"' in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="is there already"):
        cli.main(["export", str(run), "--to", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"usage: xdistil export RUN --to DIR"):
        cli.main(["export"])
