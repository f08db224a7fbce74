"""A graph is looked through before it is run: one file, operators that are known, nothing else."""

import pytest

from tests.deploy.toys import save_toy
from xdistil_jax.deploy.bundle import BundleError, load_bundle
from xdistil_jax.deploy.graph import check_graph

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402


@pytest.fixture
def model(tmp_path):
    from xdistil_jax.deploy.onnx import build_graph

    save_toy(tmp_path / "s")
    return build_graph(load_bundle(tmp_path / "s"))


def check(model, folder):
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    check_graph(path)


def test_ours_are_fine(model, tmp_path):
    check(model, tmp_path)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node[0].domain = "ai.onnx"
    check(model, tmp_path)


def outside(tensor):
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")


def nested(model):
    """An operator of a strange domain in the branch of an If."""
    inner = helper.make_graph([helper.make_node("X", [], ["y"], domain="evil")], "g", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=inner))


CHANGES = {
    "data": (lambda model: outside(model.graph.initializer[0]), "its weights are in another file"),
    "location": (
        lambda model: setattr(model.graph.initializer[0], "data_location", TensorProto.EXTERNAL),
        "its weights are in another file",
    ),
    "constant": (
        lambda model: model.graph.node.append(
            helper.make_node("Constant", [], ["k"], value=_external_tensor())
        ),
        "its weights are in another file",
    ),
    "domain": (lambda model: setattr(model.graph.node[0], "domain", "evil"), "domain 'evil'"),
    "opset": (
        lambda model: model.opset_import.append(helper.make_opsetid("evil", 1)),
        "domain 'evil'",
    ),
    "branch": (nested, "domain 'evil'"),
    "function": (
        lambda model: model.functions.append(
            helper.make_function("mine", "f", [], [], [], [helper.make_opsetid("", 20)])
        ),
        "functions of its own",
    ),
}


def _external_tensor():
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [1], [0.0])
    outside(tensor)
    return tensor


@pytest.mark.parametrize("change", CHANGES)
def test_what_reaches_beyond_the_file_is_refused(model, tmp_path, change):
    alter, said = CHANGES[change]
    alter(model)
    with pytest.raises(BundleError, match=rf"model\.onnx is no graph of a student: .*{said}"):
        check(model, tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 40, b"\x3a\xff\xff\xff\x0f", b"\x0b", b"\x3a\x05"]
)
def test_what_is_no_message_is_refused(tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="no graph of a student"):
        check_graph(tmp_path / "model.onnx")
