"""The embedded corpus: 41 languages, made on the spot from carrier sentences and library names.

The carriers in ``carriers.txt`` were written for this package; the names come from Faker (people,
companies, cities) and from CLDR through Babel (countries and territories, and the cities after
which time zones are called). The text proves a pipeline, not quality. For given versions of the
two libraries it is a function of the seed alone.

Where Faker has nothing in the language, this stands in:

- people: Dutch ones for af, Croatian for bs, Indonesian for ms, Italian for sq, Spanish for tl;
  for ca, Faker's Catalan given names with Spanish family names (its locale es_CA).
- companies: Croatian ones for bs, Algerian ones for ar; for af, ca, et, he, hi, lt, lv, ms, sq, ta
  and uk a family name in a legal form of the language, such as ``UAB {}``.
- cities: CLDR's alone for af, bg, bs, ca, et, lt, lv, ms, sq and tr; provinces beside them for fa,
  tl and vi, where Faker's cities are made up or too few, and for it, where they follow a set's
  order, which differs from process to process.
"""

import functools
import importlib
import random
import re
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from xdistil_jax.data.corpus import Sentence
from xdistil_jax.text import split_words

_PEOPLE = {
    "af": "nl_NL", "ar": "ar_AA", "bg": "bg_BG", "bn": "bn_BD", "bs": "hr_HR", "ca": "es_CA",
    "cs": "cs_CZ", "da": "da_DK", "de": "de_DE", "el": "el_GR", "en": "en_US", "es": "es_ES",
    "et": "et_EE", "fa": "fa_IR", "fi": "fi_FI", "fr": "fr_FR", "he": "he_IL", "hi": "hi_IN",
    "hr": "hr_HR", "hu": "hu_HU", "id": "id_ID", "it": "it_IT", "lt": "lt_LT", "lv": "lv_LV",
    "mk": "mk_MK", "ms": "id_ID", "nl": "nl_NL", "no": "no_NO", "pl": "pl_PL", "pt": "pt_PT",
    "ro": "ro_RO", "ru": "ru_RU", "sk": "sk_SK", "sl": "sl_SI", "sq": "it_IT", "sv": "sv_SE",
    "ta": "ta_IN", "tl": "es_ES", "tr": "tr_TR", "uk": "uk_UA", "vi": "vi_VN",
}  # fmt: skip
LANGUAGES = tuple(_PEOPLE)
"""The languages of the paper's Table 17, sorted."""

_FAMILY_NAME_FIRST = ("hu", "vi")
_COMPANIES = {"ar": "ar_DZ", "tl": "fil_PH"}
_LEGAL_FORMS = {
    "af": ("{} Beperk", "{} en Seuns", "{} Vervoer Bpk.", "{} Groep", "{} Konstruksie"),
    "ca": ("{} S.L.", "{} i Fills", "Germans {}", "Grup {}", "Construccions {}"),
    "et": ("{} OÜ", "AS {}", "{} Grupp", "{} ja Pojad", "{} Ehitus OÜ"),
    "he": ("{} בע״מ", "קבוצת {}", "{} ובניו", "{} תעשיות", "{} אחזקות"),
    "hi": ("{} इंडस्ट्रीज", "{} एंड संस", "{} प्राइवेट लिमिटेड", "{} समूह", "{} टेक्सटाइल्स"),
    "lt": ("UAB {}", "AB {}", "{} ir partneriai", "{} grupė", "{} statyba"),
    "lv": ("SIA {}", "AS {}", "{} un partneri", "{} grupa", "{} būve"),
    "ms": ("{} Sdn. Bhd.", "{} Berhad", "Kumpulan {}", "{} dan Rakan", "{} Perkapalan"),
    "sq": ("{} sh.p.k.", "{} sh.a.", "Grupi {}", "{} dhe Bijtë", "{} Ndërtim"),
    "ta": ("{} குழுமம்", "{} அண்ட் கோ", "{} இண்டஸ்ட்ரீஸ்", "{} டெக்ஸ்டைல்ஸ்", "{} வங்கி"),
    "uk": ("ТОВ {}", "ПАТ {}", "{} і партнери", "Група {}", "{} Буд"),
}
_CITIES = {
    "ar": ("ar_DZ", "city"), "fa": ("fa_IR", "state"), "it": ("it_IT", "state"),
    "ru": ("ru_RU", "city_name"), "tl": ("fil_PH", "province"), "uk": ("uk_UA", "city_name"),
    "vi": ("vi_VN", "state"),
}  # fmt: skip
_NO_CITIES = frozenset(("af", "bg", "bs", "ca", "et", "lt", "lv", "ms", "sq", "tr"))
# Codes of CLDR's territories that are no places: unions, test codes, the unknown region.
_NO_PLACES = frozenset(("EU", "EZ", "QO", "UN", "XA", "XB", "ZZ"))

