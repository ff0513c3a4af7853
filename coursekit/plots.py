"""Figures that everybody can read: colours told apart without colour vision, labelled axes, a sentence of alt text.

The colours have the hues of Okabe and Ito's (https://jfly.uni-koeln.de/color/), two of whose are too pale for a line on
white, and lightnesses that keep them apart; ``tests/test_plots.py`` computes both. What this module does not do: draw.
Lessons do, with matplotlib, and hand the figure to ``show``.
"""

from __future__ import annotations

import base64
import io
import logging
from typing import Any

COLOURS = ("#0E58FF", "#D47D00", "#0AA969", "#5F2A0A", "#B87AAF", "#083D57", "#000000")


def use_style() -> None:
    """Set the course's style for every later figure."""
    # The first import on a machine builds a cache of fonts and says so on stderr; no reader needs to know.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    import matplotlib as mpl

    mpl.rcParams.update({
        "axes.prop_cycle": mpl.cycler(color=COLOURS),
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.use": True,
        "figure.figsize": (7, 4),
        "figure.dpi": 100,
        "font.size": 11,
        "grid.alpha": 0.3,
        "image.cmap": "cividis",
        "lines.linewidth": 2,
        "svg.hashsalt": "sslcourse",
    })  # fmt: skip


def show(figure: Any, *, alt: str) -> None:
    """Display a figure below the cell, once, as a PNG with its alt text.

    ``alt`` is a sentence that says what to see. In a terminal it is what is printed.

    Raises:
        ValueError: if there is no alt text, or if no axis of the figure has a label.
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    if not alt.strip():
        raise ValueError("alt is empty: write a sentence that says what to see")
    axes = [axis for axis in figure.axes if axis.axison]
    if axes and not any(axis.get_xlabel() or axis.get_ylabel() for axis in axes):
        raise ValueError("the figure has no axis label: name what each axis shows, with its unit")
    plt.close(figure)  # or Jupyter shows it a second time, without its alt text
    bundle = {"image/png": base64.b64encode(png(figure)).decode(), "text/plain": alt}
    display(bundle, raw=True, metadata={"image/png": {"alt": alt}})


def png(figure: Any) -> bytes:
    """The picture's bytes; equal for equal figures, because no version is written into it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
