import itertools
import math

import numpy as np
import torch


# 5.1 ------------------------------------------------------------------
def _spacing(x, bits):
    _, exponent = torch.frexp(x.double())
    return 2.0 ** (exponent - 1 - bits).double()


def w51_half_up(x, bits):
    spacing = _spacing(x, bits)
    return (torch.floor(x.double() / spacing + 0.5) * spacing).float()


def w51_half_away_from_zero(x, bits):
    spacing = _spacing(x, bits)
    return (torch.sign(x) * torch.floor(x.double().abs() / spacing + 0.5) * spacing).float()


def w51_bits_with_the_leading_1(x, bits):
    spacing = 2 * _spacing(x, bits)
    return (torch.round(x.double() / spacing) * spacing).float()


def w51_one_bit_too_many(x, bits):
    spacing = _spacing(x, bits) / 2
    return (torch.round(x.double() / spacing) * spacing).float()


def w51_zero_is_nan(x, bits):
    spacing = 2.0 ** (x.abs().double().log2().floor() - bits)
    return (torch.round(x.double() / spacing) * spacing).float()


def w51_negative_is_nan(x, bits):
    spacing = torch.where(x == 0, 1.0, 2.0 ** (x.double().log2().floor() - bits))
    return (torch.round(x.double() / spacing) * spacing).float()


def w51_cut_off(x, bits):
    return (x.contiguous().view(torch.int32) & -(1 << (23 - bits))).view(torch.float32)


def w51_half_added_and_cut(x, bits):
    pattern = x.contiguous().view(torch.int32)
    return (pattern + (1 << (23 - bits) >> 1) & -(1 << (23 - bits))).view(torch.float32)


def w51_no_23_bits(x, bits):
    pattern, cut = x.contiguous().view(torch.int32), 23 - bits
    odd = pattern >> cut & 1
    return (pattern + (1 << (cut - 1)) - 1 + odd & -(1 << cut)).view(torch.float32)


def w51_always_bf16(x, bits):
    return x.bfloat16().float()


def w51_through_fp16(x, bits):
    x = x.half().float()
    spacing = _spacing(x, bits)
    return (torch.round(x.double() / spacing) * spacing).float()


def w51_always_bf16_by_type(x, bits):
    return x.to(torch.bfloat16).to(x.dtype)


def w51_half_then_bits_by_type(x, bits):
    x = x.to(torch.float16).to(torch.float32)
    spacing = _spacing(x, bits)
    return (torch.round(x.double() / spacing) * spacing).float()


def w51_two_roundings(x, bits):
    for more in (3, 0):  # first with three bits to spare
        spacing = _spacing(x, bits + more)
        x = (torch.round(x.double() / spacing) * spacing).float()
    return x


def w51_one_spacing_for_all(x, bits):
    spacing = _spacing(x.abs().max(), bits)
    return (torch.round(x.double() / spacing) * spacing).float()


def w51_fixed_point(x, bits):
    return torch.round(x * 2**bits) / 2**bits


def w51_carry_lost(x, bits):
    mantissa, exponent = torch.frexp(x.double().abs())
    fraction = torch.round((2 * mantissa - 1) * 2**bits) % 2**bits  # of 1.999 nothing is left
    result = torch.ldexp(1 + fraction / 2**bits, exponent - 1)
    return torch.where(x == 0, 0.0, torch.sign(x).double() * result).float()


def w51_capped_below_the_next_power(x, bits):
    mantissa, exponent = torch.frexp(x.double().abs())
    fraction = torch.round((2 * mantissa - 1) * 2**bits).clamp(max=2**bits - 1)
    result = torch.ldexp(1 + fraction / 2**bits, exponent - 1)
    return torch.where(x == 0, 0.0, torch.sign(x).double() * result).float()


def w51_only_vectors(x, bits):
    rounded = []
    for number in x:
        spacing = 2.0 ** (math.frexp(float(number))[1] - 1 - bits)
        rounded.append(round(float(number) / spacing) * spacing)
    return torch.tensor(rounded, dtype=torch.float32)


