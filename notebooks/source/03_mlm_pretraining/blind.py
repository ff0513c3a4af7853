import math

import torch
import torch.nn.functional as F


# 3.1 ------------------------------------------------------------------
def w31_mean_of_means(batches):
    losses, hits, count = [], 0, 0
    for logits, labels in batches:
        keep = labels != -100
        if not keep.any():
            continue
        losses.append(F.cross_entropy(logits[keep], labels[keep]).item())
        hits += int((logits[keep].argmax(-1) == labels[keep]).sum())
        count += int(keep.sum())
    return sum(losses) / len(losses), hits / count


def w31_accuracy_over_all(batches):
    loss, hits, count, positions = 0.0, 0, 0, 0
    for logits, labels in batches:
        keep = labels != -100
        loss += F.cross_entropy(logits[keep], labels[keep], reduction="sum").item()
        hits += int((logits.argmax(-1) == labels).sum())
        count += int(keep.sum())
        positions += labels.numel()
    return loss / count, hits / positions


def w31_nan_if_empty(batches):
    loss, hits, count = 0.0, 0, 0
    for logits, labels in batches:
        keep = labels != -100
        n = int(keep.sum())
        loss += F.cross_entropy(logits[keep], labels[keep]).item() * n
        hits += int((logits[keep].argmax(-1) == labels[keep]).sum())
        count += n
    return loss / count, hits / count


def w31_id_0_ignored(batches):
    loss, hits, count = 0.0, 0, 0
    for logits, labels in batches:
        keep = labels > 0
        loss += F.cross_entropy(logits[keep], labels[keep], reduction="sum").item()
        hits += int((logits[keep].argmax(-1) == labels[keep]).sum())
        count += int(keep.sum())
    return loss / count, hits / count


def w31_mean_of_accuracies(batches):
    loss, count, accuracies = 0.0, 0, []
    for logits, labels in batches:
        keep = labels != -100
        if not keep.any():
            continue
        loss += F.cross_entropy(logits[keep], labels[keep], reduction="sum").item()
        count += int(keep.sum())
        accuracies.append((logits[keep].argmax(-1) == labels[keep]).float().mean().item())
    return loss / count, sum(accuracies) / len(accuracies)


def r31_running_sums(batches):
    loss, hits, count = 0.0, 0, 0
    for logits, labels in batches:
        keep = labels != -100
        loss += F.cross_entropy(logits[keep], labels[keep], reduction="sum").item()
        hits += int((logits[keep].argmax(-1) == labels[keep]).sum())
        count += int(keep.sum())
    return loss / count, hits / count


def r31_concatenated(batches):
    logits = torch.cat([z[y != -100] for z, y in batches])
    labels = torch.cat([y[y != -100] for _, y in batches])
    loss = (logits.logsumexp(-1) - logits.gather(-1, labels[:, None]).squeeze(-1)).mean()
    return loss, (logits.argmax(-1) == labels).double().mean()  # 0-d tensors


# 3.2 ------------------------------------------------------------------
def w32_divides_by_zero(step, steps, peak, warmup):
    if step <= warmup:
        return peak * step / warmup
    return peak * (steps - step) / (steps - warmup)


def w32_second_line_from_0(step, steps, peak, warmup):
    if step < warmup:
        return peak * step / warmup
    return peak * (1 - step / steps)


def w32_step_plus_one(step, steps, peak, warmup):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / max(1, steps - warmup)


def w32_cosine(step, steps, peak, warmup):
    if step < warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def w32_zero_one_early(step, steps, peak, warmup):
    if step < warmup:
        return peak * step / warmup
    return peak * max(0, steps - 1 - step) / max(1, steps - 1 - warmup)


def r32_branches(step, steps, peak, warmup):
    if step < warmup:
        return peak * step / warmup
    return peak * (steps - step) / max(1, steps - warmup)


def r32_minimum(step, steps, peak, warmup):
    up = step / warmup if warmup else math.inf
    down = (steps - step) / (steps - warmup) if steps > warmup else math.inf
    return peak * min(up, down)


# 3.3 ------------------------------------------------------------------
def w33_each_alone(gradients, max_norm):
    return [g * min(1.0, max_norm / max(float(g.norm()), 1e-30)) for g in gradients]


def w33_scales_up(gradients, max_norm):
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    return [g * (max_norm / max(norm, 1e-30)) for g in gradients]


