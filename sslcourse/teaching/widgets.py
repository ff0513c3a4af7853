"""A picture with sliders that is still a picture where nothing is alive.

    slider_picture(draw, alt="what to see", bandwidth=Slider("GB/s", (1, 3, 10, 30, 100), start=30))

``draw(bandwidth=30)`` gives a figure, or the bytes of a PNG, and depends on its arguments alone. What is displayed is
one output in three forms: the sliders for who runs the notebook, the picture at the sliders' start for who reads it
(on GitHub, on paper, before the first run), and its alt text for who hears it. The sliders obey the keyboard.

What this module does not do: it keeps no state of widgets in a notebook (``run.strip`` sees to that).
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sslcourse.teaching import plots

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


def slider_picture(draw: Callable[..., Any], *, alt: str, **sliders: Slider) -> None:
    """Display what ``draw`` gives, with a slider for each of its arguments.

    Args:
        draw: called with a value for each slider, by name; gives a matplotlib figure or a PNG's bytes.
        alt: a sentence that says what to see, at the start and when a slider is moved.

    Raises:
        ValueError: if there is no alt text, or no slider.
        Exception: whatever ``draw`` raises, at the start or at either end of a slider.
    """
    from IPython.display import display

    _, bundle = panel(draw, alt, sliders)
    display(bundle, raw=True, metadata={"image/png": {"alt": alt}})


def panel(draw: Callable[..., Any], alt: str, sliders: dict[str, Slider]) -> tuple[Any, dict[str, Any]]:
    """(the box of sliders and picture, what is displayed of it in three forms).

    A picture that fails after a slider was moved is replaced by the error's words, and the error goes on: a kernel
    shows nobody what a callback raises.
    """
    import ipywidgets

    if not alt.strip():
        raise ValueError("alt is empty: write a sentence that says what to see")
    if not sliders:
        raise ValueError("there is no slider; for a picture alone there is plots.show")
    first, *others = [drawn(draw, values) for values in corners(sliders)]  # a broken end is found here, not later
    if not (first and all(others)):
        raise ValueError("draw gave an empty picture")
    controls = {name: _control(ipywidgets, slider) for name, slider in sliders.items()}
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


def corners(sliders: dict[str, Slider]) -> Iterator[dict[str, float]]:
    """All sliders at their start; then one after the other at its first and its last value."""
    start = {name: slider.start for name, slider in sliders.items()}
    yield start
    for name, slider in sliders.items():
        for value in (slider.values[0], slider.values[-1]):
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


def _control(ipywidgets: Any, slider: Slider) -> Any:
    """A slider that steps through the values, by mouse and by arrow keys, and names the one it stands at."""
    return ipywidgets.SelectionSlider(
        options=[(f"{value:g}", value) for value in slider.values], value=slider.start, description=slider.label,
        style={"description_width": "initial"}, layout={"width": "100%", "max_width": "32em"},
        continuous_update=False,  # draw where it is let go, not at every value it passes
    )  # fmt: skip
