"""End to end with teachers of other families, vocabularies and tags."""

import dataclasses
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, trainers

from tests.test_pipeline import compiled_once, shrunk, weights  # noqa: F401
from xdistil_jax import (
    DataSpec,
    EnsembleConfig,
    Experiment,
    Tagger,
    TeacherConfig,
    load_corpus,
    pipeline,
)
from xdistil_jax.data.tokenizer import train_tokenizer
from xdistil_jax.evaluation import WeakTeacherError, read_report
from xdistil_jax.export import export
from xdistil_jax.finetune import prepare_teacher
from xdistil_jax.models.checkpoints import save_encoder
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import build
from xdistil_jax.report.metrics import score
from xdistil_jax.session import Session
from xdistil_jax.targets import cache_teacher, encode_text
from xdistil_jax.teacher.manifest import CacheMismatch

DATA = DataSpec(synthetic=True, languages=("de", "vi"))
TAGS = ("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER")


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(DATA)


@pytest.fixture(scope="module")
def xlmr(corpus, tmp_path_factory) -> pathlib.Path:
    """An XLM-R-shaped checkpoint with a Unigram tokenizer, both made on the spot."""
    folder = tmp_path_factory.mktemp("xlmr")
    backend = Backend(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=500, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator((" ".join(s.words) for s in corpus.transfer), trainer)
    backend.save(str(folder / "tokenizer.json"))
    spec = EncoderSpec(
        backend.get_vocab_size(), 16, 2, 2, 32, positions=130, token_types=1, classes=7,
        family="xlm-roberta", position_offset=2,
    )  # fmt: skip
    params = jax.tree.map(np.asarray, build(spec).init(jax.random.key(0)))
    save_encoder(folder, spec, params, TAGS)
    return folder


def taught_by(folder: pathlib.Path, out: pathlib.Path, **student: object) -> Experiment:
    whole = shrunk(out, "logit-ce")
    teacher = TeacherConfig(checkpoint=str(folder), recipe=whole.teacher.recipe, min_f1=0.0)
    student = dataclasses.replace(whole.student, **student)
    return dataclasses.replace(whole, data=DATA, teacher=teacher, student=student)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["first", "mean"])
def test_a_unigram_teacher_teaches_a_wordpiece_student(xlmr, corpus, tmp_path, pool):
    train_tokenizer(corpus.transfer, 400).save(tmp_path / "wordpiece")
    experiment = taught_by(xlmr, tmp_path, tokenizer=str(tmp_path / "wordpiece"), pool=pool)
    result = pipeline.run(experiment)
    assert result.report["figures"]["dev"]["models"]["student"]["parameters"] > 1000
    tagger = Tagger.load(result.folder)
    assert "##" in " ".join(tagger.bundle.tokenizer.backend.get_vocab())
    [entities] = tagger(["Anna Müller wohnt seit dem Sommer in Köln ."])
    assert isinstance(entities, list)


def test_from_a_unigram_teacher_to_the_onnx_tagger(xlmr, corpus, tmp_path):
    """Text, teacher, distillation, graphs: the tagger answers dev as the student was scored."""
    experiment = taught_by(xlmr, tmp_path, embed=16, hidden=16)
    ce = dataclasses.replace(
        experiment.tuning.ce,
        schedule=dataclasses.replace(experiment.tuning.ce.schedule, peak=0.02),
        stop=dataclasses.replace(experiment.tuning.ce.stop, epochs=16.0),
    )
    tuning = dataclasses.replace(experiment.tuning, ce=ce)
    result = pipeline.run(dataclasses.replace(experiment, tuning=tuning))
    said = result.report["figures"]["dev"]["models"]["student"]["scores"]["mean"]
    assert said > 10
    # int8 may lose more than the gate allows a student this small.
    to = export(result.folder, tmp_path / "student", allow_drop=True)
    gold = [sentence.tags for sentence in corpus.dev]
    languages = [sentence.language for sentence in corpus.dev]
    found = {}
    for precision in ("fp32", "int8"):
        tagger = Tagger.load(to, precision=precision, threads=1)
        assert type(tagger.bundle.tokenizer.backend.model).__name__ == "Unigram"
        assert not tagger.bundle.weights
        found[precision] = score(gold, tagger.tags(corpus.dev), languages)
    assert found["fp32"].mean == pytest.approx(said, abs=1e-9)
    assert found["int8"].mean == pytest.approx(said, abs=3)


