"""A teacher's labels: matched by name, renamed, missed, or refused by name."""

import pytest

from xdistil_jax.label_map import LabelMap
from xdistil_jax.labels import ClassSet, TagSet

OURS = TagSet(("LOC", "PER"))


def columns_by_tag(mapped, theirs):
    found = zip(OURS.tags, mapped.columns, strict=True)
    return {tag: [theirs[k] for k in columns] for tag, columns in found}


def test_labels_are_matched_by_name_in_any_order():
    theirs = ("I-PER", "B-LOC", "O", "I-LOC", "B-PER")
    mapped = LabelMap.of(theirs, OURS)
    assert columns_by_tag(mapped, theirs) == {tag: [tag] for tag in OURS.tags}
    assert mapped.describe() == ""


def test_other_labels_are_merged_renamed_and_missed():
    theirs = ("O", "B-PERSON", "I-PERSON", "B-MISC", "I-MISC", "B-GPE", "B-LOC", "I-LOC")
    mapped = LabelMap.of(theirs, OURS, {"PERSON": "PER", "GPE": "LOC", "MISC": "O"})
    assert columns_by_tag(mapped, theirs) == {
        "O": ["O", "B-MISC", "I-MISC"], "B-LOC": ["B-GPE", "B-LOC"], "I-LOC": ["I-LOC"],
        "B-PER": ["B-PERSON"], "I-PER": ["I-PERSON"],
    }  # fmt: skip
    assert mapped.describe() == "the teacher's MISC count as O"
    lone = LabelMap.of(("O", "B-PER", "B-ORG"), OURS)
    assert lone.describe() == (
        "the teacher's ORG count as O; it knows nothing of B-LOC, I-LOC, I-PER"
    )


def test_bilou_and_bioes_are_read_as_iob2():
    for last, single in (("L", "U"), ("E", "S")):
        theirs = ("O", "B-PER", "I-PER", f"{last}-PER", f"{single}-PER", "B-LOC", "I-LOC")
        found = columns_by_tag(LabelMap.of(theirs, OURS), theirs)
        assert found["B-PER"] == ["B-PER", f"{single}-PER"]
        assert found["I-PER"] == ["I-PER", f"{last}-PER"]


@pytest.mark.parametrize(
    ("theirs", "renamed", "message"),
    [
        (("O", "B-X"), {}, r"teacher's types \(X\) and the data's \(LOC, PER\) have no name in"),
        (("O", "B-X"), {"Y": "PER"}, "the teacher has no type 'Y': it has X"),
        (("O", "B-X"), {"X": "ORG"}, "the data have no type 'ORG': O, LOC, PER"),
        (("O", "LABEL_1"), {}, "tag 'LABEL_1' is not IOB2"),
    ],
)
def test_labels_that_can_not_be_matched_are_named(theirs, renamed, message):
    with pytest.raises(ValueError, match=message):
        LabelMap.of(theirs, OURS, renamed)


def test_a_teachers_classes_are_matched_by_name():
    ours = ClassSet(("no", "yes"))
    found = LabelMap.of(("yes", "maybe", "no"), ours)
    assert (found.columns, found.lost, found.unknown) == (((2,), (0,)), ("maybe",), ())
    assert found.describe() == "the teacher's maybe count as nothing"
    merged = LabelMap.of(
        ("entailment", "neutral", "no"), ours, {"entailment": "yes", "neutral": "no"}
    )
    assert merged.columns == ((1, 2), (0,))
    with pytest.raises(ValueError, match="none for the data's no: rename them, as in LABEL_0=no"):
        LabelMap.of(("yes", "LABEL_0"), ours)
    with pytest.raises(ValueError, match="the teacher has no class 'ja'"):
        LabelMap.of(("yes", "no"), ours, {"ja": "yes"})
