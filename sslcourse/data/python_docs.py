"""Text of another kind, which everybody has: the documentation inside Python's own standard library.

It is split by module, never by passage. What this module does not do: run or import any of it; the files are read.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

MIN_WORDS = 8
HELD_OUT_SHARE = 0.15
NOT_THE_LIBRARY = ("test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "__pycache__")


def python_docs() -> dict[str, list[str]]:
    """Python's documentation as it ships with Python: {"train": [...], "held_out": [...]} paragraphs.

    The reference's topics (``pydoc_data``) and the docstrings of the standard library, read with ``ast``, nothing
    executed. Split by module or topic, so that no module stands on both sides. The text is that of *this* Python.

    Raises:
        ValueError: if this Python has no sources (some embedded ones have compiled files only).
    """
    split: dict[str, dict[str, None]] = {"train": {}, "held_out": {}}
    for name, text in _python_texts():
        number = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8
        side = "held_out" if number < HELD_OUT_SHARE else "train"
        for paragraph in text.split("\n\n"):
            words = paragraph.split()
            if len(words) >= MIN_WORDS and sum(word[0].isalpha() for word in words) > len(words) / 2:
                split[side][" ".join(words)] = None
    held_out = [text for text in split["held_out"] if text not in split["train"]]
    if not split["train"] or not held_out:
        raise ValueError("this Python has no sources of its standard library, so there are no docstrings to read")
    return {"train": list(split["train"]), "held_out": held_out}


def _python_texts() -> Iterator[tuple[str, str]]:
    """(topic or module, text), in a fixed order."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield f"topic {name}", topics[name]
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not set(parts) & set(NOT_THE_LIBRARY) and not parts[0].startswith(("pydoc_data", "config-")):
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):  # a template that only looks like Python
                continue
            for node in ast.walk(tree):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    yield parts[0].removesuffix(".py"), ast.get_docstring(node) or ""
