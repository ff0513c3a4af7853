"""Named wrong answers to the exercises; every one must be rejected with the words beside it."""

import torch
import torch.nn.functional as F

# --- 10.1 ------------------------------------------------------------------------------------------------------------


def _cut_up(flat, tensors):
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors)]


def _masks(tensors, sparsity, key=torch.abs, descending=True, stable=True, count=round):
    flat = torch.cat([key(tensor).flatten() for tensor in tensors])
    order = flat.argsort(descending=descending, stable=stable)
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[order[: len(flat) - count(sparsity * len(flat))]] = True
    return _cut_up(mask, tensors)


def by_threshold(tensors, sparsity):
    flat = torch.cat([tensor.abs().flatten() for tensor in tensors])
    zeros = round(sparsity * len(flat))
    threshold = flat.sort().values[zeros - 1] if zeros else -1.0
    return [tensor.abs() > threshold for tensor in tensors]


def by_quantile(tensors, sparsity):
    flat = torch.cat([tensor.abs().flatten() for tensor in tensors])
    return [tensor.abs() >= flat.quantile(sparsity) for tensor in tensors]


def each_alone(tensors, sparsity):
    return [_masks([tensor], sparsity)[0] for tensor in tensors]


def later_stays(tensors, sparsity):
    flat = torch.cat([tensor.abs().flatten() for tensor in tensors])
    mask = torch.ones(len(flat), dtype=torch.bool)
    mask[flat.argsort(stable=True)[: round(sparsity * len(flat))]] = False  # of equals the earlier goes
    return _cut_up(mask, tensors)


def as_floats(tensors, sparsity):
    return [mask.float() for mask in _masks(tensors, sparsity)]


def one_long_mask(tensors, sparsity):
    return [torch.cat([mask.flatten() for mask in _masks(tensors, sparsity)])]


def flat_masks(tensors, sparsity):
    return [mask.flatten() for mask in _masks(tensors, sparsity)]


def zeros_the_weights(tensors, sparsity):
    masks = _masks(tensors, sparsity)
    for tensor, mask in zip(tensors, masks):
        tensor *= mask
    return masks


# --- 10.2 ------------------------------------------------------------------------------------------------------------


def _top(scores, sparsity):
    mask = torch.ones(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().argsort()[: round(sparsity * scores.numel())]] = False
    return mask.view(scores.shape)


def _movement(change, rank=lambda new, old, weight: new):
    def step(weight, mask, gradient, scores, sparsity):
        new = change(weight, mask, gradient, scores)
        return new, _top(rank(new, scores, weight), sparsity)

    return step


def _right(weight, mask, gradient, scores):
    return scores - gradient * weight