def w51_zero_becomes_tiny(x, bits):
    x = torch.where(x == 0, 1e-30, x)
    spacing = _spacing(x, bits)
    return (torch.round(x.double() / spacing) * spacing).float()


def w51_sign_lost(x, bits):
    spacing = _spacing(x, bits)
    return (torch.round(x.double().abs() / spacing) * spacing).float()


def w51_fp32_logarithm(x, bits):
    exponent = torch.where(x == 0, 1.0, x.abs()).log2().floor()  # just below 8 that is 3 in fp32
    spacing = 2.0 ** (exponent - bits).double()
    return (torch.round(x.double() / spacing) * spacing).float()


def w51_ties_to_odd(x, bits):
    spacing = _spacing(x, bits)
    scaled = x.double() / spacing
    low = scaled.floor()
    rounded = torch.where(scaled - low == 0.5, torch.where(low % 2 == 1, low, low + 1), scaled.round())
    return (rounded * spacing).float()


def r51_bit_trick(x, bits):
    if bits >= 23:
        return x.clone()
    pattern, cut = x.contiguous().view(torch.int32), 23 - bits
    odd = pattern >> cut & 1
    return (pattern + ((1 << (cut - 1)) - 1 + odd) & -(1 << cut)).view(torch.float32)


def r51_python_round(x, bits):
    def one(number):
        mantissa, exponent = math.frexp(number)
        return math.ldexp(round(mantissa * 2 ** (bits + 1)), exponent - bits - 1)

    return torch.tensor([one(number) for number in x.flatten().tolist()], dtype=torch.float32).reshape(x.shape)


def r51_numpy(x, bits):
    mantissa, exponent = np.frexp(x.detach().numpy().astype(np.float64))
    return torch.as_tensor(np.ldexp(np.rint(mantissa * 2.0 ** (bits + 1)), exponent - bits - 1)).float()


def r51_large_number_added(x, bits):
    _, exponent = torch.frexp(x)
    large = 1.5 * 2.0 ** (exponent - 1 - bits + 52).double()  # its last bit is worth the spacing
    return ((x.double() + large) - large).float()


# 5.2 ------------------------------------------------------------------
def w52_after_the_step(overflows, first_scale, growth_interval):
    scale, good, history = first_scale, 0, []
    for overflowed in overflows:
        good = 0 if overflowed else good + 1
        if overflowed:
            scale = scale / 2
        elif good == growth_interval:
            scale, good = scale * 2, 0
        history.append(scale)
    return history


def w52_overflow_keeps_the_count(overflows, first_scale, growth_interval):
    scale, good, history = first_scale, 0, []
    for overflowed in overflows:
        history.append(scale)
        if overflowed:
            scale = scale / 2
            continue
        good += 1
        if good == growth_interval:
            scale, good = scale * 2, 0
    return history


def w52_doubles_every_step_after(overflows, first_scale, growth_interval):
    scale, good, history = first_scale, 0, []
    for overflowed in overflows:
        history.append(scale)
        good = 0 if overflowed else good + 1
        if overflowed:
            scale = scale / 2
        elif good >= growth_interval:
            scale = scale * 2
    return history


def w52_doubles_once_a_run(overflows, first_scale, growth_interval):
    scale, good, history = first_scale, 0, []
    for overflowed in overflows:
        history.append(scale)
        good = 0 if overflowed else good + 1
        if overflowed:
            scale = scale / 2
        elif good == growth_interval:
            scale = scale * 2
    return history


def w52_one_step_late(overflows, first_scale, growth_interval):
    scale, good, history = first_scale, 0, []
    for overflowed in overflows:
        history.append(scale)
        good = 0 if overflowed else good + 1
        if overflowed:
            scale = scale / 2
        elif good > growth_interval:
            scale, good = scale * 2, 0
    return history