_POOL = 120
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


class Division(NamedTuple):
    """Carriers, or names of one type: those that train may use, and those held out from it."""

    open: tuple[str, ...]
    held_out: tuple[str, ...]


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


def divide_names(language: str, seed: int) -> dict[str, Division]:
    """Type -> names; no name stands in two types, and a third of each type is held out."""
    names: dict[str, Division] = {}
    taken: set[str] = set()
    for kind, draw in (("LOC", _places), ("PER", _people), ("ORG", _companies)):
        fresh = [name for name in draw(language, seed) if name not in taken]
        taken.update(fresh)
        random.Random(f"{seed}/{language}/{kind}/held out").shuffle(fresh)
        held_out = round(len(fresh) / 3)
        names[kind] = Division(tuple(fresh[held_out:]), tuple(fresh[:held_out]))
    return names


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


def _people(language: str, seed: int) -> list[str]:
    faker = _faker(f"{seed}/{language}/PER", f"person.{_PEOPLE[language]}")

    def person() -> str:
        sex = faker.random.choice(("female", "male"))
        # Not faker.name(), which adds titles and degrees in some languages.
        parts = [faker.format(f"first_name_{sex}"), faker.format(f"last_name_{sex}")]
        return " ".join(reversed(parts) if language in _FAMILY_NAME_FIRST else parts)

    return _distinct(person)


def _companies(language: str, seed: int) -> list[str]:
    people, label = f"person.{_PEOPLE[language]}", f"{seed}/{language}/ORG"
    forms = _LEGAL_FORMS.get(language)
    if forms:
        faker = _faker(label, people)
        return _distinct(lambda: faker.random.choice(forms).format(faker.format("last_name")))
    locale = _COMPANIES.get(language, _PEOPLE[language])
    faker = _faker(label, people, f"company.{locale}")
    # A company of one word would be a bare family name.
    return _distinct(lambda: faker.format("company"), least=2)


def _places(language: str, seed: int) -> list[str]:
    locale = _import("babel").Locale.parse(language)
    territories = {
        name
        for code, name in locale.territories.items()
        if len(code) == 2 and code.isalpha() and code not in _NO_PLACES
    }
    zones = {
        zone["city"]
        for code, zone in locale.time_zones.items()
        if "city" in zone and code != "Etc/Unknown"
    }
    rng = random.Random(f"{seed}/{language}/LOC")
    found: list[str] = []
    for names in (territories, zones - territories):
        usable = sorted(name for name in names if _usable(name))
        found += rng.sample(usable, min(len(usable), _POOL // 2))
    if language not in _NO_CITIES:
        city, formatter = _CITIES.get(language, (_PEOPLE[language], "city"))
        people = f"person.{_PEOPLE[language]}"
        faker = _faker(f"{seed}/{language}/city", people, f"address.{city}")
        found += _distinct(lambda: faker.format(formatter))[: _POOL // 2]
    return list(dict.fromkeys(found))


def _distinct(draw: Callable[[], str], *, least: int = 1) -> list[str]:
    """Up to _POOL different names; fewer where the library has fewer."""
    drawn = (" ".join(draw().split()) for _ in range(4 * _POOL))
    return list(dict.fromkeys(name for name in drawn if _usable(name, least=least)))[:_POOL]


def _usable(name: str, *, least: int = 1) -> bool:
    """Short, and without digits, commas and remarks in parentheses."""
    return not re.search(r"[\d,،()]", name) and least <= len(split_words(name)) <= 8


def _faker(label: str, *providers: str) -> Any:
    """A generator of its own: global state doesn't matter, and no needless provider is loaded."""
    faker = _import("faker").Generator()
    faker.seed_instance(label)
    for name in providers:
        faker.add_provider(_import(f"faker.providers.{name}").Provider(faker))
    return faker


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"the embedded corpus takes its names from Faker and Babel, and {module} can't be "
            f'imported; run: pip install "xdistil_jax[train]"'
        ) from error
