"""Bases of PCA codecs: what they keep, how they are found again, and what a student makes of it."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.teacher.test_damage import flip
from tests.teacher.toys import (
    LAYERS,
    SETTINGS,
    SPEC,
    build_toy,
    contents,
    make_params,
    make_store,
    random_rows,
)
from xdistil_jax.distill.losses import representation
from xdistil_jax.models.functional import build
from xdistil_jax.teacher import build as building
from xdistil_jax.teacher.basis import Basis, fit_basis, read_bases
from xdistil_jax.teacher.cache import TeacherCache
from xdistil_jax.teacher.forward import forward
from xdistil_jax.teacher.shards import CacheDamaged, keys
from xdistil_jax.types import Batch, EncoderOutput

TEXT = random_rows(60)
STORE = make_store(TEXT)
REAL = np.arange(40) < STORE.lengths[:, None]


def coded(codec: str):
    return dataclasses.replace(SETTINGS, codec=codec)


def build_coded(root: Path, codec: str, rows=TEXT, **options) -> TeacherCache:
    return build_toy(root, make_store(rows), settings=coded(codec), **options)


def states_of(cache: TeacherCache) -> dict[str, np.ndarray]:
    """What the lookup gives of the whole text [60 40 W]."""
    streamed = cache.stream(np.arange(60), 40)
    output = jax.jit(cache.lookup, static_argnames="batch")(cache.arrays, streamed, batch=None)
    return {layer: np.asarray(states) for layer, states in output.hidden.items()}


def projector(basis: Basis) -> np.ndarray:
    return basis.directions @ basis.directions.T


def assert_projected(restored: np.ndarray, states: np.ndarray, basis: Basis) -> None:
    """Are ``restored`` the states' projections, up to the error that int8 is allowed?"""
    coordinates = basis.project(states)
    error = np.linalg.norm(restored - basis.restore(coordinates), axis=1)
    allowed = np.sqrt(coordinates.shape[1]) * np.abs(coordinates).max(axis=1) / 252
    assert (error <= allowed + 1e-4).all()


@pytest.fixture(scope="module")
def exact() -> dict[str, np.ndarray]:
    """The teacher's states of the whole text [60 40 16], in fp32 and never stored."""
    tokens = np.zeros((60, 40), np.int32)
    tokens[REAL] = STORE.tokens
    output = forward(
        make_params(), tokens, STORE.lengths.astype(np.int32), functional=build(SPEC),
        layers=LAYERS, dtype="float32",
    )  # fmt: skip
    return {layer: np.asarray(output[f"hidden-{layer}"]) for layer in LAYERS}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("coded")
    build_coded(root, "pca-5")
    return root


@pytest.fixture
def root(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path / "caches")


def test_directions_are_the_principal_ones(exact):
    sample = exact["layer_2"][REAL]
    basis = fit_basis(sample, 5)
    np.testing.assert_allclose(basis.directions.T @ basis.directions, np.eye(5), atol=1e-5)
    centred = sample.astype(np.float64) - sample.mean(0, dtype=np.float64)
    right = np.linalg.svd(centred, full_matrices=False)[2][:5]
    np.testing.assert_allclose(np.abs(np.diag(right @ basis.directions)), 1, atol=1e-4)
    assert basis.mean.dtype == basis.directions.dtype == np.float32


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99, 0.999])
def test_no_more_coordinates_than_hold_the_energy(exact, share):
    sample = exact["embedding"][REAL]
    singular = np.linalg.svd(sample - sample.mean(0), compute_uv=False).astype(np.float64)
    shares = (singular**2).cumsum() / (singular**2).sum()
    count = fit_basis(sample, share).directions.shape[1]
    assert shares[count - 1] >= share
    assert count == 1 or shares[count - 2] < share


def test_more_coordinates_than_there_are_are_refused(exact, tmp_path):
    with pytest.raises(ValueError, match=r"17 coordinates are more .*states are 16 wide"):
        build_coded(tmp_path, "pca-17")
    with pytest.raises(ValueError, match=r"5 coordinates are more .*sample has 4 of them"):
        fit_basis(exact["embedding"][REAL][:4], 5)