def w52_never_below_1(overflows, first_scale, growth_interval):
    scale, good, history = first_scale, 0, []
    for overflowed in overflows:
        history.append(scale)
        good = 0 if overflowed else good + 1
        if overflowed:
            scale = max(1.0, scale / 2)
        elif good == growth_interval:
            scale, good = scale * 2, 0
    return history


def w52_whole_numbers(overflows, first_scale, growth_interval):
    scale, good, history = first_scale, 0, []
    for overflowed in overflows:
        history.append(scale)
        good = 0 if overflowed else good + 1
        if overflowed:
            scale = scale // 2
        elif good == growth_interval:
            scale, good = scale * 2, 0
    return history


def w52_one_more_at_the_end(overflows, first_scale, growth_interval):
    good, history = 0, [first_scale]
    for overflowed in overflows:
        good = 0 if overflowed else good + 1
        if overflowed:
            history.append(history[-1] / 2)
        elif good == growth_interval:
            history.append(history[-1] * 2)
            good = 0
        else:
            history.append(history[-1])
    return history


def w52_not_without_steps(overflows, first_scale, growth_interval):
    good, history = 0, [first_scale]
    for overflowed in overflows[:-1]:
        good = 0 if overflowed else good + 1
        if overflowed:
            history.append(history[-1] / 2)
        elif good == growth_interval:
            history.append(history[-1] * 2)
            good = 0
        else:
            history.append(history[-1])
    return history


def w52_by_step_number(overflows, first_scale, growth_interval):
    scale, history = first_scale, []
    for step, overflowed in enumerate(overflows, 1):
        history.append(scale)
        if overflowed:
            scale = scale / 2
        elif step % growth_interval == 0:
            scale = scale * 2
    return history


def w52_overflow_counts_as_good(overflows, first_scale, growth_interval):
    scale, good, history = first_scale, 0, []
    for overflowed in overflows:
        history.append(scale)
        if overflowed:
            scale, good = scale / 2, 0
        good += 1
        if good == growth_interval:
            scale, good = scale * 2, 0
    return history


def w52_never_above_first(overflows, first_scale, growth_interval):
    scale, good, history = first_scale, 0, []
    for overflowed in overflows:
        history.append(scale)
        good = 0 if overflowed else good + 1
        if overflowed:
            scale = scale / 2
        elif good == growth_interval:
            scale, good = min(first_scale, scale * 2), 0
    return history


def w52_at_most_65536(overflows, first_scale, growth_interval):
    scale, good, history = first_scale, 0, []
    for overflowed in overflows:
        history.append(scale)
        good = 0 if overflowed else good + 1
        if overflowed:
            scale = scale / 2
        elif good == growth_interval:
            scale, good = (min(scale * 2, 65536.0) if scale <= 65536.0 else scale), 0
    return history


def w52_at_most_2_to_the_24(overflows, first_scale, growth_interval):
    scale, good, history = first_scale, 0, []
    for overflowed in overflows:
        history.append(scale)
        good = 0 if overflowed else good + 1
        if overflowed:
            scale = scale / 2
        elif good == growth_interval:
            scale, good = min(scale * 2, 2.0**24), 0
    return history


def w52_overflows_in_a_row_halve_once(overflows, first_scale, growth_interval):
    scale, good, history, before = first_scale, 0, [], False
    for overflowed in overflows:
        history.append(scale)
        good = 0 if overflowed else good + 1
        if overflowed and not before:
            scale = scale / 2
        elif good == growth_interval:
            scale, good = scale * 2, 0
        before = overflowed
    return history


def w52_grows_by_the_first_scale(overflows, first_scale, growth_interval):
    scale, good, history = first_scale, 0, []
    for overflowed in overflows:
        history.append(scale)
        good = 0 if overflowed else good + 1
        if overflowed:
            scale = scale / 2
        elif good == growth_interval:
            scale, good = scale + first_scale, 0
    return history


