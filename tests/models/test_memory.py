"""What loading a large checkpoint costs in memory: its own size, and little beside it."""

import json
import math
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

SHAPE = {
    "architectures": ["XLMRobertaForMaskedLM"], "model_type": "xlm-roberta", "hidden_size": 1024,
    "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "max_position_embeddings": 514, "vocab_size": 250_002, "type_vocab_size": 1,
    "pad_token_id": 1, "layer_norm_eps": 1e-5, "hidden_act": "gelu",
}  # fmt: skip


def write_zeros(folder: Path) -> int:
    """The checkpoint of XLM-R large, all zeros, in a file with holes; gives its size."""
    from xdistil_jax.models import families
    from xdistil_jax.models.functional import abstract_params
    from xdistil_jax.trees import leaves

    spec = families.read_spec(SHAPE, 7)
    header, end = {}, 0
    for path, leaf in leaves(abstract_params(spec)):
        if not path.startswith("head/"):
            shape = leaf.shape[::-1] if path.endswith("/kernel") else leaf.shape
            begin, end = end, end + 4 * math.prod(shape)
            name = "roberta." + families.tensor_name(spec, path)
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps(SHAPE))
    return end


def anonymous_memory() -> int:
    """RssAnon of this process in bytes."""
    [line] = [x for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x]
    return int(line.split()[1]) << 10


def load(folder: Path) -> int:
    """Load it as a teacher is loaded; gives the highest RssAnon on the way."""
    import jax

    from xdistil_jax.models.checkpoints import load_encoder
    from xdistil_jax.sharding import make_mesh, placer

    place = placer(make_mesh())
    highest, over = [0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            highest[0] = max(highest[0], anonymous_memory())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    loaded = load_encoder(folder, 7, key=jax.random.key(0), place=place)
    jax.block_until_ready(loaded.params)
    over.set()
    watcher.join()
    return highest[0]


def measure(folder: Path) -> tuple[int, int]:
    """(size of the checkpoint, highest RssAnon of a fresh process that loads it)."""
    size = write_zeros(folder)
    command = [sys.executable, "-m", "tests.models.test_memory", str(folder)]
    # One device: on the eight of the tests it would lie eight times.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return size, int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
def test_xlm_r_large_takes_little_more_than_its_size(tmp_path):
    size, highest = measure(tmp_path)
    assert 2.2e9 < size < 2.3e9
    assert size < highest < 1.3 * size


if __name__ == "__main__":
    if sys.argv[1:]:
        print(load(Path(sys.argv[1])))  # noqa: T201
    else:
        with tempfile.TemporaryDirectory() as temporary:
            print("%d bytes, at most %d in memory" % measure(Path(temporary)))  # noqa: T201, UP031
