"""The commands that the base install serves: ``tag``, ``predict`` and ``push``."""

import argparse
import sys
from collections.abc import Sequence

from xdistil_jax.terminal import lines_of_stdin, say, show_usage, write

_PREDICT_USAGE = 'RUN ["text" …]   (without texts: each line on stdin)'
_TAG_USAGE = """RUN ["text" ...] [options]   (without texts: each line on stdin)

RUN is a student's folder, a run folder, on disk or in a bucket, or OWNER/NAME on the Hugging Face
hub. Lines are text, or JSON objects with text, or with a list of words; answers are JSON lines.

  --format auto|text|json       of the lines; auto: as the first one is
  --aggregate simple|none       entities, or every word with its tag
  --on-bad stop|skip            at a line that can't be used: end, or say so and go on
  --precision auto|fp32|int8    which graph of an exported student
  --threads N                   of onnxruntime
  --revision R                  branch, tag or commit on the hub"""

_PUSH_USAGE = """DIR --repo OWNER/NAME [--private] [--revision BRANCH]

DIR is a student's folder, or a run folder. The repository is made if it isn't there."""


def tag(arguments: Sequence[str]) -> None:
    """Entities: of texts for reading, of lines on stdin as JSON lines."""
    if not arguments or arguments[0].startswith("-"):
        show_usage(f"xdistil tag {_TAG_USAGE}", arguments)
    from xdistil_jax.deploy.stream import answer, blocks
    from xdistil_jax.deploy.tagger import Tagger

    # Intermixed: options may stand before the texts, too.
    given = _tag_options().parse_intermixed_args(arguments)
    options = {name: getattr(given, name) for name in ("revision", "threads", "precision")}
    tagger = Tagger.load(given.student, **options)
    if given.texts:
        found = tagger(given.texts, given.aggregate)
        said = [[f"{each[0]} [{each[1]} {each.start}:{each.end}]" for each in one] for one in found]
        write([["\t".join(each) for each in said]])
        return
    skip = say if given.on_bad == "skip" else None
    lines = blocks(sys.stdin.buffer)
    write(answer(tagger, lines, form=given.format, aggregate=given.aggregate, skip=skip))


def predict(arguments: Sequence[str]) -> None:
    """The class of each text, and its probability."""
    if not arguments or arguments[0].startswith("-"):
        show_usage(f"xdistil predict {_PREDICT_USAGE}", arguments)
    from xdistil_jax.deploy.classifier import Classifier

    folder, *texts = arguments
    classifier = Classifier.load(folder)
    for text in texts or lines_of_stdin():
        first, tab, second = text.partition("\t")
        found = classifier([(first, second) if tab else first])[0]
        write([[f"{found.label}\t{found.probability:.4f}"]])


def push(arguments: Sequence[str]) -> None:
    """A student to the Hugging Face hub; prints the commit's URL."""
    if not arguments or arguments[0].startswith("-"):
        show_usage(f"xdistil push {_PUSH_USAGE}", arguments)
    from xdistil_jax.deploy.bundle import push_bundle

    given = _push_options().parse_args(arguments)
    done = push_bundle(given.folder, given.repo, private=given.private, revision=given.revision)
    write([[done]])


def _tag_options() -> argparse.ArgumentParser:
    """Of ``xdistil tag``."""
    options = argparse.ArgumentParser(
        prog="xdistil tag", usage=f"xdistil tag {_TAG_USAGE}", add_help=False
    )
    options.add_argument("student")
    options.add_argument("texts", nargs="*")
    options.add_argument("--format", choices=("auto", "text", "json"), default="auto")
    options.add_argument("--aggregate", choices=("simple", "none"), default="simple")
    options.add_argument("--on-bad", choices=("stop", "skip"), default="stop")
    options.add_argument("--precision", choices=("auto", "fp32", "int8"), default="auto")
    options.add_argument("--threads", type=int)
    options.add_argument("--revision")
    return options


def _push_options() -> argparse.ArgumentParser:
    """Of ``xdistil push``."""
    options = argparse.ArgumentParser(
        prog="xdistil push", usage=f"xdistil push {_PUSH_USAGE}", add_help=False
    )
    options.add_argument("folder")
    options.add_argument("--repo", required=True)
    options.add_argument("--private", action="store_true")
    options.add_argument("--revision")
    return options