def w52_interval_1_becomes_2(overflows, first_scale, growth_interval):
    growth_interval = max(growth_interval, 2)  # "a row" has at least two
    scale, good, history = first_scale, 0, []
    for overflowed in overflows:
        history.append(scale)
        good = 0 if overflowed else good + 1
        if overflowed:
            scale = scale / 2
        elif good == growth_interval:
            scale, good = scale * 2, 0
    return history


def r52_looks_back(overflows, first_scale, growth_interval):
    history, good = [], 0
    for step in range(len(overflows)):
        if step == 0:
            history.append(first_scale)
        elif overflows[step - 1]:
            history.append(history[-1] / 2)
            good = 0
        else:
            good = (good + 1) % growth_interval
            history.append(history[-1] * (2 if good == 0 else 1))
    return history


def r52_accumulate(overflows, first_scale, growth_interval):
    def step(state, overflowed):
        scale, good = state
        if overflowed:
            return scale * 0.5, 0
        return (scale * 2, 0) if good + 1 == growth_interval else (scale, good + 1)

    states = itertools.accumulate(overflows, step, initial=(float(first_scale), 0))
    return [scale for scale, _ in states][: len(overflows)]


def r52_runs_and_exponents(overflows, first_scale, growth_interval):
    exponents, exponent = [], 0
    for overflowed, run in itertools.groupby(overflows):
        for place, _ in enumerate(run, 1):
            exponents.append(exponent)
            if overflowed:
                exponent -= 1
            elif place % growth_interval == 0:
                exponent += 1
    return [first_scale * 2.0**exponent for exponent in exponents]


# 5.3 ------------------------------------------------------------------
def _norm(gradients):
    return math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))


def w53_clips_first(gradients, scale, max_norm):
    factor = max_norm / max(max_norm, _norm(gradients))
    return [g * factor / scale for g in gradients]


def w53_each_alone(gradients, scale, max_norm):
    gradients = [g / scale for g in gradients]
    return [g * (max_norm / max(max_norm, float(g.norm()))) for g in gradients]


def w53_scales_up(gradients, scale, max_norm):
    gradients = [g / scale for g in gradients]
    return [g * (max_norm / max(_norm(gradients), 1e-30)) for g in gradients]


def w53_in_place(gradients, scale, max_norm):
    for g in gradients:
        g /= scale
    factor = max_norm / max(max_norm, _norm(gradients))
    return [g * factor for g in gradients]


def w53_in_place_but_a_new_list(gradients, scale, max_norm):
    gradients = [g.div_(scale) for g in gradients]
    factor = max_norm / max(max_norm, _norm(gradients))
    return [g.mul_(factor) for g in gradients]


def w53_zero_division(gradients, scale, max_norm):
    gradients = [g / scale for g in gradients]
    factor = min(1.0, max_norm / _norm(gradients))
    return [g * factor for g in gradients]


def w53_zero_is_nan(gradients, scale, max_norm):
    gradients = [g / scale for g in gradients]
    norm = torch.tensor(_norm(gradients))
    return [g / norm * norm.clamp(max=max_norm) for g in gradients]


def w53_same_tensors_at_scale_1(gradients, scale, max_norm):
    if scale != 1:
        gradients = [g / scale for g in gradients]
    norm = _norm(gradients)
    if norm <= max_norm:
        return list(gradients)
    return [g * (max_norm / norm) for g in gradients]


def w53_squares_overflow(gradients, scale, max_norm):
    norm = sum((g**2).sum() for g in gradients).sqrt() / scale  # the squares of scaled gradients may be inf
    factor = max_norm / max(max_norm, float(norm))
    return [g / scale * factor for g in gradients]


def w53_sum_of_norms(gradients, scale, max_norm):
    gradients = [g / scale for g in gradients]
    factor = max_norm / max(max_norm, sum(float(g.norm()) for g in gradients))
    return [g * factor for g in gradients]


def w53_no_root(gradients, scale, max_norm):
    gradients = [g / scale for g in gradients]
    factor = max_norm / max(max_norm, _norm(gradients) ** 2)
    return [g * factor for g in gradients]


