"""A batch holds what its rows hold, each loss sees its own pieces, and padding is padding."""

import jax
import numpy as np
import pytest

from tests.distill.toys import ONE, STORE, TAGS, TWO, Teacher, make_model, make_sampler
from xdistil_jax.data.batches import Buckets, Call
from xdistil_jax.data.corpus import Sentence
from xdistil_jax.data.encode import encode
from xdistil_jax.data.tokenizer import train_tokenizer
from xdistil_jax.distill.feed import Feeder, collate, mesh_buckets
from xdistil_jax.distill.step import Feed
from xdistil_jax.sharding import make_mesh

WIDTH = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Tagged and untagged sentences, some cut into windows."""
    words = ("Ana", "lives", "in", "Oslo", "and", "Rome")
    tags = ("B-PER", "O", "O", "B-LOC", "O", "B-LOC")
    texts = [
        Sentence(words[n:] * times, tags[n:] * times, "xx") for n in (0, 2) for times in (1, 4)
    ]
    texts += [Sentence(text.words, None, "xx") for text in texts]
    tokenizer = train_tokenizer(texts[:1], 40)
    return encode(texts, tokenizer, TAGS, max_length=WIDTH, folder=tmp_path_factory.mktemp("e"))


def pieces_by_definition(store, rows, labelled):
    """(step, place in the batch, piece) -> what the piece is, from the store's flat arrays."""
    found = {}
    for step, each in enumerate(rows):
        for place, row in enumerate(each):
            if row < 0:
                continue
            for position, at in enumerate(range(store.offsets[row], store.offsets[row + 1])):
                first = bool(store.word[at] >= 0 and store.owned[at])
                found[step, place, position] = {
                    "tokens": store.tokens[at],
                    "word_start": first,
                    "labels": store.labels[at] if first else -1,
                    "label_mask": labelled[place] and first and store.labels[at] >= 0,
                    "repr_mask": not labelled[place],
                    "logit_mask": not labelled[place] and first,
                }
    return found


def test_collate_equals_its_definition(store):
    random = np.random.default_rng(0)
    rows = random.integers(-1, store.rows, (3, 32))
    labelled = random.random(32) < 0.5
    batch = collate(store, rows, WIDTH + 2, labelled)
    found = pieces_by_definition(store, rows, labelled)
    # What stands on padding: piece 0, no label, in no mask.
    nothing = dict.fromkeys(("tokens", "word_start", "label_mask", "repr_mask", "logit_mask"), 0)
    nothing["labels"] = -1
    for name, empty in nothing.items():
        expected = np.full((3, 32, WIDTH + 2), empty)
        for place, piece in found.items():
            expected[place] = piece[name]
        np.testing.assert_array_equal(getattr(batch, name), expected, err_msg=name)
    np.testing.assert_array_equal(batch.rows, rows)
    sizes = np.where(rows >= 0, store.lengths[rows], 0)
    np.testing.assert_array_equal(batch.lengths, sizes)
    for mask in (batch.label_mask, batch.logit_mask, batch.repr_mask):
        assert mask.any()
    assert (~store.owned & (store.word >= 0)).any(), "no window has a word that it doesn't own"
    assert batch.tokens.dtype == batch.labels.dtype == batch.lengths.dtype == np.int32


def test_labelled_and_transfer_rows_share_no_piece(store):
    rows = np.tile(np.arange(store.rows), (1, 2))
    role = np.repeat([True, False], store.rows)
    batch = collate(store, rows, WIDTH, role)
    transfer = batch.repr_mask | batch.logit_mask
    assert not batch.label_mask[:, ~role].any()
    assert not transfer[:, role].any()
    # Every tagged word counts once, although windows overlap.
    assert batch.label_mask.sum() == (store.labels >= 0).sum()
    assert batch.logit_mask.sum() == store.word_counts.sum()
    assert not (batch.logit_mask & ~batch.repr_mask).any()


