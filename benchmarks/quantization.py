"""Every route to int8 beside fp32 on a task: score, size, latency. Its lesson shows the stored figures.

    python -m benchmarks.quantization --encoder minilm      # with the extra `minilm` installed: 22 M real weights
    python -m benchmarks.quantization --encoder course      # this course's own, 1 M
    python -m benchmarks.quantization --device cuda         # bf16, int8 and fp8 on a GPU, random weights

The first two fine-tune on the person names of lesson fine_tuning with each seed (800 sentences, the rate that lesson
fine_tuning found), quantize every fine-tuned model by every route, and score it on the test countries: token F1 beside
fp32's own, seed by seed. Latency is interleaved with fp32's, some routes more than the lesson has (``torch.compile``
takes half a minute to start). Writes ``data/measured/quantization_<encoder>.json``, with machine, versions, date and
command. Let nothing else run.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import MEASURED, store
from benchmarks.transfer import TAGS, opened
from sslcourse.compress import int8_copies, serving_routes
from sslcourse.data import labelled
from sslcourse.measure import intervals, timing
from sslcourse.tasks import encoding, fitting, scores, task_heads

COUNT, STEPS = 800, 100
SHAPES = ((1, 128), (8, 128))
WITH_TABLE = "torchao dynamic, table too"


def tagger(body: Any, tokenizer: Any, names: dict[str, list], rate: float, seed: int) -> task_heads.TokenClassifier:
    """Fine-tuned on ``COUNT`` sentences, in fp32."""
    torch.manual_seed(seed)
    model = task_heads.TokenClassifier(copy.deepcopy(body), len(TAGS))
    sample = random.Random(seed).sample(names["train"], COUNT)
    settings = fitting.Settings(STEPS, learning_rate=rate, seed=seed, precision="fp32")
    fitting.fit(model, encoded(tokenizer, sample), settings)
    return model.eval()


def encoded(tokenizer: Any, rows: Sequence[labelled.Tagged]) -> list[encoding.Example]:
    return encoding.encode_tags(tokenizer, [row.words for row in rows], [row.tags for row in rows], TAGS)


def token_f1(model: torch.nn.Module, examples: list[encoding.Example], rows: Sequence[labelled.Tagged]) -> float:
    found = fitting.predict(model, examples, precision="fp32")
    return scores.token_score([row.tags for row in rows], [[TAGS[tag] for tag in row] for row in found]).f1


def deprecated(model: torch.nn.Module) -> serving_routes.Route:
    """torch.ao's dynamic int8, which torchao replaces; it says so itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model).eval(), {torch.nn.Linear}, torch.qint8)
    return serving_routes.Route(made)


def timed(calls: dict[str, Callable[..., Any]], batch: dict[str, torch.Tensor], rounds: int) -> dict[str, Any]:
    """p50, p95, rows a second and the ratio to fp32, of every route on one batch."""
    times = timing.side_by_side({name: partial(call, **batch) for name, call in calls.items()}, rounds, warmup=3)
    rows = len(batch["input_ids"])
    return {
        name: {
            "p50_ms": 1e3 * timing.summary(seconds).p50,
            "p95_ms": 1e3 * timing.summary(seconds).p95,
            "rows_per_second": rows / timing.summary(seconds).p50,
            "times_as_fast": list(timing.ratio(times["fp32"], seconds)),
        }
        for name, seconds in times.items()
    }


def on_cpu(encoder: str, seeds: int, rounds: int) -> dict[str, Any]:
    body, tokenizer = opened(encoder)
    names = labelled.person_names()
    test, rate = encoded(tokenizer, names["test"]), _rate(encoder)
    texts = [list(row.words) for row in random.Random(0).sample(names["train"], 64)]
    calibration = [
        dict(tokenizer(texts[at : at + 8], is_split_into_words=True, padding=True, return_tensors="pt"))
        for at in range(0, 64, 8)
    ]
    calibration = [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in calibration]
    f1: dict[str, list[float]] = {}
    for seed in range(seeds):
        model = tagger(body, tokenizer, names, rate, seed)
        with tempfile.TemporaryDirectory() as folder:
            found = serving_routes.routes(model, calibration[0], folder, calibration)
            found[WITH_TABLE] = serving_routes.Route(int8_copies.torchao_copy(model, tables=True))
            found["torch.ao (deprecated)"] = deprecated(model)
            for name, route in found.items():
                f1.setdefault(name, []).append(token_f1(route.model, test, names["test"]))
            print(seed, {name: round(values[-1], 4) for name, values in f1.items()}, flush=True)
            if seed == seeds - 1:
                sizes = {name: {"disk": route.disk, "memory": route.memory} for name, route in found.items()
                         if "torch.ao" not in name}  # fmt: skip
                speed = _speed(model, found, len(tokenizer), rounds)
    return {
        "encoder": encoder,
        "weights": sum(weight.numel() for weight in body.parameters()),
        "token_f1": f1,
        "minus_fp32": minus_fp32(f1),
        "seeds": seeds,
        "bytes": sizes,
        "speed": speed,
        "load": timing.busy(),
    }  # fmt: skip


