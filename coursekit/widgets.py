"""A picture with controls that is still a picture where nothing is alive.

    live_picture(draw, alt="what to see", bandwidth=Slider("GB/s", (1, 3, 10, 30, 100), start=30))

``draw(bandwidth=30)`` gives a figure, or the bytes of a PNG, and depends on its arguments alone. What is displayed is
one output in three forms: the controls for who runs the notebook, the picture at their start for who reads it (on
GitHub, on paper, before the first run), and its alt text for who hears it. A control is a ``Slider``, a ``Choice`` or a
line of ``Text``; all obey the keyboard.

What this module does not do: it keeps no state of widgets in a notebook (``run.strip`` sees to that).
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from coursekit import plots

LIVE = "application/vnd.jupyter.widget-view+json"  # as in `build`, which a lesson does not import


@dataclass(frozen=True)
class Slider:
    """A slider over some values, in their order, which need not be evenly spaced.

    Raises:
        ValueError: for a label that is empty, fewer than two values, or a start that is none of them.
    """

    label: str  # with the unit
    values: Sequence[float]
    start: float

    def __post_init__(self) -> None:
        if not self.label.strip():
            raise ValueError("label is empty: name what the slider moves, with its unit")
        if len(self.values) < 2:
            raise ValueError(f"values={self.values!r} leave nothing to move: give two or more")
        if self.start not in self.values:
            raise ValueError(f"start={self.start!r} is not among values={self.values!r}; choose one of them")

    def tried(self) -> tuple[float, ...]:
        """The values at which a picture is drawn before anybody moves it."""
        return (self.values[0], self.values[-1])

    def control(self, ipywidgets: Any) -> Any:
        """Steps through the values, by mouse and by arrow keys, and names the one it stands at."""
        return ipywidgets.SelectionSlider(
            options=[(f"{value:g}", value) for value in self.values], value=self.start, description=self.label,
            style={"description_width": "initial"}, layout={"width": "100%", "max_width": "32em"},
            continuous_update=False,  # draw where it is let go, not at every value it passes
        )  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """One of several names.

    Raises:
        ValueError: as ``Slider``.
    """

    label: str
    values: Sequence[str]
    start: str

    __post_init__ = Slider.__post_init__

    def tried(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(self.values)

    def control(self, ipywidgets: Any) -> Any:
        """A list that unfolds."""
        return ipywidgets.Dropdown(options=list(self.values), value=self.start, description=self.label,
                                   style={"description_width": "initial"})  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A line that the reader writes.

    Raises:
        ValueError: for a label that is empty, or without something strange to try.
    """

    label: str
    start: str
    strange: Sequence[str]  # what somebody will write some day: nothing, too much, another script

    def __post_init__(self) -> None:
        if not self.label.strip():
            raise ValueError("label is empty: name what is to be written")
        if not self.strange:
            raise ValueError("strange is empty: give what a reader might write, so that it is tried")

    def tried(self) -> tuple[str, ...]:
        """What a reader might write."""
        return tuple(self.strange)

    def control(self, ipywidgets: Any) -> Any:
        """Drawn when Enter is pressed or the line is left."""
        return ipywidgets.Text(
            value=self.start, description=self.label, continuous_update=False,
            style={"description_width": "initial"}, layout={"width": "100%", "max_width": "48em"},
        )  # fmt: skip


Control = Slider | Choice | Text


def live_picture(draw: Callable[..., Any], *, alt: str, **controls: Control) -> None:
    """Display what ``draw`` gives, with a control for each of its arguments.

    Args:
        draw: called with a value for each control, by name; gives a matplotlib figure or a PNG's bytes.
        alt: a sentence that says what to see, at the start and when a control is moved.

    Raises:
        ValueError: if there is no alt text, or no control.
        Exception: whatever ``draw`` raises, at the start or at the values that are tried first.
    """
    from IPython.display import display

    _, bundle = panel(draw, alt, controls)
    display(bundle, raw=True, metadata={"image/png": {"alt": alt}})


def panel(draw: Callable[..., Any], alt: str, given: dict[str, Control]) -> tuple[Any, dict[str, Any]]:
    """(the box of controls and picture, what is displayed of it in three forms).

    A picture that fails after a control was moved is replaced by the error's words, and the error goes on: a kernel
    shows nobody what a callback raises.
    """
    import ipywidgets

    if not alt.strip():
        raise ValueError("alt is empty: write a sentence that says what to see")
    if not given:
        raise ValueError("there is no control; for a picture alone there is plots.show")
    first, *others = [drawn(draw, values) for values in corners(given)]  # a broken end is found here, not later
    if not (first and all(others)):
        raise ValueError("draw gave an empty picture")
    controls = {name: one.control(ipywidgets) for name, one in given.items()}
    picture = ipywidgets.Image(value=first, format="png", layout={"max_width": "100%"})
    said = ipywidgets.HTML()

    def redraw(_: Any = None) -> None:
        try:
            picture.value = drawn(draw, {name: control.value for name, control in controls.items()})
            picture.layout.display, said.value = None, ""
        except Exception as error:
            picture.layout.display = "none"
            said.value = f"<b>No picture</b>: {html.escape(f'{type(error).__name__}: {error}')}"
            raise

    for control in controls.values():
        control.observe(redraw, names="value")
    box = ipywidgets.VBox([*controls.values(), picture, said])
    live = box._repr_mimebundle_()[LIVE]
    return box, {LIVE: live, "image/png": base64.b64encode(first).decode(), "text/plain": alt}


def corners(given: dict[str, Control]) -> Iterator[dict[str, Any]]:
    """All controls at their start; then one after the other at the values that it tries."""
    start = {name: one.start for name, one in given.items()}
    yield start
    for name, one in given.items():
        for value in one.tried():
            yield {**start, name: value}


def drawn(draw: Callable[..., Any], values: dict[str, float]) -> bytes:
    """The PNG that ``draw`` gives for these values; a figure is closed, or Jupyter would show it once more.

    Raises:
        TypeError: if it gives neither a figure nor bytes.
    """
    given = draw(**values)
    if isinstance(given, bytes):
        return given
    if not hasattr(given, "savefig"):
        raise TypeError(f"draw({values}) gave {type(given).__name__}; return a matplotlib figure, or a PNG's bytes")
    import matplotlib.pyplot as plt

    plt.close(given)
    return plots.png(given)
