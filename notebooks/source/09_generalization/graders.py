"""Graders: rates by layer, the fast gradient, averaged weights, integrated gradients."""

from __future__ import annotations

from typing import Any

import torch

from coursekit.checks import Answer, Rng, Wrong, close, grader, true


@grader("layer_rates")
def layer_rates(answer: Answer, rng: Rng) -> None:
    """(layers, rate, decay) -> learning rates from the embeddings up to the head."""
    for round_ in range(6):
        layers = round_ if round_ < 2 else rng.integer(2, 12)
        rate, decay = rng.python.uniform(1e-4, 1e-2), rng.python.uniform(0.5, 0.95)
        got = answer(layers, rate, decay)
        if isinstance(got, torch.Tensor):
            got = got.tolist()
        true(isinstance(got, (list, tuple)), f"return a list of rates, got {type(got).__name__}")
        want = [rate * decay ** (layers + 1 - depth) for depth in range(layers + 2)]
        where = f"layers={layers}"
        if len(got) != len(want):
            missing = {layers: "embeddings and head", layers + 1: "either embeddings or head"}.get(len(got))
            hint = f" (are {missing} missing?)" if missing else ""
            raise Wrong(f"{where} needs {len(want)} rates (embeddings, {layers} layers, head), got {len(got)}{hint}")
        values = torch.as_tensor(got, dtype=torch.float64)
        mistakes = {
            "the list is upside down: it starts at the embeddings, which learn slowest": want[::-1],
            "the head has the full rate, with no power of decay": [value * decay for value in want],
            "each floor has decay times the rate above it: powers of decay, not multiples of it":
                [rate * (1 - (1 - decay) * (layers + 1 - depth)) for depth in range(layers + 2)],
            "divide nothing: going down, rates get smaller":
                [rate / decay ** (layers + 1 - depth) for depth in range(layers + 2)],
            "every floor has the same rate: multiply by decay once more for each floor further down":
                [rate] * (layers + 2),
            "the floors below the head all have the same rate; each is decay times the one above":
                [rate * decay] * (layers + 1) + [rate],
            "rate itself is missing: the head learns at rate, not at 1": [value / rate for value in want],
        }  # fmt: skip
        known = {hint: torch.tensor(wrong, dtype=torch.float64) for hint, wrong in mistakes.items()}
        want = torch.tensor(want, dtype=torch.float64)
        close(values, want, f"the list for {where}", rtol=1e-5, atol=0.0, mistakes=known)


@grader("fast_gradient")
def fast_gradient(answer: Answer, rng: Rng) -> None:
    """(gradient, real, size) -> the shift of each sequence."""
    for round_ in range(6):
        batch, seq, hidden = rng.integer(2, 4), rng.integer(4, 7), rng.integer(3, 5)
        gradient = rng.normal(batch, seq, hidden) * 10.0 ** (-10 if round_ == 3 else rng.integer(-6, 1))
        lengths = torch.tensor([rng.integer(2, seq - 1) for _ in range(batch - 1)] + [seq])
        real = torch.arange(seq) < lengths[:, None]
        if round_ == 2:
            real = real.flip(1)  # padding on the left
        elif round_ == 5:
            real[-1, rng.integer(1, seq - 2)] = False  # and in the middle
        size = 0.1 + rng.uniform(batch)
        if round_ == 4:
            gradient[0] = 0.0
        _compare_shift(answer(gradient, real, size), gradient, real, size)


