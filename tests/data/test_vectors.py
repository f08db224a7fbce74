"""Vectors from text files: both dialects, and each mistake with its line."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdistil_jax.data.sources import CorpusError
from xdistil_jax.data.vectors import read_vectors

GLOVE = "the 0.5 -1 2e-1\nBerlin 1 2 3\n. . . 7 7 7\nthe 9 9 9\n"
FASTTEXT = f"4 3\n{GLOVE}"


@pytest.mark.parametrize("text", [GLOVE, FASTTEXT, FASTTEXT.replace(" ", "\t"), f"\ufeff{GLOVE}"])
@pytest.mark.parametrize("zipped", [False, True])
def test_both_dialects_are_read(tmp_path, text, zipped):
    path = tmp_path / "vectors.txt"
    # fastText ends its lines with a space.
    content = text.replace("\n", " \n").encode()
    path.write_bytes(gzip.compress(content) if zipped else content)
    found = read_vectors(path, {"the", "Berlin", ".", "absent"}, 3)
    assert set(found) == {"the", "Berlin"}
    assert found["the"].dtype == np.float32
    # Of a word that stands there twice the first.
    np.testing.assert_array_equal(found["the"], np.array([0.5, -1, 0.2], np.float32))
    np.testing.assert_array_equal(found["Berlin"], [1, 2, 3])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("4 2\nthe 1 2\n", r"line 1: vectors of 2 numbers; expected 3 \(student.embed\): set it"),
        ("a 1 2 3\nthe 1 2\n", r"line 2: expected a word and 3 numbers \(student.embed\), found 2"),
        ("a 1 2 3\nthe 1 2 3 4\n", "line 2: expected a word and 3 numbers .* found 4"),
        ("a 1 2 3\nthe\n", "line 2: .* found 0"),
        ("a 1 2 3\n\nthe 1 x 3\n", "line 3: expected finite numbers, found 'x'"),
        ("the 1 nan 3\n", "line 1: expected finite numbers, found 'nan'"),
        ("the 1 2 1e99\n", "line 1: expected finite numbers, found '1e99'"),
    ],
)
def test_a_broken_line_is_named(tmp_path, text, said):
    path = tmp_path / "v.txt"
    path.write_text(text)
    with pytest.raises(CorpusError, match=rf"v\.txt, {said}"):
        read_vectors(path, {"the"}, 3)


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "vectors.vec").write_text("")
    with pytest.raises(CorpusError, match=r"vecotrs\.vec: no such file; .* holds vectors\.vec"):
        read_vectors(tmp_path / "vecotrs.vec", {"the"}, 3)


words = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=6)
numbers = st.floats(-100, 100, width=32)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(words, st.lists(numbers, min_size=3, max_size=3), min_size=1), st.booleans())
def test_what_is_written_comes_back(tmp_path_factory, table, header):
    path = tmp_path_factory.mktemp("vectors") / "v.txt"
    lines = [f"{len(table)} 3"] * header
    lines += [f"{word} {' '.join(map(repr, row))}" for word, row in table.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = read_vectors(path, table, 3)
    assert found.keys() == table.keys()
    for word, row in table.items():
        np.testing.assert_array_equal(found[word], np.array(row, np.float32))
