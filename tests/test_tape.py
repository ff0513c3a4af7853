"""Batches from a mapped file are those from memory, and memory holds no more than it must."""

import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks.pretraining import RECIPE, corpus

from sslcourse.data import token_files, tokenizer
from sslcourse.train import token_rows


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    texts, _ = corpus()
    words = tokenizer.train(texts, 300)
    path = tmp_path_factory.mktemp("tape") / "tokens.uint16"
    return token_files.write_tape(path, texts, words, at_once=2000), path, texts, words


def test_a_tape_on_disk_gives_the_batches_of_one_in_memory(on_disk):
    total, path, texts, words = on_disk
    theirs = token_rows.Tape(tokenizer.encode(words, texts), words, 32)
    ours = token_rows.TapeOnDisk(path, words, 32)
    assert (total, len(ours)) == (len(theirs.tokens), len(theirs))
    recipe = replace(RECIPE, vocab_size=len(words))
    steps = 3 * len(ours) // recipe.batch_size  # into the third epoch
    for first in (0, 5):
        pairs = zip(ours.batches(recipe, first), theirs.batches(recipe, first), strict=True)
        for mine, other in islice(pairs, steps):
            assert torch.equal(mine[0], other[0])
            assert torch.equal(mine[1], other[1])


def test_a_token_takes_two_bytes_of_a_file_that_is_only_mapped(on_disk):
    total, path, _, words = on_disk
    assert path.stat().st_size == 2 * total
    assert list(path.parent.iterdir()) == [path]  # no half file beside it
    rows = token_rows.TapeOnDisk(path, words, 32).rows(0, 0)
    assert isinstance(rows.table, np.memmap)
    assert (token_files.token_kind(2**16), token_files.token_kind(2**16 + 1)) == (np.uint16, np.int32)


def test_a_tape_of_less_than_a_row_is_refused(on_disk):
    total, path, _, words = on_disk
    with pytest.raises(ValueError, match=f"the texts hold {total} tokens, less than one row"):
        token_rows.TapeOnDisk(path, words, total + 1)


def test_a_kept_tape_is_used_again_unless_it_is_damaged_or_of_other_texts(tmp_path, on_disk, monkeypatch):
    _, _, texts, words = on_disk
    first = token_files.kept_tape(tmp_path, texts, words)
    whole, written = first.read_bytes(), []
    write = token_files.write_tape
    monkeypatch.setattr(token_files, "write_tape", lambda *given: (written.append(1), write(*given)))
    assert token_files.kept_tape(tmp_path, texts, words) == first
    assert not written
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    first.write_bytes(damaged)
    assert token_files.kept_tape(tmp_path, texts, words) == first
    assert (written, first.read_bytes()) == ([1], whole)
    assert token_files.kept_tape(tmp_path, texts[1:], words) != first


SCRIPT = """
import itertools, random, resource, sys
from sslcourse.data import tokenizer
from sslcourse.train.loop import pretrain
from sslcourse.train.recipe import Recipe

class Corpus:  # made anew at each reading: it is nowhere whole
    def __init__(self, documents): self.documents = documents
    def __iter__(self):
        for number in range(self.documents):
            draw = random.Random(number)
            yield " ".join(WORDS[draw.randrange(400)] for _ in range(300))

WORDS = ["".join(pair) for pair in itertools.product("bcdfghjklmnpqrstvwxz", ("an", "el", "ir", "os") * 5)]
HELD_OUT = list(Corpus(20))
small = dict(vocab_size=1000, hidden_size=32, intermediate_size=64, layers=1, heads=1, sequence_length=64, batch_size=4)
options = dict(steps=4, evaluations=1, progress=False, tokenizer=tokenizer.train(HELD_OUT, 1000))
out, documents, allowed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pretrain(Corpus(50), HELD_OUT, Recipe(**small), out=f"{out}-first" if out else None, **options)  # libraries are warm
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + allowed * 2**20,) * 2)
print("begins", flush=True)
pretrain(Corpus(documents), HELD_OUT, Recipe(**small), out=out or None, **options)
print("done")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit on a process's data is Linux's")
def test_a_corpus_larger_than_memory_is_read_from_a_file(tmp_path):
    """12 MB of text, 2.5 million tokens and about as much in copies, where 48 MB more may be taken; in memory: 150."""

    def run(out):
        command = [sys.executable, "-c", SCRIPT, str(out), "6000", "48"]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    mapped = run(tmp_path / "out")
    assert mapped.stdout.split() == ["begins", "done"], mapped.stderr[-2000:]
    in_memory = run("")
    assert in_memory.stdout.split() == ["begins"]  # or the limit limits nothing
    assert in_memory.returncode != 0
