"""A model as a graph in a file that ONNX Runtime runs, in fp32 or with int8 products.

    export_onnx(model, file, inputs)         # a graph in a file, then
    int8_onnx(file, small_file)              # ... with int8 products whose activations are measured on the fly,
    static_int8_onnx(file, other, batches)   # ... or measured beforehand, on calibration data

What this module does not do: kernels; those are ONNX Runtime's.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sslcourse.compress.activation_ranges import check_calibration
from sslcourse.compress.int8_copies import quantizable

if TYPE_CHECKING:
    from jaxtyping import Int


class _Graph(nn.Module):
    """(input_ids, attention_mask) -> logits, or the last hidden state of a model without a head.

    The checks of ``task_heads.TaskModel`` look at values, which a graph cannot; so its parts are called directly.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if hasattr(self.model, "score"):
            hidden = self.model.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return self.model.score(hidden, attention_mask)
        found = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return found.logits if getattr(found, "logits", None) is not None else found.last_hidden_state


def export_onnx(model: nn.Module, path: str | Path, inputs: Mapping[str, Tensor]) -> Path:
    """Write the model as an ONNX graph whose batch and sequence are free, and return its path.

    Args:
        inputs: "input_ids" and "attention_mask" of any batch of two rows or more; the graph is traced with them.

    Raises:
        ValueError: for inputs that are missing or too small, or a model that is quantized or holds nan.
    """
    missing = [name for name in ("input_ids", "attention_mask") if name not in inputs]
    if missing:
        raise ValueError(f"inputs lacks {missing[0]}; give input_ids and attention_mask, each [batch, seq]")
    if min(inputs["input_ids"].shape) < 2:
        raise ValueError(f"inputs have shape {tuple(inputs['input_ids'].shape)}; with one row or one token the tracer "
                         "would take that 1 for a constant: give two or more of each")  # fmt: skip
    quantizable(model)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    was_training = model.training
    try:
        with _quiet(), torch.no_grad(), _written(Path(path)) as target:
            graph = torch.onnx.export(
                _Graph(model).eval(),
                (inputs["input_ids"], inputs["attention_mask"]),
                dynamo=True,
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                dynamic_shapes={"input_ids": dict(free), "attention_mask": dict(free)},
                verbose=False,
            )
            graph.save(target)
    finally:
        model.train(was_training)
    return Path(path)


def refilled_onnx(source: str | Path, target: str | Path, old: nn.Module, new: nn.Module) -> Path:
    """The graph of ``old`` in ``source`` with the weights of ``new``, which has the same shapes, written to ``target``.

    Exporting takes seconds, filling in takes none. A weight is found by its values, as it is or transposed.

    Raises:
        ValueError: for models of other shapes, or a weight of ``old`` that is not in the graph exactly once.
    """
    import onnx
    from onnx import numpy_helper

    check_onnx(source, target)
    before, after = ({name: weight.detach().numpy() for name, weight in model.named_parameters()}
                     for model in (old, new))  # fmt: skip
    if {name: one.shape for name, one in before.items()} != {name: one.shape for name, one in after.items()}:
        raise ValueError("old and new have other weights, or other shapes of weights; export new by itself")
    quantizable(new)
    graph = onnx.load(source)
    held = {one.name: numpy_helper.to_array(one) for one in graph.graph.initializer}
    filled = {}
    for name, was in before.items():
        now = after[name]
        fits = [(place, flip) for place, array in held.items() for flip in (False, True)
                if not (flip and was.ndim != 2) and np.array_equal(array, was.T if flip else was)]  # fmt: skip
        if len(fits) != 1:
            raise ValueError(f"{name} of old stands {len(fits)} times in {str(source)!r}, not once; is it old's graph?")
        ((place, flip),) = fits
        filled[place] = np.ascontiguousarray(now.T if flip else now)
    for one in graph.graph.initializer:
        if one.name in filled:
            one.CopyFrom(numpy_helper.from_array(filled[one.name], one.name))
    with _written(Path(target)) as out:
        onnx.save(graph, out)
    return Path(target)


