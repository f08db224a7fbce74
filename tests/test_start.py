"""Where a student's embedding starts: each row of Table 7, and that a frozen one stays there."""

import pathlib
from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.distill.toys import GROUPS, equal, make_params, make_training
from tests.test_pipeline import compiled_once, shrunk, weights  # noqa: F401
from xdistil_jax import DataSpec, StudentConfig, Tagger, TeacherConfig, load_corpus, pipeline
from xdistil_jax.configs import RunConfig
from xdistil_jax.data.cutting import cut_tokenizer
from xdistil_jax.data.sources import CorpusError
from xdistil_jax.data.tokenizer import train_tokenizer
from xdistil_jax.deploy.bundle import load_bundle
from xdistil_jax.distill.loop import run_plan
from xdistil_jax.distill.stages import Schedule, StopRule
from xdistil_jax.distill.strategies import Recipe, Tuning, plan
from xdistil_jax.experiment import Experiment
from xdistil_jax.labels import TagSet
from xdistil_jax.models.checkpoints import load_encoder, save_encoder
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import build
from xdistil_jax.session import Session, Trained
from xdistil_jax.start import identify_vectors, start_table

DATA = DataSpec(synthetic=True, languages=("de", "vi"))
TAGS = TagSet(("LOC", "ORG", "PER"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = train_tokenizer(load_corpus(DATA).transfer, 300)
    spec = EncoderSpec(tokenizer.vocab_size, 16, 1, 2, 32, positions=64, classes=len(TAGS))
    params = jax.tree.map(np.asarray, build(spec).init(jax.random.key(5)))
    save_encoder(folder, spec, params, TAGS.tags)
    tokenizer.save(folder)
    return folder


def taught_by(
    checkpoint: pathlib.Path, out: pathlib.Path, strategy="D0-S", **student
) -> Experiment:
    whole = shrunk(out, strategy)
    recipe = replace(whole.teacher.recipe, schedule=Schedule(peak=0.05))
    teacher = TeacherConfig(checkpoint=str(checkpoint), max_length=64, recipe=recipe, min_f1=0.0)
    student = replace(whole.student, **student)
    return replace(whole, data=DATA, teacher=teacher, student=student)


# --- frozen ----------------------------------------------------------------------------------

HASTY = Recipe(Schedule(peak=0.1, weight_decay=0.5), StopRule(0.5))
HASTY = Tuning(repr=HASTY, logit=HASTY, ce=HASTY, joint=HASTY)


@pytest.mark.parametrize("name", ["D0-S", "D2", "D3.2", "D4.2"])
def test_a_frozen_embedding_has_no_delta_after_a_plan(name):
    params = make_params()
    stages = plan(name, StudentConfig(freeze_embedding=True).trained(GROUPS), HASTY)
    found = run_plan(make_training(), stages, params).params
    assert equal(found["embed"], params["embed"])
    assert not equal(found["bilstm"], params["bilstm"])


# --- the teacher's table ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_pretrained_full_frozen_table_is_the_checkpoints_to_the_bit(checkpoint, tmp_path):
    choice = {"embedding": "full", "embedding_scale": 0.0, "freeze_embedding": True}
    results = {
        source: pipeline.run(
            taught_by(checkpoint, tmp_path, embedding_source=source, **choice), say=print
        )
        for source in ("pretrained", "fine-tuned")
    }
    found = {source: weights(result.folder)["embed/table"] for source, result in results.items()}
    bundle = load_bundle(results["pretrained"].folder / "student")
    old = train_tokenizer(load_corpus(DATA).transfer, 300)
    assert bundle.sizes["embed"] == 16
    [teacher] = (tmp_path / "quickstart").glob("teacher-*/model")
    tables = {
        "pretrained": load_encoder(checkpoint).params["embed"]["table"],
        "fine-tuned": load_encoder(teacher).params["embed"]["table"],
    }
    assert np.abs(tables["pretrained"] - tables["fine-tuned"]).max() > 1e-3
    known = old.backend.get_vocab()
    for piece, number in bundle.tokenizer.backend.get_vocab().items():
        for source, table in tables.items():
            np.testing.assert_array_equal(found[source][number], table[known[piece]], err_msg=piece)
    assert Tagger.load(results["pretrained"].folder)(["Anna wohnt in Köln ."])


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        (TeacherConfig(), "but the teacher has no checkpoint: set it to"),
        (TeacherConfig(checkpoint="any", fine_tune=False), "but the teacher is fine-tuned already"),
    ],
)
def test_a_teacher_without_a_past_is_told(tmp_path, teacher, said):
    student = StudentConfig(embedding_source="pretrained", embed=4)
    with pytest.raises(ValueError, match=said):
        start_table(*given(tmp_path, teacher=teacher, student=student))


# --- units -----------------------------------------------------------------------------------

TEXT = load_corpus(DATA).train[:40]
WHOLE = train_tokenizer(TEXT, 300)


def given(out, *, tokenizer=WHOLE, kept=None, say=lambda message: None, **parts):
    """The arguments of ``start_table``, for a teacher with a known table."""
    table = np.arange(WHOLE.vocab_size * 8, dtype=np.float32).reshape(-1, 8)
    experiment = Experiment(run=RunConfig(out=str(out)), **parts)
    teacher = Trained(
        EncoderSpec(WHOLE.vocab_size, 8, 1, 2, 8), {"embed": {"table": table}}, WHOLE, TAGS, 64
    )
    return Session.start(experiment, say=say), teacher, tokenizer, kept


