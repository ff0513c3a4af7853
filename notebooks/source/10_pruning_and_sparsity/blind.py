import heapq
import math

import numpy as np
import torch
import torch.nn.functional as F


# 10.1 -----------------------------------------------------------------
def flat101(tensors):
    return torch.cat([t.detach().abs().reshape(-1) for t in tensors])


def cut101(mask, tensors):
    parts, at = [], 0
    for t in tensors:
        parts.append(mask[at : at + t.numel()].reshape(t.shape).clone())
        at += t.numel()
    return parts


def keep101(flat, zeros):
    mask = torch.ones(flat.numel(), dtype=torch.bool)
    order = torch.sort(flat, descending=True, stable=True).indices
    mask[order[flat.numel() - zeros :]] = False
    return mask


def w101_later_stays(tensors, sparsity):
    flat = flat101(tensors)
    mask = torch.ones(flat.numel(), dtype=torch.bool)
    order = torch.sort(flat, stable=True).indices
    mask[order[: round(sparsity * flat.numel())]] = False
    return cut101(mask, tensors)


def w101_above_the_threshold(tensors, sparsity):
    flat = flat101(tensors)
    zeros = round(sparsity * flat.numel())
    if zeros == 0:
        return [torch.ones(t.shape, dtype=torch.bool) for t in tensors]
    threshold = flat.kthvalue(zeros).values
    return [t.detach().abs() > threshold for t in tensors]


def w101_from_the_threshold_up(tensors, sparsity):
    flat = flat101(tensors)
    zeros = round(sparsity * flat.numel())
    if zeros == flat.numel():
        return [torch.zeros(t.shape, dtype=torch.bool) for t in tensors]
    threshold = torch.sort(flat).values[zeros]
    return [t.detach().abs() >= threshold for t in tensors]


def w101_each_tensor_alone(tensors, sparsity):
    return [
        keep101(t.detach().abs().reshape(-1), round(sparsity * t.numel())).reshape(t.shape) for t in tensors
    ]


def w101_truncates(tensors, sparsity):
    flat = flat101(tensors)
    return cut101(keep101(flat, int(sparsity * flat.numel())), tensors)


def w101_ceil(tensors, sparsity):
    flat = flat101(tensors)
    return cut101(keep101(flat, math.ceil(sparsity * flat.numel())), tensors)


def w101_half_up(tensors, sparsity):
    flat = flat101(tensors)
    return cut101(keep101(flat, math.floor(sparsity * flat.numel() + 0.5)), tensors)


def w101_rounds_what_is_kept(tensors, sparsity):
    flat = flat101(tensors)
    kept = round((1 - sparsity) * flat.numel())
    return cut101(keep101(flat, flat.numel() - kept), tensors)


def w101_sum_of_rounded_shares(tensors, sparsity):
    zeros = sum(round(sparsity * t.numel()) for t in tensors)
    return cut101(keep101(flat101(tensors), zeros), tensors)


def w101_signed(tensors, sparsity):
    flat = torch.cat([t.detach().reshape(-1) for t in tensors])
    return cut101(keep101(flat, round(sparsity * flat.numel())), tensors)


def w101_inverted(tensors, sparsity):
    flat = flat101(tensors)
    return cut101(~keep101(flat, round(sparsity * flat.numel())), tensors)


def w101_takes_the_largest(tensors, sparsity):
    flat = flat101(tensors)
    return cut101(keep101(-flat, round(sparsity * flat.numel())), tensors)


def w101_float_masks(tensors, sparsity):
    flat = flat101(tensors)
    return [m.float() for m in cut101(keep101(flat, round(sparsity * flat.numel())), tensors)]


def w101_flat_masks(tensors, sparsity):
    flat = flat101(tensors)
    mask = keep101(flat, round(sparsity * flat.numel()))
    return list(mask.split([t.numel() for t in tensors]))


def w101_one_long_mask(tensors, sparsity):
    flat = flat101(tensors)
    return keep101(flat, round(sparsity * flat.numel()))


def w101_abs_in_place(tensors, sparsity):
    flat = torch.cat([t.detach().abs_().reshape(-1) for t in tensors])
    return cut101(keep101(flat, round(sparsity * flat.numel())), tensors)


def w101_zeroes_the_weights(tensors, sparsity):
    flat = flat101(tensors)
    masks = cut101(keep101(flat, round(sparsity * flat.numel())), tensors)
    with torch.no_grad():
        for t, m in zip(tensors, masks):
            t.mul_(m)
    return masks


def w101_quantile(tensors, sparsity):
    threshold = torch.quantile(flat101(tensors), sparsity)
    return [t.detach().abs() > threshold for t in tensors]


def w101_relative_to_the_tensor(tensors, sparsity):
    flat = torch.cat([(t.detach().abs() / t.detach().abs().max().clamp(min=1e-12)).reshape(-1) for t in tensors])
    return cut101(keep101(flat, round(sparsity * flat.numel())), tensors)


def w101_topk_of_the_smallest(tensors, sparsity):
    flat = flat101(tensors)
    mask = torch.ones(flat.numel(), dtype=torch.bool)
    mask[flat.topk(round(sparsity * flat.numel()), largest=False).indices] = False
    return cut101(mask, tensors)


def w101_topk_of_the_largest(tensors, sparsity):
    flat = flat101(tensors)
    mask = torch.zeros(flat.numel(), dtype=torch.bool)
    mask[flat.topk(flat.numel() - round(sparsity * flat.numel())).indices] = True
    return cut101(mask, tensors)


def w101_share_of_the_nonzero(tensors, sparsity):
    flat = flat101(tensors)
    return cut101(keep101(flat, round(sparsity * int((flat != 0).sum()))), tensors)


def w101_zeros_never_stay(tensors, sparsity):
    flat = flat101(tensors)
    return cut101(keep101(flat, round(sparsity * flat.numel())) & (flat != 0), tensors)


def by_key101(tensors, sparsity, key):
    items = []
    for number, t in enumerate(tensors):
        for position, value in enumerate(t.detach().abs().reshape(-1).tolist()):
            items.append((value, number, position))
    items.sort(key=key)
    masks = [torch.ones(t.numel(), dtype=torch.bool) for t in tensors]
    for _, number, position in items[: round(sparsity * len(items))]:
        masks[number][position] = False
    return [m.reshape(t.shape) for m, t in zip(masks, tensors)]


def w101_later_tensor_stays(tensors, sparsity):
    return by_key101(tensors, sparsity, lambda item: (item[0], item[1], -item[2]))


def w101_later_in_the_tensor_stays(tensors, sparsity):
    return by_key101(tensors, sparsity, lambda item: (item[0], -item[1], item[2]))


def w101_position_before_tensor(tensors, sparsity):
    return by_key101(tensors, sparsity, lambda item: (item[0], -item[2], -item[1]))


def w101_one_always_stays(tensors, sparsity):
    flat = flat101(tensors)
    return cut101(keep101(flat, min(round(sparsity * flat.numel()), flat.numel() - 1)), tensors)


def w101_one_always_goes(tensors, sparsity):
    flat = flat101(tensors)
    return cut101(keep101(flat, max(round(sparsity * flat.numel()), 1)), tensors)


def w101_minus_zero_slice(tensors, sparsity):
    flat = flat101(tensors)
    zeros = round(sparsity * flat.numel())
    mask = torch.ones(flat.numel(), dtype=torch.bool)
    mask[torch.sort(flat, descending=True, stable=True).indices[-zeros:]] = False
    return cut101(mask, tensors)


def w101_ties_by_column(tensors, sparsity):
    turned = [t.detach().permute(*range(t.ndim - 1, -1, -1)) if t.ndim > 1 else t.detach() for t in tensors]
    flat = torch.cat([t.abs().reshape(-1) for t in turned])
    masks = cut101(keep101(flat, round(sparsity * flat.numel())), turned)
    return [m.permute(*range(m.ndim - 1, -1, -1)).contiguous() if m.ndim > 1 else m for m in masks]


def w101_memory_order(tensors, sparsity):
    flat = np.concatenate([np.abs(t.detach().numpy()).ravel(order="K") for t in tensors])
    return cut101(keep101(torch.from_numpy(flat), round(sparsity * len(flat))), tensors)


def w101_vectors_never_pruned(tensors, sparsity):
    matrices = [t for t in tensors if t.ndim >= 2]
    if not matrices:
        return [torch.ones(t.shape, dtype=torch.bool) for t in tensors]
    flat = flat101(matrices)
    masks = iter(cut101(keep101(flat, round(sparsity * flat.numel())), matrices))
    return [next(masks) if t.ndim >= 2 else torch.ones(t.shape, dtype=torch.bool) for t in tensors]


def w101_half_precision(tensors, sparsity):
    flat = flat101(tensors).half()
    return cut101(keep101(flat, round(sparsity * flat.numel())), tensors)


def w101_ties_by_a_nudge(tensors, sparsity):
    flat = flat101(tensors)
    flat = flat - 1e-4 * torch.arange(flat.numel())
    return cut101(keep101(flat, round(sparsity * flat.numel())), tensors)


def w101_one_too_many(tensors, sparsity):
    flat = flat101(tensors)
    zeros = round(sparsity * flat.numel())
    threshold = torch.sort(flat).values[min(zeros, flat.numel() - 1)]
    return [t.detach().abs() > threshold for t in tensors]


