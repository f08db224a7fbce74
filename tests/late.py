"""As a program: one of several processes comes late to the first collective of a run.

python -m tests.late SECONDS
"""

import sys
import time

import jax

from xdistil_jax import Experiment, Session, hosts
from xdistil_jax.sharding import anywhere
from xdistil_jax.terminal import end

if __name__ == "__main__":
    hosts.connect()
    session = Session.start(Experiment())
    if not hosts.is_primary():
        time.sleep(float(sys.argv[1]))
    try:
        assert int(anywhere(True, session.mesh)) == len(jax.devices())
    except Exception as error:
        end(str(error))
    hosts.barrier()
