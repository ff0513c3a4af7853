"""The browser that ``make a11y`` and ``make keyboard`` look with: the machine's own Chromium."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# The sandbox of Chromium does not start as root, which is what CI is; the rest keeps it from asking for updates.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]  # fmt: skip


def missing() -> str:
    """What keeps us from looking, and the remedy; empty if nothing does."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "the package playwright is missing: call make, or install the extra 'browser'"
    executable = path()
    if not executable or not Path(executable).is_file():
        return f"no browser ({executable or ', '.join(BROWSERS)}): install Chromium, or set $CHROMIUM"
    return ""


def path() -> str | None:
    """Path of a Chromium: the one that $CHROMIUM names, or the first on the PATH."""
    return os.environ.get("CHROMIUM") or next((found for name in BROWSERS if (found := shutil.which(name))), None)
