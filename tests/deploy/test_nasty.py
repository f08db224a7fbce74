"""Whatever the text, a student says the same in JAX, in NumPy and as a graph; int8 nearly so."""

import onnx
import pytest

from tests.deploy.nasty import NASTY
from tests.deploy.test_int8 import random_student
from tests.deploy.test_onnx import saved
from tests.deploy.test_transformer import SPECS as ENCODERS
from tests.deploy.toys import TAGS, TOKENIZER, toy_spec
from xdistil_jax.deploy.onnx import build_graph, dynamic_int8, stored_int8
from xdistil_jax.deploy.runtime import Runtime
from xdistil_jax.deploy.tagger import LOGITS
from xdistil_jax.export import in_jax
from xdistil_jax.gate import Texts
from xdistil_jax.models.transformer import TransformerSpec

STUDENTS = {
    "bilstm": toy_spec(),
    "linear": toy_spec(projection="linear"),
    "transformer": TransformerSpec(ENCODERS["types"], imitates=()),
}
TEXTS = tuple(NASTY.values())


def answers(bundle, forward):
    """The entities of each text, all texts asked together."""
    return dict(zip(NASTY, Texts.of(bundle, TEXTS).entities(forward), strict=True))


@pytest.fixture(scope="module", params=STUDENTS.values(), ids=STUDENTS)
def found(request, tmp_path_factory):
    """Artefact -> name of the text -> its entities."""
    folder = tmp_path_factory.mktemp("nasty")
    bundle, _ = saved(folder / "student", request.param)
    model = build_graph(bundle)
    onnx.save(model, folder / "model.onnx")
    onnx.save(dynamic_int8(model), folder / "int8.onnx")
    forwards = {
        "jax": in_jax(bundle),
        "numpy": lambda tokens, lengths: LOGITS[bundle.kind](bundle, tokens, lengths),
        "onnx": Runtime(folder / "model.onnx", 1).logits,
        "int8": Runtime(folder / "int8.onnx", 1).logits,
    }
    return {name: answers(bundle, forward) for name, forward in forwards.items()}


def test_there_are_enough():
    assert len(set(TEXTS)) == len(TEXTS) >= 40
    assert max(len(text.split()) for text in TEXTS) >= 10_000


@pytest.mark.parametrize("name", NASTY)
def test_all_forms_say_the_same(found, name):
    assert found["numpy"][name] == found["jax"][name]
    assert found["onnx"][name] == found["jax"][name]


def test_there_is_something_to_say(found):
    assert sum(map(bool, found["jax"].values())) > len(NASTY) / 2
    assert not found["jax"]["empty"]
    assert not found["jax"]["only white space"]


@pytest.mark.parametrize("name", NASTY)
def test_offsets_of_int8_point_at_words(found, name):
    text, end = NASTY[name], 0
    for kind, first, last in found["int8"][name]:
        assert end <= first < last <= len(text)
        assert kind in TAGS.types
        assert not text[first].isspace()
        assert not text[last - 1].isspace()
        end = last


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Artefact -> logits of all pieces of all texts, of a student of the paper's size."""
    bundle = random_student(TOKENIZER.vocab_size)
    folder, model = tmp_path_factory.mktemp("large"), build_graph(bundle)
    logits = {}
    for name, form in (("fp32", lambda m: m), ("int8", dynamic_int8), ("stored", stored_int8)):
        onnx.save(form(model), folder / f"{name}.onnx")
        logits[name] = answers(bundle, Runtime(folder / f"{name}.onnx", 1).logits)
    return logits


@pytest.mark.parametrize("name", ["int8", "stored"])
def test_int8_finds_nearly_all_that_fp32_does(large, name):
    """Of products that are large enough to be int8."""
    pairs = [(set(large["fp32"][each]), set(large[name][each])) for each in NASTY]
    both = sum(len(one & other) for one, other in pairs)
    f1 = 2 * both / sum(len(one) + len(other) for one, other in pairs)
    assert sum(len(one) for one, _ in pairs) > 1000
    assert f1 > 0.9
