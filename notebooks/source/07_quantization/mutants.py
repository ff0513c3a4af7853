"""Named wrong answers to the exercises; every one must be rejected with the words beside it."""

import torch


def _affine(x, *, cover=True, steps=255, whole=torch.round, sign=1, add=1, clamp=True, low_end=-128):
    low, high = float(x.min()), float(x.max())
    if cover:
        low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / steps
    zero = sign * max(-128, min(127, round(-128 - low / scale))) if low_end == -128 else round(-low / scale)
    values = whole(x / scale) + add * zero
    values = values.clamp(-128, 127) if clamp else values.int()
    return values.to(torch.int8), scale, zero


def leaves_zero_out(x):
    return _affine(x, cover=False)


def divides_by_256(x):
    return _affine(x, steps=256)


def symmetric_grid(x):
    scale = float(x.abs().max()) / 127
    return torch.round(x / scale).to(torch.int8), scale, 0


def truncates(x):
    return _affine(x, whole=torch.trunc)


def rounds_half_up(x):
    return _affine(x, whole=lambda level: torch.floor(level + 0.5))


def rounds_after_the_shift(x):
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / 255
    zero = -128 - low / scale
    return torch.round(x / scale + zero).clamp(-128, 127).to(torch.int8), scale, zero


def unsigned(x):
    values, scale, zero = _affine(x, low_end=0, clamp=False)
    return values, scale, zero


def forgets_the_zero_point(x):
    return _affine(x, add=0)


def subtracts_the_zero_point(x):
    return _affine(x, add=-1)


def wrong_sign(x):
    return _affine(x, sign=-1)


def keeps_floats(x):
    values, scale, zero = _affine(x)
    return values.float(), scale, zero


def two_results(x):
    return _affine(x)[:2]


def _product(x, x_scale, zero_point, w, w_scale, bias):
    return (x.int() @ w.int().t() - zero_point * w.int().sum(1)) * x_scale * w_scale + bias


def forgets_zero_point(x, x_scale, zero_point, w, w_scale, bias):
    return _product(x, x_scale, 0, w, w_scale, bias)


def adds_zero_point(x, x_scale, zero_point, w, w_scale, bias):
    return _product(x, x_scale, -zero_point, w, w_scale, bias)


def forgets_bias(x, x_scale, zero_point, w, w_scale, bias):
    return _product(x, x_scale, zero_point, w, w_scale, torch.zeros_like(bias))


def scales_bias(x, x_scale, zero_point, w, w_scale, bias):
    return (x.int() @ w.int().t() - zero_point * w.int().sum(1) + bias) * x_scale * w_scale


def overflows(x, x_scale, zero_point, w, w_scale, bias):
    return ((x @ w.t()).int() - zero_point * w.int().sum(1)) * x_scale * w_scale + bias


def shifts_in_int8(x, x_scale, zero_point, w, w_scale, bias):
    return (x - torch.tensor(zero_point, dtype=torch.int8)).int() @ w.int().t() * x_scale * w_scale + bias


def subtracts_once(x, x_scale, zero_point, w, w_scale, bias):
    return (x.int() @ w.int().t() - zero_point) * x_scale * w_scale + bias


def times_the_inputs(x, x_scale, zero_point, w, w_scale, bias):
    return (x.int() @ w.int().t() - zero_point * x.shape[1]) * x_scale * w_scale + bias


def forgets_w_scale(x, x_scale, zero_point, w, w_scale, bias):
    return (x.int() @ w.int().t() - zero_point * w.int().sum(1)) * x_scale + bias


def scales_by_input(x, x_scale, zero_point, w, w_scale, bias):
    return (x.int() @ w.int().t() - zero_point * w.int().sum(1)) * x_scale * w_scale[:, None] + bias


def rounds_the_sum_to_bf16(x, x_scale, zero_point, w, w_scale, bias):
    sums = (x.bfloat16() - zero_point) @ w.bfloat16().t()
    return sums.float() * x_scale * w_scale + bias


def _smooth(weight, reach, alpha, columns):
    return torch.where((reach > 0) & (weight.abs().amax(0) > 0), reach**alpha / columns ** (1 - alpha), 1.0)


def largest_not_absolute(weight, reach, alpha):
    columns = weight.amax(0).clamp(min=0)
    return torch.where((reach > 0) & (columns > 0), reach**alpha / columns ** (1 - alpha), 1.0)


def alpha_exchanged(weight, reach, alpha):
    return _smooth(weight, reach, 1 - alpha, weight.abs().amax(0))


def inverse(weight, reach, alpha):
    return 1 / _smooth(weight, reach, alpha, weight.abs().amax(0))


def mean_of_the_column(weight, reach, alpha):
    return _smooth(weight, reach, alpha, weight.abs().mean(0))


def one_maximum(weight, reach, alpha):
    return _smooth(weight, reach, alpha, weight.abs().max())


def over_inputs(weight, reach, alpha):
    return reach.max() ** alpha / weight.abs().amax(1) ** (1 - alpha)


def dead_channels_divide(weight, reach, alpha):
    return reach**alpha / weight.abs().amax(0) ** (1 - alpha)


