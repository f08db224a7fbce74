"""One process is its own primary; several are found by their environment."""

import pytest

from xdistil_jax import hosts

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.fixture
def started(monkeypatch):
    """What JAX is asked to join; the environment of several hosts is empty at first."""
    joined = []
    for name in (*NAMES, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("jax.distributed.initialize", lambda **given: joined.append(given))
    return joined


def test_a_process_alone_joins_nothing(started):
    hosts.connect()
    assert started == []


def test_three_variables_say_whom_to_join(started, monkeypatch):
    for name, value in zip(NAMES, ("there:1234", "4", "0"), strict=True):
        monkeypatch.setenv(name, value)
    hosts.connect(heartbeat_seconds=7)
    assert started == [
        {
            "coordinator_address": "there:1234",
            "num_processes": 4,
            "process_id": 0,
            "heartbeat_timeout_seconds": 7,
        }
    ]


@pytest.mark.parametrize("absent", NAMES)
def test_a_variable_that_is_missing_is_named(started, monkeypatch, absent):
    for name in NAMES:
        if name != absent:
            monkeypatch.setenv(name, "1")
    with pytest.raises(ValueError, match=f"not set: {absent}"):
        hosts.connect()


@pytest.mark.parametrize(
    ("environment", "joins"),
    [
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, True),
        # A batch script without srun is one process, however many tasks it has.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
    ],
)
def test_schedulers_are_asked(started, monkeypatch, environment, joins):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    hosts.connect()
    assert started == [{"heartbeat_timeout_seconds": 100}] * joins


def test_one_process_does_and_decides_everything():
    done = []
    hosts.once(lambda: done.append("once"))
    with hosts.primary_first():
        done.append("first")
    assert done == ["once", "first"]
    assert hosts.is_primary()
    assert not hosts.several()
    assert hosts.share([1, 2, 3]) == [1, 2, 3]
    assert hosts.primarys({"a": 1}) == {"a": 1}
