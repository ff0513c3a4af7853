import itertools
from collections import OrderedDict

import numpy as np
import torch


# 9.1 ------------------------------------------------------------------
def w91_from_the_top(layers, rate, decay):
    return [rate * decay**depth for depth in range(layers + 2)]


def w91_no_embeddings(layers, rate, decay):
    return [rate * decay ** (layers - depth) for depth in range(layers + 1)]


def w91_head_decayed(layers, rate, decay):
    return [rate * decay ** (layers + 2 - depth) for depth in range(layers + 2)]


def w91_embeddings_like_layer_1(layers, rate, decay):
    return [rate * decay**layers] + [rate * decay ** (layers + 1 - depth) for depth in range(1, layers + 2)]


def w91_top_layer_like_head(layers, rate, decay):
    return [rate * decay ** (layers - depth) for depth in range(layers + 1)] + [rate]


def w91_linear(layers, rate, decay):
    return [rate * (1 - (1 - decay) * (layers + 1 - depth)) for depth in range(layers + 2)]


def w91_four_layers(layers, rate, decay):
    return [rate * decay**floors for floors in (5, 4, 3, 2, 1, 0)]


def w91_divides(layers, rate, decay):
    return [rate / decay ** (layers + 1 - depth) for depth in range(layers + 2)]


def r91_up_by_division(layers, rate, decay):
    rates = [rate * decay ** (layers + 1)]
    for _ in range(layers + 1):
        rates.append(rates[-1] / decay)
    return rates


def w91_rounded(layers, rate, decay):
    return [round(rate * decay ** (layers + 1 - depth), 6) for depth in range(layers + 2)]


def w91_one_decay_for_all(layers, rate, decay):
    return [rate * decay] * (layers + 1) + [rate]


def w91_at_least_one_layer(layers, rate, decay):
    middle = [rate * decay ** (layers + 1 - depth) for depth in range(1, max(layers, 1) + 1)]
    return [middle[0] * decay, *middle, rate]


def w91_ratio_squared(layers, rate, decay):
    rates = [rate]
    for floor in range(1, layers + 2):
        rates.insert(0, rates[0] * decay**floor)
    return rates


def r91_walk_down(layers, rate, decay):
    rates = [rate]
    for _ in range(layers + 1):
        rates.insert(0, rates[0] * decay)
    return rates


def r91_accumulate(layers, rate, decay):
    return list(itertools.accumulate([rate] + [decay] * (layers + 1), lambda a, b: a * b))[::-1]


def r91_numpy(layers, rate, decay):
    return (rate * np.float64(decay) ** np.arange(layers + 1, -1, -1)).tolist()


# 9.2 ------------------------------------------------------------------
def w92_each_token(gradient, real, size):
    gradient = gradient * real[..., None]
    norm = gradient.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    return gradient * size[:, None, None] / norm


def w92_whole_batch(gradient, real, size):
    gradient = gradient * real[..., None]
    return gradient * (size[:, None, None] / gradient.norm().clamp_min(1e-30))


def w92_padding_counts(gradient, real, size):
    norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
    return gradient * (size / norm)[:, None, None] * real[..., None]


def w92_padding_moves(gradient, real, size):
    norm = (gradient * real[..., None]).flatten(1).norm(dim=1).clamp_min(1e-30)
    return gradient * (size / norm)[:, None, None]


def w92_zero_is_nan(gradient, real, size):
    gradient = gradient * real[..., None]
    return gradient * (size / gradient.flatten(1).norm(dim=1))[:, None, None]


def w92_down(gradient, real, size):
    gradient = gradient * real[..., None]
    norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
    return -gradient * (size / norm)[:, None, None]


def w92_sign(gradient, real, size):
    gradient = (gradient * real[..., None]).sign()
    norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
    return gradient * (size / norm)[:, None, None]


def w92_plus_millionth(gradient, real, size):
    gradient = gradient * real[..., None]
    norm = gradient.flatten(1).norm(dim=1) + 1e-6
    return gradient * (size / norm)[:, None, None]


def w92_at_least_1e_8(gradient, real, size):
    gradient = gradient * real[..., None]
    norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-8)
    return gradient * (size / norm)[:, None, None]


