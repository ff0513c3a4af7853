"""The ways to serve one model, side by side: as it is, by hand, by torchao, by ONNX Runtime; size and memory of each.

What this module does not do: measure their speed (``measure.timing``).
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from sslcourse.compress.int8_copies import disk_bytes, int8_copy, memory_bytes, torchao_copy
from sslcourse.compress.onnx_files import OnnxModel, export_onnx, int8_onnx, static_int8_onnx
from sslcourse.data.ignored import IGNORE


@dataclass(frozen=True)
class Route:
    """One way to compute a model: what to call, and what it weighs."""

    model: nn.Module  # model(input_ids=..., attention_mask=...).logits
    graph: Path | None = None  # the file that ONNX Runtime computes, if it does

    def __call__(self, **batch: Tensor) -> Tensor:
        with torch.inference_mode():
            found = self.model(**batch)
        return found.logits if getattr(found, "logits", None) is not None else found.last_hidden_state

    @property
    def disk(self) -> int:
        """Bytes of its file."""
        return disk_bytes(self.model) if self.graph is None else self.graph.stat().st_size

    @property
    def memory(self) -> int:
        """Bytes of all weights; or, of a graph, what a fresh process grows by when it opens it."""
        return memory_bytes(self.model) if self.graph is None else resident_bytes(self.graph)


def routes(
    model: nn.Module, inputs: Mapping[str, Tensor], folder: str | Path, calibration: Sequence[Mapping[str, Tensor]] = ()
) -> dict[str, Route]:
    """The model in fp32, in bf16, and in int8 by every route that this module knows, exported files under ``folder``.

    Args:
        inputs: an example batch of two rows or more.
        calibration: batches for static int8; without them that route is left out.

    Raises:
        ValueError: as ``quantizable`` and ``export_onnx``.
    """
    folder = Path(folder)
    found = {
        "fp32": Route(copy.deepcopy(model).eval()),
        "bf16 weights": Route(copy.deepcopy(model).eval().to(torch.bfloat16)),
        "int8 by hand": Route(int8_copy(model)),
        "torchao dynamic": Route(torchao_copy(model)),
        "torchao weight-only": Route(torchao_copy(model, "weight-only")),
    }
    graphs = {"ONNX fp32": export_onnx(model, folder / "fp32.onnx", inputs)}
    graphs["ONNX dynamic"] = int8_onnx(graphs["ONNX fp32"], folder / "dynamic.onnx")
    if calibration:
        graphs["ONNX static"] = static_int8_onnx(graphs["ONNX fp32"], folder / "static.onnx", calibration)
    return found | {name: Route(served(model, OnnxModel(path)), path) for name, path in graphs.items()}


def served(model: nn.Module, graph: OnnxModel) -> nn.Module:
    """A copy of ``model`` that looks like it and lets ONNX Runtime compute, for ``evaluate`` and ``predict``."""
    made = copy.deepcopy(model).eval()

    def forward(input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> ModelOutput:
        return ModelOutput(logits=graph(input_ids, attention_mask))

    def masked_logits(input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return graph(input_ids, attention_mask)[labels != IGNORE]

    made.forward = forward
    if hasattr(made, "masked_logits"):
        made.masked_logits = masked_logits
    return made


def resident_bytes(path: str | Path) -> int:
    """By how much a fresh process grows when it opens a graph and answers one row of 128 tokens.

    Raises:
        ValueError: if the graph cannot be opened.
    """
    done = subprocess.run([sys.executable, "-c", _GROWS, str(path)], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise ValueError(f"path={str(path)!r} is not a graph that ONNX Runtime opens ({done.stderr.strip()[-300:]})")
    return int(done.stdout)


_GROWS = """
import sys
import numpy, onnxruntime, psutil
onnxruntime.set_default_logger_severity(3)
before = psutil.Process().memory_info().rss
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
row = numpy.ones((1, 128), dtype=numpy.int64)
session.run(None, {"input_ids": row, "attention_mask": row})
print(psutil.Process().memory_info().rss - before)
"""
