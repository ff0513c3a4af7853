"""Graders: the schedule, the evaluation, early stopping, clipping."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from coursekit.checks import Answer, Rng, Wrong, close, grader, true
from sslcourse.data.ignored import IGNORE


@grader("schedule")
def learning_rate(answer: Answer, rng: Rng) -> None:
    """(step, steps, peak, warmup) -> rate: a line up to ``peak`` at ``warmup``, a line down to 0 at ``steps``."""
    for _ in range(5):
        steps = rng.integer(50, 400)
        warmup = rng.integer(5, steps // 3)
        peak = 10 ** -rng.python.uniform(2, 4)
        _schedule_point(answer, 0, steps, peak, warmup, "at step 0 the rate is 0: the warm-up starts there")
        _schedule_point(answer, warmup, steps, peak, warmup, "at the end of the warm-up the rate is the peak")
        _schedule_point(answer, steps, steps, peak, warmup, "at the last step the rate must have come down to 0")
        rising = rng.integer(1, warmup - 1)
        _schedule_point(answer, rising, steps, peak, warmup, "during the warm-up the rate rises in a straight line")
        falling = rng.integer(warmup + 1, steps - 1)
        _schedule_point(
            answer,
            falling,
            steps,
            peak,
            warmup,
            "after the warm-up the rate falls in a straight line from the peak to 0 over the steps that are left",
        )
    _schedule_point(answer, 0, steps, peak, 0, "with warmup=0 there is no rise: the rate is the peak at step 0")


def _schedule_point(answer: Answer, step: int, steps: int, peak: float, warmup: int, rule: str) -> None:
    want = peak * step / warmup if step < warmup else peak * (steps - step) / (steps - warmup)
    got = answer(step, steps, peak, warmup)
    try:
        value = float(got)
    except (TypeError, ValueError) as error:
        raise Wrong(f"the rate should be a number, got {type(got).__name__}") from error
    true(
        abs(value - want) <= 1e-6 * peak,
        f"{rule}; at {step=} of {steps=}, peak={peak:.3g}, {warmup=} expected {want:.4g}, got {value:.4g}",
    )


@grader("evaluate_batches")
def evaluate(answer: Answer, rng: Rng) -> None:
    """List of (logits, labels) of unequal sizes -> (mean loss, accuracy) over all masked positions together."""
    for round_ in range(4):
        vocab = rng.integer(5, 9)
        batches = []
        for rows in rng.python.sample([1, 2, 4, 7], 3):
            seq = rng.integer(4, 9)
            logits = 3 * rng.normal(rows, seq, vocab)
            labels = rng.integers(0, vocab, rows, seq)
            labels[rng.uniform(rows, seq) > rng.python.choice([0.15, 0.5, 0.9])] = IGNORE
            labels[0, 0], labels[0, 1] = 1, IGNORE  # something masked, something not
            batches.append((logits, labels))
        if round_ >= 2:  # a batch with nothing masked is possible with short rows, and must not spoil the mean
            logits, labels = batches[1]
            batches[1] = (logits, torch.full_like(labels, IGNORE))
        got = answer(batches)
        true(isinstance(got, (tuple, list)) and len(got) == 2, "return two numbers, (mean loss, accuracy)")
        _compare_evaluation(got, batches, empty=round_ >= 2)


def _compare_evaluation(got: tuple, batches: list, empty: bool) -> None:
    losses, hits, all_hits, means, rates = [], [], [], [], []
    for logits, labels in batches:
        masked = labels != IGNORE
        loss = F.cross_entropy(logits[masked], labels[masked], reduction="none")
        hit = (logits.argmax(-1)[masked] == labels[masked]).float()
        losses.append(loss)
        hits.append(hit)
        all_hits.append((logits.argmax(-1) == labels).float().flatten())
        if masked.any():
            means.append(loss.mean())
            rates.append(hit.mean())
    loss, accuracy = torch.cat(losses).mean(), torch.cat(hits).mean()
    positions = sum(labels.numel() for _, labels in batches)
    note = " (one batch here has nothing masked: it adds nothing to the sum, nor to the count)" if empty else ""
    mean_of_means = (
        "is the mean of the batches' means: batches hold unequal numbers of masked positions, so add up sums "
        "and counts, and divide once"
    )
    total, everywhere = torch.cat(losses).sum(), torch.cat(all_hits).mean()
    wrong_losses = {
        f"the mean loss {mean_of_means}": torch.stack(means).mean(),
        "the mean loss is divided by the number of all positions; divide by that of the masked ones": total / positions,
        "the mean loss is divided by the number of batches; divide by that of masked positions": total / len(batches),
    }
    wrong_accuracies = {
        f"the accuracy {mean_of_means}": torch.stack(rates).mean(),
        "the accuracy is over all positions; only masked ones are guesses, the others were in plain sight": everywhere,
    }
    close(_number(got[0]), loss, f"the mean loss{note}", mistakes=wrong_losses)
    close(_number(got[1]), accuracy, f"the accuracy{note}", mistakes=wrong_accuracies)


def _number(value: object) -> torch.Tensor:
    """A float, whether it came as a number or as a tensor."""
    try:
        return torch.tensor(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise Wrong(f"return two numbers, (mean loss, accuracy); one of them is {type(value).__name__}") from error


@grader("early_stopping")
def early_stopping(answer: Answer, rng: Rng) -> None:
    """(losses, patience) -> (index of the best, index of the evaluation after which training stops)."""
    planted = [
        ([3.0, 2.0, 2.5, 2.4, 1.0], 2, "it stops after `patience` evaluations in a row without a new best"),
        ([3.0, 2.0, 2.5, 1.5, 1.9, 1.0], 2, "a new best starts the count of bad evaluations again"),
        ([3.0, 2.0, 2.0, 2.0, 2.0], 2, "an equal loss is no gain: the earlier evaluation stays the best"),
        ([3.0, 2.0, 1.0], 2, "without a stop, training ends with the last evaluation"),
        ([1.0], 1, "with one evaluation, that one is the best and the last"),
        ([2.0, 3.0, 1.0], 1, "with patience 1 the first evaluation without a gain ends the run"),
        ([3.0, 2.0, 2.5, 2.4, 2.3, 2.2], 3, "better than the one before is not enough; it must beat the best so far"),
    ]
    for _ in range(6):
        losses = [round(rng.python.uniform(1, 4), 1) for _ in range(rng.integer(3, 12))]
        planted.append((losses, rng.integer(1, 4), "check the rule in the docstring"))
    for losses, patience, rule in planted:
        want = _best_and_stop(losses, patience)
        got = answer(list(losses), patience)
        true(isinstance(got, (tuple, list)) and len(got) == 2, "return two indices, (best, stop)")
        case = f"for losses={losses}, patience={patience}"
        true(got[0] == want[0], f"{case} the best evaluation is number {want[0]}, got {got[0]}: {rule}")
        true(got[1] == want[1], f"{case} training ends after evaluation {want[1]}, got {got[1]}: {rule}")


def _best_and_stop(losses: list[float], patience: int) -> tuple[int, int]:
    best = 0
    for index, loss in enumerate(losses):
        if loss < losses[best]:
            best = index
        if index - best >= patience:
            return best, index
    return best, len(losses) - 1


@grader("clip", forbidden=("clip_grad_norm_", "clip_grads_with_norm_", "get_total_norm", "clip_grad_value_"))
def clip(answer: Answer, rng: Rng) -> None:
    """(list of gradients, max_norm) -> list of gradients, scaled together if their joint norm is over max_norm."""
    for round_ in range(4):
        scale = rng.python.uniform(2, 20) if round_ % 2 == 0 else rng.python.uniform(1e-4, 1e-3)
        gradients = [scale * rng.normal(rng.integer(2, 4), rng.integer(2, 5)), scale * rng.normal(rng.integer(1, 6))]
        max_norm = rng.python.uniform(0.5, 1.5)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        given = [gradient.clone() for gradient in gradients]
        got = answer(given, max_norm)
        true(
            isinstance(got, (tuple, list)) and len(got) == len(gradients),
            f"return a list with one tensor for each of the {len(gradients)} gradients",
        )
        owned = {gradient.data_ptr() for gradient in given}
        true(
            not any(isinstance(value, torch.Tensor) and value.data_ptr() in owned for value in got),
            "return new tensors: what comes back shares its memory with what was given, so a later change hits both",
        )
        factor = min(1.0, max_norm / float(norm))
        for gradient, value in zip(gradients, got, strict=True):
            mistakes = {
                "each tensor was scaled by its own norm; take one norm over all of them, or the direction changes": (
                    gradient * min(1.0, max_norm / float(gradient.norm()))
                ),
                "values were cut one by one; scale all of them by one factor, or the direction changes": (
                    gradient.clamp(-max_norm, max_norm)
                ),
                "a gradient whose norm is below max_norm was changed; clipping only ever shrinks": (
                    gradient * max_norm / norm
                ),
                "the factor uses the squared norm; take the square root": (
                    gradient * min(1.0, max_norm / float(norm) ** 2)
                ),
                "the gradients came back as they were, although their joint norm is over max_norm": gradient,
            }
            close(value, factor * gradient, "a clipped gradient", rtol=1e-3, mistakes=mistakes)