def product_of_powers(weight, reach, alpha):
    columns = weight.abs().amax(0)
    return torch.where((reach > 0) & (columns > 0), reach**alpha * columns ** (1 - alpha), 1.0)


def passes_everywhere(x, gradient, scale, zero_point, low, high):
    return gradient.clone()


def stops_everywhere(x, gradient, scale, zero_point, low, high):
    return torch.zeros_like(gradient)


def ends_excluded(x, gradient, scale, zero_point, low, high):
    level = torch.round(x / scale) + zero_point
    return gradient * ((level > low) & (level < high))


def no_zero_point(x, gradient, scale, zero_point, low, high):
    level = torch.round(x / scale)
    return gradient * ((level >= low) & (level <= high))


def compares_x(x, gradient, scale, zero_point, low, high):
    return gradient * ((x >= low) & (x <= high))


def before_rounding(x, gradient, scale, zero_point, low, high):
    level = x / scale + zero_point
    return gradient * ((level >= low) & (level <= high))


def after_clamping(x, gradient, scale, zero_point, low, high):
    level = (torch.round(x / scale) + zero_point).clamp(low, high)
    return gradient * ((level >= low) & (level <= high))


def scaled(x, gradient, scale, zero_point, low, high):
    level = torch.round(x / scale) + zero_point
    return gradient * ((level >= low) & (level <= high)) / scale


def in_place(x, gradient, scale, zero_point, low, high):
    level = torch.round(x / scale) + zero_point
    gradient[(level < low) | (level > high)] = 0
    return gradient


def above_only(x, gradient, scale, zero_point, low, high):
    return gradient * (torch.round(x / scale) + zero_point <= high)


def clamps_the_gradient(x, gradient, scale, zero_point, low, high):
    return gradient.clamp(low * scale, high * scale)


MUTANTS = {
    "affine_int8": {
        "leaves 0 out of the range": (leaves_zero_out, "must cover 0"),
        "divides by 256": (divides_by_256, "255 steps"),
        "symmetric grid": (symmetric_grid, "symmetric grid"),
        "cuts off": (truncates, "cut off"),
        "ties go up": (rounds_half_up, "they go to the even number"),
        "zero point is no whole number": (rounds_after_the_shift, "zero_point is"),
        "grid from 0 to 255": (unsigned, "for a grid from 0 to 255"),
        "forgets the zero point": (forgets_the_zero_point, "becomes"),
        "subtracts the zero point": (subtracts_the_zero_point, "becomes"),
        "wrong sign of the zero point": (wrong_sign, "zero_point is"),
        "wraps round": (lambda x: _affine(x * 1.0, clamp=False, steps=254.5), "scale"),
        "returns floats": (keeps_floats, "torch.int8"),
        "returns two things": (two_results, "return three things"),
        "lets torch do it": (
            lambda x: (torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).int_repr(), 0.1, 0),
            "calls quantize_per_tensor",
        ),
    },
    "affine_product": {
        "forgets the zero point": (forgets_zero_point, "still in the sums"),
        "adds the zero point": (adds_zero_point, "added instead of subtracted"),
        "forgets the bias": (forgets_bias, "bias is missing"),
        "scales the bias": (scales_bias, "bias was scaled"),
        "multiplies in int8": (overflows, "overflowed"),
        "shifts in int8": (shifts_in_int8, "overflowed in int8"),
        "subtracts the zero point once": (subtracts_once, "subtracted once"),
        "zero point times the number of inputs": (times_the_inputs, "number of inputs"),
        "forgets w_scale": (forgets_w_scale, "w_scale is missing"),
        "scales along the wrong axis": (scales_by_input, ""),
        "rounds the products to bf16": (rounds_the_sum_to_bf16, "wrong values"),
        "lets torch do it": (
            lambda x, x_scale, z, w, w_scale, bias: torch.nn.functional.linear(
                (x.float() - z) * x_scale, w * w_scale[:, None], bias
            ),
            "calls linear",
        ),
    },
    "smoothing_factors": {
        "largest, not largest absolute": (largest_not_absolute, "absolute"),
        "alpha and 1 - alpha exchanged": (alpha_exchanged, "exchanged"),
        "the inverse": (inverse, "inverse"),
        "the column's mean": (mean_of_the_column, "mean of the column"),
        "one maximum for all": (one_maximum, "one maximum for the whole weight"),
        "reduces over inputs": (over_inputs, ""),
        "dead channels divide by zero": (dead_channels_divide, "dead channel"),
        "multiplies by the weights' power": (product_of_powers, "multiplied by the weights' power"),
    },
    "straight_through": {
        "passes everywhere": (passes_everywhere, "passes everywhere"),
        "stops everywhere": (stops_everywhere, "came back as 0"),
        "excludes the ends": (ends_excluded, "belong to it"),
        "forgets the zero point": (no_zero_point, "zero point is missing"),
        "compares x itself": (compares_x, ""),
        "looks before rounding": (before_rounding, "after rounding"),
        "looks after clamping": (after_clamping, "passes everywhere"),
        "divides by the scale": (scaled, "divided by the scale"),
        "in place": (in_place, "changed one of its arguments in place"),
        "stops above only": (above_only, "above only"),
        "clamps the gradient": (clamps_the_gradient, "the gradient"),
    },
}
