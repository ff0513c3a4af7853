"""What makes a stored run stale: faults of every kind, planted in a toy course and in this one, and whom they reach."""

import ast
import re
from pathlib import Path

import pytest

from coursekit import claims, course, source, stale

ROOT = Path(__file__).resolve().parents[1]

# -- a toy course ------------------------------------------------------------------------------------------------------

FILES = {
    "toy/__init__.py": """
import os

os.environ.setdefault("TOY", "1")

def __getattr__(name):
    import importlib
    return getattr(importlib.import_module(WHERE[name]), name)
""",
    "toy/base.py": '''
"""Words."""
from __future__ import annotations

import time as clock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toy.models import Model

RATE = 0.5
TWICE = 2

def deep(x: int) -> int:
    """Words."""
    return x + 1  # why

def helper(x):
    return deep(x)

def lonely(x):
    return x

def decorate(function):
    return function

def now():
    return clock.monotonic()

class Base:
    """Words."""
    size: int = 1

    def shown(self, model: Model) -> str:
        return "shown"

    def _shown(self):
        return helper(0)
''',
    "toy/models.py": """
from toy import base
from toy.base import Base as Parent, decorate as marked

class Model(Parent):
    def forward(self, deep):
        return deep * base.RATE

@marked
def trained(steps=base.TWICE):
    from .base import helper as help_me
    return help_me(steps)

def helper(x):
    return x - 1
""",
    "toy/registry.py": """
from toy.base import lonely

ALL = {}

def add(function):
    ALL[function.__name__] = function
    return function

@add
def added():
    return 1

print("loaded")
for letter in "ab":
    ALL[letter] = lonely

def call(name):
    return ALL[name]()
""",
    "toy/ranks.py": """
from toy.base import now

def main():
    print(now())

if __name__ == "__main__":
    main()
""",
    "toy/tool/__init__.py": "",
    "toy/tool/__main__.py": "from toy.base import lonely\n\nif __name__ == '__main__':\n    lonely(1)\n",
    "toy/graders.py": "def check(name, answer):\n    return answer()\n",
    "toy/stars.py": "from toy.base import *\n\nLAST = deep(1)\n",
}
FIGURES = {"one": '{"a": 1}', "two": '{"a": 2}', "run_ten": "[1, 2]", "run_all": "[3]"}
LESSONS = {
    "deep": "from toy.base import helper\nfrom toy.graders import check\nhelper(1)\ncheck('1.1', helper)",
    "model": "import toy.models\ntoy.models.Model().forward(1)",
    "trained": "from toy import models as m\nm.trained()",
    "lazy": "from toy import trained\ntrained()",
    "registry": "from toy import registry\nregistry.call('added')",
    "ranks": "run('toy.ranks', processes=2)",
    "tool": "import sys\nrun([sys.executable, '-m', 'toy.tool'])",
    "script": "script = '''\n    from toy.base import now\n    now()  # a clock\n'''",
    "dynamic": "from toy import ranks\ngetattr(ranks, name)()",
    "stars": "from toy.stars import *\nprint(LAST, lonely(1))",
    "figures": "def stored(name):\n    return open(f'data/measured/{name}.json').read()\n\nstored('one')",
    "runs": "for count in 'ten twenty'.split():\n    print(f'run_{count}.json')",
    "quiz": "print('{{quiz}}')",
}


def toy(files=(), lessons=()):
    """{lesson: its definitions}, with some files or lessons replaced; None takes one away."""
    code = {name: text.encode() for name, text in ({**FILES, **dict(files)}).items() if text is not None}
    code = {f"data/measured/{name}.json": text.encode() for name, text in FIGURES.items()} | code
    return {name: stale.find(code, text, shown={"the quiz": code.get("quiz", b"[1]")} if name == "quiz" else {},
                             not_followed=["toy.graders"])
            for name, text in (LESSONS | dict(lessons)).items()}  # fmt: skip


def hashes(walk):
    return {name: found.hash for name, found in walk.items()}


