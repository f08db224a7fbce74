"""A report names what the run was made with."""

import json

from xdistil_jax.report.versions import versions


def test_versions_are_json_and_name_the_device():
    found = json.loads(json.dumps(versions()))
    assert found["backend"] == "cpu"
    assert sum(found["devices"].values()) == 8
    assert {"python", "platform", "jax", "numpy"} <= set(found)
