"""Pictures with sliders, without a browser: what is displayed, what moves them, and what a broken one says."""

import base64
import json

import nbformat
import pytest
from nbclient import NotebookClient

from coursekit import gate, run
from coursekit.widgets import LIVE, Slider, corners, live_picture, panel

WIDE = Slider("GB/s", (1, 10, 100), start=10)
SHARE = Slider("overlap", (0.0, 0.5, 1.0), start=0.5)
ALT = "A line that rises."


def told(**values):
    """A stand-in for a picture: bytes that say what it was drawn from."""
    return json.dumps(values).encode()


def controls(box):
    return {control.description: control for control in box.children[:-2]}


def picture(box):
    return json.loads(bytes(box.children[-2].value))


def test_one_output_in_three_forms():
    _, bundle = panel(told, ALT, {"wide": WIDE, "share": SHARE})
    assert set(bundle) == {LIVE, "image/png", "text/plain"}
    assert json.loads(base64.b64decode(bundle["image/png"])) == {"wide": 10, "share": 0.5}
    assert bundle["text/plain"] == ALT
    assert bundle[LIVE]["model_id"]


def test_a_moved_slider_draws_anew_from_all_of_them():
    box, _ = panel(told, ALT, {"wide": WIDE, "share": SHARE})
    for value in (1, 100, 10):
        controls(box)["GB/s"].value = value
        assert picture(box) == {"wide": value, "share": 0.5}
    controls(box)["overlap"].value = 1.0
    assert picture(box) == {"wide": 10, "share": 1.0}


def test_start_and_both_ends_of_every_slider_are_tried():
    found = list(corners({"wide": WIDE, "share": SHARE}))
    assert found[0] == {"wide": 10, "share": 0.5}
    assert [one["wide"] for one in found[1:3]] == [1, 100]
    assert [one["share"] for one in found[3:]] == [0.0, 1.0]


@pytest.mark.parametrize("breaks_at", [1, 10, 100])
def test_a_picture_that_cannot_be_drawn_fails_where_the_cell_runs(breaks_at):
    def draw(wide):
        return told(wide=1 / (wide - breaks_at))

    with pytest.raises(ZeroDivisionError):
        live_picture(draw, alt=ALT, wide=WIDE)


def test_what_a_callback_raises_is_shown_and_goes_on():
    slider = Slider("GB/s", (1, 5, 10, 100), start=10)
    broken = {5}

    def draw(wide):
        if wide in broken:
            raise ArithmeticError("a <planted> error")
        return told(wide=wide)

    box, _ = panel(draw, ALT, {"wide": slider})
    shown, said = box.children[-2:]
    with pytest.raises(ArithmeticError):
        controls(box)["GB/s"].value = 5
    assert "ArithmeticError: a &lt;planted&gt; error" in said.value
    assert shown.layout.display == "none"  # an old picture would be taken for the new one
    controls(box)["GB/s"].value = 1
    assert (said.value, shown.layout.display, picture(box)) == ("", None, {"wide": 1})


def test_a_figure_is_drawn_as_png_and_closed():
    import matplotlib.pyplot as plt

    def draw(wide):
        figure, axis = plt.subplots()
        axis.plot([0, wide])
        return figure

    before = plt.get_fignums()
    _, bundle = panel(draw, ALT, {"wide": WIDE})
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert plt.get_fignums() == before


def test_the_keyboard_and_a_reader_find_every_slider():
    """A SelectionSlider obeys the arrow keys; its description is its label."""
    box, _ = panel(told, ALT, {"wide": WIDE})
    (control,) = controls(box).values()
    assert type(control).__name__ == "SelectionSlider"
    assert (control.description, control.readout, control.disabled) == ("GB/s", True, False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Slider(" ", (1, 2), 1), "label is empty"),
        (lambda: Slider("GB/s", (1,), 1), "leave nothing to move"),
        (lambda: Slider("GB/s", (1, 2), 3), "start=3"),
        (lambda: live_picture(told, alt=" ", wide=WIDE), "alt is empty"),
        (lambda: live_picture(told, alt=ALT), "there is no control"),
        (lambda: live_picture(lambda wide: b"", alt=ALT, wide=WIDE), "an empty picture"),
    ],
)
def test_what_cannot_be_shown_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_something_that_is_no_picture_is_refused():
    with pytest.raises(TypeError, match="gave int; return a matplotlib figure"):
        live_picture(lambda wide: wide, alt=ALT, wide=WIDE)


@pytest.fixture(scope="module")
def executed():
    """A notebook with one slider, run by a kernel, as ``python -m sslcourse notebooks`` does it."""
    code = (
        "from coursekit.widgets import Slider, live_picture\n"
        "live_picture(lambda wide: b'PNG', alt='A line.', wide=Slider('GB/s', (1, 2), 1))"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    return notebook


def test_a_kernel_displays_it_once_and_quietly(executed):
    (output,) = executed.cells[0].outputs
    assert output.output_type == "display_data"
    assert set(output.data) == {LIVE, "image/png", "text/plain"}
    assert output.metadata["image/png"]["alt"] == "A line."


def test_what_is_stored_is_a_picture_without_a_widget(executed):
    """A widget's name is another one at every run, and nothing answers to it in a notebook that is only read."""
    assert any("widget" in line for line in gate.stains(executed))
    stored = run.strip(nbformat.from_dict(executed))
    assert "widgets" not in stored.metadata
    (output,) = stored.cells[0].outputs
    assert set(output.data) == {"image/png", "text/plain"}
    assert gate.stains(stored) == []


