"""Transfer text from Wikipedia: sentences by language, apart from dev and test, with a manifest."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from xdistil_jax import files
from xdistil_jax.data import tables
from xdistil_jax.data.batches import uniform
from xdistil_jax.data.corpus import CorpusError, DataSpec, load_held_out, read
from xdistil_jax.data.leaks import text_key
from xdistil_jax.data.readers import Sentence
from xdistil_jax.data.sentences import ends_sentence, split_sentences
from xdistil_jax.data.sources import HUB
from xdistil_jax.text import words_of

_MANIFEST = "manifest.json"
_BUFFER = 10_000


@dataclass(frozen=True)
class TransferSpec:
    """Sentences of Wikipedia, one a line, in OUT/LANGUAGE.txt: --data.unlabelled-root reads them.

    Articles come in an order that the seed decides. Headings, and lines that end like none of the
    sentences of their script, are left out; so are sentences of fewer than ``min_words`` or more
    than ``max_words`` words (each character of scripts without spaces is one), repeated ones, and
    those that stand in files that are to be kept apart.
    """

    languages: tuple[str, ...]
    """de ru, or de,ru."""
    out: str
    """A folder; a command that was stopped goes on with the first language that isn't finished."""
    per_language: int = 100_000
    """Sentences of each language, or all that there are."""
    per_article: int = 20
    """At most so many of an article, drawn at random; 0: all."""
    source: str = "wikimedia/wikipedia"
    """A name on the Hugging Face hub, or a folder as it lies there: SNAPSHOT.LANGUAGE/*.parquet."""
    snapshot: str = "20231101"
    revision: str = ""
    """Of the data set on the hub; the manifest has the one that was read."""
    apart_from: tuple[str, ...] = ()
    """Files, labelled or not, whose sentences are left out."""
    data: DataSpec = DataSpec()
    """Its dev and test sentences are left out, too."""
    min_words: int = 4
    max_words: int = 128
    seed: int = 0


class _Kept(NamedTuple):
    lines: list[str]
    counts: Counter[str]


def make_transfer(spec: TransferSpec, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the files of all languages that aren't finished; gives the manifest.

    Raises:
        CorpusError: for a source that can't be read, or a folder that was begun otherwise.
        OSError: naming a folder that can't be written to.
    """
    languages = [code for given in spec.languages for code in given.split(",") if code]
    if not languages or spec.per_language < 1:
        raise CorpusError("name at least one language (--languages de,ru) and one sentence of it")
    out = Path(spec.out)
    files.require_writable(out, "--out")
    manifest = _manifest(out, spec)
    left = [code for code in languages if not _is_finished(out, manifest, code)]
    apart = _keys(_apart(spec, languages)) if left else frozenset()
    if left and not apart:
        say(
            "no dev or test is given: sentences of yours may stand in this text. To keep them "
            "apart name --data.root, --data.dev and --data.test, or --apart-from"
        )
    for code in left:
        say(f"{code}: reading {spec.source}, {spec.snapshot}.{code}")
        texts, revision = tables.articles(
            spec.source, f"{spec.snapshot}.{code}",
            revision=spec.revision or None, seed=spec.seed, buffer=_BUFFER,
        )  # fmt: skip
        kept = _collect(texts, spec, apart)
        if not kept.lines:
            raise CorpusError(f"{spec.source}, {spec.snapshot}.{code}: no sentence can be used")
        file = out / f"{code}.txt"
        files.write_atomic(file, "".join(f"{line}\n" for line in kept.lines))
        manifest["languages"][code] = {
            "sentences": len(kept.lines), **kept.counts, "revision": revision,
            "checksum": files.checksum(file),
        }  # fmt: skip
        files.write_atomic(out / _MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False))
        say(f"{code}: {len(kept.lines):,} sentences of {kept.counts['articles']:,} articles")
    return manifest


def _apart(spec: TransferSpec, languages: list[str]) -> Iterator[Sentence]:
    """The sentences that must not be taken; on the hub, those of these languages."""
    for path in spec.apart_from:
        yield from read(path)
    data = spec.data
    if data.root.startswith(HUB) and not data.languages:
        data = replace(data, languages=tuple(languages))
    yield from load_held_out(data)


def _settings(spec: TransferSpec) -> dict[str, Any]:
    """What decides the sentences of a language."""
    kept = asdict(replace(spec, languages=(), out=""))
    del kept["languages"], kept["out"]
    return json.loads(json.dumps(kept))


def _manifest(out: Path, spec: TransferSpec) -> dict[str, Any]:
    """What is there already, or an empty manifest.

    Raises:
        CorpusError: if it was made with other settings.
    """
    file, wanted = out / _MANIFEST, _settings(spec)
    if not file.is_file():
        return {"settings": wanted, "languages": {}}
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        found = manifest["settings"]
        manifest["languages"].keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorpusError(
            f"{file} is no manifest of transfer text: choose another --out"
        ) from error
    if other := [name for name, value in wanted.items() if found.get(name) != value]:
        name = other[0]
        raise CorpusError(
            f"{out} was begun with {name} {found.get(name)!r}, and now {name} is {wanted[name]!r}: "
            "choose another --out, or remove the folder"
        )
    return manifest


def _is_finished(out: Path, manifest: dict[str, Any], code: str) -> bool:
    entry, file = manifest["languages"].get(code), out / f"{code}.txt"
    return bool(entry) and file.is_file() and files.checksum(file) == entry["checksum"]


def _collect(texts: Iterable[str], spec: TransferSpec, apart: frozenset[bytes]) -> _Kept:
    """The first sentences that can be used, in the order of their articles."""
    kept = _Kept([], Counter(articles=0, length=0, repeated=0, apart=0))
    seen: set[bytes] = set()
    for number, text in enumerate(texts):
        chosen = []
        for words, line in _usable(text, spec, kept.counts):
            key = _key(Sentence(words, None, ""))
            if key in apart or key in seen:
                kept.counts["apart" if key in apart else "repeated"] += 1
                continue
            seen.add(key)
            chosen.append(line)
        kept.counts["articles"] += 1
        kept.lines.extend(_drawn(chosen, spec, number)[: spec.per_language - len(kept.lines)])
        if len(kept.lines) == spec.per_language:
            break
    return kept


def _usable(
    text: str, spec: TransferSpec, counts: Counter[str]
) -> Iterator[tuple[tuple[str, ...], str]]:
    for sentence in split_sentences(text):
        if not ends_sentence(sentence):
            continue
        words = words_of(sentence)
        if spec.min_words <= len(words) <= spec.max_words:
            yield words, " ".join(sentence.split())
        else:
            counts["length"] += 1


def _drawn(lines: list[str], spec: TransferSpec, article: int) -> list[str]:
    """At most ``per_article`` of them, in their order."""
    if not spec.per_article or len(lines) <= spec.per_article:
        return lines
    draws = uniform(spec.seed, article, range(len(lines)))
    return [lines[i] for i in sorted(draws.argsort(kind="stable")[: spec.per_article])]


def _key(sentence: Sentence) -> bytes:
    """Of a sentence's text: 16 bytes, so that millions fit into memory."""
    content = text_key(sentence).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()


def _keys(sentences: Iterable[Sentence]) -> frozenset[bytes]:
    return frozenset(map(_key, sentences))
