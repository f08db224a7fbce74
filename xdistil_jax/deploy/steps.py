"""What the splitter and a tokenizer do, as data for a reader in another language.

Python and tokenizers each know characters by a Unicode of their own, and a browser by a third. So
they are asked about every character here, and the page only looks the answers up.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

from xdistil_jax.data.tokenizer import WITHIN_WORD, Tokenizer
from xdistil_jax.text import visible, word_pattern

Step = dict[str, Any]
Build = Callable[[str], Any]
"""The JSON of a tokenizer -> that tokenizer."""

_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
_BY_CHARACTER = ("BertNormalizer", "Lowercase", "Nmt", "StripAccents")
_SPLITTING = ("BertPreTokenizer", "Punctuation", "WhitespaceSplit")
_SURROGATES = range(0xD800, 0xE000)
# No character has been assigned in the other planes, or they are private: one speaks for all but
# the last two of each, which are no characters.
_ASSIGNED_PLANES = (0, 1, 2, 3, 14)


@cache
def word_rules() -> dict[str, str]:
    """Regular expressions of JavaScript (flag u): ``pattern`` of words, ``visible`` characters."""
    characters = list(_characters())
    every = "".join(char for _, _, char in characters)

    @cache
    def written_out(one: str) -> str:
        runs = re.finditer(f"{one}+", every)
        return _class((characters[run.start()][0], characters[run.end() - 1][1]) for run in runs)

    single = re.compile(r"\[\^?(?:\\.|[^\]\\])+\]|\\d", re.DOTALL)
    seen = _merged((first, last) for first, last, char in characters if visible(char))
    return {
        "pattern": single.sub(lambda found: written_out(found.group()), word_pattern().pattern),
        "visible": _class(seen),
    }


def _class(ranges: Iterable[tuple[int, int]]) -> str:
    return "[" + "".join(rf"\u{{{first:x}}}-\u{{{last:x}}}" for first, last in ranges) + "]"


def tokenizer_facts(tokenizer: Tokenizer) -> dict[str, Any]:
    """All that cuts a word into pieces: its steps, one after the other, and its vocabulary.

    Raises:
        ValueError: naming the part of the tokenizer that has no counterpart in the page.
    """
    build, content = tokenizer.backend.from_str, json.loads(tokenizer.backend.to_str())
    if own := [each["content"] for each in content["added_tokens"] if not each["special"]]:
        raise _refused(f"the added piece {own[0]!r}", "special ones")
    normalizers = _sequence(content["normalizer"], "normalizers")
    splitters = _sequence(content["pre_tokenizer"], "pretokenizers")
    model = content["model"]
    if model["type"] not in _MODELS:
        raise _refused(f"a {model['type']} tokenizer", " and ".join(_MODELS))
    return {
        "steps": [
            *(_normalizing(build, each) for each in normalizers),
            *(_splitting(build, each) for each in splitters),
        ],
        "model": {"kind": model["type"], **_MODELS[model["type"]](model)},
        "before": " " if tokenizer.marks_spaces else "",
        "unknown": tokenizer.unk_id,
        "first": tokenizer.cls_id,
        "last": tokenizer.sep_id,
    }


def _refused(found: str, known: str) -> ValueError:
    return ValueError(
        f"the page can't cut words with {found}: it knows {known}. Export without --web, or distil "
        "with --student.tokenizer and a WordPiece or Unigram tokenizer"
    )


def _sequence(content: Step | None, member: str) -> list[Step]:
    if content is None:
        return []
    if content["type"] != "Sequence":
        return [content]
    return [part for each in content[member] for part in _sequence(each, member)]


def _normalizing(build: Build, content: Step) -> Step:
    kind = content["type"]
    if kind in _BY_CHARACTER:
        return by_character(build, json.dumps(content))
    if kind in _FORMS:
        return by_form(build, kind)
    if kind == "Precompiled":
        return {"kind": "precompiled", "map": content["precompiled_charsmap"]}
    if kind == "Replace":
        pattern = content["pattern"]
        # Patterns that all dialects read alike.
        if re.fullmatch(r"[\w ]\{\d,\}|\\s\+", found := pattern.get("Regex", "")):
            return {"kind": "replace", "pattern": found, "content": content["content"]}
        if "String" in pattern:
            escaped = re.sub(r"[\\^$.*+?()\[\]{}|/]", r"\\\g<0>", pattern["String"])
            return {"kind": "replace", "pattern": escaped, "content": content["content"]}
    if kind == "Strip":
        ends = [r"^\p{White_Space}+"] * content["strip_left"]
        ends += [r"\p{White_Space}+$"] * content["strip_right"]
        return {"kind": "replace", "pattern": "|".join(ends) or "^", "content": ""}
    known = (*_BY_CHARACTER, *_FORMS, "Precompiled", "Replace", "Strip")
    raise _refused(f"the normaliser {json.dumps(content)}", ", ".join(known))


def _splitting(build: Build, content: Step) -> Step:
    kind = content["type"]
    prepend = content.get("prepend_scheme", "always")
    # "first" hangs on where the first character was before it was normalised.
    if kind == "Metaspace" and prepend in ("always", "never"):
        return {
            "kind": "metaspace",
            "mark": content["replacement"],
            "prepend": prepend == "always",
            "split": content.get("split", True),
        }
    if kind in _SPLITTING and content.get("behavior", "Isolated") == "Isolated":
        return by_place(build, json.dumps(content))
    raise _refused(
        f"the pre-tokenizer {json.dumps(content)}",
        ", ".join(("Metaspace (always, never)", *_SPLITTING)),
    )


@cache
def by_character(build: Build, normalizer: str) -> Step:
    """What a normaliser makes of each character, whatever stands beside it."""
    change: Callable[[str], str] = _alone(build, "normalizer", normalizer).normalizer.normalize_str
    kinds: dict[str, list[tuple[int, int]]] = {"gone": [], "space": [], "padded": []}
    others = {}
    for first, last, char in _characters():
        found = change(char)
        if found == char:
            continue
        places = {"": "gone", " ": "space", f" {char} ": "padded"}
        if found in places:
            kinds[places[found]].append((first, last))
        else:
            others[char] = found
    return {"kind": "characters", "others": others, **_flat(kinds)}


@cache
def by_form(build: Build, form: str) -> Step:
    """One of Unicode's forms, and which characters it changes as far as tokenizers knows them."""
    content = json.dumps({"type": form})
    change: Callable[[str], str] = _alone(build, "normalizer", content).normalizer.normalize_str
    changes = [(first, last) for first, last, char in _characters() if change(char) != char]
    return {"kind": "form", "form": form, **_flat({"changes": changes})}


