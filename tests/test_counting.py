"""Counts are those of the run that would follow, and sizes those of the models."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xdistil_jax import counting
from xdistil_jax.backbone import choose_tokenizer
from xdistil_jax.configs import (
    EnsembleConfig,
    RunConfig,
    StudentConfig,
    TeacherConfig,
    student_config,
)
from xdistil_jax.data.batches import Buckets, choose_widths
from xdistil_jax.data.corpus import DataSpec, load_corpus
from xdistil_jax.data.cutting import cut_tokenizer
from xdistil_jax.data.encode import encode
from xdistil_jax.data.tokenizer import train_tokenizer
from xdistil_jax.experiment import Experiment
from xdistil_jax.models.checkpoints import CheckpointError, read_config_spec
from xdistil_jax.models.functional import build

REFERENCES = Path(__file__).parent / "models" / "references"
EXPERIMENT = Experiment(
    data=DataSpec(synthetic=True, languages=("de", "ta")),
    teacher=TeacherConfig(width=32, layers=1, heads=2, feed_forward=64, vocab_size=800),
    run=RunConfig(buckets=3),
)


def test_text_is_counted_as_the_run_will_cut_it(tmp_path):
    counts = counting.count_text(EXPERIMENT)
    corpus = load_corpus(EXPERIMENT.data)
    tokenizer = train_tokenizer([*corpus.train, *corpus.transfer], 800)
    sentences = (*corpus.train, *corpus.transfer)
    store = encode(sentences, tokenizer, corpus.tagset, max_length=128, folder=tmp_path)
    train = store.sentence < len(corpus.train)
    for text, rows in ((counts.train, train), (counts.transfer, ~train)):
        lengths = store.lengths[rows]
        assert (text.rows, text.tokens) == (len(lengths), lengths.sum())
        padding = Buckets(choose_widths(lengths, 3), 4096).padding(lengths)
        assert text.slots == round(text.tokens * (1 + padding))
        assert 1 < text.width <= 128
    distinct = np.unique(store.row_hashes(), axis=0)
    assert counts.distinct.rows == len(distinct) < store.rows
    assert counts.distinct.tokens <= counts.distinct.slots
    assert counts.vocab == cut_tokenizer(tokenizer, np.unique(store.tokens))[0].vocab_size
    assert (counts.classes, counts.how) == (len(corpus.tagset), "counted")


def test_a_smaller_vocabulary_is_the_students_and_not_its_teachers(tmp_path):
    given = train_tokenizer([*load_corpus(EXPERIMENT.data).train], 300)
    given.save(tmp_path)
    teacher = replace(EXPERIMENT.teacher, tokenizer=str(tmp_path))
    plain = replace(EXPERIMENT, teacher=teacher)
    capped = replace(plain, student=StudentConfig(vocab_size=100))
    counts = counting.count_text(capped)
    assert counts == counting.count_text(plain)
    assert planned(capped, counts).vocab == 100 < planned(plain, counts).vocab == counts.vocab
    [theirs] = counting.all_teachers(capped, counts)
    corpus = load_corpus(plain.data)
    own = choose_tokenizer(teacher, [*corpus.train, *corpus.transfer])
    assert theirs.vocab == own.vocab_size > 100
    larger = replace(plain, student=StudentConfig(vocab_size=10_000))
    assert planned(larger, counts).vocab == counts.vocab
    away = replace(capped, teacher=TeacherConfig(tokenizer="somebody/somewhere"))
    guessed = counting.count_text(away)
    assert planned(away, guessed).vocab == 100
    assert counting.all_teachers(away, guessed)[0].vocab == counting.USUAL_VOCAB


def test_where_the_tokenizer_is_not_here_words_are_counted():
    away = replace(EXPERIMENT, teacher=TeacherConfig(checkpoint="somebody/somewhere"))
    counts = counting.count_text(away)
    corpus = load_corpus(away.data)
    words = [len(sentence.words) for sentence in corpus.transfer]
    assert counts.transfer.rows == len(words)
    expected = sum(round(1.7 * n) + 2 for n in words)
    assert counts.transfer.tokens == pytest.approx(expected, rel=0.01)
    assert counts.distinct.rows == len({s.words for s in (*corpus.train, *corpus.transfer)})
    assert counts.how.startswith("guessed: 1.7 pieces a word")
    # For this text and mBERT's kind of vocabulary it is no wild guess.
    assert 0.5 < counts.transfer.tokens / counting.count_text(EXPERIMENT).transfer.tokens < 2


def save_config(tmp_path, family):
    config = json.loads((REFERENCES / family / "config.json").read_text())
    config |= {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    if "position_buckets" in config:
        config |= {"position_buckets": 128, "max_relative_positions": 256}
    config.pop("embedding_size", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


@pytest.mark.parametrize("family", ["bert", "xlm-roberta-xl", "deberta-v3", "modernbert"])
def test_a_checkpoint_costs_what_xla_counts(tmp_path, family):
    folder = save_config(tmp_path, family)
    counts = counting.count_text(EXPERIMENT)
    sizes = counting.teacher_sizes(TeacherConfig(checkpoint=folder), counts)
    spec = replace(read_config_spec(folder, counts.classes), stacked=False)
    functional, length = build(spec), min(16, spec.longest)
    params = jax.eval_shape(functional.init, jax.random.key(0))
    batch = jnp.zeros((128, length), jnp.int32), jnp.full(128, length, jnp.int32)
    lowered = jax.jit(lambda params: functional.apply(params, *batch).logits).lower(params)
    own = 128 * length * sizes.forward(counts.classes, length)
    assert lowered.cost_analysis()["flops"] == pytest.approx(own, rel=0.1)


def test_sizes_of_teachers_follow_the_experiment(tmp_path):
    folder = save_config(tmp_path, "bert")
    counts = counting.count_text(EXPERIMENT)
    spec = read_config_spec(folder, 7)
    config = TeacherConfig(checkpoint=folder, keep_layers=1, fine_tune=False)
    sizes = counting.teacher_sizes(config, counts)
    assert (sizes.layers, sizes.vocab, sizes.fine_tuned) == (1, spec.vocab_size, False)
    cut = counting.teacher_sizes(replace(config, tokenizer="any"), counts)
    assert cut.vocab == counts.vocab
    given = train_tokenizer([*load_corpus(EXPERIMENT.data).train], 300)
    given.save(tmp_path / "given")
    config = TeacherConfig(tokenizer=str(tmp_path / "given"))
    assert counting.teacher_sizes(config, counts).vocab == counts.vocab
    whole = counting.teacher_sizes(replace(config, whole_vocabulary=True), counts)
    assert whole.vocab == given.vocab_size != counts.vocab
    scratch = counting.teacher_sizes(EXPERIMENT.teacher, counts)
    assert (scratch.vocab, scratch.width, scratch.feed_forward) == (800, 32, 64)
    assert counting.teacher_sizes(TeacherConfig(outputs="folder"), counts) is None
    with pytest.raises(CheckpointError, match=r"there is no file .*config\.json"):
        counting.teacher_sizes(TeacherConfig(checkpoint=str(REFERENCES)), counts)


def planned(experiment, counts, teachers=None):
    teachers = counting.all_teachers(experiment, counts) if teachers is None else teachers
    spec = counting.planned_student(experiment, counts.vocab, counts.classes, teachers)
    return counting.student_sizes(spec)


def test_sizes_of_the_student_follow_teacher_and_ensemble():
    counts = counting.count_text(EXPERIMENT)
    wide = TeacherConfig(width=48, heads=2)
    both = [counting.teacher_sizes(each, counts) for each in (EXPERIMENT.teacher, wide)]

    def width(teachers=both, **options):
        ensemble = EnsembleConfig((wide,), **options)
        return planned(replace(EXPERIMENT, ensemble=ensemble), counts, teachers)

    assert width().teacher_width == 32
    assert width(states="concatenated").teacher_width == 80
    assert width(states="concatenated", width=20).teacher_width == 20
    assert width([None, both[1]]).teacher_width == EXPERIMENT.teacher.width
    projected = replace(EXPERIMENT, student=StudentConfig(embedding="projected"))
    assert planned(projected, counts).source_width == 32
    assert planned(EXPERIMENT, counts).source_width == 0
    full = replace(EXPERIMENT, student=StudentConfig(embedding="full"))
    assert planned(full, counts).embed == 32
    coordinates = replace(
        EXPERIMENT,
        teacher=replace(EXPERIMENT.teacher, codec="pca-8"),
        student=StudentConfig(imitate="coordinates"),
    )
    assert planned(coordinates, counts).teacher_width == 8


def test_several_layers_of_the_teacher_are_cached_and_projected():
    teacher = replace(EXPERIMENT.teacher, layers=4, hidden_layers=(4, 2, 0))
    several = replace(EXPERIMENT, teacher=teacher)
    counts = counting.count_text(several)
    [sizes] = counting.all_teachers(several, counts)
    assert sizes.cached == planned(several, counts).projections == 3
    student = StudentConfig(kind="transformer", layers=2, width=16, heads=2, align="top")
    top = replace(EXPERIMENT, teacher=replace(teacher, hidden_layers=()), student=student)
    [sizes] = counting.all_teachers(top, counts)
    # Both layers, and the embeddings.
    assert sizes.cached == planned(top, counts).imitated == 3
    one = replace(top, student=replace(student, align="one"))
    assert [each.cached for each in counting.all_teachers(one, counts)] == [1]
    assert planned(one, counts).imitated == 1
    # Less of the teacher's lowest.
    low = replace(top, teacher=replace(top.teacher, layer=1))
    assert counting.all_teachers(low, counts)[0].cached == planned(low, counts).imitated == 2


def test_a_transformer_has_the_sizes_of_its_configuration_or_checkpoint(tmp_path):
    counts = counting.count_text(EXPERIMENT)
    named = planned(replace(EXPERIMENT, student=student_config("l6-h384")), counts)
    assert (named.width, named.layers, named.feed_forward) == (384, 6, 1536)
    assert (named.vocab, named.classes, named.positions) == (counts.vocab, counts.classes, 128)
    folder = save_config(tmp_path, "bert")
    spec = read_config_spec(folder, counts.classes)
    config = StudentConfig(kind="transformer", checkpoint=folder, layers=1)
    teacher = replace(EXPERIMENT.teacher, max_length=16)
    started = planned(replace(EXPERIMENT, student=config, teacher=teacher), counts)
    assert (started.width, started.layers) == (256, 1)
    assert (started.positions, started.token_types) == (spec.positions, spec.token_types)


def test_without_text_the_usual_sizes_are_taken():
    spec, how = counting.frame(Experiment())
    assert (spec.vocab_size, spec.teacher_width, spec.classes) == (88_500, 768, 7)
    assert how == "no text given: usual sizes"
    assert counting.frame(Experiment(student=StudentConfig(vocab_size=99)))[0].vocab_size == 99
    given, how = counting.frame(EXPERIMENT)
    assert (given.teacher_width, how) == (32, "counted")
    other, _ = counting.frame(Experiment(student=student_config("l6-h384")))
    assert (other.encoder.vocab_size, other.teacher_width) == (88_500, 768)


def test_groups_are_known_where_all_sizes_are_here(tmp_path):
    student = StudentConfig(kind="transformer", layers=1, width=32, heads=2)
    same = replace(EXPERIMENT, student=student)
    assert counting.planned_groups(same) == ("head", "layer_1", "embed")
    other = replace(same, student=replace(student, width=16))
    assert counting.planned_groups(other) == ("head", "projection", "layer_1", "embed")
    for config in (TeacherConfig(checkpoint="some/where"), TeacherConfig(outputs="folder")):
        assert counting.planned_groups(replace(same, teacher=config)) is None
    away = replace(student, checkpoint="some/where")
    assert counting.planned_groups(replace(same, student=away)) is None
    here = TeacherConfig(checkpoint=save_config(tmp_path, "bert"))
    wide = replace(same, teacher=here, student=replace(student, width=256))
    assert "projection" not in counting.planned_groups(wide)
