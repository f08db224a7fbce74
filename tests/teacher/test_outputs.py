"""Outputs that others have made: in any order, in parts, from several processes; none is lost."""

import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest

from tests.teacher.test_anchor import FINE, LINES, SENTENCES, numbers, stored
from xdistil_jax.teacher.manifest import CacheMismatch
from xdistil_jax.teacher.outputs import OutputsWriter, anchor_outputs, read_outputs
from xdistil_jax.teacher.shards import CacheDamaged

TAGS = ("O", "B-LOC", "I-LOC")
WORDS = [sentence.words for sentence in SENTENCES]


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    monkeypatch.setattr("xdistil_jax.teacher.anchor._CHUNK", 3)


def outputs_of(words, seed=0):
    """Random states and logits that depend on the sentence only."""
    rng = np.random.default_rng([seed, *" ".join(words).encode()])
    return rng.standard_normal((len(words), 6)), rng.standard_normal((len(words), 3))


def write(folder, sentences=WORDS, **options):
    with OutputsWriter(folder, tags=TAGS, width=6, **options) as writer:
        for words in sentences:
            writer.add(words, *outputs_of(words))


def assert_taught(folder, tmp_path):
    """Every word of every sentence gets what was written for it, at its first piece."""
    ours = stored(FINE, tmp_path / "store", length=10)
    teacher = anchor_outputs(read_outputs(folder), SENTENCES, ours)
    streamed = numbers(teacher.stream(np.arange(ours.rows), 10))
    seen = 0
    for row in range(ours.rows):
        part = slice(ours.offsets[row], ours.offsets[row + 1])
        for at, (word, owned) in enumerate(zip(ours.word[part], ours.owned[part], strict=True)):
            stands = word >= 0 and owned
            states, logits = outputs_of(WORDS[ours.sentence[row]])
            hidden = states[word].astype(ml_dtypes.bfloat16) if stands else np.zeros(6)
            of_logits = logits[word].astype(np.float16) if stands else np.zeros(3)
            np.testing.assert_array_equal(streamed["teacher"][row, at], hidden.astype(np.float32))
            np.testing.assert_array_equal(streamed["logits"][row, at], of_logits)
            seen += stands
    assert seen == sum(map(len, WORDS))


def test_any_order_and_parts(tmp_path):
    write(tmp_path / "out", WORDS[2:])
    write(tmp_path / "out", WORDS[1::-1])
    assert len(list((tmp_path / "out" / "parts").iterdir())) == 2
    assert_taught(tmp_path / "out", tmp_path)


def test_another_process_without_jax(tmp_path):
    write(tmp_path / "out", WORDS[:2])
    program = f"""
        import sys
        import numpy as np
        from xdistil_jax.teacher.outputs import OutputsWriter
        with OutputsWriter({str(tmp_path / "out")!r}, tags={TAGS!r}, width=6) as writer:
            for line in {LINES[2:]!r}:
                words = line.split()
                rng = np.random.default_rng([0, *line.encode()])
                states = rng.standard_normal((len(words), 6))
                writer.add(words, states, rng.standard_normal((len(words), 3)))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
    assert_taught(tmp_path / "out", tmp_path)


@pytest.mark.parametrize("pool", ["first", "mean"])
def test_pieces_are_read_at_their_words(tmp_path, pool):
    words = WORDS[3]
    word_of = [None, 0, 1, 1, 1, None]
    rng = np.random.default_rng(1)
    states, logits = rng.standard_normal((6, 6)), rng.standard_normal((6, 3))
    with OutputsWriter(tmp_path, tags=TAGS, width=6, pool=pool) as writer:
        writer.add(words, states, logits, word_of=word_of)
    found = read_outputs(tmp_path)
    wanted = [logits[1], logits[2] if pool == "first" else logits[2:5].mean(0)]
    np.testing.assert_array_equal(found.maps["logits"][0], np.array(wanted).astype(np.float16))


def test_what_was_added_again_counts_once_and_as_it_was_last(tmp_path):
    with OutputsWriter(tmp_path / "out", tags=TAGS, width=6) as writer:
        writer.add(WORDS[0], *outputs_of(WORDS[0], seed=1))
    write(tmp_path / "out")
    assert len(read_outputs(tmp_path / "out").key) == len(WORDS)
    assert_taught(tmp_path / "out", tmp_path)


def test_logits_alone_will_do(tmp_path):
    with OutputsWriter(tmp_path / "out", tags=TAGS, width=0) as writer:
        for words in WORDS:
            writer.add(words, None, outputs_of(words)[1])
    ours = stored(FINE, tmp_path / "store", length=40)
    teacher = anchor_outputs(read_outputs(tmp_path / "out"), SENTENCES, ours)
    streamed = teacher.stream(np.arange(4), 40)
    assert streamed["hidden"] == {}


def test_a_block_that_fails_leaves_only_whole_parts(tmp_path):
    write(tmp_path / "out", WORDS[:2])
    writer = OutputsWriter(tmp_path / "out", tags=TAGS, width=6)
    writer.add(WORDS[2], *outputs_of(WORDS[2]))
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert len(read_outputs(tmp_path / "out").key) == 2
    ours = stored(FINE, tmp_path / "store")
    with pytest.raises(ValueError, match=r"lack 2 of 4 sentences, first 'Hannover liegt"):
        anchor_outputs(read_outputs(tmp_path / "out"), SENTENCES, ours)


def test_arrays_that_do_not_fit_are_refused_by_sentence(tmp_path):
    states, logits = outputs_of(WORDS[3])
    with OutputsWriter(tmp_path, tags=TAGS, width=6) as writer:
        with pytest.raises(ValueError, match=r"'im Sommer' \(2 words\): logits \(1, 3\)"):
            writer.add(WORDS[3], states, logits[:1])
        with pytest.raises(ValueError, match=r"expected .* and \(2, 6\)"):
            writer.add(WORDS[3], states[:, :5], logits)
        with pytest.raises(ValueError, match=r"'im Sommer'.*not finite"):
            writer.add(WORDS[3], states, logits * np.nan)
        with pytest.raises(ValueError, match="no piece belongs to the word 'Sommer'"):
            writer.add(WORDS[3], states, logits, word_of=[0, None])


def test_other_tags_damage_and_absence_are_named(tmp_path):
    with pytest.raises(CacheMismatch, match=r"outputs\.json: no manifest"):
        read_outputs(tmp_path / "nothing")
    write(tmp_path / "out")
    with pytest.raises(CacheMismatch, match="another tags there"):
        OutputsWriter(tmp_path / "out", tags=TAGS[:1], width=6)
    [path] = (tmp_path / "out" / "parts").glob("*/logits.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheDamaged, match=r"logits\.npy: its checksum"):
        read_outputs(tmp_path / "out")
