"""A finished run's student as it leaves the building: graphs, model card, and the gate before."""

import os
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Float, Int

from xdistil_jax import files, trees
from xdistil_jax.deploy import card
from xdistil_jax.deploy.bundle import Bundle, load_bundle, seal
from xdistil_jax.deploy.calibration import measure_calibration
from xdistil_jax.deploy.onnx import build_graph, dynamic_int8, save_graph, stored_int8
from xdistil_jax.deploy.runtime import Runtime
from xdistil_jax.deploy.web import CARD_SECTION, PAGE, Page, save_page
from xdistil_jax.deploy.words import LOGITS, Student
from xdistil_jax.finished import (
    Finished,
    datasets_of,
    describe_data,
    find_finished,
    languages_of,
    name_teacher,
)
from xdistil_jax.gate import Answers, DevSet, Forward, GateError, difference, examine
from xdistil_jax.labels import ClassSet
from xdistil_jax.models.checkpoints import save_encoder
from xdistil_jax.models.functional import build
from xdistil_jax.models.transformer import TransformerSpec
from xdistil_jax.report import bench
from xdistil_jax.report.classes import AnyScores
from xdistil_jax.session import Say
from xdistil_jax.students import read_spec

BUNDLE = ("model.safetensors", "config.json", "tokenizer.json", "labels.json")
GRAPHS = {"model.onnx": build_graph, "model.int8.onnx": lambda b: dynamic_int8(build_graph(b))}
EXACT = ("model.safetensors", "model.onnx")
"""Artefacts that compute in fp32."""
SHAPES = ((1, 32), (32, 32))
WEB = f"web/{PAGE}"
TRANSFORMERS = "transformers"
"""The folder that PyTorch's library loads: both call their settings config.json."""


def export(
    run: str | Path,
    to: str | Path,
    *,
    allow_drop: bool = False,
    licence: str = "",
    stablehlo: bool = False,
    web: bool = False,
    web_packages: str = "",
    say: Say = lambda message: None,
) -> Path:
    """Write the bundle of a run with its graphs and its model card to ``to``, whole or not at all.

    All artefacts answer the run's dev set before (see ``gate``).

    Raises:
        gate.GateError: with the figures, if one is worse than the student in JAX; with
            ``allow_drop`` the card says so instead.
        ValueError: if ``run`` is no finished run, its data have changed, or ``to`` is there.
    """
    to = Path(to)
    if to.exists():
        raise ValueError(f"{to} is there already: name a new folder, or delete it")
    found = find_finished(run)
    bundle = load_bundle(found.folder / "student")
    with files.atomic_folder(to) as folder:
        forwards, runtimes = _write_artefacts(folder, found, bundle)
        if web:
            say("making the page")
            forwards[WEB] = write_web(folder, bundle, languages_of(found), web_packages).logits
        say(f"asking {len(forwards)} artefacts about {len(found.dev):,} dev sentences")
        answers, faults = examine(
            DevSet.of(bundle, found.dev),
            in_jax(bundle),
            {name: (forward, name in EXACT) for name, forward in forwards.items()},
        )
        if faults and not allow_drop:
            raise GateError(
                "; ".join(faults) + ". Export with --allow-drop if that is good enough; the card "
                "will say so"
            )
        transformers = write_transformers(folder / TRANSFORMERS, bundle)
        exported = write_stablehlo(folder, bundle) if stablehlo else ""
        seal(folder, [*GRAPHS, *filter(None, [exported])])
        facts = gather(found, bundle, answers, runtimes, folder)
        facts = replace(
            facts, licence=licence, faults=faults, transformers=transformers, stablehlo=exported
        )
        files.write_atomic(folder / "README.md", card.render(facts))
    return to


def _write_artefacts(
    folder: Path, found: Finished, bundle: Bundle
) -> tuple[dict[str, Forward], dict[str, Runtime]]:
    """What every export has: (all that can be asked, the graphs among them)."""
    for name in BUNDLE:
        shutil.copyfile(found.folder / "student" / name, folder / name)
    for name, graph in GRAPHS.items():
        save_graph(graph(bundle), folder / name)
    runtimes = {name: Runtime(folder / name) for name in GRAPHS}
    plain = {"model.safetensors": partial(LOGITS[bundle.kind], bundle)}
    return {**plain, **{name: runtime.logits for name, runtime in runtimes.items()}}, runtimes


def in_jax(bundle: Bundle) -> Forward:
    """The student as it was trained, in fp32."""
    spec, params = read_spec(bundle), trees.unflatten(bundle.weights)
    apply = jax.jit(build(spec).apply)

    def forward(
        tokens: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, "B"]
    ) -> Float[np.ndarray, "B T C"]:
        with jax.default_matmul_precision("highest"):
            given = tokens.astype(np.int32), lengths.astype(np.int32)
            return np.asarray(apply(params, *given).logits)

    return forward