def w33_inplace(gradients, max_norm):
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    if norm > max_norm:
        for g in gradients:
            g *= max_norm / norm
    return [g.clone() for g in gradients]


def w33_sum_of_norms(gradients, max_norm):
    norm = sum(float(g.norm()) for g in gradients)
    factor = min(1.0, max_norm / norm) if norm else 1.0
    return [g * factor for g in gradients]


def w33_same_objects(gradients, max_norm):
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    if norm <= max_norm:
        return gradients
    return [g * (max_norm / norm) for g in gradients]


def r33_sum_of_squares(gradients, max_norm):
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
    factor = max_norm / norm if norm > max_norm else 1.0
    return [g * factor for g in gradients]


def r33_one_vector(gradients, max_norm):
    norm = torch.cat([g.reshape(-1) for g in gradients]).norm().item()
    return tuple(g.clone() if norm <= max_norm else g * (max_norm / norm) for g in gradients)


# 3.4 ------------------------------------------------------------------
def w34_equal_is_gain(losses, patience):
    best = 0
    for i, loss in enumerate(losses):
        if loss <= losses[best]:
            best = i
        if i - best >= patience:
            return best, i
    return best, len(losses) - 1


def w34_compares_with_previous(losses, patience):
    best, bad = 0, 0
    for i, loss in enumerate(losses):
        if loss < losses[best]:
            best = i
        bad = bad + 1 if i and loss >= losses[i - 1] else 0
        if bad == patience:
            return best, i
    return best, len(losses) - 1


def w34_one_late(losses, patience):
    best = 0
    for i, loss in enumerate(losses):
        if loss < losses[best]:
            best = i
        elif i - best > patience:
            return best, i
    return best, len(losses) - 1


def w34_best_of_all(losses, patience):
    best = 0
    for i, loss in enumerate(losses):
        if loss < losses[best]:
            best = i
        elif i - best >= patience:
            return min(range(len(losses)), key=losses.__getitem__), i
    return best, len(losses) - 1


def w34_counter_not_reset(losses, patience):
    best, bad = 0, 0
    for i, loss in enumerate(losses):
        if loss < losses[best]:
            best = i
        elif i:
            bad += 1
        if bad >= patience:
            return best, i
    return best, len(losses) - 1


def r34_walk(losses, patience):
    best = 0
    for i, loss in enumerate(losses):
        if loss < losses[best]:
            best = i
        elif i - best >= patience:
            return best, i
    return best, len(losses) - 1


def r34_prefixes(losses, patience):
    n = len(losses)
    best_at = [losses.index(min(losses[: i + 1])) for i in range(n)]
    end = next((i for i in range(n) if i - best_at[i] == patience), n - 1)
    return best_at[end], end


WRONG = {
    "evaluate_batches": {
        "mean of batch means": w31_mean_of_means,
        "accuracy over all positions": w31_accuracy_over_all,
        "nan if a batch is empty": w31_nan_if_empty,
        "id 0 ignored": w31_id_0_ignored,
        "mean of batch accuracies": w31_mean_of_accuracies,
    },
    "schedule": {
        "warmup 0 divides by zero": w32_divides_by_zero,
        "second line starts at 0": w32_second_line_from_0,
        "step + 1": w32_step_plus_one,
        "cosine": w32_cosine,
        "zero one step early": w32_zero_one_early,
    },
    "clip": {
        "each tensor alone": w33_each_alone,
        "scales small ones up": w33_scales_up,
        "changes the arguments": w33_inplace,
        "sum of norms": w33_sum_of_norms,
        "same tensors if small": w33_same_objects,
    },
    "early_stopping": {
        "equal is a gain": w34_equal_is_gain,
        "compares with the one before": w34_compares_with_previous,
        "stops one late": w34_one_late,
        "best of all losses": w34_best_of_all,
        "counter not reset": w34_counter_not_reset,
    },
}
RIGHT = {
    "evaluate_batches": {"running sums": r31_running_sums, "concatenated, 0-d tensors": r31_concatenated},
    "schedule": {"branches": r32_branches, "minimum of two lines": r32_minimum},
    "clip": {"sum of squares, list": r33_sum_of_squares, "one vector, tuple": r33_one_vector},
    "early_stopping": {"walk": r34_walk, "prefixes": r34_prefixes},
}
