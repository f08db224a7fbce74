"""The gate sees what an artefact loses, on words and on raw text, and lets the others pass."""

import numpy as np
import pytest

from tests.deploy.toys import MAX_LENGTH, TAGS, TOKENIZER, save_toy, toy_spec
from xdistil_jax.data.corpus import Sentence
from xdistil_jax.data.encode import encode_in_memory
from xdistil_jax.data.readers import PAIR
from xdistil_jax.deploy.bundle import load_bundle
from xdistil_jax.deploy.tagger import Tagger, bilstm_logits
from xdistil_jax.gate import DevSet, examine, find_faults, piece_logits
from xdistil_jax.labels import ClassSet
from xdistil_jax.report.metrics import score

CLASSES = ClassSet(("bad", "good", "x", "y", "z"))
WORDS = ("Anna", "Berg", "fuhr", "nach", "Berlin", ",", "dann", "weiter", "Москва", "东京", "3.5")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate") / "student"
    save_toy(folder)
    return load_bundle(folder)


@pytest.fixture(scope="module")
def dev(bundle):
    """Sentences whose gold tags are the student's own, so that it scores 100 on words."""
    random = np.random.default_rng(0)
    drawn = [tuple(random.choice(WORDS, 1 + n % 17).tolist()) for n in range(70)]
    bare = [Sentence(words, None, "de" if n % 2 else "ru") for n, words in enumerate(drawn)]
    tags = Tagger(bundle).tags(bare)
    return [each._replace(tags=own) for each, own in zip(bare, tags, strict=True)]


def forward_of(bundle):
    return lambda tokens, lengths: bilstm_logits(bundle, tokens, lengths)


def test_its_own_answers_are_all_right(bundle, dev):
    answers = DevSet.of(bundle, dev).ask(forward_of(bundle))
    assert answers.figures("words") == {"mean F1": 100.0, "micro-F1": 100.0}
    assert set(answers.words.languages) == {"de", "ru"}
    assert find_faults("same", answers, answers, exact=True) == []


def test_raw_text_is_scored_by_characters(bundle):
    """A word that the splitter cuts in two is found only if its entity's ends are found."""
    sentence = Sentence(("fuhr", "Anna-Berg", "x"), ("O", "B-PER", "O"), "de")
    dev = DevSet.of(bundle, [sentence])
    assert [word.text for word in dev.texts.split[0]] == ["fuhr", "Anna", "-", "Berg", "x"]

    def says(store, tags):
        logits = np.zeros((32, len(store.tokens), len(TAGS)), np.float32)
        logits[0, np.flatnonzero(store.owned), [TAGS.index[tag] for tag in tags]] = 9
        return np.pad(logits, ((0, 0), (0, MAX_LENGTH - len(store.tokens)), (0, 0)))

    for tags, f1 in (
        (("O", "B-PER", "I-PER", "I-PER", "O"), 100.0),
        (("O", "B-PER", "O", "I-PER", "O"), 0.0),
        (("O", "B-PER", "I-PER", "I-PER", "I-PER"), 0.0),
        (("O", "B-LOC", "I-LOC", "I-LOC", "O"), 0.0),
    ):
        # Words are asked about first.
        said = iter([says(dev.words, sentence.tags), says(dev.texts.store, tags)])
        answers = dev.ask(lambda tokens, lengths, said=said: next(said))
        assert (answers.words.micro.f1, answers.text.micro.f1) == (100.0, f1)
        found = dev.texts.entities(lambda t, n, tags=tags: says(dev.texts.store, tags))[0]
        assert (found[0][1:] == (5, 14)) == (tags[2:] == (f"I-{tags[1][2:]}",) * 2 + ("O",))


def test_batches_change_no_logit(bundle, dev):
    store = encode_in_memory(dev, TOKENIZER, TAGS, max_length=MAX_LENGTH)
    found = piece_logits(store, forward_of(bundle))
    assert len(store.lengths) > 64
    for row in range(0, store.rows, 7):
        part = slice(store.offsets[row], store.offsets[row + 1])
        alone = bilstm_logits(bundle, store.tokens[part][None], store.lengths[row : row + 1])[0]
        np.testing.assert_allclose(found[part], alone, atol=1e-5, rtol=0)


