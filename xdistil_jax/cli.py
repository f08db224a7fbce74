"""``xdistil``: the commands. Only here, and in terminal.py, is anything printed or ended."""

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdistil_jax import finishing, serving, storage
from xdistil_jax.arguments import DistilArguments, QuickstartArguments, parse, parse_known
from xdistil_jax.storage import shown
from xdistil_jax.terminal import audience, say, show_usage, signals, told

if TYPE_CHECKING:
    from xdistil_jax.experiment import Experiment

USAGE = """\
usage: xdistil COMMAND ...

  quickstart                      the whole pipeline on the embedded corpus
  distil --train F --dev F ...    a student from your own files
  run FILE [STRATEGY] ...         an experiment file, every field overridable
  table FILE [--size full] ...    the runs of a study, and their table
  plan [FILE] [STRATEGY] ...      print the stages, costs, students that fit
  eval RUN [--split dev|test]     figures of a finished run
  export RUN --to DIR             the student to pass on: ONNX graphs, model card
  bench DIR                       an exported student's milliseconds, beside a teacher's
  tag RUN ["text" ...]            entities of the texts, or of each line on stdin, as JSON
  push DIR --repo OWNER/NAME      a student to the Hugging Face hub
  predict RUN ["text" ...]        the class of each text; of a pair, with a tab between
  pretrain --out FOLDER ...       a teacher from text: masked language modelling
  transfer --languages L … --out DIR   transfer text from Wikipedia
  cache ls|rm [ID] [--out DIR]    the teacher caches
  launch --processes N COMMAND    a command that computes, in N processes on this machine

xdistil COMMAND --help says more."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[list[str]], None]] = {
        "quickstart": _quickstart,
        "distil": _distil,
        "run": _run,
        "table": _table,
        "plan": _plan,
        "eval": finishing.evaluate,
        "export": finishing.export,
        "bench": finishing.bench,
        "tag": serving.tag,
        "push": serving.push,
        "predict": serving.predict,
        "pretrain": _pretrain,
        "transfer": _transfer,
        "cache": _cache,
        "launch": _launch,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        arguments = ["--help"]
        commands["--help"] = lambda rest: print(USAGE)
    name, *rest = arguments
    if name not in commands:
        sys.exit(f"xdistil: no command {name!r}{_nearest(name, commands)}\n\n{USAGE}")
    with told(f"xdistil {name}"):
        commands[name](rest)


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _carry_out(chosen: "Experiment", *, evaluate_test: bool) -> None:
    from xdistil_jax import hosts
    from xdistil_jax.evaluation import compose_rows
    from xdistil_jax.pipeline import run
    from xdistil_jax.report import compilations, page

    hosts.connect(heartbeat_seconds=chosen.run.heartbeat_s)
    with signals() as stop:
        result = run(chosen, evaluate_test=evaluate_test, stop=stop, **audience())
    if not hosts.is_primary():
        return
    split = "test" if evaluate_test else "dev"
    rows = compose_rows(result.report["figures"][split], result.report.get("latency"))
    print(page.table(rows))
    print(compilations.table(result.report))
    print(f"{split} figures. Report: {shown(result.folder / 'report.md')}")


def _quickstart(arguments: list[str]) -> None:
    given = parse(QuickstartArguments, arguments, "quickstart")
    from xdistil_jax import hosts
    from xdistil_jax.quickstart import CAVEAT, quickstart

    hosts.connect()
    with signals() as stop:
        found = quickstart(out=given.out, seed=given.seed, stop=stop, **audience())
    if not hosts.is_primary():
        return
    print(found.table)
    print(CAVEAT)
    print(found.compilations)
    print(f"Report: {shown(found.page)}")
    print(f"Run folder: {shown(found.folders[-1])}")


def _distil(arguments: list[str]) -> None:
    from xdistil_jax.configs import EnsembleConfig, TeacherConfig, student_config
    from xdistil_jax.data.corpus import DataSpec
    from xdistil_jax.experiment import Experiment

    if {"-h", "--help"} & set(arguments):
        parse(DistilArguments, ["--help"], "distil")
    given, rest = parse_known(DistilArguments, arguments, "distil")
    _refuse_typos(rest)
    first, *others = given.teacher or ("",)
    chosen = Experiment(
        name=given.name,
        strategy=given.strategy,
        data=DataSpec(
            given.train, given.dev, given.test, given.unlabelled, on_mismatch=given.on_mismatch
        ),
        teacher=TeacherConfig(checkpoint=first),
        ensemble=EnsembleConfig(tuple(TeacherConfig(checkpoint=name) for name in others)),
        student=student_config(given.student),
    )
    chosen.plan()
    chosen = parse(Experiment, rest, "distil", chosen)
    chosen.plan()
    if not (chosen.teacher.checkpoint or chosen.teacher.outputs):
        raise ValueError(
            "no teacher: give --teacher with a Hugging Face folder or hub name, or "
            "--teacher.outputs with a folder that OutputsWriter has filled"
        )
    _carry_out(chosen, evaluate_test=bool(chosen.data.test))


def _refuse_typos(arguments: Sequence[str]) -> None:
    """Answer a flag without a dot, which is no field of a part of an Experiment, by the nearest."""
    known = {f"--{each.name.replace('_', '-')}": each for each in fields(DistilArguments)}
    for each in arguments:
        if each.startswith("--") and "." not in (flag := each.partition("=")[0]):
            sys.exit(f"xdistil distil: no option {flag}{_nearest(flag, known)}")


def _chosen(arguments: list[str], command: str, student: str = "") -> "Experiment":
    """[FILE] [STRATEGY] and overrides -> Experiment; ``student`` by name takes its own's place."""
    from xdistil_jax.configs import student_config
    from xdistil_jax.experiment import Experiment
    from xdistil_jax.planning import load_experiment

    places = []
    while arguments and not arguments[0].startswith("-"):
        places.append(arguments.pop(0))
    file = places.pop(0) if places and places[0].endswith(".py") else None
    strategy = places.pop(0) if places else None
    if places:
        raise ValueError(f"expected [FILE] [STRATEGY] and then options, found {places[0]!r} too")
    if file is None:
        default = Experiment() if strategy is None else Experiment(strategy=strategy)
    else:
        default = load_experiment(file)(strategy)
    if student:
        default = replace(default, student=student_config(student))
    chosen = parse(Experiment, arguments, command, default)
    chosen.plan()
    return chosen


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        text = "xdistil run FILE [STRATEGY] [--test] [--data.root DIR] [--student.embed 100] …"
        more = "Every field of the experiment can be set: xdistil run FILE --help lists them."
        show_usage(f"{text}\n\n{more}", arguments)
    evaluate_test = "--test" in arguments
    chosen = _chosen([each for each in arguments if each != "--test"], "run FILE")
    _carry_out(chosen, evaluate_test=evaluate_test)


