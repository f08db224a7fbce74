"""Names of people, companies and places in 41 languages, from Faker and from CLDR through Babel.

Faker has people, companies and cities; CLDR countries and territories, and the cities after which
time zones are called. For given versions of the two libraries they are a function of the seed.

Where Faker has nothing in the language, this stands in:

- people: Dutch ones for af, Croatian for bs, Indonesian for ms, Italian for sq, Spanish for tl;
  for ca, Faker's Catalan given names with Spanish family names (its locale es_CA).
- companies: Croatian ones for bs, Algerian ones for ar; for af, ca, et, he, hi, lt, lv, ms, sq, ta
  and uk a family name in a legal form of the language, such as ``UAB {}``.
- cities: CLDR's alone for af, bg, bs, ca, et, lt, lv, ms, sq and tr; provinces beside them for fa,
  tl and vi, where Faker's cities are made up or too few, and for it, where they follow a set's
  order, which differs from process to process.
"""

import importlib
import random
import re
from collections.abc import Callable
from typing import Any, NamedTuple

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


class Division(NamedTuple):
    """Carriers, or names of one type: those that train may use, and those held out from it."""

    open: tuple[str, ...]
    held_out: tuple[str, ...]


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
