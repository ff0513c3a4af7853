"""Named wrong answers to the exercises; every one must be rejected with the words beside it."""

import torch


def _floors(layers):
    return range(layers + 2)


def _norm(gradient):
    return gradient.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None]


def _unit(gradient, real, size):
    gradient = gradient * real[..., None]
    return gradient / _norm(gradient) * size[:, None, None]


def padding_moves(gradient, real, size):
    return gradient / _norm(gradient) * size[:, None, None]


def padding_counts(gradient, real, size):
    return gradient * real[..., None] / _norm(gradient) * size[:, None, None]


def by_token(gradient, real, size):
    gradient = gradient * real[..., None]
    return gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-30) * size[:, None, None]


def whole_batch(gradient, real, size):
    gradient = gradient * real[..., None]
    return gradient / gradient.norm() * size[:, None, None]


def divides_by_zero(gradient, real, size):
    gradient = gradient * real[..., None]
    return gradient / gradient.flatten(1).norm(dim=1)[:, None, None] * size[:, None, None]


def changes_the_gradient(gradient, real, size):
    gradient *= real[..., None]
    return gradient / _norm(gradient) * size[:, None, None]


def large_guard(gradient, real, size):
    gradient = gradient * real[..., None]
    return gradient / (gradient.flatten(1).norm(dim=1)[:, None, None] + 1e-2) * size[:, None, None]


def mean_of(states, choose=lambda name, states: states[-1][name].clone()):
    return {
        name: torch.stack([state[name].float() for state in states]).mean(0).to(last.dtype)
        if last.dtype in (torch.float32, torch.bfloat16)
        else torch.stack([state[name] for state in states]).mean(0)
        if last.is_floating_point()
        else choose(name, states)
        for name, last in states[-1].items()
    }


def averages_counters(states):
    return mean_of(states, lambda name, states: (sum(s[name] for s in states) / len(states)).to(states[0][name].dtype))


def float_counters(states):
    return mean_of(states, lambda name, states: sum(s[name] for s in states) / len(states))


def first_counter(states):
    return mean_of(states, lambda name, states: states[0][name].clone())


def shared_counter(states):
    return mean_of(states, lambda name, states: states[-1][name])


def no_counters(states):
    return {name: value for name, value in mean_of(states).items() if states[0][name].is_floating_point()}


def in_bf16(states):
    mean = mean_of(states)
    for name, last in states[-1].items():
        if last.is_floating_point():
            total = states[0][name].clone()
            for state in states[1:]:
                total = total + state[name]
            mean[name] = total / len(states)
    return mean


def to_fp32(states):
    return {name: value.float() if value.is_floating_point() else value for name, value in mean_of(states).items()}


def sums(states):
    return {
        name: value * len(states) if value.is_floating_point() else value for name, value in mean_of(states).items()
    }


def two_at_a_time(states):
    mean = mean_of(states)
    for name, last in states[-1].items():
        if last.is_floating_point():
            running = states[0][name]
            for state in states[1:]:
                running = (running + state[name]) / 2
            mean[name] = running
    return mean


def in_place(states):
    for name, value in mean_of(states).items():
        states[0][name].copy_(value)
    return states[0]


def last_state(states):
    return {name: value.clone() for name, value in states[-1].items()}


def _mean_gradient(function, x, baseline, share, start=None):
    begin = baseline if start is None else start
    points = (begin + share.view(-1, *[1] * x.ndim) * (x - begin)).detach().requires_grad_(True)
    return torch.autograd.grad(function(points).sum(), points)[0]


def _middle(steps):
    return (torch.arange(steps, dtype=torch.float64) + 0.5) / steps


