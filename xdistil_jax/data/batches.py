"""(seed, stage, step) -> rows: length buckets, language sampling, labelled/transfer mixing.

Every choice is a hash of counters, so a batch is a function of its position and equal on every
platform; nothing but the step need be saved to go on. Rows live in 16 logical shards and a batch
takes an equal share from each: any number of devices that divides 16 sees the same batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

SHARDS = 16
CHUNK = 16
"""Batches of one bucket that follow each other, so that up to 16 steps can be one jitted call."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(*words: int | Int[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """A counter-based generator: splitmix64 folded over ``words`` (broadcast), uint64."""
    state = np.uint64(0)
    with np.errstate(over="ignore"):
        for word in words:
            state = (state ^ np.asarray(word).astype(np.uint64)) + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def uniform(*words: int | Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """``mix`` as float64 in [0, 1)."""
    return (mix(*words) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def choose_widths(lengths: Int[np.ndarray, "R"], count: int) -> tuple[int, ...]:
    """At most ``count`` bucket widths with the least padding; the last is the greatest length."""
    sizes, rows = np.unique(lengths, return_counts=True)
    below = np.concatenate([[0], np.cumsum(rows)])
    # cost[j]: slots of the best buckets for all sizes up to the j-th; one more bucket a round.
    cost = np.concatenate([[0.0], np.full(len(sizes), np.inf)])
    back: list[np.ndarray] = []
    for _ in range(min(count, len(sizes))):
        slots = cost[:, None] + (below[None, 1:] - below[:, None]) * sizes[None]
        slots = np.where(np.arange(len(sizes) + 1)[:, None] <= np.arange(len(sizes)), slots, np.inf)
        back.append(slots.argmin(0))
        cost = np.concatenate([[0.0], slots.min(0)])
    widths: list[int] = []
    end = len(sizes)
    for choice in reversed(back):
        if end:
            widths.append(int(sizes[end - 1]))
            end = int(choice[end - 1])
    return tuple(sorted(widths))


@dataclass(frozen=True)
class Buckets:
    """Widths and, from a token budget, the rows of a batch in each.

    A batch takes an equal share of each of ``shards`` logical shards, whatever the devices.
    ``most`` bounds the rows of a batch in each bucket, where the budget allows more than there are.
    """

    widths: tuple[int, ...]
    token_budget: int
    shards: int = SHARDS
    most: tuple[int, ...] = ()

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        m = self.shards
        most = self.most or (self.token_budget,) * len(self.widths)
        return tuple(
            max(m, min(self.token_budget // width, bound) // m * m)
            for width, bound in zip(self.widths, most, strict=True)
        )

    def capped(self, *sources: "Source") -> "Buckets":
        """These buckets, with no batch larger than all rows of ``sources`` together fill.

        Sixty sentences would else be one batch of a thousand rows, nearly all of them empty.
        """
        cells = np.zeros((len(self.widths), self.shards), np.int64)
        for source in sources:
            shard = np.arange(len(source.rows)) % self.shards
            np.add.at(cells, (self.of(source.lengths), shard), 1)
        return replace(self, most=tuple(int(n) * self.shards for n in cells.max(axis=1)))

    def of(self, lengths: Int[np.ndarray, "R"]) -> Int[np.ndarray, "R"]:
        """The narrowest bucket that holds each row.

        Raises:
            ValueError: if a row is longer than the widest bucket.
        """
        if len(lengths) and lengths.max() > self.widths[-1]:
            raise ValueError(f"a row of {lengths.max()} pieces; the widest bucket is {self.widths}")
        return np.searchsorted(self.widths, lengths).astype(np.int64)

    def padding(self, lengths: Int[np.ndarray, "R"]) -> float:
        """Padding as a share of the real tokens."""
        slots = np.asarray(self.widths)[self.of(lengths)].sum()
        return float(slots / lengths.sum() - 1)


class Source(NamedTuple):
    """Rows to draw from, with their lengths and, for each, how often an epoch sees it."""

    rows: Int[np.ndarray, "N"]
    lengths: Int[np.ndarray, "N"]
    rates: Float[np.ndarray, "N"]


def language_rates(languages: Int[np.ndarray, "N"], temperature: float) -> Float[np.ndarray, "N"]:
    """Draws of each row in an epoch, so that language l has a share ∝ n_l^(1/temperature).

    1 leaves the data as they are; large values even the languages out. The mean is 1.
    """
    if temperature == 1.0 or not len(languages):
        return np.ones(len(languages))
    counts = np.bincount(languages).astype(np.float64)
    share = np.where(counts > 0, counts ** (1.0 / temperature), 0.0)
    rate = share / share.sum() * counts.sum() / np.maximum(counts, 1)
    return rate[languages]


class Call(NamedTuple):
    """Steps of one jitted call: ``rows`` [n, B] of the store (-1 fills up), all in one bucket."""

    bucket: int
    rows: Int[np.ndarray, "n B"]


@dataclass(frozen=True)
class Sampler:
    """The batches of one stage. ``labelled_fraction`` of each batch comes from ``labelled``.

    With a fraction between 0 and 1, an epoch is one pass over ``transfer``; labelled rows are
    drawn evenly to fill their share. A labelled row may stand in a wider bucket than its own.
    """

    buckets: Buckets
    labelled: Source
    transfer: Source
    labelled_fraction: float
    seed: int
    stage: int
    _epochs: dict[int, list[Call]] = field(default_factory=dict, compare=False, repr=False)
    _sizes: list[int] = field(default_factory=list, compare=False, repr=False)

    def __post_init__(self) -> None:
        needed = [("labelled", self.labelled, self.labelled_fraction > 0)]
        needed.append(("transfer", self.transfer, self.labelled_fraction < 1))
        for name, source, used in needed:
            if used and not len(source.rows):
                raise ValueError(f"the stage draws from {name} text, and there is none")

    @property
    def _shards(self) -> int:
        return self.buckets.shards

    def shares(self, bucket: int) -> tuple[int, int]:
        """(labelled, transfer) rows of each logical shard in a batch of ``bucket``."""
        share = self.buckets.batch_sizes[bucket] // self._shards
        if self.labelled_fraction in (0.0, 1.0):
            labelled = round(share * self.labelled_fraction)
            return labelled, share - labelled
        share = max(share, 2)
        labelled = min(max(round(share * self.labelled_fraction), 1), share - 1)
        return labelled, share - labelled

    def role(self, bucket: int) -> Bool[np.ndarray, "B"]:
        """True where a row of the batch is drawn from the labelled text."""
        labelled, transfer = self.shares(bucket)
        return np.tile(np.arange(labelled + transfer) < labelled, self._shards)

    def epoch_size(self, epoch: int) -> int:
        """Steps of an epoch (equal in all epochs unless languages are sampled by temperature)."""
        while len(self._sizes) <= epoch:
            self._sizes.append(sum(len(call.rows) for call in self._epoch(len(self._sizes))))
        return self._sizes[epoch]

    def steps(self, epochs: float) -> int:
        """Steps of ``epochs`` epochs, at least 1."""
        whole = int(epochs)
        steps = sum(self.epoch_size(epoch) for epoch in range(whole))
        return max(1, steps + round((epochs - whole) * self.epoch_size(whole)))

    def calls(self, step: int, size: int) -> Iterator[Call]:
        """The calls from ``step`` on, without end; each has at most ``size`` steps."""
        epoch, passed = 0, 0
        while passed + self.epoch_size(epoch) <= step:
            passed += self.epoch_size(epoch)
            epoch += 1
        while True:
            for call in self._epoch(epoch):
                for start in range(0, len(call.rows), size):
                    part = call.rows[start : start + size]
                    skip = max(0, step - passed)
                    passed += len(part)
                    if skip < len(part):
                        yield Call(call.bucket, part[skip:])
            epoch += 1

    def _epoch(self, epoch: int) -> list[Call]:
        if epoch not in self._epochs:
            self._epochs.clear()
            self._epochs[epoch] = self._draw_epoch(epoch)
        return self._epochs[epoch]

    def _draw_epoch(self, epoch: int) -> list[Call]:
        mixed = 0 < self.labelled_fraction < 1
        primary = self.labelled if self.labelled_fraction == 1 else self.transfer
        rows, bucket, shard = self._draw(primary, primary.rates, epoch, purpose=0)
        shares = [self.shares(b) for b in range(len(self.buckets.widths))]
        main = [labelled if self.labelled_fraction == 1 else other for labelled, other in shares]
        cells = [
            [rows[(bucket == b) & (shard == s)] for s in range(self._shards)]
            for b in range(len(shares))
        ]
        steps = [max(-(-len(c) // main[b]) for c in cells[b]) for b in range(len(shares))]
        extra = self._fill(epoch, steps, [labelled for labelled, _ in shares]) if mixed else None
        calls: list[Call] = []
        for b, count in enumerate(steps):
            block = _block(cells[b], count, main[b])
            if extra is not None:
                block = np.concatenate([_block(extra[b], count, shares[b][0]), block], axis=2)
            block = block.reshape(count, self._shards * block.shape[2])
            calls += [Call(b, block[start : start + CHUNK]) for start in range(0, count, CHUNK)]
        keys = mix(self.seed, self.stage, epoch, 3, np.arange(len(calls)))
        return [calls[i] for i in np.argsort(keys, kind="stable")]

    def _draw(
        self, source: Source, rates: np.ndarray, epoch: int, *, purpose: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shuffled (rows, bucket, shard) of one epoch; a row of rate r comes r times on average."""
        number = np.arange(len(source.rows))
        phase = uniform(self.seed, self.stage, purpose, 1, number)
        times = (np.floor(rates * (epoch + 1) + phase) - np.floor(rates * epoch + phase)).astype(
            int
        )
        drawn = np.repeat(number, times)
        copy = np.arange(len(drawn)) - np.repeat(np.cumsum(times) - times, times)
        keys = mix(self.seed, self.stage, epoch, purpose, 2, drawn, copy)
        drawn = drawn[np.argsort(keys, kind="stable")]
        return (
            source.rows[drawn],
            self.buckets.of(source.lengths[drawn]),
            drawn % self._shards,
        )

    def _fill(self, epoch: int, steps: list[int], shares: Sequence[int]) -> list[list[np.ndarray]]:
        """Labelled rows for the slots of each (bucket, shard); lengthens ``steps`` where they must.

        From the widest bucket down: rows that fit no narrower one first, then the longest others.
        """
        slots = self._shards * sum(
            count * share for count, share in zip(steps, shares, strict=True)
        )
        source = self.labelled
        rates = source.rates * (slots / len(source.rows))
        rows, bucket, shard = self._draw(source, rates, epoch, purpose=1)
        order = np.argsort(-bucket, kind="stable")
        rows, bucket, shard = rows[order], bucket[order], shard[order]
        queues = [(rows[shard == s], bucket[shard == s]) for s in range(self._shards)]
        taken = [0] * self._shards
        filled: list[list[np.ndarray]] = [[] for _ in steps]
        for b in reversed(range(len(steps))):
            due = [int(np.sum(own >= b)) - taken[s] for s, (_, own) in enumerate(queues)]
            steps[b] = max(steps[b], -(-max(due) // shares[b]))
            for s, (queue, _) in enumerate(queues):
                part = queue[taken[s] : taken[s] + steps[b] * shares[b]]
                taken[s] += len(part)
                keys = mix(self.seed, self.stage, epoch, 4, part, np.arange(len(part)))
                filled[b].append(part[np.argsort(keys, kind="stable")])
        return filled


def _block(cells: Sequence[np.ndarray], count: int, share: int) -> Int[np.ndarray, "n S share"]:
    """Rows of the shards -> [steps, shards, share], filled up with -1."""
    block = np.full((len(cells), count * share), -1, np.int64)
    for s, cell in enumerate(cells):
        block[s, : len(cell)] = cell
    return block.reshape(len(cells), count, share).transpose(1, 0, 2)


def whole_rows(
    buckets: Buckets, rows: Int[np.ndarray, "N"], lengths: Int[np.ndarray, "N"], size: int
) -> Iterator[Call]:
    """Every row once and in order, for evaluation, in calls of at most ``size`` batches."""
    bucket = buckets.of(lengths)
    for b, batch in enumerate(buckets.batch_sizes):
        chosen = rows[bucket == b]
        block = np.full((-(-len(chosen) // batch), batch), -1, np.int64)
        block.reshape(-1)[: len(chosen)] = chosen
        for start in range(0, len(block), size):
            yield Call(b, block[start : start + size])