def _compare_shift(got: Any, gradient: torch.Tensor, real: torch.Tensor, size: torch.Tensor) -> None:
    def unit(rows: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        return rows / norm.clamp_min(1e-30)

    at_text = gradient * real[..., None]
    scale = size[:, None, None]
    norm = at_text.flatten(1).norm(dim=1)[:, None, None]
    want = scale * unit(at_text, norm) + 0.0  # no negative zeros in messages
    zero = not bool(at_text.flatten(1).any(1).all())
    if isinstance(got, torch.Tensor) and bool(torch.isnan(got).any()):
        raise Wrong("a sequence whose gradient is zero gives nan: keep the norm away from zero" if zero
                    else "the result holds nan")  # fmt: skip
    whole = gradient.flatten(1).norm(dim=1)[:, None, None]
    mistakes = {
        "padding moves: set the gradient there to zero": scale * unit(gradient, whole),
        "padding moves; set the gradient there to zero, not only in the length": scale * unit(gradient, norm),
        "padding counts in the length; set it to zero before you take the norm": scale * unit(at_text, whole),
        "each token has its own length; the length is that of the whole sequence":
            scale * unit(at_text, at_text.norm(dim=-1, keepdim=True)),
        "the length is taken over the whole batch; each sequence has its own": scale * unit(at_text, at_text.norm()),
        "divide by the norm: this shift's length follows the gradient's": scale * at_text,
        "the shift goes down; it should raise the loss, so it goes along the gradient": -want,
        "the length should be size, not 1": unit(at_text, norm),
        "that is the sign of the gradient (another attack); here the direction is the gradient's own":
            scale * at_text.sign(),
        "divide by the norm, not by its square": scale * unit(at_text, norm.square()),
        "the length is the Euclidean norm, not the sum of absolute values":
            scale * unit(at_text, at_text.abs().flatten(1).sum(1)[:, None, None]),
        "the length is the Euclidean norm, not the largest value":
            scale * unit(at_text, at_text.abs().flatten(1).amax(1)[:, None, None]),
    }  # fmt: skip
    close(got, want, "the shift", rtol=1e-3, atol=1e-5, mistakes=mistakes)


@grader("average_states", forbidden=("get_ema_multi_avg_fn", "get_swa_multi_avg_fn", "update_parameters"))
def average_states(answer: Answer, rng: Rng) -> None:
    """A list of state dicts -> their mean."""
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float32)
    for round_, dtype in enumerate(dtypes):
        count = rng.python.choice([3, 5, 6]) if round_ < 4 else 1  # not 4: a fourth of a number is exact in any format
        states = []
        for _ in range(count):
            weight = {
                torch.bfloat16: 256.0 + 2.0 * rng.integers(0, 4, 8, 9),  # sums need more digits than bf16 has
                torch.float16: 3e4 + 1e3 * rng.normal(3, 4),  # and here more range than fp16 has
            }.get(dtype, rng.normal(3, 4, dtype=torch.float64))
            states.append({"layer.weight": weight.to(dtype), "layer.bias": rng.normal(4).to(dtype),
                           "steps": torch.tensor(rng.integer(1, 20)), "seen": rng.integers(0, 9, 6).to(torch.int32),
                           "used": rng.integers(0, 2, 5).bool()})  # fmt: skip
        if count > 1:
            for number, steps in ((0, 50), (1, 97), (-1, 49)):  # a counter that was set back; no mean comes near it
                states[number]["steps"] = torch.tensor(steps)
        _compare_states(answer(states), states)


def _compare_states(got: Any, states: list[dict[str, torch.Tensor]]) -> None:
    true(isinstance(got, dict), f"return a dict of tensors, got {type(got).__name__}")
    true(set(got) == set(states[0]), f"the keys are {sorted(got)}, expected {sorted(states[0])}")
    for name, last in states[-1].items():
        value = got[name]
        true(isinstance(value, torch.Tensor), f"{name!r} is a {type(value).__name__}; it should stay a tensor")
        if not last.is_floating_point():
            mean = sum(state[name].double() for state in states) / len(states)
            close(value, last, f"{name!r}, which is not floating point,", mistakes={
                f"{name!r} is not floating point and was averaged; take it from the last state": mean.to(value.dtype),
                f"{name!r} comes from the first state; take it from the last": states[0][name],
                f"{name!r} was added up; take it from the last state": sum(state[name].double() for state in states),
                f"{name!r} is the largest of the states'; take it from the last state":
                    torch.stack([state[name].double() for state in states]).amax(0),
            })  # fmt: skip
            true(value.dtype == last.dtype, f"{name!r} has dtype {value.dtype}; it should keep {last.dtype}")
            shared = any(value is state[name] or value.data_ptr() == state[name].data_ptr() for state in states)
            true(not shared, f"{name!r} shares memory with a state: a later step would change it; clone it")
            continue
        stack = torch.stack([state[name] for state in states]).double()
        want = stack.mean(0).to(last.dtype)
        true(value.dtype == last.dtype, f"{name!r} has dtype {value.dtype}; the mean should keep {last.dtype}")
        running = states[0][name]
        for number, state in enumerate(states[1:], start=2):
            running = (running + state[name]) / 2 if number > 1 else running
        mistakes = {
            f"{name!r} was added up, not averaged: divide by the number of states": stack.sum(0).to(last.dtype),
            f"{name!r} is the last state's, not the mean": last,
            f"{name!r} is the first state's, not the mean": states[0][name],
            "averaging two at a time weights the last state by a half; each should weigh the same": running,
            "divide by the number of states, not by one less": (stack.sum(0) / (len(states) - 1)).to(last.dtype),
            "the median is not the mean": stack.median(0).values.to(last.dtype),
        }
        mistakes = {hint: wrong for hint, wrong in mistakes.items() if not torch.equal(wrong, want)}
        if last.dtype in (torch.bfloat16, torch.float16):
            for hint, wrong in mistakes.items():
                if torch.equal(value, wrong):
                    raise Wrong(hint)
            true(torch.equal(value, want), f"{name!r} in {last.dtype} lost digits or overflowed: add up in fp32 and "
                 "round once, at the end")  # fmt: skip
        else:
            digits = 1e-12 if last.dtype == torch.float64 else 1e-5  # float64 must not go through fp32
            close(value, want, f"the mean of {name!r}", rtol=digits, atol=digits / 10, mistakes=mistakes)
        shared = any(value is state[name] or value.data_ptr() == state[name].data_ptr() for state in states)
        true(not shared, f"{name!r} shares memory with a state: a later step would change it; return new tensors")


