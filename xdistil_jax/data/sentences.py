"""Running text -> sentences, by one set of rules for all scripts. Standard library only."""

import re
from collections.abc import Iterator

# CJK, danda, Arabic, Burmese, Khmer and Ethiopic: they end a sentence wherever they stand.
_ALWAYS = "。！？｡।॥؟۔\u104b\u17d4\u17d5\u1362\u1367"
# These, the last one Armenian, do where a space follows.
_SPACED = ".!?…\u0589"
_CLOSING = "\"'”’»›)]}」』）】〉》"
_OPENING = "\"'“‘„«‹([{「『（【〈《¿¡-–—"
_THAI_LAO = "\u0e00-\u0eff"
_BEHIND = f"[{re.escape(_CLOSING)}]*"
_BOUNDARY = re.compile(
    rf"(?P<point>[{_SPACED}{_ALWAYS}]*[{_SPACED}]{_BEHIND})\s+"
    rf"|[{_SPACED}{_ALWAYS}]*[{_ALWAYS}]{_BEHIND}\s*"
    # Thai and Lao have no mark: a space is all that there is between two sentences.
    rf"|(?<=[{_THAI_LAO}])\s+(?=[{_THAI_LAO}])"
)
_MARK = re.compile(f"[{_SPACED}{_ALWAYS}{_THAI_LAO}]")
_NEXT = re.compile(rf"[{re.escape(_OPENING)}\s]*(.)", re.DOTALL)
_WORD_BEFORE = re.compile(rf"[^\s{re.escape(_OPENING)}]*$")
_ABBREVIATIONS = """
dr mr mrs ms st prof sr jr rev gen col capt lt hon mt vs ca approx nr nos vol pp ed eds fig al dept
jan feb aug sept nov geb gest bzw evtl ggf inkl sog usw vgl abb bd hl tel blvd mme mlle cf env sra
srta ud uds dña núm pág dott sig dhr mevr drs tzv og osv kl tj tzn např resp atd mgr inż płk
им ул др гг вв млн млрд тыс стр рис см напр
"""
_SHORT = frozenset(_ABBREVIATIONS.split())
_ORDINAL = re.compile(r"\d{1,2}|[IVX]{1,5}")


def split_sentences(text: str) -> list[str]:
    """Cut ``text`` into sentences: nothing but whitespace is lost, none is empty, in their order.

    A line break always ends one. So do 。？！ of Chinese and Japanese, ؟ and ۔ of Arabic script,
    the danda of Indic ones, the full stops of Ethiopic, Burmese and Khmer, and, before a space,
    . ? ! and … - but for a point behind an initial, a usual abbreviation or an ordinal number, and
    before a small letter. Thai and Lao text is cut at its spaces.
    """
    return [sentence for line in text.splitlines() for sentence in _sentences(line)]


def ends_sentence(text: str) -> bool:
    """Does ``text`` end as a sentence does? Thai and Lao, which have no mark for it, always do."""
    return bool(_MARK.match(text.rstrip().rstrip(_CLOSING)[-1:]))


def _sentences(line: str) -> Iterator[str]:
    start = 0
    for match in _BOUNDARY.finditer(line):
        if match["point"] and not _ends(line, match):
            continue
        if sentence := line[start : match.end()].strip():
            yield sentence
        start = match.end()
    if rest := line[start:].strip():
        yield rest


def _ends(line: str, match: re.Match[str]) -> bool:
    """Is a mark before a space the end of a sentence, and not of an abbreviation?"""
    following = _NEXT.match(line, match.end())
    if following is not None and following[1].islower():
        return False
    if match["point"].rstrip(_CLOSING) != ".":
        return True
    word = _WORD_BEFORE.search(line[max(0, match.start() - 40) : match.start()])[0]
    is_initial = len(word) == 1 and word.lower() != word.upper()
    is_short = "." in word.strip(".") or word.lower() in _SHORT
    return not (is_initial or is_short or _ORDINAL.fullmatch(word))