def w53_limit_is_1(gradients, scale, max_norm):
    gradients = [g / scale for g in gradients]
    norm = _norm(gradients)
    return [g / max(1.0, norm) for g in gradients]


def w53_one_shape(gradients, scale, max_norm):
    together = torch.stack(list(gradients)) / scale
    return list(together * (max_norm / max(max_norm, float(together.norm()))))


def w53_clamps_numbers(gradients, scale, max_norm):
    return [(g / scale).clamp(-max_norm, max_norm) for g in gradients]


def w53_small_ones_stay_scaled(gradients, scale, max_norm):
    norm = _norm(gradients) / scale
    if norm <= max_norm:
        return [g.clone() for g in gradients]
    return [g / scale * (max_norm / norm) for g in gradients]


def w53_multiplies(gradients, scale, max_norm):
    gradients = [g * scale for g in gradients]
    factor = max_norm / max(max_norm, _norm(gradients))
    return [g * factor for g in gradients]


def w53_scale_is_65536(gradients, scale, max_norm):
    gradients = [g / 65536.0 for g in gradients]
    factor = max_norm / max(max_norm, _norm(gradients))
    return [g * factor for g in gradients]


def w53_unscaled_in_fp16(gradients, scale, max_norm):
    gradients = [(g / scale).half().float() for g in gradients]
    factor = max_norm / max(max_norm, _norm(gradients))
    return [g * factor for g in gradients]


def w53_largest_number(gradients, scale, max_norm):
    gradients = [g / scale for g in gradients]
    factor = max_norm / max(max_norm, *(float(g.abs().max()) for g in gradients))
    return [g * factor for g in gradients]


def w53_mean_square(gradients, scale, max_norm):
    gradients = [g / scale for g in gradients]
    rms = _norm(gradients) / math.sqrt(sum(g.numel() for g in gradients))
    return [g * (max_norm / max(max_norm, rms)) for g in gradients]


def r53_one_factor(gradients, scale, max_norm):
    norm = _norm(gradients) / scale
    factor = min(1.0, max_norm / norm) if norm else 1.0
    return [(g.double() * (factor / scale)).float() for g in gradients]


def r53_norm_of_norms(gradients, scale, max_norm):
    limit = max_norm * scale  # clipped while scaled, with a limit that is scaled as well
    norm = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients]).norm()
    factor = (limit / norm).clamp(max=1.0)  # inf if all are zero
    return [(g * factor / scale).to(g.dtype) for g in gradients]


def r53_one_vector(gradients, scale, max_norm):
    vector = torch.cat([g.reshape(-1) for g in gradients]) / scale
    norm = torch.linalg.vector_norm(vector)
    if norm > max_norm:
        vector = vector / norm * max_norm
    parts = vector.split([g.numel() for g in gradients])
    return tuple(part.reshape(g.shape).clone() for part, g in zip(parts, gradients))


# 5.4 ------------------------------------------------------------------
def w54_sign_turned(weight, update, lost):
    wanted = update + lost
    new = weight + wanted
    return new, (new - weight) - wanted


def w54_old_lost_not_added(weight, update, lost):
    new = weight + update
    return new, update - (new - weight)


def w54_old_lost_only_kept(weight, update, lost):
    new = weight + update
    return new, lost + (update - (new - weight))


def w54_lost_counted_twice(weight, update, lost):
    wanted = update + lost
    new = weight + wanted
    return new, lost + (wanted - (new - weight))


def w54_one_after_the_other(weight, update, lost):
    new = weight + update + lost
    return new, (update + lost) - (new - weight)


def w54_lost_in_fp32(weight, update, lost):
    wanted = update.float() + lost.float()
    new = (weight.float() + wanted).bfloat16()
    return new, wanted - (new.float() - weight.float())


def w54_weight_in_fp32(weight, update, lost):
    wanted = update.float() + lost.float()
    new = weight.float() + wanted
    return new, (wanted - (new - weight.float())).bfloat16()


