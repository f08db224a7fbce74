"""What stays on the chips is gathered from where it lies: compiled for a TPU that isn't there."""

import json
import os
import subprocess
import sys

from tests.tpu.test_aot import NEEDS_LIBTPU, ROOT

PROGRAM = """
    import json, re
    import jax, jax.numpy as jnp
    from jax.experimental import topologies
    from xdistil_jax.distill.resident import Layout, Shard, _gather_call
    from xdistil_jax.sharding import batch_sharding, make_mesh

    mesh = make_mesh(list(topologies.get_topology_desc("v5e:2x4", "tpu").devices))
    D, N, R, K, B = 8, 20_000, 1_000, 4, 128

    def over(shape, dtype, leading=0):
        sharding = batch_sharding(mesh, leading=leading)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    said = [over((D * N * 770,), jnp.int8), over((D * N * 11,), jnp.float16)]
    dtypes = {"tokens": jnp.int32, "first": bool, "labels": jnp.int8}
    text = {name: over((D * N,), dtype) for name, dtype in dtypes.items()}
    rows = over((D * R,), jnp.int32)
    held = (Shard((text, said), [], rows, rows),) * 2
    structure = jax.tree.structure({"hidden": {"layer_7": 0}, "logits": 0})
    layout = Layout(structure, (True, True), ((770,), (11,)), False)
    places = over((K, B), jnp.int32, 1)
    gather = _gather_call(mesh, layout, 64)
    compiled = gather.lower(held, places, places, over((B,), bool)).compile()
    memory = compiled.memory_analysis()
    print(json.dumps({
        "held": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(held)) // D,
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "exchanged": re.findall(r"all-[a-z]+|collective-permute", compiled.as_text()),
    }))
"""


@NEEDS_LIBTPU
def test_a_chip_neither_pads_nor_copies_what_it_holds():
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    plain |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    code = "\n".join(line[4:] for line in PROGRAM.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=plain
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["held"] > 30e6
    assert found["arguments"] < 1.02 * found["held"]
    assert found["temporary"] < 0.1 * found["held"]
    assert found["exchanged"] == []
