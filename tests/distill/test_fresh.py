"""What a stage draws anew: another head, all else as it was, and the same in every run."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

from tests.distill.toys import (
    GROUPS,
    SPEC,
    STAGES,
    Records,
    equal,
    make_model,
    make_params,
    make_training,
)
from xdistil_jax import trees
from xdistil_jax.distill import loop
from xdistil_jax.distill.loop import run_plan
from xdistil_jax.distill.rates import hparams
from xdistil_jax.distill.stages import Schedule, StopRule, unfreeze
from xdistil_jax.distill.state import stage_state
from xdistil_jax.distill.strategies import Recipe, Tuning, plan
from xdistil_jax.models.functional import build

HEAD = {"head/bias", "head/kernel"}
JOINT, CE = STAGES[1], replace(STAGES[2], carry=False, fresh=("head",), stop=StopRule(1))


def start(stage, *, key=3, carried=None, model=None, params=None):
    params = make_params() if params is None else params
    key, h = jax.random.key(key), hparams(stage, 9)
    return stage_state(model or make_model(), stage, params, key, h, carried)


def leaves(state):
    return dict(trees.leaves(loop.merged(state)))


# --- the draw -------------------------------------------------------------------------------


def test_the_head_is_another_and_all_else_is_bit_identical():
    before, after = dict(trees.leaves(make_params())), leaves(start(CE))
    assert before.keys() == after.keys()
    assert {path for path in before if not equal(before[path], after[path])} == HEAD
    for path in HEAD:
        assert after[path].shape == before[path].shape
        assert after[path].dtype == before[path].dtype
    # As it is drawn at the very start: normal, with a deviation of a third.
    assert 0.2 < np.std(after["head/kernel"]) < 0.5


def test_any_patterns_can_be_drawn_and_what_is_frozen_too():
    stage = replace(CE, trainable=("head",), fresh=("bilstm/bias", "proj*"))
    before, after = dict(trees.leaves(make_params())), leaves(start(stage))
    other = {path for path in before if not equal(before[path], after[path])}
    assert other == {"bilstm/bias", "projection/bias", "projection/kernel"}
    assert equal(leaves(start(replace(CE, fresh=()))), before)


def test_the_draw_depends_on_its_key_alone():
    one = leaves(start(CE))
    spoiled = jax.tree.map(lambda leaf: leaf + 1, make_params())
    assert all(equal(one[path], leaves(start(CE, params=spoiled))[path]) for path in HEAD)
    assert not any(equal(one[path], leaves(start(CE, key=4))[path]) for path in HEAD)
    assert equal(one, leaves(start(CE, model=make_model(8))))


def test_no_step_shares_its_key():
    """Steps fold their number into the state's key, which is the one that was given."""
    state = start(CE)
    assert equal(state.key, jax.random.key(3))
    for key in (state.key, *(jax.random.fold_in(state.key, step) for step in range(3))):
        other = build(SPEC).init(key)["head"]["kernel"]
        # Compiled or not, a draw is the same but for rounding.
        assert not np.allclose(leaves(state)["head/kernel"], other, atol=1e-3)


def test_fresh_parameters_have_fresh_moments_though_others_are_carried():
    def adam(state):
        return next(s for s in state.opt_state if isinstance(s, optax.ScaleByAdamState))

    ones = jax.tree.map(np.ones_like, start(replace(CE, fresh=())).opt_state)
    carried = adam(start(CE, carried=ones))
    for moments in (carried.mu, carried.nu):
        found = dict(trees.leaves(moments))
        assert {path for path, leaf in found.items() if not np.any(leaf)} == HEAD
        assert all(np.all(leaf == 1) for path, leaf in found.items() if path not in HEAD)


# --- in a plan ------------------------------------------------------------------------------


@pytest.fixture
def begun(monkeypatch):
    """(parameters where the stage before ended, those before the first step) of each stage."""
    found, begin = [], loop.stage_state

    def beginning(model, stage, params, *rest):
        state = begin(model, stage, params, *rest)
        found.append(jax.tree.map(np.array, (params, loop.merged(state))))
        return state

    monkeypatch.setattr(loop, "stage_state", beginning)
    return found


def test_gradual_unfreezing_draws_only_before_its_first_step(begun):
    run_plan(make_training(), (JOINT, *unfreeze(CE, GROUPS[:2])), make_params())
    others = []
    for before, after in begun:
        before, after = (dict(trees.leaves(params)) for params in (before, after))
        others.append({path for path in before if not equal(before[path], after[path])})
    assert others == [set(), HEAD, set()]


def test_seeds_and_stages_differ_and_runs_repeat(begun):
    def heads(seed):
        begun.clear()
        run_plan(make_training(seed=seed), (CE, CE), make_params())
        return [after["head"] for _, after in begun]

    first, again, other = heads(11), heads(11), heads(12)
    assert equal(first, again)
    drawn = [*first, *other, make_params()["head"]]
    assert len({np.asarray(head["kernel"]).tobytes() for head in drawn}) == 5


def test_a_pattern_that_matches_nothing_is_told_before_anything_is_trained():
    stages, writer = (JOINT, replace(CE, fresh=("haed",))), Records()
    with pytest.raises(trees.PatternError, match="'haed' matches no parameter: did you mean head"):
        run_plan(make_training(writer=writer), stages, make_params())
    assert not writer.written


def test_a_plan_with_many_choices_learns(begun):
    """Cosine and log-probabilities at once with restarts by epoch; then labels, with a new head."""

    def recipe(epochs):
        schedule = Schedule(0.03, 0.0, "restarts", 1e-4, every="epoch", period=2)
        return Recipe(schedule, StopRule(epochs, patience=99))

    tuning = Tuning(
        logit=recipe(6), ce=recipe(8), repr_loss="repr_cosine", logit_loss="logit_log_prob",
        fresh_head=True,
    )  # fmt: skip
    writer = Records()
    run_plan(make_training(writer=writer), plan("repr-logit", GROUPS, tuning), make_params())
    taught, told = ([r for r in writer.written if r["stage"] == n] for n in (0, 1))
    for name in ("held_out/repr_cosine", "held_out/logit_log_prob"):
        assert taught[-1][name] < 0.9 * taught[0][name], name
    assert max(r["dev/f1"] for r in told) > told[0]["dev/f1"] + 0.2
    before, after = begun[1]
    assert not equal(before["head"], after["head"])
