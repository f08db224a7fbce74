"""The paper's student: its sizes, blind to padding, equal to torch's LSTM and a plain one."""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdistil_jax import trees
from xdistil_jax.models.bilstm import BiLSTMSpec, bilstm, parameter_count
from xdistil_jax.models.functional import abstract_params, build
from xdistil_jax.sharding import batch_sharding, make_mesh, replicated

SPEC = BiLSTMSpec(vocab_size=31, embed=5, hidden=4, teacher_width=6, classes=3, imitates="layer_2")
SPECS = [
    SPEC,
    replace(SPEC, projection="linear"),
    replace(SPEC, head_on="bilstm"),
    replace(SPEC, embed=7, hidden=3, classes=11, projection="linear", head_on="bilstm"),
]
# Table 16 of the paper: E, H, millions of parameters.
TABLE_16 = [
    *((300, 600, 31.8), (200, 600, 22.5), (300, 400, 29.4), (200, 400, 20.2), (100, 600, 13.1)),
    *((100, 400, 11.1), (50, 600, 8.5), (300, 200, 27.7), (200, 200, 18.7), (50, 400, 6.5)),
    *((100, 200, 9.6), (50, 200, 5.1), (300, 100, 27.0), (200, 100, 18.1), (100, 100, 9.2)),
    (50, 100, 4.7),
]


def random_params(spec, seed=0):
    """Parameters away from their initial zeros and ones."""
    params = build(spec).init(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + 0.5 * jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), params
    )


@partial(jax.jit, static_argnames=("spec", "dtype"))
def forward(params, tokens, lengths, key=None, *, spec=SPEC, dtype=jnp.float32):
    return build(spec).apply(params, tokens, lengths, key=key, dtype=dtype)


def outputs(params, tokens, lengths, **options):
    """Logits and hidden states side by side."""
    found = forward(params, jnp.asarray(tokens), jnp.asarray(lengths), **options)
    return np.concatenate([found.logits, *found.hidden.values()], axis=-1)


PARAMS = random_params(SPEC)


@pytest.mark.parametrize(("embed", "hidden", "millions"), TABLE_16)
def test_the_formula_gives_the_sizes_of_table_16(embed, hidden, millions):
    spec = BiLSTMSpec(88_500, embed, hidden, teacher_width=768, classes=11)
    assert parameter_count(spec) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("spec", [*SPECS, BiLSTMSpec(88_500, classes=11)])
def test_the_formula_counts_the_leaves(spec):
    sizes = [leaf.size for _, leaf in trees.leaves(abstract_params(spec))]
    assert parameter_count(spec) == sum(sizes)


def test_the_groups_are_those_of_table_4_and_cover_everything():
    found = trees.assign(abstract_params(SPEC), SPEC.groups)
    assert SPEC.groups == ("head", "projection", "bilstm", "embed")
    assert set(found.values()) == set(SPEC.groups)


def test_equal_specs_are_one_model():
    assert build(SPEC) is build(replace(SPEC))


def test_the_forget_gate_starts_open():
    bias = build(SPEC).init(jax.random.key(0))["bilstm"]["bias"]
    H = SPEC.hidden
    np.testing.assert_array_equal(bias[:, H : 2 * H], 1)
    np.testing.assert_array_equal(np.delete(bias, np.s_[H : 2 * H], axis=1), 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=3, max_size=3), st.integers(0, 2**32 - 1))
def test_content_of_padding_cannot_change_a_real_output(lengths, seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, SPEC.vocab_size, (3, 7))
    real = np.arange(7) < np.asarray(lengths)[:, None]
    other = np.where(real, tokens, rng.integers(0, SPEC.vocab_size, (3, 7)))
    first, second = (outputs(PARAMS, each, lengths) for each in (tokens, other))
    np.testing.assert_array_equal(first[real], second[real])


