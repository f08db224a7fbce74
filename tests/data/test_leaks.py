"""The leak check: counts by language, on made sentences and on the known faults of real ones."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from xdistil_jax.data.corpus import DataSpec, load_corpus, load_test
from xdistil_jax.data.leaks import Overlap, overlap, unseen
from xdistil_jax.data.readers import Sentence

SENTENCES = st.builds(
    Sentence,
    st.lists(st.sampled_from("abc"), min_size=1, max_size=2).map(tuple),
    st.none(),
    st.sampled_from(["en", "de"]),
)
SPLIT = st.lists(SENTENCES, max_size=8)


@settings(deadline=None)
@given(SPLIT, SPLIT, SPLIT)
def test_counts_equal_a_plain_count(train, transfer, test):
    splits = {"train": train, "transfer": transfer, "test": test}
    found = {(each.language, each.split, each.within): each for each in overlap(splits)}
    for earlier, later in (("train", "transfer"), ("train", "test"), ("transfer", "test")):
        for language in ("en", "de"):
            own = [s.words for s in splits[later] if s.language == language]
            same = [s.words for s in splits[earlier] if s.language == language]
            every = [s.words for s in splits[earlier]]
            counts = (sum(w in same for w in own), sum(w in every for w in own), len(own))
            each = found.pop((language, later, earlier), Overlap(language, "", "", 0, 0, 0))
            assert (each.shared, each.anywhere, each.total) == counts
    assert not found
    expected = [s.words not in [o.words for o in train + transfer] for s in test]
    np.testing.assert_array_equal(unseen(test, train, transfer), expected)


def test_text_is_equal_however_it_was_cut():
    left = [Sentence(("R.H.", "Saunders"), ("B-PER", "I-PER"), "en")]
    right = [Sentence(("R", ".", "H", ".", "Saunders"), None, "en")]
    assert overlap({"train": left, "test": right}) == (Overlap("en", "test", "train", 1, 1, 1),)
    assert not unseen(left, right).any()
    assert unseen([], right).shape == (0,)


def test_known_faults_of_wikiann_are_found(shared_data):
    spec = DataSpec(root=str(shared_data / "wikiann"), languages=("id", "nl", "ru", "ta"))
    corpus = load_corpus(spec)
    test = load_test(spec, tagset=corpus.tagset)
    found = {each.language: each for each in overlap({"train": corpus.train, "test": test})}
    shares = {language: round(100 * each.share) for language, each in found.items()}
    assert shares == {"id": 31, "nl": 18, "ru": 8, "ta": 26}
    assert unseen(test, corpus.train).sum() == sum(e.total - e.anywhere for e in found.values())
    assert corpus.log.sentences == len(corpus.train) + len(corpus.dev)
    assert corpus.log.repaired == corpus.log.skipped == 0
    assert len(corpus.transfer) + corpus.log.dropped == len(corpus.train)
