"""Emulators of GCS and S3 on loopback; as a program, one of several hosts that share a bucket.

    python -m tests.buckets run|cache URL SCRATCH [PROCESS DEATH]
    python -m tests.buckets pretrain URL SCRATCH TEXT

Each process has a scratch folder of its own, as if it were on another machine. ``PROCESS`` dies,
in a run by SIGKILL after ``DEATH`` calls, in a cache when it touches its files so many times.
"""

import os
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import jax

from tests.distill import across
from tests.teacher.across import TEXT
from tests.teacher.toys import build_toy, kill_at, make_store
from tests.test_pretrain import small
from xdistil_jax import hosts, storage
from xdistil_jax.pretrain import pretrain


@contextmanager
def emulated_gs() -> Iterator[dict[str, str]]:
    """A server with a bucket ``there``; gives what the environment must hold to use it."""
    from gcp_storage_emulator.server import create_server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="there")
    server.start()
    try:
        yield {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
            # Credentials are not looked for on Google's machines, which takes seconds.
            "NO_GCE_CHECK": "true",
        }
    finally:
        server.stop()


@contextmanager
def emulated_s3() -> Iterator[dict[str, str]]:
    """As ``emulated_gs``."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "emulated",
        "AWS_SECRET_ACCESS_KEY": "emulated", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    client = boto3.client(
        "s3", endpoint_url=environment["AWS_ENDPOINT_URL"], region_name="us-east-1",
        aws_access_key_id="emulated", aws_secret_access_key="emulated",
    )  # fmt: skip
    client.create_bucket(Bucket="there")
    try:
        yield environment
    finally:
        server.stop()


EMULATORS = {"gs": emulated_gs, "s3": emulated_s3}
NEEDS = {"gs": ("gcsfs", "gcp_storage_emulator"), "s3": ("s3fs", "moto", "flask", "flask_cors")}


def main(what: str, url: str, scratch: str, *death: str) -> None:
    """The toy run, the toy cache, or a teacher of few steps, in this process."""
    os.environ["XDISTIL_SCRATCH"] = f"{scratch}/{jax.process_index()}"
    if what == "pretrain":
        pretrain(small(death[0], url, epochs=2), say=partial(print, file=sys.stderr))
        return
    folder = storage.start(url, writes=True)
    if what == "run":
        across.run(folder, *map(int, death))
        return
    if death and int(death[0]) == jax.process_index():
        kill_at(int(death[1]), str(folder / "cache"))
    store = make_store(TEXT)
    cache = build_toy(folder / "cache", store, devices=len(jax.devices()), shard_bytes=6_000)
    assert len(cache.rows) == store.rows


if __name__ == "__main__":
    hosts.connect(heartbeat_seconds=10)
    try:
        main(*sys.argv[1:])
    except BaseException:
        # At once: on its usual way out a process waits for the others, and they for it.
        traceback.print_exc()
        os._exit(1)