@pytest.mark.parametrize("how", ["svd", "pca", "ppa", "projected"])
def test_a_width_that_the_table_has_not_names_the_field(tmp_path, how):
    kept = np.arange(40)[::-1]
    student = StudentConfig(embed=9, embedding=how)
    with pytest.raises(ValueError, match=r"student\.embed is 9, but the teacher's table is 40 × 8"):
        start_table(*given(tmp_path, kept=kept, student=student))
    found = start_table(*given(tmp_path, kept=kept, student=replace(student, embed=8)))
    np.testing.assert_array_equal(found[:, 0], 8.0 * kept)
    student = replace(student, embedding="full")
    assert start_table(*given(tmp_path, kept=kept, student=student)).shape == (40, 8)


# --- vectors from a file ---------------------------------------------------------------------


def vectors(tmp_path, words, width=4):
    file = tmp_path / "words.vec"
    rows = np.random.default_rng(0).normal(3.0, 0.5, (len(words), width)).astype(np.float32)
    lines = (
        f"{word} {' '.join(map(str, row.tolist()))}\n"
        for word, row in zip(words, rows, strict=True)
    )
    file.write_text("".join(lines))
    student = StudentConfig(embedding="vectors", vectors=str(file), embed=width)
    return student, dict(zip(words, rows, strict=True))


def test_pieces_are_looked_up_as_words_and_the_rest_is_drawn(tmp_path):
    pieces = WHOLE.backend.get_vocab()
    inside = sorted(p for p in pieces if p.startswith("##"))[:3]
    upper = sorted(p for p in pieces if p[0].isupper() and p.lower() not in pieces)[:3]
    others = sorted(p for p in pieces if p.isalpha() and p.islower() and len(p) > 1)[:3]
    assert all((inside, upper, others))
    words = [
        *others,
        *(p.removeprefix("##") for p in inside),
        *(p.lower() for p in upper),
        upper[0],
        "absent",
    ]
    student, rows = vectors(tmp_path, list(dict.fromkeys(words)))
    said = []
    table = start_table(*given(tmp_path, student=student, say=said.append))
    assert table.shape == (WHOLE.vocab_size, 4)
    for piece, number in pieces.items():
        word = piece.removeprefix("##")
        row = rows.get(word, rows.get(word.lower()))
        assert (row is not None) == (table[number].tolist() in [r.tolist() for r in rows.values()])
        if row is not None:
            np.testing.assert_array_equal(table[number], row)
    count = sum(
        p.removeprefix("##") in rows or p.removeprefix("##").lower() in rows for p in pieces
    )
    assert [f"{count} of {len(pieces) - 4} pieces found in" in line for line in said] == [True]
    drawn = table[[WHOLE.pad_id, WHOLE.unk_id]]
    assert (np.abs(drawn - 3.0) < 4.0).all(), "as far from 0 as those of the file"
    again = start_table(*given(tmp_path, student=student))
    np.testing.assert_array_equal(table, again)


def test_a_cut_vocabulary_has_the_rows_of_its_pieces(tmp_path):
    some = np.arange(WHOLE.vocab_size)[::2]
    cut, _ = cut_tokenizer(WHOLE, some)
    known = cut.backend.get_vocab()
    words = sorted(piece for piece in known if piece.isalpha() and piece.islower())[:5]
    student, rows = vectors(tmp_path, words)
    table = start_table(*given(tmp_path, tokenizer=cut, student=student))
    assert len(table) == cut.vocab_size
    for word in words:
        np.testing.assert_array_equal(table[known[word]], rows[word])


def test_a_file_that_is_of_no_use_is_told(tmp_path):
    student, _ = vectors(tmp_path, ["absent", "absenter"])
    with pytest.raises(ValueError, match=r"words\.vec: none of the student's .* pieces"):
        start_table(*given(tmp_path, student=student))
    with pytest.raises(CorpusError, match=r"words\.vec, line 1: .* 5 numbers .* found 4"):
        start_table(*given(tmp_path, student=replace(student, embed=5)))


def test_vectors_start_a_student_end_to_end(checkpoint, tmp_path):
    words = sorted({word for sentence in TEXT for word in sentence.words if word.isalpha()})
    student, rows = vectors(tmp_path, words, width=8)
    choice = {"embedding": "vectors", "vectors": student.vectors, "freeze_embedding": True}
    whole = taught_by(checkpoint, tmp_path, embedding_scale=0.0, **choice)
    whole = replace(whole, teacher=replace(whole.teacher, fine_tune=False))
    bundle = load_bundle(pipeline.run(whole).folder / "student")
    known = bundle.tokenizer.backend.get_vocab()
    shared = known.keys() & rows.keys()
    assert len(shared) > 5
    for word in shared:
        np.testing.assert_array_equal(bundle.weights["embed/table"][known[word]], rows[word])
    pathlib.Path(student.vectors).unlink()
    with pytest.raises(CorpusError, match=r"words\.vec: no such file"):
        pipeline.run(whole)


def test_the_content_of_the_file_is_its_identity(tmp_path):
    student, _ = vectors(tmp_path, ["one", "two"])
    first = identify_vectors(student)
    file = pathlib.Path(student.vectors)
    file.write_text(file.read_text() + "another 1 2 3 4\n")
    assert identify_vectors(student) != first
    assert identify_vectors(StudentConfig()) == ""
