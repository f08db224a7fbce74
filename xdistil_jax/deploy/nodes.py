"""A student as an ONNX graph, written by hand with ONNX's own operators.

Inputs ``tokens`` int64 [B, T] and ``lengths`` int32 [B], output ``logits`` fp32 [B, T, C]; batch
and length are free, and what stands in the padding changes no real logit. The LSTM is the
operator, both directions at once, so that a runtime takes its own kernel for it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from xdistil_jax.deploy.bundle import Bundle

# Opset 20 has GELU and layer normalisation; IR 10 is what runtimes of its time read.
_OPSET, _IR = 20, 10
_OUTPUT = "logits"


class Graph:
    """Of one student: nodes in order, and the constants they read, all known by their names."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """The name of the first output; of the others, it with ``:1`` and so on behind it."""
        first = f"{operator.lower()}_{len(self.nodes)}"
        names = [first, *(f"{first}:{number}" for number in range(1, outputs))]
        self.nodes.append(helper.make_node(operator, inputs, names, name=first, **attributes))
        return first

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        array = np.ascontiguousarray(value, dtype)
        # ascontiguousarray makes a scalar a vector.
        self.constants[name] = numpy_helper.from_array(array.reshape(np.shape(value)), name)
        return name

    def whole(self, *numbers: int) -> str:
        """A vector of integers, as axes and shapes are given."""
        return self.constant("whole_" + "_".join(map(str, numbers)), numbers, np.int64)

    def weight(self, path: str) -> str:
        return self.constant(path, self.bundle.weights[path])

    def dense(self, path: str, x: str) -> str:
        return self.add(
            "Add", self.add("MatMul", x, self.weight(f"{path}/kernel")), self.weight(f"{path}/bias")
        )

    def real(self, width: str) -> str:
        """Which pieces are real: bool [B, T], of ``width``, the longest row."""
        zero = self.constant("zero", 0, np.int64)
        steps = self.add("Range", zero, width, self.constant("one", 1, np.int64))
        longest = self.add("Unsqueeze", "lengths", self.whole(1))
        return self.add("Less", self.add("Cast", steps, to=TensorProto.INT32), longest)

    def width(self) -> str:
        """T, a scalar."""
        return self.add("Squeeze", self.add("Shape", "tokens", start=1, end=2), self.whole(0))

    def finish(self, logits: str) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [logits], [_OUTPUT], name=_OUTPUT))
        shape = ("batch", "length", len(self.bundle.tagset))
        graph = helper.make_graph(
            self.nodes,
            "student",
            [
                helper.make_tensor_value_info("tokens", TensorProto.INT64, shape[:2]),
                helper.make_tensor_value_info("lengths", TensorProto.INT32, shape[:1]),
            ],
            [helper.make_tensor_value_info(_OUTPUT, TensorProto.FLOAT, shape)],
            [*self.constants.values()],
        )
        opset = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(
            graph, opset_imports=opset, ir_version=_IR, producer_name="xdistil_jax"
        )


def _bilstm(graph: Graph) -> str:
    sizes = graph.bundle.sizes
    # The operator wants time first.
    tokens = graph.add("Transpose", "tokens", perm=[1, 0])
    x = graph.add("Gather", graph.weight("embed/table"), tokens)
    states = _lstm(graph, x)
    pool = sizes.get("pool", "none")
    if pool == "none":
        both = _joined(graph, states, [2, 0, 1, 3])
    elif pool == "last":
        # The operator's last states: the forward one at the last piece, the other at the first.
        both = graph.add("Unsqueeze", _joined(graph, f"{states}:1", [1, 0, 2]), graph.whole(1))
    else:
        both = _maximum(graph, _joined(graph, states, [2, 0, 1, 3]))
    logits = _head(graph, both)
    return logits if pool == "none" else _padded(graph, logits)


def _lstm(graph: Graph, x: str) -> str:
    """States [T, 2, B, H]; the last of each direction are the second output."""
    weights = graph.bundle.weights
    hidden = weights["bilstm/recurrent"].shape[1]

    def turned(leaf: np.ndarray) -> np.ndarray:
        """Gates i, f, g, o in the operator's order i, o, f, g."""
        i, f, g, o = np.split(leaf, 4, axis=-1)
        return np.concatenate([i, o, f, g], axis=-1)

    bias = turned(weights["bilstm/bias"])
    return graph.add(
        "LSTM",
        x,
        graph.constant("bilstm/kernel", turned(weights["bilstm/kernel"]).swapaxes(1, 2)),
        graph.constant("bilstm/recurrent", turned(weights["bilstm/recurrent"]).swapaxes(1, 2)),
        graph.constant("bilstm/bias", np.concatenate([bias, np.zeros_like(bias)], axis=1)),
        "lengths",
        outputs=2,
        hidden_size=hidden,
        direction="bidirectional",
    )


def _joined(graph: Graph, states: str, order: Sequence[int]) -> str:
    """Both directions of each piece, or row, side by side; ``order`` puts them last but one."""
    apart = graph.add("Transpose", states, perm=order)
    return graph.add("Reshape", apart, graph.whole(*[0] * (len(order) - 2), -1))


def _maximum(graph: Graph, states: str) -> str:
    """Over the real pieces [B, 1, 2H]; 0 for a row without one."""
    axes = graph.whole(1)
    real = graph.add("Unsqueeze", graph.real(graph.width()), graph.whole(2))
    lowest = graph.constant("lowest", -np.inf)
    found = graph.add("ReduceMax", graph.add("Where", real, states, lowest), axes, keepdims=1)
    empty = graph.add("Equal", found, lowest)
    return graph.add("Where", empty, graph.constant("nothing", 0.0), found)


