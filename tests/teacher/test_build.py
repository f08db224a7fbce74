"""Building: nothing is computed twice or unasked, and a kill at any moment leaves no trace."""

import dataclasses
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

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
from xdistil_jax.models.functional import build
from xdistil_jax.models.layers import unstack_layers
from xdistil_jax.sharding import make_mesh
from xdistil_jax.teacher.forward import Pass, forward
from xdistil_jax.teacher.manifest import identify_teacher, list_caches
from xdistil_jax.teacher.shapes import batch_shapes, padded_widths
from xdistil_jax.teacher.shards import Ledger

TEXT = random_rows(60)
NAN = jax.tree.map(lambda leaf: leaf * np.nan, make_params())
"""A teacher that can't be run: whoever builds with it computes nothing, or fails."""


def ledger(root: Path) -> Ledger:
    return Ledger.read(root / SETTINGS.id)


def test_only_real_tokens_are_stored(tmp_path):
    store = make_store(TEXT)
    build_toy(tmp_path, store)
    tokens = len(store.tokens)
    for name, width in (*((f"hidden-{layer}", 16) for layer in LAYERS), ("logits", 7)):
        parts = [shard.array(name) for shard in ledger(tmp_path).shards.values()]
        assert sum(part.size for part in parts) == tokens * width
        assert all(part.itemsize == 2 for part in parts)
    assert len(ledger(tmp_path).shards) > 2


@pytest.mark.parametrize("codec", ["bf16", "int8", "pca-5", "pca-0.9"])
def test_shards_are_planned_by_what_a_token_takes(tmp_path, codec):
    settings = dataclasses.replace(SETTINGS, codec=codec)
    store, mesh = make_store(TEXT), make_mesh(jax.devices()[:1])
    cache = build_toy(tmp_path, store, settings=settings)
    teacher = Pass(store, build(SPEC), make_params(), settings, mesh, cache.bases)
    on_disk = sum(part.nbytes for parts in cache.maps.values() for part in parts)
    assert teacher.bytes_per_token() * len(store.tokens) == on_disk


def test_one_compile_for_each_width(tmp_path):
    forward.clear_cache()
    build_toy(tmp_path, make_store(TEXT))
    shapes = forward._cache_size()
    assert 3 < shapes <= len(padded_widths(SETTINGS.max_length)) == 9
    build_toy(tmp_path / "again", make_store(TEXT), params=make_params(1))
    assert forward._cache_size() == shapes
    # A shard is rebuilt in the shapes that its plan was made for, whatever the budget is now.
    shutil.rmtree(tmp_path / SETTINGS.id / "shards" / "000001")
    build_toy(tmp_path, make_store(TEXT), token_budget=1600)
    assert forward._cache_size() == shapes


def test_new_sentences_cost_only_themselves(tmp_path):
    build_toy(tmp_path, make_store(TEXT[:40]))
    before = contents(tmp_path)
    said = []
    cache = build_toy(tmp_path, make_store(TEXT), say=said.append)
    assert said[0].startswith(f"teacher cache {SETTINGS.id[:6]}: building 20 rows beside 40")
    assert len(ledger(tmp_path).key) == 60
    assert before.items() <= contents(tmp_path).items()
    assert (cache.length == make_store(TEXT).lengths).all()


def test_much_work_on_a_cpu_is_padded_less(tmp_path, monkeypatch):
    little, much = (batch_shapes(make_mesh(), work)[1] for work in (1e11, 1e13))
    assert little < much
    monkeypatch.setattr("xdistil_jax.teacher.shapes._WORTH_WIDTHS", 1e5)
    forward.clear_cache()
    build_toy(tmp_path, make_store(random_rows(300)))
    assert 9 < forward._cache_size() <= len(padded_widths(SETTINGS.max_length, per_octave=16)) == 36


def test_equal_rows_are_computed_once(tmp_path):
    cache = build_toy(tmp_path, make_store([*TEXT[:20], *TEXT[:20]]))
    assert len(ledger(tmp_path).key) == 20
    streamed = cache.stream(np.arange(40), 40)
    np.testing.assert_array_equal(streamed["logits"][:20], streamed["logits"][20:])


def test_a_subset_is_a_view(tmp_path):
    whole = build_toy(tmp_path, make_store(TEXT))
    before = contents(tmp_path)
    subset = [7, 50, 3]
    said = []
    # Another store, another order: rows are known by their tokens.
    view = build_toy(tmp_path, make_store([TEXT[n] for n in subset]), params=NAN, say=said.append)
    assert said == [f"teacher cache {SETTINGS.id[:6]}: found, 3 rows"]
    assert contents(tmp_path) == before
    ours, theirs = view.stream(np.arange(3), 40), whole.stream(np.array(subset), 40)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_rows_that_are_not_asked_for_are_never_read(tmp_path):
    # The odd rows hold a piece that no even row has, and for which the teacher has no number.
    store = make_store([[59] * len(row) if n % 2 else row for n, row in enumerate(TEXT)])
    even = [n for n in range(0, 60, 2) if 59 not in TEXT[n]]
    params = make_params()
    params["embed"]["table"] = params["embed"]["table"].at[59].set(np.nan)
    cache = build_toy(tmp_path, store, np.array(even), params=params)
    assert cache.rows.tolist() == even
    with pytest.raises(ValueError, match=r"row 1 is not in teacher cache .*rows=\.\.\."):
        cache.stream(np.array([0, 1]), 40)
    with pytest.raises(ValueError, match="sentence 101 "):
        build_toy(tmp_path, store, np.array([*even, 1]), params=params)


