"""A sentence and its masks, and a blank with what was read to fill it, drawn.

    scored_sentence(text, seen, kinds, losses, title="...")
    fills_and_attention(tokens, weights, place, fills, title="...")

Tokens come from what a reader writes, so anything may stand in them. They are drawn as they are, never read as
formulas; one that is long is cut, and a character that the font lacks becomes ``GAP``.

What this module does not do: mask, or ask a model. The lessons do, in their own cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE = 11  # tokens side by side
GAP = "▯"  # in place of a character that cannot be drawn
KINDS = {  # letter: what is said of it, colour, hatching
    "M": ("M: [MASK] is shown", "C0", "///"),
    "R": ("R: a random token is shown", "C1", "xxx"),
    "K": ("K: the token is kept", "C2", "..."),
}
GREY = "0.93"


@cache
def _font() -> Any:
    from matplotlib import font_manager, ft2font

    return ft2font.FT2Font(font_manager.findfont(font_manager.FontProperties()))


def legible(token: str, most: int = 12) -> str:
    """The token as it can be drawn: at most ``most`` characters, ``GAP`` for one that the font lacks."""
    short = token if len(token) <= most else token[: most - 1] + "…"
    return "".join(char if char.isprintable() and _font().get_char_index(ord(char)) else GAP for char in short)


def _title(figure: Figure, title: str) -> None:
    """It may quote what a reader wrote."""
    lines = [legible(line, most=110) for line in title.split("\n")]
    figure.suptitle("\n".join(lines), fontsize=11, parse_math=False)


def scored_sentence(
    text: Sequence[str], seen: Sequence[str], kinds: Sequence[str], losses: Sequence[float], *, title: str
) -> Figure:
    """A sentence in lines: each token, what the model sees in its place, and what it adds to the loss.

    Args:
        text: the tokens as they were written.
        seen: what stands there in the input.
        kinds: a letter of ``KINDS`` where a token is scored, "" where it is not.
        losses: in nats; drawn where a token is scored, since elsewhere nothing is added.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    lines = range(0, max(len(text), 1), LINE)
    figure, axes = plt.subplots(len(lines), 1, figsize=(11, 1.1 + 1.75 * len(lines)), squeeze=False)
    top = 1.25 * max([10.0, *losses])
    for axis, first in zip(axes[:, 0], lines, strict=True):
        for place in range(first, min(first + LINE, len(text))):
            _column(axis, place - first, text[place], seen[place], kinds[place], losses[place], top)
        axis.set(xlim=(-0.6, LINE - 0.4), ylim=(-0.75 * top, top), ylabel="loss (nats)", yticks=[0, 5, 10])
        axis.set_xticks([])
        axis.spines["bottom"].set_visible(False)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.text(1.0, -0.2 * top, "seen", transform=axis.get_yaxis_transform(), va="center", fontsize=8)
        axis.text(1.0, -0.55 * top, "text", transform=axis.get_yaxis_transform(), va="center", fontsize=8)
    keys = [Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=says)
            for says, colour, hatch in KINDS.values()]  # fmt: skip
    keys.append(Patch(facecolor=GREY, edgecolor="0.6", label="no letter: not scored, adds nothing"))
    figure.legend(handles=keys, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    _title(figure, title)
    return figure


def _column(axis: Any, x: int, text: str, seen: str, kind: str, loss: float, top: float) -> None:
    """One token: its bar if it is scored, below it what is seen, and what was written."""
    colour = KINDS[kind][1] if kind else "0.6"
    box = {"boxstyle": "round,pad=0.25", "facecolor": "white" if kind else GREY, "edgecolor": colour,
           "linewidth": 2.0 if kind else 0.8}  # fmt: skip
    plain = {"ha": "center", "va": "center", "fontsize": 8.5, "parse_math": False}
    if kind:
        axis.bar(x, loss, width=0.5, color=colour, hatch=KINDS[kind][2], edgecolor="white")
        axis.text(x, loss + 0.02 * top, f"{kind} {loss:.1f}", ha="center", va="bottom", fontsize=9, weight="bold")
    axis.text(x, -0.2 * top, legible(seen), bbox=box, **plain)
    axis.text(x, -0.55 * top, legible(text), **plain | {"color": "black" if kind else "0.35"})


def fills_and_attention(
    tokens: Sequence[str],
    weights: Sequence[Sequence[float]],
    place: int | None,
    fills: Sequence[tuple[str, float]],
    *,
    title: str,
    head: str,
) -> Figure:
    """Left: what the model would put at ``place``; right: which token reads which in one head of attention.

    Args:
        weights: [query, key], each row summing to 1.
        place: the position of the blank, None if there is none; then ``title`` says what to do.
        fills: (token, probability), the most probable first.
        head: what is said above the table.
    """
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.4), width_ratios=[1, 1.7])
    if place is None:
        left.axis("off")
        left.text(0.5, 0.5, "no blank to fill", ha="center", va="center", transform=left.transAxes)
    else:
        bars = left.barh(range(len(fills)), [100 * share for _, share in fills])
        left.bar_label(bars, [f"{100 * share:.1f} %" for _, share in fills], padding=3)
        left.set_yticks(range(len(fills)), [legible(token) for token, _ in fills], parse_math=False)
        left.invert_yaxis()
        left.grid(axis="y", visible=False)
        left.set(xlabel="probability (%)", ylabel="most probable fills", xlim=(0, 125), xticks=range(0, 101, 25))
    _attention(right, tokens, weights, place)
    right.set_title(head, fontsize=11)
    _title(figure, title)
    return figure


def _attention(axis: Any, tokens: Sequence[str], weights: Sequence[Sequence[float]], place: int | None) -> None:
    """A square a pair, its weight in per cent where it is 10 or more; the blank's row in a frame."""
    from matplotlib.patches import Rectangle

    axis.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for query, row in enumerate(weights):
        for key, weight in enumerate(row):
            if weight >= 0.1:
                axis.text(key, query, f"{100 * weight:.0f}", ha="center", va="center", fontsize=7,
                          color="white" if weight > 0.6 else "black")  # fmt: skip
    names = [legible(token) for token in tokens]
    reads = [f"▸ {name}" if query == place else name for query, name in enumerate(names)]
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8, parse_math=False)
    axis.set_yticks(range(len(names)), reads, fontsize=8, parse_math=False)
    axis.set(xlabel="token that is read (weight in %)", ylabel="token that reads")
    axis.grid(False)
    if place is not None:
        axis.add_patch(Rectangle((-0.5, place - 0.5), len(names), 1, fill=False, edgecolor="C3", linewidth=2))
