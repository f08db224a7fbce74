"""The commands for what is finished: ``eval``, ``export`` and ``bench``."""

from xdistil_jax.arguments import BenchArguments, EvalArguments, ExportArguments, parse
from xdistil_jax.storage import shown
from xdistil_jax.terminal import say, show_usage, write


def evaluate(arguments: list[str]) -> None:
    """The figures of a finished run."""
    from xdistil_jax.evaluation import compose_rows
    from xdistil_jax.pipeline import run_again
    from xdistil_jax.report import page

    if not arguments or arguments[0].startswith("-"):
        show_usage("xdistil eval RUN [--split dev|test]", arguments)
    folder, *rest = arguments
    given = parse(EvalArguments, rest, "eval RUN")
    result = run_again(folder, evaluate_test=given.split == "test", say=say)
    rows = compose_rows(result.report["figures"][given.split], result.report.get("latency"))
    said = f"{given.split} figures. Report: {shown(result.folder / 'report.md')}"
    write([[page.table(rows), said]])


def export(arguments: list[str]) -> None:
    """A finished run's student as a folder to pass on."""
    usage = (
        "xdistil export RUN --to DIR [--allow-drop] [--licence NAME] [--stablehlo] [--web] "
        "[--web-packages DIR]"
    )
    if not arguments or arguments[0].startswith("-"):
        show_usage(usage, arguments)
    from xdistil_jax.export import export

    given = parse(ExportArguments, arguments[1:], "export RUN", flags=True)
    write([[f"{export(arguments[0], say=say, **vars(given))}: see README.md there"]])


def bench(arguments: list[str]) -> None:
    """What an exported student takes, beside others."""
    if not arguments or arguments[0].startswith("-"):
        show_usage(
            "xdistil bench DIR [--teacher mbert-base|xlm-r-base|xlm-r-large|FOLDER] [--seconds 2]",
            arguments,
        )
    from xdistil_jax.benchmark import bench, tables

    folder, *rest = arguments
    found = bench.bench(folder, **vars(parse(BenchArguments, rest, "bench DIR")), say=say)
    write([[tables.render(found), f"\n{folder}/{bench.RESULT}, and the model card there"]])
