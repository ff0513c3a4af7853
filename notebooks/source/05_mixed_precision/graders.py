"""Graders: rounding, the loss scale's history, clipping a scaled gradient, a compensated sum."""

from __future__ import annotations

import torch
from torch import Tensor

from coursekit.checks import Answer, Rng, Wrong, close, grader, true


@grader("round_mantissa", forbidden=("bfloat16", "half"))
def round_mantissa(answer: Answer, rng: Rng) -> None:
    """(x float32, bits) -> x rounded to ``bits`` bits of mantissa, ties to even."""
    _rounding_point(answer, 1.0 + 2.0**-4, 3, "half-way between two numbers, the one with the even last bit is taken")
    _rounding_point(answer, 1.0 + 3 * 2.0**-4, 3, "half-way between two numbers, the one with the even last bit is "
                    "taken; that may be the upper one")  # fmt: skip
    _rounding_point(answer, 2.0 - 2.0**-12, 4, "rounding up may carry into the next power of two")
    _rounding_point(answer, 8.0, 2, "a power of two is exact in any format; does your exponent come out right there?")
    _rounding_point(answer, 0.0, 5, "0 stays 0")
    for _ in range(5):
        bits = rng.integer(2, 12)
        x = rng.normal(3, 5) * 2.0 ** rng.integers(-20, 20, 3, 5).float()
        x[0, 0], x[0, 1] = 0.0, -(2.0 ** rng.integer(-10, 10))
        x[1, 0] = (1 + rng.integer(0, 2**bits - 1) * 2.0**-bits) * 8  # exact already
        odd = 2 * rng.integer(0, 2 ** (bits - 1) - 1) + 1
        x[2, 0] = -(1 + odd * 2.0**-bits + 2.0 ** -(bits + 1)) / 4  # a tie that goes away from zero
        x[2, 1] = (1 + (odd - 1) * 2.0**-bits + 2.0 ** -(bits + 1)) * 16  # a tie that goes towards zero
        want = _round(x, bits)
        mistakes = {
            "the bits were cut off; round to the nearest number instead": _round(x, bits, torch.trunc),
            "ties went away from zero; they go to the number whose last bit is even": _round(x, bits, _half_away),
            "everything was rounded down, towards minus infinity; take the nearest": _round(x, bits, torch.floor),
            "that is one bit too few: between 2^e and 2^(e+1) lie 2^bits numbers (torch.frexp's exponent is one more "
            "than ours)": _round(x, bits - 1),
            "that is one bit too many: the leading 1 is not one of the `bits`": _round(x, bits + 1),
            "the spacing does not follow the number: it doubles with every power of two": (
                torch.round(x.double() * 2.0**bits) / 2.0**bits
            ).float(),
        }
        got = answer(x.clone(), bits)
        true(isinstance(got, Tensor), f"return a tensor, got {type(got).__name__}")
        # equality: a right answer is one number of the grid, and its neighbour differs by 2^-13 at least
        close(got, want, f"x rounded to {bits} bits", rtol=1e-7, atol=0.0, mistakes=mistakes)
    _rounding_point(answer, -1.75, 1, "negative numbers have the exponent of their absolute value")
    _rounding_point(answer, 1 + 2.0**-6 + 2.0**-23, 5, "a little over half-way goes up; rounding twice, first to more "
                    "bits, makes a tie of it")  # fmt: skip
    _rounding_point(answer, 8 - 2.0**-21, 23, "fp32 has 23 bits itself, so every number stays; a logarithm in fp32 "
                    "gives this one the exponent of 8")  # fmt: skip


