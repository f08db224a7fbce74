"""Split over (data, model), encoders of all families say the same; each device holds a part."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.models.references.make import CASES, ROOT, random_batch
from tests.models.test_encoder import forward
from xdistil_jax import trees
from xdistil_jax.models.bilstm import BiLSTMSpec
from xdistil_jax.models.checkpoints import load_encoder
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import abstract_params
from xdistil_jax.models.modernbert import ModernBertSpec
from xdistil_jax.models.partition import RULES, rules
from xdistil_jax.sharding import by_rules, make_mesh, place_batch, placer

XL = EncoderSpec(
    250880, 2560, 36, 32, 10240, positions=514, token_types=1, position_offset=2, pre_norm=True
)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stacked", [True, False])
def test_a_split_encoder_says_the_same(case, stacked):
    mesh = make_mesh(model=2)
    spec, params, _ = load_encoder(ROOT / case, stacked=stacked)
    batch = random_batch(3, (16, 1, 9, 5, 3, 16, 2, 8), spec.vocab_size)
    whole = forward(spec, params, *batch)
    place = placer(mesh, rules(spec, mesh))
    split = trees.unflatten({path: place(path, leaf) for path, leaf in trees.leaves(params)})
    pieces = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(split)]
    assert sum(pieces) >= 6
    found = forward(spec, split, *place_batch(batch, mesh))
    for mine, its in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(mine, its, atol=2e-5)


def test_every_rule_is_of_use():
    """A pattern that no encoder of its kind has a parameter for would be a slip of the pen."""
    used = {kind: set() for kind in RULES}
    specs = [load_encoder(ROOT / case).spec for case in CASES]
    bias = {f"{name}_bias": True for name in ("norm", "attention", "feed_forward", "head")}
    specs += [replace(spec, **bias) for spec in specs if isinstance(spec, ModernBertSpec)]
    for spec in specs:
        table = tuple(RULES[type(spec)])
        paths = [path for path, _ in trees.leaves(abstract_params(spec))]
        used[type(spec)] |= {trees.covering(path, table) for path in paths}
    assert used == {kind: set(table) for kind, table in RULES.items()}


@pytest.mark.parametrize("model", [1, 2, 4, 8])
def test_each_device_holds_its_share_of_a_large_teacher(model):
    mesh = make_mesh(model=model)
    params = abstract_params(XL)
    shardings = by_rules(params, rules(XL, mesh), mesh)
    both = zip(jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True)
    parts = [(leaf.size, np.prod(own.shard_shape(leaf.shape))) for leaf, own in both]
    total, own = np.sum(parts, axis=0)
    assert 3.4e9 < total < 3.6e9
    # Norms and a few biases are whole on each device.
    assert total / 8 < own < 1.005 * total / 8


def test_an_axis_that_does_not_divide_stays_whole():
    mesh = make_mesh(model=2)
    specs = [EncoderSpec(vocab, 32, 2, 4, 64) for vocab in (119_547, 119_548)]
    odd, even = (rules(spec, mesh)["embed/table"] for spec in specs)
    assert tuple(odd) == (None, "data")
    assert tuple(even) == ("model", "data")
    assert tuple(rules(specs[0], mesh)["head/kernel"]) == ("data", None)


def test_stacked_layers_are_not_split_among_devices():
    mesh = make_mesh(model=2)
    spec = EncoderSpec(64, 32, 4, 4, 64)
    stacked, single = (rules(replace(spec, stacked=each), mesh) for each in (True, False))
    assert tuple(single["layer_3/attention/query/kernel"]) == ("data", "model")
    assert tuple(stacked["layers/attention/query/kernel"]) == (None, "data", "model")


def test_a_student_has_no_rules():
    with pytest.raises(ValueError, match="no rules to split a BiLSTMSpec, only EncoderSpec"):
        rules(BiLSTMSpec(10), make_mesh())
