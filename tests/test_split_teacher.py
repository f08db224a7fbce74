"""A teacher that is split over the devices: trained, found, scored and cached as a whole one is."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.test_pipeline import shrunk
from xdistil_jax import Session, cache_teacher, encode_text, evaluate, load_corpus, prepare_teacher


def carried_out(out, ways):
    """(teacher, its scores on dev, what the cache says of some rows)."""
    experiment = shrunk(out)
    teacher = replace(experiment.teacher, tensor_parallel=ways)
    session = Session.start(replace(experiment, teacher=teacher))
    corpus = load_corpus(experiment.data)
    trained = prepare_teacher(session, corpus)
    text = encode_text(session, corpus, trained)
    cache = cache_teacher(replace(session, experiment=experiment), text, trained)
    rows = np.arange(32)
    streamed = cache.stream(rows, int(text.ours.lengths[rows].max()))
    return trained, evaluate(session, trained, corpus.dev)[0], streamed


@pytest.mark.slow
def test_a_split_teacher_is_the_whole_one(tmp_path):
    split, its_scores, its = carried_out(tmp_path, 2)
    kernel = split.params["layer_1"]["feed_forward"]["up"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 16)}
    assert split.mesh.shape == {"data": 4, "model": 2}
    # Found, not trained again: how a teacher is spread is not what it is.
    (tmp_path / "cache").rename(tmp_path / "other")
    whole, scores, mine = carried_out(tmp_path, 0)
    assert (whole.fingerprint, whole.folder) == (split.fingerprint, split.folder)
    assert whole.mesh is None
    assert its_scores.mean == pytest.approx(scores.mean, abs=0.5)
    both = zip(jax.tree.leaves(its), jax.tree.leaves(mine), strict=True)
    for a, b in both:
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), atol=2e-2)
