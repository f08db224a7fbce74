"""Long sentences -> overlapping windows, and which window owns each word. NumPy only."""

from typing import NamedTuple

import numpy as np


class Windows(NamedTuple):
    """Words ``start`` up to ``end`` of a numbering that runs through all sentences: int64 [R] each.

    In the order of sentences; a sentence that fits is one window, even if it has no words.
    """

    sentence: np.ndarray
    start: np.ndarray
    end: np.ndarray


def plan_windows(words: np.ndarray, ends: np.ndarray, room: int, overlap: int) -> Windows:
    """Cut sentences into windows of at most ``room`` pieces that share about ``overlap`` pieces.

    ``words``, int64 [S+1], bounds the words of each sentence, ``ends``, int64 [W+1], the pieces of
    each word; no word may be empty or longer than ``room``. The last window of a sentence reaches
    back as far as it can.
    """
    long = np.diff(ends[words]) > room
    short = np.flatnonzero(~long)
    found = [np.stack([short, words[short], words[short + 1]], 1)]
    for sentence in np.flatnonzero(long):
        start, last = words[sentence], words[sentence + 1]
        while ends[last] - ends[start] > room:
            end = np.searchsorted(ends, ends[start] + room, "right") - 1
            found.append(np.array([[sentence, start, end]]))
            # The next one must reach a word further: a long word may leave less to be shared.
            start = np.searchsorted(ends, max(ends[end] - overlap, ends[end + 1] - room))
        start = np.searchsorted(ends, ends[last] - room)
        found.append(np.array([[sentence, start, last]]))
    both = np.concatenate(found)
    return Windows(*both[np.argsort(both[:, 0], kind="stable")].T)


def own_words(
    windows: Windows, ends: np.ndarray, entries: np.ndarray, row: np.ndarray
) -> np.ndarray:
    """bool [E]: does this window own this word? Each word has one owner.

    ``entries`` and ``row``, int64 [E], are the words of all windows, one window after the other.
    The owner is the window where the word stands farthest from an edge, the first one in a tie.
    """
    # The ends of the sentence cut nothing off, yet need no exception: of two windows the later
    # one has less on the left and no less on the right, so they never change who wins.
    left = ends[entries] - ends[windows.start[row]]
    right = ends[windows.end[row]] - ends[entries + 1]
    context = np.minimum(left, right)
    best = np.full(len(ends) - 1, -1, np.int64)
    np.maximum.at(best, entries, context)
    ties = np.flatnonzero(context == best[entries])
    owned = np.zeros(len(entries), np.bool_)
    owned[ties[np.unique(entries[ties], return_index=True)[1]]] = True
    return owned


def bounds(counts: np.ndarray) -> np.ndarray:
    """Counts [N] -> where each begins and the last one ends: int64 [N+1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def expand(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The ``counts[i]`` numbers from ``starts[i]`` on, for each i, end to end: int64 [N]."""
    return np.repeat(starts - bounds(counts)[:-1], counts) + np.arange(counts.sum(dtype=np.int64))