@cache
def by_place(build: Build, splitter: str) -> Step:
    """Which characters part what stands around them and go, and which stand alone."""
    characters = list(_characters())
    text = "".join(f"a{char}" for _, _, char in characters)
    parts = _alone(build, "pre_tokenizer", splitter).pre_tokenizer.pre_tokenize_str(text)
    lone, covered = set(), bytearray(len(text))
    for _, (start, end) in parts:
        covered[start:end] = b"\1" * (end - start)
        if end - start == 1 and start % 2:
            lone.add(start)
    kinds: dict[str, list[tuple[int, int]]] = {"gone": [], "alone": []}
    for number, (first, last, _) in enumerate(characters):
        if not covered[2 * number + 1]:
            kinds["gone"].append((first, last))
        elif 2 * number + 1 in lone:
            kinds["alone"].append((first, last))
    return {"kind": "split", **_flat(kinds)}


def _alone(build: Build, part: str, content: str) -> Any:
    """A tokenizer that does nothing but this."""
    model = {"type": "WordPiece", "unk_token": "a", "vocab": {"a": 0}}
    model |= {"continuing_subword_prefix": WITHIN_WORD, "max_input_chars_per_word": 100}
    empty = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")
    whole = {**dict.fromkeys(empty), part: json.loads(content), "model": model}
    return build(json.dumps({"version": "1.0", "added_tokens": [], **whole}))


def _characters() -> Iterator[tuple[int, int, str]]:
    """(first, last, one of them) of characters that are alike; most are by themselves."""
    for plane in range(17):
        start = plane << 16
        if plane not in _ASSIGNED_PLANES:
            yield start, start + 0xFFFD, chr(start)
            yield start + 0xFFFE, start + 0xFFFF, chr(start + 0xFFFE)
            continue
        for point in range(start, start + 0x10000):
            if point not in _SURROGATES:
                yield point, point, chr(point)


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending ranges -> as few as possible."""
    found: list[tuple[int, int]] = []
    for first, last in ranges:
        if found and found[-1][1] + 1 == first:
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return found


def _flat(kinds: dict[str, list[tuple[int, int]]]) -> dict[str, list[int]]:
    return {
        name: [each for pair in _merged(pairs) for each in pair] for name, pairs in kinds.items()
    }


def _wordpiece(model: dict[str, Any]) -> dict[str, Any]:
    pieces: list[str | None] = [None] * (1 + max(model["vocab"].values()))
    for piece, number in model["vocab"].items():
        pieces[number] = piece
    return {
        "pieces": pieces,
        "prefix": model["continuing_subword_prefix"],
        "longest": model["max_input_chars_per_word"],
        "unknown": model["vocab"][model["unk_token"]],
    }


def _unigram(model: dict[str, Any]) -> dict[str, Any]:
    pieces, scores = zip(*model["vocab"], strict=True)
    return {
        "pieces": pieces,
        "scores": scores,
        "unknown": model["unk_id"],
        "bytes": bool(model.get("byte_fallback")),
    }


_MODELS = {"WordPiece": _wordpiece, "Unigram": _unigram}
