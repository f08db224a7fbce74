"""Few labels, end to end: what may be known of them, and what must not matter."""

import pathlib
from dataclasses import replace

import pytest

from tests.test_pipeline import compiled_once, shrunk  # noqa: F401
from xdistil_jax import (
    DataSpec,
    Experiment,
    Sentence,
    Session,
    load_corpus,
    load_test,
    pipeline,
    prepare_teacher,
)

LANGUAGES = ("de", "vi")
SHIFT = {"O": "O", "PER": "LOC", "LOC": "ORG", "ORG": "PER"}


def wrong(sentence: Sentence) -> Sentence:
    """With tags that are valid, and false."""
    tags = (tag[:2] * (tag != "O") + SHIFT[tag[2:] or "O"] for tag in sentence.tags)
    return sentence._replace(tags=tuple(tags))


def write(root: pathlib.Path, split: str, sentences: list[Sentence]) -> None:
    for language in {each.language for each in sentences}:
        path = root / language / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = (
            "".join(f"{word}\t{tag}\n" for word, tag in zip(each.words, each.tags, strict=True))
            for each in sentences
            if each.language == language
        )
        path.write_text("\n".join(blocks))


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    """Two languages in files: 100 labelled sentences each."""
    made = DataSpec(synthetic=True, languages=LANGUAGES)
    corpus = load_corpus(made)
    write(tmp_path / "ner", "train", list(corpus.train))
    write(tmp_path / "ner", "dev", list(corpus.dev))
    write(tmp_path / "ner", "test", list(load_test(made)))
    return tmp_path / "ner"


def regime(root: pathlib.Path, strategy: str = "D1", **data: object) -> Experiment:
    whole = shrunk(root.parent / "runs", strategy)
    return replace(whole, data=DataSpec(root=str(root), **data))


def test_nothing_but_the_budgeted_labels_is_learned_from(root):
    few = {"labels_per_language": 20, "zero_shot": ("vi",)}
    before = load_corpus(DataSpec(root=str(root), **few))
    first = pipeline.run(regime(root, **few))
    assert any(note.startswith("Labels: 20 sentences") for note in first.report["notes"])
    page = (first.folder / "report.md").read_text()
    assert "| vi (zero-shot) |" in page
    assert "| with labels |" in page
    assert set(first.dev["student"].languages) == {"de", "vi"}

    # All other labels, and those of dev, become false: teacher and student are found again.
    known = {each.words for each in (*before.train, *before.stopping)}
    whole = list(load_corpus(DataSpec(root=str(root))).train)
    write(root, "train", [each if each.words in known else wrong(each) for each in whole])
    write(root, "dev", [wrong(each) for each in before.dev])
    said: list[str] = []
    second = pipeline.run(regime(root, **few), say=said.append)
    assert second.folder == first.folder
    assert not [each for each in said if "fine-tuning" in each or "stages in" in each]
    assert second.dev != first.dev, "dev is what is reported of"

    # Each budget has a teacher of its own, and so has the other choice of languages.
    for other in ({"labels_per_language": 15}, {"zero_shot": ()}, {"dev_from_train": 0.5}):
        chosen = regime(root, **{**few, **other})
        session = Session.start(chosen, only=first.folder)
        with pytest.raises(ValueError, match=r"would now give .*/teacher-"):
            prepare_teacher(session, load_corpus(chosen.data))
