"""Makes a course out of lessons: builds and runs notebooks, grades exercises, keeps claims, and publishes the result.

It knows no subject. A course is a folder (``course``) whose lessons are percent scripts, each with its graders, claims
and quiz beside it; what a lesson needs while it runs is here:

    from coursekit import check, live_picture, plots, start
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "start": "lesson",
    "check": "checks",
    "Choice": "widgets",
    "Slider": "widgets",
    "Text": "widgets",
    "live_picture": "widgets",
}


def __getattr__(name: str) -> Any:
    """Looked up when asked for: grading a class needs no figures, and building no torch."""
    if name not in _WHERE:
        raise AttributeError(f"module 'coursekit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"coursekit.{_WHERE[name]}"), name)
