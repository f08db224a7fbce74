"""The student that is compiled ahead of time is that of the run, or the plan says why not."""

import jax
import numpy as np
import pytest

from tests.teacher.toys import SPEC
from tests.tpu.test_aot import TINY, like, shapes
from xdistil_jax.alignment import Target
from xdistil_jax.models.functional import abstract_params
from xdistil_jax.students import start_student, student_spec


def test_a_codec_that_tells_no_width_is_refused_where_it_is_read():
    with pytest.raises(ValueError, match=r"teacher\.codec is pca-0\.9: only the states tell how"):
        like({"codec": "pca-0.9"})
    assert like({"codec": "pca-0.9"}, strategy="D0-S").student.teacher_width == SPEC.width
    with pytest.raises(ValueError, match=r"teacher\.codec is pca-17, but the states are 16 wide"):
        like({"codec": "pca-17"})
    with pytest.raises(ValueError, match=r"student\.imitate is coordinates, .* is int8"):
        like({"codec": "int8"}, {"imitate": "coordinates"})


TRANSFORMER = {"kind": "transformer", "layers": 1, "heads": 2}


@pytest.mark.parametrize("sizes", [{"embed": 8}, {**TRANSFORMER, "width": 16}], ids=["", "deep"])
@pytest.mark.parametrize("embedding", ["svd", "projected", "full", "random"])
def test_the_student_is_as_wide_as_its_start_makes_it(sizes, embedding):
    planned = like(student={**sizes, "embedding": embedding})
    config = planned.experiment.student
    target = Target(SPEC.width, planned.layers)
    spec = student_spec(config, target, TINY.vocab_size, SPEC.classes, TINY.max_length)
    table = np.random.default_rng(0).normal(size=(TINY.vocab_size, SPEC.width)).astype(np.float32)
    table = None if embedding == "random" else table
    found, params = start_student(config, spec, None, None, table, key=jax.random.key(0))
    assert planned.student == found
    assert shapes(abstract_params(planned.student)) == shapes(params)


def test_a_table_that_does_not_fit_the_student_is_refused():
    with pytest.raises(ValueError, match=r"student\.embedding is full, the teacher's table is 16"):
        like(student={**TRANSFORMER, "width": 8, "embedding": "full"})