def test_a_row_without_text_is_all_padding(store):
    batch = collate(store, np.full((2, 16), -1), WIDTH, np.zeros(16, bool))
    assert not batch.lengths.any()
    assert not batch.tokens.any()
    assert (batch.labels == -1).all()
    for mask in (batch.word_start, batch.label_mask, batch.repr_mask, batch.logit_mask):
        assert not mask.any()


def test_a_feed_is_filled_up_to_its_steps():
    model = make_model()
    feeder = Feeder(STORE, ONE, Teacher(), model.mesh, 6)
    sampler = make_sampler(0.5)
    call = next(sampler.calls(0, 4))
    feed, real = feeder.feed(call, sampler.role(0))
    count = len(call.rows)
    assert int(feed.count) == count <= 4
    assert feed.batch.tokens.shape == (6, 32, 8)
    assert real == STORE.lengths[call.rows[call.rows >= 0]].sum() == feed.batch.lengths.sum()
    np.testing.assert_array_equal(feed.batch.rows[:count], call.rows)
    assert (np.asarray(feed.batch.rows[count:]) == -1).all()
    # What the teacher says stands beside its row, and is nothing beside no row.
    np.testing.assert_array_equal(feed.streamed, Teacher.factor(np.asarray(feed.batch.rows)))
    assert not np.asarray(feed.streamed[count:]).any()


def test_feeds_of_one_bucket_have_one_shape():
    sampler = make_sampler(0.5, buckets=TWO)
    feeder = Feeder(STORE, TWO, None, make_model().mesh, 4)
    shapes = {}
    for _, call in zip(range(12), sampler.calls(0, 4), strict=False):
        feed, _ = feeder.feed(call, sampler.role(call.bucket))
        leaves = [(leaf.shape, leaf.dtype, leaf.sharding) for leaf in jax.tree.leaves(feed)]
        assert leaves == shapes.setdefault(call.bucket, leaves)
        assert feed.batch.tokens.shape[2] == TWO.widths[call.bucket]
        assert feed.streamed == ()
    assert len(shapes) == 2


def test_rows_are_split_over_the_devices_and_steps_are_not():
    model = make_model(8)
    feeder = Feeder(STORE, ONE, Teacher(), model.mesh, 4)
    call = next(make_sampler(0.0).calls(0, 4))
    feed, _ = feeder.feed(call, make_sampler(0.0).role(0))
    assert isinstance(feed, Feed)
    for leaf in jax.tree.leaves((feed.batch, feed.streamed)):
        assert {shard.data.shape[:2] for shard in leaf.addressable_shards} == {(4, 4)}
    # Device d holds two of the sixteen logical shards.
    for shard in feed.batch.rows.addressable_shards:
        rows = np.asarray(shard.data).reshape(4, 2, 2)
        transfer = make_sampler(0.0).transfer.rows
        for number, logical in enumerate(range(2 * shard.device.id, 2 * shard.device.id + 2)):
            found = rows[:, number][rows[:, number] >= 0]
            assert (np.searchsorted(transfer, found) % 16 == logical).all()


def test_devices_that_do_not_divide_a_batch_are_refused():
    feeder = Feeder(STORE, Buckets((8,), 128), None, make_mesh(jax.devices()[:3]), 1)
    with pytest.raises(ValueError, match=r"16 rows can't be split evenly over .* 3 devices"):
        feeder.feed(Call(0, np.zeros((1, 16), int)), np.ones(16, bool))


@pytest.mark.parametrize(("devices", "rows"), [(1, 16), (8, 16), (3, 48), (6, 48)])
def test_batches_are_made_for_the_devices(devices, rows):
    """A pod has more devices than logical shards; here a number that 16 has no room for."""
    mesh = make_mesh(jax.devices()[:devices])
    buckets = mesh_buckets((8,), 128, mesh)
    assert buckets.batch_sizes == (rows,)
    feed, _ = Feeder(STORE, buckets, None, mesh, 1).feed(
        Call(0, np.zeros((1, rows), int)), np.ones(rows, bool)
    )
    assert {s.data.shape[1] for s in feed.batch.rows.addressable_shards} == {rows // devices}