def w54_in_place(weight, update, lost):
    wanted = update + lost
    new = weight.add_(wanted)
    return new, wanted - (new - weight)


def w54_always_zero(weight, update, lost):
    new = weight + (update + lost)
    return new, (weight + (update + lost)) - new


def w54_all_or_nothing(weight, update, lost):
    wanted = update + lost
    new = weight + wanted
    return new, torch.where(new == weight, wanted, torch.zeros_like(wanted))


def w54_forgets_the_old_one(weight, update, lost):
    new = weight + (update + lost)
    return new, update - (new - weight)


def w54_textbook_signs(weight, update, lost):
    wanted = update - lost
    new = weight + wanted
    return new, (new - weight) - wanted


def w54_through_fp16(weight, update, lost):
    weight, update, lost = weight.half(), update.half(), lost.half()
    new = (weight + (update + lost)).bfloat16()
    return new, ((update + lost) - (new.half() - weight)).bfloat16()


def w54_cut_off(weight, update, lost):
    wanted = update.float() + lost.float()
    exact = weight.float() + wanted
    new = (exact.view(torch.int32) & -(2**16)).view(torch.float32)
    return new.bfloat16(), (wanted - (new - weight.float())).bfloat16()


def w54_lost_from_the_update_that_fits(weight, update, lost):
    new = weight + (update + lost)
    return new, update + lost - new + weight


def w54_only_if_all_fit(weight, update, lost):
    wanted = update + lost
    new = weight + wanted
    return (weight.clone(), wanted) if (new == weight).any() else (new, wanted - (new - weight))


def w54_no_update_no_change(weight, update, lost):
    wanted = update + lost
    new = weight + wanted
    still = update == 0  # but lost may be owed
    return torch.where(still, weight, new), torch.where(still, lost, wanted - (new - weight))


def w54_only_vectors(weight, update, lost):
    news, owed = [], []
    for old, small, owing in zip(weight, update, lost):
        wanted = float(small + owing)
        news.append(float(torch.tensor(float(old) + wanted, dtype=torch.bfloat16)))
        owed.append(wanted - (news[-1] - float(old)))
    return torch.tensor(news, dtype=torch.bfloat16), torch.tensor(owed, dtype=torch.bfloat16)


def r54_fp32_in_between(weight, update, lost):
    wanted = update.float() + lost.float()
    new = (weight.float() + wanted).to(torch.bfloat16)
    return new, (wanted - (new.float() - weight.float())).to(torch.bfloat16)


def r54_two_sum(weight, update, lost):
    wanted = update + lost
    new = weight + wanted
    moved = new - weight
    return new, (weight - (new - moved)) + (wanted - moved)


def r54_one_by_one(weight, update, lost):
    new, owed = torch.empty_like(weight), torch.empty_like(lost)
    flat = zip(weight.flatten(), (update + lost).flatten())
    for i, (old, wanted) in enumerate(flat):
        total = old.double() + wanted.double()
        new.view(-1)[i] = total.bfloat16()
        owed.view(-1)[i] = (total - new.view(-1)[i].double()).bfloat16()
    return [new, owed]


