"""Transfer text chosen by a first student, so that the teacher need not read all there is.

    xdistil run experiments/english.py d4.2 --data.unlabelled-root=    # the first student
    python experiments/choose_text.py runs/english/D4.2-…              # runs/chosen/*/en.txt, 5 min
    xdistil table experiments/table3.py --size chosen --test

A quarter of the words of unlabelled/en.txt, in whole lines, three times: any; of the lines that the
student is least sure of; and of those in which it finds most entities.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from xdistil_jax import Tagger
from xdistil_jax.deploy.tagger import TaggedWord
from xdistil_jax.labels import OUTSIDE
from xdistil_jax.terminal import told

SOURCE = Path(__file__).parents[2] / "shared" / "data" / "unlabelled" / "en.txt"
CHOSEN = Path("runs") / "chosen"
_CHUNK = 2048


def doubt(words: Sequence[TaggedWord]) -> float:
    """How likely it is, of each word on average, that its tag is wrong."""
    return 1.0 - sum(word.score for word in words) / len(words)


def density(words: Sequence[TaggedWord]) -> float:
    """The share of words that stand in an entity."""
    return sum(word.tag != OUTSIDE for word in words) / len(words)


WORTHS: dict[str, Callable[[Sequence[TaggedWord]], float]] = {
    "unsure": doubt,
    "entities": density,
}


def best(worths: Sequence[float], words: Sequence[int], room: int) -> list[int]:
    """The most worthy lines, the first ones where equal, in their order; ``room`` is in words."""
    chosen = []
    for number in sorted(range(len(worths)), key=lambda number: -worths[number]):
        if words[number] > room:
            break
        room -= words[number]
        chosen.append(number)
    return sorted(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("student", type=Path, help="a run folder")
    parser.add_argument("--source", type=Path, default=SOURCE, help="a file, a sentence a line")
    parser.add_argument("--out", type=Path, default=CHOSEN, help="where the texts go")
    parser.add_argument("--share", type=float, default=0.25, help="of the words")
    given = parser.parse_args()
    tagger = Tagger.load(given.student)
    text = given.source.read_text(encoding="utf-8")
    lines = [line for line in dict.fromkeys(text.splitlines()) if line.strip()]
    words: list[int] = []
    worths: dict[str, list[float]] = {name: [] for name in ("any", *WORTHS)}
    dice = random.Random(0)
    for first in range(0, len(lines), _CHUNK):
        for tagged in tagger(lines[first : first + _CHUNK], aggregate="none"):
            words.append(len(tagged))
            worths["any"].append(dice.random())
            for name, worth in WORTHS.items():
                worths[name].append(worth(tagged))
    for name, each in worths.items():
        chosen = best(each, words, int(given.share * sum(words)))
        file = given.out / name / given.source.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{lines[number]}\n" for number in chosen), encoding="utf-8")
        print(f"{file}: {len(chosen):,} of {len(lines):,} lines")


if __name__ == "__main__":
    with told("choose_text.py"):
        main()
