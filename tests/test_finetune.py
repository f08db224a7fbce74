"""Fine-tuning a teacher: what is refused of its settings."""

import jax
import pytest

from xdistil_jax import TeacherConfig, finetune


@pytest.mark.parametrize("text", ["PERSON", "PERSON=", "=PER"])
def test_a_renaming_that_is_none_is_shown(text):
    with pytest.raises(ValueError, match=f"teacher.labels: '{text}' is no THEIRS=OURS"):
        finetune._renamed(TeacherConfig(labels=(text,)))


@pytest.mark.parametrize("ways", [3, -1, 16])
def test_a_split_that_the_devices_do_not_allow_is_refused(ways):
    said = f"teacher.tensor_parallel is {ways}: expected 0, or a divisor of .* devices, 8"
    with pytest.raises(ValueError, match=said):
        finetune.split_mesh(jax.devices(), ways)
