"""The backbone of a teacher: what is kept of a checkpoint, and what is refused."""

import pathlib
from dataclasses import replace

import jax
import numpy as np
import pytest

from xdistil_jax import Sentence, TeacherConfig, backbone
from xdistil_jax.data.tokenizer import load_tokenizer, train_tokenizer
from xdistil_jax.models.checkpoints import save_encoder
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import build

TAGS = ("O", "B-LOC", "I-LOC")
TEXT = [Sentence(("Anna", "wohnt", "in", "Ulm"), None, "de")] * 9
OTHER = [Sentence(("Ulm", "liegt", "weit", "weg", "Anton"), None, "de")] * 9
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> tuple[pathlib.Path, EncoderSpec, dict]:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    tokenizer = train_tokenizer(TEXT, 60)
    spec = EncoderSpec(tokenizer.vocab_size, 8, 3, 2, 16, positions=32, classes=3)
    params = jax.tree.map(np.asarray, build(spec).init(KEY))
    save_encoder(folder, spec, params, TAGS)
    tokenizer.save(folder)
    return folder, spec, params


def test_another_vocabulary_keeps_blocks_and_shared_pieces(checkpoint):
    folder, spec, params = checkpoint
    old, new = train_tokenizer(TEXT, 60), train_tokenizer(OTHER, 60)
    config = TeacherConfig(checkpoint=str(folder), max_length=32, keep_layers=2)
    got, started, _ = backbone.start_backbone(config, new, TAGS, KEY)
    assert got == replace(spec, vocab_size=new.vocab_size, layers=2, dropout=got.dropout)
    for ours, theirs in zip(
        jax.tree.leaves(started["layers"]), jax.tree.leaves(params["layers"]), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs[:2])
    table, before = started["embed"]["table"], params["embed"]["table"]
    known, fresh = old.backend.get_vocab(), new.backend.get_vocab()
    shared = known.keys() & fresh.keys()
    assert len(shared) > 5
    assert fresh.keys() - shared, "some pieces are new"
    for piece in shared:
        np.testing.assert_array_equal(table[fresh[piece]], before[known[piece]], err_msg=piece)
    assert "Anton" in fresh.keys() - shared
    parts = before[[known["An"], known["##t"], known["##o"], known["##n"]]]
    mean = before.mean(0)
    np.testing.assert_allclose(table[fresh["Anton"]], mean + (parts - mean).sum(0) / 2, atol=1e-6)
    assert np.isfinite(table).all()
    assert table.shape == (new.vocab_size, 8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_length": 64}, "teacher.max_length is 64, but .* has 32 positions"),
        ({"keep_layers": 4}, "teacher.keep_layers is 4; the checkpoint has 3"),
    ],
)
def test_what_does_not_fit_the_checkpoint_is_said(checkpoint, change, said):
    config = replace(TeacherConfig(checkpoint=str(checkpoint[0]), max_length=32), **change)
    with pytest.raises(ValueError, match=said):
        backbone.start_backbone(config, train_tokenizer(TEXT, 60), TAGS, KEY)


def test_a_head_that_is_used_as_it_is_keeps_its_own_tags(checkpoint):
    config = TeacherConfig(checkpoint=str(checkpoint[0]), max_length=32, fine_tune=False)
    own = load_tokenizer(checkpoint[0])
    spec, params, tags = backbone.start_backbone(config, own, ("O", "B-ORG", "I-ORG"), KEY)
    assert tags == TAGS
    assert params["head"]["kernel"].shape == (spec.width, len(TAGS))


def test_an_embedding_too_small_for_its_tokenizer_is_refused(checkpoint, tmp_path):
    _, spec, _ = checkpoint
    small = replace(spec, vocab_size=5)
    save_encoder(tmp_path / "x", small, jax.tree.map(np.asarray, build(small).init(KEY)), TAGS)
    tokenizer = train_tokenizer(TEXT, 60)
    tokenizer.save(tmp_path / "x")
    config = TeacherConfig(checkpoint=str(tmp_path / "x"), max_length=32)
    with pytest.raises(ValueError, match=r"its embedding 5 rows; they don't belong together"):
        backbone.start_backbone(config, tokenizer, TAGS, KEY)


def test_identity_follows_the_content_of_a_checkpoint(checkpoint):
    folder = checkpoint[0]
    before = backbone.checkpoint_identity(str(folder))
    config = folder / "config.json"
    text = config.read_text()
    config.write_text(text.replace("1e-12", "1e-5"))
    try:
        assert backbone.checkpoint_identity(str(folder)) != before
    finally:
        config.write_text(text)
    assert backbone.checkpoint_identity(str(folder)) == before
    assert backbone.checkpoint_identity("owner/name") == "owner/name"