def test_few_shapes_are_asked_for(bundle, dev):
    shapes = set()

    def forward(tokens, lengths):
        shapes.add(tokens.shape)
        return bilstm_logits(bundle, tokens, lengths)

    DevSet.of(bundle, dev).ask(forward)
    assert shapes <= {(32, MAX_LENGTH)}


@pytest.mark.parametrize(("off", "refused"), [(5e-5, False), (2e-4, True), (np.nan, True)])
def test_a_logit_that_is_off_is_refused_of_fp32_alone(bundle, dev, off, refused):
    exact = forward_of(bundle)

    def forward(tokens, lengths):
        logits = exact(tokens, lengths)
        logits[0, 1, 0] += off
        return logits

    for name in ("fp32", "int8"):
        _, faults = examine(
            DevSet.of(bundle, dev), exact, {name: (forward, name == "fp32")}
        )  # fmt: skip
        assert any("a logit differs" in each for each in faults) == (refused and name == "fp32")


def test_lost_entities_are_refused_with_their_figures(bundle, dev):
    exact = forward_of(bundle)

    def forward(tokens, lengths):
        logits = exact(tokens, lengths)
        logits[:4] = -logits[:4]
        return logits

    answers, faults = examine(DevSet.of(bundle, dev), exact, {"model.int8.onnx": (forward, False)})
    text = " ".join(faults)
    assert "model.int8.onnx: mean F1 on words falls from 100.00 to" in text
    assert "on raw text falls" in text
    after = answers["model.int8.onnx"].words.mean
    assert f"to {after:.2f}, and may by 0.3 points" in text
    # In the other direction it gains, and nothing is refused.
    assert not find_faults("gains", answers[""], answers["model.int8.onnx"], exact=False)


def test_a_fall_by_less_is_let_pass(bundle, dev):
    """One wrong sentence of very many."""
    many = dev * 30
    exact = forward_of(bundle)
    first = []

    def forward(tokens, lengths):
        logits = exact(tokens, lengths)
        if not first:
            first.append(True)
            logits[0] = -logits[0]
        return logits

    answers, faults = examine(DevSet.of(bundle, many), exact, {"int8": (forward, False)})
    assert not faults
    assert not np.array_equal(answers["int8"].logits, answers[""].logits)


@pytest.mark.parametrize("pool", ["last", "max"])
def test_classes_are_scored_on_both_ways(tmp_path, pool):
    save_toy(tmp_path / "s", toy_spec(pool=pool), tagset=CLASSES)
    bundle = load_bundle(tmp_path / "s")
    dev = DevSet.of(
        bundle,
        [
            Sentence(("Anna", "Berg"), ("good",), "de"),
            Sentence(("Anna", PAIR, "Berg,", "Berlin"), ("bad",), "de"),
            Sentence(("Москва",), ("x",), "ru"),
        ],
    )
    answers = dev.ask(forward_of(bundle))
    assert set(answers.figures("words")) == {"mean accuracy", "accuracy, all texts", "macro-F1"}
    assert answers.text.overall.support == 3

    def turned(tokens, lengths):
        return -bilstm_logits(bundle, tokens, lengths)

    assert dev.ask(turned).words != answers.words


def test_no_labels_are_said_to_be_missing(bundle):
    with pytest.raises(ValueError, match="no labelled dev sentence"):
        DevSet.of(bundle, [Sentence(("Anna",), None, "de")])


def test_without_an_entity_there_is_no_figure(bundle):
    answers = DevSet.of(bundle, [Sentence(("fuhr",), ("O",), "de")]).ask(forward_of(bundle))
    assert answers.figures("words") == {}
    assert score([("O",)], [("O",)], ["de"]).mean is None