def r92_normalize(gradient, real, size):
    gradient = gradient * real[..., None]
    return torch.nn.functional.normalize(gradient.flatten(1), eps=1e-12).view_as(gradient) * size[:, None, None]


def w92_one_size(gradient, real, size):
    gradient = gradient * real[..., None]
    norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
    return gradient * (size[0] / norm)[:, None, None]


def w92_mean_size(gradient, real, size):
    gradient = gradient * real[..., None]
    norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
    return gradient * (size.mean() / norm)[:, None, None]


def w92_no_root(gradient, real, size):
    gradient = gradient * real[..., None]
    norm = (gradient**2).sum((1, 2)).clamp_min(1e-30)
    return gradient * (size / norm)[:, None, None]


def w92_size_along_hidden(gradient, real, size):
    gradient = gradient * real[..., None]
    norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
    return gradient / norm[:, None, None] * size


def w92_one_zero_stops_all(gradient, real, size):
    gradient = gradient * real[..., None]
    norm = gradient.flatten(1).norm(dim=1)
    if (norm == 0).any():
        return torch.zeros_like(gradient)
    return gradient * (size / norm)[:, None, None]


def w92_one_norm(gradient, real, size):
    gradient = gradient * real[..., None]
    norm = gradient.flatten(1).abs().sum(1).clamp_min(1e-30)
    return gradient * (size / norm)[:, None, None]


def w92_root_of_tokens(gradient, real, size):
    gradient = gradient * real[..., None]
    norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
    return gradient * (size * real.sum(1).sqrt() / norm)[:, None, None]


def w92_first_padding_by_length(gradient, real, size):
    gradient = gradient * (torch.arange(real.shape[1]) < real.sum(1)[:, None])[..., None]  # padding only on the right
    norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
    return gradient * (size / norm)[:, None, None]


def w92_never_longer_than_gradient(gradient, real, size):
    gradient = gradient * real[..., None]
    norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
    return gradient * (size / norm).clamp(max=1.0)[:, None, None]


def w92_each_coordinate(gradient, real, size):
    gradient = gradient * real[..., None]
    norm = gradient.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return gradient * size[:, None, None] / norm


def r92_one_by_one(gradient, real, size):
    shift = torch.zeros_like(gradient)
    for i in range(len(gradient)):
        own = gradient[i][real[i]]
        if own.numel() and own.abs().max() > 0:
            shift[i, real[i]] = own / own.norm() * size[i]
    return shift


def r92_where(gradient, real, size):
    kept = torch.where(real[:, :, None], gradient, torch.zeros_like(gradient))
    norm = torch.linalg.vector_norm(kept, dim=(1, 2), keepdim=True)
    return torch.where(norm > 0, kept * (size.reshape(-1, 1, 1) / norm), torch.zeros_like(kept))


def r92_numpy(gradient, real, size):
    kept = gradient.detach().numpy().astype(np.float64) * real.numpy()[:, :, None]
    norm = np.sqrt(np.einsum("bsh,bsh->b", kept, kept))
    factor = np.divide(size.numpy(), norm, out=np.zeros_like(norm), where=norm > 0)
    return torch.from_numpy(kept * factor[:, None, None]).to(gradient.dtype)


# 9.3 ------------------------------------------------------------------
def _wide(tensor):
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _mean(states, name):
    dtype = states[0][name].dtype
    return (sum(_wide(state[name]) for state in states) / len(states)).to(dtype)


def w93_counters_averaged(states):
    return {name: _mean(states, name) for name in states[0]}


def w93_counters_of_the_first(states):
    return {n: _mean(states, n) if t.is_floating_point() else t.clone() for n, t in states[0].items()}


def w93_largest_counter(states):
    mean = {}
    for name, last in states[-1].items():
        if last.is_floating_point():
            mean[name] = _mean(states, name)
        else:
            mean[name] = torch.stack([state[name].long() for state in states]).amax(0).to(last.dtype)
    return mean


def w93_counters_left_out(states):
    return {name: _mean(states, name) for name, last in states[-1].items() if last.is_floating_point()}


def w93_adds_in_bf16(states):
    mean = {}
    for name, last in states[-1].items():
        mean[name] = sum(state[name] for state in states) / len(states) if last.is_floating_point() else last.clone()
    return mean


