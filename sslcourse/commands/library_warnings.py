"""Hush what torchao says when it is imported on a machine without a GPU, and ``transformers`` imports it by itself.

It looks for kernels of GPUs, does not find them, and says so on stderr, two lines for each process, which then stand in
every notebook and above every result of the command line. Nothing is lost with them: what a lesson calls and does not
find still raises. What this module does not do: hush anything at the level of an error.
"""

from __future__ import annotations

import logging

SPEAKERS = (
    "torchao",  # "Failed to load ... .so": kernels for CUDA
    "torch.utils._pytree",  # torchao 0.18 registers enums in a way that torch 2.13 calls deprecated
    "torch.onnx._internal.exporter._registration",  # "torchvision is not installed", at every export
)


def hush() -> None:
    """From now on these loggers report errors only. Call it before ``transformers`` is imported."""
    for name in SPEAKERS:
        logging.getLogger(name).setLevel(logging.ERROR)