MUTANTS = {
    "layer_rates": {
        "head first": (lambda layers, rate, decay: [rate * decay**k for k in _floors(layers)], "upside down"),
        "the head decays, too": (
            lambda layers, rate, decay: [rate * decay ** (layers + 2 - k) for k in _floors(layers)],
            "the head has the full rate",
        ),
        "forgets the embeddings": (
            lambda layers, rate, decay: [rate * decay ** (layers - k) for k in range(layers + 1)],
            "either embeddings or head missing",
        ),
        "layers only": (
            lambda layers, rate, decay: [rate * decay ** (layers - k) for k in range(layers)],
            "embeddings and head missing",
        ),
        "linear": (
            lambda layers, rate, decay: [rate * (1 - (1 - decay) * (layers + 1 - k)) for k in _floors(layers)],
            "not multiples",
        ),
        "divides": (
            lambda layers, rate, decay: [rate / decay ** (layers + 1 - k) for k in _floors(layers)],
            "rates get smaller",
        ),
        "the same everywhere": (lambda layers, rate, decay: [rate for _ in _floors(layers)], "the same rate"),
        "two groups only": (
            lambda layers, rate, decay: [rate * decay] * (layers + 1) + [rate],
            "each is decay times the one above",
        ),
        "factors, not rates": (
            lambda layers, rate, decay: [decay ** (layers + 1 - k) for k in _floors(layers)],
            "rate itself is missing",
        ),
    },
    "fast_gradient": {
        "padding moves": (padding_moves, "padding moves"),
        "padding counts in the length": (padding_counts, "padding counts"),
        "a length for each token": (by_token, "each token has its own length"),
        "one length for the batch": (whole_batch, "whole batch"),
        "nan at a zero gradient": (divides_by_zero, "nan"),
        "changes the gradient": (changes_the_gradient, "changed one of its arguments in place"),
        "no norm": (lambda g, real, size: g * real[..., None] * size[:, None, None], "divide by the norm"),
        "downhill": (lambda g, real, size: -_unit(g, real, size), "should raise the loss"),
        "unit length": (lambda g, real, size: _unit(g, real, torch.ones_like(size)), "length should be size"),
        "sign": (lambda g, real, size: (g * real[..., None]).sign() * size[:, None, None], "sign of the gradient"),
        "a guard as large as the gradient": (large_guard, "wrong values"),
    },
    "average_states": {
        "averages counters": (averages_counters, "was averaged"),
        "averages counters into floats": (float_counters, "not floating point"),
        "first counter": (first_counter, "comes from the first state"),
        "shares the counter": (shared_counter, "shares memory"),
        "drops counters": (no_counters, "the keys are"),
        "adds up in bf16": (in_bf16, "lost digits"),
        "returns fp32": (to_fp32, "has dtype torch.float32"),
        "sum": (sums, "added up, not averaged"),
        "two at a time": (two_at_a_time, "two at a time"),
        "writes into the first state": (in_place, "changed one of its arguments in place"),
        "last state": (last_state, "the last state's"),
    },
    "my_integrated_gradients": {
        "no factor": (lambda f, x, b, n: _mean_gradient(f, x, b, _middle(n)).mean(0), "(x - baseline) is missing"),
        "times x": (lambda f, x, b, n: x * _mean_gradient(f, x, b, _middle(n)).mean(0), "it should be x - baseline"),
        "wrong sign": (lambda f, x, b, n: (b - x) * _mean_gradient(f, x, b, _middle(n)).mean(0), "sign is wrong"),
        "sum of gradients": (
            lambda f, x, b, n: (x - b) * _mean_gradient(f, x, b, _middle(n)).sum(0),
            "added up, not averaged",
        ),
        "left ends": (
            lambda f, x, b, n: (x - b) * _mean_gradient(f, x, b, torch.arange(n).double() / n).mean(0),
            "left ends",
        ),
        "right ends": (
            lambda f, x, b, n: (x - b) * _mean_gradient(f, x, b, (torch.arange(n).double() + 1) / n).mean(0),
            "right ends",
        ),
        "linspace": (
            lambda f, x, b, n: (x - b) * _mean_gradient(f, x, b, torch.linspace(0, 1, n).double()).mean(0),
            "linspace",
        ),
        "at x alone": (
            lambda f, x, b, n: (x - b) * _mean_gradient(f, x, b, torch.ones(1).double()).mean(0),
            "at x alone",
        ),
        "from zero": (
            lambda f, x, b, n: (x - b) * _mean_gradient(f, x, b, _middle(n), torch.zeros_like(x)).mean(0),
            "starts at zero",
        ),
        "one row a step": (
            lambda f, x, b, n: (x - b) * _mean_gradient(f, x, b, _middle(n)),
            "mean over the steps",
        ),
    },
}