def changed(before, after):
    """{lesson: what the gate would say} of the lessons that are stale."""
    phrases = {name: stale.why(hashes(before[name]), after[name]) for name in before}
    return {name: said for name, said in phrases.items() if said}


NOBODY: set[str] = set()
DEEP = {"deep", "model", "trained", "lazy", "stars"}
MARKED = {"trained", "lazy", "model"}  # its decorator may do anything when the module is imported


@pytest.mark.parametrize(
    ("file", "old", "new", "lessons"),
    [
        pytest.param("base", "x + 1  #", "x + 2  #", DEEP, id="body of a function two calls deep"),
        pytest.param("base", 'return "shown"', 'return "hidden"', {"model"}, id="method of a base class"),
        pytest.param("base", "size: int = 1", "size: float = 1", {"model"}, id="type of a field"),
        pytest.param("models", "deep * base", "deep + base", {"model"}, id="method"),
        pytest.param("models", "Model(Parent)", "Model(Parent, dict)", {"model"}, id="base class"),
        pytest.param("base", "RATE = 0.5", "RATE = 0.6", {"model"}, id="constant by attribute"),
        pytest.param("base", "TWICE = 2", "TWICE = 3", MARKED, id="constant in a default"),
        pytest.param("models", "steps=base.TWICE", "steps=4", MARKED, id="default argument"),
        pytest.param("models", "@marked\n", "", MARKED, id="decorator taken away"),
        pytest.param("base", "return function", "return lambda: function()", MARKED, id="body of a decorator"),
        pytest.param("models", "return x - 1", "return x - 2", NOBODY, id="same name elsewhere"),
        pytest.param("base", "return x\n", "return -x\n", {"stars", "tool", "registry"},
                     id="its neighbours are imported"),
        pytest.param("base", '"""Words."""', '"""Other words."""', NOBODY, id="docstring"),
        pytest.param("base", "# why", "# because", NOBODY, id="comment"),
        pytest.param("base", "return x + 1", "return (\n        x +  1)", NOBODY, id="layout"),
        pytest.param("base", "x: int) -> int", "x: float)", NOBODY, id="annotation of a function"),
        pytest.param("base", "import time as clock", "import time", {"ranks", "script", "dynamic"},
                     id="a name that now means nothing"),
        pytest.param("base", "clock.monotonic", "clock.time", {"ranks", "script", "dynamic"},
                     id="in a subprocess, in a string, by getattr"),
        pytest.param("ranks", "    main()\n", "    main(2)\n", {"ranks"}, id="what a started module does"),
        pytest.param("tool/__main__", "lonely(1)", "lonely(2)", {"tool"}, id="what a started package does"),
        pytest.param("registry", "return 1", "return 2", {"registry"}, id="registered by a decorator"),
        pytest.param("registry", '"loaded"', '"ready"', {"registry"}, id="side effect"),
        pytest.param("registry", '"ab"', '"abc"', {"registry"}, id="a loop that fills a table"),
        pytest.param("__init__", '"TOY", "1"', '"TOY", "2"', {*LESSONS} - {"figures", "runs", "quiz"},
                     id="side effect of the package"),
        pytest.param("__init__", "WHERE[name]", "PLACES[name]", NOBODY, id="how a facade finds its names"),
        pytest.param("graders", "return answer()", "return None", NOBODY, id="a grader"),
        pytest.param("stars", "LAST = deep(1)", "LAST = deep(2)", {"stars"}, id="by a star"),
    ],
)  # fmt: skip
def test_an_edit_makes_those_lessons_stale_that_reach_it(file, old, new, lessons):
    path = f"toy/{file}.py"
    assert old in FILES[path], "nothing was planted"
    assert changed(toy(), toy({path: FILES[path].replace(old, new)})).keys() == lessons


@pytest.mark.parametrize(
    ("file", "text", "lessons"),
    [
        ("one", '{"a":\n1}', NOBODY),
        ("one", '{"a": 1.5}', {"figures"}),
        ("two", '{"a": 3}', NOBODY),  # `stored` could read it, and nobody asks for it
        ("run_ten", "[1]", {"runs"}),
        ("run_all", "[4]", NOBODY),
        ("run_twenty", "[5]", {"runs"}),
    ],
)
def test_measured_figures_count_where_they_are_shown(file, text, lessons):
    assert changed(toy(), toy({f"data/measured/{file}.json": text})).keys() == lessons