def test_width_of_padding_cannot_change_a_real_output():
    rng = np.random.default_rng(1)
    lengths = np.array([7, 4, 1, 0])
    tokens = rng.integers(0, SPEC.vocab_size, (4, 7))
    wide = np.concatenate([tokens, rng.integers(0, SPEC.vocab_size, (4, 6))], axis=1)
    narrow, padded = (outputs(PARAMS, each, lengths) for each in (tokens, wide))
    real = np.arange(7) < lengths[:, None]
    np.testing.assert_allclose(padded[:, :7][real], narrow[real], atol=1e-6)
    alone = outputs(PARAMS, tokens[1:2, :4], lengths[1:2])
    np.testing.assert_allclose(alone[0], narrow[1, :4], atol=1e-6)


def test_both_directions_reach_every_real_piece():
    """The opposite of the padding test: within a row, every piece may change every output."""
    tokens, lengths = np.array([[3, 4, 5, 6]]), np.array([4])
    before = outputs(PARAMS, tokens, lengths)
    for place in range(4):
        changed = tokens.copy()
        changed[0, place] = 9
        gap = np.abs(outputs(PARAMS, changed, lengths) - before).max(-1)[0]
        assert (gap > 0).all()


def test_padding_gets_no_gradient():
    # Padding has pieces of its own, so its rows of the table show whether a gradient arrives.
    tokens = jnp.array([[1, 2, 3, 20, 21], [4, 20, 21, 22, 23], [24, 24, 24, 24, 24]])
    lengths = jnp.array([3, 1, 0])
    real = jnp.arange(5)[None] < lengths[:, None]

    def loss(params):
        found = forward(params, tokens, lengths)
        states = jnp.concatenate([found.logits, *found.hidden.values()], axis=-1)
        return jnp.sum(jnp.where(real[..., None], states, 0) ** 2)

    table = np.asarray(jax.grad(loss)(PARAMS)["embed"]["table"])
    assert (table[20:] == 0).all()
    assert (np.abs(table[1:5]).max(axis=1) > 0).all()


def test_rows_without_pieces_are_finite():
    tokens, lengths = jnp.zeros((8, 4), jnp.int32), jnp.zeros(8, jnp.int32)

    def loss(params):
        return jnp.sum(forward(params, tokens, lengths).logits ** 2)

    value, grads = jax.value_and_grad(loss)(PARAMS)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for _, leaf in trees.leaves(grads))


def test_states_of_padding_are_zero():
    layer = PARAMS["bilstm"]
    x = jnp.ones((2, 4, SPEC.embed))
    real = jnp.asarray(np.arange(4) < np.array([4, 2])[:, None])
    states = bilstm(x, real, layer["kernel"], layer["recurrent"], layer["bias"])
    assert states.shape == (2, 4, 2 * SPEC.hidden)
    assert (states[1, 2:] == 0).all()
    assert (states[0] != 0).all()


def test_equals_torch():
    torch = pytest.importorskip("torch")
    E, H, T = SPEC.embed, SPEC.hidden, 9
    lengths = [9, 5, 1]
    layer = {name: np.asarray(leaf) for name, leaf in PARAMS["bilstm"].items()}
    lstm = torch.nn.LSTM(E, H, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for number, suffix in enumerate(("", "_reverse")):
            parts = {"weight_ih": layer["kernel"], "weight_hh": layer["recurrent"]}
            for name, values in parts.items():
                getattr(lstm, f"{name}_l0{suffix}").copy_(torch.tensor(values[number].T))
            getattr(lstm, f"bias_ih_l0{suffix}").copy_(torch.tensor(layer["bias"][number]))
            getattr(lstm, f"bias_hh_l0{suffix}").zero_()
        x = np.random.default_rng(0).standard_normal((3, T, E)).astype(np.float32)
        packed = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(x), lengths, batch_first=True)
        theirs, _ = torch.nn.utils.rnn.pad_packed_sequence(lstm(packed)[0], batch_first=True)
    real = jnp.asarray(np.arange(T) < np.array(lengths)[:, None])
    ours = bilstm(jnp.asarray(x), real, *(layer[n] for n in ("kernel", "recurrent", "bias")))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)


