"""Programs compiled for a TPU that isn't there, and what their text says of their cost."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.distill.toys import STORE
from tests.teacher.toys import SETTINGS, SPEC, build_toy, make_store, random_rows
from xdistil_jax import Experiment, StudentConfig, TeacherConfig
from xdistil_jax.distill.feed import collate
from xdistil_jax.distill.strategies import Tuning
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.functional import abstract_params, build
from xdistil_jax.models.transformer import TransformerSpec
from xdistil_jax.sharding import make_mesh
from xdistil_jax.targets import target_width
from xdistil_jax.teacher.attention import AttentiveTeacher
from xdistil_jax.teacher.source import OnlineTeacher

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tpu"))

import plans  # noqa: E402
import programs  # noqa: E402
from costs import Collective, read_cost  # noqa: E402

NEEDS_LIBTPU = pytest.mark.skipif(
    find_spec("libtpu") is None, reason="libtpu is not installed: it is for Linux on x86-64"
)
TINY = TeacherConfig(width=16, layers=3, heads=2, feed_forward=32, vocab_size=64, max_length=16)
EXPERIMENT = Experiment(
    strategy="D4.1", teacher=TINY, student=StudentConfig(embed=8, hidden=8, dropout=0.0)
)


def small(devices=8, **options):
    return plans.make_plan(
        EXPERIMENT, jax.devices()[:devices], tokens_per_chip=256, classes=3, words=50, **options
    )


def costs(planned, *names):
    return {
        program.name: read_cost(program.lower().compile().as_text())
        for program in programs.programs(planned)
        if program.name in names
    }


# --- reading the text ------------------------------------------------------------------------


def products(x, weights):
    """Five products in a scan, one of them in a scan of three."""

    def outer(x, w):
        x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=3)
        return x, None

    return jax.lax.scan(outer, x, weights)[0].sum()


def test_flops_of_loops_are_multiplied_by_their_trips():
    x, weights = jnp.ones((8, 16)), jnp.ones((5, 16, 16))
    forward = read_cost(jax.jit(products).lower(x, weights).compile().as_text())
    assert forward.flops == 5 * 3 * 2 * 8 * 16 * 16
    assert forward.collectives == ()
    backward = jax.jit(jax.grad(products, argnums=(0, 1))).lower(x, weights).compile().as_text()
    assert read_cost(backward).flops == 3 * forward.flops


def test_a_loop_without_end_in_sight_counts_once():
    def steps(count, x, w):
        return jax.lax.fori_loop(0, count, lambda _, x: jnp.tanh(x @ w), x)

    text = jax.jit(steps).lower(jnp.int32(3), jnp.ones((8, 16)), jnp.ones((16, 16))).compile()
    assert read_cost(text.as_text()).flops == 2 * 8 * 16 * 16


def test_collectives_of_loops_are_multiplied_by_their_trips():
    mesh = make_mesh()

    def body(total, x):
        return jax.lax.psum(total + x, "data"), None

    def summed(xs):
        return jax.lax.scan(body, jnp.zeros(6), xs)[0]

    split = jax.shard_map(summed, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec())
    xs = jax.ShapeDtypeStruct((4, 6), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    cost = read_cost(jax.jit(split).lower(xs).compile().as_text())
    assert cost.collectives == (Collective("all-reduce", 24, 4),)


def test_memory_traffic_of_a_scan_is_that_of_its_slices():
    x, weights = jnp.ones((8, 64)), jnp.ones((50, 64, 64))
    compiled = jax.jit(lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0])
    cost = read_cost(compiled.lower(x, weights).compile().as_text())
    # Each is read once or, where it is copied out of the stack, thrice; never all 50 at once.
    assert weights.nbytes <= cost.bytes <= 4 * weights.nbytes


# --- the programs of a run -------------------------------------------------------------------


def test_batches_are_those_of_a_run():
    planned = small()
    model = programs.Model(planned.student, "any lookup", "float32", planned.mesh)
    feed = programs._feed(planned, model, 16, 12)
    steps = EXPERIMENT.run.steps_per_call
    rows = np.full((steps, 16), -1)
    real = collate(STORE, rows, 12, np.ones(16, bool))
    for mine, its in zip(jax.tree.leaves(feed.batch), jax.tree.leaves(real), strict=True):
        assert (mine.shape, mine.dtype) == (its.shape, its.dtype)


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def like(teacher=None, student=None, **changes):
    """The small plan of a changed experiment; its teacher is the toys', whose cache is real."""
    changed = replace(
        EXPERIMENT, teacher=replace(TINY, layers=SPEC.layers, **(teacher or {})),
        student=replace(EXPERIMENT.student, **(student or {})), **changes,
    )  # fmt: skip
    options = {"tokens_per_chip": 256, "classes": SPEC.classes, "words": 50}
    return plans.make_plan(changed, jax.devices()[:1], **options)