def never_back(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, _top(new, sparsity) & mask


def in_place(weight, mask, gradient, scores, sparsity):
    scores -= gradient * weight
    return scores, _top(scores, sparsity)


def upside_down(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, ~_top(new, sparsity)


def keeps_the_share(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, _top(new, 1 - sparsity)


def by_row(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, torch.stack([_top(row, sparsity) for row in new])


# --- 10.3 ------------------------------------------------------------------------------------------------------------


def _groups(keys, count=2, stable=True, descending=True):
    groups = keys.reshape(*keys.shape[:-1], -1, 4)
    order = groups.argsort(dim=-1, descending=descending, stable=stable)[..., :count]
    return torch.zeros_like(groups, dtype=torch.bool).scatter(-1, order, True).reshape(keys.shape)


def second_largest(weight):
    groups = weight.abs().reshape(*weight.shape[:-1], -1, 4)
    second = groups.sort(dim=-1, descending=True).values[..., 1:2]
    return (groups >= second).reshape(weight.shape)


def anywhere(weight):
    flat = weight.abs().flatten()
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[flat.argsort(descending=True, stable=True)[: len(flat) // 2]] = True
    return mask.view(weight.shape)


def later_of_equals(weight):
    groups = weight.abs().reshape(*weight.shape[:-1], -1, 4)
    gone = groups.argsort(dim=-1, stable=True)[..., :2]
    return torch.ones_like(groups, dtype=torch.bool).scatter(-1, gone, False).reshape(weight.shape)


def every_kth(weight):
    keys = weight.abs().reshape(*weight.shape[:-1], 4, -1)
    order = keys.argsort(dim=-2, descending=True, stable=True)[..., :2, :]
    return torch.zeros_like(keys, dtype=torch.bool).scatter(-2, order, True).reshape(weight.shape)


def matrices_only(weight):
    rows, columns = weight.shape
    return _groups(weight.abs())


def pruned_weights(weight):
    return weight * _groups(weight.abs())


# --- 10.4 ------------------------------------------------------------------------------------------------------------


def _stay(heads, gone):
    return [head for head in range(heads) if head not in gone]


def _rows(wqkv, heads, keep):
    return wqkv.view(3, heads, -1, wqkv.shape[1])[:, keep].reshape(-1, wqkv.shape[1])


def _columns(wo, heads, keep):
    return wo.view(wo.shape[0], heads, -1)[:, keep].reshape(wo.shape[0], -1)


def heads_first(wqkv, wo, heads, gone):
    keep = _stay(heads, gone)
    return wqkv.view(heads, 3, -1, wqkv.shape[1])[keep].reshape(-1, wqkv.shape[1]), _columns(wo, heads, keep)


def queries_only(wqkv, wo, heads, gone):
    keep, third = _stay(heads, gone), len(wqkv) // 3
    queries = wqkv[:third].view(heads, -1, wqkv.shape[1])[keep].reshape(-1, wqkv.shape[1])
    return torch.cat([queries, wqkv[third:]]), _columns(wo, heads, keep)


def only_zero(wqkv, wo, heads, gone):
    wqkv, wo = wqkv.clone(), wo.clone()
    wqkv.view(3, heads, -1, wqkv.shape[1])[:, gone] = 0
    wo.view(wo.shape[0], heads, -1)[:, gone] = 0
    return wqkv, wo


def forgets_wo(wqkv, wo, heads, gone):
    return _rows(wqkv, heads, _stay(heads, gone)), wo


def rows_of_wo(wqkv, wo, heads, gone):
    keep = _stay(heads, gone)
    size = wo.shape[1] // heads
    rows = [row for row in range(wo.shape[0]) if row // size not in gone]
    return _rows(wqkv, heads, keep), wo[rows]


def strided_wo(wqkv, wo, heads, gone):
    keep = _stay(heads, gone)
    return _rows(wqkv, heads, keep), wo.view(wo.shape[0], -1, heads)[:, :, keep].reshape(wo.shape[0], -1)


def keeps_the_gone(wqkv, wo, heads, gone):
    return _rows(wqkv, heads, gone), _columns(wo, heads, gone)


def one_after_another(wqkv, wo, heads, gone):
    """Removes by number from a list that has become shorter."""
    keep = list(range(heads))
    for head in gone:
        keep.pop(min(head, len(keep) - 1))
    return _rows(wqkv, heads, keep), _columns(wo, heads, keep)


# --- 10.5 ------------------------------------------------------------------------------------------------------------


def _soft(student, teacher, labels, temperature, *, scale=None, reverse=False, reduce="mean", scored=None):
    keep = labels != -100 if scored is None else scored
    log_q, log_p = (student[keep] / temperature).log_softmax(-1), (teacher[keep].detach() / temperature).log_softmax(-1)
    rows = log_q.exp() * (log_q - log_p) if reverse else log_p.exp() * (log_p - log_q)
    total = {"mean": rows.sum(-1).mean(), "sum": rows.sum(), "all": rows.mean()}[reduce]
    return total * (temperature**2 if scale is None else scale)


def everywhere(student, teacher, labels, temperature):
    return _soft(student, teacher, labels, temperature, scored=torch.ones_like(labels, dtype=torch.bool))


def not_detached(student, teacher, labels, temperature):
    keep = labels != -100
    log_q, log_p = (student[keep] / temperature).log_softmax(-1), (teacher[keep] / temperature).log_softmax(-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def log_of_softmax(student, teacher, labels, temperature):
    keep = labels != -100
    q, p = (student[keep] / temperature).softmax(-1), (teacher[keep].detach() / temperature).softmax(-1)
    return temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()


def cross_entropy(student, teacher, labels, temperature):
    keep = labels != -100
    p = (teacher[keep].detach() / temperature).softmax(-1)
    return -(temperature**2) * (p * (student[keep] / temperature).log_softmax(-1)).sum(-1).mean()


def batch_mean(student, teacher, labels, temperature):
    return _soft(student, teacher, labels, temperature, reduce="sum") / len(labels)


def library(student, teacher, labels, temperature):
    keep = labels != -100
    log_q = (student[keep] / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(log_q, (teacher[keep] / temperature).softmax(-1), reduction="batchmean")


def only_student_softened(student, teacher, labels, temperature):
    return _soft(student, teacher * temperature, labels, temperature)


MUTANTS = {
    "magnitude_mask": {
        "a threshold": (by_threshold, "expected round(sparsity · n)"),
        "a quantile": (by_quantile, "expected round(sparsity · n)"),
        "each tensor by itself": (each_alone, "rank all weights together"),
        "without absolute values": (lambda t, s: _masks(t, s, key=lambda x: x), "rank by absolute value"),
        "cuts the largest": (lambda t, s: _masks(t, s, descending=False), "the largest weights went"),
        "upside down": (lambda t, s: [~mask for mask in _masks(t, s)], "upside down"),
        "keeps the share": (lambda t, s: _masks(t, 1 - s), "you kept that share"),
        "rounds down": (lambda t, s: _masks(t, s, count=int), "round as Python's round does"),
        "rounds halves up": (lambda t, s: _masks(t, s, count=lambda x: int(x + 0.5)), "halves to the even"),
        "of equals the later stays": (later_stays, "of equals the earlier should"),
        "floats": (as_floats, "should be boolean"),
        "one long mask": (one_long_mask, "you returned 1 masks"),
        "flat masks": (flat_masks, "has shape"),
        "writes into the weights": (zeros_the_weights, "changed one of its arguments in place"),
    },
    "movement_step": {
        "wrong sign": (_movement(lambda w, m, g, s: s + g * w), "the sign is wrong"),
        "scores only what stays": (_movement(lambda w, m, g, s: s - g * w * m), "could never come back"),
        "size of the movement": (_movement(lambda w, m, g, s: s - (g * w).abs()), "its sign must stay"),
        "grows by the size of the movement": (_movement(lambda w, m, g, s: s + (g * w).abs()), "keep its sign"),
        "forgets the old scores": (_movement(lambda w, m, g, s: -g * w), "the old scores are lost"),
        "gradient alone": (_movement(lambda w, m, g, s: s - g), "the weight is missing"),
        "magnitude": (_movement(lambda w, m, g, s: w.abs()), "magnitude pruning"),
        "ranks by absolute score": (_movement(_right, lambda new, old, w: new.abs()), "rank with their signs"),
        "ranks by the old scores": (_movement(_right, lambda new, old, w: old), "draw it after the update"),
        "masked for ever": (never_back, "it may come back"),
        "upside down": (upside_down, "upside down"),
        "keeps the share": (keeps_the_share, "you kept that share"),
        "row by row": (by_row, "rank all entries of the matrix together"),
        "in place": (in_place, "changed one of its arguments in place"),
        "scores alone": (lambda w, m, g, s, share: s - g * w, "return a pair"),
    },
    "two_of_four": {
        "without absolute values": (lambda weight: _groups(weight), "rank by absolute value"),
        "second largest as a threshold": (second_largest, "a threshold does not"),
        "half, anywhere": (anywhere, "rank within each group"),
        "of equals the later": (later_of_equals, "of equals the earlier should"),
        "every k-th": (every_kth, "not every k-th entry"),
        "down the columns": (
            lambda weight: _groups(weight.abs().mT).mT if weight.ndim > 1 and weight.shape[-2] % 4 == 0
            else _groups(weight.abs()),
            "the groups run down the columns",
        ),
        "one of four": (lambda weight: _groups(weight.abs(), count=1), "keeps one"),
        "three of four": (lambda weight: _groups(weight.abs(), count=3), "keeps three"),
        "upside down": (lambda weight: ~_groups(weight.abs()), "upside down"),
        "matrices only": (matrices_only, "your function raised ValueError"),
        "the weights in place of the mask": (pruned_weights, "should be boolean"),
    },
    "drop_heads": {
        "heads first": (heads_first, "q of all heads, then k, then v"),
        "queries only": (queries_only, "only the queries were cut"),
        "zeros": (only_zero, "still there"),
        "forgets wo": (forgets_wo, "wo is as it was"),
        "rows of wo": (rows_of_wo, "the heads are its columns"),
        "strided columns of wo": (strided_wo, "a head's columns stand together"),
        "keeps what should go": (keeps_the_gone, "holds the heads that should go"),
        "one after another": (one_after_another, "wqkv has"),
        "reverses": (
            lambda a, b, heads, gone: (_rows(a, heads, _stay(heads, gone)[::-1]),
                                       _columns(b, heads, _stay(heads, gone)[::-1])),
            "keep their order",
        ),
        "wqkv alone": (lambda a, b, heads, gone: _rows(a, heads, _stay(heads, gone)), "return a pair"),
    },
    "soft_loss": {  # k is the temperature
        "no T²": (lambda s, t, y, k: _soft(s, t, y, k, scale=1.0), "T² is missing"),
        "T in place of T²": (lambda s, t, y, k: _soft(s, t, y, k, scale=k), "not by T"),
        "the other way round": (lambda s, t, y, k: _soft(s, t, y, k, reverse=True), "the wrong way round"),
        "padding counts": (everywhere, "count in your mean"),
        "over classes, too": (lambda s, t, y, k: _soft(s, t, y, k, reduce="all"), "number of classes"),
        "sum": (lambda s, t, y, k: _soft(s, t, y, k, reduce="sum"), "take the mean"),
        "by sentences": (batch_mean, "not by the number of sentences"),
        "cross-entropy": (cross_entropy, "the teacher's own entropy"),
        "no temperature": (lambda s, t, y, k: _soft(s, t, y, 1.0, scale=k**2), "missing inside the softmax"),
        "only the student is softened": (only_student_softened, "only the student is softened"),
        "logarithm of a softmax": (log_of_softmax, "use log_softmax"),
        "the teacher learns": (not_detached, "a gradient flows to the teacher"),
        "the student does not": (lambda s, t, y, k: _soft(s, t, y, k).item(), "no gradient flows to the student"),
        "kl_div": (library, "your function calls kl_div"),
        "labels": (
            lambda s, t, y, k: F.cross_entropy(s.flatten(0, 1), y.flatten()),
            "the soft half uses the teacher",
        ),
    },
}  # fmt: skip
