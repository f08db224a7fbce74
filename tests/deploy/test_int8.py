"""int8: near the fp32 graph, as small as promised, and no row that pays for another's size."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from tests.deploy.test_onnx import batch, real_of, saved
from tests.deploy.toys import TOKENIZER
from xdistil_jax.deploy import onnx as ours
from xdistil_jax.deploy.bundle import Bundle
from xdistil_jax.deploy.runtime import Runtime
from xdistil_jax.labels import ClassSet, TagSet
from xdistil_jax.models.bilstm import BiLSTMSpec, parameter_count
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.transformer import TransformerSpec

PIECES, E, H, D = 88_500, 50, 200, 768
TAGS = TagSet(("LOC", "ORG", "PER"))
FORMS = {"fp32": lambda model: model, "dynamic": ours.dynamic_int8, "stored": ours.stored_int8}


def random_student(pieces=PIECES, pool="none", classes=TAGS, seed=0):
    """Of the sizes of the paper's, with weights as large as trained ones are."""
    random = np.random.default_rng(seed)

    def normal(scale, *shape):
        return (scale * random.standard_normal(shape)).astype(np.float32)

    weights = {
        "embed/table": normal(0.3, pieces, E),
        "bilstm/kernel": normal(0.14, 2, E, 4 * H),
        "bilstm/recurrent": normal(0.07, 2, H, 4 * H),
        "bilstm/bias": normal(0.1, 2, 4 * H),
        "projection/kernel": normal(0.05, 2 * H, D),
        "projection/bias": normal(0.1, D),
        "head/kernel": normal(0.2, D, len(classes)),
        "head/bias": normal(1.0, len(classes)),
    }
    sizes = {"projection": "gelu", "head_on": "projection", "pool": pool}
    return Bundle("bilstm", sizes, weights, TOKENIZER, classes, 64, "iob2")


def large_transformer(folder):
    spec = EncoderSpec(
        TOKENIZER.vocab_size * 2, 132, 2, 3, 264, positions=16, token_types=2, classes=5,
        stacked=False, separator=3,
    )  # fmt: skip
    bundle, _ = saved(folder, TransformerSpec(spec, imitates=()))
    # Weights of a trained student's size: the toy's make of all attention a choice of one piece.
    return replace(bundle, weights={path: 0.15 * leaf for path, leaf in bundle.weights.items()})


STUDENTS = {
    "tagger": lambda folder: random_student(2_000),
    "last": lambda folder: random_student(2_000, "last", ClassSet(("a", "b"))),
    "max": lambda folder: random_student(2_000, "max", ClassSet(("a", "b"))),
    "transformer": large_transformer,
}


def written(model, path):
    onnx.save(model, path)
    return Runtime(path, threads=1)


@pytest.fixture(scope="module", params=STUDENTS.values(), ids=STUDENTS)
def graphs(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    model = ours.build_graph(request.param(folder / "student"))
    return {name: form(model) for name, form in FORMS.items()}


@pytest.fixture(scope="module")
def runtimes(graphs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    return {name: written(each, folder / f"{name}.onnx") for name, each in graphs.items()}


@pytest.mark.parametrize("form", ["dynamic", "stored"])
def test_logits_are_near_those_of_fp32(runtimes, form):
    tokens, lengths = batch(20, 12)
    real = real_of(tokens, lengths)
    exact, found = (runtimes[name].logits(tokens, lengths)[real] for name in ("fp32", form))
    off = np.abs(found - exact)
    assert 0 < off.max() < (0.02 if form == "stored" else 0.04) * np.ptp(exact)


def test_stored_weights_leave_a_text_alone(runtimes):
    """fp32 arithmetic: its logits are no matter of its company."""
    tokens, lengths = batch(6, 12)
    together = runtimes["stored"].logits(tokens, lengths)
    for row, length in enumerate(lengths):
        if length:
            alone = runtimes["stored"].logits(
                tokens[row : row + 1, :length], lengths[row : row + 1]
            )
            np.testing.assert_allclose(alone[0], together[row, :length], atol=1e-5, rtol=0)


def test_large_weights_are_int8_and_small_ones_fp32(graphs):
    for name in ("dynamic", "stored"):
        for each in graphs[name].graph.initializer:
            size, int8 = np.prod(each.dims), each.data_type == onnx.TensorProto.INT8
            assert int8 == (size > 1 << 14) or "zero" in each.name, each.name


def test_stored_weights_are_expanded_once(graphs, tmp_path):
    """As the graph is loaded, all but the embedding's rows; each call is then as fast as fp32."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(graphs["stored"].SerializeToString(), options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "loaded.onnx").graph.node]
    before = [node.op_type for node in graphs["fp32"].graph.node]
    assert kinds.count("Cast") <= before.count("Cast") + 1
    assert [node.op_type for node in graphs["stored"].graph.node].count("Cast") > kinds.count(
        "Cast"
    )


def test_operators_are_those_that_are_wanted(graphs):
    kinds = {name: {node.op_type for node in each.graph.node} for name, each in graphs.items()}
    if "LSTM" in kinds["fp32"]:
        assert "LSTM" in kinds["stored"]
        assert "DynamicQuantizeLSTM" in kinds["dynamic"]
        assert "LSTM" not in kinds["dynamic"]
    assert "MatMulInteger" in kinds["dynamic"]
    assert not {"MatMulInteger", "DynamicQuantizeLinear"} & kinds["stored"]


def test_each_row_of_the_embedding_has_its_own_scale(tmp_path):
    """A rare piece of small weights beside one of large ones."""
    student = random_student(2_000)
    table = student.weights["embed/table"]
    table[0] *= 1e4
    table[1] = 0
    models = {name: form(ours.build_graph(student)) for name, form in FORMS.items()}
    runtimes = {name: written(each, tmp_path / f"{name}.onnx") for name, each in models.items()}
    tokens = np.arange(1, 40)[None]
    found = {name: each.logits(tokens, np.array([39])) for name, each in runtimes.items()}
    for name in ("dynamic", "stored"):
        assert np.abs(found[name] - found["fp32"]).max() < 0.04 * np.ptp(found["fp32"])


def test_files_are_as_small_as_promised():
    """E=50, H=200 and 88,500 pieces: the weights of the paper's smaller student."""
    student = random_student()
    wanted = parameter_count(BiLSTMSpec(PIECES, E, H, D, len(TAGS)))
    assert sum(leaf.size for leaf in student.weights.values()) == wanted
    model = ours.build_graph(student)
    assert model.ByteSize() < 21e6
    assert ours.dynamic_int8(model).ByteSize() < 6e6
    assert ours.stored_int8(model).ByteSize() < 6e6


def test_products_fit_into_sixteen_bits(graphs):
    """x86 without VNNI adds two of them, of 255 and a weight, in so many."""
    for each in graphs["dynamic"].graph.initializer:
        if each.data_type == onnx.TensorProto.INT8 and not each.name.startswith("embed/"):
            largest = np.abs(numpy_helper.to_array(each).astype(int)).max()
            assert largest in (0, 63), each.name
