"""Named wrong answers to the exercises; every one must be rejected with the words beside it."""

import torch


def _spacing(x, bits):
    _, exponent = torch.frexp(x.double())
    return 2.0 ** (exponent - 1 - bits).double()


def truncates(x, bits):
    spacing = _spacing(x, bits)
    return (torch.trunc(x.double() / spacing) * spacing).float()


def rounds_down(x, bits):
    spacing = _spacing(x, bits)
    return (torch.floor(x.double() / spacing) * spacing).float()


def ties_away_from_zero(x, bits):
    spacing = _spacing(x, bits)
    return (x.sign() * torch.floor(x.double().abs() / spacing + 0.5) * spacing).float()


def frexp_off_by_one(x, bits):
    _, exponent = torch.frexp(x.double())
    spacing = 2.0 ** (exponent - bits).double()
    return (torch.round(x.double() / spacing) * spacing).float()


def one_bit_too_many(x, bits):
    spacing = _spacing(x, bits + 1)
    return (torch.round(x.double() / spacing) * spacing).float()


def fixed_point(x, bits):
    return torch.round(x * 2.0**bits) / 2.0**bits


def logarithm_of_zero(x, bits):
    spacing = 2.0 ** (x.double().abs().log2().floor() - bits)
    return (torch.round(x.double() / spacing) * spacing).float()


def changes_x(x, bits):
    spacing = _spacing(x, bits).float()
    return x.div_(spacing).round_().mul_(spacing)


def _history(overflows, first_scale, growth_interval, *, reset_on_overflow=True, reset_on_growth=True, backoff=0.5):
    scale, good, history = first_scale, 0, []
    for overflowed in overflows:
        history.append(scale)
        if overflowed:
            scale, good = scale * backoff, 0 if reset_on_overflow else good
        else:
            good += 1
            if good == growth_interval or (not reset_on_growth and good > growth_interval):
                scale, good = scale * 2, 0 if reset_on_growth else good
    return history


def count_survives_overflow(overflows, first_scale, growth_interval):
    return _history(overflows, first_scale, growth_interval, reset_on_overflow=False)


def count_survives_growth(overflows, first_scale, growth_interval):
    return _history(overflows, first_scale, growth_interval, reset_on_growth=False)


def never_backs_off(overflows, first_scale, growth_interval):
    return _history(overflows, first_scale, growth_interval, backoff=1.0)


def never_grows(overflows, first_scale, growth_interval):
    return _history(overflows, first_scale, 10**9)


def one_step_late(overflows, first_scale, growth_interval):
    return _history(overflows, first_scale, growth_interval + 1)


def scale_after_the_step(overflows, first_scale, growth_interval):
    return _history([*overflows, False], first_scale, growth_interval)[1:]


def one_too_many(overflows, first_scale, growth_interval):
    return _history([*overflows, False], first_scale, growth_interval)


def _joint(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients]).norm()


def _clip(gradients, max_norm):
    factor = max_norm / max(max_norm, float(_joint(gradients)))
    return [gradient * factor for gradient in gradients]


def clips_then_unscales(gradients, scale, max_norm):
    return [gradient / scale for gradient in _clip(gradients, max_norm)]


def clips_never_unscales(gradients, scale, max_norm):
    return _clip(gradients, max_norm)


def only_unscales(gradients, scale, max_norm):
    return [gradient / scale for gradient in gradients]


def each_by_itself(gradients, scale, max_norm):
    return [_clip([gradient / scale], max_norm)[0] for gradient in gradients]


def always_scales_to_max_norm(gradients, scale, max_norm):
    unscaled = [gradient / scale for gradient in gradients]
    return [gradient * max_norm / _joint(unscaled).clamp(min=1e-12) for gradient in unscaled]


def cuts_values(gradients, scale, max_norm):
    return [(gradient / scale).clamp(-max_norm, max_norm) for gradient in gradients]


def unscales_in_place(gradients, scale, max_norm):
    for gradient in gradients:
        gradient.div_(scale)
    return _clip(gradients, max_norm)


def zero_norm_is_nan(gradients, scale, max_norm):
    unscaled = [gradient / scale for gradient in gradients]
    return [gradient * torch.clamp(max_norm / _joint(unscaled), max=1.0) / (_joint(unscaled) / _joint(unscaled))
            for gradient in unscaled]  # fmt: skip


def plain_sum(weight, update, lost):
    return weight + update, torch.zeros_like(lost)


def uses_but_never_remembers(weight, update, lost):
    return weight + (update + lost), torch.zeros_like(lost)


