"""Named wrong answers to the exercises; every one must be rejected with the words beside it."""

import math

import torch
import torch.nn.functional as F


def no_warmup(step, steps, peak, warmup):
    return peak * (steps - step) / (steps - warmup)


def decay_counts_from_zero(step, steps, peak, warmup):
    return peak * step / warmup if step < warmup else peak * (1 - step / steps)


def never_comes_down(step, steps, peak, warmup):
    return peak * min(1.0, step / max(warmup, 1)) if warmup else peak


def divides_by_zero(step, steps, peak, warmup):
    return peak * min(step / warmup, (steps - step) / (steps - warmup))


def cosine(step, steps, peak, warmup):
    if step < warmup:
        return peak * step / warmup
    return peak * (0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (steps - warmup)))


def warmup_is_a_share(step, steps, peak, warmup):
    return peak * min(1.0, step / (warmup * steps or 1)) * (steps - step) / steps


def _masked(logits, labels):
    keep = labels != -100
    return logits[keep], labels[keep]


def mean_of_means(batches):
    losses, hits = [], []
    for logits, labels in batches:
        scores, targets = _masked(logits, labels)
        if len(targets):
            losses.append(F.cross_entropy(scores, targets))
            hits.append((scores.argmax(-1) == targets).float().mean())
    return sum(losses) / len(losses), sum(hits) / len(hits)


def divides_by_all_positions(batches):
    total = sum(F.cross_entropy(*_masked(*batch), reduction="sum") for batch in batches)
    hits = sum((_masked(*batch)[0].argmax(-1) == _masked(*batch)[1]).sum() for batch in batches)
    positions = sum(labels.numel() for _, labels in batches)
    return total / positions, hits / positions


def accuracy_everywhere(batches):
    count = sum((labels != -100).sum() for _, labels in batches)
    total = sum(F.cross_entropy(*_masked(*batch), reduction="sum") for batch in batches)
    hits = torch.cat([(logits.argmax(-1) == labels).float().flatten() for logits, labels in batches])
    return total / count, hits.mean()


def empty_batch_is_nan(batches):
    total, hits, count = 0.0, 0.0, 0
    for logits, labels in batches:
        n = int((labels != -100).sum())
        total += F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100) * n
        hits += float((logits.argmax(-1) == labels).sum())
        count += n
    return total / count, hits / count


def last_batch_only(batches):
    scores, targets = _masked(*batches[-1])
    return F.cross_entropy(scores, targets), (scores.argmax(-1) == targets).float().mean()


def returns_the_last(losses, patience):
    best, stop = _right(losses, patience)
    return stop, stop


def _right(losses, patience):
    best = 0
    for index, loss in enumerate(losses):
        if loss < losses[best]:
            best = index
        if index - best >= patience:
            return best, index
    return best, len(losses) - 1


def never_stops(losses, patience):
    return losses.index(min(losses)), len(losses) - 1


def counts_all_bad_ones(losses, patience):
    best, bad = 0, 0
    for index, loss in enumerate(losses[1:], start=1):
        if loss < losses[best]:
            best = index
        else:
            bad += 1
        if bad >= patience:
            return best, index
    return best, len(losses) - 1


def one_too_patient(losses, patience):
    return _right(losses, patience + 1)


def ties_are_gains(losses, patience):
    best = 0
    for index, loss in enumerate(losses):
        if loss <= losses[best]:
            best = index
        if index - best >= patience:
            return best, index
    return best, len(losses) - 1


def compares_with_the_one_before(losses, patience):
    bad = 0
    for index in range(1, len(losses)):
        bad = bad + 1 if losses[index] >= losses[index - 1] else 0
        if bad >= patience:
            return losses.index(min(losses[: index + 1])), index
    return losses.index(min(losses)), len(losses) - 1


def clips_each_tensor(gradients, max_norm):
    return [gradient * min(1.0, max_norm / float(gradient.norm())) for gradient in gradients]


def clips_values(gradients, max_norm):
    return [gradient.clamp(-max_norm, max_norm) for gradient in gradients]


def also_scales_up(gradients, max_norm):
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    return [gradient * max_norm / norm for gradient in gradients]


def forgets_the_root(gradients, max_norm):
    squared = sum((gradient**2).sum() for gradient in gradients)
    return [gradient * min(1.0, max_norm / float(squared)) for gradient in gradients]


def changes_its_input(gradients, max_norm):
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    for gradient in gradients:
        gradient.mul_(min(1.0, max_norm / float(norm)))
    return gradients


def does_nothing(gradients, max_norm):
    return [gradient.clone() for gradient in gradients]


MUTANTS = {
    "schedule": {
        "no warm-up": (no_warmup, "the warm-up starts there"),
        "decay counted from step 0": (decay_counts_from_zero, "the rate is the peak"),
        "never comes down": (never_comes_down, "come down to 0"),
        "divides by a warm-up of zero": (divides_by_zero, "ZeroDivisionError"),
        "cosine in place of a line": (cosine, "straight line from the peak"),
        "takes the warm-up for a share": (warmup_is_a_share, "the rate is the peak"),
    },
    "evaluate_batches": {
        "mean of means": (mean_of_means, "mean of the batches' means"),
        "divides by all positions": (divides_by_all_positions, "all positions"),
        "accuracy over all positions": (accuracy_everywhere, "the accuracy is over all positions"),
        "an empty batch makes it nan": (empty_batch_is_nan, "nan"),
        "scores the last batch only": (last_batch_only, "the mean loss"),
    },
    "early_stopping": {
        "returns the last, not the best": (returns_the_last, "the best evaluation is number"),
        "never stops": (never_stops, "in a row without a new best"),
        "counts every bad evaluation": (counts_all_bad_ones, "starts the count of bad evaluations again"),
        "one evaluation too patient": (one_too_patient, "in a row without a new best"),
        "takes a tie for a gain": (ties_are_gains, "an equal loss is no gain"),
        "compares with the one before": (compares_with_the_one_before, "for losses="),
    },
    "clip": {
        "clips each tensor by itself": (clips_each_tensor, "take one norm over all of them"),
        "cuts values one by one": (clips_values, "scale all of them by one factor"),
        "scales small gradients up": (also_scales_up, "clipping only ever shrinks"),
        "forgets the square root": (forgets_the_root, "take the square root"),
        "changes its input": (changes_its_input, "changed one of its arguments in place"),
        "does nothing": (does_nothing, "came back as they were"),
    },
}
