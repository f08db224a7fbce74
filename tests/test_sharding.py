"""Placement over eight virtual devices: rows are split, parameters are whole, rules cover once."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from xdistil_jax import trees
from xdistil_jax.sharding import (
    anywhere,
    batch_sharding,
    by_rules,
    fetched,
    is_split,
    is_spread,
    make_mesh,
    place_batch,
    placer,
    replicate,
    replicated,
    settle,
)

PARAMS = {"embed": {"table": np.zeros((16, 4))}, "head": {"kernel": np.zeros((4, 8))}}


def rows_by_device(array):
    return {shard.device.id: np.asarray(shard.data) for shard in array.addressable_shards}


def test_a_mesh_is_always_data_by_model():
    assert make_mesh().shape == {"data": 8, "model": 1}
    assert make_mesh(model=2).shape == {"data": 4, "model": 2}
    assert make_mesh(jax.devices()[:1]).shape == {"data": 1, "model": 1}
    assert [d.id for d in make_mesh(jax.devices()[2:4]).devices.flat] == [2, 3]


def test_a_model_axis_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="8 devices do not divide into a model axis of 3"):
        make_mesh(model=3)


def test_axes_are_auto_so_shardings_stay_out_of_the_types():
    mesh = make_mesh()
    assert set(mesh.axis_types) == {AxisType.Auto}
    x = place_batch(np.ones((8, 2), np.float32), mesh)
    # With explicit axes, contracting a split axis is an error.
    assert jax.jit(lambda x: x.T @ x)(x).tolist() == [[8, 8], [8, 8]]


def test_a_batch_is_split_by_rows_in_order():
    tree = {"tokens": np.arange(48).reshape(16, 3), "lengths": np.arange(16)}
    placed = place_batch(tree, make_mesh())
    for name, leaf in tree.items():
        assert placed[name].dtype == jax.dtypes.canonicalize_dtype(leaf.dtype)
        np.testing.assert_array_equal(placed[name], leaf)
        parts = rows_by_device(placed[name])
        assert len(parts) == 8
        for number in range(8):
            np.testing.assert_array_equal(parts[number], leaf[2 * number : 2 * number + 2])


def test_leading_axes_are_not_split():
    steps = np.arange(3 * 16 * 2).reshape(3, 16, 2)
    placed = place_batch(steps, make_mesh(), leading=1)
    np.testing.assert_array_equal(placed, steps)
    for number, part in rows_by_device(placed).items():
        np.testing.assert_array_equal(part, steps[:, 2 * number : 2 * number + 2])


def test_rows_are_copied_along_the_model_axis():
    placed = place_batch(np.arange(8), make_mesh(model=2))
    parts = rows_by_device(placed)
    assert sorted(map(tuple, parts.values())) == sorted(2 * [(0, 1), (2, 3), (4, 5), (6, 7)])


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="8"):
        place_batch(np.zeros((9, 2)), make_mesh())


def test_every_device_holds_a_replicated_leaf_whole():
    mesh = make_mesh()
    tree = {"a": {"b": np.arange(5.0, dtype=np.float32)}, "c": np.float32(2)}
    placed = replicate(tree, mesh)
    for leaf, original in zip(jax.tree.leaves(placed), jax.tree.leaves(tree), strict=True):
        assert leaf.sharding.is_equivalent_to(replicated(mesh), leaf.ndim)
        parts = rows_by_device(leaf)
        assert len(parts) == 8
        for part in parts.values():
            np.testing.assert_array_equal(part, original)


def test_rules_give_each_parameter_its_sharding():
    mesh = make_mesh(model=2)
    rules = {"embed": PartitionSpec("model"), "head": PartitionSpec(None, "model")}
    shardings = by_rules(PARAMS, rules, mesh)
    placed = jax.device_put(PARAMS, shardings)
    assert rows_by_device(placed["embed"]["table"])[0].shape == (8, 4)
    assert rows_by_device(placed["head"]["kernel"])[0].shape == (4, 4)
    assert batch_sharding(mesh).spec == PartitionSpec("data")


def test_a_placer_puts_one_leaf_after_the_other():
    mesh = make_mesh(model=2)
    rules = {"embed": PartitionSpec("model"), "head": PartitionSpec(None, "model")}
    split, whole = placer(mesh, rules), placer(mesh)
    for path, leaf in trees.leaves(PARAMS):
        np.testing.assert_array_equal(split(path, leaf), leaf)
        assert whole(path, leaf).sharding.is_equivalent_to(replicated(mesh), leaf.ndim)
    shape = rows_by_device(split("embed/table", PARAMS["embed"]["table"]))[0].shape
    assert shape == (8, 4)
    with pytest.raises(trees.PatternError, match=r"tail/kernel.* covered by no pattern"):
        split("tail/kernel", PARAMS["head"]["kernel"])


def test_what_is_split_on_a_mesh_stays_split_there():
    mesh, other = make_mesh(model=2), make_mesh()
    split = placer(mesh, {"head": PartitionSpec(None, "model")})("head", np.ones((4, 8)))
    tree = {"split": split, "host": np.arange(3.0)}
    here, there = settle(tree, mesh), settle(tree, other)
    assert here["split"] is split
    assert is_split(here)
    assert not is_split(there)
    assert here["host"].sharding.is_equivalent_to(replicated(mesh), 1)
    np.testing.assert_array_equal(there["split"], np.ones((4, 8)))
    assert not is_split({"host": np.arange(3.0)})


def test_a_split_leaf_is_fetched_whole():
    leaf = np.arange(32.0, dtype=np.float32).reshape(4, 8)
    split = placer(make_mesh(model=2), {"head": PartitionSpec("data", "model")})("head", leaf)
    assert not is_spread(split), "this process has all of it"
    np.testing.assert_array_equal(fetched(split), leaf)
    assert fetched(leaf) is leaf


def test_a_flag_is_counted_on_every_device():
    for ways in (1, 2, 8):
        mesh = make_mesh(model=ways)
        assert (int(anywhere(True, mesh)), int(anywhere(False, mesh))) == (8, 0)


def test_rules_cover_every_parameter_exactly_once():
    mesh, spec = make_mesh(), PartitionSpec()
    for rules in (("embed",), ("embed", "head", "*/kernel"), ("embed", "head", "tail")):
        with pytest.raises(trees.PatternError):
            by_rules(PARAMS, dict.fromkeys(rules, spec), mesh)
