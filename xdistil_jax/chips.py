"""Chips: what they can do and what they cost, from a table that the user can edit."""

import difflib
import json
from dataclasses import dataclass, fields
from pathlib import Path

TABLE = Path(__file__).with_name("chips.json")


@dataclass(frozen=True)
class Chip:
    """One chip: ``flops`` is its bf16 peak a second; ``usd_per_hour`` is None where unknown.

    The utilisations are the shares of the peak that an encoder and a BiLSTM are assumed to reach.
    """

    name: str
    flops: float
    hbm_gb: float
    gb_per_s: float
    usd_per_hour: float | None
    encoder_utilisation: float
    student_utilisation: float
    source: str


def read_chip(name: str, path: str | Path = "") -> Chip:
    """A chip of the table in ``path`` (empty: ours).

    Raises:
        OSError: if there is no such file.
        ValueError: naming the file and what in it is unknown, missing or no number.
    """
    path = Path(path or TABLE)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        chips = dict(table["chips"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: expected JSON {{"chips": {{NAME: {{…}}}}}} as in {TABLE} ({error!r})'
        ) from error
    if name not in chips:
        near = difflib.get_close_matches(name, chips, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{path} has no chip {name!r}: {guess}There are {', '.join(chips)}")
    wanted = {field.name for field in fields(Chip)} - {"name"}
    if wrong := wanted ^ set(chips[name]):
        raise ValueError(f"{path}, {name}: missing or unknown: {', '.join(sorted(wrong))}")
    for field, value in chips[name].items():
        number = isinstance(value, int | float) and value >= 0
        price = field == "usd_per_hour" and (value is None or number)
        if field != "source" and not price and not (number and value):
            raise ValueError(f"{path}, {name}, {field}: {value!r} is no positive number")
    return Chip(name, **chips[name])
