"""Texts and tokenizers on which a reader of tokenizers is tried."""

import random
from functools import cache

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from tests.deploy.charmaps import charmap
from tests.deploy.nasty import NASTY
from tests.deploy.toys import TEXT, TOKENIZER
from xdistil_jax.data.synthetic import synthesise
from xdistil_jax.data.tokenizer import Tokenizer
from xdistil_jax.deploy import web
from xdistil_jax.text import words_of

LANGUAGES = ("de", "ru", "ar", "he", "hi", "bn", "ta", "el", "vi", "fa")


@cache
def sentences():
    made = synthesise(languages=LANGUAGES, train=3, dev=2, test=1, transfer=0).train
    examples = [each["text"] for each in web.Page().examples]
    return (*(" ".join(each.words) for each in made), *examples)


@cache
def texts():
    # Of more pieces than a window has room for, yet short enough to be known.
    long = f"Anna B{'ragenilaretu' * 5} fuhr nach Berlin. " * 3
    return (*sentences(), *NASTY.values(), long)


def unigram(normalizer, pre_tokenizer, *, bytes_too=False):
    words = sorted(set(words_of(" ".join(sentences())) + TEXT))
    draw = random.Random(0)
    pieces = {f"▁{word[: draw.randint(1, 5)]}" for word in words}
    pieces |= {word[a : a + draw.randint(1, 3)] for word in words for a in range(1, len(word), 2)}
    pieces |= set("".join(words)[::3])
    scores = [(piece, -draw.uniform(2, 12)) for piece in sorted(pieces)]
    scores += [(f"<0x{byte:02X}>", -11.0) for byte in range(256)] * bytes_too
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    scores = [*((piece, 0.0) for piece in special), ("▁", -3.0), *scores]
    scores = list(dict(scores).items())
    backend = tokenizers.Tokenizer(models.Unigram(scores, unk_id=3, byte_fallback=bytes_too))
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer
    backend.add_special_tokens(special)
    return Tokenizer(backend, 1, 3, 0, 2)


def lower_cased():
    vocabulary = TOKENIZER.backend.get_vocab()
    backend = tokenizers.Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=20)
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return Tokenizer(backend, *TOKENIZER.special_ids)


MAP = {
    **{"é": "E", "e\u0301": "é", "ﬁ": "fi", "A\u030a": "Å", "Ａ": "A", "½": "1⁄2"},
    **{"\u00b4": " \u0301", "\u0640": "", "n": "m", "\u3000": " ", "\u200b": "", "٣": "3"},
    **{"\r\n": " ", "क": "k", "한": "\u1112\u1161\u11ab", "\U0001f600": ":)"},
}
CUTTERS = {
    "cased": lambda: TOKENIZER,
    "lower-cased": lower_cased,
    "XLM-R's": lambda: unigram(
        normalizers.Precompiled(charmap(MAP)),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
    ),
    "mDeBERTa's": lambda: unigram(
        normalizers.Sequence(
            [
                *(normalizers.Replace("\u00b4", " x"), normalizers.NFKC(), normalizers.Strip()),
                normalizers.Replace(Regex(" {2,}"), " "),
            ]
        ),
        pre_tokenizers.Metaspace(prepend_scheme="always"),
        bytes_too=True,
    ),
    "unmarked": lambda: unigram(
        normalizers.Sequence([normalizers.Lowercase(), normalizers.NFD()]),
        pre_tokenizers.Metaspace(prepend_scheme="never", split=False),
    ),
}


def odd_words():
    """Of characters from everywhere; of few, so that maps and pieces meet them often."""
    draw = random.Random(0)
    planes = [*range(0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE0200)]
    often = "".join(MAP) + "".join(TEXT) + "\u0301\u0308\u200d\u094d▁ "
    for length in [1, 2, 3, 5, 8] * 300:
        yield "".join(chr(draw.choice(planes)) for _ in range(length))
        yield "".join(draw.choices(often, k=length))