@pytest.mark.parametrize("codec", ["pca-5", "pca-16", "pca-0.9"])
def test_restored_states_are_the_projected_ones_up_to_int8(tmp_path, exact, codec):
    cache = build_coded(tmp_path, codec)
    for layer, restored in states_of(cache).items():
        basis = cache.bases.by_layer[layer]
        assert_projected(restored[REAL], exact[layer][REAL], basis)
        width = basis.directions.shape[1]
        assert cache.maps[f"hidden-{layer}"][0].shape[1] == width + 2
        assert (codec == "pca-16") == (width == 16)


def test_the_sample_is_the_first_rows_by_hash_however_they_are_batched(
    tmp_path, exact, monkeypatch
):
    monkeypatch.setattr(building, "_SAMPLED_PIECES", 300)
    order = np.argsort(keys(STORE.row_hashes()))
    count = 1 + int(np.flatnonzero(np.cumsum(STORE.lengths[order]) >= 300)[0])
    assert 5 < count < 30
    chosen = np.isin(np.arange(60), order[:count])[:, None] & REAL
    said = []
    caches = [
        build_coded(tmp_path / "one", "pca-4", say=said.append),
        build_coded(tmp_path / "eight", "pca-4", devices=8, token_budget=640),
        build_coded(tmp_path / "turned", "pca-4", TEXT[::-1]),
    ]
    assert said[0].endswith(f": fitting the basis of pca-4 to {count} rows")
    for layer in LAYERS:
        wanted = fit_basis(exact[layer][chosen], 4)
        every = fit_basis(exact[layer][REAL], 4)
        assert np.abs(projector(every) - projector(wanted)).max() > 1e-2
        for cache in caches:
            found = cache.bases.by_layer[layer]
            np.testing.assert_allclose(found.mean, wanted.mean, atol=1e-4)
            np.testing.assert_allclose(projector(found), projector(wanted), atol=1e-4)


@pytest.mark.parametrize("codec", ["int8", "pca-5", "pca-0.9"])
def test_the_same_text_gives_the_same_bytes(tmp_path, codec):
    for name in "ab":
        build_coded(tmp_path / name, codec)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_what_is_added_later_is_encoded_with_the_same_basis(tmp_path, exact):
    first = build_coded(tmp_path, "pca-5", TEXT[:30])
    before = contents(tmp_path)
    said = []
    whole = build_coded(tmp_path, "pca-5", say=said.append)
    assert before.items() <= contents(tmp_path).items()
    assert not [line for line in said if "basis" in line]
    assert whole.bases.identity == first.bases.identity
    for layer, restored in states_of(whole).items():
        assert_projected(restored[REAL], exact[layer][REAL], first.bases.by_layer[layer])
    # The id is that of the settings: begun with other text, a cache has another basis.
    other = build_coded(tmp_path / "other", "pca-5")
    assert other.settings.id == whole.settings.id
    assert other.bases.identity != whole.bases.identity


@pytest.mark.parametrize("name", ["basis.json", "mean-layer_2.npy", "directions-embedding.npy"])
@pytest.mark.parametrize("gone", [False, True])
def test_without_its_basis_a_cache_has_to_go(root, name, gone):
    whole = contents(root)
    folder = root / coded("pca-5").id
    path = folder / "basis" / name
    path.unlink() if gone else flip(path, 130)
    with pytest.raises(CacheDamaged) as caught:
        build_coded(root, "pca-5")
    assert str(path) in str(caught.value)
    assert f"Delete {folder} and" in str(caught.value)
    shutil.rmtree(folder)
    build_coded(root, "pca-5")
    assert contents(root) == whole


def test_a_basis_is_not_fitted_anew_to_shards_that_are_there(root):
    shutil.rmtree(root / coded("pca-5").id / "basis")
    with pytest.raises(CacheDamaged, match=r"basis\.json: the file is missing"):
        build_coded(root, "pca-5", random_rows(30, seed=1))


