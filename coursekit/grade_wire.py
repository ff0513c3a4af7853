"""Calls between two processes that do not trust each other: JSON and safetensors over pipes, never pickle.

Both sides hold a ``Peer``. Whoever calls sends numbers, texts, lists, tensors, and functions of its own, which the
other side may call back; what comes back is rebuilt here, from data. So nothing that arrives can run code, and nothing
that an answer changes in its own process (torch, a checker, a method of a tensor) is ever used by this one.

Gradients cross as well: where tensors with ``requires_grad`` go over and results with a graph come back, a backward
pass here asks the other side for its vector-Jacobian product. Second derivatives do not cross.

What this module does not do: limit time or memory of the other side. ``grade`` does.
"""

from __future__ import annotations

import itertools
import json
import math
import queue
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch

TEXT, BYTES = 8 << 20, 64 << 20  # the largest message: of JSON, of tensors
AT_ONCE = 64  # calls that one side may have open on the other
HEAD = struct.Struct("<II")


class Gone(RuntimeError):
    """The other side has ended, or sent what is no message."""


class Failed(RuntimeError):
    """The other side raised; the message is its own words."""


class Opaque:
    """Stands for a value that cannot be sent; its class bears the name of that value's type."""


class Peer:
    """One end. ``functions`` are what the other side may call by name; ``expected`` is an exception that crosses as
    itself, all others cross as ``Failed``."""

    def __init__(
        self, incoming: BinaryIO, outgoing: BinaryIO, functions: Mapping[str, Callable], expected: type[Exception]
    ) -> None:
        self.incoming, self.outgoing, self.expected = incoming, outgoing, expected
        self.offered: dict[Any, Callable] = {**functions, "vjp": self._vjp}
        self.graphs: dict[int, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        self.gone = ""  # why, once it is
        self.opaque = False  # whether something came that could not be sent
        self._waiting: dict[int, queue.SimpleQueue] = {}
        self._numbers, self._writing = itertools.count(1), threading.Lock()
        self._slots = threading.Semaphore(AT_ONCE)

    def serve(self) -> None:
        """Read until the other side ends; each call is answered on a thread of its own, since it may call back."""
        try:
            while True:
                message, tensors = self._receive()
                if "do" in message:
                    if not self._slots.acquire(blocking=False):
                        raise ValueError(f"more than {AT_ONCE} calls at once")
                    threading.Thread(target=self._answer, args=(message, tensors), daemon=True).start()
                elif waiting := self._waiting.pop(message["re"], None):
                    waiting.put((message, tensors))
        except Exception as error:  # whatever it is: bytes that are no message end the conversation, not this process
            self.gone = f"{type(error).__name__}: {error}"
            for waiting in list(self._waiting.values()):
                waiting.put(None)
        finally:
            self.incoming.close()

    def start(self) -> None:
        """``serve`` on a thread."""
        threading.Thread(target=self.serve, daemon=True).start()

    def forget(self) -> None:
        """Drop what was lent to the other side: functions and graphs."""
        self.offered = {name: function for name, function in self.offered.items() if isinstance(name, str)}
        self.graphs.clear()
        self.opaque = False

    def call(self, name: Any, *args: Any, **kwargs: Any) -> Any:
        """What the other side's function returns.

        Raises:
            Gone: if it ended.
            Failed: if its function raised; or the ``expected`` exception, if it raised that.
        """
        pack = _Pack(self)
        number, answer = next(self._numbers), queue.SimpleQueue()
        self._waiting[number] = answer
        sent = {"id": number, "do": name, "args": pack.value([list(args), kwargs])}
        self._send(sent | {"grad": [pack.place[id(tensor)] for tensor in pack.live]}, pack.tensors)
        came = None if self.gone else answer.get()
        if came is None:
            raise Gone(self.gone)
        message, tensors = came
        if "error" in message:
            raise (self.expected if message.get("expected") else Failed)(str(message["error"]))
        for place, left in message.get("left", {}).items():
            pack.live[int(place)].grad = tensors[left]
        if which := message.get("live", []):
            graph = message["graph"]
            values = [tensors[i].requires_grad_() for i in which]
            if pack.live:
                values = _Through.apply(lambda grads: self.call("vjp", graph, grads), values, *pack.live)
            tensors = tensors | dict(zip(which, values, strict=True))
        return self._unpack(message["value"], tensors, pack.sent)

    # -- the other direction ---------------------------------------------------------------------------------------

    def _answer(self, message: dict[str, Any], tensors: dict[int, torch.Tensor]) -> None:
        reply: dict[str, Any] = {"re": message["id"]}
        pack = _Pack(self)
        try:
            given = [tensors[number] for number in sorted(tensors)]  # safetensors keeps no order
            leaves = [tensors[i].requires_grad_() for i in message.get("grad", [])]
            args, kwargs = self._unpack(message["args"], tensors, [])
            pack.given = given
            reply["value"] = pack.value(self.offered[message["do"]](*args, **kwargs))
            if pack.live:
                number = reply["graph"] = next(self._numbers)
                self.graphs[number] = (pack.live, leaves)
                reply["live"] = [pack.place[id(tensor)] for tensor in pack.live]
            reply["left"] = {str(k): pack.tensor(leaf.grad) for k, leaf in enumerate(leaves) if leaf.grad is not None}
            self._send(reply, pack.tensors)
        except BaseException as error:  # also SystemExit: the other side waits for an answer in any case
            expected = isinstance(error, self.expected)
            text = str(error) if expected else f"{type(error).__name__}: {error}"
            self._send({"re": message["id"], "error": text[:2000], "expected": expected}, {})
        finally:
            self._slots.release()

    def _vjp(self, number: int, grads: list[torch.Tensor]) -> list[torch.Tensor | None]:
        outputs, leaves = self.graphs[number]
        return list(torch.autograd.grad(outputs, leaves, grads, allow_unused=True, retain_graph=True))

    # -- bytes -----------------------------------------------------------------------------------------------------

    def _send(self, message: dict[str, Any], tensors: Mapping[int, torch.Tensor]) -> None:
        raw = json.dumps(message).encode()
        blob = safetensors.torch.save({str(i): tensor for i, tensor in tensors.items()}) if tensors else b""
        if len(raw) > TEXT or len(blob) > BYTES:
            raise ValueError(f"a value of {len(raw) + len(blob):,} bytes is too large to be sent")
        try:
            with self._writing:
                self.outgoing.write(HEAD.pack(len(raw), len(blob)) + raw + blob)
                self.outgoing.flush()
        except (OSError, ValueError) as error:
            self.gone = self.gone or str(error)

    def _receive(self) -> tuple[dict[str, Any], dict[int, torch.Tensor]]:
        text, size = HEAD.unpack(self._exactly(HEAD.size))
        if text > TEXT or size > BYTES:
            raise ValueError(f"a message of {text + size:,} bytes")
        message, blob = json.loads(self._exactly(text)), self._exactly(size)
        tensors = safetensors.torch.load(blob) if blob else {}
        return message, {int(i): tensor.clone() for i, tensor in tensors.items()}

    def _exactly(self, size: int) -> bytes:
        data = self.incoming.read(size)
        if len(data) < size:
            raise EOFError("the pipe was closed")
        return data

    # -- values ----------------------------------------------------------------------------------------------------

    def _unpack(self, tree: Any, tensors: Mapping[int, torch.Tensor], sent: list[torch.Tensor]) -> Any:
        def value(tree: Any) -> Any:
            if not isinstance(tree, list):
                return tree
            kind, what = tree[0], tree[1]
            if kind in MANY:
                return MANY[kind]([value(one) for one in what])
            if kind == "dict":
                return {value(key): value(one) for key, one in what}
            if kind == "tensor":
                tensor, own = tensors[what], tree[2]
                if own is None or not _equal(tensor, sent[own]):
                    return tensor
                return sent[own].detach()  # the memory of the argument itself came back: a grader may ask for that
            if kind == "array":
                return tensors[what].numpy()[()]
            if kind == "function":
                return self._remote(what)
            if kind == "complex":
                return complex(*what)
            if kind == "...":
                return ...
            self.opaque = True
            return type(str(what)[:80], (Opaque,), {})()

        return value(tree)

    def _remote(self, number: int) -> Callable:
        def remote(*args: Any, **kwargs: Any) -> Any:
            watching = sys.getprofile()  # what an answer calls is watched; how it gets there is none of its doing
            sys.setprofile(None)
            try:
                return self.call(number, *args, **kwargs)
            finally:
                sys.setprofile(watching)

        return remote


MANY: dict[str, Callable[[list], Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


class _Pack:
    """A value as JSON, with its tensors beside it."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.tensors: dict[int, torch.Tensor] = {}
        self.place: dict[int, int] = {}  # id of a tensor -> its number
        self.sent: list[torch.Tensor] = []
        self.live: list[torch.Tensor] = []  # those that gradients flow to, or come from
        self.given: list[torch.Tensor] = []  # tensors that came with the call that is answered

    def value(self, it: Any) -> Any:
        if it is None or isinstance(it, (bool, str)):
            return it if it is None or isinstance(it, bool) else str(it)
        if isinstance(it, np.generic):
            return self._array(np.asarray(it))
        if isinstance(it, float) or (isinstance(it, int) and it.bit_length() < 10_000):
            return float(it) if isinstance(it, float) else int(it)
        if isinstance(it, complex):
            return ["complex", [it.real, it.imag]]
        if isinstance(it, torch.Tensor):
            return self._of_tensor(it)
        if isinstance(it, np.ndarray):
            return self._array(it)
        if it is ...:
            return ["...", None]
        for kind, made in MANY.items():
            if isinstance(it, made):
                return [kind, [self.value(one) for one in it]]
        if isinstance(it, Mapping):
            return ["dict", [[self.value(key), self.value(one)] for key, one in it.items()]]
        if callable(it) and not isinstance(it, type):
            number = next(self.peer._numbers)
            self.peer.offered[number] = it
            return ["function", number]
        return ["opaque", type(it).__name__]

    def tensor(self, it: torch.Tensor) -> int:
        number = self.place[id(it)] = len(self.tensors)
        self.tensors[number] = it.detach().clone(memory_format=torch.contiguous_format)
        self.sent.append(it)
        return number

    def _of_tensor(self, it: torch.Tensor) -> list:
        if it.layout != torch.strided or it.is_quantized or it.device.type != "cpu" or it.is_complex():
            return ["opaque", type(it).__name__]
        if it.requires_grad:
            self.live.append(it)
            return ["tensor", self.tensor(it), None]
        own = [j for j, one in enumerate(self.given) if one.numel() and one.data_ptr() == it.data_ptr()]
        return ["tensor", self.tensor(it), own[0] if own else None]

    def _array(self, it: np.ndarray) -> list:
        try:
            return ["array", self.tensor(torch.from_numpy(it.copy()))]
        except TypeError:  # of texts, of objects
            return ["opaque", type(it).__name__]


class _Through(torch.autograd.Function):
    """Values that came over, joined to the graph of what was sent for them."""

    @staticmethod
    def forward(ctx: Any, back: Callable, values: list[torch.Tensor], *inputs: torch.Tensor) -> tuple:
        ctx.back, ctx.inputs = back, len(inputs)
        return tuple(value.detach() for value in values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple:
        came = ctx.back(list(grads))
        if not isinstance(came, list) or len(came) != ctx.inputs:
            raise Failed("no gradients came back")
        return None, None, *came


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and math.prod(one.shape) > 0
        and torch.equal(one.nan_to_num(), other.nan_to_num())
    )