@pytest.mark.parametrize("bad", [3, 17, 40])
def test_non_finite_states_name_the_sentence(tmp_path, bad):
    params = make_params()
    params["embed"]["table"] = params["embed"]["table"].at[33].set(np.inf)
    rows = [[token for token in row if token != 33] for row in TEXT]
    rows[bad][0:0] = [33]
    store = make_store([row[:40] for row in rows])
    message = rf"sentence {100 + bad} \(row {bad}\): the teacher's hidden-embed"
    with pytest.raises(ValueError, match=message):
        build_toy(tmp_path, store, params=params)


def test_too_large_logits_name_the_sentence(tmp_path):
    params = make_params()
    params["head"]["bias"] = params["head"]["bias"] + 1e6
    with pytest.raises(ValueError, match=r"sentence \d+ .* logits holds"):
        build_toy(tmp_path, make_store(TEXT), params=params)


def test_one_device_equals_eight(tmp_path):
    store, rows = make_store(TEXT), np.arange(60)
    one = build_toy(tmp_path / "one", store, token_budget=640).stream(rows, 40)
    eight = build_toy(tmp_path / "eight", store, token_budget=640, devices=8).stream(rows, 40)

    def compare(a: np.ndarray, b: np.ndarray) -> None:
        # 1e-5 before rounding is at most one step of the codec after it.
        a, b = a.astype(np.float32), b.astype(np.float32)
        step = 2.0**-7 if a.shape[-1] == 16 else 2.0**-10
        np.testing.assert_allclose(a, b, rtol=step, atol=2e-5)
        assert (a == b).mean() > 0.98

    jax.tree.map(compare, one, eight)


def test_a_smaller_command_does_not_finish_a_larger_one(tmp_path):
    store = make_store(TEXT)

    def stop(message: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_toy(tmp_path, store, say=stop)
    assert ledger(tmp_path).planned
    assert not list_caches(tmp_path)[0].complete
    build_toy(tmp_path, store, np.arange(10))
    assert len(ledger(tmp_path).key) == 10
    build_toy(tmp_path, store)
    assert len(ledger(tmp_path).key) == 60
    assert list_caches(tmp_path)[0].complete


@pytest.mark.parametrize("rows", [[], [-1, 2], [60], [0.5], [True]])
def test_rows_that_the_store_has_not(tmp_path, rows):
    with pytest.raises(ValueError, match="row numbers of the store, 0 to 59"):
        build_toy(tmp_path, make_store(TEXT), np.array(rows))


def test_a_layer_that_the_teacher_has_not(tmp_path):
    settings = SETTINGS.__class__("t", "p", ("layer_9",), 40)
    with pytest.raises(ValueError, match="no hidden state 'layer_9': choose from embedding"):
        build_toy(tmp_path, make_store(TEXT), settings=settings)


def test_of_two_builders_one_builds_and_one_waits(tmp_path):
    build_toy(tmp_path / "alone", make_store(TEXT))
    said: dict[str, list[str]] = {"first": [], "second": []}
    building, waiting = threading.Event(), threading.Event()

    def first(message: str) -> None:
        said["first"].append(message)
        building.set()
        assert waiting.wait(60)

    def second(message: str) -> None:
        said["second"].append(message)
        waiting.set()

    def build(say, params) -> None:
        build_toy(tmp_path / "both", make_store(TEXT), say=say, params=params)

    thread = threading.Thread(target=build, args=(first, None))
    thread.start()
    assert building.wait(60)
    build(second, NAN)
    thread.join()
    assert "building 60 rows" in said["first"][0]
    assert said["second"] == [
        f"teacher cache {SETTINGS.id[:6]}: another process is building it; waiting"
    ]
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("codec", "events"),
    [
        ("bf16", [1, 18, 44, 63, 88]),
        pytest.param("pca-0.9", [3, 16, 60, 115, 130], marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_the_same_command_gives_the_same_bytes(tmp_path, codec, events):
    places = [str(tmp_path), str(tmp_path / "jit")]
    command = [sys.executable, "-m", "tests.teacher.toys", *places, codec]
    done = subprocess.run(
        [*command, *map(str, events)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == events
    assert all(status == -9 and resumed == 0 for _, status, _, resumed in lines)
    # The kills fell before, between and inside of shards.
    assert len({shards for _, _, shards, _ in lines}) >= 3
    for event in events:
        assert contents(tmp_path / str(event)) == contents(tmp_path / "whole")


def test_a_teacher_is_known_whether_its_layers_are_stacked_or_not():
    params, other = make_params(), make_params(1)
    single = dataclasses.replace(SPEC, stacked=False)
    stacked = identify_teacher(SPEC, params)
    assert identify_teacher(single, unstack_layers(params)) == stacked
    assert identify_teacher(SPEC, other) != stacked
    assert identify_teacher(dataclasses.replace(SPEC, heads=4), params) != stacked
