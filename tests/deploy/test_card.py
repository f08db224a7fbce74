"""The model card: its header is YAML, and each thing said stands where it belongs."""

from dataclasses import replace

import pytest

from xdistil_jax.deploy import card
from xdistil_jax.deploy.calibration import Calibration

yaml = pytest.importorskip("yaml")

ONES = {"mean F1": 80.123, "de": 79.0, "no": 81.25}
FACTS = card.Facts(
    name='a "name": odd',
    task="tagging",
    labels=("LOC", "PER"),
    languages=("de", "no"),
    data=("files: 10 labelled sentences",),
    datasets=(),
    teacher="mBERT",
    strategy="D4.2",
    model="bilstm, 30 pieces",
    parameters=1234567,
    max_length=64,
    figure="F1",
    words={"JAX": ONES, "model.onnx": {**ONES, "de": None}},
    text={"JAX": {**ONES, "mean F1": 78.0}, "model.onnx": ONES},
    differences={"model.onnx": 1.5e-5},
    bytes={"model.onnx": 2_500_000},
    milliseconds={"model.onnx": {"1 × 32": 0.256}},
    machine="2 cores",
)


def header(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_header_is_read_back():
    found = header(card.render(replace(FACTS, licence="no", datasets=["a/b"])))
    # Norwegian, and a licence, which YAML would take for False.
    assert found["language"] == ["de", "no"]
    assert found["license"] == "no"
    assert found["datasets"] == ["a/b"]
    model = found["model-index"][0]
    assert model["name"] == FACTS.name
    assert [each["value"] for each in model["results"][0]["metrics"]] == [80.12, 78.0]
    assert "datasets" not in header(card.render(FACTS))


def test_figures_stand_under_their_artefact():
    text = card.render(FACTS)
    words = text.partition("### On words")[2].partition("###")[0]
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in words.splitlines() if line
    ]
    assert lines[0] == ["", "JAX", "model.onnx"]
    assert ["de", "79.00", "-"] in lines
    assert ["no", "81.25", "81.25"] in lines
    assert "1,234,567" in text
    assert "| `model.onnx` | 2.50 |" in text
    assert "| `model.onnx` | 0.26 |" in text


@pytest.mark.parametrize("decided", [True, False])
def test_what_dev_was_for_is_said(decided):
    text = card.render(replace(FACTS, dev_decided=decided))
    assert ("Dev decided when training stopped" in text) is decided


def test_faults_are_not_hidden():
    assert "a logit differs" in card.render(replace(FACTS, faults=["a logit differs"]))


def test_calibration_errors_are_percentages():
    text = card.calibration(Calibration(1.5, 0.123, 0.0456, 0.2, None, 1200, 7))
    assert "over 1.5" in text
    assert "| entities | 1,200 | 12.30 | 4.56 |" in text
    assert "| words or texts | 7 | 20.00 | - |" in text
    assert "## What scores mean" in card.render(replace(FACTS, sections=[text]))


def test_a_classifier_is_one():
    facts = replace(FACTS, task="classification", figure="accuracy")
    found = header(card.render(facts))
    assert found["pipeline_tag"] == "text-classification"
    assert found["metrics"] == ["accuracy", "f1"]
    assert "Classifier" in card.render(facts)
