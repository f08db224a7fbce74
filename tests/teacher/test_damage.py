"""What a cache refuses: damage, a newer format, settings that don't fit; and what it says."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.teacher.toys import SETTINGS, build_toy, contents, make_store, random_rows
from xdistil_jax.teacher import manifest
from xdistil_jax.teacher.manifest import CacheMismatch, find_cache, list_caches, remove_cache
from xdistil_jax.teacher.shards import CacheDamaged

STORE = make_store(random_rows(60))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("caches")
    build_toy(root, STORE)
    return root


@pytest.fixture
def root(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path / "caches")


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << (place % 8)
    path.write_bytes(content)


FILES = ["hidden-embedding.npy", "hidden-layer_2.npy", "logits.npy", "rows.npy", "shard.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 3, 131, 250, -1])
def test_one_flipped_byte_names_the_file_and_costs_one_shard(root, name, place):
    whole = contents(root)
    path = root / SETTINGS.id / "shards" / "000002" / name
    flip(path, place)
    with pytest.raises(CacheDamaged) as caught:
        build_toy(root, STORE)
    assert str(path) in str(caught.value)
    assert f"Delete {path.parent} " in str(caught.value)
    shutil.rmtree(path.parent)
    said = []
    build_toy(root, STORE, say=said.append)
    rows = len(np.load(path.parent / "rows.npy"))
    assert f"building {rows} rows beside {60 - rows}" in said[0]
    assert contents(root) == whole


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", [0, 60, -1, None])
def test_a_shard_cut_short_is_named(root, name, left):
    path = root / SETTINGS.id / "shards" / "000001" / name
    if left is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CacheDamaged, match=f"000001/{name}: "):
        build_toy(root, STORE)


@pytest.mark.parametrize("name", ["plan.json", "hashes.npy", "shard.npy"])
def test_a_damaged_plan_is_named(root, name):
    path = root / SETTINGS.id / "plans" / "000000" / name
    flip(path, 140)
    with pytest.raises(CacheDamaged, match=f"plans/000000/{name}"):
        build_toy(root, STORE)
    # Without its plan, the cache still holds all its rows.
    shutil.rmtree(path.parent)
    shards = contents(root / SETTINGS.id / "shards")
    build_toy(root, STORE)
    assert contents(root / SETTINGS.id / "shards") == shards


def test_a_damaged_manifest_is_named_and_written_anew(root):
    path = root / SETTINGS.id / "manifest.json"
    whole = contents(root)
    flip(path, path.read_bytes().index(b"bf16"))
    with pytest.raises(CacheDamaged, match=r"manifest\.json.* Delete .*manifest\.json and"):
        build_toy(root, STORE)
    path.unlink()
    build_toy(root, STORE)
    assert contents(root) == whole


def test_a_newer_manifest_is_refused(root):
    path = root / SETTINGS.id / "manifest.json"
    content = json.loads(path.read_text())
    content["settings"]["format_version"] = manifest.FORMAT + 1
    path.write_text(json.dumps(content))
    with pytest.raises(CacheMismatch, match=r"manifest\.json: format 2 .* newer xdistil_jax"):
        build_toy(root, STORE)
    assert list_caches(root)[0].settings == {}


def test_an_explicit_cache_that_does_not_fit_lists_the_fields(root):
    other = dataclasses.replace(SETTINGS, teacher="u", layers=("layer_1",))
    with pytest.raises(CacheMismatch) as caught:
        build_toy(root, STORE, settings=other, only=SETTINGS.id)
    assert "teacher is t there, u here" in str(caught.value)
    assert "layers is ['embedding', 'layer_2'] there, ['layer_1'] here" in str(caught.value)
    assert "tokenizer" not in str(caught.value)
    assert len(list_caches(root)) == 1
    build_toy(root, STORE, only=SETTINGS.id[:5])
    with pytest.raises(CacheMismatch, match=f"no cache starts with 'ffff'.*{SETTINGS.id}"):
        build_toy(root, STORE, only="ffff")


def test_another_setting_builds_another_cache_and_says_so(root):
    other = dataclasses.replace(SETTINGS, max_length=39)
    assert other.id != SETTINGS.id
    far = dataclasses.replace(SETTINGS, teacher="far", tokenizer="far", layers=("layer_2",))
    build_toy(root, STORE, settings=far)
    said = []
    shorter = make_store(random_rows(60, longest=39), max_length=39)
    build_toy(root, shorter, settings=other, say=said.append)
    assert said[0] == (
        f"teacher cache {other.id[:6]}: building 60 rows; "
        f"differs from {SETTINGS.id[:6]} in max_length"
    )
    assert re.fullmatch(rf"teacher cache {other.id[:6]}: about \d+ s to go", said[1])
    assert len(said) == 2
    assert len(list_caches(root)) == 3


def test_settings_that_do_not_fit_the_store(root):
    with pytest.raises(ValueError, match=r"max_length is 40, but .* encoded with 64"):
        build_toy(root, make_store(random_rows(5), max_length=64))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(SETTINGS)])
def test_every_setting_decides_the_id(field):
    changed = {"layers": ("layer_1",), "max_length": 8, "format_version": 2, "dtype": "bfloat16"}
    if field == "codec":
        with pytest.raises(ValueError, match="codec 'x' is unknown: choose from bf16, int8"):
            dataclasses.replace(SETTINGS, codec="x")
        assert dataclasses.replace(SETTINGS, codec="int8").id != SETTINGS.id
    else:
        other = dataclasses.replace(SETTINGS, **{field: changed.get(field, "x")})
        assert other.id != SETTINGS.id


def test_caches_are_listed_and_removed(root):
    (info,) = list_caches(root)
    assert info.id == SETTINGS.id
    assert info.rows == 60
    assert info.complete
    assert info.settings == SETTINGS.record
    assert info.bytes == sum(map(len, contents(root / SETTINGS.id).values()))
    with manifest.lock(find_cache(root, info.id)), pytest.raises(CacheMismatch, match="another"):
        remove_cache(root, info.id)
    assert remove_cache(root, info.id[:4]) == info.id
    assert list_caches(root) == []
    with pytest.raises(CacheMismatch, match="there are: none"):
        remove_cache(root, info.id)
    assert list_caches(root / "nowhere") == []
