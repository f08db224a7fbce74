"""States from the cache, attention from the teacher in the step."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.teacher.toys import SPEC, build_toy, make_params, make_store, random_rows
from xdistil_jax.distill.feed import collate
from xdistil_jax.models.functional import build
from xdistil_jax.teacher.attention import AttentiveTeacher
from xdistil_jax.teacher.source import OnlineTeacher

# The student numbers its pieces otherwise than the teacher.
KEPT = np.arange(SPEC.vocab_size)[::-1].astype(np.int32).copy()
LAYERS = ("layer_2", "layer_1")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    rows = random_rows(6, longest=8)
    cache = build_toy(tmp_path_factory.mktemp("cache"), make_store(rows))
    spec = replace(SPEC, outputs=(), attention=LAYERS)
    online = OnlineTeacher(spec, make_params(), KEPT, ())
    theirs = make_store([[int(np.flatnonzero(token == KEPT)[0]) for token in row] for row in rows])
    return cache, AttentiveTeacher(cache, online), theirs, rows


def test_states_are_the_caches_and_attention_the_teachers(parts):
    cache, teacher, ours, rows = parts
    numbers = np.array([3, 0, 5])
    batch = collate(ours, numbers, 8, np.zeros(3, bool))
    found = jax.jit(teacher.lookup)(teacher.arrays, teacher.stream(numbers, 8), batch)
    said = cache.lookup(cache.arrays, cache.stream(numbers, 8), batch)
    np.testing.assert_array_equal(found.logits, said.logits)
    for name, states in said.hidden.items():
        np.testing.assert_array_equal(found.hidden[name], states)
    tokens = np.zeros((3, 8), np.int32)
    for line, number in zip(tokens, numbers, strict=True):
        line[: len(rows[number])] = rows[number]
    spec = replace(SPEC, attention=LAYERS)
    expected = jax.jit(build(spec).apply)(make_params(), tokens, batch.lengths).attention
    assert found.attention.keys() == set(LAYERS)
    real = np.arange(8) < np.asarray(batch.lengths)[:, None]
    pairs = (real[:, :, None] & real[:, None])[:, None]
    for name in LAYERS:
        mine, its = (np.where(pairs, each, 0) for each in (found.attention[name], expected[name]))
        np.testing.assert_allclose(mine, its, atol=1e-6)
    assert teacher.words_only is False


def test_a_stage_that_reads_no_attention_runs_no_teacher(parts):
    _, teacher, ours, _ = parts
    batch = collate(ours, np.arange(3), 8, np.zeros(3, bool))
    streamed = teacher.stream(np.arange(3), 8)

    def flops(read):
        program = jax.jit(lambda arrays: read(teacher.lookup(arrays, streamed, batch)))
        return program.lower(teacher.arrays).compile().cost_analysis().get("flops", 0)

    without = flops(lambda said: (said.logits, said.hidden))
    assert without < flops(lambda said: said.attention) / 100