@pytest.mark.parametrize(
    ("codec", "imitate"),
    [("bf16", "states"), ("int8", "states"), ("pca-4", "states"), ("pca-4", "coordinates")],
)
def test_a_stage_reads_the_cache_as_that_of_a_run(tmp_path, codec, imitate):
    planned = like({"codec": codec}, {"imitate": imitate})
    cache = build_toy(
        tmp_path, make_store(random_rows(20)),
        settings=replace(SETTINGS, layers=planned.layers, codec=codec),
    )  # fmt: skip
    cache = replace(cache, coordinates=imitate == "coordinates")
    assert planned.student.teacher_width == target_width(cache)
    program = next(p for p in programs.programs(planned) if p.name == "repr")
    _, arrays, feed, _ = program.lower.args
    streamed = cache.stream(np.full(feed.batch.rows.shape, -1), program.width)
    assert shapes((arrays, feed.streamed)) == shapes((cache.arrays, streamed))
    assert programs._lookup(planned) == cache.lookup
    program.lower()


def test_the_programs_are_those_of_the_plan():
    planned = small()
    names = [program.name for program in programs.programs(planned)]
    stages = [stage.name for stage in EXPERIMENT.plan()]
    assert names == ["fine-tuning", "evaluation, teacher", "cache pass", *stages, "evaluation"]
    labels = plans.make_plan(replace(EXPERIMENT, strategy="D0-S"), jax.devices())
    assert "cache pass" not in [program.name for program in programs.programs(labels)]
    every = programs.programs(replace(planned, all_buckets=True))
    widths = [p.width for p in every if p.name == "evaluation"]
    assert len(widths) == EXPERIMENT.run.buckets
    assert widths[-1] == 16


@pytest.mark.parametrize("student", ["", pytest.param("l6-h384", marks=pytest.mark.slow)])
def test_a_student_step_sums_gradients_and_nothing_else(student):
    planned = small(student=student)
    found = costs(planned, "cache pass", "logit")
    assert found["cache pass"].collectives == ()
    assert {each.kind for each in found["logit"].collectives} == {"all-reduce"}
    alone = costs(small(1, student=student), "cache pass", "logit")
    for name, cost in found.items():
        assert cost.flops == alone[name].flops > 0, name
        assert alone[name].collectives == ()


def test_an_evaluation_gathers_logits_and_nothing_before_them():
    planned = small()
    [cost] = costs(planned, "evaluation").values()
    pieces = 8 * 256
    # Logits and, to put them in their places, the numbers of their words.
    assert sorted(each.bytes for each in cost.collectives) == [pieces * 4, pieces * 4 * 3]
    assert {(each.kind, each.times) for each in cost.collectives} == {("all-gather", 1)}


def test_a_split_teacher_moves_weights_and_not_states():
    planned = small(tensor_parallel=2)
    assert planned.teacher_mesh.shape == {"data": 4, "model": 2}
    assert planned.mesh.shape == {"data": 8, "model": 1}
    [cost] = costs(planned, "cache pass").values()
    sums = [each for each in cost.collectives if each.kind == "all-reduce"]
    # Tensor parallelism: behind the attention and behind the feed-forward block, own rows only.
    assert sum(each.times for each in sums) == 2 * TINY.layers
    assert {each.bytes for each in sums} == {256 * TINY.width * 4}
    gathered = sum(e.bytes * e.times for e in cost.collectives if e.kind == "all-gather")
    weights = sum(leaf.size * 4 for leaf in jax.tree.leaves(abstract_params(planned.teacher)))
    assert gathered < 1.1 * weights


def test_a_teacher_whose_sizes_are_unknown_is_named():
    with pytest.raises(ValueError, match=r"'nowhere/at-all' is no folder with a config\.json"):
        plans.teacher_spec(TeacherConfig(checkpoint="nowhere/at-all"), "", 7)
    spec = plans.teacher_spec(TeacherConfig(checkpoint="xlm-roberta-large"), "", 9)
    assert (spec.width, spec.layers, spec.classes) == (1024, 24, 9)
    folder = ROOT / "tests/models/references/xlm-roberta"
    spec = plans.teacher_spec(TeacherConfig(checkpoint=str(folder), keep_layers=1), "", 3)
    assert (spec.layers, spec.stacked, spec.family) == (1, True, "xlm-roberta")


def test_a_transformer_student_by_name():
    student = small(student="l6-h384").student
    assert isinstance(student, TransformerSpec)
    own = student.encoder
    assert (own.layers, own.width, own.heads, own.feed_forward) == (6, 384, 12, 1536)
    assert (student.teacher_width, student.imitates) == (16, ("layer_3",))
    assert isinstance(small().teacher, EncoderSpec)


