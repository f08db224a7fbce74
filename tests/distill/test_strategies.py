"""Plans equal the paper's table of strategies; stages are values that decide the executable."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest

from xdistil_jax.configs import StudentConfig
from xdistil_jax.distill.stages import (
    Program,
    Schedule,
    Stage,
    StopRule,
    Term,
    describe,
    thaws,
    unfreeze,
)
from xdistil_jax.distill.strategies import PUBLISHED, Recipe, Tuning, plan, strategies
from xdistil_jax.experiment import Experiment

GROUPS = ("head", "projection", "bilstm", "embed")
BELOW = GROUPS[1:]
F1, LOSS = "dev_f1", "transfer_loss"

# Section 1.5 of the paper's facts: (stage, losses, trainable, labelled share, watched figure).
REPR = ("repr", ("repr",), BELOW, 0.0, LOSS)
LOGIT = ("logit", ("logit",), GROUPS, 0.0, LOSS)
CE = ("ce", ("ce",), GROUPS, 1.0, F1)
JOINT = ("joint", ("ce", "logit"), GROUPS, 0.5, F1)


def gradual(row):
    """Table 4: Linear -> Projection -> BiLSTM -> Word Emb."""
    name, losses, _, labelled, watched = row
    steps = [
        ("head", ("head",)),
        ("projection", ("head", "projection")),
        ("bilstm", ("head", "projection", "bilstm")),
        ("embed", ("head", "projection", "bilstm", "embed")),
    ]
    return [(f"{name}/{top}", losses, trained, labelled, watched) for top, trained in steps]


TABLE_3 = {
    "D0": [CE],
    "D0-S": [CE],
    "D1": [JOINT],
    "D2": [("joint", ("ce", "logit", "repr"), GROUPS, 0.5, F1)],
    "D3.1": [REPR, JOINT],
    "D3.2": [REPR, *gradual(JOINT)],
    "D4.1": [REPR, LOGIT, CE],
    "D4.2": [REPR, *gradual(LOGIT), *gradual(CE)],
}


def row(stage):
    losses = tuple(term.loss for term in stage.terms)
    return stage.name, losses, stage.trainable, stage.labelled_fraction, stage.watched


@pytest.mark.parametrize("name", TABLE_3)
def test_plans_equal_the_papers_table(name):
    assert [row(stage) for stage in plan(name, GROUPS)] == TABLE_3[name]
    assert plan(name.lower(), GROUPS) == plan(name, GROUPS) == strategies(GROUPS)[name]


def test_our_own_strategies_leave_out_representations():
    kl = ("kl", ("logit_kl",), GROUPS, 0.0, LOSS)
    assert [row(stage) for stage in plan("logit-ce", GROUPS)] == [LOGIT, CE]
    assert [row(stage) for stage in plan("logit-kl-ce", GROUPS)] == [LOGIT, kl, CE]


def test_repr_logit_has_both_at_once():
    tuning = Tuning(beta=2.0, gamma=3.0, repr_loss="repr_cosine", logit_loss="logit_log_odds")
    both, ce = plan("repr-logit", GROUPS, tuning)
    assert row(both) == ("repr+logit", ("repr_cosine", "logit_log_odds"), GROUPS, 0.0, LOSS)
    assert [term.weight for term in both.terms] == [2.0, 3.0]
    assert row(ce) == CE


def test_repr_logit_can_have_the_steps_of_d42():
    def epochs(name, **recipes):
        stages = plan(name, GROUPS, Tuning(repr=of(2.0), partial=0.5, **recipes))
        taught = sum(s.stop.epochs for s in stages if s.labelled_fraction == 0)
        return taught, sum(s.stop.epochs for s in stages if s.labelled_fraction == 1)

    def of(epochs):
        return Recipe(Schedule(), StopRule(epochs=epochs))

    # As its line in the table says.
    more = 1 + 3 * 0.5
    its = epochs("repr-logit", logit=of(2.0 + 4.0 * more), ce=of(6.0 * more))
    assert epochs("D4.2", logit=of(4.0), ce=of(6.0)) == its == (12.0, 15.0)


def test_d42_has_nine_stages_and_nine_programs():
    stages = plan("D4.2", GROUPS)
    assert len(stages) == len({stage.program for stage in stages}) == 9
    assert not any(stage.carry for stage in stages)


def test_weights_and_recipes_reach_their_stages():
    tuning = Tuning(
        repr=Recipe(Schedule(peak=1.0)),
        logit=Recipe(Schedule(peak=2.0), StopRule(epochs=8)),
        kl=Recipe(Schedule(peak=5.0)),
        ce=Recipe(Schedule(peak=3.0)),
        joint=Recipe(Schedule(peak=4.0)),
        partial=0.5,
        alpha=10.0,
        beta=20.0,
        gamma=30.0,
        repr_loss="repr_kl",
        logit_loss="logit_all",
        labelled_fraction=0.125,
        carry=True,
    )
    assert [s.schedule.peak for s in plan("D4.1", GROUPS, tuning)] == [1.0, 2.0, 3.0]
    assert [s.schedule.peak for s in plan("logit-kl-ce", GROUPS, tuning)] == [2.0, 5.0, 3.0]
    [joint] = plan("D2", GROUPS, tuning)
    assert joint.terms == (Term("ce", 10.0), Term("logit_all", 30.0), Term("repr_kl", 20.0))
    assert (joint.schedule.peak, joint.labelled_fraction, joint.carry) == (4.0, 0.125, True)
    epochs = [s.stop.epochs for s in plan("D4.2", GROUPS, tuning) if s.name.startswith("logit")]
    assert epochs == [4.0, 4.0, 4.0, 8.0]


def test_unfreeze_gives_one_stage_for_each_growing_prefix():
    whole = Stage("x", (Term("logit"),), ("anything",), 0.25, carry=True)
    for count in range(1, len(GROUPS) + 1):
        steps = unfreeze(whole, GROUPS[:count], partial=0.5)
        assert [s.trainable for s in steps] == [GROUPS[: n + 1] for n in range(count)]
        assert [s.name for s in steps] == [f"x/{group}" for group in GROUPS[:count]]
        assert [s.stop.epochs for s in steps] == [5.0] * (count - 1) + [10.0]
        for step in steps:
            # Nothing else changes.
            assert replace(step, name="x", trainable=("anything",), stop=whole.stop) == whole
            assert replace(step.stop, epochs=10.0) == whole.stop


# --- orders of unfreezing --------------------------------------------------------------------

# A transformer student of two layers; one whose width is its teacher's, so without a projection.
TRANSFORMER = ("head", "projection", "layer_2", "layer_1", "embed")
NARROW = ("head", "layer_2", "layer_1", "embed")
ORDERS = {
    "top_down": {
        GROUPS: ["head", "projection", "bilstm", "embed"],
        TRANSFORMER: ["head", "projection", "layer_2", "layer_1", "embed"],
        NARROW: ["head", "layer_2", "layer_1", "embed"],
        BELOW: ["projection", "bilstm", "embed"],
        ("head",): ["head"],
    },
    "bottom_up": {
        GROUPS: ["head", "embed", "bilstm", "projection"],
        TRANSFORMER: ["head", "embed", "layer_1", "layer_2", "projection"],
        NARROW: ["head", "embed", "layer_1", "layer_2"],
        BELOW: ["projection", "embed", "bilstm"],
        ("head",): ["head"],
    },
    "coarse": {
        GROUPS: ["head", "projection", "bilstm embed"],
        TRANSFORMER: ["head", "projection", "layer_2 layer_1 embed"],
        NARROW: ["head", "layer_2 layer_1 embed"],
        BELOW: ["projection", "bilstm embed"],
        ("head",): ["head"],
    },
    "at_once": {groups: [" ".join(groups)] for groups in (GROUPS, TRANSFORMER, ("head",))},
}


@pytest.mark.parametrize(
    ("order", "groups"), [(order, groups) for order, table in ORDERS.items() for groups in table]
)
def test_unfreezing_in_any_order_and_of_any_groups(order, groups):
    steps = [tuple(step.split()) for step in ORDERS[order][groups]]
    assert thaws(groups, order) == tuple(steps)
    whole = Stage("x", (Term("logit"),), ("anything",), 0.25, carry=True, fresh=("head/bias",))
    stages = unfreeze(whole, groups, partial=0.5, order=order)
    thawed = [{group for step in steps[: n + 1] for group in step} for n in range(len(steps))]
    assert [set(stage.trainable) for stage in stages] == thawed
    # From the top down whatever the order, so that the same groups are the same program.
    assert all(s.trainable == tuple(g for g in groups if g in s.trainable) for s in stages)
    assert stages[-1].trainable == groups
    assert [s.stop.epochs for s in stages] == [5.0] * (len(steps) - 1) + [10.0]
    assert [s.fresh for s in stages] == [("head/bias",)] + [()] * (len(steps) - 1)
    assert len({s.name for s in stages}) == len(stages)
    for stage in stages:
        kept = {"name": "x", "trainable": ("anything",), "stop": whole.stop}
        assert replace(stage, **kept, fresh=whole.fresh) == whole


def test_d42_bottom_up():
    rows = [row(stage)[:3] for stage in plan("D4.2", GROUPS, Tuning(unfreezing="bottom_up"))]
    expected = [REPR[:3]]
    for name in ("logit", "ce"):
        expected += [
            (f"{name}/head", (name,), ("head",)),
            (f"{name}/embed", (name,), ("head", "embed")),
            (f"{name}/bilstm", (name,), ("head", "bilstm", "embed")),
            (f"{name}/projection", (name,), GROUPS),
        ]
    assert rows == expected


@pytest.mark.parametrize(
    ("student", "steps"),
    [
        # Section 3.4 of the paper's facts: seven stages.
        (StudentConfig(), ("head", "projection", "bilstm..embed")),
        # The head of our transformers doesn't read the projection, so for logits it is no step.
        (StudentConfig(kind="transformer", layers=2), ("head", "layer_2..embed")),
    ],
)
def test_d42_coarse_is_head_projection_and_all_else(student, steps):
    experiment = Experiment(strategy="D4.2", student=student, tuning=Tuning(unfreezing="coarse"))
    read = tuple(group for group in student.groups if group not in student.states_only)
    expected = [("repr", ("repr",), student.groups[1:])]
    for name in ("logit", "ce"):
        expected += [(f"{name}/{step}", (name,), read[:n]) for n, step in enumerate(steps[:-1], 1)]
        expected.append((f"{name}/{steps[-1]}", (name,), read))
    assert [row(stage)[:3] for stage in experiment.plan()] == expected


@pytest.mark.parametrize("groups", [GROUPS, TRANSFORMER])
@pytest.mark.parametrize("name", strategies(("head", "body")))
def test_what_no_loss_of_a_stage_reads_is_no_step_of_it(name, groups):
    """Where states alone pass through the projection, logits and labels have nothing to train."""
    read = tuple(group for group in groups if group != "projection")
    for order in ORDERS:
        tuning = Tuning(unfreezing=order, unfreeze_repr=True, fresh_head=True, attention=0.5)
        found = plan(name, groups, tuning, ("projection",))
        whole, without = plan(name, groups, tuning), plan(name, read, tuning)
        of_states = [any(t.loss == "repr" for t in stage.terms) for stage in whole]
        expected = [stage for stage, states in zip(whole, of_states, strict=True) if states]
        # The stages of states as they were, the others as those of a student without a projection.
        assert [s for s in found if any(t.loss == "repr" for t in s.terms)] == expected
        assert [s for s in found if s not in expected] == [
            s for s in without if all(t.loss != "repr" for t in s.terms)
        ]


def test_d42_of_a_transformer_that_projects():
    names = [stage.name for stage in plan("D4.2", TRANSFORMER, states_only=("projection",))]
    steps = ("head", "layer_2", "layer_1", "embed")
    assert names == ["repr", *(f"{loss}/{step}" for loss in ("logit", "ce") for step in steps)]
    coarse = plan("D3.2", TRANSFORMER, Tuning(unfreezing="coarse"), ("projection",))
    assert [stage.name for stage in coarse] == ["repr", "joint/head", "joint/layer_2..embed"]
    [joint] = plan("D2", TRANSFORMER, states_only=("projection",))
    assert joint.trainable == TRANSFORMER


def test_at_once_is_no_gradual_unfreezing():
    tuning = Tuning(unfreezing="at_once", unfreeze_repr=True)
    assert plan("D4.2", GROUPS, tuning) == plan("D4.1", GROUPS, tuning) == plan("D4.1", GROUPS)
    assert plan("D3.2", GROUPS, tuning) == plan("D3.1", GROUPS)


def test_algorithm_1_as_printed_unfreezes_in_the_first_stage_too():
    tuning = Tuning(unfreeze_repr=True)
    first = [
        ("repr/projection", ("repr",), ("projection",), 0.0, LOSS),
        ("repr/bilstm", ("repr",), ("projection", "bilstm"), 0.0, LOSS),
        ("repr/embed", ("repr",), ("projection", "bilstm", "embed"), 0.0, LOSS),
    ]
    found = {name: [row(stage) for stage in plan(name, GROUPS, tuning)] for name in TABLE_3}
    assert found["D4.2"] == [*first, *gradual(LOGIT), *gradual(CE)]
    assert found["D3.2"] == [*first, *gradual(JOINT)]
    for name in TABLE_3.keys() - {"D4.2", "D3.2"}:
        assert found[name] == TABLE_3[name], "nothing is unfrozen gradually there"


def test_a_fresh_head_is_drawn_once_before_the_last_stage():
    tuning = Tuning(fresh_head=True)
    found = {
        name: {stage.name: stage.fresh for stage in stages if stage.fresh}
        for name, stages in strategies(GROUPS, tuning).items()
    }
    whole = {"ce": ("head",)}
    assert found == {
        # No head has learned logits before the last stage.
        **{name: {} for name in ("D0", "D0-S", "D1", "D2", "D3.1", "D3.2")},
        **dict.fromkeys(("D4.1", "logit-ce", "logit-kl-ce", "repr-logit"), whole),
        "D4.2": {"ce/head": ("head",)},
    }
    for name, stages in strategies(GROUPS, tuning).items():
        assert tuple(replace(s, fresh=()) for s in stages) == plan(name, GROUPS)


@pytest.mark.parametrize(
    ("typed", "meant"), [("d42", "d4.2"), ("D0-", "d0-s"), ("logitce", "logit-ce")]
)
def test_an_unknown_strategy_names_the_nearest(typed, meant):
    with pytest.raises(ValueError, match=f"unknown strategy '{typed}': did you mean .*{meant}"):
        plan(typed, GROUPS)


def test_nothing_is_near_to_nonsense():
    with pytest.raises(ValueError, match=r"There are D0, D0-S, D1, D2, D3.1, D3.2, D4.1, D4.2"):
        plan("????", GROUPS)


@pytest.mark.parametrize("module", ["stages", "strategies", "stopping"])
def test_stages_import_no_jax(module):
    code = (
        f"import sys, xdistil_jax.distill.{module}; print([m for m in sys.modules if 'jax' == m])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# --- what decides the executable -------------------------------------------------------------

STAGE = Stage("s", (Term("ce", 1.0), Term("logit", 2.0)), ("head",), 0.5)


def test_equal_stages_give_equal_hashable_programs():
    again = Stage("s", (Term("ce", 1.0), Term("logit", 2.0)), ("head",), 0.5)
    assert again == STAGE
    assert hash(again) == hash(STAGE)
    assert again.program == STAGE.program == Program(("ce", "logit"), ("head",), "cosine")
    assert hash(again.program) == hash(STAGE.program)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "t"},
        {"terms": (Term("ce", 5.0), Term("logit", 0.1))},
        {"labelled_fraction": 0.25},
        {"schedule": Schedule(peak=1.0, warmup=0.5, floor=0.1, weight_decay=0.1, clip=7.0)},
        {"stop": StopRule(epochs=1, evaluations=9, patience=1, watch="transfer_loss")},
        {"carry": True},
        {"fresh": ("head",)},
        {"schedule": Schedule(every="epoch", period=3.0, period_mult=1.0, peak_mult=0.5)},
    ],
)
def test_numbers_do_not_change_the_program(change):
    assert replace(STAGE, **change) != STAGE
    assert replace(STAGE, **change).program == STAGE.program


@pytest.mark.parametrize(
    "change",
    [
        {"terms": (Term("ce"),)},
        {"terms": (Term("logit", 2.0), Term("ce", 1.0))},
        {"trainable": ("head", "embed")},
        {"schedule": Schedule(decay="linear")},
        {"schedule": Schedule(decay="restarts")},
    ],
)
def test_what_is_static_changes_the_program(change):
    assert replace(STAGE, **change).program != STAGE.program


def test_the_watched_figure():
    assert STAGE.watched == F1
    assert replace(STAGE, terms=(Term("repr"), Term("logit"))).watched == LOSS
    assert replace(STAGE, stop=StopRule(watch=LOSS)).watched == LOSS


def test_stages_that_make_no_sense_are_refused():
    for change in ({"terms": ()}, {"trainable": ()}):
        with pytest.raises(ValueError, match="'s' needs at least one"):
            replace(STAGE, **change)
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"labelled_fraction is {share}, expected a share"):
            replace(STAGE, labelled_fraction=share)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("epochs", (0.0, -1.0, math.nan, math.inf)),
        ("evaluations", (0.0, -1.0, math.nan, math.inf)),
        ("patience", (0, -1)),
        ("min_steps", (-1,)),
    ],
)
def test_rules_that_would_train_nothing_or_never_end_are_refused(name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"stop\.{name} is {value}: expected .* or "):
            StopRule(**{name: value})
    assert StopRule(0.01, 0.001, 10**6, 0).min_steps == 0


@pytest.mark.parametrize("partial", [0.0, -0.5])
def test_gradual_unfreezing_without_epochs_is_refused(partial):
    with pytest.raises(ValueError, match=rf"tuning\.partial is {partial:g}: expected a share"):
        plan("D4.2", GROUPS, Tuning(partial=partial))


def test_the_printed_table_has_a_line_for_each_stage():
    lines = describe(plan("D4.2", GROUPS)).splitlines()
    assert len(lines) == 10
    for number, (line, stage) in enumerate(
        zip(lines[1:], plan("D4.2", GROUPS), strict=True), start=1
    ):
        assert line.split()[:2] == [str(number), stage.name]
        assert ", ".join(stage.trainable) in line
        assert stage.watched.replace("_", " ") in line
    assert "2·logit" in describe((STAGE,))


def test_the_printed_table_tells_of_fresh_parameters_and_of_schedules():
    stages = plan("D4.2", GROUPS, Tuning(fresh_head=True, logit=Recipe(PUBLISHED["bilstm"])))
    table = describe(stages)
    assert [line.split()[1] for line in table.splitlines() if "fresh: head" in line] == ["ce/head"]
    assert "restarts 0.001 (period 50, ×2) by epoch, 10 epochs" in table
    teacher = replace(STAGE, schedule=PUBLISHED["teacher"])
    assert "exponential 1e-05 by epoch, 10 epochs" in describe((teacher,))
    assert "fresh" not in describe((STAGE,))
    assert "by epoch" not in describe((STAGE,))