def w93_running_in_bf16(states):
    mean = {name: tensor.clone() for name, tensor in states[0].items()}
    for count, state in enumerate(states[1:], 2):
        for name, tensor in state.items():
            if tensor.is_floating_point():
                mean[name] += (tensor - mean[name]) / count
            else:
                mean[name] = tensor.clone()
    return mean


def w93_sum_rounded_too(states):
    mean = {}
    for name, last in states[-1].items():
        if last.is_floating_point():
            mean[name] = sum(_wide(state[name]) for state in states).to(last.dtype) / len(states)
        else:
            mean[name] = last.clone()
    return mean


def w93_shares_in_bf16(states):
    mean = {}
    for name, last in states[-1].items():
        if last.is_floating_point():
            mean[name] = sum(_wide(state[name] / len(states)) for state in states).to(last.dtype)
        else:
            mean[name] = last.clone()
    return mean


def w93_half_of_two_each_time(states):
    mean = {name: _wide(t) if t.is_floating_point() else t.clone() for name, t in states[0].items()}
    for state in states[1:]:
        for name, tensor in state.items():
            mean[name] = (mean[name] + _wide(tensor)) / 2 if tensor.is_floating_point() else tensor.clone()
    return {name: tensor.to(states[0][name].dtype) for name, tensor in mean.items()}


def w93_counters_shared(states):
    return {n: _mean(states, n) if t.is_floating_point() else t for n, t in states[-1].items()}


def w93_changes_the_first_state(states):
    mean = {}
    for name, last in states[-1].items():
        if last.is_floating_point():
            total = _wide(states[0][name])
            for state in states[1:]:
                total += _wide(state[name])
            mean[name] = (total / len(states)).to(last.dtype)
        else:
            mean[name] = last.clone()
    return mean


def w93_all_fp32(states):
    mean = {}
    for name, last in states[-1].items():
        floating = last.is_floating_point()
        mean[name] = sum(_wide(state[name]) for state in states) / len(states) if floating else last.clone()
    return mean


def w93_fp64_through_fp32(states):
    mean = {}
    for name, last in states[-1].items():
        if last.is_floating_point():
            mean[name] = (sum(state[name].float() for state in states) / len(states)).to(last.dtype)
        else:
            mean[name] = last.clone()
    return mean


def w93_fp16_overflows(states):
    mean = {}
    for name, last in states[-1].items():
        if last.dtype == torch.bfloat16:
            mean[name] = _mean(states, name)
        elif last.is_floating_point():
            mean[name] = sum(state[name] for state in states) / len(states)
        else:
            mean[name] = last.clone()
    return mean


def w93_only_int64_is_a_counter(states):
    mean = {}
    for name, last in states[-1].items():
        mean[name] = last.clone() if last.dtype == torch.int64 else _mean(states, name)
    return mean


def w93_counter_by_name(states):
    mean = {}
    for name, last in states[-1].items():
        mean[name] = last.clone() if "num_batches" in name else _mean(states, name)
    return mean


def w93_without_the_last(states):
    mean = {}
    for name, last in states[-1].items():
        mean[name] = _mean(states[:-1] or states, name) if last.is_floating_point() else last.clone()
    return mean


def w93_two_states(states):
    first, last = states[0], states[-1]
    mean = {}
    for name in last:
        floating = last[name].is_floating_point()
        mean[name] = _mean([first, last], name) if floating else last[name].clone()
    return mean


def w93_only_fp32_and_bf16(states):
    mean = {}
    for name, last in states[-1].items():
        known = last.dtype in (torch.float32, torch.bfloat16)
        mean[name] = _mean(states, name) if known else last.clone()
    return mean


def w93_one_state_as_it_is(states):
    if len(states) == 1:
        return states[0]
    mean = {}
    for name, last in states[-1].items():
        mean[name] = _mean(states, name) if last.is_floating_point() else last.clone()
    return mean


def r93_stacked(states):
    mean = OrderedDict()
    for name in states[0]:
        own = torch.stack([state[name] for state in states])
        if own.is_floating_point():
            wide = own if own.dtype == torch.float64 else own.to(torch.float32)
            mean[name] = wide.mean(0).to(own.dtype)
        else:
            mean[name] = own[-1].clone()
    return mean


