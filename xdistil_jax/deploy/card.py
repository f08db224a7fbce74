"""The model card: README.md of an exported student, with the YAML header of the Hub.

Each section is a function of ``Facts``; an empty one is left out. Figures are handed in, so that
nothing is measured here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xdistil_jax import markdown
from xdistil_jax.deploy.calibration import Calibration

Scores = Mapping[str, Mapping[str, float | None]]
"""artefact -> name of a figure, or of a language -> percent."""


@dataclass(frozen=True)
class Facts:
    """What there is to say of a student.

    ``words`` and ``text`` are its scores on dev, as words and as raw text; ``figure`` is what they
    are, ``languages`` those that have one. ``milliseconds``: artefact -> shape -> median.
    ``sections`` are further ones, whole, with their headings. ``dev_decided``: when training
    stopped.
    """

    name: str
    task: str
    labels: Sequence[str]
    languages: Sequence[str]
    data: Sequence[str]
    datasets: Sequence[str]
    teacher: str
    strategy: str
    model: str
    parameters: int
    max_length: int
    figure: str
    words: Scores
    text: Scores
    differences: Mapping[str, float]
    bytes: Mapping[str, int]
    milliseconds: Mapping[str, Mapping[str, float]]
    machine: str
    dev_decided: bool = True
    licence: str = ""
    faults: Sequence[str] = ()
    transformers: bool = False
    stablehlo: str = ""
    sections: Sequence[str] = field(default=())

    @property
    def tags_words(self) -> bool:
        """Or does it classify whole texts?"""
        return self.task == "tagging"

    @property
    def reference(self) -> str:
        """The artefact that the others are held to."""
        return next(iter(self.words))


def render(facts: Facts) -> str:
    """The whole card."""
    sections = [section(facts) for section in SECTIONS]
    return "\n\n".join([header(facts), *filter(None, sections)]) + "\n"


def header(facts: Facts) -> str:
    """YAML, read by the Hub. Its scalars are written as JSON, which YAML contains."""
    task = "token-classification" if facts.tags_words else "text-classification"
    lines = [
        "---",
        f"license: {json.dumps(facts.licence or 'unknown')}",
        *_listed("language", facts.languages),
        f"library_name: {json.dumps('xdistil_jax')}",
        f"pipeline_tag: {task}",
        *_listed("tags", ["xdistil_jax", "distillation", "onnx", task, *_named(facts)]),
        *_listed("datasets", facts.datasets),
        *_listed("metrics", ["f1"] if facts.tags_words else ["accuracy", "f1"]),
        *_results(facts, task),
        "---",
    ]
    return "\n".join(lines)


def _named(facts: Facts) -> list[str]:
    return ["named-entity-recognition"] if facts.tags_words else []


def _listed(key: str, values: Sequence[str]) -> list[str]:
    return [f"{key}:", *(f"- {json.dumps(each, ensure_ascii=False)}" for each in values)] * bool(
        values
    )


def _results(facts: Facts, task: str) -> list[str]:
    """The Hub's model-index: the figures on dev, words and raw text."""
    mean = facts.words[facts.reference].get(f"mean {facts.figure}")
    text = facts.text[facts.reference].get(f"mean {facts.figure}")
    if mean is None or text is None:
        return []
    kind = facts.figure.lower()
    data = json.dumps(facts.datasets[0] if facts.datasets else "dev set", ensure_ascii=False)
    metrics = [
        f"    - {{type: {kind}, name: {json.dumps(name)}, value: {value:.2f}}}"
        for name, value in ((f"dev, {w}", v) for w, v in (("words", mean), ("raw text", text)))
    ]
    return [
        "model-index:",
        f"- name: {json.dumps(facts.name, ensure_ascii=False)}",
        "  results:",
        f"  - task: {{type: {task}}}",
        f"    dataset: {{type: {data}, name: {data}}}",
        "    metrics:",
        *metrics,
    ]


def about(facts: Facts) -> str:
    """What it is, in a paragraph."""
    does = "tags words with" if facts.tags_words else "classifies texts as"
    return (
        f"# {facts.name}\n\nA small student that {does} {', '.join(facts.labels)}, distilled with "
        "xdistil_jax. It needs numpy, tokenizers and onnxruntime, and no accelerator."
    )


def training(facts: Facts) -> str:
    """Data, teacher, strategy, model."""
    known = ", ".join(facts.languages)
    rows = [
        *(("data", each) for each in facts.data),
        ("languages", f"{len(facts.languages)}: {known}" if known else "not named"),
        ("teacher", facts.teacher),
        ("strategy", facts.strategy),
        ("model", facts.model),
        ("parameters", f"{facts.parameters:,}"),
        ("longest row", f"{facts.max_length} pieces; longer text is {_long(facts)}"),
    ]
    lines = [f"- **{name}**: {value}" for name, value in rows]
    return "\n".join(["## How it was made", "", *lines])


def _long(facts: Facts) -> str:
    return "tagged in windows" if facts.tags_words else "cut"


