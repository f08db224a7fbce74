"""What text a run reads, and which of it carries labels."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataSpec:
    """Where the sentences of a run come from. A named file goes before the same split in root."""

    train: str = ""
    """Labelled file, folder of a data set, or hf:OWNER/NAME:CONFIGURATION."""
    dev: str = ""
    test: str = ""
    unlabelled: tuple[str, ...] = ()
    """Files of which only the words are used: plain text, or any labelled format."""
    root: str = ""
    """Folder with LANGUAGE/train.txt, dev.txt, test.txt (any format), or hf:OWNER/NAME."""
    unlabelled_root: str = ""
    """Folder with LANGUAGE.txt."""
    languages: tuple[str, ...] = ()
    """Empty: all that are found."""
    format: str = "auto"
    """Of the labelled files."""
    types: tuple[str, ...] = ()
    """Entity types; empty: those of the train set."""
    tag_map: tuple[tuple[str, str], ...] = ()
    """New names of entity types, such as (("MISC", "O"),)."""
    on_mismatch: str = "error"
    """What a sentence that can't be used is: error, or skip (and be counted)."""
    train_limit: int | None = None
    """Train sentences per language: the first ones after a shuffle that the seed decides.

    The others are not there at all, neither labels nor text: see ``labels_per_language``."""
    unlabelled_limit: int | None = None
    """The same for lines of unlabelled text."""
    train_as_transfer: bool = True
    """The text of the train set (as limited) belongs to the transfer set."""
    synthetic: bool = False
    """The embedded corpus, and no file; as texts to classify, which language each is in."""
    seed: int = 0
    task: Literal["tagging", "classification"] = "tagging"
    """Tags of words; or a class of each text, or pair of texts, in which ``types`` are classes."""
    labels_per_language: int | None = None
    """Train sentences per language that keep their labels, drawn as by ``train_limit``.

    The text of the others stays: it belongs to the transfer set."""
    dev_from_train: float | None = None
    """Share of the labels of each language that decides when to stop and trains nothing.

    Then the dev set is only reported. None: 0.2 with ``labels_per_language``, else 0."""
    transfer_limit: int | None = None
    """Sentences of all transfer text: labelled text first, then that of other train sentences, then
    unlabelled text. Of the kind in which the limit falls, a draw over all languages."""
    zero_shot: tuple[str, ...] = ()
    """Languages whose labels are withheld from teacher and student, and from what decides when to
    stop. Their train text, if there is any, belongs to the transfer set; their figures stand apart
    in reports."""