def write_transformers(folder: Path, bundle: Bundle) -> bool:
    """What AutoModelForTokenClassification loads; False for a student that isn't one of theirs."""
    spec = read_spec(bundle)
    if not isinstance(spec, TransformerSpec):
        return False
    encoder, params = spec.encoder, trees.unflatten(bundle.weights)
    if not encoder.token_types and encoder.family == "bert":
        # Theirs always adds a type.
        types = np.zeros((2, params["embed"]["table"].shape[1]), np.float32)
        params = {**params, "embed": {**params["embed"], "types": types}}
        encoder = replace(encoder, token_types=2)
    save_encoder(folder, encoder, params, bundle.tagset.tags)
    bundle.tokenizer.save(folder, longest=bundle.max_length)
    return True


def write_stablehlo(folder: Path, bundle: Bundle) -> str:
    """``jax.export``'s form, for any batch and length, its weights in it; gives the file's name."""
    spec, params = read_spec(bundle), jax.tree.map(jnp.asarray, trees.unflatten(bundle.weights))
    bounds = [f"length <= {bundle.max_length}"] * isinstance(spec, TransformerSpec)
    rows, length = jax_export.symbolic_shape("rows, length", constraints=bounds)

    @jax.jit
    def logits(tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        return build(spec).apply(params, tokens, lengths).logits

    exported = jax_export.export(logits, platforms=("cpu", "cuda", "tpu"))(
        jax.ShapeDtypeStruct((rows, length), np.int32), jax.ShapeDtypeStruct((rows,), np.int32)
    )
    name = f"model-{datetime.now(UTC):%Y-%m-%d}.stablehlo"
    files.write_atomic(folder / name, bytes(exported.serialize()))
    return name


def write_web(folder: Path, bundle: Bundle, languages: list[str], packages: str) -> Runtime:
    """The page that tags what is typed; gives the graph that lies in it."""
    graph = stored_int8(build_graph(bundle))
    page = Page(languages)
    save_page(
        (folder / WEB).parent, bundle, graph.SerializeToString(), page, packages=packages or None
    )
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.onnx"
        save_graph(graph, path)
        return Runtime(path)


def gather(
    found: Finished,
    bundle: Bundle,
    answers: Mapping[str, Answers],
    runtimes: Mapping[str, Runtime],
    folder: Path,
) -> card.Facts:
    """What the card says, but for what the caller alone knows."""
    experiment, reference = found.experiment, answers[""]
    student = Student(bundle, runtimes["model.onnx"].logits)
    named = {name or "JAX": each for name, each in answers.items()}
    scores = reference.words
    vocabulary = bundle.tokenizer.vocab_size
    return card.Facts(
        name=f"{found.folder.parent.name}, {found.folder.name}",
        task=experiment.data.task,
        labels=bundle.tagset.classes
        if isinstance(bundle.tagset, ClassSet)
        else bundle.tagset.types,
        languages=languages_of(found),
        data=describe_data(found),
        datasets=datasets_of(found),
        teacher=name_teacher(found),
        strategy=found.folder.name.rpartition("-")[0] or experiment.strategy,
        model=f"{bundle.kind}, {vocabulary:,} pieces; {_choices(bundle)}",
        parameters=sum(leaf.size for leaf in bundle.weights.values()),
        max_length=bundle.max_length,
        figure=scores.figure,
        words={name: _columns(each.words) for name, each in named.items()},
        text={name: _columns(each.text) for name, each in named.items()},
        differences={n: difference(each, reference) for n, each in answers.items() if n},
        bytes={path.name: path.stat().st_size for path in sorted(folder.glob("model*"))},
        milliseconds={name: _latency(each, bundle) for name, each in runtimes.items()},
        sections=[
            card.calibration(measure_calibration(student, found.dev)),
            *[CARD_SECTION] * (folder / WEB).is_file(),
        ],
        dev_decided=set(found.corpus.stopping) <= set(found.corpus.dev),
        machine=f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()}",
    )


def _choices(bundle: Bundle) -> str:
    """The sizes that tell students of a kind apart."""
    sizes = bundle.sizes.get("encoder", bundle.sizes)
    names: Sequence[str] = (
        *("embed", "hidden", "teacher_width", "projection", "head_on", "pool"),
        *("layers", "width", "heads", "feed_forward"),
    )
    return ", ".join(f"{name} {sizes[name]}" for name in names if name in sizes)


def _columns(scores: AnyScores) -> dict[str, float | None]:
    """A column of the card: what stands for all, then each language."""
    return {
        f"mean {scores.figure}": scores.mean,
        **dict(scores.summary()),
        **{name: scores.of_language(name) for name in scores.languages},
    }


def _latency(runtime: Runtime, bundle: Bundle) -> dict[str, float]:
    random = np.random.default_rng(0)
    found = {}
    for rows, width in ((rows, min(width, bundle.max_length)) for rows, width in SHAPES):
        tokens = random.integers(0, bundle.tokenizer.vocab_size, (rows, width))
        call = partial(runtime.logits, tokens, np.full(rows, width))
        found[f"{rows} × {width}"] = bench.latency(call, budget_s=2.0).median_ms
    return found
