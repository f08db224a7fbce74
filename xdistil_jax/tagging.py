"""The tags that a model gives to sentences: one model, several as one, or one for each language."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float

from xdistil_jax.data.batches import Buckets, choose_widths
from xdistil_jax.data.corpus import Sentence
from xdistil_jax.data.encode import EncodedStore
from xdistil_jax.distill.evaluate import (
    TaggedSet,
    decode,
    tagged_set,
    tags_by_sentence,
    word_logits,
)
from xdistil_jax.session import ByLanguage, Ensemble, Session, Trained
from xdistil_jax.sharding import settle
from xdistil_jax.teacher.ensemble import mix_logits


def tag(
    session: Session, model: Trained | Ensemble | ByLanguage, sentences: Sequence[Sentence]
) -> list[tuple[str, ...]]:
    """The tags that ``model`` gives to the words of each sentence.

    Raises:
        ValueError: for a sentence in a language of which there is no student.
    """
    bare = [sentence._replace(tags=None) for sentence in sentences]
    if isinstance(model, ByLanguage):
        return _tag_by_language(session, model, bare)
    members = model.members if isinstance(model, Ensemble) else (model,)
    each = [_word_logits(session, member, bare) for member in members]
    logits, tagged, store = each[0]
    if isinstance(model, Ensemble):
        weights = np.array([model.weights_of(code) for code in store.languages], np.float32)
        by_word = list(weights[np.asarray(tagged.language)].T)
        logits = mix_logits([logits for logits, *_ in each], by_word)
    return tags_by_sentence(decode(logits, tagged), store, tagged.tagset)


def _tag_by_language(
    session: Session, model: ByLanguage, bare: Sequence[Sentence]
) -> list[tuple[str, ...]]:
    places: dict[str, list[int]] = {}
    for place, sentence in enumerate(bare):
        places.setdefault(sentence.language, []).append(place)
    if strange := places.keys() - model.members.keys():
        raise ValueError(f"there is no student for {', '.join(sorted(strange))}: no label of it")
    parts = {language: [bare[place] for place in own] for language, own in places.items()}
    stores = [_encoded(session, model.members[language], part) for language, part in parts.items()]
    found: dict[int, tuple[str, ...]] = {}
    for language, part in parts.items():
        logits, tagged, store = _word_logits(session, model.members[language], part, stores)
        tags = tags_by_sentence(decode(logits, tagged), store, tagged.tagset)
        found |= dict(zip(places[language], tags, strict=True))
    return [found[place] for place in range(len(bare))]


def _encoded(session: Session, model: Trained, bare: Sequence[Sentence]) -> EncodedStore:
    return session.encode(bare, model.tokenizer, model.tagset, max_length=model.max_length)


def _word_logits(
    session: Session, model: Trained, bare: Sequence[Sentence], peers: Sequence[EncodedStore] = ()
) -> tuple[Float[Array, "W C"], TaggedSet, EncodedStore]:
    """Of text that shares its programs with ``peers``, itself among them."""
    store = _encoded(session, model, bare)
    run_, mesh = session.experiment.run, model.mesh or session.mesh
    lengths = np.concatenate([each.lengths for each in peers or (store,)])
    buckets = Buckets(choose_widths(lengths, run_.buckets), 4096, run_.shards)
    tagged = tagged_set(
        store, buckets, model.tagset, mesh, steps=4, decoding=run_.decoding, peers=peers
    )
    logits = word_logits(model.spec, session.dtype, settle(model.params, mesh), tagged)
    return logits, tagged, store