def int8_onnx(source: str | Path, target: str | Path, *, per_channel: bool = False) -> Path:
    """ONNX Runtime's dynamic int8: every product with a weight, and every table; activations measured as they come.

    Raises:
        ValueError: for a file that is no graph, one that is quantized already, or weights that are nan or infinite.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    check_onnx(source, target)
    with _quiet(), _written(Path(target)) as out:
        quantize_dynamic(source, out, weight_type=QuantType.QInt8, per_channel=per_channel)
    return Path(target)


def static_int8_onnx(
    source: str | Path, target: str | Path, batches: Sequence[Mapping[str, Tensor]], method: str = "minmax"
) -> Path:
    """ONNX Runtime's static int8: ranges of activations are measured once, on ``batches``, and written into the graph.

    Args:
        method: which range: "minmax" all that was seen, "percentile" all but 1 in 100,000.

    Raises:
        ValueError: as ``int8_onnx``; for no batches, ids outside the model's table, or an unknown method.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    methods = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}
    if method not in methods:
        raise ValueError(f"method={method!r} is unknown; choose {', '.join(methods)}")
    graph = check_onnx(source, target)
    tables = [graph_input for node in graph.node if node.op_type == "Gather" and node.input[1] == "input_ids"
              for graph_input in graph.initializer if graph_input.name == node.input[0]]  # fmt: skip
    check_calibration(batches, tables[0].dims[0])

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter({name: value.numpy() for name, value in batch.items()} for batch in batches)

        def get_next(self) -> dict | None:
            return next(self.rows, None)

    # Products with a weight only: what attention multiplies is softmax's output, which one grid for all serves badly.
    names = {one.name for one in graph.initializer}
    chosen = [node.name for node in graph.node
              if (node.op_type == "Gather" and node.input[0] in names)
              or (node.op_type in ("MatMul", "Gemm") and node.input[1] in names)]  # fmt: skip
    with _quiet(), _written(Path(target)) as out:
        quantize_static(onnx.load(source), out, Reader(), calibrate_method=methods[method], nodes_to_quantize=chosen,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True)  # fmt: skip
    return Path(target)


def check_onnx(source: str | Path, target: str | Path | None = None) -> Any:
    """The graph of an ONNX file that can be quantized.

    Raises:
        ValueError: see ``int8_onnx``; also if ``target`` is ``source``.
    """
    import onnx
    from onnx import numpy_helper

    if target is not None and Path(target).resolve() == Path(source).resolve():
        raise ValueError(f"target={str(target)!r} is the source itself; give another name, so that nothing is lost")
    if not Path(source).is_file():
        raise ValueError(f"source={str(source)!r} does not exist; write it with export_onnx")
    try:
        graph = onnx.load(source).graph
    except Exception as error:  # onnx raises protobuf's own errors, which have no common class to name here
        raise ValueError(f"source={str(source)!r} is no ONNX graph, or cut off ({error}); export it again") from error
    kinds = operations(graph)
    small = [kind for kind in ("DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear") if kind in kinds]
    if small:
        raise ValueError(f"source={str(source)!r} is quantized already ({small[0]} in it); start from the fp32 graph")
    for weight in graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and not np.isfinite(numpy_helper.to_array(weight)).all():
            raise ValueError(f"{weight.name} in {str(source)!r} holds nan or infinities, and no grid covers those")
    return graph


def operations(graph: Any) -> Counter[str]:
    """How often each kind of operation stands in an ONNX graph (or in the file of one)."""
    if isinstance(graph, (str, Path)):
        import onnx

        graph = onnx.load(graph).graph
    return Counter(node.op_type for node in graph.node)


class OnnxModel:
    """A graph in ONNX Runtime, called like a model: ``model(input_ids=..., attention_mask=...)`` gives the logits."""

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        import onnxruntime

        if not Path(path).is_file():
            raise ValueError(f"path={str(path)!r} does not exist; write it with export_onnx or int8_onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3  # errors
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no public base class
            raise ValueError(f"path={str(path)!r} is not a graph that ONNX Runtime opens ({error})") from error
        self.path = Path(path)

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    def __call__(self, input_ids: Int[Tensor, "batch seq"], attention_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        found = self.session.run(None, {"input_ids": input_ids.numpy(), "attention_mask": mask.long().numpy()})
        return torch.from_numpy(found[0])


@contextmanager
def _written(target: Path) -> Iterator[str]:
    """A name to write to; what stands there at the end becomes ``target`` at once, or nothing does."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        part = Path(scratch) / target.name
        yield str(part)
        os.replace(part, target)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that exporters give: about pre-processing, and about what will change in years to come."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            for kind in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        root.setLevel(level)