@pytest.mark.slow
def test_a_capped_vocabulary_makes_a_smaller_student(xlmr, corpus, tmp_path):
    sizes = {}
    for cap in (0, 150):
        result = pipeline.run(taught_by(xlmr, tmp_path, vocab_size=cap))
        sizes[cap] = weights(result.folder)["embed/table"].shape[0]
    characters = {character for s in corpus.transfer for word in s.words for character in word}
    assert 150 <= sizes[150] <= 150 + len(characters) + 8
    assert sizes[150] < sizes[0] <= 500


def test_a_teacher_with_other_tags_is_used_as_it_is(xlmr, tmp_path):
    spec = EncoderSpec(
        500, 16, 1, 2, 32, positions=130, token_types=1, classes=6, family="xlm-roberta",
        position_offset=2,
    )  # fmt: skip
    params = jax.tree.map(np.asarray, build(spec).init(jax.random.key(0)))
    tags = ("B-PERSON", "I-PERSON", "O", "B-LOC", "I-LOC", "B-MISC")
    (tmp_path / "ner").mkdir()
    (tmp_path / "ner" / "tokenizer.json").write_bytes((xlmr / "tokenizer.json").read_bytes())
    save_encoder(tmp_path / "ner", spec, params, tags)
    experiment = taught_by(tmp_path / "ner", tmp_path)
    teacher = dataclasses.replace(
        experiment.teacher, fine_tune=False, labels=("PERSON=PER", "MISC=O")
    )
    said: list[str] = []
    pipeline.run(dataclasses.replace(experiment, teacher=teacher), say=said.append)
    assert any("MISC count as O; it knows nothing of B-ORG, I-ORG" in line for line in said)


def test_a_weak_teacher_is_refused_before_anything_is_distilled(xlmr, tmp_path):
    experiment = taught_by(xlmr, tmp_path)
    teacher = dataclasses.replace(experiment.teacher, min_f1=99.0)
    with pytest.raises(
        WeakTeacherError, match=r"dev F1 is .* under the limit of 99.*--teacher.min"
    ):
        pipeline.run(dataclasses.replace(experiment, teacher=teacher))
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_outputs_of_a_torch_model_teach_a_student(tmp_path):
    """The shipped example, as a user would start it, where most sentences are too long."""
    pytest.importorskip("torch")
    import runpy

    from tests.models.references.make import random_model

    model = random_model(0, "bert", vocab_size=300, max_position_embeddings=130)
    model.save_pretrained(tmp_path / "model")
    corpus = load_corpus(DATA)
    train_tokenizer(corpus.transfer, 300).save(tmp_path / "model", longest=24)
    files = {name: tmp_path / f"{name}.txt" for name in ("train", "dev", "unlabelled")}
    for name, sentences in (("train", corpus.train[:60]), ("dev", corpus.dev[:30])):
        rows = ("\n".join(map("\t".join, zip(s.words, s.tags, strict=True))) for s in sentences)
        files[name].write_text("\n\n".join(rows) + "\n", encoding="utf-8")
    lines = (" ".join(s.words) for s in corpus.transfer[-200:])
    files["unlabelled"].write_text("\n".join(lines) + "\n", encoding="utf-8")
    root = pathlib.Path(__file__).parents[1]
    example = runpy.run_path(str(root / "experiments" / "torch_teacher.py"))
    example["write"](str(tmp_path / "model"), str(tmp_path / "out"), *map(str, files.values()))
    whole = shrunk(tmp_path, "logit-ce")
    data = DataSpec(str(files["train"]), str(files["dev"]), "", (str(files["unlabelled"]),))
    teacher = TeacherConfig(outputs=str(tmp_path / "out"), vocab_size=300)
    result = pipeline.run(dataclasses.replace(whole, data=data, teacher=teacher))
    assert set(result.dev) == {"student"}
    assert Tagger.load(result.folder)(["Anna wohnt in Köln ."])


