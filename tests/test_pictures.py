"""What lessons draw of a sentence: anything that a reader writes is drawn, without a warning, the same each time."""

import warnings

import pytest

from coursekit import plots
from sslcourse.studies.pictures import GAP, LINE, fills_and_attention, legible, scored_sentence

STRANGE = ["$x_{", "$x_1$", "東", "नमस्ते", "\u202e", "\n", "", "a" * 90, "##ß", "[MASK]"]


@pytest.fixture(autouse=True)
def a_warning_is_an_error():
    """One would end up in the notebook that is stored."""
    plots.use_style()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def drawn(figure):
    import matplotlib.pyplot as plt

    plt.close(figure)
    return plots.png(figure)


def words(figure):
    """Everything that can be read in it."""
    import matplotlib.text

    return [one.get_text() for one in figure.findobj(matplotlib.text.Text) if one.get_text()]


def test_a_token_is_cut_and_shows_a_gap_where_the_font_has_nothing():
    assert legible("mask") == "mask"
    assert legible("hydroelectricity") == "hydroelectr…"
    assert legible("a東b") == f"a{GAP}b"
    assert legible("a\nb") == f"a{GAP}b"


def sentence(tokens, kinds=None, title="A title."):
    kinds = kinds or ["MRK"[i % 3] for i in range(len(tokens))]
    return scored_sentence(tokens, tokens, kinds, [float(i % 12) for i in range(len(tokens))], title=title)


@pytest.mark.parametrize("tokens", [[], ["one"], STRANGE, ["word"] * LINE, ["word"] * (LINE + 1)], ids=len)
def test_any_sentence_is_drawn(tokens):
    assert drawn(sentence(tokens)).startswith(b"\x89PNG")
    assert drawn(sentence(tokens)) == drawn(sentence(tokens))


def test_a_scored_token_has_a_letter_and_a_bar_and_another_has_neither():
    figure = sentence(["the", "great", "rift"], ["", "M", ""])
    (axis,) = figure.axes
    assert [bar.get_height() for bar in axis.patches] == [1.0]
    assert axis.patches[0].get_hatch()
    assert [text for text in words(figure) if text[:2] in ("M ", "R ", "K ")] == ["M 1.0"]
    drawn(figure)


def test_a_title_that_quotes_the_reader_is_drawn_as_it_is():
    for title in STRANGE:
        assert drawn(sentence(["a"], title=f"hidden: {title}")).startswith(b"\x89PNG")


def attention(tokens, place):
    weights = [[1 / len(tokens)] * len(tokens) for _ in tokens]
    fills = [] if place is None else [(token, 0.2) for token in STRANGE[:5]]
    return fills_and_attention(tokens, weights, place, fills, title="A title.", head="layer 1, head 1")


@pytest.mark.parametrize("place", [None, 0, 2])
def test_any_row_is_drawn_with_and_without_a_blank(place):
    for tokens in (["[CLS]", "[SEP]", "[UNK]"], STRANGE, ["word"] * 22):
        assert drawn(attention(tokens, place)) == drawn(attention(tokens, place))


def test_the_blank_is_told_by_a_mark_and_a_frame():
    figure = attention(["[CLS]", "[MASK]", "[SEP]"], 1)
    assert "▸ [MASK]" in words(figure)
    assert len(figure.axes[1].patches) == 1
    assert words(figure).count("33") == 9  # a weight is written, not told by its shade alone
    drawn(figure)
    without = attention(["[CLS]", "[SEP]"], None)
    assert "no blank to fill" in words(without)
    assert not without.axes[1].patches
    drawn(without)
