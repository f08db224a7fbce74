"""A teacher's labels as the data's: columns of its head matched by name or renamed, or left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xdistil_jax.labels import OUTSIDE, ClassSet, Labels, split_tag


@dataclass(frozen=True)
class LabelMap:
    """A teacher's tags, as the data's: ``columns[k]`` are its columns that mean our k-th tag.

    ``lost`` are its types that count as O here, or classes that are left out; ``unknown`` our tags
    of which it knows nothing.
    """

    columns: tuple[tuple[int, ...], ...]
    lost: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    counted: str = OUTSIDE
    """As what the lost ones count."""

    @classmethod
    def of(
        cls, theirs: Sequence[str], ours: Labels, renamed: Mapping[str, str] | None = None
    ) -> "LabelMap":
        """By name: a type keeps its name unless ``renamed`` says otherwise (``{"MISC": "O"}``).

        Types that the data don't have count as O. BILOU and BIOES are read as IOB2. Classes that
        they don't have count for nothing, and each of theirs must be there.

        Raises:
            ValueError: for names that are no tags, for a type or class in ``renamed`` that the
                teacher hasn't or the data haven't, and if no type is left, or a class has none.
        """
        if isinstance(ours, ClassSet):
            return _map_classes(theirs, ours, renamed or {})
        split = [_split_any(tag) for tag in theirs]
        types = sorted({kind for _, kind in split} - {""})
        renamed = dict(renamed or {})
        for kind, target in renamed.items():
            if kind not in types:
                raise ValueError(f"the teacher has no type {kind!r}: it has {', '.join(types)}")
            if target not in (OUTSIDE, *ours.types):
                raise ValueError(
                    f"the data have no type {target!r}: {OUTSIDE}, {', '.join(ours.types)}"
                )
        columns: dict[str, list[int]] = {tag: [] for tag in ours.tags}
        for number, (prefix, kind) in enumerate(split):
            tag = f"{prefix}-{renamed.get(kind, kind)}"
            columns[tag if tag in columns else OUTSIDE].append(number)
        lost = tuple(kind for kind in types if renamed.get(kind, kind) not in ours.types)
        if len(lost) == len(types) and ours.types:
            raise ValueError(
                f"the teacher's types ({', '.join(types) or 'none'}) and the data's "
                f"({', '.join(ours.types)}) have no name in common: rename them, as in PERSON=PER"
            )
        unknown = tuple(tag for tag, found in columns.items() if not found)
        return cls(tuple(tuple(found) for found in columns.values()), lost, unknown)

    def describe(self) -> str:
        """What is lost, in a sentence; empty where nothing is."""
        said = []
        if self.lost:
            said.append(f"the teacher's {', '.join(self.lost)} count as {self.counted}")
        if self.unknown:
            said.append(f"it knows nothing of {', '.join(self.unknown)}")
        return "; ".join(said)


def _map_classes(theirs: Sequence[str], ours: ClassSet, renamed: Mapping[str, str]) -> LabelMap:
    if strange := [name for name in renamed if name not in theirs]:
        raise ValueError(f"the teacher has no class {strange[0]!r}: it has {', '.join(theirs)}")
    names = [renamed.get(name, name) for name in theirs]
    columns = tuple(
        tuple(number for number, name in enumerate(names) if name == wanted)
        for wanted in ours.classes
    )
    if empty := [name for name, found in zip(ours.classes, columns, strict=True) if not found]:
        raise ValueError(
            f"the teacher's classes ({', '.join(theirs)}) have none for the data's "
            f"{', '.join(empty)}: rename them, as in LABEL_0={empty[0]}"
        )
    lost = tuple(name for name in dict.fromkeys(names) if name not in ours.index)
    return LabelMap(columns, lost, counted="nothing")


def _split_any(tag: str) -> tuple[str, str]:
    """``split_tag``, and the prefixes of BILOU (L, U) and BIOES (E, S) as IOB2's."""
    first, dash, kind = tag.partition("-")
    prefix = {"U": "B", "S": "B", "L": "I", "E": "I"}.get(first, first)
    return split_tag(f"{prefix}{dash}{kind}")
