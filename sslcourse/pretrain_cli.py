"""``python -m sslcourse pretrain --text ... --out DIR``: pretrain on anybody's own text.

Under ``torchrun`` the same command trains in all of its processes at once (``cluster``).

Bad input is found before anything is written and gets one line and exit status 2. What a run writes is in
``DIR.partial`` until it is complete, so ``DIR`` is either absent or a whole model.
"""

from __future__ import annotations

import argparse
import codecs
import io
import json
import os
import random
import signal
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

SUFFIXES = (".txt", ".jsonl", ".parquet")
HELD_OUT = 0.05  # share of the documents that measures the loss,
MOST_HELD_OUT = 2_000_000  # but no more than so many characters: enough for a loss, and memory holds them
LONGEST = 2**16  # characters of a paragraph, which ends at the next line: some texts have no blank line at all
WHAT = ".txt, .jsonl or .parquet file, or a folder of them"


MARKS = {  # how a file of another encoding than UTF-8 begins, the longer mark first
    b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16",
}  # fmt: skip


class UsageError(Exception):
    """Something the user can put right; the message says what and how."""


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

    from sslcourse.pretraining import Recipe, pretrain

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
        from sslcourse import cluster, distributed

        with distributed.start() as ranks:
            many = {"ranks": ranks, "strategy": arguments.strategy, "accumulate": arguments.accumulate}
            run = cluster.pretrain(train, held_out, recipe, **options, **many)
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

    from sslcourse.pretraining import restored

    tqdm.write(f"pretrain: {restored(event)}", file=sys.stderr)


def _partial(out: str) -> Path:
    return Path(os.path.realpath(out) + ".partial")