def test_a_hole_that_nothing_fills_is_every_file_that_fits():
    walk = toy(lessons={"runs": "print(f'run_{count}.json', MEASURED / ('o' + 'ne.json'))"})["runs"]
    assert {"run_ten.json", "run_all.json", "one.json"} <= walk.keys()
    assert "two.json" not in walk


def test_a_hole_in_a_modules_name_is_every_module_that_fits():
    walk = toy(lessons={"ranks": "run(f'toy.r{name}')"})["ranks"]
    assert {"main", "now", "added"} <= walk.keys()
    assert "trained" not in walk


def test_a_quiz_counts_where_it_is_shown():
    assert changed(toy(), toy({"quiz": "[1,2]"})) == {"quiz": ["`the quiz` has changed"]}
    assert changed(toy(), toy({"quiz": "[ 1 ]"})) == {}


@pytest.mark.parametrize(
    ("lesson", "text", "is_stale"),
    [
        ("deep", "import toy.base as b\nfrom toy import graders\nb.helper(1)\ngraders.check('2.7', b.helper)", False),
        ("deep", "from toy.base import helper as h\nfrom toy.graders import check\nh(1)\ncheck('1.1', h)", False),
        ("deep", LESSONS["deep"].replace("helper(1)", "helper(1.0)"), True),
        ("deep", LESSONS["deep"].replace("toy.base", "toy.models"), True),
        ("model", "from toy import models\n# words\nmodels.Model().forward(1)", False),
        ("trained", "import toy\n\ntoy.models.trained()", False),
        ("lazy", "import toy\ntoy.trained()", False),
        ("script", LESSONS["script"].replace("a clock", "the time").replace("    ", ""), False),
        ("script", LESSONS["script"].replace("now()", "now(1)"), True),
        ("ranks", LESSONS["ranks"].replace("2", "3"), True),
    ],
)
def test_how_a_cell_imports_does_not_count_and_what_it_calls_does(lesson, text, is_stale):
    assert bool(changed(toy(), toy(lessons={lesson: text}))) == is_stale


def test_moved_and_renamed_modules_make_nothing_stale():
    def moved(text):
        text = text.replace("toy.base", "toy.room.ground")
        return text.replace("from toy import base", "from toy.room import ground as base")

    files = {name: moved(text).replace("from .base", "from .room.ground") for name, text in FILES.items()}
    files |= {"toy/room/__init__.py": "", "toy/room/ground.py": files["toy/base.py"], "toy/base.py": None}
    files |= {"toy/rows.py": files["toy/ranks.py"], "toy/ranks.py": None}
    lessons = {name: moved(text).replace("toy.ranks", "toy.rows").replace("import ranks", "import rows as ranks")
               for name, text in LESSONS.items()}  # fmt: skip
    after = toy(files, lessons)
    assert changed(toy(), after) == {}
    assert after["deep"]["deep"].file == "toy/room/ground.py"


def test_why_says_what_changed_came_and_went_and_where_it_stands():
    base = FILES["toy/base.py"].replace("return deep(x)", "return deeper(x)\n\ndef deeper(x):\n    pass")
    after = toy({"toy/base.py": base})["deep"]
    assert stale.why(hashes(toy()["deep"]), after) == [
        "`deep` is gone", "`deeper` (toy/base.py) is new", "`helper` (toy/base.py) has changed",
    ]  # fmt: skip


def test_two_definitions_of_one_name_are_told_apart_by_what_they_say():
    both = {"deep": "from toy import base, models\nbase.helper(1), models.helper(1)"}
    before = toy(lessons=both)
    assert {"helper", "helper~2"} <= before["deep"].keys()
    after = toy({"toy/models.py": FILES["toy/models.py"].replace("x - 1", "x - 3")}, both)
    assert changed(before, after) == {"deep": ["`helper` (toy/models.py) has changed"]}


