"""The loop: its order of effects, late fetches, best parameters, and bitwise resume."""

import math
import re
from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.distill.toys import (
    FAST,
    GROUPS,
    STAGES,
    Records,
    equal,
    make_params,
    make_training,
)
from xdistil_jax import compilation, trees
from xdistil_jax.distill import evaluate, loop
from xdistil_jax.distill.checkpoint import Checkpoints
from xdistil_jax.distill.evaluate import HeldOut
from xdistil_jax.distill.loop import InterruptedRunError, StopFlag, run_plan
from xdistil_jax.distill.stages import Stage, StopRule, Term

CALLS, RECORDS = 21, 11
LOSS = "transfer_loss"
CE = replace(STAGES[2], carry=False)


@pytest.fixture(scope="module", autouse=True)
def _wavy_figures():
    """F1 goes up and down with the size of the parameters, so the best aren't always the last."""

    def dev_f1(spec, dtype, params, dev):
        squares = (np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in jax.tree.leaves(params))
        return 0.5 + 0.5 * math.sin(130 * math.sqrt(sum(squares)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "dev_f1", dev_f1)
        yield


@pytest.fixture(scope="module")
def whole():
    """(result, records, parameters before) of a run that nothing interrupts."""
    writer, params = Records(), make_params()
    result = run_plan(make_training(writer=writer), STAGES, params)
    assert (len(writer.shown), len(writer.written)) == (CALLS, RECORDS)
    # The best are the last ones, ones in the middle, and ones after which patience has waited.
    assert [stage.best_step for stage in result.stages] == [10, 6, 5]
    assert [stage.steps for stage in result.stages] == [10, 12, 15]
    assert not equal(result.params, params)
    return result, writer.written, params


def assert_same_run(found, records, whole):
    result, expected, _ = whole
    assert equal(found.params, result.params)
    assert found.stages == result.stages
    assert records == expected


# --- resume ----------------------------------------------------------------------------------


def go_on(folder, records, *, every, after=lambda count, stop: None):
    """Run until it ends or is interrupted: (result or None, all records)."""
    checkpoints, stop = Checkpoints(folder, every=every), StopFlag()
    kept = (checkpoints.peek() or {"records": 0})["records"]
    writer = Records(records[:kept], lambda count: after(count, stop))
    try:
        result = run_plan(make_training(checkpoints, writer, stop), STAGES, make_params())
    except InterruptedRunError as error:
        return None, writer.written, str(error)
    finally:
        checkpoints.close()
    return result, writer.written, ""


@pytest.mark.parametrize("every", [0.0, 1e9], ids=["often", "never"])
@pytest.mark.parametrize("calls", [1, 3, 7, 10, 16, CALLS])
def test_resume_after_a_stop_is_bitwise(tmp_path, whole, calls, every):
    def after(count, stop):
        stop.raised = count >= calls

    result, records, message = go_on(tmp_path, [], every=every, after=after)
    if calls == CALLS:
        # The last call has been made: there is nothing left to stop.
        assert_same_run(result, records, whole)
    else:
        assert result is None
        place = re.fullmatch(
            r"stage (\d)/3, step (\d+) saved; repeat the command to go on", message
        )
        host = Checkpoints(tmp_path).peek()
        assert int(place[1]) == host["stage"] + 1
        assert int(place[2]) == host["step"]
        assert records == whole[1][: len(records)]
    assert_same_run(*go_on(tmp_path, records, every=every)[:2], whole)


class _CrashError(RuntimeError):
    pass


@pytest.mark.parametrize("record", range(1, RECORDS + 1))
def test_resume_after_a_crash_is_bitwise(tmp_path, whole, record):
    class Crashing(Records):
        def write(self, figures):
            super().write(figures)
            if len(self.written) == record:
                raise _CrashError

    writer, checkpoints = Crashing(), Checkpoints(tmp_path, every=0)
    with pytest.raises(_CrashError):
        run_plan(make_training(checkpoints, writer), STAGES, make_params())
    checkpoints.close()
    assert (Checkpoints(tmp_path).peek() or {"records": 0})["records"] == record - 1
    assert_same_run(*go_on(tmp_path, writer.written, every=0)[:2], whole)


def test_a_run_that_is_stopped_at_every_call_is_the_same_run(tmp_path, whole):
    def after(count, stop):
        stop.raised = True

    records, result, stops = [], None, 0
    while result is None:
        result, records, _ = go_on(tmp_path, records, every=1e9, after=after)
        stops += result is None
    assert stops > 8
    assert_same_run(result, records, whole)


def test_a_finished_run_trains_nothing(tmp_path, whole, monkeypatch):
    result, records, _ = go_on(tmp_path, [], every=0.0)
    assert_same_run(result, records, whole)
    monkeypatch.setattr(loop, "train_call", None)
    monkeypatch.setattr(loop, "dev_f1", None)
    again, more, _ = go_on(tmp_path, records, every=0.0)
    assert_same_run(again, more, whole)


def test_runs_repeat_and_seeds_differ(whole):
    params, writer = whole[2], Records()
    again = run_plan(make_training(writer=writer), STAGES, params)
    assert_same_run(again, writer.written, whole)
    other = run_plan(make_training(seed=12), STAGES[:1], params)
    assert not equal(other.params, run_plan(make_training(), STAGES[:1], params).params)


def test_room_is_made_before_each_stage(tmp_path, whole, monkeypatch):
    """On a CPU a plan of many stages has more programs than a process may have at once."""
    (tmp_path / "max_map_count").write_text("100\n")
    monkeypatch.setattr(compilation, "_MOST_MAPS", tmp_path / "max_map_count")
    let_go, clear = [], jax.clear_caches
    monkeypatch.setattr(jax, "clear_caches", lambda: let_go.append(clear()))
    writer = Records()
    again = run_plan(make_training(writer=writer), STAGES, whole[2])
    assert_same_run(again, writer.written, whole)
    assert len(let_go) == len(STAGES)


# --- the order of effects --------------------------------------------------------------------


class _Told(StopFlag):
    """A flag that tells when it is read."""

    def __init__(self, tell):
        self.__dict__["tell"] = tell

    @property
    def raised(self):
        self.tell("stop")
        return False


@pytest.fixture
def events(monkeypatch, tmp_path):
    """What a run did, in its order."""
    found = []

    def telling(name, function):
        def told(*args, **kwargs):
            found.append(name)
            return function(*args, **kwargs)

        return told

    class Saving(Checkpoints):
        save = telling("save", Checkpoints.save)

    class Writing(Records):
        write = telling("log", Records.write)
        progress = telling("progress", Records.progress)

    call = loop.train_call
    monkeypatch.setattr(loop, "train_call", lambda *args: telling("dispatch", call(*args)))
    monkeypatch.setattr(loop, "dev_f1", telling("evaluate", loop.dev_f1))
    monkeypatch.setattr(loop, "fetch", telling("fetch", loop.fetch))
    checkpoints = Saving(tmp_path, every=0)
    run_plan(make_training(checkpoints, Writing(), _Told(found.append)), STAGES, make_params())
    return found


def test_effects_come_in_their_order(events):
    letters = {"evaluate": "E", "log": "L", "save": "S", "stop": "?", "dispatch": "D"}
    line = "".join(letters.get(event, "") for event in events)
    assert re.fullmatch(r"((ELS(\?D)+)+ELS){3}", line), line


def test_metrics_are_fetched_one_call_late(events):
    letters = {"evaluate": "E", "dispatch": "D", "fetch": "F"}
    line = "".join(letters.get(event, "") for event in events)
    # Between two evaluations, a call is always under way when something is fetched.
    assert re.fullmatch(r"E((D(DF)*F)?E)+", line), line
    assert "DDF" in line
    assert line.count("F") == line.count("D") == events.count("progress") == CALLS


# --- the best parameters ---------------------------------------------------------------------


def scripted(monkeypatch, figures, name="dev_f1"):
    """Let the evaluations of a run find ``figures``; gives the parameters that each one saw."""
    seen = []

    def evaluate(params):
        seen.append(jax.tree.map(np.array, params))
        return figures[len(seen) - 1]

    if name == "dev_f1":
        monkeypatch.setattr(loop, "dev_f1", lambda spec, dtype, params, dev: evaluate(params))
    else:
        means = lambda self, model, losses, params, arrays: {"repr": evaluate(params)}  # noqa: E731
        monkeypatch.setattr(HeldOut, "means", means)
    return seen


def stage_of(evaluations, patience=99, losses=("ce",)):
    rule = StopRule(2, evaluations=evaluations, patience=patience)
    terms, fraction = tuple(map(Term, losses)), float("ce" in losses)
    trainable = GROUPS[:3] if "ce" in losses else GROUPS[1:]
    return Stage("scripted", terms, trainable, fraction, FAST, rule)


def test_the_best_parameters_are_restored_and_a_tie_keeps_the_earlier(monkeypatch):
    seen = scripted(monkeypatch, [0.1, 0.5, 0.5, 0.3, float("nan"), 0.5, 0.4])
    writer = Records()
    result = run_plan(make_training(writer=writer), [stage_of(2)], make_params())
    assert 4 <= len(seen) <= 7
    steps = [record["step"] for record in writer.written]
    assert equal(result.params, seen[1])
    assert not any(equal(seen[1], other) for other in seen[2:])
    assert result.stages == (("scripted", "dev_f1", 0.5, steps[1], 10),)


def test_the_lowest_loss_is_the_best(monkeypatch):
    seen = scripted(monkeypatch, [0.9, 0.5, 0.2, 0.2, *[0.6] * 9], "held_out")
    result = run_plan(make_training(), [stage_of(3, losses=("repr",))], make_params())
    assert len(seen) > 4
    assert equal(result.params, seen[2])
    assert result.stages[0][1:3] == ("transfer_loss", 0.2)


@pytest.mark.parametrize("patience", [1, 2])
def test_patience_ends_a_stage(monkeypatch, patience):
    params = make_params()
    seen = scripted(monkeypatch, [0.4] * 9)
    result = run_plan(make_training(), [stage_of(2, patience)], params)
    assert len(seen) == patience + 1
    assert equal(result.params, params)
    assert not equal(seen[1], params)
    assert result.stages[0].best_step == 0
    assert 0 < result.stages[0].steps < 10


def test_the_next_stage_starts_from_the_best(monkeypatch):
    seen = scripted(monkeypatch, [0.1, 0.9, 0.2, 0.3, 0.4, 0.5])
    result = run_plan(make_training(), [stage_of(1), stage_of(1)], make_params())
    assert len(seen) == 6
    assert equal(seen[3], seen[1])
    assert equal(result.params, seen[5])


# --- lengths and errors ----------------------------------------------------------------------


def test_a_stage_has_exactly_its_steps(whole):
    result, records, _ = whole
    assert [r["global_step"] - r["step"] for r in records if r["step"] == 0] == [0, 10, 22]
    # The last call of the first stage is cut to the ten steps that the stage has.
    assert [r["step"] for r in records if r["stage"] == 0] == [0, 4, 9, 10]
    for stage, stage_result in enumerate(result.stages):
        mine = [record for record in records if record["stage"] == stage]
        assert mine[0]["step"] == 0
        assert mine[-1]["step"] == stage_result.steps
        figures = [record["watched"] for record in mine]
        best = min(figures) if stage_result.watched == "transfer_loss" else max(figures)
        assert stage_result.best == best


def test_few_sentences_get_at_least_so_many_steps_and_no_more_evaluations():
    writer = Records()
    plain = replace(CE, stop=StopRule(epochs=2, patience=99))
    usual = run_plan(make_training(), (plain,), make_params()).stages[0].steps
    more = replace(plain, stop=replace(plain.stop, min_steps=usual * 3))
    result = run_plan(make_training(writer=writer), (more,), make_params())
    assert result.stages[0].steps == usual * 3
    assert len(writer.written) == 3, "at the start, in the middle, at the end"
    fewer = replace(plain, stop=replace(plain.stop, min_steps=1))
    assert run_plan(make_training(), (fewer,), make_params()).stages[0].steps == usual


@pytest.mark.parametrize(("losses", "shown"), [(("repr",), LOSS), (("ce",), "train/ce")])
def test_a_stage_that_diverges_is_an_error_however_often_it_is_run(
    monkeypatch, tmp_path, losses, shown
):
    """A student that was never trained is no result; the F1 of tags from NaN is 0, and finite."""
    monkeypatch.setattr(loop, "dev_f1", evaluate.dev_f1)
    steep = replace(stage_of(2, losses=losses), schedule=replace(FAST, peak=1e30))
    said = rf"stage 'scripted' has diverged: at step 1\d its {shown} is (nan|inf), .*peak, 1e\+30"
    for _ in range(2):
        checkpoints = Checkpoints(tmp_path / "saved", every=0)
        with pytest.raises(ValueError, match=said):
            run_plan(make_training(checkpoints), [steep, CE], make_params())
        checkpoints.close()
        assert not Checkpoints(tmp_path / "saved").peek()["done"]


def test_an_f1_of_nothing_is_no_divergence(monkeypatch):
    scripted(monkeypatch, [0.0] * 9)
    assert run_plan(make_training(), [stage_of(2)], make_params()).stages[0].best == 0.0


def test_a_loss_that_is_watched_must_be_held_out():
    training = make_training(held_out=HeldOut(()))
    with pytest.raises(ValueError, match="stage 'repr' watches the loss on held-out"):
        run_plan(training, STAGES[:1], make_params())


def test_a_pattern_that_matches_nothing_stops_the_plan():
    stage = replace(CE, trainable=("head", "projektion"))
    with pytest.raises(trees.PatternError, match="'projektion' matches no parameter: did you mean"):
        run_plan(make_training(), [stage], make_params())


def test_each_stage_has_its_own_batches_and_dropout(monkeypatch):
    places, keys = [], []
    sampler, call = loop.Sampler, loop.train_call

    def drawing(*args):
        places.append(args[-2:])
        return sampler(*args)

    def calling(*args):
        def stepping(state, *rest):
            keys.append((places[-1], jax.random.key_data(state.key).tolist()))
            return call(*args)(state, *rest)

        return stepping

    monkeypatch.setattr(loop, "Sampler", drawing)
    monkeypatch.setattr(loop, "train_call", calling)
    run_plan(make_training(), [CE, CE], make_params())
    assert places == [(11, 0), (11, 1)]
    # One key for all steps of a stage: each step folds its number into it.
    assert len(keys) > 2
    assert len(set(map(str, keys))) == len({str(key) for _, key in keys}) == 2
