"""Table 4: dev F1 after each step of gradual unfreezing, of runs finished or under way.

    xdistil run experiments/english.py d4.2 --tuning.fresh-head True    # prints the run folder
    python experiments/table4.py runs/english/D4.2-1a2b3c4d             # or several
    xdistil run experiments/full.py d4.2 --tuning.fresh-head True       # at full size

The best dev F1 of each step, by the run's metrics.jsonl; steps of the logits are watched by their
loss on held-out text, so theirs is the F1 of the step that was kept.
"""

import argparse
import json
import sys
from pathlib import Path

from xdistil_jax.markdown import table
from xdistil_jax.terminal import told

PAPER = {
    "logit/head": "0.0",
    "logit/projection": "2.9",
    "logit/bilstm": "81.6",
    "logit/embed": "86.0",
    "ce/head": "86.4",
    "ce/projection": "87.7",
    "ce/bilstm": "88.1",
    "ce/embed": "88.6",
}
"""What the paper has, in 41 languages."""
NOTE = (
    "F1 on dev, watched while training; a run's report has test and unseen sentences, and what is "
    "kept of its teacher. The paper's are of 41 languages with mBERT: context, no comparison."
)


def kept_f1(records: list[dict]) -> dict[str, float]:
    """stage -> dev F1 in percent of the parameters that it kept, in the order of the stages."""
    best: dict[str, dict] = {}
    for record in records:
        name = record["stage_name"]
        # Losses are watched from below, F1 from above.
        sign = 1 if record["watched"] == record.get("dev/f1") else -1
        if name not in best or sign * record["watched"] > sign * best[name]["watched"]:
            best[name] = record
    return {name: 100 * record["dev/f1"] for name, record in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    for run in parser.parse_args().runs:
        path = run / "metrics.jsonl"
        if not path.is_file():
            sys.exit(f"{path} is not there: give the folder of a run that has begun")
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [[name, f"{f1:.1f}", PAPER.get(name, "—")] for name, f1 in kept_f1(records).items()]
        print(f"{run}\n\n{table(['step', 'dev F1', 'paper'], rows)}\n")
    print(NOTE)


if __name__ == "__main__":
    with told("table4.py"):
        main()
