"""The palette, computed: seen on white by everybody, and told apart by eyes of four kinds."""

from itertools import combinations

import numpy as np
import pytest

from coursekit.plots import COLOURS

CONTRAST = 3.0  # WCAG 2.2, success criterion 1.4.11: graphical objects
DISTANCE = 15.0  # in CIELAB, where 2.3 is just noticeable; thin lines and small marks need more

# Machado, Oliveira, Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency", full
EYES = {
    "all three cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.412456, 0.357576, 0.180438], [0.212673, 0.715152, 0.072175], [0.019334, 0.119192, 0.950304]])
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")


def linear(colour: str) -> np.ndarray:
    """sRGB as amounts of light, 0 to 1."""
    value = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(colour: str, ground: str = "#FFFFFF") -> float:
    dark, light = sorted(float(linear(one) @ XYZ[1]) for one in (colour, ground))
    return (light + 0.05) / (dark + 0.05)


def lab(light: np.ndarray) -> np.ndarray:
    ratio = XYZ @ np.clip(light, 0, 1) / XYZ.sum(1)  # relative to white
    root = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def closest(colours: tuple[str, ...], eye: str) -> float:
    seen = [lab(np.array(EYES[eye]) @ linear(colour)) for colour in colours]
    return min(float(np.linalg.norm(one - other)) for one, other in combinations(seen, 2))


@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_is_seen_on_white(colour):
    assert contrast(colour) >= CONTRAST


@pytest.mark.parametrize("eye", EYES)
def test_any_two_colours_are_told_apart(eye):
    assert closest(COLOURS, eye) >= DISTANCE


def test_the_measures_agree_with_known_values_and_catch_bad_palettes():
    assert contrast("#000000") == pytest.approx(21)
    assert contrast("#767676") == pytest.approx(4.54, abs=0.01)  # WCAG's own example of what just passes for text
    assert lab(linear("#FFFFFF")) == pytest.approx([100, 0, 0], abs=0.01)
    assert min(map(contrast, OKABE_ITO)) < CONTRAST
    assert closest(("#FF0000", "#6B6000"), "protanopia") < DISTANCE < closest(("#FF0000", "#6B6000"), "all three cones")
