"""Checkpoints: round trips, heads matched by name, and damage that is named instead of loaded."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from functools import cache

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.references.make import FOLDER, LABELS, random_batch, run_torch
from xdistil_jax.models.checkpoints import CheckpointError, load_encoder, save_encoder
from xdistil_jax.models.functional import build
from xdistil_jax.models.tensors import fingerprint
from xdistil_jax.trees import leaves

TREE = {
    "head": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.float32([1, 2, 3])},
    "table": np.arange(4).astype(ml_dtypes.bfloat16),
    "steps": np.int32(7),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}


def equal(one, other):
    one, other = dict(leaves(one)), dict(leaves(other))
    return one.keys() == other.keys() and all(
        a.dtype == other[path].dtype and np.array_equal(a, other[path]) for path, a in one.items()
    )


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny checkpoint, to be damaged."""
    return shutil.copytree(FOLDER, tmp_path / "bert")


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {field: value for field, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = {
        new: array
        for name, array in safetensors.numpy.load_file(path).items()
        for new, array in change(name, array).items()
    }
    safetensors.numpy.save_file(tensors, path)


@cache
def tiny():
    return load_encoder(FOLDER, len(LABELS))


@pytest.mark.parametrize("stacked", [True, False])
def test_encoder_survives_the_round_trip(tmp_path, stacked):
    spec, params, labels = load_encoder(FOLDER, len(LABELS), stacked=stacked)
    spec = replace(spec, dropout=0.2, activation="gelu_tanh", norm_epsilon=1e-6, initializer=0.1)
    save_encoder(tmp_path / "new" / "folder", spec, params, labels)
    again = load_encoder(tmp_path / "new" / "folder", len(LABELS), stacked=stacked)
    assert again.spec == spec
    assert again.labels == LABELS
    assert equal(again.params, params)


def test_transformers_loads_what_we_save(tmp_path):
    pytest.importorskip("torch")
    import transformers

    spec, params, _ = tiny()
    labels = tuple(f"B-{number}" for number in range(spec.classes))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf) * 1.5, params)
    save_encoder(tmp_path, spec, params, labels)
    model, report = transformers.BertForTokenClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values())
    assert tuple(model.config.id2label.values()) == labels
    tokens, lengths, types = random_batch(1, (9, 1, 5))
    theirs = run_torch(model.eval(), tokens, lengths, types)["logits"]
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(build(spec).apply)(params, tokens, lengths, types).logits
    real = np.arange(9) < lengths[:, None]
    assert np.abs(ours - theirs)[real].max() < 1e-4


def test_saving_over_an_old_folder_leaves_no_half(tmp_path, monkeypatch):
    spec, params, labels = tiny()
    save_encoder(tmp_path, spec, params, labels)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save_encoder(tmp_path, spec, params, labels)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(CheckpointError, match=r"no file .*config\.json"):
        load_encoder(tmp_path, spec.classes)


def test_labels_must_be_as_many_as_classes(tmp_path):
    spec, params, labels = tiny()
    with pytest.raises(ValueError, match="4 labels for a head of 5 classes"):
        save_encoder(tmp_path, spec, params, labels[:-1])
    with pytest.raises(ValueError, match="4 labels for a head of 5 classes"):
        load_encoder(FOLDER, 5, labels=labels[:-1])


def test_head_is_matched_by_label_names():
    order = (4, 0, 3, 1, 2)
    wanted = tuple(LABELS[column] for column in order)
    _, params, labels = load_encoder(FOLDER, 5, labels=wanted)
    assert labels == wanted
    for name in ("kernel", "bias"):
        own = tiny().params["head"][name]
        assert np.array_equal(params["head"][name], own[..., list(order)])


@pytest.mark.parametrize(
    ("classes", "labels"), [(7, None), (5, ("O", "B-ORG", "I-ORG", "B-PER", "I-PER"))]
)
def test_head_that_does_not_fit_is_drawn_afresh(classes, labels):
    spec, params, found = load_encoder(FOLDER, classes, labels=labels, key=jax.random.key(0))
    assert found is None
    assert spec.classes == classes
    assert params["head"]["kernel"].shape == (32, classes)
    assert 0.01 < params["head"]["kernel"].std() < 0.03
    assert not params["head"]["bias"].any()
    assert equal(params["layers"], tiny().params["layers"])
    with pytest.raises(CheckpointError, match=r"pass key=jax\.random\.key"):
        load_encoder(FOLDER, classes, labels=labels)


def as_base_model(name, array):
    """The first BERT files: no prefix, gamma and beta, pooler, MLM head, a buffer."""
    if name.startswith("classifier."):
        return {f"pooler.dense.{name}": array, f"cls.predictions.{name}": array}
    name = name.removeprefix("bert.")
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    extra = {"embeddings.position_ids": np.arange(16)[None]} if "word_emb" in name else {}
    return {old.replace("LayerNorm.bias", "LayerNorm.beta"): array, **extra}


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_base_checkpoints_load_whatever_their_names(folder, prefix):
    change_tensors(folder, as_base_model)
    change_tensors(folder, lambda name, array: {prefix + name: array.astype(np.float64)})
    change_config(folder, architectures=None, id2label=...)
    spec, params, labels = load_encoder(folder, 5, key=jax.random.key(0))
    assert labels is None
    assert spec == tiny().spec
    assert equal({**params, "head": {}}, {**tiny().params, "head": {}})


