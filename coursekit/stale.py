"""Which definitions a lesson reaches: a change of one of them, and of nothing else, makes its stored run stale.

    now = find(snapshot(root), text)                # {name: Found(hash, file)}
    why(ledger.definitions, now)                    # ["`mask_tokens` (a/masking.py) has changed", "`shown` is gone"]

A *definition* is a function, a class or an assignment at the top of a module. From the lesson's cells the walk follows
every name to what it stands for (through imports, re-exports, attributes of modules, modules that ``-m`` starts, and
scripts that stand in strings) and goes on from there. What runs when a module is imported counts for all who import it,
and so do the measured files that a cell names.

A definition counts as its syntax tree: comments, docstrings, positions and annotations of functions do not, nor do
import statements, since every name is written as what it stands for. So a file may move and a module be renamed.

What this module does not do: run anything, or guess types. What it cannot resolve (``getattr`` of a module,
``globals()``) it takes for everything that the module defines: rather stale once too often.
"""

from __future__ import annotations

import ast
import fnmatch
import hashlib
import json
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parents[1]
MEASURED = "data/measured/"
CELLS = "the lesson's cells"
LABELLED = ("start", "check", "grade")  # in a cell, their first argument is the name of a lesson or an exercise
# Decorators that register nothing; under any other, somebody may call a function who never names it.
PURE = {
    *("cache", "cached_property", "classmethod", "contextmanager", "dataclass", "inference_mode", "lru_cache"),
    *("no_grad", "once_differentiable", "property", "record", "staticmethod", "total_ordering", "wraps"),
}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
SCOPES = (*FUNCTIONS, ast.ClassDef, ast.Lambda, *COMPREHENSIONS)
SIMPLE = (*FUNCTIONS, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.AugAssign)

Reference = tuple[str, str]  # a module, and what of it: a definition's name or one of these
MODULE, ALL, SCRIPT, STARTED, LOADED = "the module", "all definitions", "its script", "all and script", "being imported"
WHOLE = (MODULE, ALL, STARTED)
HOLE = "\0"  # in a string, what cannot be read off it
FILLED = "hole_"  # the same, where it must look like a name


class Found(NamedTuple):
    """What is reached: the hash of what it says, and the file that it stands in."""

    hash: str
    file: str


# -- files -------------------------------------------------------------------------------------------------------------


def snapshot(root: Path, packages: Collection[str] = ()) -> dict[str, bytes]:
    """The files that a walk may need, by path: code of ``packages`` (default: all at the top), and measured figures.

    A package that ``root`` lacks is taken from where this one stands: a course may use another's.
    """
    homes = {path.parent.name: base for base in (HERE, root) for path in sorted(base.glob("*/__init__.py"))}
    files = {path.relative_to(base).as_posix(): path for name, base in homes.items() if not packages or name in packages
             for path in sorted((base / name).rglob("*.py"))}  # fmt: skip
    files |= {f"{MEASURED}{path.name}": path for path in sorted((root / MEASURED).glob("*.json"))}
    return {name: path.read_bytes() for name, path in files.items()}


def hashed(raw: bytes) -> str:
    """Hash of a file; how JSON is laid out does not count."""
    with suppress(ValueError):
        raw = json.dumps(json.loads(raw)).encode()
    return hashlib.sha256(raw).hexdigest()[:12]


# -- trees -------------------------------------------------------------------------------------------------------------


def canonical(node: Any, special: Callable[[Any], str | None] = lambda node: None) -> str:
    """A syntax tree as text, without docstrings and positions; the same in every version of Python we support.

    ``ast.dump`` will not do: it prints empty fields in some versions and not in others. ``special`` may write a node
    in its own way; what it writes as "" is left out.
    """
    said = special(node)
    if said is not None:
        return said
    if isinstance(node, list):
        return "[" + ",".join(filter(None, (canonical(one, special) for one in node))) + "]"
    return _fields(node, special) if isinstance(node, ast.AST) else repr(node)


def _fields(node: ast.AST, special: Callable[[Any], str | None]) -> str:
    parts = []
    for name, value in ast.iter_fields(node):
        value = body(node) if name == "body" else value
        if value is not None and value != [] and name not in ("ctx", "type_comment", "type_ignores"):
            parts.append(f"{name}={canonical(value, special)}")
    return f"{type(node).__name__}({','.join(parts)})"


def body(node: Any) -> Any:
    """What stands in a module, class or function below its docstring."""
    documented = isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node, clean=False)
    return node.body[1:] if isinstance(documented, str) else node.body


