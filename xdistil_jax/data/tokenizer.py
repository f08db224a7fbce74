"""Words -> pieces: load a fast tokenizer, or train one.

NumPy and tokenizers only, so that a deployed student can use it; transformers is asked only for
names on the hub.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from xdistil_jax import files
from xdistil_jax.data.record import Sentence

# Of a word that stands in the text so often, no text as long as that is made for the trainer.
_REPEATED = 1000
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_USUAL = {
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
}
MASKS = ("[MASK]", "<mask>")
# How WordPiece marks a piece that doesn't begin a word.
WITHIN_WORD = "##"
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class Tokenizer:
    """A fast tokenizer and the ids of its special pieces. Text can't spell a special piece."""

    backend: tokenizers.Tokenizer = field(repr=False)
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int

    def __post_init__(self) -> None:
        # all-MiniLM's file, for one, truncates to 128 pieces and pads.
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True

    @cached_property
    def vocab_size(self) -> int:
        """Rows that an embedding table needs: the greatest id plus one."""
        return max(self.backend.get_vocab().values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """blake2b of the tokenizer's JSON with sorted keys, and of the special ids."""
        content = [json.loads(self.backend.to_str()), *self.special_ids]
        canonical = json.dumps(content, sort_keys=True)
        return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()

    @cached_property
    def marks_spaces(self) -> bool:
        """Does a space before a word change its pieces? In RoBERTa's and Gemma's BPE it does."""
        bare, spaced = (self.backend.encode(text, add_special_tokens=False) for text in ("a", " a"))
        return bare.tokens != spaced.tokens

    @property
    def special_ids(self) -> tuple[int, int, int, int]:
        """Of padding, the unknown, and the two that frame a row."""
        return self.pad_id, self.unk_id, self.cls_id, self.sep_id

    def word_pieces(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Pieces of each word: ids int32 [N], end to end, and offsets int64 [W+1].

        A word's pieces depend on nothing but the word, as with ``is_pretokenized``: so each
        distinct word needs to be given only once. A word that vanishes becomes one unknown piece.
        Where the tokenizer marks the space before a word, every word has one.

        Raises:
            ValueError: for a word that is no text (a lone surrogate), or a damaged tokenizer.
        """
        given = [f" {word}" for word in words] if self.marks_spaces else list(words)
        try:
            encodings = self.backend.encode_batch(given, add_special_tokens=False)
        except BaseException as error:
            raise _told(error, "the tokenizer was to cut words into pieces") from error
        ids = [encoding.ids or [self.unk_id] for encoding in encodings]
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum([len(pieces) for pieces in ids], out=offsets[1:])
        flat = (number for pieces in ids for number in pieces)
        return np.fromiter(flat, np.int32, offsets[-1]), offsets

    def pieces(self, sentences: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Ids of each word of each sentence, without special pieces; none is empty."""
        distinct = list(dict.fromkeys(word for words in sentences for word in words))
        ids, offsets = self.word_pieces(distinct)
        cut = {
            word: ids[start:end].tolist()
            for word, start, end in zip(distinct, offsets[:-1], offsets[1:], strict=True)
        }
        return [[cut[word] for word in words] for words in sentences]

    def save(self, folder: str | Path, *, longest: int | None = None) -> None:
        """Write ``tokenizer.json``, which ``load_tokenizer`` and transformers read.

        ``longest`` is the number of pieces that transformers cuts text to, where it is asked to.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        files.write_atomic(Path(folder) / "tokenizer.json", self.backend.to_str(pretty=True))
        if longest is not None:
            # Without its class, transformers takes the model's, and a BERT's lower-cases all text.
            kinds = dict(zip(_USUAL, self.special_ids, strict=True))
            names = {kind: self.backend.id_to_token(number) for kind, number in kinds.items()}
            if masks := [piece for piece in MASKS if self.backend.token_to_id(piece) is not None]:
                names["mask_token"] = masks[0]
            own = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest}
            config = json.dumps({**own, **names})
            files.write_atomic(Path(folder) / "tokenizer_config.json", config)


def load_tokenizer(name_or_folder: str | Path, revision: str | None = None) -> Tokenizer:
    """A folder with ``tokenizer.json`` or ``vocab.txt``, one such file, or a name on the hub.

    Only there has it a ``revision``: a branch, tag or commit.

    A ``vocab.txt`` is read as WordPiece; a ``tokenizer_config.json`` beside it says whether text is
    ``do_lower_case``. Without one it is, if the vocabulary has small letters and no capital.

    Raises:
        OSError: if there is no such file or folder, or the hub doesn't answer.
        ValueError: if a file is no tokenizer, or one of the special pieces is missing.
    """
    path = Path(name_or_folder).expanduser()
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()]
        if not found:
            return _load_with_transformers(str(path))
        path = found[0]
    elif not path.is_file():
        return _load_with_transformers(str(name_or_folder), revision)
    config_file = path.with_name("tokenizer_config.json")
    config = json.loads(config_file.read_text("utf-8")) if config_file.is_file() else {}
    if path.suffix == ".json":
        return parse_tokenizer(path.read_bytes(), str(path), config)
    vocabulary = models.WordPiece.read_file(str(path))
    backend = _wordpiece(
        vocabulary,
        source=str(path),
        lowercase=bool(config.get("do_lower_case", _is_uncased(vocabulary))),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )
    return _wrap(backend, config, str(path))


def _is_uncased(vocabulary: Iterable[str]) -> bool:
    """Would a word with a capital be unknown, though the same in small letters isn't?"""
    pieces = (piece for piece in vocabulary if not (piece[:1] == "[" and piece[-1:] == "]"))
    text = "".join(pieces)
    return any(map(str.islower, text)) and not any(map(str.isupper, text))


def parse_tokenizer(
    content: bytes, source: str, config: Mapping[str, Any] = MappingProxyType({})
) -> Tokenizer:
    """What a tokenizer.json says; ``config`` may name the special pieces.

    Raises:
        ValueError: naming ``source``, as ``load_tokenizer``.
    """
    try:
        backend = tokenizers.Tokenizer.from_buffer(content)
    except BaseException as error:
        raise _told(error, f"{source}: expected a tokenizer.json") from error
    return _wrap(backend, config, source)


def train_tokenizer(sentences: Iterable[Sentence], vocab_size: int) -> Tokenizer:
    """A cased WordPiece tokenizer: every character that occurs, then the likeliest merges.

    Memory is needed for distinct words only. The vocabulary is a function of the sentences alone,
    and exceeds ``vocab_size`` only if the characters by themselves do.
    """
    empty = _wordpiece({piece: number for number, piece in enumerate(_SPECIAL)}, source="training")
    counts: dict[str, int] = {}
    for sentence in sentences:
        for word in sentence.words:
            counts[word] = counts.get(word, 0) + 1
    parts: dict[str, list[str]] = {}
    for word in counts:
        text = empty.normalizer.normalize_str(word)
        parts[word] = [part for part, _ in empty.pre_tokenizer.pre_tokenize_str(text)]
    heads = sorted({part[0] for cut in parts.values() for part in cut})
    tails = sorted({char for cut in parts.values() for part in cut for char in part[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        # The trainer numbers ##x in the order of a randomly seeded hash map, and breaks ties by
        # number: named here, the characters have their numbers before.
        special_tokens=[*_SPECIAL, *heads, *(f"##{char}" for char in tails)],
        limit_alphabet=0x110000,
    )
    learner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    texts = (
        " ".join(parts[word] * min(_REPEATED, count - start))
        for word, count in counts.items()
        for start in range(0, count, _REPEATED)
    )
    learner.train_from_iterator(texts, trainer)
    return _wrap(_wordpiece(learner.get_vocab(), source="training"), {}, "training")


def _wordpiece(
    vocab: dict[str, int],
    *,
    source: str,
    lowercase: bool = False,
    strip_accents: bool | None = None,
    handle_chinese_chars: bool = True,
) -> tokenizers.Tokenizer:
    """BERT's pipeline around a vocabulary; ``strip_accents`` None means: if lowercased."""
    if missing := [piece for piece in _SPECIAL[:4] if piece not in vocab]:
        raise ValueError(f"{source}: the WordPiece vocabulary lacks {', '.join(missing)}")
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase,
        strip_accents=strip_accents,
        handle_chinese_chars=handle_chinese_chars,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([piece for piece in _SPECIAL if piece in vocab])
    frame(backend, vocab["[CLS]"], vocab["[SEP]"])
    return backend


def frame(backend: tokenizers.Tokenizer, cls_id: int, sep_id: int) -> None:
    """Let the backend put the two pieces around each sentence, as it stands in its JSON."""
    cls, sep = backend.id_to_token(cls_id), backend.id_to_token(sep_id)
    backend.post_processor = processors.TemplateProcessing(
        single=[cls, "$A", sep], special_tokens=[(cls, cls_id), (sep, sep_id)]
    )


def _told(error: BaseException, problem: str) -> BaseException:
    """What to raise for ``error``: tokenizers raises plain Exceptions, panics, which are none."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return ValueError(f"{problem}, but: {error!s:.200}")
    return error


def _wrap(backend: tokenizers.Tokenizer, config: Mapping[str, Any], source: str) -> Tokenizer:
    """Find the special pieces: what frames an empty text, then the config, then the usual names."""
    backend.no_padding()
    model = json.loads(backend.to_str())["model"]
    found: dict[str, int | None] = {"unk_token": model.get("unk_id")}
    around = backend.encode("").ids
    if len(around) == 2:
        found["cls_token"], found["sep_token"] = around
    for kind, usual in _USUAL.items():
        named = config.get(kind)
        own = model.get(kind), named["content"] if isinstance(named, dict) else named
        numbers = (backend.token_to_id(piece) for piece in (*own, *usual) if piece)
        if found.get(kind) is None:
            found[kind] = next((number for number in numbers if number is not None), None)
        if found[kind] is None:
            raise ValueError(
                f"{source}: the tokenizer has no {kind}: expected one of {', '.join(usual)}, "
                "or its name in tokenizer_config.json"
            )
    return Tokenizer(backend, *(found[kind] for kind in _USUAL))


def _load_with_transformers(name: str, revision: str | None = None) -> Tokenizer:
    """A hub name, or a folder whose tokenizer has to be converted first; never remote code."""
    wanted = "expected a folder with tokenizer.json or vocab.txt, such a file, or a name on the hub"
    if not Path(name).is_dir() and not _HUB_NAME.fullmatch(name):
        raise FileNotFoundError(f"tokenizer {name!r}: no such file or folder; {wanted}")
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise OSError(
            f"tokenizer {name!r} is not a local file, and loading it from the hub needs "
            'transformers: pip install "xdistil_jax[train]"'
        ) from error
    try:
        fast = AutoTokenizer.from_pretrained(
            name, use_fast=True, trust_remote_code=False, revision=revision or "main"
        )
    except Exception as error:  # transformers raises what its many readers raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(
            f"tokenizer {name!r}: not found here, and transformers couldn't load it from the hub; "
            f"{wanted}. It said: {reason}"
        ) from error
    if not fast.is_fast:
        raise ValueError(
            f"tokenizer {name!r} has no fast version: expected one with tokenizer.json"
        )
    if fast.vocab_size <= len(fast.all_special_ids):
        # Without a vocabulary beside config.json, transformers makes up an empty tokenizer.
        raise ValueError(f"{name}: its tokenizer has no pieces but the special ones; {wanted}")
    config = {kind: str(piece) for kind in _USUAL if (piece := getattr(fast, kind)) is not None}
    return _wrap(fast.backend_tokenizer, config, name)
