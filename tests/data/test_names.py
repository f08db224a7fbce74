"""Names of the embedded corpus: each of one type, and libraries that are missing are asked for."""

import sys

import pytest

from xdistil_jax.data import names


def test_no_name_stands_in_two_types(monkeypatch):
    both = ["Da Silva", "Lac Noir", "Port Louis"]
    monkeypatch.setattr(names, "_places", lambda language, seed: both)
    monkeypatch.setattr(names, "_companies", lambda language, seed: [*both, "Noir et Fils"])
    divided = names.divide_names("fr", 0)
    assert {*divided["LOC"].open, *divided["LOC"].held_out} == set(both)
    assert divided["ORG"].open == ("Noir et Fils",)


@pytest.mark.parametrize("missing", ["faker", "babel"])
def test_missing_library_is_answered_with_the_pip_command(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r'pip install "xdistil_jax\[train\]"'):
        names.divide_names("en", 0)
