"""Resident data: bit for bit what is streamed, on any number of devices, gathered where it lies."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.distill.toys import (
    STAGES,
    STORE,
    TWO,
    Records,
    Teacher,
    equal,
    make_model,
    make_params,
    make_sampler,
    make_training,
)
from xdistil_jax.distill import filling
from xdistil_jax.distill.feed import Feeder
from xdistil_jax.distill.filling import hold, room
from xdistil_jax.distill.loop import run_plan
from xdistil_jax.distill.resident import _gather_call
from xdistil_jax.sharding import batch_sharding


def held(sampler, mesh, teacher=None, **options):
    teacher = teacher or Teacher()
    buckets = sampler.buckets
    return hold(
        STORE, sampler.labelled, sampler.transfer, teacher, mesh,
        shards=buckets.shards, widest=buckets.widths[-1], **options,
    )  # fmt: skip


class Pieces(Teacher):
    """Streams something of each piece, beside the factor of each row; nothing is a factor of 7."""

    def __init__(self, words_only=False):
        super().__init__()
        self.words_only = words_only

    def stream(self, rows, width):
        place = np.arange(width)
        real = place < np.where(rows >= 0, STORE.lengths[rows], 0)[..., None]
        said = rows[..., None] * 100 + place
        return {
            "of": (np.where(real, said, 0).astype(np.int16),),
            "row": np.where(rows < 0, 7, rows),
        }


@pytest.mark.parametrize("devices", [1, 4, 8])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("words_only", [False, True])
def test_batches_are_the_streamed_ones(devices, fraction, words_only):
    mesh, sampler = make_model(devices).mesh, make_sampler(fraction, buckets=TWO)
    teacher = Pieces(words_only)
    streamed = Feeder(STORE, TWO, teacher, mesh, 3)
    resident = streamed._replace(resident=held(sampler, mesh, teacher))
    widths = set()
    for _, call in zip(range(9), sampler.calls(0, 3), strict=False):
        (ours, real), (theirs, expected) = (
            feeder.feed(call, sampler.role(call.bucket)) for feeder in (resident, streamed)
        )
        assert real == expected
        assert equal(ours, theirs)
        placed = [(leaf.sharding, leaf.dtype) for leaf in jax.tree.leaves(theirs)]
        assert placed == [(leaf.sharding, leaf.dtype) for leaf in jax.tree.leaves(ours)]
        widths.add(ours.batch.tokens.shape[2])
    assert widths == set(TWO.widths)


def test_a_run_is_the_streamed_one_bit_for_bit():
    streamed, resident = Records(), Records()
    first = run_plan(make_training(writer=streamed), STAGES, make_params())
    training = make_training(writer=resident)
    where = hold(
        STORE, training.labelled, training.transfer, training.teacher, training.model.mesh,
        shards=16, widest=8,
    )  # fmt: skip
    second = run_plan(replace(training, resident=where), STAGES, make_params())
    assert equal(first.params, second.params)
    assert streamed.written == resident.written


def test_a_device_holds_its_own_shards_and_gathers_from_them_alone():
    mesh, sampler = make_model(8).mesh, make_sampler(0.5)
    where = held(sampler, mesh)
    assert len(where.held) == 2
    for leaf in jax.tree.leaves(where.held):
        assert {8 * part.data.shape[0] for part in leaf.addressable_shards} == {leaf.shape[0]}
    rows = np.zeros((3, 32), np.int32)
    batch, role = (jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s) for a, s in (
        (rows, batch_sharding(mesh, leading=1)), (rows[0] > 0, batch_sharding(mesh)),
    ))  # fmt: skip
    program = _gather_call(mesh, where.layout, 8).lower(where.held, batch, batch, role)
    exchanged = r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    assert not re.findall(exchanged, program.compile().as_text())


def test_what_does_not_fit_is_not_held():
    sampler, mesh = make_sampler(0.5), make_model(2).mesh
    where = held(sampler, mesh)
    parts = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(where.held)]
    assert held(sampler, mesh, limit=sum(parts)) is not None
    assert held(sampler, mesh, limit=sum(parts) - 1) is None
    assert room(mesh) == 0, "a CPU does not say how much memory it has"


def test_what_can_not_be_numbered_is_not_held(monkeypatch):
    sampler, mesh = make_sampler(0.5), make_model(2).mesh
    monkeypatch.setattr(filling._Filling, "can_be_numbered", False)
    assert held(sampler, mesh) is None


def test_devices_that_do_not_divide_the_shards_are_refused():
    with pytest.raises(ValueError, match="3 devices does not divide the 16 logical shards"):
        held(make_sampler(0.5), make_model(3).mesh)