def _head(graph: Graph, both: str) -> str:
    sizes, weights = graph.bundle.sizes, graph.bundle.weights
    if sizes["head_on"] == "bilstm":
        return graph.dense("head", both)
    if sizes["projection"] == "gelu":
        projected = graph.add("Gelu", graph.dense("projection", both), approximate="tanh")
        return graph.dense("head", projected)
    # Two linear layers are one.
    kernel = weights["head/kernel"].astype(np.float64)
    joined = weights["projection/kernel"] @ kernel
    bias = weights["projection/bias"] @ kernel + weights["head/bias"]
    product = graph.add("MatMul", both, graph.constant("head/kernel", joined))
    return graph.add("Add", product, graph.constant("head/bias", bias))


def _padded(graph: Graph, logits: str) -> str:
    """[B, 1, C] -> [B, T, C], with zeros: only the first piece of a text has logits."""
    others = graph.add("Sub", graph.add("Shape", "tokens", start=1, end=2), graph.whole(1))
    pads = graph.add("Concat", graph.whole(0, 0, 0, 0), others, graph.whole(0), axis=0)
    return graph.add("Pad", logits, pads)


def _transformer(graph: Graph) -> str:
    sizes = graph.bundle.sizes["encoder"]
    width = graph.width()
    x = _embedded(graph, sizes, width)
    real = graph.add("Unsqueeze", graph.real(width), graph.whole(1, 2))
    nothing = graph.constant("nothing", 0.0)
    masked = graph.add("Where", real, nothing, graph.constant("masked", -1e30))
    for number in range(sizes["layers"]):
        blocks = (("attention", _attention), ("feed_forward", _feed_forward))
        for name, block in blocks:
            path = f"layer_{number + 1}/{name}"
            norm = f"{path}/norm"
            if sizes["pre_norm"]:
                normed = _normalize(graph, norm, x, sizes)
                x = graph.add("Add", x, block(graph, path, normed, masked, sizes))
            else:
                both = graph.add("Add", x, block(graph, path, x, masked, sizes))
                x = _normalize(graph, norm, both, sizes)
    if sizes["pre_norm"]:
        x = _normalize(graph, "norm", x, sizes)
    return graph.dense("head", x)


def _embedded(graph: Graph, sizes: dict[str, Any], width: str) -> str:
    weights = graph.bundle.weights
    x = graph.add("Gather", graph.weight("embed/table"), "tokens")
    places = weights["embed/positions"][sizes["position_offset"] :]
    separator = sizes.get("separator", -1)
    if sizes["token_types"]:
        places = places + weights["embed/types"][0]
    table = graph.constant("embed/positions", places)
    stop = graph.add("Unsqueeze", width, graph.whole(0))
    x = graph.add("Add", x, graph.add("Slice", table, graph.whole(0), stop, graph.whole(0)))
    if sizes["token_types"] > 1 and separator >= 0:
        x = graph.add("Add", x, _second_text(graph, separator))
    if not sizes["pre_norm"]:
        x = _normalize(graph, "embed/norm", x, sizes)
    return graph.dense("embed/projection", x) if "embed/projection/kernel" in weights else x


def _second_text(graph: Graph, separator: int) -> str:
    """What a piece behind the first text has more than one in it: fp32 [B, T, D]."""
    types = graph.bundle.weights["embed/types"]
    special = graph.constant("separator", separator, np.int64)
    ends = graph.add("Cast", graph.add("Equal", "tokens", special), to=TensorProto.INT32)
    before = graph.add("CumSum", ends, graph.constant("one", 1, np.int64), exclusive=1)
    second = graph.add("Greater", before, graph.constant("none", 0, np.int32))
    share = graph.add("Cast", graph.add("Unsqueeze", second, graph.whole(2)), to=TensorProto.FLOAT)
    return graph.add("Mul", share, graph.constant("embed/types", types[1] - types[0]))


def _normalize(graph: Graph, path: str, x: str, sizes: dict[str, Any]) -> str:
    scale, bias = graph.weight(f"{path}/scale"), graph.weight(f"{path}/bias")
    return graph.add("LayerNormalization", x, scale, bias, epsilon=sizes["norm_epsilon"])


def _attention(graph: Graph, path: str, x: str, masked: str, sizes: dict[str, Any]) -> str:
    split = graph.whole(0, 0, sizes["heads"], -1)

    def heads(name: str, order: list[int]) -> str:
        apart = graph.add("Reshape", graph.dense(f"{path}/{name}", x), split)
        return graph.add("Transpose", apart, perm=order)

    query, value = heads("query", [0, 2, 1, 3]), heads("value", [0, 2, 1, 3])
    key = heads("key", [0, 2, 3, 1])
    scale = graph.constant("scale", (sizes["width"] // sizes["heads"]) ** -0.5)
    scores = graph.add("Mul", graph.add("MatMul", query, key), scale)
    shares = graph.add("Softmax", graph.add("Add", scores, masked), axis=-1)
    mixed = graph.add("Transpose", graph.add("MatMul", shares, value), perm=[0, 2, 1, 3])
    return graph.dense(f"{path}/output", graph.add("Reshape", mixed, graph.whole(0, 0, -1)))


def _feed_forward(graph: Graph, path: str, x: str, masked: str, sizes: dict[str, Any]) -> str:
    operator, options = _ACTIVATIONS[sizes["activation"]]
    inner = graph.add(operator, graph.dense(f"{path}/up", x), **options)
    return graph.dense(f"{path}/down", inner)


_ACTIVATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "gelu": ("Gelu", {}),
    "gelu_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
}
GRAPHS: dict[str, Callable[[Graph], str]] = {"bilstm": _bilstm, "transformer": _transformer}
