"""The tagger without JAX equals the JAX student, on any text, and its offsets point at the text."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.deploy.toys import MAX_LENGTH, TAGS, TOKENIZER, reseal, save_toy, toy_params, toy_spec
from xdistil_jax import trees
from xdistil_jax.data.corpus import Sentence
from xdistil_jax.data.encode import encode
from xdistil_jax.deploy.bilstm import bilstm_logits
from xdistil_jax.deploy.bundle import BundleError, load_bundle
from xdistil_jax.deploy.tagger import Entity, Tagger
from xdistil_jax.distill.evaluate import tags_by_sentence
from xdistil_jax.labels import repair, spans
from xdistil_jax.models.functional import build
from xdistil_jax.scoring import best_tags
from xdistil_jax.text import split_words

SPECS = [
    toy_spec(),
    toy_spec(projection="linear"),
    toy_spec(head_on="bilstm"),
    toy_spec(projection="linear", head_on="bilstm"),
]
NASTY = [
    "",
    " \t\n ",
    "A",
    "Anna Berg fuhr nach Berlin, dann weiter.",
    "Anna Berg " * 200,
    "Donaudampfschifffahrtsgesellschaftskapitän" * 30,
    "👩‍👩‍👧‍👦 Anna 🇩🇪 Berlin 👍🏽 e\u0301te\u0301",
    "وصلت آنا إلى برلين، ثم سافرت.",
    "\u202eAnna\u202c \u200fברלין\u200e",
    "Anna\x00Berg\x07 \x1b[31mBerlin\x1b[0m \x7f",
    "東京都に行きました。กรุงเทพมหานคร",
    "AnnaBergfuhrnachBerlinunddannweiter" * 5,
    "[CLS] Anna [SEP] [PAD] [UNK] [MASK] ##berg",
    "lone \ud800 surrogate",
    "\ufeffAnna \u00adBer\u00adlin\u2028Москва\u3000東京",
    "don't d’Arc 3.5 1,000:30 ___ @#$",
    "\U0010ffff \ue000 Anna",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "student"
    save_toy(folder)
    return folder


@pytest.fixture(scope="module")
def tagger(folder):
    return Tagger.load(folder)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.projection}-{s.head_on}")
def test_logits_equal_the_jax_student(tmp_path, spec):
    params = save_toy(tmp_path / "student", spec, seed=1)
    rng = np.random.default_rng(0)
    tokens, lengths = rng.integers(0, spec.vocab_size, (5, 11)), np.array([11, 7, 1, 2, 0])
    ours = bilstm_logits(load_bundle(tmp_path / "student"), tokens, lengths)
    theirs = _forward(params, tokens, lengths, spec=spec).logits
    real = np.arange(11) < lengths[:, None]
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours[real], np.asarray(theirs)[real], atol=1e-5, rtol=1e-5)


def test_large_gates_do_not_overflow(tmp_path):
    spec = toy_spec()
    weights = dict(trees.leaves(toy_params(spec)))
    weights["bilstm/bias"] = 1e4 * weights["bilstm/bias"]
    save_toy(tmp_path / "s", weights=weights)
    with np.errstate(all="raise"):
        logits = bilstm_logits(load_bundle(tmp_path / "s"), np.ones((1, 4), int), np.array([4]))
    assert np.isfinite(logits).all()


def jax_tags(sentences, spec, params, folder, decoding):
    """What the student in JAX says, row by row of the store on disk, without padding."""
    store = encode(sentences, TOKENIZER, None, max_length=MAX_LENGTH, folder=folder)
    found = np.full((store.word_counts.sum(), len(TAGS)), np.nan, np.float32)
    for row in range(store.rows):
        part = slice(store.offsets[row], store.offsets[row + 1])
        length = part.stop - part.start
        # One width, so that one program is compiled.
        tokens = np.zeros((1, MAX_LENGTH), np.int32)
        tokens[0, :length] = store.tokens[part]
        logits = _forward(params, tokens, np.array([length]), spec=spec).logits
        owned = store.owned[part]
        slots = store.word_offsets[store.sentence[row]] + store.word[part][owned]
        found[slots] = np.asarray(logits)[0, :length][owned]
    numbers = jnp.asarray(found).argmax(-1)
    if decoding == "iob2":
        starts, sizes = jnp.asarray(store.word_offsets[:-1]), jnp.asarray(store.word_counts)
        numbers = best_tags(jnp.asarray(found), starts, sizes, TAGS.follows)
    return tags_by_sentence(numbers, store, TAGS)


@partial(jax.jit, static_argnames="spec")
def _forward(params, tokens, lengths, *, spec):
    return build(spec).apply(params, tokens, lengths)


def words_of(texts):
    return [Sentence(tuple(w.text for w in split_words(text)), None, "und") for text in texts]


@pytest.mark.parametrize("decoding", ["iob2", "argmax"])
def test_tags_equal_the_jax_student_on_nasty_texts(tmp_path, decoding):
    save_toy(tmp_path / "student", decoding=decoding)
    sentences = words_of(NASTY)
    ours = Tagger.load(tmp_path).tags(sentences)
    assert [len(tags) for tags in ours] == [len(sentence.words) for sentence in sentences]
    assert ours == jax_tags(sentences, toy_spec(), toy_params(toy_spec()), tmp_path, decoding)
    assert all(repair(tags)[1] == 0 for tags in ours) == (decoding == "iob2")
    # The toy has something to say: otherwise the test would compare nothing.
    assert len({tag for tags in ours for tag in tags}) >= 4


def test_entities_are_the_spans_of_the_tags(tagger):
    found = tagger(NASTY)
    assert len(found) == len(NASTY)
    for text, entities, tags in zip(NASTY, found, tagger.tags(words_of(NASTY)), strict=True):
        words = split_words(text)
        assert all(0 < e.score <= 1 for e in entities)
        assert [(e.type, e.start, e.end) for e in entities] == [
            (span.type, words[span.start].start, words[span.end - 1].end) for span in spans(tags)
        ]
    assert sum(map(len, found)) > 20


def check_offsets(text, entities):
    end = 0
    for entity in entities:
        assert isinstance(entity, Entity)
        assert entity.text == text[entity.start : entity.end] != ""
        assert entity.start >= end
        assert entity.type in TAGS.types
        end = entity.end


@pytest.mark.parametrize("text", NASTY, ids=lambda text: ascii(text)[:20])
def test_offsets_point_at_the_text(tagger, text):
    check_offsets(text, tagger([text])[0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=4))
def test_any_text_is_tagged(tagger, texts):
    found = tagger(texts)
    assert len(found) == len(texts)
    for text, entities in zip(texts, found, strict=True):
        check_offsets(text, entities)


def test_a_text_is_tagged_the_same_in_any_company(tagger):
    together = tagger(NASTY)
    assert [tagger([text])[0] for text in NASTY] == together
    assert tagger(NASTY[::-1]) == together[::-1]


def test_more_texts_than_a_batch_keep_their_order(tagger):
    texts = [f"{'Anna ' * (n % 7)}Berlin {n}" for n in range(100)]
    assert tagger(texts) == [tagger([text])[0] for text in texts]


def test_nothing_gives_nothing(tagger):
    assert tagger([]) == []
    assert tagger.tags([]) == []
    assert tagger.tags([Sentence((), None, "und")]) == [()]


def test_a_run_folder_is_as_good_as_the_student_in_it(folder):
    assert Tagger.load(folder.parent)(["Anna"]) == Tagger.load(folder)(["Anna"])
    assert Tagger.load(str(folder))(["Anna"]) == Tagger.load(folder)(["Anna"])


def test_tags_in_an_interpreter_without_jax(folder):
    code = (
        "import sys\n"
        "for name in ('jax', 'flax', 'transformers', 'datasets', 'torch', 'tyro'):\n"
        "    sys.modules[name] = None\n"
        "from xdistil_jax import Tagger\n"
        "print(len(Tagger.load(sys.argv[1])(['Anna Berg fuhr nach Berlin'])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_a_single_text_gives_a_single_answer(tagger):
    text = NASTY[3]
    assert tagger(text) == tagger([text])[0] != []
    assert tagger(text, aggregate="none") == tagger([text], aggregate="none")[0]
    for wrong in (3, None):
        with pytest.raises(TypeError, match=f"expected a text or a list of texts, found {wrong}"):
            tagger(["text", wrong])
    with pytest.raises(ValueError, match="aggregate is 'max': expected 'simple' or 'none'"):
        tagger(text, aggregate="max")


def test_words_have_their_tags_and_places(tagger):
    found = tagger(NASTY, aggregate="none")
    for text, words, tags in zip(NASTY, found, tagger.tags(words_of(NASTY)), strict=True):
        assert tuple(word.tag for word in words) == tags
        assert [(w.word, w.start, w.end) for w in words] == [*map(tuple, split_words(text))]
        assert all(text[w.start : w.end] == w.word and 0 < w.score <= 1 for w in words)


def test_text_that_is_cut_into_words_is_tagged_as_it_is_cut(tagger):
    words = ["Anna", "Berg", "fuhr", "nach Berlin", "", ","]
    (found,) = tagger.tag_words([words], "none")
    assert [word.word for word in found] == words
    assert all(" ".join(words)[word.start : word.end] == word.word for word in found)
    (tags,) = tagger.tags([Sentence(tuple(words), None, "und")])
    assert tuple(word.tag for word in found) == tags
    (entities,) = tagger.tag_words([words])
    check_offsets(" ".join(words), entities)
    with pytest.raises(ValueError, match="tokenizer was to cut words into pieces"):
        tagger.tag_words([["\ud800"]])


def test_the_temperature_moves_scores_and_nothing_else(folder, tmp_path):
    save_toy(tmp_path / "hot", temperature=50.0)
    cold, hot = Tagger.load(folder)(NASTY), Tagger.load(tmp_path / "hot")(NASTY)
    assert [[e[:4] for e in each] for each in cold] == [[e[:4] for e in each] for each in hot]
    pairs = [(a.score, b.score) for x, y in zip(cold, hot, strict=True) for a, b in zip(x, y)]  # noqa: B905
    assert sum(b < a for a, b in pairs) > 0.9 * len(pairs)


def exported(folder):
    """The graph beside the weights, sealed."""
    onnx = pytest.importorskip("onnx")
    from xdistil_jax.deploy.onnx import build_graph

    onnx.save(build_graph(load_bundle(folder)), folder / "model.onnx")
    reseal(folder)


def test_a_graph_takes_the_place_of_the_weights(folder, tagger, tmp_path):
    other = shutil.copytree(folder, tmp_path / "s")
    exported(other)
    assert not np.allclose(Tagger.load(other).bundle.temperature, 0)
    (other / "model.safetensors").unlink()
    for threads in (None, 1, 2):
        with_graph = Tagger.load(other, threads=threads)
        assert not with_graph.bundle.weights
        for mine, theirs in zip(with_graph(NASTY), tagger(NASTY), strict=True):
            assert [e[:4] for e in mine] == [e[:4] for e in theirs]
            np.testing.assert_allclose([e[4] for e in mine], [e[4] for e in theirs], atol=1e-3)


def test_precisions_and_threads_that_there_are_not_are_refused(folder):
    with pytest.raises(BundleError, match=r"model\.int8\.onnx is missing"):
        Tagger.load(folder, precision="int8")
    with pytest.raises(ValueError, match="precision is 'fp16': expected auto, fp32, int8"):
        Tagger.load(folder, precision="fp16")
    with pytest.raises(ValueError, match="threads is 0: expected at least 1"):
        Tagger.load(folder, threads=0)
    with pytest.raises(BundleError, match=r"revision v1: .* is no name on the Hugging Face hub"):
        Tagger.load(folder, revision="v1")


@pytest.mark.parametrize("graph", [False, True])
def test_eight_threads_get_what_one_gets(folder, tmp_path, graph):
    other = shutil.copytree(folder, tmp_path / "s")
    if graph:
        exported(other)
    shared, batches = Tagger.load(other), [NASTY[n % 5 :] + NASTY[: n % 7] for n in range(48)]
    alone = [shared(batch) for batch in batches]
    fresh = Tagger.load(other)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(fresh, batches)) == alone


def test_damaged_weights_are_told_by_their_logits(tmp_path):
    weights = dict(trees.leaves(toy_params(toy_spec())))
    weights["head/bias"] = np.full_like(weights["head/bias"], np.nan)
    save_toy(tmp_path / "s", weights=weights)
    with pytest.raises(BundleError, match="logits aren't finite"):
        Tagger.load(tmp_path / "s")("Anna")


def test_answers_like_the_pipeline_of_transformers(tagger):
    """Same calls, same shape of answers, same keys in the same order, same types."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from tests.models.references.make import FOLDER

    model = transformers.AutoModelForTokenClassification.from_pretrained(FOLDER)
    torch.nn.init.normal_(model.classifier.bias, std=3.0)
    theirs = transformers.pipeline(
        "token-classification",
        model=model,
        tokenizer=transformers.PreTrainedTokenizerFast(
            tokenizer_object=TOKENIZER.backend, pad_token="[PAD]", unk_token="[UNK]"
        ),
    )
    model.get_input_embeddings().weight.data = torch.randn(
        TOKENIZER.vocab_size, model.config.hidden_size
    )

    def shape(value):
        if isinstance(value, list):
            return [shape(each) for each in value[:1]]
        return {key: isinstance(each, str | int) or "number" for key, each in value.items()}

    text = "Anna Berg fuhr nach Berlin, dann weiter."
    for inputs in (text, [text], [text, text]):
        for strategy in ("none", "simple", "first", "average", "max"):
            options = {"aggregation_strategy": strategy, "ignore_labels": []}
            ours = tagger.pipeline(inputs, **options)
            assert shape(ours) == shape(theirs(inputs, **options)) != []
    assert [word["index"] for word in tagger.pipeline(text, ignore_labels=[])] == [*range(1, 10)]
    assert all(word["entity"] != "O" for word in tagger.pipeline(text))
    assert tagger.pipeline(text, aggregation_strategy="simple") == [
        {"entity_group": e.type, "score": e.score, "word": e.text, "start": e.start, "end": e.end}
        for e in tagger(text)
    ]
    with pytest.raises(ValueError, match="aggregation_strategy is 'some': expected none, simple"):
        tagger.pipeline(text, aggregation_strategy="some")