def unrolled(x, lengths, kernel, recurrent, bias):
    """Both directions of each row, word by word, for autodiff to look at; zero on padding."""
    H = recurrent.shape[1]
    rows = []
    for row, length in zip(x, lengths, strict=True):
        states = [[jnp.zeros(2 * H)] for _ in row]
        for number, order in enumerate((range(length), range(length - 1, -1, -1))):
            h = c = jnp.zeros(H)
            for place in order:
                gates = row[place] @ kernel[number] + h @ recurrent[number] + bias[number]
                i, f, g, o = jnp.split(gates, 4)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                half = (h, jnp.zeros(H)) if number == 0 else (jnp.zeros(H), h)
                states[place].append(jnp.concatenate(half))
        rows.append(jnp.stack([sum(each) for each in states]))
    return jnp.stack(rows)


@pytest.mark.parametrize(("spread", "few_rows"), [(False, 0), (False, 48), (True, 0)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_equal_those_of_an_unrolled_loop(dtype, spread, few_rows, monkeypatch):
    monkeypatch.setattr("xdistil_jax.models.bilstm._FEW_ROWS", few_rows)
    layer = [PARAMS["bilstm"][name] for name in ("kernel", "recurrent", "bias")]
    lengths = [4, 2, 1, 0]
    rng = np.random.default_rng(4)
    x = jnp.asarray(rng.standard_normal((4, 4, SPEC.embed)), jnp.float32)
    weight = jnp.asarray(rng.standard_normal((4, 4, 2 * SPEC.hidden)), jnp.float32)
    real = jnp.asarray(np.arange(4) < np.array(lengths)[:, None])

    def ours(x, *layer):
        return jnp.sum(bilstm(x.astype(dtype), real, *layer, spread=spread) * weight)

    def theirs(x, *layer):
        return jnp.sum(unrolled(x, lengths, *layer) * weight)

    pairs = [jax.jit(jax.value_and_grad(f, (0, 1, 2, 3)))(x, *layer) for f in (ours, theirs)]
    atol = 1e-4 if dtype == jnp.float32 else 0.25
    np.testing.assert_allclose(pairs[0][0], pairs[1][0], atol=4 * atol)
    for one, other in zip(pairs[0][1], pairs[1][1], strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, atol=atol)
    assert (np.asarray(pairs[0][1][0])[~np.asarray(real)] == 0).all()


def test_rows_that_are_spread_over_devices_are_summed_once():
    """And not at each step of time: nothing is exchanged inside a loop."""
    mesh = make_mesh(jax.devices()[:4])
    rows, whole = batch_sharding(mesh), replicated(mesh)
    tokens = jax.ShapeDtypeStruct((64, 6), jnp.int32, sharding=rows)
    lengths = jax.ShapeDtypeStruct((64,), jnp.int32, sharding=rows)
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), PARAMS
    )

    def loss(params, tokens, lengths):
        return build(SPEC).apply(params, tokens, lengths, rows=rows).logits.sum()

    step = jax.jit(jax.grad(loss), out_shardings=whole)
    text = step.lower(params, tokens, lengths).compile().as_text()
    loops = set(re.findall(r"body=%?([\w.-]+)", text))
    assert loops
    bodies = [part for part in text.split("\n\n") if (part.split() or [""])[0].lstrip("%") in loops]
    assert len(bodies) == len(loops)
    assert "all-reduce" in text
    assert not any("all-reduce" in body for body in bodies)


def reference(spec, params, tokens, length):
    """The student for one row, word by word, in float64."""
    p = {path: np.asarray(leaf, np.float64) for path, leaf in trees.leaves(params)}
    H = spec.hidden

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def direction(number, order):
        h, c, found = np.zeros(H), np.zeros(H), {}
        for place in order:
            x = p["embed/table"][tokens[place]]
            gates = x @ p["bilstm/kernel"][number] + h @ p["bilstm/recurrent"][number]
            i, f, g, o = np.split(gates + p["bilstm/bias"][number], 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            found[place] = h
        return np.array([found[place] for place in range(length)])

    both = [direction(0, range(length)), direction(1, reversed(range(length)))]
    states = np.concatenate(both, axis=-1)
    z = states @ p["projection/kernel"] + p["projection/bias"]
    if spec.projection == "gelu":
        z = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    top = z if spec.head_on == "projection" else states
    return np.concatenate([top @ p["head/kernel"] + p["head/bias"], z], axis=-1)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.projection}-{s.head_on}")