def figures(facts: Facts) -> str:
    """Scores of each artefact by language, on words and on raw text."""
    said = (
        f"{facts.figure} in percent on the dev set, of each artefact: on words as they are "
        "labelled, and on raw text that the tagger splits itself"
        + (", entities compared by characters." if facts.tags_words else ".")
        + " Dev decided when training stopped, so test figures will be lower." * facts.dev_decided
    )
    parts = [f"## {facts.figure} by language", "", said]
    for title, scores in (("words", facts.words), ("raw text", facts.text)):
        names = list(dict.fromkeys(name for each in scores.values() for name in each))
        rows = [[name, *(_number(each.get(name)) for each in scores.values())] for name in names]
        parts += ["", f"### On {title}", "", markdown.table(["", *scores], rows)]
    off = ", ".join(f"{name} {value:.1e}" for name, value in facts.differences.items())
    parts += ["", f"Largest difference of a logit from the student in JAX: {off}."]
    if facts.faults:
        parts += ["", "**Exported with `--allow-drop`:**", *(f"- {each}" for each in facts.faults)]
    return "\n".join(parts)


def sizes(facts: Facts) -> str:
    """Sizes of the files, and milliseconds of a call."""
    rows = [[f"`{name}`", f"{size / 1e6:.2f}"] for name, size in facts.bytes.items()]
    shapes = list(dict.fromkeys(shape for each in facts.milliseconds.values() for shape in each))
    timed = [
        [f"`{name}`", *(f"{each[shape]:.2f}" for shape in shapes)]
        for name, each in facts.milliseconds.items()
    ]
    return "\n".join(
        [
            "## Sizes and latency",
            "",
            markdown.table(["file", "MB"], rows),
            "",
            "Median milliseconds from pieces to logits by onnxruntime, rows × pieces, on "
            f"{facts.machine}:",
            "",
            markdown.table(["", *shapes], timed),
        ]
    )


def use(facts: Facts) -> str:
    """Python, command line, onnxruntime alone."""
    kind, command = ("Tagger", "tag") if facts.tags_words else ("Classifier", "predict")
    module = kind.lower()
    parts = [
        "## How to use it",
        "",
        "```python",
        f"from xdistil_jax.deploy.{module} import {kind}",
        "",
        f'answers = {kind}.load("DIR")(["Angela Merkel besuchte Paris."])',
        "```",
        "",
        "```sh",
        f'xdistil {command} DIR "Angela Merkel besuchte Paris."',
        "```",
        "",
        "With onnxruntime alone: `tokenizer.json` cuts words into pieces, framed by the special "
        f"ones; the columns of the logits are {_columns(facts)} of `labels.json`.",
        "",
        "```python",
        "import numpy as np, onnxruntime",
        "",
        'session = onnxruntime.InferenceSession("DIR/model.onnx")',
        "given = {",
        '    "tokens": np.array([[2, 17, 42, 3]], np.int64),  # [batch, length]',
        '    "lengths": np.array([4], np.int32),  # real pieces of each row',
        "}",
        '(logits,) = session.run(["logits"], given)  # fp32 [batch, length, labels]',
        "```",
    ]
    if facts.transformers:
        parts += [
            "",
            "In PyTorch: `AutoModelForTokenClassification.from_pretrained("
            '"DIR", subfolder="transformers")`.',
        ]
    if facts.stablehlo:
        parts += [
            "",
            f"`{facts.stablehlo}` is StableHLO for CPU, GPU and TPU, read with "
            "`jax.export.deserialize`. Such files are promised to load for about half a year after "
            "the date in their name; the others stay.",
        ]
    return "\n".join(parts)


def _columns(facts: Facts) -> str:
    if facts.tags_words:
        return "O, and then B- and I- of each of the types"
    return "the classes; only the first piece's logits count,"


def limits(facts: Facts) -> str:
    """Intended use, limits, licence."""
    what = "names in" if facts.tags_words else "classes of"
    unit = "types" if facts.tags_words else "classes"
    licence = facts.licence or (
        "none was named at the export. Those of the data and of the teacher hold: look them up "
        "before you pass this on"
    )
    return "\n".join(
        [
            "## Intended use and limits",
            "",
            f"For finding {what} text like that of the data above, in the languages named, where a "
            "large model is too slow or too dear. It knows only the "
            f"{unit} above. Expect less on other kinds of text, in other languages, and on names "
            "that are spelled unusually; mistakes and biases of teacher and data are the student's "
            "too. Don't decide about people by its answers alone.",
            "",
            "`model.int8.onnx` scales numbers by the whole batch: its answers can differ a little "
            "with what else is in it. `model.onnx` gives each text the same answer in any company.",
            "",
            f"Licence: {licence}.",
        ]
    )


def calibration(found: Calibration) -> str:
    """How far scores are off, for ``Facts.sections``."""
    rows = [
        ("entities", found.entities, found.entity_before, found.entity_after),
        ("words or texts", found.words, found.word_before, found.word_after),
    ]
    shown = [
        [name, f"{count:,}", *(_number(None if each is None else 100 * each) for each in errors)]
        for name, count, *errors in rows
    ]
    said = (
        f"Scores are softmaxes of the logits over {found.temperature:g}, which was fitted on dev. "
        "The expected calibration error there, in percent, in 15 bins, without and with it:"
    )
    head = ("", "answers", "without", "with")
    return "\n\n".join(["## What scores mean", said, markdown.table(head, shown)])


def more(facts: Facts) -> str:
    """What others have to say."""
    return "\n\n".join(facts.sections)


SECTIONS = (about, training, figures, more, sizes, use, limits)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