def r93_add_in_place_to_a_copy(states):
    totals = {name: tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
              for name, tensor in states[0].items() if tensor.dtype.is_floating_point}  # fmt: skip
    for state in states[1:]:
        for name, total in totals.items():
            total.add_(state[name])
    mean = {name: tensor.clone() for name, tensor in states[-1].items()}
    for name, total in totals.items():
        mean[name] = total.div_(len(states)).to(mean[name].dtype)
    return mean


def r93_weighted_shares(states):
    def mean(tensors):
        wide = torch.promote_types(tensors[0].dtype, torch.float32)
        ones = torch.ones(len(tensors), dtype=wide)
        stacked = torch.stack([tensor.to(wide) for tensor in tensors], dim=-1)
        return ((stacked * ones).sum(-1) / len(tensors)).to(tensors[0].dtype)

    names = list(states[-1])
    floating = {name for name in names if torch.is_floating_point(states[-1][name])}
    return {n: mean([s[n] for s in states]) if n in floating else states[-1][n].detach().clone() for n in names}


# 9.4 ------------------------------------------------------------------
def _integrated(function, x, baseline, shares):
    shares = torch.as_tensor(shares, dtype=x.dtype).view(-1, *[1] * x.ndim)
    points = (baseline + shares * (x - baseline)).detach().requires_grad_(True)
    return torch.autograd.grad(function(points).sum(), points)[0]


def w94_left_ends(function, x, baseline, steps):
    return (x - baseline) * _integrated(function, x, baseline, [i / steps for i in range(steps)]).mean(0)


def w94_right_ends(function, x, baseline, steps):
    return (x - baseline) * _integrated(function, x, baseline, [(i + 1) / steps for i in range(steps)]).mean(0)


def w94_linspace(function, x, baseline, steps):
    return (x - baseline) * _integrated(function, x, baseline, torch.linspace(0, 1, steps)).mean(0)


def w94_trapezoids(function, x, baseline, steps):
    gradient = _integrated(function, x, baseline, torch.linspace(0, 1, steps + 1))
    return (x - baseline) * ((gradient[1:] + gradient[:-1]) / 2).mean(0)


def w94_gradient_times_input(function, x, baseline, steps):
    return (x - baseline) * _integrated(function, x, baseline, [1.0])[0]


def w94_only_the_middle(function, x, baseline, steps):
    return (x - baseline) * _integrated(function, x, baseline, [0.5])[0]


def w94_times_x(function, x, baseline, steps):
    return x * _integrated(function, x, baseline, [(i + 0.5) / steps for i in range(steps)]).mean(0)


def w94_gradient_alone(function, x, baseline, steps):
    return _integrated(function, x, baseline, [(i + 0.5) / steps for i in range(steps)]).mean(0)


def w94_path_from_zero(function, x, baseline, steps):
    gradient = _integrated(function, x, torch.zeros_like(x), [(i + 0.5) / steps for i in range(steps)])
    return (x - baseline) * gradient.mean(0)


def w94_sum(function, x, baseline, steps):
    return (x - baseline) * _integrated(function, x, baseline, [(i + 0.5) / steps for i in range(steps)]).sum(0)


def w94_mean_twice(function, x, baseline, steps):
    share = ((torch.arange(steps, dtype=x.dtype) + 0.5) / steps).view(-1, *[1] * x.ndim)
    points = (baseline + share * (x - baseline)).detach().requires_grad_(True)
    function(points).mean().backward()
    return (x - baseline) * points.grad.mean(0)


def w94_only_vectors(function, x, baseline, steps):
    share = (torch.arange(steps, dtype=x.dtype) + 0.5) / steps
    points = (baseline + share[:, None] * (x - baseline)).detach().requires_grad_(True)
    return (x - baseline) * torch.autograd.grad(function(points).sum(), points)[0].mean(0)


def w94_only_matrices(function, x, baseline, steps):
    share = (torch.arange(steps, dtype=x.dtype) + 0.5) / steps
    points = (baseline + share[:, None, None] * (x - baseline)).detach().requires_grad_(True)
    return (x - baseline) * torch.autograd.grad(function(points).sum(), points)[0].mean(0)