def within(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes below, but for those in a scope of their own: of a function only that it is there."""
    for node in nodes:
        yield node
        if not isinstance(node, SCOPES):
            yield from within(ast.iter_child_nodes(node))


def bound(nodes: Iterable[ast.AST]) -> set[str]:
    """Names that statements bind, imports aside."""
    nodes = list(within(nodes))
    names = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    named = (*FUNCTIONS, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)
    names |= {node.name for node in nodes if isinstance(node, named) and node.name}
    freed = {name for node in nodes if isinstance(node, (ast.Global, ast.Nonlocal)) for name in node.names}
    return names - freed


def imported(nodes: Iterable[ast.AST], package: str = "") -> Iterator[tuple[str, str, str]]:
    """Of every import: the name that it binds ("*" for all), what that stands for, and what it loads."""
    for node in within(nodes):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                yield (alias.asname, alias.name, alias.name) if alias.asname else (first, first, alias.name)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                target = base if alias.name == "*" else f"{base}.{alias.name}"
                yield alias.asname or alias.name, target, target


def last_name(node: ast.AST) -> str:
    """``c`` of ``a.b.c`` and of ``a.b.c(...)``."""
    node = node.func if isinstance(node, ast.Call) else node
    return getattr(node, "attr", getattr(node, "id", ""))


def _typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and last_name(node.test) == "TYPE_CHECKING"


# -- modules -----------------------------------------------------------------------------------------------------------


@dataclass
class Module:
    """What stands at the top of a module, or of a script that is none (without name)."""

    name: str = ""
    package: str = ""  # that its relative imports start from
    file: str = ""
    definitions: dict[str, list[ast.stmt]] = field(default_factory=lambda: defaultdict(list))
    imports: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # name -> what it stands for
    stars: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    effects: list[ast.stmt] = field(default_factory=list)  # what importing it does, besides defining names
    script: list[ast.stmt] = field(default_factory=list)  # runs only if the module is started
    lazy: bool = False  # a facade, whose other names come from below

    def read(self, statements: Iterable[ast.stmt]) -> Module:
        for node in statements:
            typing = _typing_only(node)
            for name, target, load in imported(node.body if typing else [node], self.package):
                (self.stars if name == "*" else self.imports[name]).append(target)
                self.loads += [] if typing else [load]
            if typing:
                self.read(node.orelse)
            elif isinstance(node, ast.If) and "'__main__'" in canonical(node.test):
                self.script.append(node)
            elif not isinstance(node, (ast.Import, ast.ImportFrom)):
                self._define(node)
        return self

    def _define(self, node: ast.stmt) -> None:
        names = bound([node])
        for name in names:
            self.definitions[name].append(node)
        registered = {last_name(one) for one in getattr(node, "decorator_list", ())} - PURE
        changes = any(isinstance(part, (ast.Attribute, ast.Subscript)) and not isinstance(part.ctx, ast.Load)
                      for part in within([node]))  # fmt: skip
        if registered or changes or not names or not isinstance(node, SIMPLE):
            self.effects.append(node)


def module_name(file: str) -> str:
    """``a.b`` for a/b.py and for a/b/__init__.py."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def parse(file: str, source: bytes) -> Module:
    package = file.rpartition("/")[0].replace("/", ".")
    module = Module(module_name(file), package, file).read(body(ast.parse(source)))
    if file.endswith("/__init__.py") and module.definitions.pop("__getattr__", None):
        module.lazy = True  # how it finds them says as little as an import statement
        module.definitions.pop("__dir__", None)
    return module


class Packages:
    """All modules, and what a dotted name stands for in them."""

    def __init__(self, files: Iterable[tuple[str, bytes]]) -> None:
        found = [parse(name, source) for name, source in files]
        self.modules = {module.name: module for module in found}
        self.by_file = {module.file: module.name for module in found}
        self._read: dict[Reference, list[tuple[str, str, Reader]]] = {}

    def lookup(self, module: Module, name: str, seen: frozenset = frozenset()) -> set[Reference]:
        """What a name at the top of a module stands for; nothing if it is none of ours."""
        if (module.name, name) in seen:
            return set()
        seen |= {(module.name, name)}
        found = {(module.name, name)} if name in module.definitions else set()
        found = found.union(*(self.locate(target, seen) for target in module.imports.get(name, ())))
        below = f"{module.name}."
        if not found and below + name in self.modules:
            found = {(below + name, MODULE)}
        if not found:
            found = found.union(*(self.locate(f"{star}.{name}", seen, strict=False) for star in module.stars))
        if not found and module.lazy:
            found = {(one, name) for one, other in self.modules.items()
                     if one.startswith(below) and name in other.definitions}  # fmt: skip
        return found

    def locate(self, dotted: str, seen: frozenset = frozenset(), strict: bool = True) -> set[Reference]:
        first, *rest = dotted.split(".")
        found = {(first, MODULE)} if first in self.modules else set()
        for part in rest:
            found = self.attribute(found, part, seen, strict)
        return found

    def attribute(
        self, found: set[Reference], part: str, seen: frozenset = frozenset(), strict: bool = True
    ) -> set[Reference]:
        """``part`` of each module, or all of it if it has none; what is an attribute of a definition belongs to it."""
        result: set[Reference] = set()
        for name, what in found:
            hits = self.lookup(self.modules[name], part, seen) if what == MODULE else {(name, what)}
            unknown = {(name, ALL)} if strict and not part.startswith("__") else set()
            result |= hits or unknown
        return result

    def parents(self, dotted: str) -> list[str]:
        """The modules that are imported with a dotted name, from the top."""
        parts = dotted.split(".")
        names = (".".join(parts[: end + 1]) for end in range(len(parts)))
        return [name for name in names if name in self.modules]

    def loaded(self, names: Iterable[str]) -> list[Reference]:
        return [(one, LOADED) for name in names for one in self.parents(name)]

    def parts(self, name: str, what: str) -> Iterator[Reference]:
        """What a reference to a whole module leads to."""
        module = self.modules[name]
        yield from ((name, one) for one in module.definitions)
        if what == STARTED:
            yield name, SCRIPT
            yield from [(f"{name}.__main__", STARTED)] if f"{name}.__main__" in self.modules else []
        elif module.lazy:
            yield from ((one, ALL) for one in self.modules if one.startswith(f"{name}."))
        elif module.file.endswith("__init__.py"):
            yield from (one for targets in module.imports.values() for target in targets for one in self.locate(target))

    def read(self, name: str, what: str) -> list[tuple[str, str, Reader]]:
        """(name, text, reader) of a definition, or of each statement that an import runs."""
        if (name, what) not in self._read:
            module = self.modules[name]
            if what == LOADED:
                groups = [(_label(node), [node]) for node in module.effects]
            else:
                groups = [(what, module.script if what == SCRIPT else module.definitions[what])]
            readers = [(label, nodes, Reader(self, module)) for label, nodes in groups]
            self._read[name, what] = [(label, canonical(nodes, one.special), one) for label, nodes, one in readers]
        return self._read[name, what]


def _label(node: ast.AST) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return f"{ast.unparse(node.value.func)}()"
    return getattr(node, "name", type(node).__name__.lower())


# -- definitions -------------------------------------------------------------------------------------------------------


class Reader:
    """Writes nodes with every name as what it stands for, and notes what that refers to."""

    def __init__(self, packages: Packages, module: Module) -> None:
        self.packages, self.module = packages, module
        self.references: set[Reference] = set()
        self.loads: set[str] = set(() if module.name else module.loads)
        self.strings: set[str] = set()
        self._frames: list[tuple[set[str], dict[str, list[str]]]] = []  # names, imports of the functions around
        self._members: set[ast.AST] = set()  # annotated names of classes, which make a dataclass what it is

    def special(self, node: Any) -> str | None:
        match node:
            case ast.Import() | ast.ImportFrom():
                self.loads |= {load for _, _, load in imported([node], self.module.package)}
                return ""
            case ast.If() if _typing_only(node):
                return canonical(node.orelse, self.special) if node.orelse else ""
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                return self._function(node)
            case ast.ClassDef():
                self._members |= {one for one in node.body if isinstance(one, ast.AnnAssign)}
            case ast.AnnAssign():
                return self._annotated(node)
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                first = canonical(node.generators[0].iter, self.special)  # evaluated outside
                with self._frame(bound([one.target for one in node.generators])):
                    return first + _fields(node, self.special)
            case ast.Name() | ast.Attribute():
                return self._chain(node)
            case ast.Constant(value=str(value)):
                return self._string(value)
            case ast.JoinedStr():
                said = self._string(_template(node).replace(HOLE, FILLED)).replace(FILLED, "hole")
                return said + canonical([part for part in node.values if isinstance(part, ast.FormattedValue)],
                                        self.special)  # fmt: skip
            case ast.Call():
                return self._call(node)
            case [*_]:
                for flag, name in zip(node, node[1:], strict=False):  # ["-m", "package"]
                    if getattr(flag, "value", "") == "-m" and getattr(name, "value", "") in self.packages.modules:
                        self.references.add((name.value, STARTED))
        return None

    @contextmanager
    def _frame(self, names: set[str], imports: Mapping[str, list[str]] | None = None) -> Iterator[None]:
        self._frames.append((names, dict(imports or {})))
        yield
        self._frames.pop()

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> str:
        given = node.args
        outside = [given.defaults, given.kw_defaults, getattr(node, "decorator_list", [])]
        groups = [given.posonlyargs, given.args, given.kwonlyargs, [given.vararg], [given.kwarg]]
        arguments = [[one.arg for one in group if one] for group in groups]
        inside = node.body if isinstance(node.body, list) else [node.body]
        imports = defaultdict(list)
        for name, target, _ in imported(inside, self.module.package):
            imports[name].append(target)
        kind, name = type(node).__name__, getattr(node, "name", "")
        first = canonical(outside, self.special)
        with self._frame(bound(inside).union(*arguments), imports):
            return f"{kind}({name},{arguments},{first},{canonical(body(node), self.special)})"

    def _annotated(self, node: ast.AnnAssign) -> str:
        """``name: type = value``; the type counts in a class, and nobody is reached through it."""
        said = canonical([node.target, node.value], self.special)
        if node not in self._members:
            return f"Assign{said}" if node.value else ""
        before = set(self.references)
        annotation = canonical(node.annotation, self.special)
        self.references = before
        return f"AnnAssign{said}{annotation}"

    def _call(self, node: ast.Call) -> str | None:
        name = last_name(node)
        first = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        if name in ("globals", "locals", "vars") and not node.args and self.module.name:
            self.references.add((self.module.name, ALL))
        elif name in ("import_module", "__import__") and (not isinstance(first, str) or first.startswith(".")):
            below = f"{self.module.package}." if self.module.package else ""
            self.references |= {(one, ALL) for one in self.packages.modules if one.startswith(below)}
        elif name in LABELLED and isinstance(first, str) and not self.module.name:
            return canonical([node.func, node.args[1:], node.keywords], self.special)
        return None

    def _chain(self, node: ast.expr) -> str | None:
        """``a.b.c``, if it begins with a name."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        return f"Name({'.'.join(self._resolve(node.id, parts))})" if isinstance(node, ast.Name) else None

    def _resolve(self, name: str, rest: list[str]) -> list[str]:
        for names, imports in reversed(self._frames):
            if name in imports:
                return self._stands_for(imports[name], rest)
            if name in names:
                return [name, *rest]
        if name not in self.module.definitions and name in self.module.imports:
            return self._stands_for(self.module.imports[name], rest)
        if self.module.name:
            self.references |= self.packages.lookup(self.module, name)
        else:
            targets = (*self.module.imports.get(name, ()), *(f"{star}.{name}" for star in self.module.stars))
            self.references = self.references.union(*(self.packages.locate(one, strict=False) for one in targets))
        return [name, *rest]

    def _stands_for(self, targets: list[str], rest: list[str]) -> list[str]:
        """An imported name and its attributes: a definition's bare name; of a library, the whole dotted name."""
        found = set().union(*(self.packages.locate(target) for target in targets))
        if not found:
            return [targets[0], *rest]
        last, rest = targets[0].rpartition(".")[2], list(rest)
        while rest and any(what == MODULE for _, what in found):
            last = rest.pop(0)
            found = self.packages.attribute(found, last)
        self.references |= found
        shown = {MODULE if what == MODULE else last if what == ALL else what for _, what in found}
        return ["|".join(sorted(shown)) or last, *rest]

    def _string(self, value: str) -> str:
        if "import" in value:
            with suppress(SyntaxError, ValueError):  # most strings are prose
                tree = ast.parse(textwrap.dedent(value))
                if any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(tree)):
                    return self._script(tree)
        self.strings.add(value)
        if value in self.packages.by_file:
            return self._started(re.fullmatch(r"(?s)()(.*)", self.packages.by_file[value]))
        return repr(re.sub(r"^()([\w.]+\.\w+)$|(-m )([\w.]+\.\w+)", self._started, value))

    def _started(self, match: re.Match) -> str:
        before, name = [group for group in match.groups() if group is not None]
        known, hole, _ = name.partition(FILLED)
        modules = self.packages.parents(name)[-1:] if "." in known else []
        if hole and modules:
            modules = [one for one in self.packages.modules if one.startswith(known)]
        elif "." not in "".join(modules):
            return match[0]
        self.references |= {(one, STARTED) for one in modules}
        return before + MODULE

    def _script(self, tree: ast.Module) -> str:
        reader = Reader(self.packages, Module().read(tree.body))
        said = canonical(tree, reader.special)
        self.references |= reader.references
        self.loads |= reader.loads
        return said