def _table(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        text = "xdistil table FILE [--test] [--size small|full|…] [--seeds 0 1 2] [--only ROW …]"
        show_usage(text, arguments)
    from xdistil_jax import hosts, study

    file, *rest = arguments
    without = [each for each in rest if each != "--test"]
    given = parse(study.TableArguments, without, "table FILE")
    chosen = study.load_study(file, given.size).only(given.only).at(given.seeds)
    hosts.connect(heartbeat_seconds=chosen.variants[0].experiment.run.heartbeat_s)
    with signals() as stop:
        found = study.conduct(chosen, evaluate_test="--test" in rest, stop=stop, **audience())
    if hosts.is_primary():
        print(study.report(chosen, found), end="")


def _plan(arguments: list[str]) -> None:
    from xdistil_jax.planning import plan_options, plan_texts

    options = plan_options()
    given, rest = options.parse_known_args(arguments)
    if {"-h", "--help"} & set(rest):
        print(options.format_help().partition("\n\n")[2])
    for text in plan_texts(_chosen(rest, "plan", given.student), given):
        print(text, flush=True)


def _pretrain(arguments: list[str]) -> None:
    from xdistil_jax import hosts
    from xdistil_jax.pretrain import Pretraining, pretrain
    from xdistil_jax.report import compilations

    given = parse(Pretraining, arguments, "pretrain")
    hosts.connect(heartbeat_seconds=given.run.heartbeat_s)
    with signals() as stop:
        report = pretrain(given, stop=stop, **audience())
    if hosts.is_primary():
        print(compilations.table(report))
        print(
            f"held-out loss {report['loss']:.3f}, perplexity {report['perplexity']:.1f} at step "
            f"{report['best_step']:,} of {report['steps']:,}. A teacher: --teacher {given.out}"
        )


def _transfer(arguments: list[str]) -> None:
    from xdistil_jax.data.transfer import TransferSpec, make_transfer

    given = parse(TransferSpec, arguments, "transfer")
    total = sum(each["sentences"] for each in make_transfer(given, say=say)["languages"].values())
    print(f"{total:,} sentences. Read them with --data.unlabelled-root {given.out}")


def _cache(arguments: list[str]) -> None:
    from xdistil_jax.teacher.manifest import list_caches, remove_cache

    root = Path("runs")
    if "--out" in arguments[:-1]:
        at = arguments.index("--out")
        root = storage.start(arguments[at + 1], writes="rm" in arguments)
        arguments = arguments[:at] + arguments[at + 2 :]
    if arguments == ["ls"]:
        for info in list_caches(root / "cache"):
            state = "complete" if info.complete else "unfinished"
            state = state if info.settings else "damaged, or of a newer version"
            about = [*info.settings.get("layers", ()), info.settings.get("codec", "")]
            size = f"{info.bytes / 2**20:8.1f} MiB  {info.rows:9,} rows"
            print(f"{info.id}  {size}  {', '.join(about)}  {state}")
    elif len(arguments) == 2 and arguments[0] == "rm":
        print(f"removed {remove_cache(root / 'cache', arguments[1])}")
    else:
        show_usage("xdistil cache ls | xdistil cache rm ID   [--out DIR]", arguments)


def _launch(arguments: list[str]) -> None:
    from xdistil_jax.launch import COMMANDS, LaunchArguments, launch

    place = next((i for i, each in enumerate(arguments) if each in COMMANDS), -1)
    if place < 0:
        show_usage("xdistil launch --processes 4 [--devices 2] [--grace 60] run FILE …", arguments)
    given = parse(LaunchArguments, arguments[:place], "launch")
    command = [sys.executable, "-m", "xdistil_jax", *arguments[place:]]
    sys.exit(launch(command, given.processes, given.devices, given.grace, say=say))
