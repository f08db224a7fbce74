"""How long teacher and student take for the same batches."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Int

from xdistil_jax.models.functional import Spec, build
from xdistil_jax.report import bench
from xdistil_jax.session import ByLanguage, Ensemble, Trained
from xdistil_jax.types import EncoderOutput, Params

_SECONDS = 8.0


@dataclass(frozen=True)
class _OneAfterTheOther:
    """The forward passes of all members on the same rows."""

    specs: tuple[Spec, ...]

    def __call__(
        self, params: tuple[Params, ...], tokens: Int[Array, "B T"], lengths: Int[Array, "B"]
    ) -> EncoderOutput:
        both = zip(self.specs, params, strict=True)
        logits = [build(spec).apply(each, tokens, lengths).logits for spec, each in both]
        return EncoderOutput({}, sum(logits))


def measure_latency(teacher: Trained | Ensemble, student: Trained | ByLanguage) -> dict[str, Any]:
    """What ``bench.models_latency`` gives; of students that have a language each, of one."""
    if isinstance(student, ByLanguage):
        student = next(iter(student.members.values()))
    members = teacher.members if isinstance(teacher, Ensemble) else (teacher,)
    called = _OneAfterTheOther(tuple(member.spec for member in members))
    return bench.models_latency(
        (called, tuple(member.params for member in members)),
        (build(student.spec).apply, student.params),
        vocab_sizes=(
            min(member.tokenizer.vocab_size for member in members),
            student.tokenizer.vocab_size,
        ),
        budget_s=_SECONDS,
    )
