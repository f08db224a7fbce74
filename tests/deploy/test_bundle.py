"""A bundle comes back as it was written, and one that is damaged is refused by the file's name."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest

from tests.deploy.toys import MAX_LENGTH, TAGS, TEXT, TOKENIZER, edit_json, save_toy, toy_spec
from xdistil_jax import trees
from xdistil_jax.deploy.bundle import BundleError, load_bundle

FILES = ("model.safetensors", "config.json", "tokenizer.json", "labels.json")


@pytest.fixture
def folder(tmp_path):
    save_toy(tmp_path / "student")
    return tmp_path / "student"


def test_comes_back_as_it_was_written(tmp_path):
    params = save_toy(tmp_path / "student")
    bundle = load_bundle(tmp_path / "student")
    flat = dict(trees.leaves(params))
    assert bundle.weights.keys() == flat.keys()
    for path, leaf in flat.items():
        assert bundle.weights[path].dtype == np.float32
        np.testing.assert_array_equal(bundle.weights[path], leaf)
    written = json.loads(json.dumps(asdict(toy_spec())))
    assert (bundle.kind, bundle.sizes) == ("bilstm", written)
    assert (bundle.tagset, bundle.max_length) == (TAGS, MAX_LENGTH)
    assert bundle.tokenizer.fingerprint == TOKENIZER.fingerprint
    assert bundle.tokenizer.pieces([TEXT]) == TOKENIZER.pieces([TEXT])
    assert sorted(path.name for path in (tmp_path / "student").iterdir()) == sorted(FILES)


def test_equal_students_are_equal_bytes(tmp_path):
    for name in ("one", "other"):
        save_toy(tmp_path / name)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_transposed_weight_is_written_in_its_own_order(tmp_path):
    """safetensors writes the buffer as it lies, whatever the strides say."""
    spec = toy_spec()
    weights = dict(trees.leaves(save_toy(tmp_path / "first", spec)))
    turned = {
        path: np.asarray(leaf).T.copy().T if np.ndim(leaf) == 2 else leaf
        for path, leaf in weights.items()
    }
    assert not turned["head/kernel"].flags["C_CONTIGUOUS"]
    save_toy(tmp_path / "second", spec, weights=turned)
    for path, leaf in load_bundle(tmp_path / "second").weights.items():
        np.testing.assert_array_equal(leaf, weights[path])


def test_a_write_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        save_toy(tmp_path / "student", sizes={"vocab_size": object()})
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load_bundle(folder)


def test_a_missing_folder_is_said_to_be_missing(tmp_path):
    with pytest.raises(BundleError, match="nowhere"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_anywhere_is_refused_and_the_file_named(folder, name):
    """Of a large file a sample of its bytes, the first and the last among them."""
    path = folder / name
    content = path.read_bytes()
    places = np.unique(np.linspace(0, len(content) - 1, 40).astype(int))
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 7)
        path.write_bytes(damaged)
        with pytest.raises(BundleError) as caught:
            load_bundle(folder)
        assert name in str(caught.value), place
    path.write_bytes(content)
    load_bundle(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1, 2]", b"{}"])
def test_a_file_with_other_content_is_refused_and_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=name):
        load_bundle(folder)


def test_files_of_another_student_do_not_mix(folder, tmp_path):
    save_toy(tmp_path / "other", seed=1)
    shutil.copy(tmp_path / "other" / FILES[0], folder / FILES[0])
    with pytest.raises(BundleError, match=r"model\.safetensors is damaged"):
        load_bundle(folder)
    edit_json(tmp_path / "other" / "config.json", max_length=MAX_LENGTH + 1)
    with pytest.raises(BundleError, match=r"config\.json is damaged"):
        load_bundle(tmp_path / "other")


@pytest.mark.parametrize(("version", "cure"), [(99, "update xdistil_jax"), (1, "distil .* again")])
def test_a_bundle_of_another_version_is_refused_and_says_what_to_do(folder, version, cure):
    edit_json(folder / "config.json", format=version)
    with pytest.raises(BundleError, match=rf"config\.json: format {version}.*{cure}"):
        load_bundle(folder)
