"""The paper's table of strategies (Table 3), as data. To add one, add a line. Imports no jax."""

import difflib
from dataclasses import dataclass, replace

from xdistil_jax.distill.stages import (
    LogitLoss,
    ReprLoss,
    Schedule,
    Stage,
    StopRule,
    Term,
    Unfreezing,
    unfreeze,
)

PUBLISHED: dict[str, Schedule] = {
    "bilstm": Schedule(1e-3, 0.0, "restarts", 1e-8, every="epoch", clip=1e9),
    "transformer": Schedule(3e-5, 0.0, "constant", clip=1e9),
    "teacher": Schedule(1e-5, 10 / 32, "exponential", 1e-7, every="epoch", clip=1e9),
    "bert teacher": Schedule(5e-5, 0.1, "bert", weight_decay=0.01, clip=1.0),
}
"""Learning rates of the paper's code, value for value: the BiLSTM student of its first two versions
(``CosineLRSchedule``), the transformer student of the third, the teacher of the second, which warms
up for 10 of its 32 epochs, and that of the first, by BERT's own script. Only there is clipped."""

PER_LANGUAGE = ("D0",)
"""Strategies whose stages are run once for each language, on its own labels."""


@dataclass(frozen=True)
class Recipe:
    """Schedule and stopping of one kind of stage.

    A few hundred sentences are one batch, and ten epochs ten steps: hence the least number of them.
    """

    schedule: Schedule = Schedule()
    stop: StopRule = StopRule(min_steps=300)


@dataclass(frozen=True)
class Tuning:
    """Every number of a strategy: what the paper varies and what it leaves unsaid.

    ``partial`` is the share of the epochs that the earlier steps of gradual unfreezing get;
    α, β, γ weigh cross-entropy, representation and logits in joint stages (equation 7);
    ``attention`` > 0 is the weight of that loss beside the representations (transformers only).

    ``repr_loss``: mean squared error, KL of the softmax, 1 − cosine, or KL without normalisation as
    the first version of the code has it (degenerate: see ``losses.representation_kld_keras``).
    ``logit_loss``: squared error against the teacher's raw logits, its log-odds log(p/(1 − p)) or
    its log-probabilities, on first pieces or (``_all``) on every piece. ``unfreezing`` is the order
    of gradual unfreezing (see ``stages.thaws``); ``unfreeze_repr`` unfreezes gradually in the first
    stage, too, as Algorithm 1 is printed. ``fresh_head``: the stage of labels after one of logits
    draws its head anew (Wˢ beside Wʳ), as the paper and the first version do, instead of going on.
    """

    repr: Recipe = Recipe()
    logit: Recipe = Recipe()
    kl: Recipe = Recipe()
    ce: Recipe = Recipe()
    joint: Recipe = Recipe()
    partial: float = 0.25
    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0
    repr_loss: ReprLoss = "repr"
    logit_loss: LogitLoss = "logit"
    labelled_fraction: float = 0.5
    carry: bool = False
    unfreezing: Unfreezing = "top_down"
    unfreeze_repr: bool = False
    fresh_head: bool = False
    attention: float = 0.0


def strategies(
    groups: tuple[str, ...], tuning: Tuning = Tuning(), states_only: tuple[str, ...] = ()
) -> dict[str, tuple[Stage, ...]]:
    """name -> stages, for a student whose parameter ``groups`` run from the head down.

    A stage trains the groups that its losses read: logits and cross-entropy all but those of
    ``states_only``, a projection that the head doesn't read.

    D0 labels only, a student for each language · D0-S one for all · D1 joint labels and logits ·
    D2 and representations (equation 7) · D3 representations first, then jointly · D4 one loss after
    the other. ``.2`` unfreezes gradually (Algorithm 1; the first stage end to end, as in every
    version of the code, unless ``unfreeze_repr``).
    """
    t = tuning
    read = tuple(group for group in groups if group not in states_only)

    def stage(
        name: str,
        recipe: Recipe,
        *terms: Term,
        trained: tuple[str, ...] = read,
        labelled: float = 0.0,
    ) -> Stage:
        return Stage(name, terms, trained, labelled, recipe.schedule, recipe.stop, carry=t.carry)

    def gradually(whole: Stage) -> tuple[Stage, ...]:
        return unfreeze(whole, whole.trainable, partial=t.partial, order=t.unfreezing)

    attention = (Term("attention", t.attention),) * bool(t.attention)
    repr_ = stage("repr", t.repr, Term(t.repr_loss), *attention, trained=groups[1:])
    logit = stage("logit", t.logit, Term(t.logit_loss))
    kl = stage("kl", t.kl, Term("logit_kl"))
    ce = stage("ce", t.ce, Term("ce"), labelled=1.0)
    joint_terms = (Term("ce", t.alpha), Term(t.logit_loss, t.gamma))
    joint = stage("joint", t.joint, *joint_terms, labelled=t.labelled_fraction)
    all_terms = (*joint_terms, Term(t.repr_loss, t.beta), *attention)
    all_three = replace(joint, terms=all_terms, trainable=groups)
    # A head that has learned logits goes on or makes room; before that there is nothing to renew.
    last = replace(ce, fresh=groups[:1] if t.fresh_head else ())
    first = gradually(repr_) if t.unfreeze_repr else (repr_,)
    both_terms = (Term(t.repr_loss, t.beta), Term(t.logit_loss, t.gamma))
    both = stage("repr+logit", t.logit, *both_terms, trained=groups)
    return {
        "D0": (ce,),
        "D0-S": (ce,),
        "D1": (joint,),
        "D2": (all_three,),
        "D3.1": (repr_, joint),
        "D3.2": (*first, *gradually(joint)),
        "D4.1": (repr_, logit, last),
        "D4.2": (*first, *gradually(logit), *gradually(last)),
        # Ours: the representation stage can be left out where it buys nothing, and soft labels come
        # nearer to what is decided than the distance of the logits does.
        "logit-ce": (logit, last),
        "logit-kl-ce": (logit, kl, last),
        # What the paper does one after the other, at once. As many steps as D4.2 has come with
        # logit.stop.epochs = repr's + logit's · (1 + 3 · partial), and ce's · (1 + 3 · partial).
        "repr-logit": (both, last),
    }


def proper_name(name: str) -> str:
    """A strategy's name as the table spells it, from upper or lower case.

    Raises:
        ValueError: for an unknown name, with the nearest ones.
    """
    table = {key.lower(): key for key in strategies(("head", "body"))}
    if name.lower() not in table:
        near = difflib.get_close_matches(name.lower(), table, n=2, cutoff=0.3)
        raise ValueError(
            f"unknown strategy {name!r}: did you mean {' or '.join(near) or 'd4.2'}? "
            f"There are {', '.join(table.values())}"
        )
    return table[name.lower()]


def plan(
    name: str,
    groups: tuple[str, ...],
    tuning: Tuning = Tuning(),
    states_only: tuple[str, ...] = (),
) -> tuple[Stage, ...]:
    """The stages of strategy ``name``; see ``strategies`` and ``proper_name``."""
    return strategies(groups, tuning, states_only)[proper_name(name)]
