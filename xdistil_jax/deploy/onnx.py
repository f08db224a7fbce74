"""The graphs of a student that are shipped: fp32, int8, and fp32 that lies on disk as int8."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float, Int8
from onnx import NodeProto, TensorProto, helper, numpy_helper

from xdistil_jax.deploy.bundle import Bundle, BundleError
from xdistil_jax.deploy.nodes import GRAPHS, Graph

# Smaller constants stay fp32: norms, biases, and the head, on whose few columns much depends.
_LARGE = 1 << 14
_MICROSOFT = "com.microsoft"
_STORED, _MULTIPLIED = 127, 63


def build_graph(bundle: Bundle) -> onnx.ModelProto:
    """The graph of a student, its weights in it, all fp32.

    Raises:
        BundleError: for a kind of student that there is no graph of.
    """
    if bundle.kind not in GRAPHS:
        kinds = ", ".join(GRAPHS)
        raise BundleError(f"a student of kind {bundle.kind!r}: this version exports {kinds}")
    graph = Graph(bundle)
    return _checked(graph.finish(GRAPHS[bundle.kind](graph)))


def dynamic_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of ``build_graph`` with products of int8: a quarter of its size, and faster on CPUs.

    Weights have a scale for each output channel, rows of the embedding one each; what they are
    multiplied with is scaled when it is there, by the whole batch, so that a text's logits depend
    a little on its company. Those weights have seven bits: x86 without VNNI adds two products of
    eight in 16 bits, where they overflow, and every processor is to give the same answers.
    """
    return _rewritten(
        model, {"Gather": _stored_rows, "LSTM": _dynamic_lstm, "MatMul": _dynamic_product}
    )


def stored_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of ``build_graph`` that computes in fp32 with weights that are stored as int8.

    As small as ``dynamic_int8``, and as fast as fp32: a runtime expands the weights as it loads
    them, the embedding's rows as they are read. For WebAssembly, where the LSTM of int8 is slower.
    """
    return _rewritten(
        model, {"Gather": _stored_rows, "LSTM": _stored_lstm, "MatMul": _stored_product}
    )


def save_graph(model: onnx.ModelProto, path: str | Path) -> None:
    """Write a graph, its weights in the same file."""
    onnx.save(model, path)


class _Constants:
    """The constants of a graph that is being rewritten."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.known = {each.name: each for each in model.graph.initializer}

    def large(self, name: str) -> bool:
        """Is it a constant that is worth the trouble?"""
        return name in self.known and np.prod(self.known[name].dims) > _LARGE

    def quantised(
        self, name: str, axis: int, largest: int = _STORED
    ) -> tuple[Int8[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
        """int8 of so many levels to each side, and the scales.

        Each is for a line along ``axis``, which stays as an axis of 1.
        """
        array = numpy_helper.to_array(self.known[name])
        scale = np.abs(array).max(axis=axis, keepdims=True) / np.float32(largest)
        scale = np.where(scale == 0, np.float32(1), scale)
        return np.rint(array / scale).astype(np.int8), scale

    def put(self, name: str, array: np.ndarray) -> str:
        self.known[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name


_Rewrite = Callable[[_Constants, NodeProto], list[NodeProto]]


def _rewritten(model: onnx.ModelProto, rules: Mapping[str, _Rewrite]) -> onnx.ModelProto:
    constants, nodes = _Constants(model), []
    for node in model.graph.node:
        rule = rules.get(node.op_type)
        weights = any(map(constants.large, node.input))
        nodes += rule(constants, node) if rule and weights else [node]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        model.graph.name,
        model.graph.input,
        model.graph.output,
        [each for name, each in constants.known.items() if name in used],
    )
    opsets = [*model.opset_import, helper.make_opsetid(_MICROSOFT, 1)]
    return _checked(
        helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=model.ir_version,
            producer_name=model.producer_name,
        )
    )


def _checked(model: onnx.ModelProto) -> onnx.ModelProto:
    onnx.checker.check_model(model, full_check=True)
    return model


def _stored_rows(constants: _Constants, node: NodeProto) -> list[NodeProto]:
    table, which = node.input
    rows, scale = constants.quantised(table, -1)
    integers, scales = constants.put(f"{table}:int8", rows), constants.put(f"{table}:scale", scale)
    name = node.output[0]
    return [
        helper.make_node("Gather", [integers, which], [f"{name}:int8"]),
        helper.make_node("Gather", [scales, which], [f"{name}:scale"]),
        helper.make_node("Cast", [f"{name}:int8"], [f"{name}:fp32"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}:fp32", f"{name}:scale"], [name]),
    ]


def _stored(constants: _Constants, name: str, axis: int) -> list[NodeProto]:
    """Nodes that give the constant ``name`` under its own name with ``:fp32`` behind it.

    Cast and Mul of constants, which every runtime folds: onnxruntime leaves DequantizeLinear for
    each call.
    """
    integers, scale = constants.quantised(name, axis)
    given = constants.put(f"{name}:int8", integers), constants.put(f"{name}:scale", scale)
    return [
        helper.make_node("Cast", [given[0]], [f"{name}:cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}:cast", given[1]], [f"{name}:fp32"]),
    ]


def _with_inputs(node: NodeProto, inputs: Mapping[str, str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [inputs.get(name, name) for name in node.input]
    return copy


def _stored_lstm(constants: _Constants, node: NodeProto) -> list[NodeProto]:
    weights = node.input[1:3]
    before = [each for name in weights for each in _stored(constants, name, -1)]
    return [*before, _with_inputs(node, {name: f"{name}:fp32" for name in weights})]


def _stored_product(constants: _Constants, node: NodeProto) -> list[NodeProto]:
    weight = node.input[1]
    return [*_stored(constants, weight, 0), _with_inputs(node, {weight: f"{weight}:fp32"})]


def _dynamic_lstm(constants: _Constants, node: NodeProto) -> list[NodeProto]:
    x, *weights, bias, lengths = node.input
    integers, scales = [], []
    for name in weights:
        found, scale = constants.quantised(name, -1, _MULTIPLIED)
        integers.append(constants.put(f"{name}:int8", found.swapaxes(1, 2)))
        scales.append(constants.put(f"{name}:scale", scale[..., 0]))
        scales.append(constants.put(f"{name}:zero", np.zeros(scale.shape[:2], np.int8)))
    options = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    inputs = [x, *integers, bias, lengths, "", "", "", *scales]
    return [
        helper.make_node("DynamicQuantizeLSTM", inputs, node.output, domain=_MICROSOFT, **options)
    ]


def _dynamic_product(constants: _Constants, node: NodeProto) -> list[NodeProto]:
    """In the form that onnxruntime knows as one operator."""
    (x, weight), (name,) = node.input, node.output
    integers, scale = constants.quantised(weight, 0, _MULTIPLIED)
    kernel = constants.put(f"{weight}:int8", integers)
    by_column = constants.put(f"{weight}:scale", scale[0])
    parts = [f"{name}:{part}" for part in ("x", "scale", "zero")]
    return [
        helper.make_node("DynamicQuantizeLinear", [x], parts),
        helper.make_node("MatMulInteger", [parts[0], kernel, parts[2]], [f"{name}:int32"]),
        helper.make_node("Cast", [f"{name}:int32"], [f"{name}:fp32"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [parts[1], by_column], [f"{name}:both"]),
        helper.make_node("Mul", [f"{name}:fp32", f"{name}:both"], [name]),
    ]
