"""A tiny random student with a tokenizer of its own, as a bundle and as the JAX model."""

import json
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np

from xdistil_jax import files, trees
from xdistil_jax.data.readers import Sentence
from xdistil_jax.data.tokenizer import train_tokenizer
from xdistil_jax.deploy.bundle import save_bundle, write_config
from xdistil_jax.labels import TagSet
from xdistil_jax.models.bilstm import BiLSTMSpec
from xdistil_jax.models.functional import build
from xdistil_jax.text import words_of

TAGS = TagSet(("LOC", "PER"))
TEXT = words_of("Anna Berg fuhr nach Berlin, dann weiter: نص عربي и Москва 東京 naïve don't 3.5")
TOKENIZER = train_tokenizer([Sentence(TEXT, None, "xx")] * 2, 200)
MAX_LENGTH = 12


def toy_spec(**changes):
    return BiLSTMSpec(
        TOKENIZER.vocab_size, embed=6, hidden=5, teacher_width=7, classes=len(TAGS), **changes
    )


def toy_params(spec, seed=0):
    """Far from zero, so that tags of all kinds come out."""
    params = build(spec).init(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + 1.5 * jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), params
    )


def save_toy(folder, spec=None, seed=0, **changes):
    """Write a bundle; gives the parameters in it."""
    spec = spec or toy_spec()
    params = toy_params(spec, seed)
    options = {
        "kind": "bilstm",
        "sizes": asdict(spec),
        "weights": dict(trees.leaves(params)),
        "tokenizer": TOKENIZER,
        "tagset": TAGS,
        "max_length": MAX_LENGTH,
        "decoding": "iob2",
    }
    save_bundle(folder, **options | changes)
    return params


def edit_json(path, **changes):
    """Change fields of a JSON file; None removes one."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    content = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(content), encoding="utf-8")


def reseal(folder):
    """Make the checksums right again, of all files that lie there."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("checksum", None)
    names = sorted(each.name for each in folder.iterdir() if each.name != "config.json")
    config["checksums"] = {name: files.checksum(folder / name) for name in names}
    write_config(folder, config)