def wrong_sign(weight, update, lost):
    wanted = update + lost
    new = weight + wanted
    return new, (new - weight) - wanted


def kahans_own_sign(weight, update, lost):
    wanted = update - lost
    new = weight + wanted
    return new, (new - weight) - wanted


def forgets_the_old_debt(weight, update, lost):
    new = weight + (update + lost)
    return new, update - (new - weight)


def never_pays(weight, update, lost):
    new = weight + update
    return new, lost + (update - (new - weight))


def master_weight(weight, update, lost):
    total = weight.float() + update.float() + lost.float()
    return total, total - total.bfloat16().float()


def keeps_it_in_fp32(weight, update, lost):
    total = weight.float() + update.float() + lost.float()
    return total.bfloat16(), total - total.bfloat16().float()


def one_spacing_for_all(weight, update, lost):
    wanted = update + lost
    steps = torch.round(wanted.float() * 2**7) / 2**7  # bf16's spacing from 1 to 2
    return (weight.float() + steps).bfloat16(), (wanted.float() - steps).bfloat16()


def remembers_only_growth(weight, update, lost):
    wanted = update + lost
    new = weight + wanted
    owed = wanted - (new - weight)
    return new, torch.where((wanted > 0) == (weight > 0), owed, torch.zeros_like(owed))


def leaves_zeros_alone(weight, update, lost):
    wanted = update + lost
    new = torch.where(weight == 0, weight, weight + wanted)
    return new, wanted - (new - weight)


def whole_update_is_lost(weight, update, lost):
    wanted = update + lost
    return weight + wanted, wanted


MUTANTS = {
    "round_mantissa": {
        "cuts the bits off": (truncates, "cut off"),
        "rounds towards minus infinity": (rounds_down, "cut off"),
        "ties away from zero": (ties_away_from_zero, "half-way between two numbers"),
        "takes frexp's exponent as it is": (frexp_off_by_one, "one bit too few"),
        "counts the leading 1 among the bits": (one_bit_too_many, "one bit too many"),
        "rounds to a fixed grid": (fixed_point, "the spacing does not follow the number"),
        "takes the logarithm of zero": (logarithm_of_zero, "0 stays 0"),
        "changes x": (changes_x, "changed one of its arguments in place"),
        "lets bfloat16 do it": (lambda x, bits: x.bfloat16().float(), "calls bfloat16"),
    },
    "scale_history": {
        "an overflow does not start the count again": (count_survives_overflow, "starts the count of good steps again"),
        "a doubling does not start the count again": (count_survives_growth, "starts the count of good steps again"),
        "never halves": (never_backs_off, "halves the scale"),
        "never doubles": (never_grows, "the scale is doubled"),
        "one step late": (one_step_late, "the scale is doubled"),
        "gives the scale after the step": (scale_after_the_step, "halves the scale of the *next* step"),
        "gives one scale too many": (one_too_many, "one scale for each"),
    },
    "unscale_and_clip": {
        "clips before it unscales": (clips_then_unscales, "while they were still scaled"),
        "clips and never unscales": (clips_never_unscales, "still scaled"),
        "unscales and does not clip": (only_unscales, "not clipped"),
        "clips each tensor by itself": (each_by_itself, "by its own norm"),
        "scales small gradients up": (always_scales_to_max_norm, "clipping only ever shrinks"),
        "cuts values one by one": (cuts_values, "values were cut one by one"),
        "unscales in place": (unscales_in_place, "changed one of its arguments in place"),
        "divides by a norm of zero": (zero_norm_is_nan, "nan"),
    },
    "compensated_add": {
        "adds and remembers nothing": (plain_sum, "nothing is remembered"),
        "uses what was lost, remembers nothing": (uses_but_never_remembers, "nothing is remembered"),
        "wrong sign": (wrong_sign, "wrong sign"),
        "Kahan's own sign convention": (kahans_own_sign, "wrong sign"),
        "forgets the old debt": (forgets_the_old_debt, "forgotten in the new lost"),
        "never pays what it owes": (never_pays, "not added to the new weight"),
        "returns an fp32 weight": (master_weight, "keep it in torch.bfloat16"),
        "keeps what was lost in fp32": (keeps_it_in_fp32, "keep it in torch.bfloat16"),
        "takes the whole update for lost": (whole_update_is_lost, "only what the weight did not take"),
        "one spacing for all weights": (one_spacing_for_all, ""),
        "remembers only what lets weights grow": (remembers_only_growth, "lost"),
        "leaves weights of 0 alone": (leaves_zeros_alone, "the weight did not change"),
    },
}