@grader("my_integrated_gradients", forbidden=("integrated_gradients", "IntegratedGradients"))
def my_integrated_gradients(answer: Answer, rng: Rng) -> None:
    """(function, x, baseline, steps) -> attributions."""
    for shape, steps in (((5,), 7), ((3, 4), 4), ((6,), 1), ((2, 3), 10), ((2, 3, 2), 5), ((), 6)):
        x, baseline = rng.normal(*shape, dtype=torch.float64), rng.normal(*shape, dtype=torch.float64)
        function = _smooth_function(rng, x.numel())
        _compare_attribution(answer, function, x, baseline, steps)


def _smooth_function(rng: Rng, inputs: int) -> torch.nn.Module:
    """[n, *shape] -> [n]. Made of torch's own modules: a call into this package would count as a shortcut."""
    linear, last = torch.nn.Linear(inputs, 4), torch.nn.Linear(4, 1)
    for layer in (linear, last):
        layer.weight.data = 0.7 * rng.normal(*layer.weight.shape)
    layers = torch.nn.Unflatten(0, (-1, 1)), torch.nn.Flatten(), linear, torch.nn.Softplus(), last, torch.nn.Flatten(0)
    return torch.nn.Sequential(*layers).double().requires_grad_(False)


def _compare_attribution(answer: Answer, function: Any, x: torch.Tensor, baseline: torch.Tensor, steps: int) -> None:
    def gradients(share: torch.Tensor) -> torch.Tensor:
        points = (baseline + share.view(-1, *[1] * x.ndim) * (x - baseline)).detach().requires_grad_(True)
        return torch.autograd.grad(function(points).sum(), points)[0]

    number = torch.arange(steps, dtype=torch.float64)
    middle = (number + 0.5) / steps
    mean = gradients(middle).mean(0)
    want = (x - baseline) * mean
    mistakes = {
        "the factor (x - baseline) is missing": mean,
        "the factor is x; it should be x - baseline": x * mean,
        "the factor is baseline - x: the sign is wrong": -want,
        "the gradients are added up, not averaged": (x - baseline) * gradients(middle).sum(0),
        "the points are left ends of the steps (t = 0, 1/n, ...), not midpoints":
            (x - baseline) * gradients(number / steps).mean(0),
        "the points are right ends of the steps (t = 1/n, ..., 1), not midpoints":
            (x - baseline) * gradients((number + 1) / steps).mean(0),
        "the points include both ends (linspace); midpoints are 0.5/n, 1.5/n, ...":
            (x - baseline) * gradients(torch.linspace(0, 1, steps, dtype=torch.float64)).mean(0),
        "that is gradient times input at x alone; walk from the baseline":
            (x - baseline) * gradients(torch.ones(1, dtype=torch.float64)).mean(0),
        "the line starts at zero; it should start at the baseline": _from_zero(function, x, baseline, middle),
    }  # fmt: skip
    got = answer(function, x, baseline, steps)
    if isinstance(got, torch.Tensor) and got.shape == (steps, *x.shape) and steps > 1:
        raise Wrong("one attribution a step came back; take the mean over the steps")
    close(got, want, "the attribution", rtol=1e-5, atol=1e-8, mistakes=mistakes)


def _from_zero(function: Any, x: torch.Tensor, baseline: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    points = (share.view(-1, *[1] * x.ndim) * x).detach().requires_grad_(True)
    return (x - baseline) * torch.autograd.grad(function(points).sum(), points)[0].mean(0)
