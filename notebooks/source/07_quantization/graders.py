"""Graders: an affine grid, a product without its zero point, smoothing factors, a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from coursekit.checks import Answer, Rng, Wrong, close, grader, true

QUANTIZES = ("quantize_per_tensor", "quantize_per_tensor_dynamic", "fake_quantize_per_tensor_affine")


@grader("affine_int8", forbidden=QUANTIZES)
def affine_int8(answer: Answer, rng: Rng) -> None:
    """x -> (values, scale, zero_point) of an affine grid from -128 to 127."""
    planted = [
        (torch.tensor([0.0, 255.0, 100.5, 101.5]), "ties go to the even number"),
        (torch.tensor([-255.0, -1.0, 0.0]), "a range that ends at 0"),
        (torch.tensor([51.0, 102.0]), "0 belongs to the range, also where all numbers are positive"),
        (torch.tensor([-51.0, -102.0]), "0 belongs to the range, also where all numbers are negative"),
        (torch.tensor([[-1.0], [3.0]]), "any shape"),
        (torch.tensor(3.0), "any shape, a single number too"),
        (torch.tensor([-1e-9, 0.5e-9, 2e-9]), "small numbers have a small scale"),
        (torch.tensor([-64.3, 0.0, 190.7]), "the zero point is rounded to the nearest, not cut off"),
        (torch.tensor([-101.0, -1.5, -0.5, 0.5, 1.5, 2.5, 154.0]), "ties go to the even number, and before the shift"),
        (torch.tensor([-127.5, 0.0, 3.0, 127.5]), "ties go to the even number, also of the zero point"),
    ]
    for x, rule in planted:
        _affine(answer, x, rule)
    for _ in range(8):
        shape = [rng.integer(2, 6) for _ in range(rng.integer(1, 3))]
        x = rng.normal(*shape) * rng.python.choice([1e-3, 1.0, 50.0]) + rng.python.choice([0.0, 3.0, -2.0])
        _affine(answer, x, "check the docstring")


def _affine(answer: Answer, x: Tensor, rule: str) -> None:
    got = answer(x.clone())
    true(isinstance(got, (tuple, list)) and len(got) == 3, "return three things: values, scale, zero_point")
    values, scale, zero_point = got
    true(isinstance(values, Tensor), f"values should be a tensor, got {type(values).__name__}")
    true(values.dtype == torch.int8, f"values has dtype={values.dtype}; keep whole numbers of eight bits, torch.int8")
    true(values.shape == x.shape, f"values has shape {tuple(values.shape)}, expected {tuple(x.shape)}")
    case = f"({rule}) x={_short(x)}"
    want_scale, want_zero, want = _affine_truth(x)
    exact = rule.startswith("ties")  # there the scale is 1, and no rounding of x / scale leaves a doubt
    _scale(scale, want_scale, x, case)
    _zero_point(zero_point, want_zero, x, want_scale, case, exact)
    # x / scale may be computed in fp32 or fp64, and the scale has its own last digit: near a tie both sides are right
    place = x.double() / want_scale
    tie = (place - place.floor() - 0.5).abs() < 1e-4 * place.abs().clamp(min=1)
    gap = (values.int() - want.int()).abs()
    wrong = (gap > 0) & (~tie | exact | (gap > 1))
    if bool(wrong.any()):
        at = tuple(int(i) for i in wrong.nonzero()[0])
        hint = _value_hint(values, want, x, want_scale, want_zero)
        raise Wrong(f"{hint}{case}: at {list(at)} the number {float(x[at]):.6g} becomes {int(values[at])}, expected "
                    f"{int(want[at])} (scale {want_scale:.6g}, zero point {want_zero})")  # fmt: skip


def _affine_truth(x: Tensor) -> tuple[float, int, Tensor]:
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / 255
    zero = max(-128, min(127, round(-128 - low / scale)))
    return scale, zero, (torch.round(x / scale) + zero).clamp(-128, 127).to(torch.int8)


def _scale(scale: Any, want: float, x: Tensor, case: str) -> None:
    low, high = float(x.min()), float(x.max())
    close(scale, want, f"{case}: the scale", rtol=1e-4, atol=0.0, mistakes={
        "the range must cover 0, so that 0 is exact; yours goes from x.min() to x.max()": (high - low) / 255,
        "256 numbers have 255 steps between them: divide by 255": (max(high, 0.0) - min(low, 0.0)) / 256,
        "that is the scale of a symmetric grid; the affine one divides the whole range by 255":
            max(abs(low), abs(high)) / 127,
        "255 steps lie between -128 and 127, not 127": (max(high, 0.0) - min(low, 0.0)) / 127,
    })  # fmt: skip
    true(isinstance(scale, float), f"the scale is a {type(scale).__name__}; return a Python float")


def _zero_point(zero: Any, want: int, x: Tensor, scale: float, case: str, exact: bool) -> None:
    try:
        number = float(zero)
    except (TypeError, ValueError, RuntimeError) as error:
        raise Wrong(f"zero_point should be a whole number, got {type(zero).__name__}") from error
    true(number == int(number), f"zero_point is {number}; it must be a whole number, so that 0 is exact: round it")
    true(isinstance(zero, int), f"zero_point is a {type(zero).__name__}; return a Python int")
    low = min(float(x.min()), 0.0)
    if int(number) == round(-low / scale) and want != int(number):
        raise Wrong(f"{case}: zero_point is {int(number)}, for a grid from 0 to 255; ours goes from -128 to 127")
    if int(number) == -want and want != 0:
        raise Wrong(f"{case}: zero_point is {int(number)}, expected {want}: the sign is wrong")
    near = -128 - low / scale
    doubt = abs(near - int(near) - (0.5 if near >= 0 else -0.5)) < 1e-3  # a tie, to within fp32
    true(int(number) == want or (doubt and not exact and abs(int(number) - want) == 1),
         f"{case}: zero_point is {int(number)}, expected {want}, the number that 0 falls on: round(-128 - low/scale)")


def _value_hint(values: Tensor, want: Tensor, x: Tensor, scale: float, zero: int) -> str:
    level = x / scale
    mistakes = {
        "the bits behind the point were cut off; take the nearest whole number; ": torch.trunc(level) + zero,
        "the zero point was added before rounding, which moves the ties; ": torch.round(level + zero),
        "everything was rounded down; take the nearest whole number; ": torch.floor(level) + zero,
        "ties went up; they go to the even number; ": torch.floor(level + 0.5) + zero,
        "ties went away from zero; they go to the even number; ": level.sign() * (level.abs() + 0.5).floor() + zero,
        "the sum was cut off; round x / scale to the nearest whole number first; ": torch.trunc(level + zero),
        "the zero point was not added; ": torch.round(level),
        "the zero point was subtracted; add it; ": torch.round(level) - zero,
    }
    wrapped = (torch.round(level) + zero).to(torch.int32).remainder(256)
    wrapped = torch.where(wrapped > 127, wrapped - 256, wrapped)
    for hint, other in mistakes.items():
        if torch.equal(values.int(), other.clamp(-128, 127).int()) and not torch.equal(values, want):
            return hint
    if torch.equal(values.int(), wrapped) and not torch.equal(values, want):
        return "a number beyond 127 wrapped round to the other end; clamp before you convert to int8; "
    return ""


def _short(x: Tensor) -> str:
    numbers = ", ".join(f"{number:.4g}" for number in x.flatten()[:6].tolist())
    return f"[{numbers}{', ...' if x.numel() > 6 else ''}]"


@grader("affine_product", forbidden=("_int_mm", "linear"))
def affine_product(answer: Answer, rng: Rng) -> None:
    """(x, x_scale, zero_point, w, w_scale, bias) -> what the linear layer gives, from whole numbers."""
    cases = [(rng.integer(1, 4), rng.integer(2, 9), rng.integer(2, 6), None) for _ in range(6)]
    cases += [(3, 7, 3, "square"), (2, 4, 4, "square"), (2, 3000, 3, "even"), (1, 5, 4, "low"), (3, 4, 2, "none")]
    for n, inputs, outputs, kind in cases:
        x = rng.integers(-128, 128, n, inputs).to(torch.int8)
        w = rng.integers(-127, 128, outputs, inputs).to(torch.int8)
        zero = rng.integer(20, 127) * rng.python.choice([-1, 1])
        if kind == "even":  # all of one sign, so the sum is far beyond what 24 bits of fp32 hold, and odd
            x, w = x.abs().clamp(min=0) | 1, w.abs().clamp(min=0) | 1
            zero = -128
        x = torch.full_like(x, -128) if kind == "low" else x
        zero = {"low": 127, "none": 0}.get(kind, zero)
        x_scale, w_scale = rng.python.uniform(0.005, 0.05), 0.01 + 0.05 * rng.uniform(outputs)
        exact = (x.long() - zero) @ w.long().t() * x_scale * w_scale.double()
        bias = rng.normal(outputs) * (1 + float(exact.abs().max()))  # as large as the products, or it would not show
        got = answer(x.clone(), x_scale, zero, w.clone(), w_scale.clone(), bias.clone())
        true(isinstance(got, Tensor), f"return a tensor, got {type(got).__name__}")
        want, mistakes = _products(x, x_scale, zero, w, w_scale, bias)
        true(got.dtype == torch.float32, f"the result has dtype={got.dtype}; after scaling it is a float32")
        # fp32 rounds three or four times at 6e-8; a lost product of whole numbers is far larger
        what = f"the layer's output (zero_point={zero}, x {n} x {inputs}, w {outputs} x {inputs})"
        close(got, want, what, rtol=2e-6, atol=2e-6 * float(want.abs().max()), mistakes=mistakes)
    _cancelling(answer)


def _cancelling(answer: Answer) -> None:
    """Sums of 20,000 large products that nearly cancel: whoever adds them up in fp32 keeps nothing of the rest."""
    inputs = 20_000
    x, w = torch.full((1, inputs), 127, dtype=torch.int8), torch.full((2, inputs), 127, dtype=torch.int8)
    halves = w.clone()
    halves[:, inputs // 2 :] = -127
    halves[0, 0], halves[1, -1] = 126, -124
    near, odd = x.clone(), w.clone()
    near[0, :3], odd[0, 5], odd[1, 0] = 126, 126, 1
    for one, zero, weights in ((x, -128, halves), (near, 127, odd)):
        scale = torch.tensor([0.02, 0.05])
        got = answer(one.clone(), 0.01, zero, weights.clone(), scale.clone(), torch.zeros(2))
        want, mistakes = _products(one, 0.01, zero, weights, scale, torch.zeros(2))
        close(got, want, f"the output of {inputs:,} inputs whose products nearly cancel (were they added up, and the "
              "zero point taken out, as whole numbers?)", rtol=2e-6, atol=1e-6, mistakes=mistakes)  # fmt: skip


def _products(
    x: Tensor, x_scale: float, zero: int, w: Tensor, w_scale: Tensor, bias: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    wide_x, wide_w, scales = x.long(), w.long(), x_scale * w_scale.double()
    sums, row_sums = wide_x @ wide_w.t(), wide_w.sum(1)
    want = (sums - zero * row_sums) * scales + bias
    wrapped_shift = (x - torch.tensor(zero).to(torch.int8)).long() @ wide_w.t()
    mistakes = {
        "the zero point is still in the sums: subtract zero_point times the sum of each output's weights": sums * scales
        + bias,
        "the zero point was added instead of subtracted": (sums + zero * row_sums) * scales + bias,
        "the bias is missing": (sums - zero * row_sums) * scales,
        "the bias was scaled, too; it is a float already": (sums - zero * row_sums + bias) * scales,
        "w_scale is missing: each output has its own": (sums - zero * row_sums) * x_scale + bias,
        "x_scale is missing": (sums - zero * row_sums) * w_scale.double() + bias,
        "zero_point was subtracted once; every product has it, so it comes with the sum of the weights": (sums - zero)
        * scales + bias,
        "zero_point was multiplied with the number of inputs; it belongs to the sum of each output's weights":
            (sums - zero * x.shape[1]) * scales + bias,
        "int8 sums overflowed: convert both to int32 before you multiply": (sums.to(torch.int8).long()
        - zero * row_sums) * scales + bias,
        "x - zero_point overflowed in int8: convert to int32 first": wrapped_shift * scales + bias,
        "the zero point was taken with the sum over outputs; sum each output's weights over the inputs":
            _over_outputs(sums, wide_w, zero) * scales + bias,
    }  # fmt: skip
    return want.float(), {hint: value.float() for hint, value in mistakes.items()}


def _over_outputs(sums: Tensor, w: Tensor, zero: int) -> Tensor:
    return sums - zero * w.sum(0) if w.shape[0] == w.shape[1] else sums - zero * w.sum(1)


@grader("smoothing_factors")
def smoothing_factors(answer: Answer, rng: Rng) -> None:
    """(weight, reach, alpha) -> max|x|^alpha / max|w|^(1 - alpha) of each input channel; 1 for dead ones."""
    for round_ in range(9):
        outputs, inputs = rng.integer(2, 6), rng.integer(4, 8)
        outputs = inputs if round_ == 5 else outputs  # square: an axis that is mixed up has the right length
        weight, reach = rng.normal(outputs, inputs), 0.1 + 5 * rng.uniform(inputs)
        weight[int(rng.integer(0, outputs - 1))] -= 3  # the largest value is a negative one
        alpha = {0: 0.5, 3: 0.0, 5: 1.0, 6: 1.0, 7: 0.0}.get(round_, rng.python.uniform(0.2, 0.8))  # 0 ** 0 is 1
        dead = round_ % 3 == 1
        if dead:
            reach[0], reach[3] = 0.0, 0.0
        if round_ == 3:  # alive, though it looks dead: weights that cancel, one weight of 0, next to nothing
            weight[:, 0], weight[:, 1] = 0.0, 2.0
            weight[0, 0], weight[1, 0], weight[0, 1] = 3.0, -3.0, 0.0
            reach[2], weight[:, 3] = 1e-9, weight[:, 3] * 1e-9
        if round_ in (4, 6):
            reach[2], weight[:, 3] = 1e-12, weight[:, 3] * 1e-9
        if round_ % 3 == 2:
            weight[:, 1] = 0.0
        if round_ == 8:
            weight[:, 1], reach[1] = 0.0, 0.0
        got = answer(weight.clone(), reach.clone(), alpha)
        true(isinstance(got, Tensor), f"return a tensor, got {type(got).__name__}")
        true(got.dtype == torch.float32, f"the factors are of dtype={got.dtype}; return float32")
        alive = (reach > 0) & (weight.abs().amax(0) > 0)
        want = _factors(weight.abs().amax(0), reach, alpha)
        what = f"the vector of factors (alpha={alpha:.2g}{', with dead channels' if not bool(alive.all()) else ''})"
        close(got, want, what, rtol=1e-4, atol=0.0, mistakes={
            "a dead channel (reach 0, or weights all 0) has the factor 1": torch.where(
                alive, want, reach**alpha / weight.abs().amax(0) ** (1 - alpha)),
            "a dead channel has the factor 1, not 0": torch.where(alive, want, 0.0),
            "the largest *absolute* weight of a column counts, also if it is negative": _factors(
                weight.amax(0).clamp(min=0), reach, alpha),
            "alpha and 1 - alpha are exchanged: the activations have alpha": _factors(
                weight.abs().amax(0), reach, 1 - alpha),
            "the inverse: activations are divided by the factors, so a channel with large ones needs a large factor":
                torch.where(alive, 1 / want, 1.0),
            "the mean of the column was taken; the largest value sets the scale": _factors(
                weight.abs().mean(0), reach, alpha),
            "multiplied by the weights' power; divide by it": torch.where(
                alive, reach**alpha * weight.abs().amax(0) ** (1 - alpha), 1.0),
            "one maximum for the whole weight; take one for each input channel": _factors(
                weight.abs().amax().expand(inputs), reach, alpha),
        })  # fmt: skip


def _factors(columns: Tensor, reach: Tensor, alpha: float) -> Tensor:
    return torch.where((reach > 0) & (columns > 0), reach**alpha / columns ** (1 - alpha), 1.0)


@grader("straight_through", forbidden=("fake_quantize_per_tensor_affine", "_fake_quantize_learnable_per_tensor_affine"))
def straight_through(answer: Answer, rng: Rng) -> None:
    """(x, gradient, scale, zero_point, low, high) -> the gradient where x lies on the grid, 0 where it saturated."""
    for round_ in range(8):
        low, high = ((-128, 127), (-8, 7), (0, 255), (-7, 7))[round_ % 4]
        zero = 2 * (rng.integer(low // 8, high // 8) or 1) + round_ // 4  # even ones and odd ones: ties differ
        scale = 2.0 ** rng.python.choice([-4, -3, -2, 2, 3])  # a power of two, so x / scale is exact
        level = torch.arange(low - 3, high + 4, dtype=torch.float32) - zero
        some = level[rng.integers(0, len(level), 24)] + 0.8 * (rng.uniform(24) - 0.5)
        steps = torch.tensor([0.0, 0.4, 0.5, 0.6, 1.0, 1.5, 2.0, 3.0, 65_536.0, 1e9])
        ends = torch.cat([low - steps, high + steps, torch.tensor([low + 0.5, high - 0.5, float(zero)])]) - zero
        x = torch.cat([some, ends]) * scale
        x = x[: len(x) // 4 * 4].view(-1, 4) if round_ % 2 else x
        if round_ == 2:  # nothing saturates
            x = (x.clamp((low - zero) * scale, (high - zero) * scale)).clone()
        gradient = 400 * rng.normal(*x.shape)
        given = gradient.clone()
        got = answer(x.clone(), given, scale, zero, low, high)
        true(isinstance(got, Tensor), f"return a tensor, got {type(got).__name__}")
        true(got.dtype == torch.float32, f"the gradient that came back has dtype={got.dtype}; it is float32")
        true(got.data_ptr() != given.data_ptr(), "return a new tensor: what comes back is the gradient that was given")
        place = torch.round(x / scale) + zero
        want = gradient * ((place >= low) & (place <= high))
        close(got, want, "the gradient", rtol=1e-6, atol=0.0, mistakes=_gradients(x, gradient, scale, zero, low, high))


def _gradients(x: Tensor, gradient: Tensor, scale: float, zero: int, low: int, high: int) -> dict[str, Tensor]:
    level = x / scale
    place = torch.round(level) + zero

    def where(inside: Tensor) -> Tensor:
        return gradient * inside

    inside = (place >= low) & (place <= high)
    return {
        "the gradient passes everywhere; where the number saturated it must be 0": gradient,
        "everything came back as 0: rounding is left out on the way back": torch.zeros_like(gradient),
        "the ends of the grid belong to it: `low` and `high` themselves let the gradient pass": where(
            (place > low) & (place < high)),
        "the gradient was multiplied by the scale; it passes unchanged": where(inside) * scale,
        "the gradient was divided by the scale; it passes unchanged": where(inside) / scale,
        "the zero point is missing in the whole number": where(
            (torch.round(level) >= low) & (torch.round(level) <= high)),
        "the zero point was subtracted; the whole number is round(x / scale) + zero_point": where(
            (torch.round(level) - zero >= low) & (torch.round(level) - zero <= high)),
        "x itself was compared with low and high; they are whole numbers of the grid": where((x >= low) & (x <= high)),
        "what counts is the whole number after rounding: a number less than half a step beyond the end is still on it":
            where((level + zero >= low) & (level + zero <= high)),
        "the other way round: the gradient passes inside and is 0 outside": where(~inside),
        "round x / scale first, and add the zero point afterwards: ties go to the even number before the shift": where(
            (torch.round(level + zero) >= low) & (torch.round(level + zero) <= high)),
        "ties go to the even number, not up": where(
            ((level + 0.5).floor() + zero >= low) & ((level + 0.5).floor() + zero <= high)),
        "the gradient is 0 above only; numbers below the grid saturate, too": where(place <= high),
        "the gradient is 0 below only; numbers above the grid saturate, too": where(place >= low),
        "the output was returned; the gradient is asked for": (place.clamp(low, high) - zero) * scale,
    }  # fmt: skip