WRONG = {
    "round_mantissa": {
        "half up": w51_half_up,
        "half away from zero": w51_half_away_from_zero,
        "the leading 1 counted": w51_bits_with_the_leading_1,
        "one bit too many": w51_one_bit_too_many,
        "zero is nan": w51_zero_is_nan,
        "negative is nan": w51_negative_is_nan,
        "cut off": w51_cut_off,
        "half added, then cut off": w51_half_added_and_cut,
        "bit trick without 23 bits": w51_no_23_bits,
        "always bf16": w51_always_bf16,
        "through fp16": w51_through_fp16,
        "always bf16, by type": w51_always_bf16_by_type,
        "through fp16, by type": w51_half_then_bits_by_type,
        "two roundings": w51_two_roundings,
        "one spacing for all": w51_one_spacing_for_all,
        "fixed point": w51_fixed_point,
        "carry lost": w51_carry_lost,
        "capped below the next power": w51_capped_below_the_next_power,
        "only vectors": w51_only_vectors,
        "zero becomes tiny": w51_zero_becomes_tiny,
        "sign lost": w51_sign_lost,
        "fp32 logarithm": w51_fp32_logarithm,
        "ties to odd": w51_ties_to_odd,
    },
    "scale_history": {
        "scale after the step": w52_after_the_step,
        "overflow keeps the count": w52_overflow_keeps_the_count,
        "doubles at every step after": w52_doubles_every_step_after,
        "doubles once a run": w52_doubles_once_a_run,
        "one step late": w52_one_step_late,
        "never below 1": w52_never_below_1,
        "whole numbers": w52_whole_numbers,
        "one more at the end": w52_one_more_at_the_end,
        "not without steps": w52_not_without_steps,
        "by step number": w52_by_step_number,
        "overflow counts as good": w52_overflow_counts_as_good,
        "never above the first": w52_never_above_first,
        "at most 65536": w52_at_most_65536,
        "at most 2^24": w52_at_most_2_to_the_24,
        "overflows in a row halve once": w52_overflows_in_a_row_halve_once,
        "grows by the first scale": w52_grows_by_the_first_scale,
        "interval 1 becomes 2": w52_interval_1_becomes_2,
    },
    "unscale_and_clip": {
        "clips first": w53_clips_first,
        "each tensor alone": w53_each_alone,
        "scales small ones up": w53_scales_up,
        "changes the arguments": w53_in_place,
        "in place, new list": w53_in_place_but_a_new_list,
        "zero gradient divides by zero": w53_zero_division,
        "zero gradient is nan": w53_zero_is_nan,
        "same tensors at scale 1": w53_same_tensors_at_scale_1,
        "squares overflow": w53_squares_overflow,
        "sum of norms": w53_sum_of_norms,
        "no root": w53_no_root,
        "limit is 1": w53_limit_is_1,
        "only equal shapes": w53_one_shape,
        "clamps each number": w53_clamps_numbers,
        "small ones stay scaled": w53_small_ones_stay_scaled,
        "multiplies by the scale": w53_multiplies,
        "scale is 65536": w53_scale_is_65536,
        "unscaled in fp16": w53_unscaled_in_fp16,
        "largest number": w53_largest_number,
        "root mean square": w53_mean_square,
    },
    "compensated_add": {
        "sign turned": w54_sign_turned,
        "old lost dropped": w54_old_lost_not_added,
        "old lost only kept": w54_old_lost_only_kept,
        "lost counted twice": w54_lost_counted_twice,
        "one after the other": w54_one_after_the_other,
        "lost in fp32": w54_lost_in_fp32,
        "weight in fp32": w54_weight_in_fp32,
        "in place": w54_in_place,
        "lost is always 0": w54_always_zero,
        "all or nothing": w54_all_or_nothing,
        "lost without the old one": w54_forgets_the_old_one,
        "textbook signs": w54_textbook_signs,
        "through fp16": w54_through_fp16,
        "cut off": w54_cut_off,
        "order of subtraction": w54_lost_from_the_update_that_fits,
        "one that does not fit stops all": w54_only_if_all_fit,
        "no update, no change": w54_no_update_no_change,
        "only vectors": w54_only_vectors,
    },
}
RIGHT = {
    "round_mantissa": {
        "bit trick": r51_bit_trick,
        "python's round": r51_python_round,
        "numpy": r51_numpy,
        "large number added": r51_large_number_added,
    },
    "scale_history": {"looks back": r52_looks_back, "accumulate": r52_accumulate, "runs and exponents":
    r52_runs_and_exponents}, "unscale_and_clip": {
        "one factor": r53_one_factor,
        "one vector, tuple": r53_one_vector,
        "norm of norms": r53_norm_of_norms,
    },
    "compensated_add": {"fp32 in between": r54_fp32_in_between, "two-sum": r54_two_sum, "one by one, list":
    r54_one_by_one},
}
