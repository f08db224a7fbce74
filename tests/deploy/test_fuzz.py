"""A bundle may come from anyone: damage ends in a complaint or in answers that hold, never worse.

All cases run in one process with limits of memory and time, so that a crash is seen.
"""

import json
import resource
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.deploy.toys import TOKENIZER, reseal, save_toy

CASES = 500
TEXTS = [
    "",
    "Anna Berg fuhr nach Berlin, dann weiter.",
    "Anna " * 40,
    "東京 نص عربي 👩‍👩‍👧 3.5",
    "\x00a\ud800",
]
# Beside what is there already; a student of this size takes nothing.
MEMORY, SECONDS = 512 << 20, 540


@pytest.fixture
def folder(tmp_path):
    onnx = pytest.importorskip("onnx")
    from xdistil_jax.deploy.bundle import load_bundle
    from xdistil_jax.deploy.onnx import build_graph

    save_toy(tmp_path / "whole")
    onnx.save(build_graph(load_bundle(tmp_path / "whole")), tmp_path / "whole" / "model.onnx")
    reseal(tmp_path / "whole")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_damage_ends_in_a_complaint_or_in_answers(folder, seed):
    done = subprocess.run(
        [sys.executable, "-m", "tests.deploy.test_fuzz", str(folder), str(seed), str(CASES)],
        capture_output=True, text=True, timeout=SECONDS + 60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-4000:])
    counts = json.loads(done.stdout.splitlines()[-1])
    assert sum(counts.values()) == CASES
    # Both ends are met: otherwise the test would try nothing.
    assert counts["refused"] > CASES / 4
    assert counts["answered"] > CASES / 20


def run_cases(folder, seed, cases):
    """Damage, load, tag; what isn't foreseen is raised."""
    from xdistil_jax.deploy.bundle import BundleError
    from xdistil_jax.deploy.tagger import Tagger

    rng = np.random.default_rng(seed)
    counts = {"refused": 0, "answered": 0}
    right = [Tagger.load(folder / "whole")(TEXTS), _in_numpy(folder / "whole")]
    names = sorted(path.name for path in (folder / "whole").iterdir())
    limit = _memory() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for case in range(cases):
        name, sealed = names[case % len(names)], case % 3 > 0
        copy = shutil.copytree(folder / "whole", folder / "copy")
        if name == "model.safetensors":
            (copy / "model.onnx").unlink()
        how = damage(copy / name, rng)
        if sealed and name != "config.json":
            _reseal(copy)
        elif sealed:
            _reseal_config(copy)
        sys.stdout.write(f"{case} {name} sealed again: {sealed} {how}\n")
        sys.stdout.flush()
        try:
            found = Tagger.load(copy)(TEXTS)
        except BundleError:
            counts["refused"] += 1
        else:
            check(found)
            # Whole, or sealed again: of the former the answers are the right ones.
            assert sealed or found in right
            counts["answered"] += 1
        shutil.rmtree(copy)
    sys.stdout.write(json.dumps(counts))


def _in_numpy(whole):
    from xdistil_jax.deploy.bundle import load_bundle
    from xdistil_jax.deploy.tagger import Tagger

    return Tagger(load_bundle(whole))(TEXTS)


def damage(path, rng):
    """A flipped bit, several, a cut, another byte of JSON, or a number in its place."""
    content = bytearray(path.read_bytes())
    kind = ["bit", "bits", "cut", "digit", "swap"][rng.integers(5)]
    if kind == "cut":
        content = content[: rng.integers(len(content))]
    elif kind == "digit" and (places := [i for i, c in enumerate(content) if 48 <= c < 58]):
        place = rng.choice(places)
        new = [b"-1", b"0", b"1", b"99999999999", b"1e9", b"null", b'"a"', b"[]"][rng.integers(8)]
        content[place : place + 1] = new
    elif kind == "swap":
        a, b = sorted(rng.integers(len(content), size=2))
        content[a : a + 8], content[b : b + 8] = content[b : b + 8], content[a : a + 8]
    else:
        for _ in range(1 if kind == "bit" else 12):
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)
    return kind


def check(found):
    assert len(found) == len(TEXTS)
    for text, entities in zip(TEXTS, found, strict=True):
        end = 0
        for entity in entities:
            assert end <= entity.start < entity.end <= len(text)
            assert entity.text == text[entity.start : entity.end]
            assert isinstance(entity.type, str)
            assert 0 <= entity.score <= 1
            end = entity.end


def _reseal(copy):
    with suppress(ValueError, RecursionError):
        reseal(copy)


def _reseal_config(copy):
    """Only its own checksum: that of the others stays as damaged as it is."""
    from xdistil_jax.deploy.bundle import write_config

    with suppress(ValueError, AttributeError, RecursionError, TypeError):
        config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
        config.pop("checksum", None)
        write_config(copy, config)


def _memory():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


SIZES = {"embed": 1 << 40, "hidden": -1, "vocab_size": True, "projection": ["gelu"], "classes": 1}


@pytest.mark.parametrize("field", SIZES)
def test_sizes_are_believed_within_bounds_only(folder, field):
    from xdistil_jax.deploy.bundle import BundleError, load_bundle

    edit(folder, sizes={**config_of(folder)["sizes"], field: SIZES[field]})
    with pytest.raises(BundleError, match=rf"config\.json: .*{field}"):
        load_bundle(folder / "whole")


FIELDS = {
    "max_length": (1 << 40, "max_length: expected an integer from 3 to 65536"),
    "decoding": ("beam", "decoding: expected one of iob2, argmax"),
    "kind": ("../x", "kind: expected one of bilstm, transformer"),
    "temperature": (0, "temperature: expected a number"),
    "sizes": ([], "sizes: expected an object"),
    "checksums": ({"../model.onnx": "0"}, "is no name of a file in this folder"),
}


@pytest.mark.parametrize("field", FIELDS)
def test_fields_are_believed_within_bounds_only(folder, field):
    from xdistil_jax.deploy.bundle import BundleError, load_bundle

    value, said = FIELDS[field]
    edit(folder, **{field: value})
    with pytest.raises(BundleError, match=said):
        load_bundle(folder / "whole")


def config_of(folder):
    return json.loads((folder / "whole" / "config.json").read_text(encoding="utf-8"))


def edit(folder, **changes):
    from xdistil_jax.deploy.bundle import write_config

    config = config_of(folder) | changes
    config.pop("checksum")
    write_config(folder / "whole", config)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([], "expected an object with types"),
        ({"types": ["PER", "PER"]}, "types: expected distinct names"),
        ({"types": [""]}, "types: a list of names"),
        ({"types": [f"T{n}" for n in range(64)]}, "at most 63; found 64"),
        ({"types": ["PER"]}, "classes is 5, but labels.json has 3"),
        ({"classes": []}, "classes: expected distinct names"),
        ({"classes": "ab"}, "classes: a list of names"),
    ],
)
def test_labels_are_believed_within_bounds_only(folder, labels, said):
    from xdistil_jax.deploy.bundle import BundleError, load_bundle

    (folder / "whole" / "labels.json").write_text(json.dumps(labels))
    reseal(folder / "whole")
    with pytest.raises(BundleError, match=said):
        load_bundle(folder / "whole")


def test_a_tokenizer_of_more_pieces_than_rows_is_refused(folder):
    from xdistil_jax.deploy.bundle import BundleError, load_bundle

    edit(folder, sizes={**config_of(folder)["sizes"], "vocab_size": TOKENIZER.vocab_size - 1})
    with pytest.raises(BundleError, match="vocab_size is"):
        load_bundle(folder / "whole")


if __name__ == "__main__":
    run_cases(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
