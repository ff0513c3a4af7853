"""``python -m sslcourse pretrain`` on anybody's text: what works, and one clear line for what cannot."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from sslcourse.commands import pretrain as pretrain_command
from sslcourse.commands.command_line import main
from sslcourse.data import text_files

WORDS = "the old river town has a mill and a market where grain bread and stone are sold in winter".split()
DOCUMENTS = [" ".join(WORDS[(i * j + i) % len(WORDS)] for j in range(40)) for i in range(1, 150)]
SMALL = [
    "--steps",
    "3",
    "--batch-size",
    "4",
    "--sequence-length",
    "32",
    "--vocab-size",
    "200",
    "--hidden-size",
    "64",
    "--layers",
    "1",
    "--evaluations",
    "1",
]


def pretrain(*arguments):
    """Exit status of the command, argparse's own included."""
    try:
        return main(["pretrain", *map(str, arguments)]) or 0
    except SystemExit as stop:
        return stop.code


def write(path, kind):
    if kind == "txt":
        path.write_text("\n\n".join(DOCUMENTS), encoding="utf-8")
    elif kind == "jsonl":
        path.write_text(
            "\n".join(json.dumps({"id": i, "body": text}) for i, text in enumerate(DOCUMENTS)), encoding="utf-8"
        )
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"id": range(len(DOCUMENTS)), "body": DOCUMENTS}), path)
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_a_file_becomes_a_folder_that_stock_transformers_opens(tmp_path, kind, capsys):
    source = write(tmp_path / f"text.{kind}", kind)
    field = [] if kind == "txt" else ["--field", "body"]
    assert pretrain("--text", source, *field, "--out", tmp_path / "out", *SMALL) == 0
    shown = capsys.readouterr()
    assert "held-out" in shown.out
    assert "149 documents" in shown.out
    code = f"""
import sys
sys.modules["sslcourse"] = None
from transformers import AutoModelForMaskedLM, AutoTokenizer
tokenizer, model = (kind.from_pretrained({str(tmp_path / "out")!r}) for kind in (AutoTokenizer, AutoModelForMaskedLM))
logits = model(**tokenizer("the old [MASK] town", return_tensors="pt")).logits
assert logits.shape[-1] == len(tokenizer)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 6e-3), ("muon", 8.4e-3)])
def test_a_rate_is_chosen_for_the_size_and_the_optimiser(tmp_path, optimizer, rate):
    source = write(tmp_path / "text.txt", "txt")
    assert pretrain("--text", source, "--out", tmp_path / "out", *SMALL, "--optimizer", optimizer) == 0
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert (recipe["optimizer"], recipe["learning_rate"]) == (optimizer, rate)
    assert pretrain_command.default_learning_rate(512, optimizer) == rate / 4


def test_a_folder_of_files_and_several_arguments(tmp_path, capsys):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    write(tmp_path / "in" / "deep" / "a.txt", "txt")
    (tmp_path / "in" / "b.txt").write_text("\n\n".join(DOCUMENTS[:50]), encoding="utf-8")
    (tmp_path / "in" / "notes.md").write_text("not read", encoding="utf-8")
    extra = tmp_path / "c.txt"
    extra.write_text("one more document with a few words", encoding="utf-8")
    assert pretrain("--text", tmp_path / "in", extra, "--out", tmp_path / "out", *SMALL) == 0
    assert "200 documents" in capsys.readouterr().out


def test_steps_are_repeatable_across_processes(tmp_path):
    source = write(tmp_path / "text.txt", "txt")
    for name in ("a", "b"):
        done = subprocess.run(
            [sys.executable, "-m", "sslcourse", "pretrain", "--text", source, "--out", tmp_path / name, *SMALL],
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    for file in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_one_long_document_is_cut_so_that_a_part_can_be_held_out(tmp_path):
    (tmp_path / "one.txt").write_text(" ".join(DOCUMENTS), encoding="utf-8")
    assert pretrain("--text", tmp_path / "one.txt", "--out", tmp_path / "out", *SMALL) == 0


BAD = {
    "missing path": (lambda d: d / "nowhere.txt", [], "no such file or folder"),
    "empty file": (lambda d: touch(d / "a.txt", b""), [], "holds no text"),
    "white space only": (lambda d: touch(d / "a.txt", b" \n\n \t"), [], "holds no text"),
    "binary file": (lambda d: touch(d / "a.txt", b"\x7fELF\x00\x01\x02" * 50), [], "binary"),
    "bad encoding": (lambda d: touch(d / "a.txt", "café naïve".encode("latin-1") * 50), [], "not UTF-8"),
    "unknown ending": (lambda d: touch(d / "a.docx", b"words"), [], ".docx"),
    "empty folder": (lambda d: d / "empty", [], "the folder holds no"),
    "absent field": (lambda d: touch(d / "a.jsonl", b'{"body": "x"}\n'), ["--field", "text"], "it has body"),
    "field of numbers": (lambda d: touch(d / "a.jsonl", b'{"text": 3}\n'), [], "holds int"),
    "broken jsonl": (lambda d: touch(d / "a.jsonl", b'{"text": "a"}\n{"text": \n'), [], "line 2"),
    "jsonl of lists": (lambda d: touch(d / "a.jsonl", b"[1, 2]\n"), [], "not in line 1"),
    "not a parquet": (lambda d: touch(d / "a.parquet", b"PAR0 nonsense"), [], "not a parquet"),
    "absent column": (lambda d: write(d / "a.parquet", "parquet"), ["--field", "text"], "it has id, body"),
    "field of plain text": (lambda d: write(d / "a.txt", "txt"), ["--field", "body"], "no fields"),
    "too little text": (lambda d: touch(d / "a.txt", b"just a few words here"), [], "too"),
    "too little for one batch": (lambda d: write(d / "a.txt", "txt"), ["--batch-size", "4000"], "one batch"),
    "vocabulary too small": (lambda d: write(d / "a.txt", "txt"), ["--vocab-size", "5"], "vocab_size=5"),
    "odd hidden size": (lambda d: write(d / "a.txt", "txt"), ["--hidden-size", "65"], "--hidden-size 65"),
    "negative steps": (lambda d: write(d / "a.txt", "txt"), ["--steps", "-3"], "--steps"),
    "minutes nan": (lambda d: write(d / "a.txt", "txt"), ["--minutes", "nan"], "--minutes"),
    "mask rate over 1": (lambda d: write(d / "a.txt", "txt"), ["--mask-rate", "1.5"], "--mask-rate"),
    "deep nesting": (lambda d: touch(d / "a.jsonl", b"[" * 100_000), [], "line 1 is not JSON"),
    "half a character": (lambda d: touch(d / "a.jsonl", b'{"text": "a \\ud800 b"}\n'), [], "lone surrogate"),
    "truncated UTF-16": (lambda d: touch(d / "a.txt", b"\xff\xfea\0b"), [], "not UTF-16"),
    "a size beyond reason": (lambda d: write(d / "a.txt", "txt"), ["--vocab-size", "9" * 25], "--vocab-size"),
    "TensorBoard on a file": (lambda d: write(d / "a.txt", "txt"), ["--tensorboard", __file__], "tensorboard="),
    "a name too long": (lambda d: write(d / "a.txt", "txt"), ["--out", "x" * 250], "cannot be written"),
    "a path too long": (lambda d: d / ("x" * 5000), [], "File name too long"),
    "a seed too large": (lambda d: write(d / "a.txt", "txt"), ["--seed", "9" * 25], "--seed"),
}


def touch(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line_and_status_2_and_leaves_nothing(tmp_path, capsys, name):
    make, extra, fragment = BAD[name]
    (tmp_path / "empty").mkdir()
    source = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    small = list(SMALL)
    if "--minutes" in extra:
        small = small[2:]
    assert pretrain("--text", source, "--out", tmp_path / "new" / "out", *small, *extra) == 2
    error = capsys.readouterr().err.strip()
    line = error.splitlines()[-1]
    assert fragment in line
    assert "Traceback" not in error
    if not line.startswith("sslcourse pretrain: error") and "usage:" not in error:
        assert len(error.splitlines()) == 1, error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["file", "full folder"])
def test_an_output_that_is_taken_is_refused(tmp_path, capsys, kind):
    source = write(tmp_path / "text.txt", "txt")
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    assert pretrain("--text", source, "--out", out, *SMALL) == 2
    assert str(out) in capsys.readouterr().err
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.skipif(
    not os.path.isdir("/proc"), reason="needs a folder that refuses writing to root as well: Linux's /proc"
)
def test_an_output_that_cannot_be_written_is_refused(tmp_path, capsys):
    source = write(tmp_path / "text.txt", "txt")
    assert pretrain("--text", source, "--out", "/proc/out", *SMALL) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on_and_does(tmp_path, capsys, monkeypatch):
    source = write(tmp_path / "text.txt", "txt")
    arguments = ["--text", source, "--out", tmp_path / "out", *SMALL[2:-2], "--steps", "6", "--evaluations", "3"]

    def interrupt(row):
        if row["step"] == 4:
            raise KeyboardInterrupt

    show = pretrain_command._show
    monkeypatch.setattr(pretrain_command, "_show", interrupt)
    assert pretrain(*arguments) == 130
    assert "--resume goes on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(pretrain_command, "_show", show)
    assert pretrain(*arguments) == 2  # a new run would mix with the old one
    assert pretrain(*arguments, "--resume") == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not (tmp_path / "out.partial").exists()


def test_resuming_what_never_began_begins_and_says_so(tmp_path, capsys):
    source = write(tmp_path / "text.txt", "txt")
    arguments = ["--text", source, "--out", tmp_path / "out", *SMALL, "--resume"]
    assert pretrain(*arguments) == 0
    assert "is not there; the run begins" in capsys.readouterr().err
    assert pretrain(*arguments) == 0  # this very run, complete: there is nothing to do
    assert "is not there" not in capsys.readouterr().err
    assert pretrain(*arguments[:-1]) == 2
    assert pretrain(*arguments, "--seed", "1") == 2  # another run


def test_a_run_that_diverges_writes_nothing_and_says_why(tmp_path, capsys):
    source = write(tmp_path / "text.txt", "txt")
    assert pretrain("--text", source, "--out", tmp_path / "out", *SMALL, "--learning-rate", "1e30") == 1
    assert "diverged at learning_rate=1e+30; lower it" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt"]


def test_tensorboard_inside_out_is_refused_before_training(tmp_path, capsys):
    source = write(tmp_path / "text.txt", "txt")
    out = tmp_path / "out"
    assert pretrain("--text", source, "--out", out, *SMALL, "--tensorboard", out / "log") == 2
    assert "lies in out" in capsys.readouterr().err
    assert not out.exists()


def test_out_may_be_a_link_to_an_empty_folder(tmp_path):
    source = write(tmp_path / "text.txt", "txt")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert pretrain("--text", source, "--out", tmp_path / "link", *SMALL) == 0
    assert (tmp_path / "real" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "text",
    ["".join(chr(0x4E00 + (i * i) % 400) for i in range(24_000)), "\r".join(DOCUMENTS), "\n \n".join(DOCUMENTS)],
    ids=["no spaces at all", "old Mac line ends", "blank lines that hold a space"],
)
def test_text_of_other_habits_is_read(tmp_path, text):
    (tmp_path / "text.txt").write_bytes(text.encode())
    assert pretrain("--text", tmp_path / "text.txt", "--out", tmp_path / "out", *SMALL) == 0


def test_a_long_word_cuts_itself_and_not_its_paragraph():
    pieces = text_files._pieces("word " * 5000 + "x" * 2600 + " " + "word " * 5000)
    assert max(map(len, pieces)) <= 1000
    assert len(pieces) < 60
    assert "".join(pieces).replace(" ", "") == "word" * 5000 + "x" * 2600 + "word" * 5000


def test_hidden_files_of_a_folder_are_not_read(tmp_path, capsys):
    write(tmp_path / "a.txt", "txt")
    touch(tmp_path / "._a.txt", b"\x00\x05\x16\x07 junk of a file system")
    (tmp_path / ".git").mkdir()
    write(tmp_path / ".git" / "b.txt", "txt")
    assert pretrain("--text", tmp_path, "--out", tmp_path / "out", *SMALL) == 0
    assert "149 documents" in capsys.readouterr().out


@pytest.mark.parametrize("background", [False, True])
def test_kill_stops_a_run_as_an_interrupt_does(tmp_path, background):
    """A script's job in the background ignores Ctrl-C, which is for what stands in front; ``kill`` stops it."""
    source = write(tmp_path / "text.txt", "txt")
    command = [sys.executable, "-m", "sslcourse", "pretrain", "--text", source, "--out", tmp_path / "out", *SMALL[2:-2],
               "--minutes", "5", "--evaluations", "500"]  # fmt: skip
    ignore = (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if background else None
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=ignore)
    assert process.stdout.readline().startswith("149 documents")
    assert process.stdout.readline().startswith("step")  # so there is a checkpoint soon
    if background:
        process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    step = int(re.search(r"stopped at step (\d+); saved in .*--resume goes on", error)[1])  # not only the first one
    state = json.loads((tmp_path / "out.partial" / "checkpoint" / "state.json").read_text())["state"]
    assert state["step"] == step > 0
    assert "Traceback" not in error