def default_learning_rate(hidden_size: int, optimizer: str = "adamw") -> float:
    """The rate that suited width 128, scaled as Adam's should be: with one over the width (Yang et al. 2022, muP).

    Muon's updates are as large as Adam's (``sslcourse.optimizer``) and bear a rate that is somewhat higher: the best of
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


def split(texts: Documents | list[str], seed: int, least: int = 0) -> tuple[Documents | list[str], list[str]]:
    """Documents drawn into (train, held out), the held-out ones of at least ``least`` characters together.

    A few long documents are first cut into paragraphs or pieces, so that a part can be held out at all.
    """
    lengths = array("q", map(len, texts))
    if len(lengths) < 20:
        texts = [piece for text in texts for piece in _pieces(text)]
        lengths = array("q", map(len, texts))
    draw, held_out, characters = random.Random(seed), set(), 0
    while len(held_out) < len(lengths) and (
        characters < least or (len(held_out) < HELD_OUT * len(lengths) and characters < MOST_HELD_OUT)
    ):
        number = draw.randrange(len(lengths))
        if number not in held_out:
            held_out.add(number)
            characters += lengths[number]
    if 2 * len(held_out) > len(lengths):
        raise UsageError(
            f"the text is too short ({sum(lengths):,} characters): there is too little for one batch "
            "and a part held out; give more text, or a shorter --sequence-length"
        )
    apart = [text for number, text in enumerate(texts) if number in held_out]
    if isinstance(texts, Documents):
        return texts.without(held_out), apart
    return [text for number, text in enumerate(texts) if number not in held_out], apart


def _pieces(text: str, longest: int = 1000) -> list[str]:
    """Paragraphs; a longer one is cut into pieces of about ``longest`` characters, between words where it has any."""
    pieces: list[str] = []
    for paragraph in text.split("\n\n"):
        piece = ""
        for word in paragraph.split():
            while len(word) > longest:  # a script without spaces, or a blob: cut it by characters
                pieces += [piece] * bool(piece) + [word[:longest]]
                piece, word = "", word[longest:]
            if len(piece) + len(word) >= longest:
                pieces.append(piece)
                piece = ""
            piece = f"{piece} {word}".strip()
        pieces += [piece] * bool(piece)
    return [piece for piece in pieces if piece]


# --- reading ---------------------------------------------------------------------------------------------------------


class Documents:
    """The non-empty documents of files, read anew whenever somebody iterates, so that memory holds one at a time.

    ``len`` and ``characters`` are known after the first time.
    """

    def __init__(self, sources: list[Callable[[], Iterator[str]]], left_out: frozenset[int] = frozenset()) -> None:
        self.sources, self.left_out = sources, left_out
        self.count, self.characters = 0, 0

    @classmethod
    def of(cls, paths: Iterable[str], field: str | None = None) -> Documents:
        """Of files, folders or data sets on the hub; a .txt is one document a blank-line-separated paragraph.

        Raises:
            UsageError: naming the file and what is wrong with it; for what is in the files, when it is read.
        """
        return cls([source for path in paths for source in _sources(path, field)])

    def __iter__(self) -> Iterator[str]:
        count = characters = 0
        for source in self.sources:
            for text in source():
                if count not in self.left_out:
                    yield text
                count, characters = count + 1, characters + len(text)
        self.count, self.characters = count - len(self.left_out), characters

    def __len__(self) -> int:
        return self.count

    def without(self, numbers: Iterable[int]) -> Documents:
        """The others."""
        return Documents(self.sources, self.left_out | frozenset(numbers))


def read_texts(path: str, field: str | None = None) -> list[str]:
    """All documents of a file or a folder, in memory.

    Raises:
        UsageError: naming the file and what is wrong with it.
    """
    return list(Documents.of([path], field))


def _sources(path: str, field: str | None) -> list[Callable[[], Iterator[str]]]:
    source = Path(path)
    try:
        source.stat()
    except FileNotFoundError:
        pass  # said below, unless it is a name on the hub
    except OSError as error:
        raise UsageError(f"--text {path[:80]}: cannot be looked at ({error.strerror})") from error
    if source.is_dir():
        found = sorted(file for file in source.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        files = [file for file in found if not any(part.startswith(".") for part in file.relative_to(source).parts)]
        if not files:
            raise UsageError(f"--text {path}: the folder holds no {', '.join(SUFFIXES)} file")
    elif source.is_file():
        files = [source]
    elif os.environ.get("SSLCOURSE_ONLINE") == "1" and not source.suffix:
        return [_from_hub(path, field or "text")]
    else:
        raise UsageError(f"--text {path}: no such file or folder (a {WHAT})")
    return [partial(_some, path, files, field)]


def _some(path: str, files: list[Path], field: str | None) -> Iterator[str]:
    none = True
    for file in files:
        for text in _read_file(file, field):
            none = False
            yield text
    if none:
        raise UsageError(f"--text {path}: holds no text (empty, or only white space)")


def _read_file(file: Path, field: str | None) -> Iterator[str]:
    suffix = file.suffix.lower()
    if suffix == ".txt":
        if field:
            raise UsageError(f"--field {field}: {file} is plain text and has no fields; leave --field out")
        documents = _paragraphs(file)
    elif suffix == ".jsonl":
        documents = _read_jsonl(file, field or "text")
    elif suffix == ".parquet":
        documents = _read_parquet(file, field or "text")
    else:
        raise UsageError(
            f"--text {file}: {suffix or 'a file without ending'} is not a format that is read; give a {WHAT}"
        )
    yield from (document for document in documents if document.strip())


def _paragraphs(file: Path) -> Iterator[str]:
    lines: list[str] = []
    characters = 0
    for line in _lines(file):
        if line.strip():
            lines.append(line)
            characters += len(line)
        if lines and (not line.strip() or characters > LONGEST):
            yield "\n".join(lines).strip()
            lines, characters = [], 0
    if lines:
        yield "\n".join(lines).strip()


def _lines(file: Path, at_once: int = 2**20) -> Iterator[str]:
    """Lines without their ends, be they of Unix, Windows or an old Mac, decoded a megabyte at a time."""
    try:
        with file.open("rb") as stream:
            head = stream.read(4)
            encoding = next((name for mark, name in MARKS.items() if head.startswith(mark)), "utf-8")
            stream.seek(0)
            inner = codecs.getincrementaldecoder(encoding)()
            decoder, place = io.IncrementalNewlineDecoder(inner, translate=True), 0
            begun: list[str] = []  # of a line whose end has not come
            begins = False  # whether a character has come: a mark of three bytes may take three reads
            while True:
                data = stream.read(at_once)
                if b"\0" in data and encoding == "utf-8":
                    raise UsageError(f"--text {file}: is a binary file (it holds zero bytes); give a {WHAT}")
                waiting = len(inner.getstate()[0])  # bytes of a character whose end had not come
                try:
                    text = decoder.decode(data, final=not data)
                except UnicodeDecodeError as error:
                    raise UsageError(
                        f"--text {file}: is not {encoding.upper()} (byte {place - waiting + error.start}); convert it, "
                        "for example with iconv -f LATIN1 -t UTF-8"
                    ) from error
                if text and not begins:
                    text, begins = text.removeprefix("\ufeff"), True
                place += len(data)
                first, *others = text.split("\n")
                begun.append(first)
                for line in others:
                    yield "".join(begun)
                    begun = [line]
                if not data:
                    break
            if last := "".join(begun):
                yield last
    except OSError as error:
        raise UsageError(f"--text {file}: cannot be read ({error.strerror})") from error


def _read_jsonl(file: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"--text {file}: line {number} is not JSON ({getattr(error, 'msg', error)})") from error
        if not isinstance(record, dict) or field not in record:
            known = _names(record) if isinstance(record, dict) else type(record).__name__
            raise UsageError(f"--field {field}: not in line {number} of {file}; it has {known}")
        yield _text(record[field], f"line {number} of {file}", field)


def _read_parquet(file: Path, field: str) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UsageError(
            f"--text {file}: reading .parquet needs the package pyarrow; install it, or give .jsonl"
        ) from error
    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"--text {file}: is not a parquet file ({str(error).splitlines()[0]})") from error
    if field not in names:
        raise UsageError(f"--field {field}: no such column in {file}; it has {_names(names)}")
    row = 0
    try:
        for batch in table.iter_batches(batch_size=256, columns=[field]):
            for value in batch.column(0).to_pylist():
                row += 1
                yield _text(value, f"row {row} of {file}", field)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--text {file}: cannot be read after row {row} ({str(error).splitlines()[0]})") from error


def _names(names: Iterable[str], most: int = 10) -> str:
    """The first names of fields, on one line."""
    names = [" ".join(name.split()) for name in names]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "") or "no field"


def _text(value: object, place: str, field: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UsageError(f"--field {field}: {place} holds {type(value).__name__}, not text; name a field of strings")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"--field {field}: {place} holds half a character (a lone surrogate)") from error
    return value


def _from_hub(name: str, field: str) -> Callable[[], Iterator[str]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split="train")
    except Exception as error:  # the hub's client raises many kinds; each is the user's to read
        raise UsageError(
            f"--text {name}: could not be loaded from the hub ({type(error).__name__}: {error})"
        ) from error
    if field not in rows.column_names:
        raise UsageError(f"--field {field}: no such column in {name}; it has {', '.join(rows.column_names)}")
    def read() -> Iterator[str]:  # `datasets` maps the rows from a file
        texts = (_text(row[field], f"a row of {name}", field) for row in rows)
        return (text for text in texts if text.strip())

    return read


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
