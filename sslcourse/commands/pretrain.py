"""``python -m sslcourse pretrain --text ... --out DIR``: pretrain on anybody's own text.

Under ``torchrun`` the same command trains in all of its processes at once (``train.loop_across_ranks``).

Bad input is found before anything is written and gets one line and exit status 2. What a run writes is in
``DIR.partial`` until it is complete, so ``DIR`` is either absent or a whole model.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from sslcourse.data.text_files import WHAT, Documents, UsageError, split


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m sslcourse pretrain``."""
    parser.add_argument(
        "--text",
        nargs="+",
        required=True,
        metavar="FILE",
        help=f"{WHAT}; with SSLCOURSE_ONLINE=1 also the name of a data set on the Hugging Face hub",
    )
    parser.add_argument("--field", help="which field of .jsonl or column of .parquet holds the text (default: text)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the model; must not exist or be empty")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=_positive(float), metavar="M", help="training time (default: 5)")
    budget.add_argument("--steps", type=_positive(int), metavar="N", help="number of updates; repeatable to the bit")
    parser.add_argument("--vocab-size", type=_positive(int), default=4096)
    parser.add_argument("--hidden-size", type=_positive(int), default=128)
    parser.add_argument("--layers", type=_positive(int), default=3)
    parser.add_argument("--sequence-length", type=_positive(int), default=128, help="tokens a row (default: 128)")
    parser.add_argument("--batch-size", type=_positive(int), default=32, help="rows a step (default: 32)")
    parser.add_argument("--learning-rate", type=_positive(float),
                        help="default: chosen for the hidden size and the optimiser")  # fmt: skip
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw",
                        help="muon learns faster, and is for one process alone (default: adamw)")  # fmt: skip
    parser.add_argument("--start", choices=("width", "table", "heads", "neighbours"), default="width",
                        help="neighbours: table from counts of neighbours, heads that look at them; saves training, "
                        "and is for one process alone (default: width)")  # fmt: skip
    parser.add_argument("--mask-rate", type=_rate, default=0.3, help="in training (default: 0.3)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                        help="of the matrix products (default: bf16 where the machine computes in it)")  # fmt: skip
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp",
                        help="under torchrun: all weights on every rank, or sharded (default: ddp)")  # fmt: skip
    parser.add_argument("--accumulate", type=_positive(int), default=1, metavar="N",
                        help="under torchrun: micro-batches a step, exchanged once (default: 1)")  # fmt: skip
    parser.add_argument("--seed", type=_seed, default=0)
    parser.add_argument("--evaluations", type=_positive(int), default=10, help="held-out losses shown (default: 10)")
    parser.add_argument("--patience", type=_positive(int), help="stop after this many evaluations without a gain")
    parser.add_argument("--tensorboard", metavar="DIR", help="write a TensorBoard log there")
    parser.add_argument("--resume", action="store_true", help="go on with the interrupted run of the same command")