def minus_fp32(f1: dict[str, list[float]]) -> dict[str, list[float]]:
    """Mean and interval of each route's difference to fp32, seed by seed."""
    return {name: list(intervals.interval(a - b for a, b in zip(values, f1["fp32"], strict=True)))
            for name, values in f1.items()}  # fmt: skip


def _speed(model: torch.nn.Module, found: dict[str, serving_routes.Route], rows: int, rounds: int) -> dict[str, Any]:
    body, compiled = model.body, {}
    calls: dict[str, Any] = dict(found)
    calls["bf16 autocast"] = partial(_autocast, model)
    for name, one in (("fp32", body), ("torchao dynamic", int8_copies.torchao_copy(model).body),
                      (WITH_TABLE, found[WITH_TABLE].model.body)):  # fmt: skip
        name += ", compiled"
        compiled[name] = torch.compile(one, dynamic=False)
        calls[name] = torch.inference_mode()(compiled[name])
    speed = {}
    for batch, seq in SHAPES:
        ids = torch.randint(5, rows, (batch, seq), generator=torch.Generator().manual_seed(0))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        speed[f"{batch} x {seq}"] = timed(calls, inputs, rounds)
        for name, row in speed[f"{batch} x {seq}"].items():
            print(f"{batch} x {seq} {name:28s} {row['p50_ms']:8.1f} ms  {row['times_as_fast'][1]:.2f}", flush=True)
    return speed


@torch.inference_mode()
def _autocast(model: torch.nn.Module, **batch: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(**batch).logits


def _rate(encoder: str) -> float:
    if encoder == "minilm":
        return json.loads((MEASURED / "minilm_label_efficiency.json").read_text(encoding="utf-8"))["learning_rate"]
    return json.loads((MEASURED / "fine_tuning_choices.json").read_text(encoding="utf-8"))["best"]["names, pretrained"]


def on_gpu(rounds: int) -> dict[str, Any]:
    """bf16, int8 and fp8 on a GPU: BERT-base's shape, random weights, so outputs are compared, not scores."""
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        quantize_,
    )
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
    plain = BertModel(config, add_pooling_layer=False).cuda().bfloat16().eval()
    models = {"bf16": plain}
    for name, kind in (("int8", Int8DynamicActivationInt8WeightConfig),
                       ("fp8", Float8DynamicActivationFloat8WeightConfig)):  # fmt: skip
        models[name] = copy.deepcopy(plain)
        quantize_(models[name], kind())
    sizes = {name: int8_copies.memory_bytes(model) for name, model in models.items()}
    calls = {name: torch.compile(model) for name, model in models.items()}
    figures: dict[str, Any] = {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "bytes": sizes}
    for batch, seq in ((1, 128), (8, 128), (64, 128), (64, 512)):
        ids = torch.randint(1000, 30000, (batch, seq), device="cuda")
        with torch.inference_mode():
            exact = plain(input_ids=ids).last_hidden_state.float()
            noise = {
                name: int8_copies.sqnr(exact, call(input_ids=ids).last_hidden_state.float())
                for name, call in calls.items()
            }
            waiting = {name: partial(_synchronised, call, ids) for name, call in calls.items()}
            times = timing.side_by_side(waiting, rounds)
        figures[f"{batch} x {seq}"] = {
            name: {"p50_ms": 1e3 * timing.summary(seconds).p50, "sqnr_db": noise[name],
                   "times_as_fast": list(timing.ratio(times["bf16"], seconds))}
            for name, seconds in times.items()
        }  # fmt: skip
    return figures


def _synchronised(call: Callable[..., Any], ids: torch.Tensor) -> None:
    call(input_ids=ids)
    torch.cuda.synchronize()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization", description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", choices=("course", "minilm"), default="course")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda needs a GPU that torch can see", file=sys.stderr)
        return 2
    command = "python -m benchmarks.quantization " + " ".join(sys.argv[1:] if arguments is None else arguments)
    try:
        figures = on_gpu(given.rounds) if given.device == "cuda" else on_cpu(given.encoder, given.seeds, given.rounds)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    store("quantization_gpu" if given.device == "cuda" else f"quantization_{given.encoder}", command.strip(), figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
