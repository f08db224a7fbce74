"""Public names: all there, imported on first use, honest about what is not installed."""

import sys

import pytest

import xdistil_jax
from xdistil_jax import lazy


def test_every_public_name_can_be_used():
    for name in xdistil_jax.__all__:
        assert callable(getattr(xdistil_jax, name)), name
    assert dir(xdistil_jax) == xdistil_jax.__all__ == sorted(set(xdistil_jax.__all__))
    assert 20 <= len(xdistil_jax.__all__) <= 30


def test_a_public_name_is_the_one_of_its_module():
    from xdistil_jax.labels import TagSet

    assert xdistil_jax.TagSet is TagSet


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'xdistil_jax' has no attribute 'Trainer'"):
        xdistil_jax.Trainer  # noqa: B018
    assert not hasattr(xdistil_jax, "Trainer")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose modules fail in the three ways in which an import can."""
    folder = tmp_path / "toy_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "outside.py").write_text("import no_such_dependency_of_ours.inner\n")
    (folder / "inside.py").write_text("import xdistil_jax.no_such_room\n")
    (folder / "broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "toy_package"
    for name in [each for each in sys.modules if each.startswith("toy_package")]:
        del sys.modules[name]


def test_what_is_not_installed_comes_with_the_pip_command(package):
    load = lazy.names(package, {"thing": "outside"})
    with pytest.raises(ImportError) as caught:
        load("thing")
    assert str(caught.value) == (
        "toy_package.thing needs no_such_dependency_of_ours, which is not installed: "
        'pip install "xdistil_jax[train]"'
    )


def test_a_mistake_of_our_own_is_not_called_a_missing_dependency(package):
    load = lazy.names(package, {"thing": "inside", "other": "broken"})
    with pytest.raises(ModuleNotFoundError, match="no_such_room"):
        load("thing")
    with pytest.raises(ZeroDivisionError):
        load("other")