def r101_stable_descending(tensors, sparsity):
    flat = torch.cat([t.detach().abs().reshape(-1) for t in tensors])
    kept = flat.numel() - round(sparsity * flat.numel())
    mask = torch.zeros(flat.numel(), dtype=torch.bool)
    mask[torch.sort(flat, descending=True, stable=True).indices[:kept]] = True
    return [m.reshape(t.shape).clone() for m, t in zip(mask.split([t.numel() for t in tensors]), tensors)]


def r101_flipped(tensors, sparsity):
    flat = torch.cat([t.detach().abs().reshape(-1) for t in tensors])
    n = flat.numel()
    gone = n - 1 - torch.sort(flat.flip(0), stable=True).indices[: round(sparsity * n)]
    mask = torch.ones(n, dtype=torch.bool).index_fill(0, gone, False)
    return [m.reshape(t.shape).clone() for m, t in zip(mask.split([t.numel() for t in tensors]), tensors)]


def r101_lexsort(tensors, sparsity):
    flat = np.concatenate([t.detach().abs().double().reshape(-1).numpy() for t in tensors])
    n = len(flat)
    mask = np.ones(n, dtype=bool)
    mask[np.lexsort((-np.arange(n), flat))[: round(sparsity * n)]] = False
    ends = np.cumsum([t.numel() for t in tensors])[:-1]
    return [torch.tensor(m, dtype=torch.bool).reshape(t.shape) for m, t in zip(np.split(mask, ends), tensors)]


def r101_sorted_triples(tensors, sparsity):
    return by_key101(tensors, sparsity, lambda item: (item[0], -item[1], -item[2]))


def r101_kthvalue_and_cumsum(tensors, sparsity):
    flat = torch.cat([t.detach().abs().reshape(-1) for t in tensors])
    zeros = round(sparsity * flat.numel())
    if zeros == 0:
        return [torch.ones(t.shape, dtype=torch.bool) for t in tensors]
    threshold = flat.kthvalue(zeros).values
    below, level = flat < threshold, flat == threshold
    from_the_end = level.flip(0).cumsum(0).flip(0)
    mask = ~(below | (level & (from_the_end <= zeros - below.sum())))
    return [m.reshape(t.shape).clone() for m, t in zip(mask.split([t.numel() for t in tensors]), tensors)]


def r101_heap(tensors, sparsity):
    values = [v for t in tensors for v in t.detach().abs().reshape(-1).tolist()]
    smallest = heapq.nsmallest(round(sparsity * len(values)), ((v, -i) for i, v in enumerate(values)))
    gone = {-i for _, i in smallest}
    masks, at = [], 0
    for t in tensors:
        row = [i not in gone for i in range(at, at + t.numel())]
        masks.append(torch.tensor(row, dtype=torch.bool).reshape(t.shape))
        at += t.numel()
    return masks


def r101_level_by_level(tensors, sparsity):
    places = {}
    n = 0
    for number, t in enumerate(tensors):
        for position, value in enumerate(t.detach().abs().reshape(-1).tolist()):
            places.setdefault(value, []).append((number, position))
            n += 1
    left = round(sparsity * n)
    masks = [[True] * t.numel() for t in tensors]
    for value in sorted(places):
        while places[value] and left > 0:
            number, position = places[value].pop()
            masks[number][position] = False
            left -= 1
    return [torch.tensor(m, dtype=torch.bool).reshape(t.shape) for m, t in zip(masks, tensors)]