def test_a_sample_that_is_not_finite_names_the_sentence(tmp_path):
    params = make_params()
    params["embed"]["table"] = params["embed"]["table"].at[33].set(np.inf)
    rows = [[token for token in row if token != 33] for row in TEXT]
    rows[17][0:0] = [33]
    with pytest.raises(ValueError, match=r"sentence 117 \(row 17\): the teacher's hidden-embed"):
        build_coded(tmp_path, "pca-5", [row[:40] for row in rows], params=params)
    assert not list(tmp_path.rglob("basis"))


def test_a_shard_of_another_cache_of_the_same_id_is_refused(root, tmp_path):
    build_coded(tmp_path / "other", "pca-5", TEXT[:30])
    shards = Path(coded("pca-5").id, "shards")
    shutil.rmtree(root / shards)
    shutil.copytree(tmp_path / "other" / shards, root / shards)
    with pytest.raises(CacheDamaged, match=r"000000/shard\.json: encoded with another basis"):
        build_coded(root, "pca-5")


def batch_of(real: np.ndarray) -> Batch:
    zeros = np.zeros(real.shape, np.int32)
    return Batch(np.arange(60), zeros, STORE.lengths, real, zeros, real, real, real)


def loss_of(states, targets) -> jax.Array:
    """The representation loss over the whole text."""
    logits = jnp.zeros((60, 40, 7))
    parts = (EncoderOutput({"layer_2": each}, logits) for each in (states, targets))
    return representation(*parts, batch_of(REAL)).compute()


def test_a_linear_projection_has_the_same_objective_in_the_subspace(exact):
    target = exact["layer_2"]
    basis = fit_basis(target[REAL], 5)
    coordinates = basis.project(target.reshape(-1, 16)).reshape(60, 40, 5)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 40, 8)).astype(np.float32)

    def narrow(kernel):
        return loss_of(features @ kernel, coordinates)

    def wide(kernel):
        return loss_of(basis.restore(features @ kernel), target)

    apart = []
    for scale in (0.0, 0.1, 1.0, 3.0):
        kernel = jnp.asarray(scale * rng.normal(size=(8, 5)), jnp.float32)
        inside, gradient = jax.value_and_grad(narrow)(kernel)
        outside, other = jax.value_and_grad(wide)(kernel)
        # Both are means over coordinates: of 5 here, of 16 there.
        apart.append(16 * float(outside) - 5 * float(inside))
        np.testing.assert_allclose(16 * other, 5 * gradient, rtol=1e-3, atol=1e-4)
    beyond = target[REAL] - basis.restore(basis.project(target[REAL]))
    constant = float((beyond.astype(np.float64) ** 2).sum(1).mean())
    assert constant > 0.1
    np.testing.assert_allclose(apart, constant, rtol=1e-3)


@pytest.mark.parametrize("codec", ["pca-5", "pca-0.9"])
def test_imitated_coordinates_are_those_of_the_restored_states(tmp_path, codec):
    cache = build_coded(tmp_path, codec)
    narrow = dataclasses.replace(cache, coordinates=True)
    assert jax.tree.leaves(narrow.arrays) == []
    assert narrow.lookup != cache.lookup
    coordinates, states = states_of(narrow), states_of(cache)
    for layer, basis in cache.bases.by_layer.items():
        assert coordinates[layer].shape[-1] == basis.directions.shape[1] < 16
        found = basis.restore(coordinates[layer][REAL])
        np.testing.assert_allclose(found, states[layer][REAL], rtol=1e-4, atol=1e-4)
    basis, width = cache.bases.by_layer["layer_2"], coordinates["layer_2"].shape[-1]
    guess = np.random.default_rng(1).normal(size=(60, 40, width)).astype(np.float32)
    inside = loss_of(guess, coordinates["layer_2"])
    outside = loss_of(basis.restore(guess), states["layer_2"])
    np.testing.assert_allclose(16 * outside, width * inside, rtol=1e-4)


def test_bases_are_read_back_as_they_were_written(built):
    found = read_bases(built / coded("pca-5").id, LAYERS)
    assert set(found.by_layer) == set(LAYERS)
    assert found.identity
    for basis in found.by_layer.values():
        assert basis.mean.shape == (16,)
        assert basis.directions.shape == (16, 5)
