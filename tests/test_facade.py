"""``import sslcourse`` is light, and gives the contracts by name."""

import ast
import importlib
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sslcourse

ROOT = Path(__file__).resolve().parents[1]
CONTRACTS = (
    "load_corpus train_tokenizer mask_tokens MaskedLMDataset mlm_loss mlm_loss_grad adamw_step MarkovSource "
    "EncoderConfig EncoderForMaskedLM train_epoch evaluate pretrain Recipe"
).split()


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_importing_it_loads_no_library_and_no_room():
    loaded = set(python("import sys, sslcourse; print(*sys.modules)").split())
    assert "sslcourse" in loaded
    assert not loaded & {"torch", "numpy", "transformers", "tokenizers"}
    assert not [name for name in loaded if name.startswith("sslcourse.")]


def test_importing_it_takes_no_longer_than_starting_python_does():
    """A ratio of starts that take turns, so that a slow or busy machine does not matter: with torch it is above 20."""
    seconds = {"pass": [], "import sslcourse": []}
    for _ in range(7):
        for code, times in seconds.items():
            began = time.perf_counter()
            python(code)
            times.append(time.perf_counter() - began)
    nothing, ours = (statistics.median(times) for times in seconds.values())
    assert ours < 3 * nothing


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_contract_is_what_stands_in_its_module(name):
    module, _, called = sslcourse._WHERE[name].partition(":")
    found = getattr(sslcourse, name)
    assert found is getattr(importlib.import_module(f"sslcourse.{module}"), called or name)
    assert found.__module__ == f"sslcourse.{module}"  # where it is defined, not where it passed by
    assert name in dir(sslcourse)
    assert name in sslcourse.__all__


def test_it_gives_the_contracts_and_no_more():
    assert sorted(sslcourse.__all__) == sorted(["__version__", *CONTRACTS])
    names = {}
    exec("from sslcourse import *", names)
    assert names.keys() >= set(CONTRACTS)


def test_in_a_fresh_process_a_name_can_be_imported_and_is_the_function():
    """``commands.pretrain`` is a module of the same name; the contract is the function."""
    said = python("from sslcourse import mask_tokens, pretrain; print(mask_tokens.__name__, type(pretrain).__name__)")
    assert said.split() == ["mask_tokens", "function"]
    said = python("import sslcourse.commands.pretrain, sslcourse; print(type(sslcourse.pretrain).__name__)")
    assert said.split() == ["function"]


def test_what_editors_read_is_what_the_table_says():
    tree = ast.parse((ROOT / "sslcourse/__init__.py").read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    told = {}
    for node in block.body:
        for one in node.names:
            where = node.module.removeprefix("sslcourse.") + (f":{one.name}" if one.asname else "")
            told[one.asname or one.name] = where
    assert told == sslcourse._WHERE


def test_a_name_that_it_lacks_is_named():
    with pytest.raises(AttributeError, match="'sslcourse' has no attribute 'mask_toke'"):
        _ = sslcourse.mask_toke
    with pytest.raises(ImportError, match="mask_toke"):
        exec("from sslcourse import mask_toke")
