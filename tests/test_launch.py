"""A parent of several processes: it says which one failed, and leaves none behind."""

import os
import signal
import sys
import threading
import time

import pytest

from xdistil_jax.launch import _culprit, launch

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
def test_the_one_that_failed_is_named_and_not_those_it_pulled_down(death, code, message, tmp_path):
    pulled_down = """
status = "/proc/" + pid(1) + "/stat"
while os.path.exists(status) and ") Z " not in open(status).read(): time.sleep(0.01)
os.abort()"""
    found, said = started(f"""
def pid(number):
    path = {str(tmp_path)!r} + f"/{{number}}"
    while not os.path.exists(path): time.sleep(0.01)
    return open(path).read()
written = {str(tmp_path)!r} + f"/{{number}}"
open(written + ".new", "w").write(str(os.getpid())); os.rename(written + ".new", written)
if number == 1: {death}
{pulled_down if code == 137 else "time.sleep(60)"}""")
    assert found == code
    [line] = said
    assert line.startswith(message)
    assert line.endswith("repeat the command to go on")


def test_a_death_between_two_looks_is_seen():
    class Child:
        """Asked in turn: alive the first time, if it is the one that dies just then."""

        def __init__(self, *codes):
            self.codes, self.returncode = list(codes), None

        def poll(self):
            self.returncode = self.codes.pop(0) if self.codes else self.returncode
            return self.returncode

    assert _culprit([Child(None, -signal.SIGKILL), Child(-signal.SIGABRT)]) == 0
    assert _culprit([Child(None, -signal.SIGKILL), Child(None)]) is None


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


def test_no_process_is_no_run():
    with pytest.raises(ValueError, match="--processes is 0: expected 1 or more"):
        started("", processes=0)