def w94_gradients_pile_up(function, x, baseline, steps):
    point, total = x.clone().detach().requires_grad_(True), torch.zeros_like(x)
    for i in range(steps):
        with torch.no_grad():
            point.copy_(baseline + (i + 0.5) / steps * (x - baseline))
        function(point[None]).sum().backward()
        total = total + point.grad  # never set to zero
    return (x - baseline) * total / steps


def w94_fifty_steps(function, x, baseline, steps):
    return (x - baseline) * _integrated(function, x, baseline, [(i + 0.5) / 50 for i in range(50)]).mean(0)


def w94_without_batch(function, x, baseline, steps):
    total = torch.zeros_like(x)
    for i in range(steps):
        point = (baseline + (i + 0.5) / steps * (x - baseline)).detach().requires_grad_(True)
        total += torch.autograd.grad(function(point).sum(), point)[0]
    return (x - baseline) * total / steps


def w94_one_step_more(function, x, baseline, steps):
    return (x - baseline) * _integrated(function, x, baseline, [(i + 0.5) / (steps + 1) for i in range(steps)]).mean(0)


def w94_x_in_place_of_difference(function, x, baseline, steps):
    share = ((torch.arange(steps, dtype=x.dtype) + 0.5) / steps).view(-1, *[1] * x.ndim)
    points = (baseline + share * x).detach().requires_grad_(True)
    return (x - baseline) * torch.autograd.grad(function(points).sum(), points)[0].mean(0)


def w94_absolute(function, x, baseline, steps):
    return (x - baseline) * _integrated(function, x, baseline, [(i + 0.5) / steps for i in range(steps)]).abs().mean(0)


def w94_random_places(function, x, baseline, steps):
    return (x - baseline) * _integrated(function, x, baseline, torch.rand(steps)).mean(0)


def w94_one_number_a_row(function, x, baseline, steps):
    found = (x - baseline) * _integrated(function, x, baseline, [(i + 0.5) / steps for i in range(steps)]).mean(0)
    return found.sum(-1)


def w94_turned(function, x, baseline, steps):
    return (baseline - x) * _integrated(function, x, baseline, [(i + 0.5) / steps for i in range(steps)]).mean(0)


def w94_vectors_and_matrices(function, x, baseline, steps):
    share = (torch.arange(steps, dtype=x.dtype) + 0.5) / steps
    share = share[:, None] if x.ndim == 1 else share[:, None, None]
    points = (baseline + share * (x - baseline)).detach().requires_grad_(True)
    return (x - baseline) * torch.autograd.grad(function(points).sum(), points)[0].mean(0)


def r94_loop(function, x, baseline, steps):
    total = torch.zeros_like(x)
    for i in range(steps):
        point = (baseline + (x - baseline) * ((i + 0.5) / steps)).detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(function(point[None])[0], point)
        total = total + gradient
    return total / steps * (x - baseline)


def r94_backwards_in_chunks(function, x, baseline, steps):
    shares = torch.linspace(1 - 0.5 / steps, 0.5 / steps, steps, dtype=x.dtype)  # from x to the baseline
    gradients = []
    for chunk in shares.split(3):
        points = torch.stack([torch.lerp(baseline, x, share) for share in chunk]).detach().requires_grad_()
        values = function(points)
        gradients.append(torch.autograd.grad(values, points, torch.ones_like(values))[0])
    return torch.cat(gradients).mean(0).mul(x - baseline)


def r94_along_a_scale(function, x, baseline, steps):
    """The gradient with respect to one shift that all points share is the sum of theirs."""
    shares = torch.arange(1, 2 * steps, 2, dtype=x.dtype) / (2 * steps)
    points = torch.tensordot(shares, x - baseline, dims=0) + baseline
    shift = torch.zeros_like(x).requires_grad_(True)
    (gradient,) = torch.autograd.grad(function(points.detach() + shift).sum(), shift)
    return (x - baseline) * gradient / steps