def main(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status."""
    ranked = "RANK" in os.environ
    name = f"pretrain, rank {os.environ['RANK']}" if ranked else "pretrain"
    if not ranked:  # `kill` stops it as Ctrl-C does; a rank ends at once, since torchrun waits for it to start anew
        signal.signal(signal.SIGTERM, _stop)
    try:
        _run(arguments)
    except (UsageError, ValueError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if type(error).__name__ == "Diverged":  # by name, since torch may not have been imported
            reason = str(error)
        elif isinstance(error, MemoryError) or "allocate" in str(error):
            reason = "not enough memory for a model of this size; lower --hidden-size, --layers or --vocab-size"
        else:
            raise  # a mistake of ours: it shall be seen
        print(f"{name}: {reason}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{name}: {error.strerror or error} ({error.filename or arguments.out})", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        folder = _partial(arguments.out)
        at = str(stop).partition(",")[0] or "stopped"  # "stopped at step 12" if it had the time to save
        if any((folder / place).exists() for place in ("checkpoint", "checkpoint.old")):
            print(f"{name}: {at}; saved in {folder}; the same command with --resume goes on", file=sys.stderr)
        elif (Path(arguments.out) / "run.json").is_file():
            print(f"{name}: stopped after its end; {arguments.out} is complete", file=sys.stderr)
        else:
            left = f"{folder} holds tokens only" if folder.exists() else "nothing is left behind"
            print(f"{name}: stopped; there was no checkpoint yet, and {left}", file=sys.stderr)
        return 130
    return 0


def _run(arguments: argparse.Namespace) -> None:
    ranked = "RANK" in os.environ
    speaks = os.environ.get("RANK", "0") == "0"
    complete = (ranked or arguments.resume) and (Path(arguments.out) / "run.json").is_file()  # by this very run?
    if speaks and not complete:
        check_out(arguments.out)
    if not ranked and (arguments.strategy != "ddp" or arguments.accumulate > 1):
        raise UsageError("--strategy and --accumulate are for several processes; start the command by torchrun "
                         "--nproc-per-node=N -m sslcourse pretrain ...")  # fmt: skip
    if ranked and arguments.tensorboard:
        raise UsageError("--tensorboard is not written by several processes; leave it out")
    texts = Documents.of(arguments.text, arguments.field)
    train, held_out = split(texts, arguments.seed, least=8 * arguments.sequence_length)

    from transformers.utils import logging  # slow to import, as torch is; a wrong path should not wait for it

    from sslcourse.train.loop import pretrain
    from sslcourse.train.recipe import Recipe

    logging.disable_progress_bar()  # there is one bar, ours

    heads = max(1, arguments.hidden_size // 64)
    if arguments.hidden_size % (2 * heads):
        raise UsageError(
            f"--hidden-size {arguments.hidden_size} does not split into {heads} heads of an even size; "
            f"try {max(64, round(arguments.hidden_size / 64) * 64)}"
        )
    recipe = Recipe(
        vocab_size=arguments.vocab_size,
        hidden_size=arguments.hidden_size,
        intermediate_size=2 * arguments.hidden_size,
        layers=arguments.layers,
        heads=heads,
        sequence_length=arguments.sequence_length,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate or default_learning_rate(arguments.hidden_size, arguments.optimizer),
        optimizer=arguments.optimizer,
        start=arguments.start,
        mask_rate=arguments.mask_rate,
        precision=arguments.precision,
        seed=arguments.seed,
    )
    if speaks:
        print(f"{len(texts):,} documents, {texts.characters:,} characters; {len(held_out):,} documents held out")
        if arguments.resume and not complete and not _partial(arguments.out).exists():
            print(f"pretrain: --resume: {_partial(arguments.out)} is not there; the run begins", file=sys.stderr)
    options = {
        "steps": arguments.steps,
        "minutes": None if arguments.steps else (arguments.minutes or 5.0),
        "out": arguments.out,
        "resume": arguments.resume,
        "evaluations": min(arguments.evaluations, arguments.steps or arguments.evaluations),
        "patience": arguments.patience,
        "on_evaluation": _show,
        "on_restore": _warn,
    }
    if ranked:
        from sslcourse.train import across_ranks, loop_across_ranks

        with across_ranks.start() as ranks:
            many = {"ranks": ranks, "strategy": arguments.strategy, "accumulate": arguments.accumulate}
            run = loop_across_ranks.pretrain(train, held_out, recipe, **options, **many)
        if run is None:  # the first rank has said it all
            return
    else:
        run = pretrain(train, held_out, recipe, tensorboard=arguments.tensorboard, **options)
    print(
        f"Best held-out loss {run.loss:.3f} nats a masked token, 15 % masks. Written to {arguments.out}; open it with\n"
        f"  transformers.AutoModelForMaskedLM.from_pretrained({arguments.out!r})"
    )


def _stop(*_: object) -> None:
    raise KeyboardInterrupt  # not by a signal: in a script's background job SIGINT is ignored


def _show(row: dict[str, float]) -> None:
    from tqdm import tqdm

    tqdm.write(
        f"step {row['step']:>6,}  {row['seconds']:>7.1f} s  train {row['train_loss']:.3f}  "
        f"held-out {row['loss']:.3f} nats  accuracy {row['accuracy']:.1%}"
    )


def _warn(event: dict[str, Any]) -> None:
    from tqdm import tqdm

    from sslcourse.train.loop import restored

    tqdm.write(f"pretrain: {restored(event)}", file=sys.stderr)


def _partial(out: str) -> Path:
    return Path(os.path.realpath(out) + ".partial")


def default_learning_rate(hidden_size: int, optimizer: str = "adamw") -> float:
    """The rate that suited width 128, scaled as Adam's should be: with one over the width (Yang et al. 2022, muP).

    Muon's updates are as large as Adam's (``train.optimizers``) and bear a rate that is somewhat higher: the best of
    the sweep in ``data/measured/pretraining_sweep.json``.
    """
    at_128 = {"adamw": 6e-3, "muon": 8.4e-3}[optimizer]
    return at_128 * min(1.0, 128 / hidden_size)


def check_out(out: str) -> None:
    """The output folder must be new or empty, and its parent writable."""
    path = Path(out)
    try:
        if path.exists() and not path.is_dir():
            raise UsageError(f"--out {out}: is a file; give a folder")
        if path.exists() and any(path.iterdir()):
            raise UsageError(f"--out {out}: is not empty; choose another folder, nothing is overwritten")
    except OSError as error:
        raise UsageError(f"--out {out[:80]}: cannot be looked at ({error.strerror})") from error
    parent = Path(os.path.realpath(path)).parent  # the run's own folder is made beside ``out``, then takes its name
    while not parent.exists():
        parent = parent.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".sslcourse-", dir=parent):
            pass  # the only sure way to know that a folder can be made here is to make one
        str(path).encode()
        with suppress(FileNotFoundError):
            os.lstat(path.absolute().with_name(f"{path.absolute().name}.partial"))  # a name that is too long says so
    except UnicodeEncodeError as error:
        raise UsageError("--out: the name is not valid text; choose another") from error
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({parent}: {error.strerror})") from error


def _positive(kind: type) -> type:
    def parse(text: str) -> float | int:
        value = kind(text)
        if not 0 < value < (float("inf") if kind is float else 2**31):
            raise ValueError
        return value

    parse.__name__ = f"positive {'number' if kind is float else 'whole number'}"  # argparse names it in its message
    return parse  # type: ignore[return-value]


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**31:
        raise ValueError
    return value


_seed.__name__ = "whole number between 0 and 2147483647"


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError
    return value


_rate.__name__ = "mask rate between 0 and 1"