def smallest101(items, count):
    if count <= 0:
        return []
    if count >= len(items):
        return items
    pivot = items[len(items) // 2]
    below = [x for x in items if x < pivot]
    rest = [x for x in items if x > pivot]
    if count <= len(below):
        return smallest101(below, count)
    return below + [pivot] + smallest101(rest, count - len(below) - 1)


def r101_quickselect(tensors, sparsity):
    values = [v for t in tensors for v in t.detach().abs().reshape(-1).tolist()]
    mask = torch.ones(len(values), dtype=torch.bool)
    for _, i in smallest101([(v, -i) for i, v in enumerate(values)], round(sparsity * len(values))):
        mask[-i] = False
    masks = []
    for t in tensors:
        masks.append(mask[: t.numel()].reshape(t.shape).clone())
        mask = mask[t.numel() :]
    return masks


# 10.2 -----------------------------------------------------------------
def draw102(scores, zeros):
    mask = torch.ones(scores.numel(), dtype=torch.bool)
    mask[scores.detach().reshape(-1).argsort()[:zeros]] = False
    return mask.reshape(scores.shape)


def w102_plus(weight, mask, gradient, scores, sparsity):
    new = scores + gradient * weight
    return new, draw102(new, round(sparsity * new.numel()))


def w102_only_unmasked(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight * mask
    return new, draw102(new, round(sparsity * new.numel()))


def w102_only_masked(weight, mask, gradient, scores, sparsity):
    new = torch.where(mask, scores, scores - gradient * weight)
    return new, draw102(new, round(sparsity * new.numel()))


def w102_absolute_scores(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, draw102(new.abs(), round(sparsity * new.numel()))


def w102_mask_of_the_old_scores(weight, mask, gradient, scores, sparsity):
    return scores - gradient * weight, draw102(scores, round(sparsity * scores.numel()))


def w102_scores_in_place(weight, mask, gradient, scores, sparsity):
    new = scores.detach()
    new -= gradient * weight
    return new, draw102(new, round(sparsity * new.numel()))


def w102_mask_in_place(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    mask.copy_(draw102(new, round(sparsity * new.numel())))
    return new, mask


def w102_gradient_in_place(weight, mask, gradient, scores, sparsity):
    new = scores - gradient.detach().mul_(weight)
    return new, draw102(new, round(sparsity * new.numel()))


def w102_weight_in_place(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    drawn = draw102(new, round(sparsity * new.numel()))
    weight.detach().mul_(drawn)
    return new, drawn


def w102_gradient_alone(weight, mask, gradient, scores, sparsity):
    new = scores - gradient
    return new, draw102(new, round(sparsity * new.numel()))


def w102_swapped(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return draw102(new, round(sparsity * new.numel())), new


def w102_truncates(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, draw102(new, int(sparsity * new.numel()))


def w102_half_up(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, draw102(new, int(sparsity * new.numel() + 0.5))


def w102_rounds_what_is_kept(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, draw102(new, new.numel() - round((1 - sparsity) * new.numel()))


def w102_row_by_row(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, torch.stack([draw102(row, round(sparsity * row.numel())) for row in new])


def w102_column_by_column(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, torch.stack([draw102(c, round(sparsity * c.numel())) for c in new.t()], dim=1)


def w102_never_comes_back(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, draw102(new, round(sparsity * new.numel())) & mask


def w102_magnitude(weight, mask, gradient, scores, sparsity):
    return scores - gradient * weight, draw102(weight.abs(), round(sparsity * weight.numel()))


def w102_float_mask(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, draw102(new, round(sparsity * new.numel())).to(weight.dtype)


def w102_inverted(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, ~draw102(new, round(sparsity * new.numel()))


def w102_largest_go(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, draw102(-new, round(sparsity * new.numel()))


def w102_scores_masked_anew(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    drawn = draw102(new, round(sparsity * new.numel()))
    return new * drawn, drawn


def w102_scores_of_the_old_mask(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new * mask, draw102(new, round(sparsity * new.numel()))


def w102_minus_zero_slice(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    drawn = torch.ones(new.numel(), dtype=torch.bool)
    drawn[new.reshape(-1).argsort(descending=True)[-round(sparsity * new.numel()) :]] = False
    return new, drawn.reshape(new.shape)


def w102_threshold_stays(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    zeros = round(sparsity * new.numel())
    if zeros == 0:
        return new, torch.ones(new.shape, dtype=torch.bool)
    return new, new >= new.reshape(-1).kthvalue(zeros).values


def w102_one_too_many(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    zeros = round(sparsity * new.numel())
    return new, new > new.reshape(-1).sort().values[min(zeros, new.numel() - 1)]


def w102_absolute_step(weight, mask, gradient, scores, sparsity):
    new = scores - (gradient * weight).abs()
    return new, draw102(new, round(sparsity * new.numel()))


def w102_absolute_weight(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight.abs()
    return new, draw102(new, round(sparsity * new.numel()))


def w102_forgets_the_past(weight, mask, gradient, scores, sparsity):
    new = -gradient * weight
    return new, draw102(new, round(sparsity * new.numel()))


def w102_fading(weight, mask, gradient, scores, sparsity):
    new = 0.9 * scores - gradient * weight
    return new, draw102(new, round(sparsity * new.numel()))


def w102_learning_rate(weight, mask, gradient, scores, sparsity):
    new = scores - 0.01 * gradient * weight
    return new, draw102(new, round(sparsity * new.numel()))


def w102_share_of_what_is_left(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, draw102(new, round(sparsity * int(mask.sum())))


def w102_quantile(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, new > torch.quantile(new, sparsity)


def w102_positive_scores_stay(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, new > 0


def w102_one_always_stays(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, draw102(new, min(round(sparsity * new.numel()), new.numel() - 1))


def w102_mask_by_masked_step(weight, mask, gradient, scores, sparsity):
    drawn = draw102(scores - gradient * weight * mask, round(sparsity * scores.numel()))
    return scores - gradient * weight, drawn


def w102_scores_by_masked_step(weight, mask, gradient, scores, sparsity):
    drawn = draw102(scores - gradient * weight, round(sparsity * scores.numel()))
    return scores - gradient * weight * mask, drawn


def w102_mask_of_masked_scores(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, draw102(new * mask, round(sparsity * new.numel()))


def w102_turned(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    return new, draw102(new.t(), round(sparsity * new.numel())).reshape(new.shape)


def w102_sign_of_the_gradient(weight, mask, gradient, scores, sparsity):
    new = scores - gradient.sign() * weight
    return new, draw102(new, round(sparsity * new.numel()))


def w102_weight_after_the_step(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * (weight - gradient)
    return new, draw102(new, round(sparsity * new.numel()))


def r102_argsort(weight, mask, gradient, scores, sparsity):
    new = scores - gradient * weight
    zeros = round(sparsity * new.numel())
    drawn = torch.ones(new.numel(), dtype=torch.bool)
    drawn[new.detach().reshape(-1).argsort()[:zeros]] = False
    return new, drawn.reshape(new.shape)


def r102_kthvalue(weight, mask, gradient, scores, sparsity):
    new = torch.addcmul(scores, gradient, weight, value=-1)
    zeros = round(sparsity * new.numel())
    if zeros == 0:
        return new, torch.ones(new.shape, dtype=torch.bool)
    return new, new > new.reshape(-1).kthvalue(zeros).values


def r102_topk(weight, mask, gradient, scores, sparsity):
    new = scores.detach().clone()
    new.sub_(gradient.detach() * weight.detach())
    kept = new.numel() - round(sparsity * new.numel())
    drawn = torch.zeros(new.numel(), dtype=torch.bool)
    drawn.scatter_(0, new.reshape(-1).topk(kept).indices, True)
    return new, drawn.view(new.shape)


def r102_numpy(weight, mask, gradient, scores, sparsity):
    w, g, s = (x.detach().numpy() for x in (weight, gradient, scores))
    new = s - g * w
    zeros = round(sparsity * new.size)
    drawn = np.ones(new.size, dtype=bool)
    if zeros > 0:
        drawn[np.argpartition(new.reshape(-1), zeros - 1)[:zeros]] = False
    return torch.from_numpy(new.copy()), torch.from_numpy(drawn.reshape(new.shape))


def r102_lists(weight, mask, gradient, scores, sparsity):
    new = (scores - gradient * weight).detach()
    rows = new.tolist()
    entries = sorted((value, i, j) for i, row in enumerate(rows) for j, value in enumerate(row))
    drawn = [[True] * len(row) for row in rows]
    for _, i, j in entries[: round(sparsity * len(entries))]:
        drawn[i][j] = False
    return new, torch.tensor(drawn, dtype=torch.bool).reshape(new.shape)


def r102_ranks(weight, mask, gradient, scores, sparsity):
    new = scores - torch.einsum("ij,ij->ij", gradient, weight)
    ranks = new.detach().flatten().argsort().argsort()
    return new, (ranks >= round(sparsity * new.numel())).reshape(new.shape)


def r102_searchsorted(weight, mask, gradient, scores, sparsity):
    new = (scores - gradient * weight).detach()
    flat = new.reshape(-1).contiguous()
    places = torch.searchsorted(flat.sort().values, flat)
    return new, (places >= round(sparsity * flat.numel())).reshape(new.shape)


def r102_entry_by_entry(weight, mask, gradient, scores, sparsity):
    new = torch.empty_like(scores, requires_grad=False)
    rows, columns = new.shape
    for i in range(rows):
        for j in range(columns):
            new[i, j] = (scores[i, j] - gradient[i, j] * weight[i, j]).detach()
    drawn = torch.ones(rows, columns, dtype=torch.bool)
    left = heapq.nsmallest(
        round(sparsity * rows * columns), ((new[i, j].item(), i, j) for i in range(rows) for j in range(columns))
    )
    for _, i, j in left:
        drawn[i, j] = False
    return new, drawn


# 10.3 -----------------------------------------------------------------
def fours103(weight):
    return weight.detach().abs().reshape(-1, 4)


def best103(fours, count=2):
    order = torch.sort(fours, dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros(fours.shape, dtype=torch.bool).scatter_(1, order, True)


def w103_later_stays(weight):
    fours = fours103(weight)
    order = torch.sort(fours, dim=1, stable=True).indices[:, 2:]
    return torch.zeros(fours.shape, dtype=torch.bool).scatter_(1, order, True).reshape(weight.shape)


def w103_from_the_second_up(weight):
    fours = fours103(weight)
    second = fours.sort(dim=1).values[:, 2:3]
    return (fours >= second).reshape(weight.shape)


def w103_above_the_third(weight):
    fours = fours103(weight)
    third = fours.sort(dim=1).values[:, 1:2]
    return (fours > third).reshape(weight.shape)


def w103_topk(weight):
    fours = fours103(weight)
    order = fours.topk(2, dim=1).indices
    return torch.zeros(fours.shape, dtype=torch.bool).scatter_(1, order, True).reshape(weight.shape)


def w103_signed(weight):
    return best103(weight.detach().reshape(-1, 4)).reshape(weight.shape)


def w103_every_fourth(weight):
    k = weight.shape[-1] // 4
    fours = weight.detach().abs().reshape(-1, 4, k).transpose(1, 2).reshape(-1, 4)
    return best103(fours).reshape(-1, k, 4).transpose(1, 2).reshape(weight.shape)


def w103_first_dimension(weight):
    moved = weight.detach().movedim(0, -1)
    return best103(fours103(moved)).reshape(moved.shape).movedim(-1, 0).contiguous()


def w103_second_dimension(weight):
    if weight.ndim < 3:
        return best103(fours103(weight)).reshape(weight.shape)
    moved = weight.detach().movedim(1, -1)
    return best103(fours103(moved)).reshape(moved.shape).movedim(-1, 1).contiguous()


def w103_inverted(weight):
    return ~best103(fours103(weight)).reshape(weight.shape)


def w103_smallest(weight):
    return best103(-fours103(weight)).reshape(weight.shape)


def w103_float_mask(weight):
    return best103(fours103(weight)).reshape(weight.shape).to(weight.dtype)


def w103_masked_weight(weight):
    return weight * best103(fours103(weight)).reshape(weight.shape)


def w103_abs_in_place(weight):
    return best103(weight.detach().abs_().reshape(-1, 4)).reshape(weight.shape)


def w103_zeroes_the_weight(weight):
    mask = best103(fours103(weight)).reshape(weight.shape)
    weight.detach().mul_(mask)
    return mask


def w103_matrices_only(weight):
    rows, columns = weight.shape
    return best103(fours103(weight)).reshape(rows, columns)


def w103_flattened(weight):
    return best103(fours103(weight)).reshape(-1, weight.shape[-1])


def w103_left_in_fours(weight):
    return best103(fours103(weight)).reshape(*weight.shape[:-1], weight.shape[-1] // 4, 4)


def w103_half_of_the_row(weight):
    rows = weight.detach().abs().reshape(-1, weight.shape[-1])
    return best103(rows, weight.shape[-1] // 2).reshape(weight.shape)


def w103_half_of_everything(weight):
    flat = weight.detach().abs().reshape(1, -1)
    return best103(flat, weight.numel() // 2).reshape(weight.shape)


def w103_one_of_two(weight):
    pairs = weight.detach().abs().reshape(-1, 2)
    return best103(pairs, 1).reshape(weight.shape)


def w103_four_of_eight(weight):
    if weight.shape[-1] % 8:
        return best103(fours103(weight)).reshape(weight.shape)
    return best103(weight.detach().abs().reshape(-1, 8), 4).reshape(weight.shape)


def w103_three_of_four(weight):
    return best103(fours103(weight), 3).reshape(weight.shape)


def w103_only_one(weight):
    return best103(fours103(weight), 1).reshape(weight.shape)


def w103_zeros_never_stay(weight):
    return best103(fours103(weight)).reshape(weight.shape) & (weight != 0)


def w103_above_the_mean(weight):
    fours = fours103(weight)
    return (fours > fours.mean(dim=1, keepdim=True)).reshape(weight.shape)


def w103_from_the_lower_median(weight):
    fours = fours103(weight)
    return (fours >= fours.median(dim=1, keepdim=True).values).reshape(weight.shape)


def w103_quantile(weight):
    fours = fours103(weight)
    return (fours >= fours.quantile(0.5, dim=1, keepdim=True)).reshape(weight.shape)


def w103_memory_order(weight):
    flat = torch.from_numpy(np.abs(weight.detach().numpy()).ravel(order="K").copy())
    return best103(flat.reshape(-1, 4)).reshape(weight.shape)


def w103_half_precision(weight):
    return best103(fours103(weight).half()).reshape(weight.shape)


def w103_last_four_forgotten(weight):
    rows = weight.detach().abs().reshape(-1, weight.shape[-1])
    mask = torch.zeros(rows.shape, dtype=torch.bool)
    for start in range(0, weight.shape[-1] - 4, 4):
        mask[:, start : start + 4] = best103(rows[:, start : start + 4])
    return mask.reshape(weight.shape)


def w103_second_argmax_after_a_zero(weight):
    fours = fours103(weight).clone()
    mask = torch.zeros(fours.shape, dtype=torch.bool)
    for _ in range(2):
        best = fours.argmax(dim=1, keepdim=True)
        mask.scatter_(1, best, True)
        fours.scatter_(1, best, 0.0)
    return mask.reshape(weight.shape)


def w103_index_of_the_value(weight):
    rows = []
    for values in fours103(weight).tolist():
        row = [False] * 4
        for value in sorted(values)[2:]:
            row[values.index(value)] = True
        rows.append(row)
    return torch.tensor(rows, dtype=torch.bool).reshape(weight.shape)


def w103_of_equals_the_positive(weight):
    rows = []
    for values in weight.detach().reshape(-1, 4).tolist():
        order = sorted(range(4), key=lambda i: (-abs(values[i]), -values[i]))
        rows.append([i in order[:2] for i in range(4)])
    return torch.tensor(rows, dtype=torch.bool).reshape(weight.shape)


def w103_highest_and_lowest(weight):
    fours = weight.detach().reshape(-1, 4)
    mask = torch.zeros(fours.shape, dtype=torch.bool)
    mask.scatter_(1, fours.argmax(dim=1, keepdim=True), True)
    mask.scatter_(1, fours.argmin(dim=1, keepdim=True), True)
    return mask.reshape(weight.shape)


def w103_indices(weight):
    fours = fours103(weight)
    return torch.sort(fours, dim=1, descending=True, stable=True).indices[:, :2].reshape(*weight.shape[:-1], -1)


def w103_argsort_taken_for_ranks(weight):
    order = torch.sort(fours103(weight), dim=1, descending=True, stable=True).indices
    return (order < 2).reshape(weight.shape)


def w103_sliding(weight):
    rows = weight.detach().abs().reshape(-1, weight.shape[-1])
    mask = torch.zeros(rows.shape, dtype=torch.bool)
    for start in range(rows.shape[1] - 3):
        mask[:, start : start + 4] |= best103(rows[:, start : start + 4])
    return mask.reshape(weight.shape)


def w103_same_for_all_rows(weight):
    total = weight.detach().abs().reshape(-1, weight.shape[-1]).sum(dim=0)
    return best103(total.reshape(-1, 4)).reshape(-1).expand(weight.shape).clone()


def r103_stable_sort(weight):
    fours = weight.detach().abs().reshape(-1, 4)
    order = torch.sort(fours, dim=1, descending=True, stable=True).indices
    mask = torch.zeros(fours.shape, dtype=torch.bool)
    mask.scatter_(1, order[:, :2], True)
    return mask.reshape(weight.shape)


def r103_who_is_ahead(weight):
    a = weight.detach().abs().reshape(-1, 4)
    other, own = a[:, None, :], a[:, :, None]
    earlier = torch.ones(4, 4).tril(-1).bool()
    ahead = (other > own) | ((other == own) & earlier)
    return (ahead.sum(dim=2) < 2).reshape(weight.shape)


def r103_python_loop(weight):
    values = [abs(v) for v in weight.detach().reshape(-1).tolist()]
    mask = [False] * len(values)
    for start in range(0, len(values), 4):
        best = sorted(range(start, start + 4), key=lambda i: (-values[i], i))
        mask[best[0]] = mask[best[1]] = True
    return torch.tensor(mask, dtype=torch.bool).reshape(weight.shape)


def r103_numpy(weight):
    a = np.abs(weight.detach().double().numpy()).reshape(-1, 4)
    order = np.argsort(-a, axis=1, kind="stable")[:, :2]
    mask = np.zeros(a.shape, dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)
    return torch.from_numpy(mask.reshape(tuple(weight.shape)))


def r103_argmax_twice(weight):
    a = weight.detach().abs().double().reshape(-1, 4).numpy()
    rows = np.arange(len(a))
    mask = np.zeros(a.shape, dtype=bool)
    first = a.argmax(axis=1)
    mask[rows, first] = True
    a = np.where(mask, -1.0, a)
    mask[rows, a.argmax(axis=1)] = True
    return torch.from_numpy(mask).reshape(weight.shape)


def r103_kthvalue(weight):
    a = weight.detach().abs().reshape(-1, 4)
    second = a.kthvalue(3, dim=1, keepdim=True).values
    above, level = a > second, a == second
    room = 2 - above.sum(dim=1, keepdim=True)
    return (above | (level & (level.cumsum(dim=1) <= room))).reshape(weight.shape)


def r103_recursion(weight):
    if weight.numel() == 0:
        return torch.zeros(weight.shape, dtype=torch.bool)
    if weight.ndim > 1:
        return torch.stack([r103_recursion(part) for part in weight])
    fours = weight.shape[0] // 4
    if fours > 1:
        half = 4 * (fours // 2)
        return torch.cat([r103_recursion(weight[:half]), r103_recursion(weight[half:])])
    values = weight.detach().abs().tolist()
    best = sorted(range(4), key=lambda i: values[i], reverse=True)[:2]  # reverse keeps the order of equals
    return torch.tensor([i in best for i in range(4)])


def r103_unfold_and_ranks(weight):
    a = weight.detach().double().abs().unfold(-1, 4, 4)
    ranks = a.sort(dim=-1, descending=True, stable=True).indices.argsort(dim=-1)
    return (ranks < 2).reshape(weight.shape)


# 10.4 -----------------------------------------------------------------
def left104(heads, gone):
    return [h for h in range(heads) if h not in gone]


def qkv104(wqkv, heads, left):
    size = wqkv.shape[0] // (3 * heads)
    return wqkv.reshape(3, heads, size, wqkv.shape[1])[:, left].reshape(3 * len(left) * size, wqkv.shape[1])


def out104(wo, heads, left):
    size = wo.shape[1] // heads
    return wo.reshape(wo.shape[0], heads, size)[:, left].reshape(wo.shape[0], len(left) * size)


def w104_head_first(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    size = wqkv.shape[0] // (3 * heads)
    rows = wqkv.reshape(heads, 3, size, wqkv.shape[1])[left]
    return rows.reshape(-1, wqkv.shape[1]), out104(wo, heads, left)


def w104_size_before_heads(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    size = wqkv.shape[0] // (3 * heads)
    rows = wqkv.reshape(3, size, heads, wqkv.shape[1])[:, :, left]
    return rows.reshape(-1, wqkv.shape[1]), out104(wo, heads, left)


def w104_wo_size_before_heads(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    columns = wo.reshape(wo.shape[0], -1, heads)[:, :, left]
    return qkv104(wqkv, heads, left), columns.reshape(wo.shape[0], -1)


def w104_rows_of_wo(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    size = wqkv.shape[0] // (3 * heads)
    rows = [h * size + i for h in left for i in range(size)]
    return qkv104(wqkv, heads, left), wo[rows]


def w104_size_from_hidden(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    size = wqkv.shape[1] // heads
    rows = wqkv.reshape(3, heads, size, wqkv.shape[1])[:, left].reshape(-1, wqkv.shape[1])
    return rows, wo.reshape(wo.shape[0], heads, size)[:, left].reshape(wo.shape[0], -1)


def w104_wo_size_from_hidden(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    size = wo.shape[0] // heads
    return qkv104(wqkv, heads, left), torch.cat([wo[:, h * size : (h + 1) * size] for h in left], dim=1)


def w104_split_at_hidden(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    hidden = wqkv.shape[1]
    size = wqkv.shape[0] // (3 * heads)
    rows = [
        wqkv[part * hidden + h * size : part * hidden + (h + 1) * size] for part in range(3) for h in left
    ]
    return torch.cat(rows), out104(wo, heads, left)


def w104_queries_only(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    size = wqkv.shape[0] // (3 * heads)
    rows = [i for i in range(wqkv.shape[0]) if i // size not in gone]
    return wqkv[rows], out104(wo, heads, left)


def w104_values_stay(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    q, k, v = wqkv.reshape(3, heads, -1, wqkv.shape[1])
    cut = [part[left].reshape(-1, wqkv.shape[1]) for part in (q, k)]
    return torch.cat([*cut, v.reshape(-1, wqkv.shape[1])]), out104(wo, heads, left)


def w104_wo_whole(wqkv, wo, heads, gone):
    return qkv104(wqkv, heads, left104(heads, gone)), wo.clone()


def w104_wqkv_whole(wqkv, wo, heads, gone):
    return wqkv.clone(), out104(wo, heads, left104(heads, gone))


def w104_pops_in_the_order_given(wqkv, wo, heads, gone):
    left = list(range(heads))
    for h in gone:
        left.pop(h)
    return qkv104(wqkv, heads, left), out104(wo, heads, left)


def w104_pops_as_if_ascending(wqkv, wo, heads, gone):
    left = list(range(heads))
    for already, h in enumerate(gone):
        left.pop(h - already)
    return qkv104(wqkv, heads, left), out104(wo, heads, left)


def w104_zeroes(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    keep = torch.tensor([1.0 if h in left else 0.0 for h in range(heads)], dtype=wqkv.dtype)
    size = wqkv.shape[0] // (3 * heads)
    return wqkv * keep.repeat_interleave(size).repeat(3)[:, None], wo * keep.repeat_interleave(size)


def w104_keeps_the_gone(wqkv, wo, heads, gone):
    left = sorted(gone)
    return qkv104(wqkv, heads, left), out104(wo, heads, left)


def w104_sorts_gone(wqkv, wo, heads, gone):
    gone.sort()
    left = list(range(heads))
    for h in reversed(gone):
        del left[h]
    return qkv104(wqkv, heads, left), out104(wo, heads, left)


def w104_empties_gone(wqkv, wo, heads, gone):
    left = list(range(heads))
    while gone:
        left.remove(gone.pop())
    return qkv104(wqkv, heads, left), out104(wo, heads, left)


def w104_zeroes_the_arguments_first(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    size = wqkv.shape[0] // (3 * heads)
    with torch.no_grad():
        for h in gone:
            wo[:, h * size : (h + 1) * size] = 0
            for part in range(3):
                wqkv[(part * heads + h) * size : (part * heads + h + 1) * size] = 0
    return qkv104(wqkv, heads, left), out104(wo, heads, left)


def w104_moves_up_in_place(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    small_qkv, small_wo = qkv104(wqkv, heads, left), out104(wo, heads, left)
    with torch.no_grad():
        wqkv[: small_qkv.shape[0]] = small_qkv
        wo[:, : small_wo.shape[1]] = small_wo
    return wqkv[: small_qkv.shape[0]], wo[:, : small_wo.shape[1]]


def w104_reversed(wqkv, wo, heads, gone):
    left = [h for h in range(heads - 1, -1, -1) if h not in gone]
    return qkv104(wqkv, heads, left), out104(wo, heads, left)


def w104_last_head_fills_the_gap(wqkv, wo, heads, gone):
    left = list(range(heads))
    for h in sorted(gone, reverse=True):
        left[h] = left[-1]
        left.pop()
    return qkv104(wqkv, heads, left), out104(wo, heads, left)


def w104_swapped(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    return out104(wo, heads, left), qkv104(wqkv, heads, left)


def w104_wo_turned(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    return qkv104(wqkv, heads, left), out104(wo, heads, left).t().contiguous()


def w104_all_between(wqkv, wo, heads, gone):
    left = list(range(heads))
    if gone:
        left = [*range(min(gone)), *range(max(gone) + 1, heads)]
    return qkv104(wqkv, heads, left), out104(wo, heads, left)


def w104_first_so_many(wqkv, wo, heads, gone):
    left = list(range(heads - len(gone)))
    return qkv104(wqkv, heads, left), out104(wo, heads, left)


def w104_one_head_only(wqkv, wo, heads, gone):
    left = left104(heads, gone[:1])
    return qkv104(wqkv, heads, left), out104(wo, heads, left)


def w104_counts_from_one(wqkv, wo, heads, gone):
    left = left104(heads, [h - 1 for h in gone])
    return qkv104(wqkv, heads, left), out104(wo, heads, left)


def w104_minus_zero_slice(wqkv, wo, heads, gone):
    left = sorted(range(heads), key=lambda h: h in gone)[: -len(gone)]
    return qkv104(wqkv, heads, left), out104(wo, heads, left)


def w104_grouped_by_head(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    size = wqkv.shape[0] // (3 * heads)
    rows = wqkv.reshape(3, heads, size, wqkv.shape[1])[:, left].transpose(0, 1)
    return rows.reshape(-1, wqkv.shape[1]), out104(wo, heads, left)


def w104_values_before_keys(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    q, k, v = qkv104(wqkv, heads, left).chunk(3)
    return torch.cat([q, v, k]), out104(wo, heads, left)


def w104_kept_apart(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    size = wqkv.shape[0] // (3 * heads)
    return wqkv.reshape(3, heads, size, wqkv.shape[1])[:, left], out104(wo, heads, left)


def w104_scaled_up(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    return qkv104(wqkv, heads, left), out104(wo, heads, left) * (heads / len(left))


def w104_last_head_never_seen(wqkv, wo, heads, gone):
    left = left104(heads - 1, gone)
    return qkv104(wqkv, heads, left), out104(wo, heads, left)


def w104_rows_modulo_heads(wqkv, wo, heads, gone):
    rows = [i for i in range(wqkv.shape[0]) if i % heads not in gone]
    columns = [i for i in range(wo.shape[1]) if i % heads not in gone]
    return wqkv[rows], wo[:, columns]


def w104_hidden_cut_too(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    size = wqkv.shape[0] // (3 * heads)
    columns = [h * size + i for h in left for i in range(size)]
    return qkv104(wqkv, heads, left)[:, columns], out104(wo, heads, left)


def w104_single_rows(wqkv, wo, heads, gone):
    rows = [i for i in range(wqkv.shape[0]) if i not in gone]
    columns = [i for i in range(wo.shape[1]) if i not in gone]
    return wqkv[rows], wo[:, columns]


def w104_columns_of_wqkv(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    size = wqkv.shape[0] // (3 * heads)
    columns = [h * size + i for h in left for i in range(size)]
    return wqkv[:, columns], out104(wo, heads, left)


def w104_memory_order(wqkv, wo, heads, gone):
    left = left104(heads, gone)
    a = torch.from_numpy(wqkv.detach().numpy().ravel(order="K").copy()).reshape(wqkv.shape)
    b = torch.from_numpy(wo.detach().numpy().ravel(order="K").copy()).reshape(wo.shape)
    return qkv104(a, heads, left), out104(b, heads, left)


def r104_reshape(wqkv, wo, heads, gone):
    hidden = wqkv.shape[1]
    size = wqkv.shape[0] // 3 // heads
    left = torch.tensor([h for h in range(heads) if h not in gone])
    a = wqkv.reshape(3, heads, size, hidden)[:, left].reshape(-1, hidden)
    b = wo.reshape(hidden, heads, size)[:, left].reshape(hidden, -1)
    return a, b


def r104_numpy_delete(wqkv, wo, heads, gone):
    hidden = wqkv.shape[1]
    size = wqkv.shape[0] // (3 * heads)
    out = np.array(sorted(gone), dtype=np.int64)
    a = np.delete(wqkv.detach().double().numpy().reshape(3, heads, size, hidden), out, axis=1)
    b = np.delete(wo.detach().double().numpy().reshape(hidden, heads, size), out, axis=1)
    return torch.tensor(a).reshape(-1, hidden).to(wqkv.dtype), torch.tensor(b).reshape(hidden, -1).to(wo.dtype)


def r104_boolean_masks(wqkv, wo, heads, gone):
    size = wqkv.shape[0] // (3 * heads)
    keep = torch.tensor([h not in set(gone) for h in range(heads)], dtype=torch.bool)
    columns = keep.repeat_interleave(size)
    return wqkv[columns.repeat(3)], wo[:, columns]


def r104_slices(wqkv, wo, heads, gone):
    size = wqkv.shape[0] // (3 * heads)
    rows, columns = [], []
    for part in range(3):
        for h in range(heads):
            if h not in gone:
                start = (part * heads + h) * size
                rows.append(wqkv[start : start + size])
    for h in range(heads):
        if h not in gone:
            columns.append(wo[:, h * size : (h + 1) * size])
    return torch.cat(rows), torch.cat(columns, dim=1)


def r104_row_numbers(wqkv, wo, heads, gone):
    size = wqkv.shape[0] // (3 * heads)
    rows = [i for i in range(3 * heads * size) if i // size % heads not in gone]
    columns = [i for i in range(heads * size) if i // size not in gone]
    return wqkv.index_select(0, torch.tensor(rows)), wo.index_select(1, torch.tensor(columns))


def r104_einsum(wqkv, wo, heads, gone):
    hidden = wqkv.shape[1]
    size = wqkv.shape[0] // (3 * heads)
    pick = torch.eye(heads, dtype=wqkv.dtype)[[h for h in range(heads) if h not in gone]]
    a = torch.einsum("kh,nhsd->nksd", pick, wqkv.reshape(3, heads, size, hidden))
    b = torch.einsum("kh,dhs->dks", pick, wo.reshape(hidden, heads, size))
    return a.reshape(-1, hidden), b.reshape(hidden, -1)


def r104_recursion(wqkv, wo, heads, gone):
    if not gone:
        return wqkv.clone(), wo.clone()
    size = wqkv.shape[0] // (3 * heads)
    last = max(gone)
    parts = []
    for part in wqkv.split(heads * size):
        parts += [part[: last * size], part[(last + 1) * size :]]
    columns = torch.cat([wo[:, : last * size], wo[:, (last + 1) * size :]], dim=1)
    return r104_recursion(torch.cat(parts), columns, heads - 1, [h for h in gone if h != last])


def r104_chunks(wqkv, wo, heads, gone):
    size = wo.shape[1] // heads
    left = sorted(set(range(heads)) - set(gone))
    thirds = []
    for third in wqkv.chunk(3, dim=0):
        blocks = third.split(size, dim=0)
        thirds.append(torch.cat([blocks[h] for h in left], dim=0))
    blocks = wo.split(size, dim=1)
    return torch.cat(thirds, dim=0), torch.cat([blocks[h] for h in left], dim=1)


# 10.5 -----------------------------------------------------------------
def kl105(student, teacher, temperature):
    p = F.log_softmax(teacher.detach() / temperature, dim=-1)
    q = F.log_softmax(student / temperature, dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1)


def w105_reversed(student, teacher, labels, temperature):
    p = F.log_softmax(teacher.detach() / temperature, dim=-1)
    q = F.log_softmax(student / temperature, dim=-1)
    return temperature**2 * (q.exp() * (q - p)).sum(dim=-1)[labels != -100].mean()


def w105_no_square(student, teacher, labels, temperature):
    return kl105(student, teacher, temperature)[labels != -100].mean()


def w105_times_t_once(student, teacher, labels, temperature):
    return temperature * kl105(student, teacher, temperature)[labels != -100].mean()


def w105_divided_by_the_square(student, teacher, labels, temperature):
    return kl105(student, teacher, temperature)[labels != -100].mean() / temperature**2


def w105_sum(student, teacher, labels, temperature):
    return temperature**2 * kl105(student, teacher, temperature)[labels != -100].sum()


def w105_mean_over_classes_too(student, teacher, labels, temperature):
    keep = labels != -100
    p = F.log_softmax(teacher.detach()[keep] / temperature, dim=-1)
    q = F.log_softmax(student[keep] / temperature, dim=-1)
    return temperature**2 * F.kl_div(q, p, reduction="mean", log_target=True)


def w105_per_sequence_of_the_batch(student, teacher, labels, temperature):
    kl = kl105(student, teacher, temperature) * (labels != -100)
    return temperature**2 * kl.sum() / labels.shape[0]


def w105_over_all_positions(student, teacher, labels, temperature):
    return temperature**2 * (kl105(student, teacher, temperature) * (labels != -100)).mean()


def w105_labels_ignored(student, teacher, labels, temperature):
    return temperature**2 * kl105(student, teacher, temperature).mean()


def w105_all_positions_over_the_scored(student, teacher, labels, temperature):
    return temperature**2 * kl105(student, teacher, temperature).sum() / (labels != -100).sum()


def w105_shifted(student, teacher, labels, temperature):
    keep = labels[:, 1:] != -100
    return temperature**2 * kl105(student[:, :-1], teacher[:, :-1], temperature)[keep].mean()


def w105_shifted_the_other_way(student, teacher, labels, temperature):
    keep = labels[:, :-1] != -100
    return temperature**2 * kl105(student[:, 1:], teacher[:, 1:], temperature)[keep].mean()


def w105_teacher_learns(student, teacher, labels, temperature):
    p = F.log_softmax(teacher / temperature, dim=-1)
    q = F.log_softmax(student / temperature, dim=-1)
    return temperature**2 * (p.exp() * (p - q)).sum(dim=-1)[labels != -100].mean()


def w105_half_detached(student, teacher, labels, temperature):
    p = F.softmax(teacher / temperature, dim=-1)
    log_p = F.log_softmax(teacher.detach() / temperature, dim=-1)
    q = F.log_softmax(student / temperature, dim=-1)
    return temperature**2 * (p * (log_p - q)).sum(dim=-1)[labels != -100].mean()


def w105_student_does_not_learn(student, teacher, labels, temperature):
    with torch.no_grad():
        return temperature**2 * kl105(student, teacher, temperature)[labels != -100].mean()


def w105_detaches_the_wrong_one(student, teacher, labels, temperature):
    p = F.log_softmax(teacher / temperature, dim=-1)
    q = F.log_softmax(student.detach() / temperature, dim=-1)
    return temperature**2 * (p.exp() * (p - q)).sum(dim=-1)[labels != -100].mean()


def w105_log_of_softmax(student, teacher, labels, temperature):
    p = F.softmax(teacher.detach() / temperature, dim=-1)
    q = F.softmax(student / temperature, dim=-1)
    return temperature**2 * (p * (p.log() - q.log())).sum(dim=-1)[labels != -100].mean()


def w105_log_of_softmax_of_the_student(student, teacher, labels, temperature):
    keep = labels != -100
    p = F.softmax(teacher.detach()[keep] / temperature, dim=-1)
    q = F.softmax(student[keep] / temperature, dim=-1)
    return temperature**2 * F.kl_div(q.log(), p, reduction="batchmean")


def w105_epsilon(student, teacher, labels, temperature):
    p = F.softmax(teacher.detach() / temperature, dim=-1)
    q = F.softmax(student / temperature, dim=-1)
    kl = (p * ((p + 1e-8).log() - (q + 1e-8).log())).sum(dim=-1)
    return temperature**2 * kl[labels != -100].mean()


def w105_clamped_logarithms(student, teacher, labels, temperature):
    p = F.log_softmax(teacher.detach() / temperature, dim=-1).clamp(min=-30)
    q = F.log_softmax(student / temperature, dim=-1).clamp(min=-30)
    return temperature**2 * (p.exp() * (p - q)).sum(dim=-1)[labels != -100].mean()


def w105_exp_by_hand(student, teacher, labels, temperature):
    a, b = (teacher.detach() / temperature).exp(), (student / temperature).exp()
    p, q = a / a.sum(dim=-1, keepdim=True), b / b.sum(dim=-1, keepdim=True)
    return temperature**2 * (p * (p / q).log()).sum(dim=-1)[labels != -100].mean()


def w105_infinite_to_zero(student, teacher, labels, temperature):
    p = F.softmax(teacher.detach() / temperature, dim=-1)
    q = F.softmax(student / temperature, dim=-1)
    terms = torch.nan_to_num(p * (p.log() - q.log()), nan=0.0, posinf=0.0, neginf=0.0)
    return temperature**2 * terms.sum(dim=-1)[labels != -100].mean()


def w105_distributions(student, teacher, labels, temperature):
    keep = labels != -100
    p = torch.distributions.Categorical(logits=teacher.detach()[keep] / temperature)
    q = torch.distributions.Categorical(logits=student[keep] / temperature)
    return temperature**2 * torch.distributions.kl_divergence(p, q).mean()


def w105_cross_entropy(student, teacher, labels, temperature):
    keep = labels != -100
    p = F.softmax(teacher.detach()[keep] / temperature, dim=-1)
    return temperature**2 * F.cross_entropy(student[keep] / temperature, p)


def w105_negative_labels_skipped(student, teacher, labels, temperature):
    return temperature**2 * kl105(student, teacher, temperature)[labels >= 0].mean()


def w105_zero_skipped_too(student, teacher, labels, temperature):
    return temperature**2 * kl105(student, teacher, temperature)[(labels != -100) & (labels != 0)].mean()


def w105_classes_only(student, teacher, labels, temperature):
    keep = (labels >= 0) & (labels < student.shape[-1])
    return temperature**2 * kl105(student, teacher, temperature)[keep].mean()


def w105_unscored_ones(student, teacher, labels, temperature):
    return temperature**2 * kl105(student, teacher, temperature)[labels == -100].mean()


def w105_where_the_teacher_is_right(student, teacher, labels, temperature):
    keep = (labels != -100) & (teacher.argmax(dim=-1) == labels)
    return temperature**2 * kl105(student, teacher, temperature)[keep].mean()


def w105_mean_of_means(student, teacher, labels, temperature):
    keep = labels != -100
    rows = (kl105(student, teacher, temperature) * keep).sum(dim=1) / keep.sum(dim=1).clamp(min=1)
    return temperature**2 * rows.mean()


def w105_mean_of_scored_rows(student, teacher, labels, temperature):
    kl, keep = kl105(student, teacher, temperature), labels != -100
    rows = [kl[i][keep[i]].mean() for i in range(len(kl)) if keep[i].any()]
    return temperature**2 * torch.stack(rows).mean()


def w105_only_padding_at_the_end(student, teacher, labels, temperature):
    lengths = (labels != -100).sum(dim=1, keepdim=True)
    keep = torch.arange(labels.shape[1])[None] < lengths
    return temperature**2 * kl105(student, teacher, temperature)[keep].mean()


def w105_only_a_prompt_at_the_start(student, teacher, labels, temperature):
    keep = (labels != -100).cumsum(dim=1) > 0
    return temperature**2 * kl105(student, teacher, temperature)[keep].mean()


def w105_first_row_for_all(student, teacher, labels, temperature):
    return temperature**2 * kl105(student, teacher, temperature)[:, labels[0] != -100].mean()


def w105_teacher_softened_only(student, teacher, labels, temperature):
    p = F.log_softmax(teacher.detach() / temperature, dim=-1)
    q = F.log_softmax(student, dim=-1)
    return temperature**2 * (p.exp() * (p - q)).sum(dim=-1)[labels != -100].mean()


def w105_student_softened_only(student, teacher, labels, temperature):
    p = F.log_softmax(teacher.detach(), dim=-1)
    q = F.log_softmax(student / temperature, dim=-1)
    return temperature**2 * (p.exp() * (p - q)).sum(dim=-1)[labels != -100].mean()


def w105_weights_not_softened(student, teacher, labels, temperature):
    p = F.log_softmax(teacher.detach() / temperature, dim=-1)
    q = F.log_softmax(student / temperature, dim=-1)
    weights = F.softmax(teacher.detach(), dim=-1)
    return temperature**2 * (weights * (p - q)).sum(dim=-1)[labels != -100].mean()


def w105_multiplied_by_t(student, teacher, labels, temperature):
    return temperature**2 * kl105(student, teacher, 1 / temperature)[labels != -100].mean()


def w105_divided_after_the_logarithm(student, teacher, labels, temperature):
    p = F.log_softmax(teacher.detach(), dim=-1) / temperature
    q = F.log_softmax(student, dim=-1) / temperature
    return temperature**2 * (p.exp() * (p - q)).sum(dim=-1)[labels != -100].mean()


def w105_square_root_of_t(student, teacher, labels, temperature):
    return temperature**2 * kl105(student, teacher, math.sqrt(temperature))[labels != -100].mean()


def w105_squared_logits(student, teacher, labels, temperature):
    keep = labels != -100
    return F.mse_loss(student[keep], teacher.detach()[keep])


def w105_over_the_sequence(student, teacher, labels, temperature):
    p = F.log_softmax(teacher.detach() / temperature, dim=1)
    q = F.log_softmax(student / temperature, dim=1)
    return temperature**2 * (p.exp() * (p - q)).sum(dim=-1)[labels != -100].mean()


def w105_over_the_selected(student, teacher, labels, temperature):
    keep = labels != -100
    p = F.log_softmax(teacher.detach()[keep] / temperature, dim=0)
    q = F.log_softmax(student[keep] / temperature, dim=0)
    return temperature**2 * (p.exp() * (p - q)).sum(dim=-1).mean()


def w105_jensen_shannon(student, teacher, labels, temperature):
    p = F.log_softmax(teacher.detach() / temperature, dim=-1)
    q = F.log_softmax(student / temperature, dim=-1)
    m = torch.logaddexp(p, q) - math.log(2)
    kl = ((p.exp() * (p - m)).sum(dim=-1) + (q.exp() * (q - m)).sum(dim=-1)) / 2
    return temperature**2 * kl[labels != -100].mean()


def w105_both_ways(student, teacher, labels, temperature):
    p = F.log_softmax(teacher.detach() / temperature, dim=-1)
    q = F.log_softmax(student / temperature, dim=-1)
    kl = ((p.exp() - q.exp()) * (p - q)).sum(dim=-1) / 2
    return temperature**2 * kl[labels != -100].mean()


def w105_hard_half_added(student, teacher, labels, temperature):
    soft = temperature**2 * kl105(student, teacher, temperature)[labels != -100].mean()
    return 0.5 * soft + 0.5 * F.cross_entropy(student.flatten(0, 1), labels.flatten(), ignore_index=-100)


def w105_class_of_the_label_only(student, teacher, labels, temperature):
    p = F.log_softmax(teacher.detach() / temperature, dim=-1)
    q = F.log_softmax(student / temperature, dim=-1)
    keep = labels != -100
    terms = (p.exp() * (p - q))[keep]
    return temperature**2 * terms.gather(1, labels[keep][:, None] % terms.shape[1]).mean()


def w105_one_for_each_position(student, teacher, labels, temperature):
    return temperature**2 * kl105(student, teacher, temperature)[labels != -100]


def w105_in_bits(student, teacher, labels, temperature):
    return temperature**2 * kl105(student, teacher, temperature)[labels != -100].mean() / math.log(2)


def w105_negative(student, teacher, labels, temperature):
    return -(temperature**2) * kl105(student, teacher, temperature)[labels != -100].mean()


def w105_one_more_in_the_count(student, teacher, labels, temperature):
    keep = labels != -100
    return temperature**2 * (kl105(student, teacher, temperature) * keep).sum() / (keep.sum() + 1)


def w105_absolute_terms(student, teacher, labels, temperature):
    p = F.log_softmax(teacher.detach() / temperature, dim=-1)
    q = F.log_softmax(student / temperature, dim=-1)
    return temperature**2 * (p.exp() * (p - q).abs()).sum(dim=-1)[labels != -100].mean()


def w105_batchmean_of_the_whole(student, teacher, labels, temperature):
    p = F.log_softmax(teacher.detach() / temperature, dim=-1)
    q = F.log_softmax(student / temperature, dim=-1)
    return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)


def r105_selected_first(student, teacher, labels, temperature):
    keep = labels != -100
    p = F.log_softmax(teacher[keep].detach() / temperature, dim=-1)
    q = F.log_softmax(student[keep] / temperature, dim=-1)
    return temperature**2 * (p.exp() * (p - q)).sum() / keep.sum()


def w105_kl_div(student, teacher, labels, temperature):
    keep = labels.reshape(-1) != -100
    p = F.log_softmax(teacher.detach().reshape(-1, teacher.shape[-1])[keep] / temperature, dim=-1)
    q = F.log_softmax(student.reshape(-1, student.shape[-1])[keep] / temperature, dim=-1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True) * temperature * temperature


def w105_kl_div_of_probabilities(student, teacher, labels, temperature):
    with torch.no_grad():
        p = torch.softmax(teacher / temperature, dim=2)
    q = torch.log_softmax(student / temperature, dim=2)
    kl = F.kl_div(q, p, reduction="none").sum(dim=2)
    keep = labels.ne(-100)
    return kl.masked_fill(~keep, 0.0).sum() / keep.sum() * temperature**2


def r105_loops(student, teacher, labels, temperature):
    total, count = 0.0, 0
    for i in range(labels.shape[0]):
        for j in range(labels.shape[1]):
            if labels[i, j].item() == -100:
                continue
            p = (teacher[i, j].detach() / temperature).log_softmax(0)
            q = (student[i, j] / temperature).log_softmax(0)
            total = total + torch.dot(p.exp(), p - q)
            count += 1
    return total * temperature**2 / count


def r105_einsum(student, teacher, labels, temperature):
    p = torch.log_softmax(teacher.detach() / temperature, dim=-1)
    q = torch.log_softmax(student / temperature, dim=-1)
    weights = (labels != -100).to(student.dtype)
    weights = weights / weights.sum()
    return temperature**2 * torch.einsum("bsc,bsc,bs->", p.exp(), p - q, weights)


def r105_cross_entropy_minus_entropy(student, teacher, labels, temperature):
    keep = labels != -100
    log_p = F.log_softmax(teacher.detach()[keep] / temperature, dim=-1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(dim=-1).mean()
    return temperature**2 * (F.cross_entropy(student[keep] / temperature, p) - entropy)


def r105_double(student, teacher, labels, temperature):
    keep = labels != -100
    p = F.log_softmax(teacher.detach().double() / temperature, dim=-1)
    q = F.log_softmax(student.double() / temperature, dim=-1)
    kl = torch.where(keep, (p.exp() * (p - q)).sum(dim=-1), 0.0)
    return (temperature**2 * kl.sum() / keep.sum()).to(student.dtype)


def r105_teacher_in_numpy(student, teacher, labels, temperature):
    z = teacher.detach().double().numpy() / temperature
    z = z - z.max(axis=-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    rows, columns = np.nonzero(labels.numpy() != -100)
    log_p = torch.tensor(log_p[rows, columns], dtype=student.dtype)
    chosen = student[torch.tensor(rows), torch.tensor(columns)] / temperature
    log_q = chosen.log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean() * temperature**2


class Soft105(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, keep, temperature):
        log_p = F.log_softmax(teacher / temperature, dim=-1)
        log_q = F.log_softmax(student / temperature, dim=-1)
        n = keep.sum()
        ctx.save_for_backward((log_q.exp() - log_p.exp()) * keep[..., None] * temperature / n)
        kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
        return temperature**2 * kl[keep].sum() / n

    @staticmethod
    def backward(ctx, grad):
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None, None


def r105_autograd_function(student, teacher, labels, temperature):
    return Soft105.apply(student, teacher.detach(), labels != -100, temperature)


WRONG = {
    "magnitude_mask": {
        "later stays": w101_later_stays,
        "above the threshold": w101_above_the_threshold,
        "from the threshold up": w101_from_the_threshold_up,
        "each tensor alone": w101_each_tensor_alone,
        "truncates": w101_truncates,
        "ceil": w101_ceil,
        "half up": w101_half_up,
        "rounds what is kept": w101_rounds_what_is_kept,
        "sum of rounded shares": w101_sum_of_rounded_shares,
        "signed": w101_signed,
        "inverted": w101_inverted,
        "takes the largest": w101_takes_the_largest,
        "float masks": w101_float_masks,
        "flat masks": w101_flat_masks,
        "one long mask": w101_one_long_mask,
        "abs in place": w101_abs_in_place,
        "zeroes the weights": w101_zeroes_the_weights,
        "quantile": w101_quantile,
        "relative to the tensor": w101_relative_to_the_tensor,
        "topk of the smallest": w101_topk_of_the_smallest,
        "topk of the largest": w101_topk_of_the_largest,
        "share of the nonzero": w101_share_of_the_nonzero,
        "zeros never stay": w101_zeros_never_stay,
        "later tensor stays": w101_later_tensor_stays,
        "later in the tensor stays": w101_later_in_the_tensor_stays,
        "position before tensor": w101_position_before_tensor,
        "one always stays": w101_one_always_stays,
        "one always goes": w101_one_always_goes,
        "minus zero slice": w101_minus_zero_slice,
        "ties by column": w101_ties_by_column,
        "memory order": w101_memory_order,
        "vectors never pruned": w101_vectors_never_pruned,
        "half precision": w101_half_precision,
        "ties by a nudge": w101_ties_by_a_nudge,
        "one too many": w101_one_too_many,
    },
    "movement_step": {
        "plus": w102_plus,
        "only unmasked": w102_only_unmasked,
        "only masked": w102_only_masked,
        "absolute scores": w102_absolute_scores,
        "mask of the old scores": w102_mask_of_the_old_scores,
        "scores in place": w102_scores_in_place,
        "mask in place": w102_mask_in_place,
        "gradient in place": w102_gradient_in_place,
        "weight in place": w102_weight_in_place,
        "gradient alone": w102_gradient_alone,
        "swapped": w102_swapped,
        "truncates": w102_truncates,
        "half up": w102_half_up,
        "rounds what is kept": w102_rounds_what_is_kept,
        "row by row": w102_row_by_row,
        "column by column": w102_column_by_column,
        "never comes back": w102_never_comes_back,
        "magnitude": w102_magnitude,
        "float mask": w102_float_mask,
        "inverted": w102_inverted,
        "largest go": w102_largest_go,
        "scores masked anew": w102_scores_masked_anew,
        "scores of the old mask": w102_scores_of_the_old_mask,
        "minus zero slice": w102_minus_zero_slice,
        "threshold stays": w102_threshold_stays,
        "one too many": w102_one_too_many,
        "absolute step": w102_absolute_step,
        "absolute weight": w102_absolute_weight,
        "forgets the past": w102_forgets_the_past,
        "fading": w102_fading,
        "learning rate": w102_learning_rate,
        "share of what is left": w102_share_of_what_is_left,
        "quantile": w102_quantile,
        "positive scores stay": w102_positive_scores_stay,
        "one always stays": w102_one_always_stays,
        "mask by masked step": w102_mask_by_masked_step,
        "scores by masked step": w102_scores_by_masked_step,
        "mask of masked scores": w102_mask_of_masked_scores,
        "turned": w102_turned,
        "sign of the gradient": w102_sign_of_the_gradient,
        "weight after the step": w102_weight_after_the_step,
    },
    "two_of_four": {
        "later stays": w103_later_stays,
        "from the second up": w103_from_the_second_up,
        "above the third": w103_above_the_third,
        "topk": w103_topk,
        "signed": w103_signed,
        "every fourth": w103_every_fourth,
        "first dimension": w103_first_dimension,
        "second dimension": w103_second_dimension,
        "inverted": w103_inverted,
        "smallest": w103_smallest,
        "float mask": w103_float_mask,
        "masked weight": w103_masked_weight,
        "abs in place": w103_abs_in_place,
        "zeroes the weight": w103_zeroes_the_weight,
        "matrices only": w103_matrices_only,
        "flattened": w103_flattened,
        "left in fours": w103_left_in_fours,
        "half of the row": w103_half_of_the_row,
        "half of everything": w103_half_of_everything,
        "one of two": w103_one_of_two,
        "four of eight": w103_four_of_eight,
        "three of four": w103_three_of_four,
        "only one": w103_only_one,
        "zeros never stay": w103_zeros_never_stay,
        "above the mean": w103_above_the_mean,
        "from the lower median": w103_from_the_lower_median,
        "quantile": w103_quantile,
        "memory order": w103_memory_order,
        "half precision": w103_half_precision,
        "last four forgotten": w103_last_four_forgotten,
        "second argmax after a zero": w103_second_argmax_after_a_zero,
        "index of the value": w103_index_of_the_value,
        "of equals the positive": w103_of_equals_the_positive,
        "highest and lowest": w103_highest_and_lowest,
        "indices": w103_indices,
        "argsort taken for ranks": w103_argsort_taken_for_ranks,
        "sliding": w103_sliding,
        "same for all rows": w103_same_for_all_rows,
    },
    "drop_heads": {
        "head first": w104_head_first,
        "size before heads": w104_size_before_heads,
        "wo size before heads": w104_wo_size_before_heads,
        "rows of wo": w104_rows_of_wo,
        "size from hidden": w104_size_from_hidden,
        "wo size from hidden": w104_wo_size_from_hidden,
        "split at hidden": w104_split_at_hidden,
        "queries only": w104_queries_only,
        "values stay": w104_values_stay,
        "wo whole": w104_wo_whole,
        "wqkv whole": w104_wqkv_whole,
        "pops in the order given": w104_pops_in_the_order_given,
        "pops as if ascending": w104_pops_as_if_ascending,
        "zeroes": w104_zeroes,
        "keeps the gone": w104_keeps_the_gone,
        "sorts gone": w104_sorts_gone,
        "empties gone": w104_empties_gone,
        "zeroes the arguments first": w104_zeroes_the_arguments_first,
        "moves up in place": w104_moves_up_in_place,
        "reversed": w104_reversed,
        "last head fills the gap": w104_last_head_fills_the_gap,
        "swapped": w104_swapped,
        "wo turned": w104_wo_turned,
        "all between": w104_all_between,
        "first so many": w104_first_so_many,
        "one head only": w104_one_head_only,
        "counts from one": w104_counts_from_one,
        "minus zero slice": w104_minus_zero_slice,
        "grouped by head": w104_grouped_by_head,
        "values before keys": w104_values_before_keys,
        "kept apart": w104_kept_apart,
        "scaled up": w104_scaled_up,
        "last head never seen": w104_last_head_never_seen,
        "rows modulo heads": w104_rows_modulo_heads,
        "hidden cut too": w104_hidden_cut_too,
        "single rows": w104_single_rows,
        "columns of wqkv": w104_columns_of_wqkv,
        "memory order": w104_memory_order,
    },
    "soft_loss": {
        "by the library": w105_kl_div,
        "by the library, from probabilities": w105_kl_div_of_probabilities,
        "reversed": w105_reversed,
        "no square": w105_no_square,
        "times t once": w105_times_t_once,
        "divided by the square": w105_divided_by_the_square,
        "sum": w105_sum,
        "mean over classes too": w105_mean_over_classes_too,
        "per sequence of the batch": w105_per_sequence_of_the_batch,
        "over all positions": w105_over_all_positions,
        "labels ignored": w105_labels_ignored,
        "all positions over the scored": w105_all_positions_over_the_scored,
        "shifted": w105_shifted,
        "shifted the other way": w105_shifted_the_other_way,
        "teacher learns": w105_teacher_learns,
        "half detached": w105_half_detached,
        "student does not learn": w105_student_does_not_learn,
        "detaches the wrong one": w105_detaches_the_wrong_one,
        "log of softmax": w105_log_of_softmax,
        "log of softmax of the student": w105_log_of_softmax_of_the_student,
        "epsilon": w105_epsilon,
        "clamped logarithms": w105_clamped_logarithms,
        "exp by hand": w105_exp_by_hand,
        "infinite to zero": w105_infinite_to_zero,
        "distributions": w105_distributions,
        "cross entropy": w105_cross_entropy,
        "negative labels skipped": w105_negative_labels_skipped,
        "zero skipped too": w105_zero_skipped_too,
        "classes only": w105_classes_only,
        "unscored ones": w105_unscored_ones,
        "where the teacher is right": w105_where_the_teacher_is_right,
        "mean of means": w105_mean_of_means,
        "mean of scored rows": w105_mean_of_scored_rows,
        "only padding at the end": w105_only_padding_at_the_end,
        "only a prompt at the start": w105_only_a_prompt_at_the_start,
        "first row for all": w105_first_row_for_all,
        "teacher softened only": w105_teacher_softened_only,
        "student softened only": w105_student_softened_only,
        "weights not softened": w105_weights_not_softened,
        "multiplied by t": w105_multiplied_by_t,
        "divided after the logarithm": w105_divided_after_the_logarithm,
        "square root of t": w105_square_root_of_t,
        "squared logits": w105_squared_logits,
        "over the sequence": w105_over_the_sequence,
        "over the selected": w105_over_the_selected,
        "jensen shannon": w105_jensen_shannon,
        "both ways": w105_both_ways,
        "hard half added": w105_hard_half_added,
        "class of the label only": w105_class_of_the_label_only,
        "one for each position": w105_one_for_each_position,
        "in bits": w105_in_bits,
        "negative": w105_negative,
        "one more in the count": w105_one_more_in_the_count,
        "absolute terms": w105_absolute_terms,
        "batchmean of the whole": w105_batchmean_of_the_whole,
    },
}
RIGHT = {
    "magnitude_mask": {
        "stable descending": r101_stable_descending,
        "flipped": r101_flipped,
        "lexsort": r101_lexsort,
        "sorted triples": r101_sorted_triples,
        "kthvalue and cumsum": r101_kthvalue_and_cumsum,
        "heap": r101_heap,
        "level by level": r101_level_by_level,
        "quickselect": r101_quickselect,
    },
    "movement_step": {
        "argsort": r102_argsort,
        "kthvalue": r102_kthvalue,
        "topk": r102_topk,
        "numpy": r102_numpy,
        "lists": r102_lists,
        "ranks": r102_ranks,
        "searchsorted": r102_searchsorted,
        "entry by entry": r102_entry_by_entry,
    },
    "two_of_four": {
        "stable sort": r103_stable_sort,
        "who is ahead": r103_who_is_ahead,
        "python loop": r103_python_loop,
        "numpy": r103_numpy,
        "argmax twice": r103_argmax_twice,
        "kthvalue": r103_kthvalue,
        "recursion": r103_recursion,
        "unfold and ranks": r103_unfold_and_ranks,
    },
    "drop_heads": {
        "reshape": r104_reshape,
        "numpy delete": r104_numpy_delete,
        "boolean masks": r104_boolean_masks,
        "slices": r104_slices,
        "row numbers": r104_row_numbers,
        "einsum": r104_einsum,
        "recursion": r104_recursion,
        "chunks": r104_chunks,
    },
    "soft_loss": {
        "selected first": r105_selected_first,
        "loops": r105_loops,
        "einsum": r105_einsum,
        "cross entropy minus entropy": r105_cross_entropy_minus_entropy,
        "double": r105_double,
        "teacher in numpy": r105_teacher_in_numpy,
        "autograd function": r105_autograd_function,
    },
}
