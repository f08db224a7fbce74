"""Counts are those of the run that would follow, and sizes those of the models."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xdistil_jax import counting
from xdistil_jax.configs import EnsembleConfig, RunConfig, StudentConfig, TeacherConfig
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


def test_a_smaller_vocabulary_is_believed():
    capped = replace(EXPERIMENT, student=StudentConfig(vocab_size=100))
    assert counting.count_text(capped).vocab == 100


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
    scratch = counting.teacher_sizes(EXPERIMENT.teacher, counts)
    assert (scratch.vocab, scratch.width, scratch.feed_forward) == (800, 32, 64)
    assert counting.teacher_sizes(TeacherConfig(outputs="folder"), counts) is None
    with pytest.raises(CheckpointError, match=r"there is no file .*config\.json"):
        counting.teacher_sizes(TeacherConfig(checkpoint=str(REFERENCES)), counts)


def test_sizes_of_the_student_follow_teacher_and_ensemble():
    counts = counting.count_text(EXPERIMENT)
    wide = TeacherConfig(width=48, heads=2)
    both = [counting.teacher_sizes(each, counts) for each in (EXPERIMENT.teacher, wide)]

    def width(teachers=both, **options):
        ensemble = EnsembleConfig((wide,), **options)
        return counting.student_sizes(replace(EXPERIMENT, ensemble=ensemble), counts, teachers)

    assert width().teacher_width == 32
    assert width(states="concatenated").teacher_width == 80
    assert width(states="concatenated", width=20).teacher_width == 20
    assert width([None, both[1]]).teacher_width == EXPERIMENT.teacher.width
    projected = replace(EXPERIMENT, student=StudentConfig(embedding="projected"))
    assert counting.student_sizes(projected, counts, both[:1]).source_width == 32
    assert counting.student_sizes(EXPERIMENT, counts, both[:1]).source_width == 0
    full = replace(EXPERIMENT, student=StudentConfig(embedding="full"))
    assert counting.student_sizes(full, counts, both[:1]).embed == 32


def test_without_text_the_usual_sizes_are_taken():
    sizes, how = counting.frame(Experiment())
    assert (sizes.vocab, sizes.teacher_width, sizes.classes) == (88_500, 768, 7)
    assert how == "no text given: usual sizes"
    assert counting.frame(Experiment(student=StudentConfig(vocab_size=99)))[0].vocab == 99
    given, how = counting.frame(EXPERIMENT)
    assert (given.teacher_width, how) == (32, "counted")
