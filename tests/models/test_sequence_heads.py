"""BERT's classifiers of whole texts equal torch's, pairs included, and go back to it unchanged."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.models.references.make import LABELS, random_batch, random_model, run_torch
from xdistil_jax.classification import separated
from xdistil_jax.data.readers import Sentence
from xdistil_jax.data.tokenizer import train_tokenizer
from xdistil_jax.labels import ClassSet, TagSet
from xdistil_jax.models.checkpoints import CheckpointError, load_encoder, save_encoder
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import build
from xdistil_jax.models.modernbert import ModernBertSpec

SEP = 1
LENGTHS = (16, 3, 9)


def pairs():
    """Rows of two texts, each ended by ``SEP``, and the types that torch is told."""
    tokens, lengths, _ = random_batch(4, LENGTHS)
    types = np.zeros_like(tokens)
    for row, length in enumerate(lengths):
        tokens[row, [length // 2, length - 1]] = SEP
        types[row, length // 2 + 1 :] = 1
    return tokens, lengths, types


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("torch")
    return random_model(2, task="ForSequenceClassification")


@pytest.mark.parametrize("stacked", [True, False])
def test_logits_of_pairs_equal_torchs(model, tmp_path, stacked):
    model.save_pretrained(tmp_path)
    tokens, lengths, types = pairs()
    spec, params, labels = load_encoder(tmp_path, stacked=stacked)
    assert spec.pooler
    assert labels == LABELS
    theirs = run_torch(model, tokens, lengths, types)["logits"]
    found = build(replace(spec, separator=SEP)).apply(params, tokens, lengths).logits
    np.testing.assert_allclose(found[:, 0], theirs, atol=1e-4)
    alone = build(spec).apply(params, tokens, lengths).logits
    assert np.abs(alone[:, 0] - theirs).max() > 1e-3


def test_what_is_saved_is_one_of_torchs(model, tmp_path):
    import transformers

    model.save_pretrained(tmp_path / "theirs")
    spec, params, labels = load_encoder(tmp_path / "theirs")
    save_encoder(tmp_path / "ours", spec, params, labels)
    back = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    batch = random_batch(5, LENGTHS)
    np.testing.assert_allclose(
        run_torch(back, *batch)["logits"], run_torch(model, *batch)["logits"], atol=1e-5
    )


def test_for_other_classes_a_plain_head_is_drawn(model, tmp_path):
    model.save_pretrained(tmp_path)
    other = ("no", "yes")
    spec, params, labels = load_encoder(tmp_path, 2, labels=other, key=jax.random.key(0))
    assert not spec.pooler
    assert labels is None
    assert params["head"]["kernel"].shape == (spec.width, 2)


def test_classifiers_of_other_families_are_refused(tmp_path):
    pytest.importorskip("torch")
    random_model(2, "roberta", task="ForSequenceClassification").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"RobertaForSeq.* BertForSeq.*: fine-tune it"):
        load_encoder(tmp_path)


def test_only_classifiers_with_two_types_tell_texts_apart():
    tokenizer = train_tokenizer([Sentence(("a", "b"), None, "en")] * 2, 10)
    bert = EncoderSpec(11, 8, 1, 2, 16)
    assert separated(bert, tokenizer, ClassSet(("a", "b"))).separator == tokenizer.sep_id
    assert separated(bert, tokenizer, TagSet(("PER",))) == bert
    for spec in (replace(bert, token_types=1), ModernBertSpec(11, 8, 1, 2, 16, (True,))):
        assert separated(spec, tokenizer, ClassSet(("a", "b"))) == spec
