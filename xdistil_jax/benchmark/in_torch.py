"""The peers: teacher and student in PyTorch, where it is installed. Never needed."""

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xdistil_jax.benchmark.subjects import Call, Contender, Makers, batches, load_model
from xdistil_jax.deploy.bundle import Bundle
from xdistil_jax.models import families
from xdistil_jax.models.encoder import EncoderSpec
from xdistil_jax.models.transformer import TransformerSpec
from xdistil_jax.students import read_spec

if TYPE_CHECKING:
    import torch


def in_torch(contender: Contender) -> Makers:
    """A model of the contender's sizes, its weights random.

    Raises:
        ImportError: without torch, or with one that quantises no more.
    """
    import torch

    if contender.threads:
        torch.set_num_threads(contender.threads)
    torch.manual_seed(0)
    bundle = load_model(contender)
    spec = read_spec(bundle)
    model = _encoder(spec.encoder) if isinstance(spec, TransformerSpec) else _bilstm(bundle)
    model = model.eval()
    if contender.precision == "bf16":
        model = model.bfloat16()
    elif contender.precision == "int8":
        model = _quantised(model)

    draw = batches(bundle)

    def pieces(rows: int, length: int) -> Call:
        tokens = torch.from_numpy(draw(rows, length)[0])

        def call() -> "torch.Tensor":
            with torch.inference_mode():
                found = model(tokens)
            return found if isinstance(found, torch.Tensor) else found.logits

        return call

    return {"pieces": pieces}


def _quantised(model: "torch.nn.Module") -> "torch.nn.Module":
    from torch import nn
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize_dynamic(model, {nn.Linear, nn.LSTM})


def _encoder(spec: EncoderSpec) -> "torch.nn.Module":
    """transformers' own."""
    from transformers import AutoConfig, AutoModelForTokenClassification

    if spec.family == "bert" and not spec.token_types:
        # A student has none; transformers' BERT looks one up for every piece.
        spec = replace(spec, token_types=1)
    config: dict[str, Any] = families.write_config(spec)
    made = AutoConfig.for_model(**config, num_labels=spec.classes)
    return AutoModelForTokenClassification.from_config(made)


def _bilstm(bundle: Bundle) -> "torch.nn.Module":
    """As a user of PyTorch would write it."""
    import torch
    from torch import nn

    shapes = {path: leaf.shape for path, leaf in bundle.weights.items()}
    (pieces, embed), (both, width) = shapes["embed/table"], shapes["projection/kernel"]
    from_bilstm, pool = bundle.sizes["head_on"] == "bilstm", bundle.sizes["pool"]
    activation = {"gelu": nn.GELU(approximate="tanh"), "linear": nn.Identity()}

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(pieces, embed)
            self.lstm = nn.LSTM(embed, both // 2, batch_first=True, bidirectional=True)
            self.project = nn.Sequential(
                nn.Linear(both, width), activation[bundle.sizes["projection"]]
            )
            self.head = nn.Linear(*shapes["head/kernel"])

        def forward(self, tokens: "torch.Tensor") -> "torch.Tensor":
            states, (last, _) = self.lstm(self.embed(tokens))
            if pool == "last":
                states = torch.cat([*last], -1)
            elif pool == "max":
                states = states.amax(1)
            return self.head(states if from_bilstm else self.project(states))

    return Student()