def test_a_text_without_blank_lines_is_cut_at_line_ends(tmp_path):
    lines = [f"line {number} of a long file that has no blank line anywhere" for number in range(20_000)]
    (tmp_path / "long.txt").write_text("\n".join(lines))
    texts = list(text_files.Documents.of([str(tmp_path / "long.txt")]))
    assert max(map(len, texts)) < text_files.LONGEST * 1.1
    assert "\n".join(texts).split("\n") == lines


def test_what_is_held_out_has_an_upper_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MOST_HELD_OUT", 5_000)
    texts = text_files.Documents.of([str(write(tmp_path / "text.txt", "txt"))])
    monkeypatch.setattr(text_files, "HELD_OUT", 0.5)
    train, held_out = text_files.split(texts, seed=0)
    assert 5_000 <= sum(map(len, held_out)) < 5_400
    assert sorted([*train, *held_out]) == sorted(texts)
    assert (len(train), len(held_out)) == (149 - len(held_out), len(held_out))


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 2**20])
def test_lines_are_the_same_however_a_file_is_read(tmp_path, at_once):
    text = "\ufeffeins\r\nzwei – drei\rvier\n\n漢字 🙂\nlast"
    touch(tmp_path / "a.txt", text.encode())
    lines = ["eins", "zwei – drei", "vier", "", "漢字 🙂", "last"]
    assert list(text_files._lines(tmp_path / "a.txt", at_once)) == lines
    touch(tmp_path / "b.txt", b"a line\n" * 10 + b"caf\xe9")
    with pytest.raises(text_files.UsageError, match=r"\(byte 73\)"):
        list(text_files._lines(tmp_path / "b.txt", at_once))