def test_a_local_name_is_no_definition():
    text = """
from toy.base import deep, helper, lonely
def f(deep, *lonely):
    for helper in lonely: pass
    return [deep(one) for one in lonely], helper
g = lambda helper: helper(1)
"""
    assert toy(lessons={"deep": text})["deep"].keys() == {stale.CELLS, "os.environ.setdefault()"}
    inner = "from toy.base import deep, lonely\nprint([deep for deep in deep(1)], [lonely(x) for x in ()])"
    assert {"deep", "lonely"} <= toy(lessons={"deep": inner})["deep"].keys()


def test_a_course_without_a_package_uses_those_beside_coursekit(tmp_path):
    assert {"coursekit/stale.py", "sslcourse/objectives/masking.py"} <= stale.snapshot(tmp_path).keys()
    (tmp_path / "sslcourse").mkdir()
    (tmp_path / "sslcourse" / "__init__.py").write_text("")
    files = stale.snapshot(tmp_path)
    assert "sslcourse/objectives/masking.py" not in files
    assert "coursekit/stale.py" in files


# -- this course -------------------------------------------------------------------------------------------------------

FILES_NOW = stale.snapshot(ROOT)
EVERY = {course.name(lesson) for lesson in course.lessons(ROOT)}
PRETRAINED = {"mlm_pretraining", "fine_tuning", "mixed_precision", "quantization", "generalization",
              "pruning_and_sparsity"}  # fmt: skip
BUT_THE_FIRST = PRETRAINED | {"loss_derivation", "masking_dataset", "distributed_training", "efficiency_ladder"}
EDITS = [  # file, what stands there, what is planted, whose definition it is, who reaches it
    ("sslcourse/train/step", "loss.backward()", "(2 * loss).backward()", "train_step", PRETRAINED),
    ("sslcourse/objectives/masking", "mask_prob: float = 0.8", "mask_prob: float = 0.7", "mask_tokens", BUT_THE_FIRST),
    ("sslcourse/models/encoder", "class Layer(nn.Module):", "class Layer(nn.Sequential):", "Layer", BUT_THE_FIRST),
    ("sslcourse/train/across_ranks", "dist.all_reduce(", "dist.reduce(", "average_gradients", {"distributed_training"}),
    ("sslcourse/studies/rank_proofs", "set_default_dtype(", "set_default_device(", "main", {"distributed_training"}),
    ("sslcourse/studies/ladder", "def climb(", "@torch.no_grad()\ndef climb(", "climb", {"efficiency_ladder"}),
    ("sslcourse/models/lora", "class LoRALinear(nn.Module)", "class LoRALinear(nn.Sequential)", "LoRALinear",
     {"fine_tuning", "generalization", "pruning_and_sparsity"}),
    ("coursekit/lesson", "SEED = 0", "SEED = 1", "SEED", EVERY),
    ("sslcourse/models/encoder", "import torch\n", "import os.path as path\nimport torch\n", "nothing", NOBODY),
    ("coursekit/quiz", "FEWEST, MOST = 5, 8", "FEWEST, MOST = 5, 9", "MOST", NOBODY),
    ("coursekit/checks", "TODO = ...", "TODO = None", "TODO", NOBODY),
    ("sslcourse/data/text_files", "SUFFIXES = (", "SUFFIXES = (1, ", "SUFFIXES", NOBODY),
]  # fmt: skip
OTHERS = {stale.module_name(file) for file in FILES_NOW if file.startswith("coursekit/")} - set(claims.RUNS)


def walks(files, change=lambda text: text):
    return {course.name(lesson): stale.find(files, source.to_stub(change(source.read(ROOT, lesson).text)),
                                            not_followed=OTHERS)
            for lesson in course.lessons(ROOT)}  # fmt: skip


@pytest.fixture(scope="module")
def today():
    return walks(FILES_NOW)


