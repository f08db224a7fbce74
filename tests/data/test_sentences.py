"""The sentence splitter: nothing is lost whatever comes in, and scripts end as they should."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdistil_jax.data.sentences import ends_sentence, split_sentences

MARKS = st.sampled_from(list(".!?…。！？।॥؟۔։።။ \n\t\u2028\x85\"'”»)）」„(«-aA1zZйЙ字कกا"))
TEXT = st.one_of(st.text(), st.text(MARKS, max_size=40))


def bare(text):
    return "".join(text.split())


@settings(deadline=None, max_examples=400)
@given(TEXT)
def test_nothing_but_whitespace_is_lost_and_none_is_empty(text):
    found = split_sentences(text)
    assert "".join(map(bare, found)) == bare(text)
    for sentence in found:
        assert sentence
        assert sentence == sentence.strip()
        assert len(sentence.splitlines()) == 1
        assert sentence in text


@settings(deadline=None, max_examples=200)
@given(TEXT, TEXT)
def test_a_line_break_always_ends_a_sentence(one, other):
    assert split_sentences(f"{one}\n{other}") == split_sentences(one) + split_sentences(other)


@pytest.mark.parametrize(
    "sentences",
    [
        [
            "Dr. Anna Müller wohnt seit dem 3. Oktober 1999 in Ulm.",
            "Sie arbeitet z.B. dort!",
            "Ja?",
        ],
        ["J. S. Bach was born in 1685.", "He wrote approx. 1,100 works (see p. 4).", "And so on…"],
        ['"It is done."', "He left the U.S. in 1950.", "Was it 3.5 m?!", "Yes."],
        ["Мир закончен.", "Он родился в 1990 г. в Москве.", "¿Y tú?", "¡Vamos!"],
        ["كيف حالك؟", "أنا بخير.", "نعم!"],
        ["یہ ایک جملہ ہے۔", "یہ دوسرا ہے۔", "کیا؟"],
        ["यह एक वाक्य है।", "यह दूसरा है॥"],
        ["Սա նախադասություն է։", "Սա՝ երկրորդը։"],
        ["สวัสดีครับ", "ผมชื่อสมชาย"],
    ],
)
def test_sentences_of_many_scripts(sentences):
    assert split_sentences(" ".join(sentences)) == sentences
    assert all(map(ends_sentence, sentences))


@pytest.mark.parametrize(
    "sentences",
    [
        ["これは文です。", "本当？！", "「そうだ。」", "次は？"],
        ["这是一句话。", "这是第二句！"],
        ["یہ ایک جملہ ہے۔", "یہ دوسرا ہے۔"],
        ["यह एक वाक्य है।", "यह दूसरा है।"],
    ],
)
def test_marks_that_need_no_space(sentences):
    assert split_sentences("".join(sentences)) == sentences


def test_a_small_letter_goes_on():
    assert split_sentences("He lives in the U.K. since then. and so on") == [
        "He lives in the U.K. since then. and so on"
    ]


@pytest.mark.parametrize("text", ["See also", "Geschichte und Kultur", "参考文献", "", "  ", ")"])
def test_a_heading_ends_like_no_sentence(text):
    assert not ends_sentence(text)