def test_head_of_another_task_is_not_taken(folder):
    change_config(folder, architectures=["BertForSequenceClassification"])
    assert load_encoder(folder, 5, key=jax.random.key(0)).labels is None


def test_several_shards_are_read_together(folder):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where: dict[str, str] = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        part = {name: tensors[name] for name in names}
        file = f"model-0000{number}-of-00002.safetensors"
        safetensors.numpy.save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    assert equal(load_encoder(folder, 5).params, tiny().params)
    index.write_text(json.dumps({"weight_map": where | {"strange": file}}))
    with pytest.raises(CheckpointError, match=r"1 tensors aren't in the file .* \(strange\)"):
        load_encoder(folder, 5)
    for text in ("{", "[]", '{"weight_map": 3}'):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=r"index\.json is no index of a checkpoint"):
            load_encoder(folder, 5)
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(CheckpointError, match="names files outside its folder"):
        load_encoder(folder, 5)
    index.write_text(json.dumps({"weight_map": where}))
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=rf"{file} of .*index\.json missing: fetch again"):
        load_encoder(folder, 5)


KEY = "encoder.layer.1.attention.self.key.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, a: {} if KEY in n else {n: a}, rf"1 missing \({KEY}\)"),
        (lambda n, a: {n: a, n.replace("key", "extra"): a}, r"6 unexpected \(.*self\.extra"),
        (lambda n, a: {n: a[:, :3] if KEY in n else a}, rf"1 misshapen \({KEY} \(32, 3\) instead"),
        (lambda n, a: {n: a[:4] if "classifier.b" in n else a}, r"misshapen \(classifier\.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, message):
    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(folder, 5)


@pytest.mark.parametrize("size", [0, 5, 3000, 100_000])
def test_truncated_file_is_refused_and_named(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged .*again"):
        load_encoder(folder, 5)


def test_flipped_bit_in_our_own_checkpoint_is_seen(tmp_path):
    save_encoder(tmp_path, *tiny())
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_encoder(tmp_path, 5)


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\).*conv"):
        load_encoder(folder, 5)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        load_encoder(folder, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "model_type 't5' is not supported: there are bert, .*modernbert"),
        ({"model_type": ...}, "model_type None is not supported"),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is not supported, only gelu, "),
        ({"position_embedding_type": "relative_key"}, "only 'absolute' is supported"),
        ({"is_decoder": True}, "is_decoder True: only False is supported"),
        ({"hidden_size": ...}, "field 'hidden_size' is missing"),
        ({"hidden_size": "32"}, "hidden_size is '32': expected a number"),
        ({"num_attention_heads": 5}, r"config\.json: width 32 is no multiple of heads 5"),
    ],
)
def test_unsuited_configs_are_refused(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(folder, 5)


@pytest.mark.parametrize(("text", "message"), [("{,", "no valid JSON"), ("[]", "found list")])
def test_broken_config_is_refused(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"config\.json.*{message}"):
        load_encoder(folder, 5)


def test_absent_folder_and_hub_without_network(tmp_path, monkeypatch):
    asked = []

    def fail(name, **options):
        asked.append((name, options))
        raise OSError("no route to host\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    for path in (tmp_path / "nothing", str(tmp_path / "nothing"), "./nothing"):
        with pytest.raises(CheckpointError, match="there is no folder"):
            load_encoder(path, 5)
    assert not asked
    with pytest.raises(CheckpointError) as caught:
        load_encoder("bert-base-multilingual-cased", 5, revision="v2")
    assert "didn't give it (no route to host): check name and network" in str(caught.value)
    assert "\n" not in str(caught.value)
    patterns = {"revision": "v2", "allow_patterns": ["*.json", "*.safetensors", "*.txt"]}
    assert asked == [("bert-base-multilingual-cased", patterns)]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(FOLDER))
    assert equal(load_encoder("someone/tiny", 5).params, tiny().params)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flip")
    save_encoder(folder, tiny().spec, tiny().params, LABELS)
    return folder


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_flipped_bit_goes_unseen(saved, data):
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    content = bytearray(whole)
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        path.write_bytes(content)
        loaded = load_encoder(saved, len(LABELS)).params
    except CheckpointError:
        return
    finally:
        path.write_bytes(whole)
    assert equal(loaded, tiny().params)


def test_fingerprint_sees_values_names_shapes_and_dtypes_only():
    same = dict(reversed(TREE.items()))
    assert fingerprint(TREE) == fingerprint(same) == fingerprint(jax.tree.map(jnp.asarray, TREE))
    bias = TREE["head"]["bias"]
    others = [
        {**TREE, "head": {**TREE["head"], "bias": changed}}
        for changed in (bias[::-1], bias[None], bias.view(np.int32))
    ]
    others.append({**TREE, "foot": TREE["table"]})
    others.append({name: leaf for name, leaf in TREE.items() if name != "steps"})
    assert len({fingerprint(tree) for tree in (TREE, *others)}) == 6
    small = np.arange(3, dtype=np.int32)
    written = b"a\0int32\0(3,)\0" + small.tobytes()
    assert fingerprint({"a": small}) == hashlib.blake2b(written, digest_size=16).hexdigest()
