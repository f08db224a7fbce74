"""What a study says of its hypotheses."""

import pytest

from xdistil_jax.report.classes import score_classes
from xdistil_jax.report.compare import Comparison
from xdistil_jax.report.findings import Finding, table, verdicts
from xdistil_jax.report.metrics import score


def scores(right, wrong):
    """F1 of sentences of one entity in two languages: so many found, so many missed, in de."""
    gold = [("B-PER",)] * (right + wrong + 4)
    found = [("B-PER",)] * right + [("O",)] * wrong + [("B-PER",)] * 4
    return score(gold, found, ["de"] * (right + wrong) + ["fr"] * 4).to_json()


def reported(seed, *, test, latency=None):
    """What a run's report.json says: each figure another one."""

    def models(*rights):
        made = {}
        for name, first in zip(("teacher", "student"), (rights[:2], rights[2:]), strict=True):
            whole, unseen = first
            size = {"teacher": 6_400_000, "student": 1_600_000}[name]
            kinds = {"scores": scores(whole, 40 - whole), "unseen": scores(unseen, 40 - unseen)}
            made[name] = {**kinds, "parameters": size}
        return {"models": made}

    figures = {"dev": models(38, 36, 20 + seed, 18)}
    if test:
        figures["test"] = models(34, 30, 16 + seed, 12)
    return {"figures": figures, "seconds": {"student": 100.0 + seed}, "latency": latency}


def f1(right):
    """Of both languages, in percent: fr's entities are all found."""
    recall = right / 40
    return (100 + 200 * recall / (1 + recall)) / 2


def cells(text):
    head, _, *rows = (line[2:-2].split(" | ") for line in text.splitlines())
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_each_cell_is_of_its_own_figure():
    latency = {"32x32": {"ratio": 6.5}, "1x32": {"ratio": 2.5}}
    reports = [reported(seed, test=True, latency=latency) for seed in (0, 4)]
    found = [Finding.of(each, pieces) for each, pieces in zip(reports, (4e6, 6e6), strict=True)]
    shown = cells(table({"D1": found}, {"D1": "82.7"}, by_language=True))
    student, teacher = shown["D1"], shown["teacher"]
    assert student == {
        "dev": f"{(f1(20) + f1(24)) / 2:.1f}", "test": f"{(f1(16) + f1(20)) / 2:.1f}",
        "± seeds": f"{(f1(20) - f1(16)) / 2:.1f}",
        "± languages": f"{((100 - f1(16)) + (100 - f1(20))) / 2:.1f}",
        "unseen": f"{f1(12):.1f}",
        "F1 kept": f"{(f1(16) + f1(20)) / 2 / f1(34) * 100:.1f}", "parameters": "1.60M",
        "smaller": "4.0×", "32 × 32": "6.5×", "1 × 32": "2.5×", "pieces": "5.0M",
        "seconds": "102", "paper": "82.7",
        "de": f"{(f1(16) + f1(20)) - 100:.1f}", "fr": "100.0",
    }  # fmt: skip
    assert teacher["dev"] == f"{f1(38):.1f}"
    assert teacher["test"] == f"{f1(34):.1f}"
    assert teacher["unseen"] == f"{f1(30):.1f}"
    assert teacher["parameters"] == "6.40M"
    assert teacher["F1 kept"] == teacher["smaller"] == "—"


def test_without_test_figures_all_is_of_dev():
    found = [Finding.of(reported(0, test=False), 10)]
    shown = cells(table({"D1": found}, {}, by_language=False))
    assert shown["D1"]["unseen"] == f"{f1(18):.1f}"
    assert shown["teacher"]["unseen"] == f"{f1(36):.1f}"
    assert shown["D1"]["F1 kept"] == f"{100 * f1(20) / f1(38):.1f}"
    assert not {"test", "± seeds", "32 × 32", "paper", "de", "MCC"} & shown["D1"].keys()


def test_of_classes_accuracy_macro_f1_and_mcc_are_told():
    def models(*rights):
        gold = [("a",)] * 6 + [("b",)] * 2
        made = {}
        for name, right in zip(("teacher", "student"), rights, strict=True):
            said = [("a",)] * right + [("b",)] * (6 - right) + gold[6:]
            found = score_classes(gold, said, ["all"] * 8).to_json()
            made[name] = {"scores": found, "unseen": found, "parameters": 1000}
        return {"models": made}

    report = {"figures": {"dev": models(6, 5), "test": models(5, 4)}}
    shown = cells(table({"D1": [Finding.of(report, 10)]}, {}, by_language=False))
    # Of eight texts, student: a 4 of 6, b 2 of 2 and two a's; teacher: a 5 of 6.
    student, teacher = shown["D1"], shown["teacher"]
    assert (student["dev"], student["test"], student["unseen"]) == ("87.5", "75.0", "75.0")
    assert student["macro-F1"] == f"{(80 + 200 / 3) / 2:.1f}"
    assert student["MCC"] == f"{100 * (4 * 2 - 2 * 0) / (4 * 4 * 6 * 2) ** 0.5:.1f}"
    assert student["accuracy kept"] == f"{100 * 75 / 87.5:.1f}"
    assert teacher["MCC"] == f"{100 * (5 * 2 - 1 * 0) / (5 * 3 * 6 * 2) ** 0.5:.1f}"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.2, 1.8, "holds"), (-0.8, 1.8, "not shown"), (-1.8, -0.2, "turned round")],
)
def test_a_hypothesis_holds_where_the_whole_interval_is_above_0(low, high, verdict):
    found = verdicts({("D4.2", "D1"): Comparison((low + high) / 2, low, high, 0.012)})
    middle = f"{(low + high) / 2:+.1f} points ({low:+.1f} to {high:+.1f}, p = 0.012)"
    assert found == f"- D4.2 over D1: {middle}: {verdict}."


def test_without_hypotheses_there_is_nothing_to_say():
    assert verdicts({}) == ""
