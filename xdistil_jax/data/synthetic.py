"""The embedded corpus: 41 languages, made on the spot from carrier sentences and names.

The carriers in ``carriers.txt`` were written for this package. The text proves a pipeline, not
quality. For given versions of the libraries that have the names it is a function of the seed alone.
"""

import functools
import random
import re
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from xdistil_jax.data.corpus import Sentence
from xdistil_jax.data.names import LANGUAGES, Division, divide_names
from xdistil_jax.text import split_words

_TYPES = ("PER", "ORG", "LOC")
_SLOT = re.compile(r"(?<![\w'’])\{(PER|ORG|LOC|YEAR)\}(?![\w'’])")
_YEARS = range(1901, 2026)
_TRIES = 100


class SyntheticSplits(NamedTuple):
    """Tagged train, dev and test sentences, and transfer sentences without tags."""

    train: tuple[Sentence, ...]
    dev: tuple[Sentence, ...]
    test: tuple[Sentence, ...]
    transfer: tuple[Sentence, ...]


class _Filled(NamedTuple):
    words: tuple[str, ...]
    tags: tuple[str, ...]
    names: tuple[str, ...]


@functools.cache
def read_carriers(
    path: Path = Path(__file__).with_name("carriers.txt"),
) -> dict[str, tuple[str, ...]]:
    """Language -> carriers: ``# af`` opens a language, every other line that isn't empty is one.

    Raises:
        ValueError: naming file and line, where a line is neither of the two, repeats another, or
            has a slot that is unknown or would grow together with a word.
    """
    found: dict[str, list[str]] = {}
    language = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("#"):
            language = line[1:].strip()
            valid = language in LANGUAGES and language not in found
            found[language] = []
        elif line:
            valid = language in found and line not in found[language]
            valid = valid and not {"{", "}"} & set(_SLOT.sub("", line))
            found.setdefault(language, []).append(line)
        if line and not valid:
            raise ValueError(
                f"{path}:{number}: expected '# LANGUAGE', each of the 41 once, or a new carrier "
                f"with the slots {{PER}} {{ORG}} {{LOC}} {{YEAR}} apart from letters; got {line!r}"
            )
    return {key: tuple(carriers) for key, carriers in found.items()}


def divide_carriers(language: str, seed: int) -> Division:
    """One carrier without entities and two with some are held out; train has the others."""
    carriers = read_carriers()[language]
    plain = [carrier for carrier in carriers if not {*_SLOT.findall(carrier)} & {*_TYPES}]
    rich = [carrier for carrier in carriers if carrier not in plain]
    rng = random.Random(f"{seed}/{language}/carriers")
    held_out = (*rng.sample(plain, 1), *rng.sample(rich, 2))
    return Division(tuple(c for c in carriers if c not in held_out), held_out)


def synthesise(
    seed: int = 0,
    *,
    languages: Sequence[str] = LANGUAGES,
    train: int = 100,
    dev: int = 25,
    test: int = 50,
    transfer: int = 400,
) -> SyntheticSplits:
    """Make the corpus; the counts are sentences per language. No sentence is in two splits.

    In dev and test every second name of a type is held out, the others occur in train. Transfer
    text may use every carrier and every name, as real unlabelled text does. The sentences of a
    language don't depend on which others are asked for.

    Raises:
        ValueError: if a language is unknown, or a split can't be filled with sentences of its own.
        ImportError: if Faker or Babel is not installed, with the command that installs them.
    """
    counts = {"train": train, "dev": dev, "test": test, "transfer": transfer}
    splits: dict[str, list[Sentence]] = {split: [] for split in counts}
    for language in languages:
        if language not in LANGUAGES:
            raise ValueError(f"language {language!r}: expected one of {', '.join(LANGUAGES)}")
        for split, sentences in _language_splits(seed, language, counts).items():
            splits[split].extend(sentences)
    return SyntheticSplits(**{split: tuple(sentences) for split, sentences in splits.items()})


def _language_splits(
    seed: int, language: str, counts: Mapping[str, int]
) -> dict[str, list[Sentence]]:
    carriers, names = divide_carriers(language, seed), divide_names(language, seed)
    taken: set[tuple[str, ...]] = set()
    splits: dict[str, list[Sentence]] = {}
    seen = {kind: names[kind].open for kind in _TYPES}
    unseen = {kind: names[kind].held_out for kind in _TYPES}
    every = {kind: names[kind].open + names[kind].held_out for kind in _TYPES}
    for split, count in counts.items():
        sides = {"train": (seen,), "transfer": (every,)}.get(split, (seen, unseen))
        allowed = carriers.open if split == "train" else carriers.open + carriers.held_out
        rng = random.Random(f"{seed}/{language}/{split}")
        filled = _draw(count, allowed, sides, rng, taken)
        taken.update(words for words, _, _ in filled)
        if split == "train":
            # A name that train could have had but hadn't would be one more unseen name.
            used = {name for _, _, names in filled for name in names}
            seen = {k: tuple(name for name in seen[k] if name in used) or seen[k] for k in _TYPES}
        splits[split] = [
            Sentence(words, None if split == "transfer" else tags, language)
            for words, tags, _ in filled
        ]
    return splits


def _draw(
    count: int,
    carriers: Sequence[str],
    sides: Sequence[Mapping[str, Sequence[str]]],
    rng: random.Random,
    taken: Set[tuple[str, ...]],
) -> list[_Filled]:
    """Filled carriers, none in ``taken``; each type takes its names from the sides in turn."""
    turns = {kind: rng.randrange(len(sides)) for kind in _TYPES}

    def name(kind: str) -> str:
        if kind == "YEAR":
            return str(rng.choice(_YEARS))
        turns[kind] = (turns[kind] + 1) % len(sides)
        return rng.choice(sides[turns[kind]][kind])

    drawn: list[_Filled] = []
    own: set[tuple[str, ...]] = set()
    for _ in range(count):
        before = dict(turns)
        for _ in range(_TRIES):
            turns.update(before)
            filled = _fill(rng.choice(carriers), name)
            repeats = len(set(filled.names)) < len(filled.names)
            if not repeats and filled.words not in own and filled.words not in taken:
                break
        if filled.words in taken:
            raise ValueError(
                f"{count} sentences per language: the carriers and names don't give so many "
                f"without repeating another split; ask for fewer"
            )
        own.add(filled.words)
        drawn.append(filled)
    return drawn


def _fill(carrier: str, name: Callable[[str], str]) -> _Filled:
    """Names into slots; words and tags from the character offsets of the slots."""
    text, slots = "", []
    # An odd number of parts: text, slot, text, ..., slot, text.
    for position, part in enumerate(_SLOT.split(carrier)):
        filling = name(part) if position % 2 else part
        if part in _TYPES:
            slots.append((part, len(text), len(text) + len(filling)))
        text += filling
    words = split_words(text)
    tags = ["O"] * len(words)
    for kind, start, end in slots:
        for position, word in enumerate(words):
            if start <= word.start < end:
                tags[position] = f"{'B' if word.start == start else 'I'}-{kind}"
    names = tuple(text[start:end] for _, start, end in slots)
    return _Filled(tuple(word.text for word in words), tuple(tags), names)
