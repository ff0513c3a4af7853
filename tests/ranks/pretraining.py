"""A small pretraining run, whose ranks may be killed or hang on the way; see test_distributed.py."""

import argparse
import os
import random
import time
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from sslcourse.data import token_files
from sslcourse.train import across_ranks, loop_across_ranks, sharded_checkpoint
from sslcourse.train.recipe import Recipe


def corpus() -> tuple[list[str], list[str]]:
    draw = random.Random(0)
    words = [f"w{number}" for number in range(200)]
    texts = [" ".join(draw.choice(words) for _ in range(60)) for _ in range(60)]
    return texts[:50], texts[50:]


SIZES = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 1, "sequence_length": 32}
RECIPE = Recipe(**SIZES, batch_size=8, precision="fp32")


def die(*_: object, **__: object) -> None:
    os._exit(9)


def dies_before_the_new_checkpoint_gets_its_name(path: Path, target: Path) -> Path:
    if path.name == "checkpoint.new" and path.with_name("checkpoint.old").exists():
        die()
    return RENAME(path, target)


def dies_in_half_a_file(path: Path, texts: list[str], tokenizer: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.new").write_bytes(b"half")
    die()


def breaks_at(number: int) -> None:
    """The loss of a rank's so-many-th batch is nan, and so are its gradients."""
    backward, seen = across_ranks.backward, [0]

    def patched(wrapped: torch.nn.Module, *given: object, **named: object) -> torch.Tensor:
        loss = backward(wrapped, *given, **named)
        seen[0] += 1
        if seen[0] != number:
            return loss
        for weight in wrapped.parameters():
            weight.grad.fill_(float("nan"))
        return loss * float("nan")

    across_ranks.backward = patched


RENAME = Path.rename
PLANT = {  # a death at a moment that a random one seldom hits
    "tokens": lambda: setattr(token_files, "write_tape", dies_in_half_a_file),
    "swap": lambda: setattr(Path, "rename", dies_before_the_new_checkpoint_gets_its_name),
    "tidy": lambda: setattr(sharded_checkpoint.ShardedStore, "discard", die),
    "done": lambda: None,  # see below
}


@record
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--strategy", default="ddp")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--kill", type=int, nargs="*", default=[], help="where the last rank dies, one step a start")
    parser.add_argument("--stop", type=int, help="step at which all ranks end, as if their time were up")
    parser.add_argument("--hang", type=int, help="step at which the last rank hangs")
    parser.add_argument("--poison", type=int, help="batch, counted from 0, the settling one, whose loss is nan")
    parser.add_argument("--timeout", type=float, default=60)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--plant", choices=PLANT, nargs="*", default=[], help="where a rank dies, one place a start")
    given = parser.parse_args()
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if given.poison:
        breaks_at(given.poison)
    planted = given.plant[attempt : attempt + 1]
    for place in planted:
        PLANT[place]()

    with across_ranks.start(timeout=given.timeout, device="cpu") as ranks:

        def on_step(step: int) -> None:
            last = ranks.rank == ranks.world - 1
            if step == given.stop or (last and given.kill[attempt : attempt + 1] == [step]):
                os._exit(9 if step != given.stop else 0)
            if last and step == given.hang:
                time.sleep(3600)

        run = loop_across_ranks.pretrain(
            *corpus(), RECIPE, ranks=ranks, out=given.out, steps=given.steps, strategy=given.strategy, evaluations=4,
            resume=given.resume, on_step=on_step,
        )  # fmt: skip
        if planted == ["done"] and not ranks.first:
            die()
        if ranks.first:
            print(f"{run.stopped} {attempt} {[round(row['loss'], 4) for row in run.history]}")


if __name__ == "__main__":
    main()