def test_edits_of_this_course_reach_whom_they_should(today):
    """All planted at once; each names its definition to the lessons that reach it, and to no others."""
    files = dict(FILES_NOW)
    for file, old, new, name, _ in EDITS:
        path = f"{file}.py"
        text = files[path].decode()
        place = max(0, text.find(f"def {name}("), text.find(f"class {name}("))
        assert old in text[place:], f"{old!r} is not in {file}, so nothing was planted"
        files[path] = (text[:place] + text[place:].replace(old, new, 1)).encode()
    found = changed(today, walks(files))
    for file, _, _, name, lessons in EDITS:
        phrase = f"`{name}` ({file}.py) has changed"
        assert {lesson for lesson, said in found.items() if phrase in said} == lessons, phrase
    names = {name for *_, name, _ in EDITS}
    assert {re.match("`(.*?)`", phrase)[1] for said in found.values() for phrase in said} <= names


def test_figures_of_this_course_reach_whom_they_should(today):
    shown = {name: {lesson for lesson, walk in today.items() if f"{name}.json" in walk}
             for name in ("pretraining_race", "accelerator_30m_parts", "minilm_label_efficiency", "remedies_strength",
                          "quantization_minilm", "building_blocks")}  # fmt: skip
    assert shown == {
        "pretraining_race": {"efficiency_ladder"}, "accelerator_30m_parts": {"efficiency_ladder"},
        "minilm_label_efficiency": {"fine_tuning"}, "remedies_strength": {"generalization"},
        "quantization_minilm": {"quantization"}, "building_blocks": NOBODY,
    }  # fmt: skip


class Undocumented(ast.NodeTransformer):
    """Without docstrings; with the comments that ``ast.unparse`` leaves out, a file in other words."""

    def generic_visit(self, node):
        super().generic_visit(node)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body[0].value.value = "Other words."
        return node


def test_words_and_layout_of_a_whole_package_make_nothing_stale(today):
    code = {name: ast.unparse(Undocumented().visit(ast.parse(source))).encode()
            for name, source in FILES_NOW.items() if name.endswith(".py")}  # fmt: skip
    assert changed(today, walks(FILES_NOW | code)) == {}


def test_modules_that_move_make_nothing_stale(today):
    """One that everybody names, and one that is started in a subprocess."""
    places = {"objectives.masking": "questions.hidden", "studies.rank_proofs": "proofs.equal"}

    def moved(text):
        for old, new in places.items():
            room, name = old.split(".")
            text = re.sub(rf"\bsslcourse\.{old}\b", f"sslcourse.{new}", text)
            alone = f"from sslcourse.{new.replace('.', ' import ')} as {name}"
            text = re.sub(rf"^from sslcourse\.{room} import {name}$", alone, text, flags=re.MULTILINE)
        return text

    files = {name: moved(raw.decode()).encode() if name.endswith(".py") else raw for name, raw in FILES_NOW.items()}
    for old, new in places.items():
        files[f"sslcourse/{new.replace('.', '/')}.py"] = files.pop(f"sslcourse/{old.replace('.', '/')}.py")
        files[f"sslcourse/{new.split('.')[0]}/__init__.py"] = b""
    after = walks(files, moved)
    assert changed(today, after) == {}
    assert after["mlm_pretraining"]["mask_tokens"].file == "sslcourse/questions/hidden.py"
    assert after["distributed_training"]["ten_steps"].file == "sslcourse/proofs/equal.py"


# -- trees as text -----------------------------------------------------------------------------------------------------

CODE = '"""Module."""\nimport os\n\n\ndef f(x):\n    """Doc."""\n    return x + 1\n'


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        (CODE.replace('"""Doc."""', '"""Another."""'), True),
        (CODE.replace("x + 1", "x + 1  # why"), True),
        (CODE.replace("x + 1", "(x +\n            1)"), True),
        (CODE.replace("x + 1", "x + 2"), False),
        (CODE.replace("x + 1", "x - 1"), False),
        (CODE.replace("x + 1", "x + 1.0"), False),
        (CODE.replace("import os", "import sys"), False),
        (CODE.replace("    return", "    'a value'\n    return"), False),
    ],
)
def test_what_counts_as_code(other, equal):
    assert (stale.canonical(ast.parse(CODE)) == stale.canonical(ast.parse(other))) == equal