def test_equals_a_plain_reference(spec):
    params = random_params(spec, seed=3)
    tokens = np.random.default_rng(2).integers(0, spec.vocab_size, (2, 6))
    lengths = np.array([6, 3])
    ours = outputs(params, tokens, lengths, spec=spec)
    for row, length in enumerate(lengths):
        theirs = reference(spec, params, tokens[row], length)
        np.testing.assert_allclose(ours[row, :length], theirs, atol=2e-5)


def test_gelu_has_a_floor_and_linear_has_none():
    tokens, lengths = np.arange(30).reshape(3, 10), np.array([10, 10, 10])
    params = random_params(SPEC)
    gelu, linear = (
        forward(params, tokens, lengths, spec=each).hidden["layer_2"] for each in SPECS[:2]
    )
    assert gelu.min() > -0.171
    assert linear.min() < -0.5
    np.testing.assert_allclose(gelu, jax.nn.gelu(linear, approximate=True), atol=1e-5)


def test_the_head_reads_what_it_is_said_to_read():
    tokens, lengths = np.arange(10).reshape(1, 10), np.array([10])
    for spec, moves in ((SPECS[0], True), (SPECS[2], False)):
        params = random_params(spec)
        before = forward(params, tokens, lengths, spec=spec)
        params["projection"]["bias"] += 1.0
        after = forward(params, tokens, lengths, spec=spec)
        assert bool((before.logits != after.logits).any()) == moves
        assert (before.hidden["layer_2"] != after.hidden["layer_2"]).any()


def test_hidden_states_have_the_name_of_the_layer_imitated():
    found = forward(PARAMS, np.zeros((2, 3), np.int32), np.array([3, 1]))
    assert {name: leaf.shape for name, leaf in found.hidden.items()} == {"layer_2": (2, 3, 6)}
    assert found.logits.shape == (2, 3, 3)


def test_dropout_follows_its_key():
    tokens, lengths = np.arange(10).reshape(1, 10), np.array([10])
    keys = [None, None, jax.random.key(1), jax.random.key(1), jax.random.key(2)]
    plain, again, one, same, other = (outputs(PARAMS, tokens, lengths, key=key) for key in keys)
    np.testing.assert_array_equal(plain, again)
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert (one != plain).any()
    without = replace(SPEC, dropout=0.0)
    np.testing.assert_array_equal(
        outputs(PARAMS, tokens, lengths, spec=without, key=keys[2]),
        outputs(PARAMS, tokens, lengths, spec=without),
    )


def test_padding_is_blind_under_dropout_too():
    rng = np.random.default_rng(5)
    tokens, lengths = rng.integers(0, 31, (2, 6)), np.array([6, 2])
    other = np.where(np.arange(6) < lengths[:, None], tokens, 0)
    first, second = (
        outputs(PARAMS, each, lengths, key=jax.random.key(3)) for each in (tokens, other)
    )
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1, :2], second[1, :2])


def test_bf16_computes_near_and_returns_fp32():
    params = build(SPEC).init(jax.random.key(0))
    tokens, lengths = np.arange(30).reshape(3, 10), np.array([10, 7, 0])
    exact = forward(params, tokens, lengths)
    rough = forward(params, tokens, lengths, dtype=jnp.bfloat16)
    for ours, theirs in zip(jax.tree.leaves(rough), jax.tree.leaves(exact), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, atol=0.02)
        assert (ours != theirs).any()


def test_gradients_of_bf16_compute_are_fp32():
    tokens, lengths = jnp.arange(10).reshape(1, 10), jnp.array([10])

    def loss(params):
        return jnp.mean(forward(params, tokens, lengths, dtype=jnp.bfloat16).logits ** 2)

    for path, leaf in trees.leaves(jax.grad(loss)(PARAMS)):
        assert leaf.dtype == jnp.float32, path
        assert np.isfinite(leaf).all(), path
