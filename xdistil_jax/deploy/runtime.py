"""onnxruntime as the tagger uses it: one session, pieces to logits. Imported when it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xdistil_jax.deploy.bundle import BundleError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_ERRORS_ONLY = 3


class Runtime:
    """A graph that ``deploy.onnx`` wrote, ready to answer. Several threads may call it at once."""

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        """``threads`` compute one answer; None: as many as the machine has cores.

        Raises:
            BundleError: if onnxruntime can't load the file.
            ValueError: for less than one thread.
        """
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}: expected at least 1, or None for all cores")
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own have no class in common
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BundleError(
                f"{path} can't be loaded by onnxruntime {onnxruntime.__version__}: {reason}. "
                "Export the student again, or update onnxruntime"
            ) from error
        self._classes = self._session.get_outputs()[0].shape[-1]

    def logits(
        self, tokens: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, "B"]
    ) -> Float[np.ndarray, "B T C"]:
        """fp32. Those of padding are no one's, but finite; of a classifier only [:, 0] counts."""
        if not tokens.size:
            return np.zeros((*tokens.shape, self._classes), np.float32)
        given = {"tokens": tokens.astype(np.int64), "lengths": lengths.astype(np.int32)}
        return self._session.run(["logits"], given)[0]
