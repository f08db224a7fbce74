"""Language identification of short snippets, in the 41 languages of ../shared/data/unlabelled.

    python experiments/language_id.py              # cuts the snippets: runs/language_id/data
    xdistil run experiments/language_id.py --test
    xdistil run experiments/language_id.py d0-s

Each snippet is three to eight words of one line (of scripts without spaces, characters), and its
class is its language. A line gives one snippet, and the line's hash says in which split: no line is
in two, and no snippet of a language. Transfer text are further snippets, without their languages.
Teacher and student are sized for two cores.
"""

import argparse
import hashlib
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

from xdistil_jax import (
    DataSpec,
    Experiment,
    Recipe,
    RunConfig,
    Schedule,
    StopRule,
    StudentConfig,
    TeacherConfig,
    Tuning,
)
from xdistil_jax.terminal import told
from xdistil_jax.text import split_words

SOURCE = Path(__file__).parents[2] / "shared" / "data" / "unlabelled"
DATA = Path("runs") / "language_id" / "data"
SHORTEST, LONGEST = 3, 8

experiment = Experiment(
    name="language_id",
    strategy="D4.1",
    data=DataSpec(root=str(DATA), unlabelled_root=str(DATA), task="classification"),
    teacher=TeacherConfig(
        vocab_size=12_000,
        width=192,
        layers=3,
        heads=4,
        feed_forward=768,
        max_length=48,
        token_budget=2048,
        word_dropout=0.1,
        recipe=Recipe(
            Schedule(peak=1e-3, warmup=0.1, decay="linear", weight_decay=0.01),
            StopRule(epochs=4, evaluations=1, patience=4),
        ),
    ),
    student=StudentConfig(embed=50, hidden=50, pooling="max"),
    tuning=Tuning(
        repr=Recipe(Schedule(peak=3e-3), StopRule(epochs=1)),
        logit=Recipe(Schedule(peak=3e-3), StopRule(epochs=3)),
        ce=Recipe(Schedule(peak=5e-4), StopRule(epochs=3, patience=2)),
        joint=Recipe(Schedule(peak=3e-3), StopRule(epochs=4)),
    ),
    run=RunConfig(token_budget=2048, buckets=4),
)


def snippet(line: str, seed: str) -> str:
    """A few words of a line as they stand there, which ones by ``seed``; "" of a line too short."""
    words = split_words(line)
    if len(words) < SHORTEST:
        return ""
    dice = random.Random(seed)
    count = min(SHORTEST + int(dice.random() * (LONGEST - SHORTEST + 1)), len(words))
    first = int(dice.random() * (len(words) - count + 1))
    return " ".join(line[words[first].start : words[first + count - 1].end].split())


def snippets(path: Path, shares: dict[str, int]) -> Iterator[tuple[str, str]]:
    """(split, snippet) for the lines of a file; the sizes of the splits are as ``shares``."""
    ends = list(itertools.accumulate(shares.values()))
    seen: set[str] = set()
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            mark = hashlib.blake2b(line.strip().encode(), digest_size=8).digest()
            place = int.from_bytes(mark, "big") % ends[-1]
            cut = snippet(line, f"{path.stem} {mark.hex()}")
            if cut and cut not in seen:
                seen.add(cut)
                yield next(s for s, end in zip(shares, ends, strict=True) if place < end), cut


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", type=Path, default=SOURCE, help="a folder of LANGUAGE.txt")
    parser.add_argument("--data", type=Path, default=DATA, help="where the snippets go")
    parser.add_argument("--train", type=int, default=600, help="snippets of each language")
    parser.add_argument("--dev", type=int, default=100)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--unlabelled", type=int, default=2000)
    given = parser.parse_args()
    shares = {name: getattr(given, name) for name in ("train", "dev", "test", "unlabelled")}
    files = sorted(given.source.glob("*.txt"))
    if not files:
        raise SystemExit(f"{given.source}: no LANGUAGE.txt in it; name another with --source")
    given.data.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[str]] = {name: [] for name in shares}
    for path in files:
        language, left = path.stem, dict(shares)
        plain: list[str] = []
        for split, cut in snippets(path, shares):
            if left[split]:
                left[split] -= 1
                labelled = split != "unlabelled"
                (found[split] if labelled else plain).append(
                    f"{cut}\t{language}:{language}\n" if labelled else f"{cut}\n"
                )
            if not any(left.values()):
                break
        found["unlabelled"] += plain
        (given.data / f"{language}.txt").write_text("".join(plain), encoding="utf-8")
    for split in ("train", "dev", "test"):
        (given.data / f"{split}.tsv").write_text("".join(found[split]), encoding="utf-8")
    counts = ", ".join(f"{len(lines):,} {split}" for split, lines in found.items())
    print(f"{given.data}: {len(files)} languages, {counts}")


if __name__ == "__main__":
    with told("language_id.py"):
        main()
