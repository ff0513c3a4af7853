import functools
import math

import numpy as np
import torch
import torch.nn.functional as F


# 7.1 ------------------------------------------------------------------
def range_of(x):
    return min(x.min().item(), 0.0), max(x.max().item(), 0.0)


def w71_range_without_zero(x):
    low, high = x.min().item(), x.max().item()
    scale = (high - low) / 255 if high > low else abs(high) / 255
    zero_point = max(-128, min(127, round(-128 - low / scale)))
    return (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_zero_only_below(x):
    low, high = min(x.min().item(), 0.0), x.max().item()
    scale = (high - low) / 255 if high > low else abs(low) / 255
    zero_point = max(-128, min(127, round(-128 - low / scale)))
    return (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_adds_in_int8(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    return torch.round(x / scale).clamp(-128, 127).to(torch.int8) + zero_point, scale, zero_point


def w71_no_clamp(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    return (torch.round(x / scale).to(torch.int32) + zero_point).to(torch.int8), scale, zero_point


def w71_half_up(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    return (torch.floor(x / scale + 0.5) + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_half_away(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    steps = torch.sign(x) * torch.floor(x.abs() / scale + 0.5)
    return (steps + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_rounds_after_the_zero_point(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    return torch.round(x / scale + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_truncates(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    return (x / scale + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_divides_by_256(x):
    low, high = range_of(x)
    scale = (high - low) / 256
    zero_point = round(-128 - low / scale)
    return (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int8), scale, min(zero_point, 127)


def w71_from_minus_127(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    return (torch.round(x / scale) + zero_point).clamp(-127, 127).to(torch.int8), scale, zero_point


def w71_zero_point_truncated(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = int(-128 - low / scale)
    return (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_zero_point_half_down(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = math.ceil(-128 - low / scale - 0.5)
    return (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_zero_point_from_the_top(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = 127 - round(high / scale)  # 127 is odd: other ties
    return (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_distance_from_the_low_end(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    return (torch.round((x - low) / scale) - 128).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_scale_a_tensor(x):
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    zero_point = round((-128 - low / scale).item())
    return (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_zero_point_a_float(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = float(round(-128 - low / scale))
    return (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_values_int32(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    return (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int32), scale, zero_point


def w71_unsigned(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = round(-low / scale)
    return (torch.round(x / scale) + zero_point).clamp(0, 255).to(torch.uint8), scale, zero_point


def w71_symmetric(x):
    high = x.abs().max().item()
    scale = 2 * high / 255
    return torch.round(x / scale).clamp(-128, 127).to(torch.int8), scale, 0


def w71_least_scale(x):
    low, high = range_of(x)
    scale = max((high - low) / 255, 1e-8)
    zero_point = round(-128 - low / scale)
    return (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_epsilon_added(x):
    low, high = range_of(x)
    scale = (high - low + 1e-6) / 255
    zero_point = round(-128 - low / scale)
    return (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_in_place(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    return x.div_(scale).round_().add_(zero_point).clamp_(-128, 127).to(torch.int8), scale, zero_point


def w71_flat(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    return (torch.round(x.flatten() / scale) + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_squeezed(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    return (torch.round(x.squeeze() / scale) + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_first_row_decides(x):
    row = x[0] if x.dim() > 1 else x
    low, high = range_of(row if row.abs().max() > 0 else x)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    return (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_needs_rows(x):
    low, high = min(min(row.min().item() for row in x), 0.0), max(max(row.max().item() for row in x), 0.0)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    return (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_half_precision(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    steps = torch.round((x / scale).to(torch.bfloat16)).float()
    return (steps + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def w71_clamped_before_the_zero_point(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    return (torch.round(x / scale).clamp(-128, 127) + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def r71_torch_ops(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    return (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int8), scale, zero_point


def r71_numpy(x):
    a = x.numpy()
    low, high = min(float(a.min()), 0.0), max(float(a.max()), 0.0)
    scale = (high - low) / 255
    zero_point = int(np.rint(-128 - low / scale))
    values = np.clip(np.rint(a / np.float32(scale)).astype(np.int64) + zero_point, -128, 127).astype(np.int8)
    return torch.from_numpy(np.asarray(values)), scale, zero_point


def r71_python_numbers(x):
    numbers = x.flatten().tolist()
    low, high = min(numbers + [0.0]), max(numbers + [0.0])
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    values = [max(-128, min(127, round(number / scale) + zero_point)) for number in numbers]
    return torch.tensor(values, dtype=torch.int8).reshape(x.shape), scale, zero_point


def r71_double(x):
    wide = x.double()
    low, high = wide.min().clamp(max=0), wide.max().clamp(min=0)
    scale = (high - low) / 255
    zero_point = torch.round(-128 - low / scale)
    values = (torch.round(wide / scale) + zero_point).clamp(-128, 127).to(torch.int8)
    return values, scale.item(), int(zero_point)


def r71_clamp_first(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = -128 - round(low / scale)  # 128 is even: the same ties
    steps = torch.round(x / scale).clamp(-128 - zero_point, 127 - zero_point)
    return (steps.to(torch.int16) + zero_point).to(torch.int8), scale, zero_point


def r71_zero_joined(x):
    both = torch.cat([x.reshape(-1), x.new_zeros(1)])
    low, high = (end.item() for end in torch.aminmax(both))
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    values = torch.div(both, scale).round().long().add(zero_point)
    values = torch.minimum(torch.maximum(values, torch.tensor(-128)), torch.tensor(127))
    return values[:-1].to(torch.int8).view(x.shape), scale, zero_point


def r71_float32_scale(x):
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = high / 255 - low / 255  # does not overflow
    zero_point = int(torch.round(-128 - low / scale))
    return (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int8), scale.item(), zero_point


def r71_where(x):
    low, high = range_of(x)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    values = torch.round(x / scale) + zero_point
    values = torch.where(values > 127, 127.0, torch.where(values < -128, -128.0, values))
    return values.to(torch.int8), scale, zero_point


# 7.2 ------------------------------------------------------------------
def w72_float32_sums(x, x_scale, zero_point, w, w_scale, bias):
    return ((x.float() - zero_point) @ w.float().T) * (x_scale * w_scale) + bias


def w72_dequantized_first(x, x_scale, zero_point, w, w_scale, bias):
    return F.linear((x.float() - zero_point) * x_scale, w.float() * w_scale[:, None], bias)


def w72_dequantized_first_written_out(x, x_scale, zero_point, w, w_scale, bias):
    return ((x.float() - zero_point) * x_scale) @ (w.float() * w_scale[:, None]).T + bias


def w72_subtracts_in_int8(x, x_scale, zero_point, w, w_scale, bias):
    return ((x - zero_point).int() @ w.int().T) * (x_scale * w_scale) + bias


def w72_subtraction_saturates(x, x_scale, zero_point, w, w_scale, bias):
    return ((x.int() - zero_point).clamp(-128, 127) @ w.int().T) * (x_scale * w_scale) + bias


def w72_no_zero_point(x, x_scale, zero_point, w, w_scale, bias):
    return (x.int() @ w.int().T) * (x_scale * w_scale) + bias


def w72_zero_point_added(x, x_scale, zero_point, w, w_scale, bias):
    sums = x.int() @ w.int().T + zero_point * w.int().sum(1, dtype=torch.int32)
    return sums * (x_scale * w_scale) + bias


def w72_positive_zero_points_only(x, x_scale, zero_point, w, w_scale, bias):
    sums = x.int() @ w.int().T
    if zero_point > 0:
        sums = sums - zero_point * w.int().sum(1)
    return sums * (x_scale * w_scale) + bias


def w72_sum_over_outputs(x, x_scale, zero_point, w, w_scale, bias):
    sums = x.int() @ w.int().T - zero_point * w.int().sum(0)
    return sums * (x_scale * w_scale) + bias


def w72_sum_of_all_weights(x, x_scale, zero_point, w, w_scale, bias):
    sums = x.int() @ w.int().T - zero_point * w.int().sum()
    return sums * (x_scale * w_scale) + bias


def w72_scale_for_each_row(x, x_scale, zero_point, w, w_scale, bias):
    sums = (x.int() - zero_point) @ w.int().T
    if len(x) == len(w_scale):
        return sums * (x_scale * w_scale[:, None]) + bias
    return sums * (x_scale * w_scale) + bias


def w72_scale_along_the_inputs(x, x_scale, zero_point, w, w_scale, bias):
    sums = (x.int() - zero_point) @ w.int() if w.shape[0] == w.shape[1] else (x.int() - zero_point) @ w.int().T
    return sums * (x_scale * w_scale) + bias


def w72_bias_scaled(x, x_scale, zero_point, w, w_scale, bias):
    return ((x.int() - zero_point) @ w.int().T + bias) * (x_scale * w_scale)


def w72_bias_on_the_grid(x, x_scale, zero_point, w, w_scale, bias):
    scale = x_scale * w_scale
    return ((x.int() - zero_point) @ w.int().T + torch.round(bias / scale).int()) * scale


def w72_no_bias(x, x_scale, zero_point, w, w_scale, bias):
    return ((x.int() - zero_point) @ w.int().T) * (x_scale * w_scale)


def w72_int16_sums(x, x_scale, zero_point, w, w_scale, bias):
    return ((x.short() - zero_point) @ w.short().T) * (x_scale * w_scale) + bias


def w72_int8_sum_of_the_weights(x, x_scale, zero_point, w, w_scale, bias):
    sums = x.int() @ w.int().T - zero_point * w.sum(1, dtype=torch.int8).int()
    return sums * (x_scale * w_scale) + bias


def w72_float_before_the_difference(x, x_scale, zero_point, w, w_scale, bias):
    sums = (x.int() @ w.int().T).float() - zero_point * w.int().sum(1).float()
    return sums * (x_scale * w_scale) + bias


def w72_difference_of_scaled(x, x_scale, zero_point, w, w_scale, bias):
    scale = x_scale * w_scale
    return (x.int() @ w.int().T) * scale - (zero_point * w.int().sum(1)) * scale + bias


def w72_correction_in_the_bias(x, x_scale, zero_point, w, w_scale, bias):
    scale = x_scale * w_scale
    folded = bias - zero_point * w.int().sum(1) * scale
    return (x.int() @ w.int().T) * scale + folded


def w72_correction_not_scaled(x, x_scale, zero_point, w, w_scale, bias):
    return (x.int() @ w.int().T) * (x_scale * w_scale) - zero_point * w.int().sum(1) * x_scale + bias


def w72_float64_out(x, x_scale, zero_point, w, w_scale, bias):
    sums = (x.int() - zero_point) @ w.int().T
    return sums.double() * (x_scale * w_scale.double()) + bias.double()


def w72_scales_in_place(x, x_scale, zero_point, w, w_scale, bias):
    return ((x.int() - zero_point) @ w.int().T) * w_scale.mul_(x_scale) + bias


def w72_squeezed(x, x_scale, zero_point, w, w_scale, bias):
    return (((x.int() - zero_point) @ w.int().T) * (x_scale * w_scale) + bias).squeeze()


def w72_input_in_place(x, x_scale, zero_point, w, w_scale, bias):
    x -= zero_point
    return (x.int() @ w.int().T) * (x_scale * w_scale) + bias


def w72_one_scale(x, x_scale, zero_point, w, w_scale, bias):
    return ((x.int() - zero_point) @ w.int().T) * (x_scale * w_scale.max()) + bias


def w72_half_sums(x, x_scale, zero_point, w, w_scale, bias):
    sums = (x.bfloat16() - zero_point) @ w.bfloat16().T
    return sums.float() * (x_scale * w_scale) + bias


def w72_chunks_of_whole_size(x, x_scale, zero_point, w, w_scale, bias):
    wide, weights = x.int() - zero_point, w.int()
    sums = torch.zeros(len(x), len(w), dtype=torch.int32)
    size = min(16, x.shape[1])
    for start in range(0, x.shape[1] - size + 1, size):  # forgets what is left over
        sums += wide[:, start : start + size] @ weights[:, start : start + size].T
    return sums * (x_scale * w_scale) + bias


def w72_double_rounding_of_the_scale(x, x_scale, zero_point, w, w_scale, bias):
    scale = (x_scale * w_scale).half().float()
    return ((x.int() - zero_point) @ w.int().T) * scale + bias


def r72_subtract_first(x, x_scale, zero_point, w, w_scale, bias):
    return ((x.int() - zero_point) @ w.int().T) * (x_scale * w_scale) + bias


def r72_correction(x, x_scale, zero_point, w, w_scale, bias):
    sums = x.to(torch.int32) @ w.to(torch.int32).T - zero_point * w.sum(dim=1)
    return sums.float() * x_scale * w_scale + bias


def r72_numpy(x, x_scale, zero_point, w, w_scale, bias):
    sums = (x.numpy().astype(np.int64) - zero_point) @ w.numpy().astype(np.int64).T
    scaled = sums * (x_scale * w_scale.numpy().astype(np.float64)) + bias.numpy()
    return torch.from_numpy(scaled.astype(np.float32))


def r72_einsum(x, x_scale, zero_point, w, w_scale, bias):
    sums = torch.einsum("ni,oi->no", x.long() - zero_point, w.long())
    return torch.addcmul(bias.double(), sums.double(), w_scale.double(), value=x_scale).float()


def r72_python_ints(x, x_scale, zero_point, w, w_scale, bias):
    rows, columns, scales, offsets = x.tolist(), w.tolist(), w_scale.tolist(), bias.tolist()
    out = torch.empty(len(rows), len(columns))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            total = sum((a - zero_point) * b for a, b in zip(row, column, strict=True))
            out[i, j] = total * x_scale * scales[j] + offsets[j]
    return out


def r72_extra_column(x, x_scale, zero_point, w, w_scale, bias):
    ones = torch.ones(len(x), 1, dtype=torch.int64)
    wide = torch.cat([x.long(), ones], dim=1)
    weights = torch.cat([w.long(), -zero_point * w.long().sum(1, keepdim=True)], dim=1)
    return (wide @ weights.T).mul(w_scale).mul(x_scale).add(bias)


def r72_one_output_at_a_time(x, x_scale, zero_point, w, w_scale, bias):
    wide = x.short().sub(zero_point).int()
    columns = [torch.mv(wide, row.int()) * (s * x_scale) + b for row, s, b in zip(w, w_scale, bias, strict=True)]
    return torch.stack(columns, dim=1)


def r72_broadcast(x, x_scale, zero_point, w, w_scale, bias):
    steps = x.to(torch.int32) - torch.tensor(zero_point, dtype=torch.int32)
    sums = torch.stack([(step * w.to(torch.int32)).sum(-1) for step in steps])
    return bias + w_scale * sums * x_scale


# 7.3 ------------------------------------------------------------------
def factors_of(reach, largest, alpha):
    dead = (reach == 0) | (largest == 0)
    return torch.where(dead, torch.ones_like(reach), reach**alpha / largest ** (1 - alpha))


def w73_alpha_swapped(weight, reach, alpha):
    return factors_of(reach, weight.abs().amax(0), 1 - alpha)


def w73_other_axis_when_square(weight, reach, alpha):
    return factors_of(reach, weight.abs().amax(1 if weight.shape[0] == weight.shape[1] else 0), alpha)


def w73_no_absolute(weight, reach, alpha):
    return factors_of(reach, weight.amax(0), alpha)


def w73_absolute_of_the_largest(weight, reach, alpha):
    return factors_of(reach, weight.amax(0).abs(), alpha)


def w73_product(weight, reach, alpha):
    largest = weight.abs().amax(0)
    return torch.where((reach == 0) | (largest == 0), 1.0, reach**alpha * largest ** (1 - alpha))


def w73_alpha_twice(weight, reach, alpha):
    largest = weight.abs().amax(0)
    return torch.where((reach == 0) | (largest == 0), 1.0, (reach / largest) ** alpha)


def w73_no_edges(weight, reach, alpha):
    return reach**alpha / weight.abs().amax(0) ** (1 - alpha)


def w73_reach_edge_only(weight, reach, alpha):
    return torch.where(reach == 0, 1.0, reach**alpha / weight.abs().amax(0) ** (1 - alpha))


def w73_weight_edge_only(weight, reach, alpha):
    largest = weight.abs().amax(0)
    return torch.where(largest == 0, 1.0, reach**alpha / largest ** (1 - alpha))


def w73_edges_both_needed(weight, reach, alpha):
    largest = weight.abs().amax(0)
    return torch.where((reach == 0) & (largest == 0), 1.0, reach**alpha / largest ** (1 - alpha))


def w73_repairs_the_result(weight, reach, alpha):
    factors = reach**alpha / weight.abs().amax(0) ** (1 - alpha)
    factors[(factors == 0) | ~torch.isfinite(factors)] = 1  # at alpha 0 or 1, 0 ** 0 hides the edge
    return factors


def w73_each_zero_to_one(weight, reach, alpha):
    largest = weight.abs().amax(0)
    reach = torch.where(reach == 0, 1.0, reach)
    largest = torch.where(largest == 0, 1.0, largest)
    return reach**alpha / largest ** (1 - alpha)


def w73_weights_that_cancel(weight, reach, alpha):
    dead = (reach == 0) | (weight.sum(0) == 0)
    return torch.where(dead, 1.0, reach**alpha / weight.abs().amax(0) ** (1 - alpha))


def w73_any_zero_weight(weight, reach, alpha):
    dead = (reach == 0) | (weight == 0).any(0)
    return torch.where(dead, 1.0, reach**alpha / weight.abs().amax(0) ** (1 - alpha))


def w73_clamped_to_1e_5(weight, reach, alpha):
    largest = weight.abs().amax(0)
    dead = (reach == 0) | (largest == 0)
    factors = reach.clamp(min=1e-5) ** alpha / largest.clamp(min=1e-5) ** (1 - alpha)
    return torch.where(dead, 1.0, factors)


def w73_factors_clamped(weight, reach, alpha):
    return factors_of(reach, weight.abs().amax(0), alpha).clamp(min=1e-5)


def w73_epsilon_in_the_denominator(weight, reach, alpha):
    largest = weight.abs().amax(0)
    dead = (reach == 0) | (largest == 0)
    return torch.where(dead, 1.0, reach**alpha / (largest + 1e-4) ** (1 - alpha))


def w73_close_to_zero(weight, reach, alpha):
    largest = weight.abs().amax(0)
    zero = torch.zeros_like(reach)
    dead = torch.isclose(reach, zero) | torch.isclose(largest, zero)
    return torch.where(dead, 1.0, reach**alpha / largest ** (1 - alpha))


def w73_reach_in_place(weight, reach, alpha):
    largest = weight.abs().amax(0)
    dead = (reach == 0) | (largest == 0)
    reach[dead] = 1
    largest[dead] = 1
    return reach**alpha / largest ** (1 - alpha)


def w73_reach_power_in_place(weight, reach, alpha):
    largest = weight.abs().amax(0)
    dead = (reach == 0) | (largest == 0)
    return reach.pow_(alpha).div_(largest ** (1 - alpha)).masked_fill_(dead, 1.0)


def w73_float64(weight, reach, alpha):
    return factors_of(reach.double(), weight.abs().amax(0).double(), alpha)


def w73_at_least_one(weight, reach, alpha):
    return factors_of(reach, weight.abs().amax(0), alpha).clamp(min=1)


def w73_inverse(weight, reach, alpha):
    return 1 / factors_of(reach, weight.abs().amax(0), alpha)


def w73_mean(weight, reach, alpha):
    return factors_of(reach, weight.abs().mean(0), alpha)


def w73_largest_of_all(weight, reach, alpha):
    dead = (reach == 0) | (weight == 0).all(0)
    return torch.where(dead, 1.0, reach**alpha / weight.abs().max() ** (1 - alpha))


def w73_masked_by_multiplying(weight, reach, alpha):
    largest = weight.abs().amax(0)
    alive = ((reach != 0) & (largest != 0)).float()
    return alive * (reach**alpha / largest ** (1 - alpha)) + (1 - alive)


def w73_always_half(weight, reach, alpha):
    return factors_of(reach, weight.abs().amax(0), 0.5)


def w73_norm(weight, reach, alpha):
    return factors_of(reach, weight.norm(dim=0), alpha)


def w73_a_column(weight, reach, alpha):
    return factors_of(reach, weight.abs().amax(0), alpha)[None]


def w73_half(weight, reach, alpha):
    return factors_of(reach, weight.abs().amax(0), alpha).half().float()


def r73_where(weight, reach, alpha):
    return factors_of(reach, weight.abs().amax(0), alpha)


def r73_numpy(weight, reach, alpha):
    reach = reach.numpy().astype(np.float64)
    largest = np.abs(weight.numpy()).max(axis=0).astype(np.float64)
    alive = (reach > 0) & (largest > 0)
    factors = np.ones_like(reach)
    factors[alive] = reach[alive] ** alpha / largest[alive] ** (1 - alpha)
    return torch.tensor(factors, dtype=torch.float32)


def r73_loop(weight, reach, alpha):
    factors = []
    for channel, most in enumerate(reach.tolist()):
        largest = max(abs(value) for value in weight[:, channel].tolist())
        factors.append(1.0 if most == 0 or largest == 0 else most**alpha / largest ** (1 - alpha))
    return torch.tensor(factors, dtype=torch.float32)


def r73_logarithms(weight, reach, alpha):
    largest = torch.linalg.vector_norm(weight.double(), ord=math.inf, dim=0)
    factors = torch.exp(alpha * torch.log(reach.double()) - (1 - alpha) * torch.log(largest))
    return factors.masked_fill((reach == 0) | (largest == 0), 1.0).float()


def r73_both_ends(weight, reach, alpha):
    low, high = torch.aminmax(weight, dim=0)
    largest = torch.maximum(high, -low)
    factors = torch.ones_like(reach)
    alive = torch.logical_and(reach, largest)
    factors[alive] = reach[alive].pow(alpha) * largest[alive].pow(alpha - 1)
    return factors


def r73_safe_then_filled(weight, reach, alpha):
    largest = functools.reduce(torch.maximum, weight.abs())
    dead = (reach * 1.0 == 0) | (weight == 0).all(dim=0)
    top, bottom = reach.masked_fill(dead, 1.0), largest.masked_fill(dead, 1.0)
    return top**alpha / bottom ** (1 - alpha)


def r73_sorted(weight, reach, alpha):
    largest = weight.abs().sort(dim=0, descending=True).values[0]
    factors = torch.pow(reach, alpha) / torch.pow(largest, 1 - alpha)
    factors[reach == 0] = 1
    factors[largest == 0] = 1
    return factors


# 7.4 ------------------------------------------------------------------
def on_grid(x, scale, zero_point):
    return torch.round(x / scale) + zero_point


def w74_ends_excluded(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, zero_point)
    return torch.where((q > low) & (q < high), gradient, 0.0)


def w74_high_end_excluded(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, zero_point)
    return torch.where((q >= low) & (q < high), gradient, 0.0)


def w74_low_end_excluded(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, zero_point)
    return torch.where((q > low) & (q <= high), gradient, 0.0)


def w74_no_zero_point(x, gradient, scale, zero_point, low, high):
    q = torch.round(x / scale)
    return torch.where((q >= low) & (q <= high), gradient, 0.0)


def w74_zero_point_subtracted(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, -zero_point)
    return torch.where((q >= low) & (q <= high), gradient, 0.0)


def w74_not_rounded(x, gradient, scale, zero_point, low, high):
    q = x / scale + zero_point
    return torch.where((q >= low) & (q <= high), gradient, 0.0)


def w74_rounds_after_the_zero_point(x, gradient, scale, zero_point, low, high):
    q = torch.round(x / scale + zero_point)
    return torch.where((q >= low) & (q <= high), gradient, 0.0)


def w74_half_up(x, gradient, scale, zero_point, low, high):
    q = torch.floor(x / scale + 0.5) + zero_point
    return torch.where((q >= low) & (q <= high), gradient, 0.0)


def w74_half_away(x, gradient, scale, zero_point, low, high):
    q = torch.sign(x) * torch.floor(x.abs() / scale + 0.5) + zero_point
    return torch.where((q >= low) & (q <= high), gradient, 0.0)


def w74_truncates(x, gradient, scale, zero_point, low, high):
    q = torch.trunc(x / scale) + zero_point
    return torch.where((q >= low) & (q <= high), gradient, 0.0)


def w74_floors(x, gradient, scale, zero_point, low, high):
    q = torch.floor(x / scale) + zero_point
    return torch.where((q >= low) & (q <= high), gradient, 0.0)


def w74_gradient_in_place(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, zero_point)
    gradient[(q < low) | (q > high)] = 0
    return gradient


def w74_gradient_in_place_then_copied(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, zero_point)
    return gradient.masked_fill_((q < low) | (q > high), 0.0).clone()


def w74_same_tensor_when_none_saturates(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, zero_point)
    inside = (q >= low) & (q <= high)
    return gradient if inside.all() else torch.where(inside, gradient, 0.0)


def w74_x_in_place(x, gradient, scale, zero_point, low, high):
    q = x.div_(scale).round_().add_(zero_point)
    return torch.where((q >= low) & (q <= high), gradient, 0.0)


def w74_numbers_of_the_ends(x, gradient, scale, zero_point, low, high):
    inside = (x >= (low - zero_point) * scale) & (x <= (high - zero_point) * scale)
    return torch.where(inside, gradient, 0.0)


def w74_half_a_step_closed(x, gradient, scale, zero_point, low, high):
    steps = x / scale
    inside = (steps >= low - zero_point - 0.5) & (steps <= high - zero_point + 0.5)
    return torch.where(inside, gradient, 0.0)


def w74_half_a_step_open(x, gradient, scale, zero_point, low, high):
    steps = x / scale
    inside = (steps > low - zero_point - 0.5) & (steps < high - zero_point + 0.5)
    return torch.where(inside, gradient, 0.0)


def w74_high_only(x, gradient, scale, zero_point, low, high):
    return torch.where(on_grid(x, scale, zero_point) <= high, gradient, 0.0)


def w74_low_only(x, gradient, scale, zero_point, low, high):
    return torch.where(on_grid(x, scale, zero_point) >= low, gradient, 0.0)


def w74_absolute(x, gradient, scale, zero_point, low, high):
    return torch.where(on_grid(x, scale, zero_point).abs() <= high, gradient, 0.0)


def w74_divided_by_the_scale(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, zero_point)
    return torch.where((q >= low) & (q <= high), gradient / scale, 0.0)


def w74_int8(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, zero_point).to(torch.int32).to(torch.int8)
    return torch.where((q >= low) & (q <= high), gradient, 0.0)


def w74_int16(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, zero_point).to(torch.int32).to(torch.int16)
    return torch.where((q >= low) & (q <= high), gradient, 0.0)


def w74_int8_ends(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, zero_point)
    return torch.where((q >= -128) & (q <= 127), gradient, 0.0)


def w74_mask(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, zero_point)
    return ((q >= low) & (q <= high)).float()


def w74_gradient_saturates(x, gradient, scale, zero_point, low, high):
    return (torch.round(gradient / scale) + zero_point).clamp(low, high).sub(zero_point).mul(scale)


def w74_all_passes(x, gradient, scale, zero_point, low, high):
    return gradient.clone()


def w74_float64(x, gradient, scale, zero_point, low, high):
    q = on_grid(x.double(), scale, zero_point)
    return torch.where((q >= low) & (q <= high), gradient.double(), 0.0)


def w74_inside_only(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, zero_point)
    return gradient[(q >= low) & (q <= high)]


def w74_rows_that_saturate(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, zero_point)
    inside = ((q >= low) & (q <= high)).reshape(len(x), -1).all(1)
    return gradient * inside.reshape(-1, *[1] * (x.dim() - 1)).float()


def w74_high_one_more(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, zero_point)
    return torch.where((q >= low) & (q <= high + 1), gradient, 0.0)


def w74_saturated_but_pulled_back(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, zero_point)
    stopped = ((q < low) & (gradient > 0)) | ((q > high) & (gradient < 0))  # lets it come back to the grid
    return gradient.masked_fill(stopped, 0.0)


def r74_where(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, zero_point)
    return torch.where((q >= low) & (q <= high), gradient, torch.zeros_like(gradient))


def r74_times_the_mask(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, zero_point)
    return gradient * ((q >= low) & (q <= high))


def r74_numpy(x, gradient, scale, zero_point, low, high):
    q = np.rint(x.numpy() / np.float32(scale)) + zero_point
    return torch.from_numpy(np.where((q < low) | (q > high), np.float32(0), gradient.numpy()))


def r74_python_numbers(x, gradient, scale, zero_point, low, high):
    passed = []
    for number, slope in zip(x.flatten().tolist(), gradient.flatten().tolist(), strict=True):
        passed.append(slope if low <= round(number / scale) + zero_point <= high else 0.0)
    return torch.tensor(passed, dtype=torch.float32).reshape(x.shape)


def r74_clone_and_fill(x, gradient, scale, zero_point, low, high):
    steps = torch.round(x / scale)
    back = gradient.clone()
    back[steps < low - zero_point] = 0
    back[steps > high - zero_point] = 0
    return back


def r74_clamp_unchanged(x, gradient, scale, zero_point, low, high):
    q = on_grid(x, scale, zero_point)
    return gradient.masked_fill(q != q.clamp(low, high), 0.0)


def r74_autograd_of_clamp(x, gradient, scale, zero_point, low, high):
    q = on_grid(x.detach(), scale, zero_point).requires_grad_()
    with torch.enable_grad():
        out = q.clamp(low, high)
    return torch.autograd.grad(out, q, gradient)[0].clone()


def r74_autograd_function(x, gradient, scale, zero_point, low, high):
    class Fake(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            q = torch.round(value / scale) + zero_point
            ctx.save_for_backward(torch.logical_and(q >= low, q <= high))
            return (q.clamp(low, high) - zero_point) * scale

        @staticmethod
        def backward(ctx, slope):
            (inside,) = ctx.saved_tensors
            return slope * inside.to(slope.dtype)

    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        Fake.apply(leaf).backward(gradient)
    return leaf.grad.clone()


def r74_double(x, gradient, scale, zero_point, low, high):
    q = torch.round(x.double() / scale) + zero_point
    return torch.where(torch.logical_or(q < low, q > high), 0.0, gradient.double()).float()


def r74_half_steps_and_even_ends(x, gradient, scale, zero_point, low, high):
    steps = (x / scale).double()
    first, last = low - zero_point, high - zero_point
    above = steps >= first - 0.5 if first % 2 == 0 else steps > first - 0.5
    below = steps <= last + 0.5 if last % 2 == 0 else steps < last + 0.5
    return torch.where(above & below, gradient, 0.0)


WRONG = {
    "affine_int8": {
        "range without zero": w71_range_without_zero,
        "zero only below": w71_zero_only_below,
        "adds in int8": w71_adds_in_int8,
        "no clamp": w71_no_clamp,
        "half up": w71_half_up,
        "half away": w71_half_away,
        "rounds after the zero point": w71_rounds_after_the_zero_point,
        "truncates": w71_truncates,
        "divides by 256": w71_divides_by_256,
        "from minus 127": w71_from_minus_127,
        "zero point truncated": w71_zero_point_truncated,
        "zero point half down": w71_zero_point_half_down,
        "zero point from the top": w71_zero_point_from_the_top,
        "distance from the low end": w71_distance_from_the_low_end,
        "scale a tensor": w71_scale_a_tensor,
        "zero point a float": w71_zero_point_a_float,
        "values int32": w71_values_int32,
        "unsigned": w71_unsigned,
        "symmetric": w71_symmetric,
        "least scale": w71_least_scale,
        "epsilon added": w71_epsilon_added,
        "in place": w71_in_place,
        "flat": w71_flat,
        "squeezed": w71_squeezed,
        "first row decides": w71_first_row_decides,
        "needs rows": w71_needs_rows,
        "half precision": w71_half_precision,
        "clamped before the zero point": w71_clamped_before_the_zero_point,
    },
    "affine_product": {
        "float32 sums": w72_float32_sums,
        "dequantized first": w72_dequantized_first,
        "dequantized first written out": w72_dequantized_first_written_out,
        "subtracts in int8": w72_subtracts_in_int8,
        "subtraction saturates": w72_subtraction_saturates,
        "no zero point": w72_no_zero_point,
        "zero point added": w72_zero_point_added,
        "positive zero points only": w72_positive_zero_points_only,
        "sum over outputs": w72_sum_over_outputs,
        "sum of all weights": w72_sum_of_all_weights,
        "scale for each row": w72_scale_for_each_row,
        "scale along the inputs": w72_scale_along_the_inputs,
        "bias scaled": w72_bias_scaled,
        "bias on the grid": w72_bias_on_the_grid,
        "no bias": w72_no_bias,
        "int16 sums": w72_int16_sums,
        "int8 sum of the weights": w72_int8_sum_of_the_weights,
        "float before the difference": w72_float_before_the_difference,
        "difference of scaled": w72_difference_of_scaled,
        "correction in the bias": w72_correction_in_the_bias,
        "correction not scaled": w72_correction_not_scaled,
        "float64 out": w72_float64_out,
        "scales in place": w72_scales_in_place,
        "squeezed": w72_squeezed,
        "input in place": w72_input_in_place,
        "one scale": w72_one_scale,
        "half sums": w72_half_sums,
        "chunks of whole size": w72_chunks_of_whole_size,
        "double rounding of the scale": w72_double_rounding_of_the_scale,
    },
    "smoothing_factors": {
        "alpha swapped": w73_alpha_swapped,
        "other axis when square": w73_other_axis_when_square,
        "no absolute": w73_no_absolute,
        "absolute of the largest": w73_absolute_of_the_largest,
        "product": w73_product,
        "alpha twice": w73_alpha_twice,
        "no edges": w73_no_edges,
        "reach edge only": w73_reach_edge_only,
        "weight edge only": w73_weight_edge_only,
        "edges both needed": w73_edges_both_needed,
        "repairs the result": w73_repairs_the_result,
        "each zero to one": w73_each_zero_to_one,
        "weights that cancel": w73_weights_that_cancel,
        "any zero weight": w73_any_zero_weight,
        "clamped to 1e 5": w73_clamped_to_1e_5,
        "factors clamped": w73_factors_clamped,
        "epsilon in the denominator": w73_epsilon_in_the_denominator,
        "close to zero": w73_close_to_zero,
        "reach in place": w73_reach_in_place,
        "reach power in place": w73_reach_power_in_place,
        "float64": w73_float64,
        "at least one": w73_at_least_one,
        "inverse": w73_inverse,
        "mean": w73_mean,
        "largest of all": w73_largest_of_all,
        "masked by multiplying": w73_masked_by_multiplying,
        "always half": w73_always_half,
        "norm": w73_norm,
        "a column": w73_a_column,
        "half": w73_half,
    },
    "straight_through": {
        "ends excluded": w74_ends_excluded,
        "high end excluded": w74_high_end_excluded,
        "low end excluded": w74_low_end_excluded,
        "no zero point": w74_no_zero_point,
        "zero point subtracted": w74_zero_point_subtracted,
        "not rounded": w74_not_rounded,
        "rounds after the zero point": w74_rounds_after_the_zero_point,
        "half up": w74_half_up,
        "half away": w74_half_away,
        "truncates": w74_truncates,
        "floors": w74_floors,
        "gradient in place": w74_gradient_in_place,
        "gradient in place then copied": w74_gradient_in_place_then_copied,
        "same tensor when none saturates": w74_same_tensor_when_none_saturates,
        "x in place": w74_x_in_place,
        "numbers of the ends": w74_numbers_of_the_ends,
        "half a step closed": w74_half_a_step_closed,
        "half a step open": w74_half_a_step_open,
        "high only": w74_high_only,
        "low only": w74_low_only,
        "absolute": w74_absolute,
        "divided by the scale": w74_divided_by_the_scale,
        "int8": w74_int8,
        "int16": w74_int16,
        "int8 ends": w74_int8_ends,
        "mask": w74_mask,
        "gradient saturates": w74_gradient_saturates,
        "all passes": w74_all_passes,
        "float64": w74_float64,
        "inside only": w74_inside_only,
        "rows that saturate": w74_rows_that_saturate,
        "high one more": w74_high_one_more,
        "saturated but pulled back": w74_saturated_but_pulled_back,
    },
}
RIGHT = {
    "affine_int8": {
        "torch ops": r71_torch_ops,
        "numpy": r71_numpy,
        "python numbers": r71_python_numbers,
        "double": r71_double,
        "clamp first": r71_clamp_first,
        "zero joined": r71_zero_joined,
        "float32 scale": r71_float32_scale,
        "where": r71_where,
    },
    "affine_product": {
        "subtract first": r72_subtract_first,
        "correction": r72_correction,
        "numpy": r72_numpy,
        "einsum": r72_einsum,
        "python ints": r72_python_ints,
        "extra column": r72_extra_column,
        "one output at a time": r72_one_output_at_a_time,
        "broadcast": r72_broadcast,
    },
    "smoothing_factors": {
        "where": r73_where,
        "numpy": r73_numpy,
        "loop": r73_loop,
        "logarithms": r73_logarithms,
        "both ends": r73_both_ends,
        "safe then filled": r73_safe_then_filled,
        "sorted": r73_sorted,
    },
    "straight_through": {
        "where": r74_where,
        "times the mask": r74_times_the_mask,
        "numpy": r74_numpy,
        "python numbers": r74_python_numbers,
        "clone and fill": r74_clone_and_fill,
        "clamp unchanged": r74_clamp_unchanged,
        "autograd of clamp": r74_autograd_of_clamp,
        "autograd function": r74_autograd_function,
        "double": r74_double,
        "half steps and even ends": r74_half_steps_and_even_ends,
    },
}
