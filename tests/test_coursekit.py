"""What makes courses and what is taught stay apart: coursekit knows no subject, sslcourse knows of no course."""

import ast
import graphlib
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COURSEKIT = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "coursekit").rglob("*.py"))}
SSLCOURSE = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
             for path in sorted((ROOT / "sslcourse").rglob("*.py"))}  # fmt: skip


def imported(code: str) -> set[str]:
    """Every module that some line of it imports, at the top or when called; names taken from one count as modules."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def strings(code: str) -> Iterator[tuple[str, bool]]:
    """Every string of it, and whether it is a docstring."""
    tree = ast.parse(code)
    blocks = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {id(node.body[0].value) for node in ast.walk(tree)
            if isinstance(node, blocks) and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, id(node) in docs


# -- imports -----------------------------------------------------------------------------------------------------------


def circle(modules: dict[str, str]) -> list[str]:
    """Modules that import each other in a ring, the first one twice; an empty list is none."""
    graph = {name: {other for other in modules if f"coursekit.{other}" in imported(code)}
             for name, code in modules.items()}  # fmt: skip
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_of_coursekit_imports_itself_by_a_detour():
    assert len(COURSEKIT) > 25
    assert circle(COURSEKIT) == []


def test_a_detour_is_seen_also_where_a_function_imports():
    planted = {**COURSEKIT, "course": COURSEKIT["course"] + "\n\ndef later():\n    from coursekit import site\n"}
    assert {"course", "site"} <= set(circle(planted))
    planted = {**COURSEKIT, "stale": COURSEKIT["stale"] + "\n\ndef later():\n    import coursekit.claims\n"}
    assert circle(planted)[0] == circle(planted)[-1]


def test_modules_are_imported_by_their_full_name():
    """Else the test above would not see it."""
    assert {name for name, code in COURSEKIT.items() for one in imported(code) if one.startswith(".")} == set()


# -- neither names the other -------------------------------------------------------------------------------------------


def named(code: str, package: str) -> list[str]:
    """Where code imports a package, or holds its name in a string that could be imported, or run."""
    by_import = [module for module in imported(code) if module.partition(".")[0] == package]
    return by_import + [text for text, doc in strings(code) if not doc and re.search(rf"\b{package}\b", text)]


SALT = "sslcourse"  # `plots` salts the ids in SVG files with it; another would change every stored figure


def test_coursekit_neither_imports_sslcourse_nor_names_it():
    found = {name: where for name, code in COURSEKIT.items() if (where := named(code, "sslcourse"))}
    assert found == {"plots": [SALT]}
    assert f'"svg.hashsalt": "{SALT}"' in COURSEKIT["plots"]


def test_sslcourse_names_coursekit_once_where_its_command_line_hands_on():
    found = {name: where for name, code in SSLCOURSE.items() if (where := named(code, "coursekit"))}
    [(name, where)] = found.items()
    assert where == ["coursekit"]
    assert '\nCOURSE = "coursekit"\n' in SSLCOURSE[name]


@pytest.mark.parametrize(
    "line",
    [
        "import other",
        "import other.part",
        "from other import part",
        "from other.part import one",
        "def later():\n    from other import part",
        "import importlib\nimportlib.import_module('other.part')",
        "__import__('other')",
        "command = ['-m', 'other']",
        "f'{1} python -m other'",
    ],
)
def test_each_way_to_name_a_package_is_seen(line):
    assert named(line, "other")
    assert named(line, "another") == []


# -- no word of the subject --------------------------------------------------------------------------------------------

SUBJECT = re.compile(
    r"self.?supervis|mask(?:ed|ing)|(?:en|de)coder|tokeni[sz]|pre.?train|transformers?(?![a-z])|fine.?tun|logit|corpus"
    r"|corpora|quanti[sz]|prun(?:e|ing)|embedding|vocab|attention|distill|(?<![a-z])(?:bert|mlm|lora|ssl|nlp)(?![a-z])",
    re.IGNORECASE,
)
# Names that are a library's own: two whose talk is turned down where a course uses them, and a property of tensors.
LIBRARIES = {"lesson": {"transformers", "TRANSFORMERS", "TOKENIZ"}, "grade_wire": {"quantiz"}}


def of_the_subject(code: str) -> set[str]:
    """Words of the subject in names, strings and comments. Docstrings may take it for an example."""
    words = [text for text, doc in strings(code) if not doc]
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    words += [token.string for token in tokens if token.type in (tokenize.NAME, tokenize.COMMENT)]
    return {match[0] for word in words for match in SUBJECT.finditer(word)}


def test_no_code_of_coursekit_holds_a_word_of_the_subject():
    found = {name: words for name, code in COURSEKIT.items() if (words := of_the_subject(code))}
    assert found == LIBRARIES


def test_a_word_of_the_subject_is_seen_in_names_and_strings_and_in_all_of_sslcourse():
    for code in ("def masked_mean(x): ...", "x.tokenizer", "f(vocab_size=3)", "x = 'the MLM loss'", "class Encoder: 1",
                 "import transformers", "x = 1  # as a corpus has"):  # fmt: skip
        assert of_the_subject(code), code
    assert not of_the_subject('"""Such as masking."""\nunmask = token = pretty = "sealed: no token"')
    assert sum(bool(of_the_subject(code)) for code in SSLCOURSE.values()) > len(SSLCOURSE) / 2