def test_a_stage_that_reads_attention_runs_the_teacher(tmp_path):
    student = StudentConfig(kind="transformer", layers=2, width=8, heads=2, dropout=0.0)
    plain = replace(EXPERIMENT, student=student)
    attentive = replace(plain, tuning=Tuning(attention=1.0))
    options = {"tokens_per_chip": 256, "classes": 3, "words": 50}
    before, planned = (
        plans.make_plan(each, jax.devices()[:2], **options) for each in (plain, attentive)
    )
    assert planned.student.attends == ("layer_3", "layer_2")
    assert [stage.name for stage in planned.stages] == ["repr", "logit", "ce"]
    # What the run would pass, but for the parameters' values.
    model = next(p for p in programs.programs(planned) if p.name == "repr").lower.args[1]
    teacher = OnlineTeacher(
        replace(planned.teacher, outputs=(), attention=planned.student.attends),
        build(planned.teacher).init(jax.random.key(0)), np.zeros(64, np.int32), (),
    )  # fmt: skip
    real = AttentiveTeacher(build_toy(tmp_path, make_store(random_rows(4))), teacher).arrays
    for mine, its in zip(jax.tree.leaves(model), jax.tree.leaves(real), strict=True):
        assert (mine.shape, mine.dtype) == (its.shape, its.dtype)
    assert jax.tree.structure(model) == jax.tree.structure(real)
    first, other = costs(before, "repr", "logit"), costs(planned, "repr", "logit")
    # The compiler drops the teacher's pass where no loss reads its attention.
    assert other["logit"].flops == first["logit"].flops
    D, F, rows = TINY.width, TINY.feed_forward, 256
    least = rows * 2 * 2 * (4 * D * D + 2 * D * F)
    assert other["repr"].flops - first["repr"].flops > least


def test_attention_that_a_teacher_does_not_tell_is_refused():
    attentive = replace(EXPERIMENT, tuning=Tuning(attention=1.0))
    with pytest.raises(ValueError, match="stage 'repr' needs attention, and a bilstm has none"):
        plans.make_plan(attentive, jax.devices())
    with pytest.raises(ValueError, match="one that is split over devices doesn't tell it"):
        plans.make_plan(attentive, jax.devices(), student="l6-h384", tensor_parallel=2)


def test_the_stages_are_those_of_the_student_by_name():
    planned = plans.make_plan(
        replace(EXPERIMENT, strategy="D4.2"), jax.devices(), student="l6-h256"
    )
    names = [stage.name for stage in planned.stages]
    assert names[:3] == ["repr", "logit/head", "logit/layer_6"]


# --- with the TPU's compiler -----------------------------------------------------------------

FILE = """
from xdistil_jax import Experiment, RunConfig, StudentConfig, TeacherConfig

experiment = Experiment(
    strategy="D4.1",
    teacher=TeacherConfig(width=128, layers=2, heads=2, feed_forward=256, vocab_size=512),
    student=StudentConfig(embed=16, hidden=32),
)
"""


def aot(tmp_path, *arguments):
    (tmp_path / "tiny.py").write_text(FILE)
    command = [sys.executable, str(ROOT / "tpu" / "aot.py"), str(tmp_path / "tiny.py"), *arguments]
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    plain["PYTHONPATH"] = str(ROOT)
    return subprocess.run(command, capture_output=True, text=True, check=False, env=plain)


def table(text):
    """program -> its cells by column."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}


@NEEDS_LIBTPU
def test_a_small_run_compiles_for_a_tpu(tmp_path):
    only = ["cache pass", "logit", "evaluation"]
    done = aot(tmp_path, "--topology", "v5e:2x2", "--tokens-per-chip", "1024", "--only", *only)
    assert done.returncode == 0, done.stderr
    found = table(done.stdout)
    assert list(found) == only
    assert found["cache pass"]["collectives"] == "none"
    # 1,024 tokens, two layers: products of the layers, of the scores, and of the head.
    D, F, T = 128, 256, 128
    flops = 1024 * (2 * (2 * (4 * D * D + 2 * D * F) + 4 * T * D) + 2 * D * 7)
    assert float(found["cache pass"]["TFLOP"]) == pytest.approx(flops / 1e12, rel=1e-3)
    assert re.fullmatch(
        r"\d all-reduce [\d.]+ MB, \d all-reduce of scalars \d+ B", found["logit"]["collectives"]
    )


@NEEDS_LIBTPU
def test_what_does_not_fit_ends_with_1(tmp_path):
    wide = ["--words", "1000000000", "--only", "evaluation"]
    done = aot(tmp_path, "--topology", "v5e:2x2", "--tokens-per-chip", "1024", *wide)
    assert done.returncode == 1, done.stderr
    assert "does not fit" in table(done.stdout)["evaluation"]["memory GiB"]
    assert "Not every program fits 16 GiB" in done.stdout


@NEEDS_LIBTPU
def test_a_shape_that_there_is_not_is_named(tmp_path):
    done = aot(tmp_path, "--topology", "v5e:3x7x9")
    assert done.returncode == 1
    assert "--topology v5e:3x7x9:" in done.stderr