WRONG = {
    "layer_rates": {
        "from the top": w91_from_the_top,
        "no embeddings": w91_no_embeddings,
        "head decayed": w91_head_decayed,
        "embeddings like layer 1": w91_embeddings_like_layer_1,
        "top layer like the head": w91_top_layer_like_head,
        "linear": w91_linear,
        "four layers": w91_four_layers,
        "divides": w91_divides,
        "rounded to 6 places": w91_rounded,
        "one decay for all": w91_one_decay_for_all,
        "at least one layer": w91_at_least_one_layer,
        "decay of decay": w91_ratio_squared,
    },
    "fast_gradient": {
        "each token": w92_each_token,
        "whole batch": w92_whole_batch,
        "padding counts": w92_padding_counts,
        "padding moves": w92_padding_moves,
        "zero is nan": w92_zero_is_nan,
        "down": w92_down,
        "sign": w92_sign,
        "norm + 1e-6": w92_plus_millionth,
        "norm at least 1e-8": w92_at_least_1e_8,
        "size of the first": w92_one_size,
        "mean size": w92_mean_size,
        "no root": w92_no_root,
        "size along hidden": w92_size_along_hidden,
        "one zero stops all": w92_one_zero_stops_all,
        "1-norm": w92_one_norm,
        "times sqrt(tokens)": w92_root_of_tokens,
        "padding only on the right": w92_first_padding_by_length,
        "never longer than the gradient": w92_never_longer_than_gradient,
        "each coordinate": w92_each_coordinate,
    },
    "average_states": {
        "counters averaged": w93_counters_averaged,
        "counters of the first": w93_counters_of_the_first,
        "largest counter": w93_largest_counter,
        "counters left out": w93_counters_left_out,
        "adds in bf16": w93_adds_in_bf16,
        "running mean in bf16": w93_running_in_bf16,
        "sum rounded too": w93_sum_rounded_too,
        "shares rounded in bf16": w93_shares_in_bf16,
        "half of two each time": w93_half_of_two_each_time,
        "counters shared": w93_counters_shared,
        "changes the first state": w93_changes_the_first_state,
        "all fp32": w93_all_fp32,
        "fp64 through fp32": w93_fp64_through_fp32,
        "fp16 overflows": w93_fp16_overflows,
        "only int64 is a counter": w93_only_int64_is_a_counter,
        "counter by name": w93_counter_by_name,
        "without the last": w93_without_the_last,
        "first and last": w93_two_states,
        "only fp32 and bf16": w93_only_fp32_and_bf16,
        "one state as it is": w93_one_state_as_it_is,
    },
    "my_integrated_gradients": {
        "left ends": w94_left_ends,
        "right ends": w94_right_ends,
        "linspace(0, 1)": w94_linspace,
        "trapezoids": w94_trapezoids,
        "gradient times input": w94_gradient_times_input,
        "only the middle": w94_only_the_middle,
        "times x": w94_times_x,
        "gradient alone": w94_gradient_alone,
        "path from zero": w94_path_from_zero,
        "sum": w94_sum,
        "mean twice": w94_mean_twice,
        "only vectors": w94_only_vectors,
        "only matrices": w94_only_matrices,
        "gradients pile up": w94_gradients_pile_up,
        "always fifty steps": w94_fifty_steps,
        "without batch": w94_without_batch,
        "steps + 1": w94_one_step_more,
        "x in place of the difference": w94_x_in_place_of_difference,
        "absolute gradients": w94_absolute,
        "random places": w94_random_places,
        "one number a row": w94_one_number_a_row,
        "turned": w94_turned,
        "vectors and matrices": w94_vectors_and_matrices,
    },
}
RIGHT = {
    "layer_rates": {
        "walk down": r91_walk_down,
        "accumulate": r91_accumulate,
        "numpy": r91_numpy,
        "up by division": r91_up_by_division,
    },
    "fast_gradient": {
        "one by one": r92_one_by_one,
        "where": r92_where,
        "numpy": r92_numpy,
        "normalize": r92_normalize,
    },
    "average_states": {
        "stacked": r93_stacked,
        "added to a copy": r93_add_in_place_to_a_copy,
        "sum over a last dimension": r93_weighted_shares,
    },
    "my_integrated_gradients": {"loop": r94_loop, "backwards, in chunks": r94_backwards_in_chunks, "one shift":
    r94_along_a_scale},
}