@pytest.fixture
def two(xlmr, corpus, tmp_path) -> Experiment:
    """A Unigram teacher and a WordPiece teacher from scratch, as one."""
    small = shrunk(tmp_path).teacher
    alone = taught_by(xlmr, tmp_path)
    ensemble = EnsembleConfig((small,), (1.0, 3.0), ("vi=1,0",))
    return dataclasses.replace(alone, ensemble=ensemble, strategy="D1")


@pytest.mark.slow
@pytest.mark.parametrize(("states", "width"), [("first", 0), ("concatenated", 20)])
def test_two_teachers_teach_one_student(two, tmp_path, states, width):
    ensemble = dataclasses.replace(two.ensemble, states=states, width=width)
    result = pipeline.run(
        dataclasses.replace(two, ensemble=ensemble, strategy="D4.1"), evaluate_test=True
    )
    assert len(list((tmp_path / "cache").glob("[!.]*"))) == 2
    models = result.report["figures"]["test"]["models"]
    assert models["teacher"]["parameters"] > models["student"]["parameters"]
    kernel = weights(result.folder)["projection/kernel"]
    assert kernel.shape[1] == (width or 16)
    assert pipeline.run_again(result.folder).dev == result.dev


@pytest.mark.slow
def test_a_teacher_of_weight_one_scores_alone(two, xlmr, tmp_path):
    heard = dataclasses.replace(two.ensemble, weights=(1.0, 0.0), by_language=())
    together = pipeline.run(dataclasses.replace(two, ensemble=heard)).dev["teacher"]
    alone = pipeline.run(taught_by(xlmr, tmp_path)).dev["teacher"]
    assert together.mean == alone.mean


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": (1.0,)}, "expected 2 numbers"),
        ({"by_language": ("vi",)}, "as in ta=0,1"),
        ({"by_language": ("xx=1,0",)}, "no sentence of xx"),
    ],
)
def test_weights_that_do_not_fit_are_refused_at_once(two, tmp_path, change, message):
    ensemble = dataclasses.replace(two.ensemble, **change)
    with pytest.raises(ValueError, match=message):
        pipeline.run(dataclasses.replace(two, ensemble=ensemble))
    assert not list(tmp_path.glob("*/teacher-*"))


def test_each_of_two_teachers_has_the_cache_that_was_asked_for(xlmr, corpus, tmp_path):
    alone = taught_by(xlmr, tmp_path)
    configs = [dataclasses.replace(alone.teacher, fine_tune=False, layer=n) for n in (1, 2)]

    def cached(*ids: str) -> list[str]:
        """Asked for those of ``ids``; gives the ids of the two caches."""
        first, other = map(lambda config, id: dataclasses.replace(config, cache=id), configs, ids)
        both = dataclasses.replace(alone, teacher=first, ensemble=EnsembleConfig((other,)))
        session = Session.start(both)
        teacher = prepare_teacher(session, corpus)
        text = encode_text(session, corpus, teacher)
        return [each.settings.id for each in cache_teacher(session, text, teacher).members]

    ids = cached("", "")
    assert len(set(ids)) == 2
    assert cached(*ids) == cached("", ids[1]) == ids
    with pytest.raises(CacheMismatch, match="the cache that was asked for does not fit"):
        cached(*reversed(ids))


def test_a_teacher_under_a_label_only_student_is_warned_of(xlmr, tmp_path):
    experiment = taught_by(xlmr, tmp_path)
    alone = pipeline.run(dataclasses.replace(experiment, strategy="D0-S"))
    report = read_report(alone.folder)
    scores = report["figures"]["dev"]["models"]["student"]["scores"]
    scores["languages"] = {code: {**each, "f1": 99.0} for code, each in scores["languages"].items()}
    (alone.folder / "report.json").write_text(json.dumps(report))
    said: list[str] = []
    pipeline.run(experiment, say=said.append)
    assert any(re.search(r"warning: the teacher's dev F1 is .*label-only.* 99\.0", s) for s in said)
