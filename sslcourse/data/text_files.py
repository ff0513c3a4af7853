"""Anybody's own text, read from files or the hub, and a part of it drawn to be held out.

    texts = read_texts(sources, columns...)             # Documents: read anew at each pass, one in memory at a time
    train, held_out = split(texts, seed)

Text, JSON lines and parquet, in any encoding that says what it is. What cannot be read raises ``UsageError``, whose
message says which file and what to do. What this module does not do: clean text, or detect its language.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import random
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

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
