"""The paper's table of strategies (Table 3), as data. To add one, add a line. Imports no jax."""

import difflib
from dataclasses import dataclass, replace
from typing import Literal

from xdistil_jax.distill.stages import Schedule, Stage, StopRule, Term, unfreeze

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
    α, β, γ weigh cross-entropy, representation and logits in joint stages (equation 7).
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
    repr_loss: Literal["repr", "repr_kl"] = "repr"
    logit_loss: Literal["logit", "logit_all"] = "logit"
    labelled_fraction: float = 0.5
    carry: bool = False


def strategies(groups: tuple[str, ...], tuning: Tuning = Tuning()) -> dict[str, tuple[Stage, ...]]:
    """name -> stages, for a student whose parameter ``groups`` run from the head down.

    D0 labels only, a student for each language · D0-S one for all · D1 joint labels and logits ·
    D2 and representations (equation 7) · D3 representations first, then jointly · D4 one loss after
    the other. ``.2`` unfreezes gradually (Algorithm 1; the first stage end to end, as in every
    version of the code).
    """
    t = tuning

    def stage(name: str, recipe: Recipe, *terms: Term, labelled: float, top: int = 0) -> Stage:
        return Stage(
            name, terms, groups[top:], labelled, recipe.schedule, recipe.stop, carry=t.carry
        )

    def gradually(whole: Stage) -> tuple[Stage, ...]:
        return unfreeze(whole, groups, partial=t.partial)

    repr_ = stage("repr", t.repr, Term(t.repr_loss), labelled=0.0, top=1)
    logit = stage("logit", t.logit, Term(t.logit_loss), labelled=0.0)
    kl = stage("kl", t.kl, Term("logit_kl"), labelled=0.0)
    ce = stage("ce", t.ce, Term("ce"), labelled=1.0)
    joint_terms = (Term("ce", t.alpha), Term(t.logit_loss, t.gamma))
    joint = stage("joint", t.joint, *joint_terms, labelled=t.labelled_fraction)
    all_three = replace(joint, terms=(*joint_terms, Term(t.repr_loss, t.beta)))
    return {
        "D0": (ce,),
        "D0-S": (ce,),
        "D1": (joint,),
        "D2": (all_three,),
        "D3.1": (repr_, joint),
        "D3.2": (repr_, *gradually(joint)),
        "D4.1": (repr_, logit, ce),
        "D4.2": (repr_, *gradually(logit), *gradually(ce)),
        # Ours: the representation stage can be left out where it buys nothing, and soft labels come
        # nearer to what is decided than the distance of the logits does.
        "logit-ce": (logit, ce),
        "logit-kl-ce": (logit, kl, ce),
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


def plan(name: str, groups: tuple[str, ...], tuning: Tuning = Tuning()) -> tuple[Stage, ...]:
    """The stages of strategy ``name``; see ``proper_name``."""
    return strategies(groups, tuning)[proper_name(name)]