# -- measured figures --------------------------------------------------------------------------------------------------


def figures(tree: ast.AST, strings: Iterable[str], files: Iterable[str]) -> set[str]:
    """The measured files that a lesson names: in a string, by ``*``, or in a string with holes.

    A hole is filled with the lesson's own strings; if none of them fits, with whatever makes the name of a file.
    """
    stems = {Path(file).stem: file for file in files if file.startswith(MEASURED)}
    said = {Path(one).name for one in strings if one}
    found = {stem for stem in stems for one in said if one in (stem, f"{stem}.json") or _globs(one, f"{stem}.json")}
    for node in ast.walk(tree):
        name = _template(node).rpartition("/")[2]
        if re.search(r"\w{4}", name):
            pattern = re.compile("(.*)".join(map(re.escape, name.removesuffix(".json").split(HOLE))))
            fits = {stem: match.groups() for stem in stems if (match := pattern.fullmatch(stem))}
            found |= {stem for stem, holes in fits.items() if said.issuperset(holes)} or set(fits)
    return {stems[stem] for stem in found}


def _globs(pattern: str, name: str) -> bool:
    return bool("*" in pattern and re.search(r"\w{4}", pattern) and fnmatch.fnmatchcase(name, pattern))


def _template(node: ast.AST) -> str:
    """A string as far as one can read it, ``HOLE`` where one cannot."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(_template, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _template(left) + _template(right)
    return HOLE


# -- the walk ----------------------------------------------------------------------------------------------------------


def find(
    files: Mapping[str, bytes], text: str, *, shown: Mapping[str, bytes] = MappingProxyType({}),
    not_followed: Collection[str] = (),
) -> dict[str, Found]:  # fmt: skip
    """All that a lesson reaches, by bare name; a name that stands for several has ``name~2`` and so on.

    Args:
        files: as ``snapshot`` gives them.
        text: the lesson's percent script, without solutions.
        shown: what else it shows, a quiz or a picture, by a name of its own.
        not_followed: modules that change nothing that is measured.
    """
    packages = _packages(frozenset((name, source) for name, source in files.items() if name.endswith(".py")))
    tree = ast.parse(text)
    lesson = Reader(packages, Module().read(body(tree)))
    found = {CELLS: {hashed(canonical(tree, lesson.special).encode()): ""}}
    strings = lesson.strings | {word for node in ast.walk(tree) for word in _split(node)}
    todo = [*lesson.references, *packages.loaded(lesson.loads)]
    seen: set[Reference] = set()
    while todo:
        name, what = one = todo.pop()
        if one in seen or name in not_followed:
            continue
        seen.add(one)
        if what in WHOLE:
            todo += packages.parts(name, what)
            continue
        todo += packages.loaded(packages.modules[name].loads) if what == LOADED else packages.loaded([name])
        for label, said, reader in packages.read(name, what):
            found.setdefault(label, {})[hashed(said.encode())] = packages.modules[name].file
            todo += [*reader.references, *packages.loaded(reader.loads)]
            strings |= {value for value in reader.strings if value.endswith(".json")}
    found |= {Path(file).name: {hashed(files[file]): file} for file in figures(tree, strings, files)}
    found |= {name: {hashed(raw): ""} for name, raw in shown.items()}
    return {name if number == 1 else f"{name}~{number}": Found(*one)
            for name, ones in sorted(found.items()) for number, one in enumerate(sorted(ones.items()), 1)}  # fmt: skip


@lru_cache(maxsize=4)  # a gate asks for every lesson in turn
def _packages(code: frozenset[tuple[str, bytes]]) -> Packages:
    return Packages(code)


def _split(node: ast.AST) -> list[str]:
    """The words of ``"a b c".split()``."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(words)), attr="split")):
            return words.split()
    return []


def why(stored: Mapping[str, str], now: Mapping[str, Found]) -> list[str]:
    """What differs between a ledger's definitions and those of now, a phrase each."""
    before, after = _by_name(stored), _by_name(now)
    phrases = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, {}), after.get(name, {})
        if old.keys() != new.keys():
            file = next((new[key] for key in new if key not in old), "")
            change = "has changed" if old and new else "is new" if new else "is gone"
            phrases.append(f"`{name}`{f' ({file})' if file else ''} {change}")
    return phrases


def _by_name(walk: Mapping[str, str | Found]) -> dict[str, dict[str, str]]:
    """{bare name: {hash: file}}: how those of one name are numbered says nothing."""
    result: dict[str, dict[str, str]] = {}
    for name, found in walk.items():
        key, file = found if isinstance(found, Found) else (found, "")
        result.setdefault(name.partition("~")[0], {})[key] = file
    return result