def _rounding_point(answer: Answer, x: float, bits: int, rule: str) -> None:
    want = float(_round(torch.tensor([x]), bits)[0])
    got = answer(torch.tensor([x]), bits)
    true(isinstance(got, Tensor) and got.shape == (1,), "return a tensor of the same shape as x")
    value = float(got[0])
    case = f"at x={x:.10g}, {bits=} expected {want:.10g}, got {value:.10g}"
    if x == 1.0 + 3 * 2.0**-4 and value == 1.125:
        raise Wrong(f"the bits were cut off; round to the nearest number instead; {case}")
    if x == 1.0 + 2.0**-4 and value == 1.0625:
        raise Wrong(f"that is one bit too many: the leading 1 is not one of the `bits`; {case}")
    true(value == want, f"{rule}; {case}")


def _round(x: Tensor, bits: int, whole=torch.round) -> Tensor:
    _, exponent = torch.frexp(x.double())
    spacing = torch.pow(torch.tensor(2.0, dtype=torch.float64), exponent - 1 - bits)
    return (whole(x.double() / spacing) * spacing).float()


def _half_away(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.floor(x.abs() + 0.5)


@grader("scale_history")
def scale_history(answer: Answer, rng: Rng) -> None:
    """(overflow of each step, first scale, growth interval) -> the scale in use at each step."""
    planted = [
        ([True, False], 8.0, 3, "an overflow halves the scale of the *next* step"),
        ([False, False, False], 8.0, 2, "after `growth_interval` good steps in a row the scale is doubled"),
        ([False, True, False, False], 8.0, 2, "an overflow starts the count of good steps again"),
        ([False] * 4, 4.0, 1, "growth multiplies what the scale is then: with growth_interval=1 it doubles every time"),
        ([True, True, False, False, False], 8.0, 2, "what counts are good steps in a row, not the number of the step"),
        ([True, False, False, False], 8.0, 2, "what counts are good steps in a row, not the number of the step"),
        ([False] * 5, 2.0**24, 1, "the scale has no upper limit"),
        ([False] * 5, 8.0, 2, "a doubling starts the count of good steps again"),
        ([True, True, True], 8.0, 2, "each overflow halves the scale, also several in a row"),
        ([True] * 4, 2.0, 2, "the scale may fall below 1"),
        ([False], 4.0, 1, "the first step is made with the first scale"),
        ([], 4.0, 1, "no steps, no scales: an empty list"),
    ]
    for _ in range(6):
        chance = rng.python.uniform(0.1, 0.5)
        overflows = [rng.python.random() < chance for _ in range(rng.integer(6, 20))]
        planted.append((overflows, 2.0 ** rng.integer(4, 16), rng.integer(1, 4), "check the rule in the docstring"))
    for overflows, first, interval, rule in planted:
        got = answer(list(overflows), first, interval)
        scales = _floats(got)
        true(len(scales) == len(overflows), f"return one scale for each of the {len(overflows)} steps, got "
             f"{len(scales)}; the scale after the last step is not asked for")  # fmt: skip
        want = _history(overflows, first, interval)
        case = f"for overflows={overflows}, first_scale={first:g}, growth_interval={interval}"
        if scales != want:
            step = next(number for number, pair in enumerate(zip(scales, want, strict=True)) if pair[0] != pair[1])
            raise Wrong(f"{rule}; {case} expected {want}, got {scales}: they part at step {step}, counted from 0")


def _floats(got: object) -> list[float]:
    try:
        return [float(scale) for scale in got]  # type: ignore[attr-defined]
    except (TypeError, ValueError, RuntimeError) as error:
        raise Wrong(f"return a list of numbers, one scale a step; got {type(got).__name__}") from error


def _history(overflows: list[bool], first: float, interval: int) -> list[float]:
    scale, good, history = first, 0, []
    for overflowed in overflows:
        history.append(scale)
        good = 0 if overflowed else good + 1
        if overflowed:
            scale /= 2
        elif good == interval:
            scale, good = scale * 2, 0
    return history


CLIPS = ("clip_grad_norm_", "clip_grads_with_norm_", "get_total_norm", "clip_grad_value_")


@grader("unscale_and_clip", forbidden=CLIPS)
def unscale_and_clip(answer: Answer, rng: Rng) -> None:
    """(gradients of scale * loss, scale, max_norm) -> gradients of the loss, clipped to a joint norm."""
    sizes = (  # in turn: to be clipped; small enough to stay, although the scaled ones are not; all zero; ...
        rng.python.uniform(2, 20), rng.python.uniform(1e-3, 1e-2), 0.0,
        1e-9,  # far below what 16 bits hold
        1e17,  # the square of the scaled ones is beyond fp32
        rng.python.uniform(1e-3, 1e-2),  # with a scale of 1, so that nothing is to be done
    )  # fmt: skip
    for round_, size in enumerate(sizes):
        scale = 1.0 if round_ == 5 else rng.python.uniform(2.0**8, 2.0**15)
        true_gradients = [size * rng.normal(rng.integer(2, 4), rng.integer(2, 5)), size * rng.normal(rng.integer(2, 6))]
        max_norm = rng.python.uniform(0.3, 0.8)
        scaled = [gradient * scale for gradient in true_gradients]
        given = [gradient.clone() for gradient in scaled]
        got = answer(given, scale, max_norm)
        true(isinstance(got, (tuple, list)) and len(got) == len(scaled),
             f"return a list with one tensor for each of the {len(scaled)} gradients")  # fmt: skip
        owned = {gradient.data_ptr() for gradient in given}
        true(not any(isinstance(value, Tensor) and value.data_ptr() in owned for value in got),
             "return new tensors: what comes back shares its memory with what was given")  # fmt: skip
        for index, value in enumerate(got):
            mistakes = _clip_mistakes(true_gradients, scaled, index, scale, max_norm)
            want = true_gradients[index] * _factor(true_gradients, max_norm)
            # rtol: above fp32's rounding and clip_grad_norm_'s 1e-6 in the divisor, below what fp16 would lose
            close(value, want, "a gradient", rtol=1e-4, atol=1e-6 * float(want.abs().max()), mistakes=mistakes)


def _factor(gradients: list[Tensor], max_norm: float) -> float:
    norm = float(torch.cat([gradient.flatten() for gradient in gradients]).double().norm())
    return max_norm / max(max_norm, norm)


def _clip_mistakes(
    plain: list[Tensor], scaled: list[Tensor], index: int, scale: float, top: float
) -> dict[str, Tensor]:
    one = plain[index]
    joint = torch.cat([gradient.flatten() for gradient in plain]).norm().clamp(min=1e-30)
    return {
        "the gradients were clipped while they were still scaled, so their norm was `scale` times too large: unscale "
        "first, then clip": scaled[index] * _factor(scaled, top) / scale,
        "the gradients are still scaled: divide by the scale": scaled[index],
        "the gradients were unscaled but not clipped": one,
        "each tensor was clipped by its own norm; take one norm over all of them": one * _factor([one], top),
        "these gradients have a norm below max_norm, and came back with max_norm: clipping only ever shrinks (or were "
        "they still scaled when you clipped them, or multiplied by the scale?)": one * top / joint,
        "the gradients went through 16 bits: unscale in fp32": (one.half().float()) * _factor(plain, top),
        "values were cut one by one; scale all of them by one factor": one.clamp(-top, top),
        "the gradients were multiplied by the scale; divide": scaled[index] * scale,
    }


@grader("compensated_add")
def compensated_add(answer: Answer, rng: Rng) -> None:
    """(weight, update, lost), bf16 -> (new weight, new lost): Kahan's sum in bf16."""
    for size in (1.0, 1.0, 2.0 ** rng.integer(-12, -3), 2.0 ** rng.integer(3, 12)):  # the spacing goes with the weight
        shape = (rng.integer(2, 4), rng.integer(2, 5))
        weight = (size * (1 + rng.uniform(*shape))).bfloat16()
        update = (size * rng.python.uniform(0.1, 0.4) * 2.0**-7 * (0.5 + rng.uniform(*shape))).bfloat16()
        lost = (size * 2.0**-9 * (0.5 + rng.uniform(*shape))).bfloat16()
        where = "" if size == 1 else f" and weights around {size:g}"
        _kahan_once(answer, weight, update, torch.zeros_like(lost), f"with nothing lost so far{where}")
        _kahan_once(answer, weight, update, lost, f"with something lost before{where}")
        _kahan_once(answer, -weight, -update, -lost, f"with negative numbers{where}")
        _kahan_once(answer, weight, -3 * update, lost, f"with an update that goes against what is owed{where}")
        _kahan_once(answer, torch.zeros_like(weight), update, lost, f"with weights of 0{where}")
    _kahan_once(answer, weight, 0 * update, (3 * lost).bfloat16(), "with no update, but something owed")
    weight = lost = torch.zeros(3, dtype=torch.bfloat16) + 1
    lost = lost * 0
    update = torch.tensor([1e-4, 5e-4, 2e-3]).bfloat16()
    for _ in range(200):
        weight, lost = _two(answer(weight, update, lost), weight)
    exact = 1 + 200 * update.double()
    # half a spacing of bf16 at 1 to 2, which the weight itself cannot hold, and a little for rounding of `lost`
    true(bool(((weight.double() - exact).abs() < 0.0045).all()),
         f"after 200 small updates the weights are {weight.tolist()}, expected about {exact.tolist()}")  # fmt: skip


def _kahan_once(answer: Answer, weight: Tensor, update: Tensor, lost: Tensor, when: str) -> None:
    wanted = update + lost
    new = weight + wanted
    owed = wanted - (new - weight)
    got_new, got_lost = _two(answer(weight.clone(), update.clone(), lost.clone()), weight)
    total = weight.double() + update.double() + lost.double()
    if not bool(((got_new == new) | (got_new == total.bfloat16())).all()):  # summed in fp32 it may round the other way
        close(got_new.float(), new.float(), f"the new weight, {when},", rtol=0.0, atol=0.0, mistakes={
            "what was lost before was not added to the new weight": (weight + update).float(),
            "what was lost before was subtracted; it is to be added": (weight + (update - lost)).float(),
            "the weight did not change": weight.float(),
            "two sums with the weight round twice: first update + lost, then the weight": ((weight + update) + lost)
            .float(),
            "two sums with the weight round twice; first update + lost, then the weight": ((weight + lost) + update)
            .float(),
        })  # fmt: skip
    exact = (total - got_new.double()).float()
    tolerance = float(2.0**-8 * wanted.abs().max())  # bf16 keeps 8 bits of what is wanted
    close(got_lost.float(), exact, f"the new lost, {when},", rtol=0.0, atol=tolerance, mistakes={
        "lost has the wrong sign: it must be what is still to be added": -owed.float(),
        "nothing is remembered: lost comes back as zeros": torch.zeros_like(owed).float(),
        "lost is as it was; it must say what *this* rounding left out": lost.float(),
        "lost is the whole update; only what the weight did not take is lost": wanted.float(),
        "what was lost before is added again although the weight has taken it": (owed + lost).float(),
        "what was lost before was forgotten in the new lost": (update - (new - weight)).float(),
    })  # fmt: skip


def _two(got: object, weight: Tensor) -> tuple[Tensor, Tensor]:
    true(isinstance(got, (tuple, list)) and len(got) == 2, "return two tensors, (new weight, new lost)")
    for value, name in zip(got, ("weight", "lost"), strict=True):  # type: ignore[call-overload]
        true(isinstance(value, Tensor), f"the new {name} should be a tensor, got {type(value).__name__}")
        true(value.dtype == torch.bfloat16, f"the new {name} has dtype={value.dtype}; keep it in torch.bfloat16, fp32 "
             "would need the memory that we want to save")  # fmt: skip
        true(value.shape == weight.shape, f"the new {name} has shape {tuple(value.shape)}, expected "
             f"{tuple(weight.shape)}")  # fmt: skip
    return got[0], got[1]  # type: ignore[index]
