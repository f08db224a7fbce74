"""A parent of several processes: it says which one failed, and leaves none behind."""

import os
import signal
import sys
import threading
import time

import pytest

from xdistil_jax.launch import launch

NUMBER = "import os, sys, time, signal; number = int(os.environ['JAX_PROCESS_ID']); "


def started(program, processes=3, **options):
    said = []
    code = launch([sys.executable, "-c", NUMBER + program], processes, say=said.append, **options)
    return code, said


def test_each_process_knows_the_others(tmp_path):
    code, said = started(
        f"open({str(tmp_path)!r} + f'/{{number}}', 'w').write("
        "os.environ['JAX_COORDINATOR_ADDRESS'] + ' ' + os.environ['JAX_NUM_PROCESSES'] + ' '"
        " + os.environ['XLA_FLAGS'])",
        devices=2,
    )
    assert (code, said) == (0, [])
    seen = {(tmp_path / str(number)).read_text() for number in range(3)}
    assert len(seen) == 1
    address, count, *flags = seen.pop().split()
    assert address.startswith("localhost:")
    assert count == "3"
    assert flags[-1] == "--xla_force_host_platform_device_count=2"


@pytest.mark.parametrize(
    ("death", "code", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "process 1 of 0 to 2 was killed by SIGKILL"),
        ("sys.exit(3)", 3, "process 1 of 0 to 2 ended with code 3"),
    ],
)
def test_the_one_that_failed_is_named_and_not_those_it_pulled_down(death, code, message):
    found, said = started(
        f"time.sleep(0.3); number == 1 and ({death}); time.sleep(0.01); os.abort()"
        if code == 137
        else f"number == 1 and ({death}); time.sleep(60)"
    )
    assert found == code
    [line] = said
    assert line.startswith(message)
    assert line.endswith("repeat the command to go on")


def test_sigterm_reaches_all_and_after_the_grace_they_are_killed(tmp_path):
    def ask():
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    ignoring = f"""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open({str(tmp_path)!r} + f'/{{os.getpid()}}', 'w').close()
time.sleep(1e6)"""
    code, said = started(ignoring, processes=2, grace_s=1.0)
    assert code == 1
    assert said == ["stopped; what is finished is on disk: repeat the command to go on"]
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)
