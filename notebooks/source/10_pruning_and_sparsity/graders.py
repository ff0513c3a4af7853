"""Graders: magnitude masks, movement scores, 2 of 4, heads taken out, the soft half of distillation."""

from __future__ import annotations

from typing import Any

import torch

from coursekit.checks import Answer, Rng, Wrong, close, grader, true


@grader("magnitude_mask", forbidden=("global_unstructured", "l1_unstructured"))
def magnitude_mask(answer: Answer, rng: Rng) -> None:
    """(tensors, sparsity) -> masks."""
    # Shares that round up, down and to the even number; 0 and 1; ties; one tensor much larger than the others.
    for round_, sparsity in enumerate((0.3, 0.0, 1.0, 0.5, 0.5, 0.4, 0.35, 0.7, 0.2, 0.45, 0.6)):
        shapes = [(rng.integer(3, 5), rng.integer(4, 6)), (rng.integer(5, 9),), (2, rng.integer(2, 3), 3)]
        tensors = [rng.normal(*shape) for shape in shapes]
        total = sum(tensor.numel() for tensor in tensors)
        if round_ == 0:
            tensors[0] = 10 * tensors[0]
            sparsity = (rng.integer(4, total // 3) + rng.python.choice([0.3, 0.7])) / total
        elif round_ == 3:  # half of an odd number: round(4.5) is 4, round(6.5) is 6
            tensors = [rng.normal(2, 3), rng.normal(rng.python.choice([3, 7]))]
        elif round_ == 4:  # ... and round(3.5) is 4, round(5.5) is 6
            tensors = [100 * rng.normal(2, 3), rng.normal(rng.python.choice([1, 5]))]
        elif round_ in (5, 6):  # as after an earlier cut; what is 1 in size goes in part
            tensors = [(2 * tensor).round() for tensor in tensors]
            tensors[1][:2], tensors[2][0, 0, :2] = torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0])
            sizes = torch.cat([tensor.abs().flatten() for tensor in tensors])
            sparsity = (int((sizes < 1).sum()) + rng.integer(1, int((sizes == 1).sum()) - 1)) / len(sizes)
        elif round_ == 7:
            tensors = [torch.full((3, 4), -1.0), torch.ones(6)]  # all equal
        elif round_ == 8:  # more zeros than may go
            tensors = [tensor * (rng.uniform(*tensor.shape) > 0.7) for tensor in tensors]
        elif round_ == 9:  # a view, whose memory runs the other way
            tensors[0] = rng.normal(*tensors[0].shape[::-1]).T
        elif round_ == 10:
            tensors = [nearly_equal(rng, *tensor.shape) for tensor in tensors]
        _compare_masks(answer(tensors, sparsity), tensors, sparsity)


def nearly_equal(rng: Rng, *shape: int) -> torch.Tensor:
    """Numbers about 1 that differ, and not by much: their order is lost in 16 bits, or by a nudge against ties."""
    steps = torch.tensor(rng.python.sample(range(-500, 500), torch.Size(shape).numel()))
    return (1 + steps * 2.0**-22).view(shape)


def _ranked(tensors: list[torch.Tensor], keys: list[torch.Tensor], zeros: int) -> list[torch.Tensor]:
    flat = torch.cat([key.flatten().double() for key in keys])
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[flat.argsort(descending=True, stable=True)[: max(len(flat) - zeros, 0)]] = True
    parts = mask.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _compare_masks(got: Any, tensors: list[torch.Tensor], sparsity: float) -> None:
    true(isinstance(got, (list, tuple)), f"return a list of masks, one a tensor, got {type(got).__name__}")
    true(len(got) == len(tensors), f"there are {len(tensors)} tensors, and you returned {len(got)} masks")
    for number, (mask, tensor) in enumerate(zip(got, tensors, strict=True)):
        true(isinstance(mask, torch.Tensor), f"mask {number} is a {type(mask).__name__}, not a tensor")
        shapes = tuple(mask.shape), tuple(tensor.shape)
        true(mask.shape == tensor.shape, f"mask {number} has shape {shapes[0]}, its tensor {shapes[1]}")
        true(mask.dtype == torch.bool, f"mask {number} has dtype {mask.dtype}; it should be boolean")
    n = sum(tensor.numel() for tensor in tensors)
    zeros = round(sparsity * n)
    sizes = [tensor.abs() for tensor in tensors]
    want = _ranked(tensors, sizes, zeros)
    given = torch.cat([mask.flatten() for mask in got])

    def is_(masks: list[torch.Tensor]) -> bool:
        wrong = torch.cat([mask.flatten() for mask in masks])
        return not torch.equal(wrong, right) and torch.equal(given, wrong)

    right = torch.cat([mask.flatten() for mask in want])
    alone = [_ranked([t], [t.abs()], round(sparsity * t.numel()))[0] for t in tensors]
    mistakes = {
        "the mask is upside down: True is for what stays": [~mask for mask in want],
        "the largest weights went: keep those, and cut the smallest": _ranked(tensors, [-one for one in sizes], zeros),
        "rank by absolute value: a large negative weight is large": _ranked(tensors, list(tensors), zeros),
    }
    if len(torch.cat([one.flatten() for one in sizes]).unique()) == n and sparsity != 0.5:  # else chance may hit these
        mistakes["each tensor was cut by itself; rank all weights together"] = alone
        share = f"sparsity is the share that goes; you kept that share ({sparsity:.3g})"
        mistakes[share] = _ranked(tensors, sizes, n - zeros)
    for hint, masks in mistakes.items():
        if is_(masks):
            raise Wrong(hint)
    found = int((~given).sum())
    if found != zeros:
        ties = len(torch.cat([size.flatten() for size in sizes]).unique()) < n
        why = ""
        if abs(found - zeros) == 1:
            why = " (round as Python's round does: neither down nor up, and halves to the even number)"
        if ties and abs(found - zeros) > 1:
            why = " (several weights are equally large here: a threshold takes all of them or none; use ranks)"
        raise Wrong(f"{found} of {n} weights go at {sparsity=:.4g}, expected round(sparsity · n) = {zeros}{why}")
    flat = torch.cat([size.flatten() for size in sizes])
    if not torch.equal(given, right) and torch.equal(flat[given].sort().values, flat[right].sort().values):
        raise Wrong("the right sizes stay, but of equals the earlier should: sort stably, downwards")
    for number, (mask, other) in enumerate(zip(got, want, strict=True)):
        if not torch.equal(mask, other):
            place = (mask != other).nonzero()[0].tolist()
            should = "stay" if bool(other[tuple(place)]) else "go"
            raise Wrong(f"as many go as asked for, but others: tensor {number} at {place} should {should}")


@grader("movement_step")
def movement_step(answer: Answer, rng: Rng) -> None:
    """(weight, mask, gradient, scores, sparsity) -> (scores, mask)."""
    for round_ in range(7):
        shape = [(rng.integer(4, 6), rng.integer(6, 8)), (5, 7), (5, 5)][max(0, round_ - 3) if round_ < 6 else 0]
        weight, gradient, scores = rng.normal(*shape), rng.normal(*shape), 0.5 * rng.normal(*shape)
        mask = rng.uniform(*shape) > 0.5
        mask[0, 0], mask[0, 1] = True, False
        if round_ == 0:
            scores = torch.zeros(shape)
        sparsity = (0.6, 0.0, 1.0, 0.25, 0.5, 0.5, 0.8)[round_]  # 17.5 of 35 is 18, 12.5 of 25 is 12
        got = answer(weight, mask, gradient, scores, sparsity)
        _compare_movement(got, weight, mask, gradient, scores, sparsity)


def _compare_movement(got: Any, weight: torch.Tensor, mask: torch.Tensor, gradient: torch.Tensor,
                      scores: torch.Tensor, sparsity: float) -> None:  # fmt: skip
    true(isinstance(got, (tuple, list)) and len(got) == 2, "return a pair: (new scores, new mask)")
    new, kept = got
    move = gradient * weight
    want = scores - move
    close(new, want, "the new scores", rtol=1e-4, atol=1e-6, mistakes={
        "the sign is wrong: a score falls where gradient and weight have the same sign": scores + move,
        "masked weights are scored, too, or they could never come back: multiply by the whole weight":
            scores - gradient * weight * mask,
        "the score is the size of the movement; its sign must stay, for a weight that shrinks should go":
            scores - move.abs(),
        "that is the size of the movement with the other sign; keep its sign": scores + move.abs(),
        "the old scores are lost: they add up over the steps": -move,
        "the weight is missing: the score moves by gradient · weight": scores - gradient,
        "the gradient is missing": scores - weight,
        "only what is masked was scored; every weight is": scores - move * ~mask,
        "that is the size of the weight: magnitude pruning, not movement": weight.abs(),
    })  # fmt: skip
    true(isinstance(kept, torch.Tensor), f"the new mask is a {type(kept).__name__}, not a tensor")
    true(kept.shape == mask.shape, f"the new mask has shape {tuple(kept.shape)}, expected {tuple(mask.shape)}")
    true(kept.dtype == torch.bool, f"the new mask has dtype {kept.dtype}; it should be boolean")
    true(new is not scores and new.data_ptr() != scores.data_ptr(), "return new scores, not the old tensor")
    zeros = round(sparsity * want.numel())

    def largest(keys: torch.Tensor, gone: int = zeros) -> torch.Tensor:
        flat = torch.ones(keys.numel(), dtype=torch.bool)
        flat[keys.flatten().argsort()[:gone]] = False
        return flat.view(keys.shape)

    right = largest(want)
    for hint, wrong in {
        "the mask is upside down: True is for what stays": ~right,
        "the largest scores went; those stay": largest(-want),
        "the mask ranks by the size of the scores; rank with their signs": largest(want.abs()),
        "the mask comes from the old scores; draw it after the update": largest(scores),
        "the mask ranks by the size of the weights; rank by the scores": largest(weight.abs()),
        "the mask is the old one; draw a new one": mask,
        "sparsity is the share that goes, and you kept that share": largest(want, want.numel() - zeros),
        "each row was ranked by itself; rank all entries of the matrix together":
            torch.stack([largest(row, round(sparsity * len(row))) for row in want]),
        "a weight that is masked once stays masked in your answer; it may come back": right & mask,
    }.items():  # fmt: skip
        if not torch.equal(wrong, right) and torch.equal(kept, wrong):
            raise Wrong(hint)
    found = int((~kept).sum())
    true(found == zeros, f"{found} of {want.numel()} weights are masked, expected round({sparsity} · n) = {zeros}")
    true(torch.equal(kept, right), "as many weights are masked as should be, but others: those of smallest score go")


@grader("two_of_four", forbidden=("to_sparse_semi_structured",))
def two_of_four(answer: Answer, rng: Rng) -> None:
    """[..., 4k] -> mask."""
    for round_, shape in enumerate([(4, 16), (3, 8), (2, 3, 12), (5, 4), (6, 8), (8, 4), (4,), (1, 4), (5, 8), (4, 8)]):
        weight = rng.normal(*shape)
        if round_ == 1:
            weight = weight.abs() * torch.where(rng.uniform(*shape) > 0.3, -1.0, 1.0)  # many negative ones
        if round_ == 4:
            weight = rng.integers(-1, 2, *shape).float()  # many ties, and zeros
            weight[0, :4] = torch.tensor([-1.0, 1.0, 1.0, 0.0])
        if round_ == 7:
            weight = torch.zeros(shape)
        if round_ == 8:
            weight = rng.normal(8, 5).T  # a view, whose memory runs the other way
        if round_ == 9:
            weight = nearly_equal(rng, *shape)
        _compare_pattern(answer(weight), weight)


def _pattern(weight: torch.Tensor, keys: torch.Tensor, count: int = 2) -> torch.Tensor:
    groups = keys.reshape(-1, 4)
    places = groups.argsort(dim=-1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(groups, dtype=torch.bool).scatter(-1, places, True).reshape(weight.shape)


def _compare_pattern(got: Any, weight: torch.Tensor) -> None:
    true(isinstance(got, torch.Tensor), f"return a tensor, got {type(got).__name__}")
    true(got.shape == weight.shape, f"the mask has shape {tuple(got.shape)}, the weight {tuple(weight.shape)}")
    true(got.dtype == torch.bool, f"the mask has dtype {got.dtype}; it should be boolean")
    want = _pattern(weight, weight.abs())
    flat = weight.flatten().abs()
    anywhere = torch.zeros(len(flat), dtype=torch.bool)
    anywhere[flat.argsort(descending=True, stable=True)[: len(flat) // 2]] = True
    mistakes = {
        "the mask is upside down: True is for what stays": ~want,
        "rank by absolute value: a large negative weight is large": _pattern(weight, weight),
        "half of all weights stay, but not two of every four: rank within each group": anywhere.view(weight.shape),
        "each group keeps one; keep two": _pattern(weight, weight.abs(), 1),
        "each group keeps three; keep two": _pattern(weight, weight.abs(), 3),
    }
    if weight.ndim >= 2 and weight.shape[-2] % 4 == 0:
        down = _pattern(weight.mT.contiguous(), weight.mT.abs().contiguous()).mT
        mistakes["the groups run down the columns; they lie along the last dimension"] = down
    quarter = weight.shape[-1] // 4
    if quarter > 1:  # positions 0, k, 2k, 3k in one group
        keys = weight.abs().reshape(*weight.shape[:-1], 4, quarter).mT
        mixed = _pattern(keys, keys).mT.reshape(weight.shape)
        mistakes["a group is four neighbours (0-3, 4-7, ...), not every k-th entry"] = mixed
    for hint, wrong in mistakes.items():
        if not torch.equal(wrong, want) and torch.equal(got, wrong):
            raise Wrong(hint)
    kept = got.reshape(-1, 4).sum(1)
    odd = (kept != 2).nonzero()
    if len(odd):
        number = int(odd[0])
        values = [round(value, 2) for value in weight.reshape(-1, 4)[number].tolist()]
        equal = " Equally large weights: ranks keep exactly two, a threshold does not." \
            if len(set(map(abs, values))) < 4 else ""  # fmt: skip
        raise Wrong(f"the group {values} keeps {int(kept[number])} weights, expected 2.{equal}")
    if torch.equal((weight.abs() * got).reshape(-1, 4).sum(1), (weight.abs() * want).reshape(-1, 4).sum(1)):
        true(torch.equal(got, want), "the right sizes stay, but of equals the earlier should: sort stably")
    true(torch.equal(got, want), "two of every four stay, but not the two of largest absolute value")


@grader("drop_heads")
def drop_heads(answer: Answer, rng: Rng) -> None:
    """(wqkv, wo, heads, gone) -> (wqkv, wo), smaller."""
    for round_ in range(7):
        heads = rng.integer(3, 5)
        size = rng.python.choice([2, 3, 4])
        hidden = heads * size + (heads + 1 if round_ == 2 else rng.integer(0, 3))
        wqkv, wo = rng.normal(3 * heads * size, hidden), rng.normal(hidden, heads * size)
        if round_ == 5:  # views, whose memory runs the other way
            wqkv, wo = rng.normal(hidden, 3 * heads * size).T, rng.normal(heads * size, hidden).T
        count = (1, heads - 1, 1, 1, 2, 1, 0)[round_]
        gone = rng.python.sample(range(heads), count)
        if round_ == 1:
            gone = list(range(heads - 1))
        elif round_ == 3:
            gone = [0]
        elif round_ == 4:
            gone = [heads - 1, 0]  # in no order
        elif round_ == 5:
            gone = [1]
        _compare_heads(answer(wqkv, wo, heads, gone), wqkv, wo, heads, gone)


def _compare_heads(got: Any, wqkv: torch.Tensor, wo: torch.Tensor, heads: int, gone: list[int]) -> None:
    true(isinstance(got, (tuple, list)) and len(got) == 2, "return a pair: (wqkv, wo)")
    hidden, size = wqkv.shape[1], wo.shape[1] // heads
    keep = [head for head in range(heads) if head not in gone]

    def rows(chosen: list[int]) -> torch.Tensor:
        return wqkv.view(3, heads, size, hidden)[:, chosen].reshape(-1, hidden)

    def columns(chosen: list[int]) -> torch.Tensor:
        return wo.view(hidden, heads, size)[:, :, :][:, chosen].reshape(hidden, -1)

    wqkv, wo = wqkv.contiguous(), wo.contiguous()
    where = f"heads={heads}, gone={gone}: "
    by_head = wqkv.view(heads, 3, size, hidden)[keep].reshape(-1, hidden)
    inner = wqkv.view(3, size, heads, hidden)[:, :, keep].reshape(-1, hidden)
    queries = torch.cat([rows(keep)[: len(keep) * size], wqkv[heads * size :]])
    first = wqkv[[row for row in range(len(wqkv)) if row // size not in gone]]
    silent = wqkv.view(3, heads, size, hidden).clone()
    silent[:, gone] = 0
    close(got[0], rows(keep), f"{where}wqkv", rtol=0.0, atol=0.0, mistakes={
        where + "wqkv holds the heads that should go; keep the others": rows(gone),
        where + "wqkv was read as [heads, 3, size]; it stacks q of all heads, then k, then v": by_head,
        where + "wqkv was read as [3, size, heads]; a head's rows stand together": inner,
        where + "only the queries were cut; keys and values have the same heads": queries,
        where + "only the first heads · size rows of wqkv were cut: keys and values have the same heads": first,
        where + "the rows are zero but still there; take them out": silent.view(wqkv.shape),
        where + "wqkv is as it was": wqkv if gone else wqkv + 1,
        where + "the heads that stay should keep their order": rows(keep[::-1]) if len(keep) > 1 else wqkv + 1,
    })  # fmt: skip
    strided = wo.view(hidden, size, heads)[:, :, keep].reshape(hidden, -1)
    zero = wo.view(hidden, heads, size).clone()
    zero[:, gone] = 0
    mistakes = {
        where + "wo holds the heads that should go; keep the others": columns(gone),
        where + "wo's columns were read as [size, heads]; a head's columns stand together": strided,
        where + "the columns of wo are zero but still there; take them out": zero.view(wo.shape),
        where + "wo is as it was; it reads the heads, so their columns go, too": wo if gone else wo + 1,
        where + "the heads that stay should keep their order in wo": columns(keep[::-1]) if len(keep) > 1 else wo + 1,
        where + "wo came back transposed": columns(keep).T,
    }
    shape = tuple(got[1].shape) if isinstance(got[1], torch.Tensor) else ()
    turned = len(shape) == 2 and torch.equal(got[1], columns(keep).T)  # which has a hint of its own
    if len(shape) == 2 and shape[0] < hidden and not turned:
        raise Wrong(f"{where}wo lost rows ({shape[0]} of {hidden} are left); the heads are its columns")
    close(got[1], columns(keep), f"{where}wo", rtol=0.0, atol=0.0, mistakes=mistakes)


@grader("soft_loss", forbidden=("kl_div", "KLDivLoss"))
def soft_loss(answer: Answer, rng: Rng) -> None:
    """(student, teacher, labels, temperature) -> T² · KL, mean over scored positions."""
    for round_, temperature in enumerate((2.3, 3.5, 1.7, 1.5, 2.6, 4.1)):
        batch, seq, classes = rng.integer(2, 4), rng.integer(3, 6), rng.integer(3, 5)
        student, teacher = 2 * rng.normal(batch, seq, classes), 2 * rng.normal(batch, seq, classes)
        labels = rng.integers(0, classes, batch, seq)
        labels[rng.uniform(batch, seq) > 0.6] = -100
        labels[0, 0], labels[0, 1], labels[1, :2] = 1, -100, 0  # rows of unequal length
        if round_ == 4:  # labels mean nothing but "not -100"
            labels[0, 2], labels[1, 0], labels[1, 1] = -1, classes + 3, -7
        if round_ == 3:
            student, teacher = 100 * student.clamp(-2, 2), 100 * teacher.clamp(-2, 2)
            student[0, 0, :2], teacher[0, 0, :2] = torch.tensor([200.0, -200.0]), torch.tensor([150.0, 200.0])
        student.requires_grad_(True)
        teacher.requires_grad_(True)
        got = answer(student, teacher, labels, temperature)
        _compare_soft(got, student, teacher, labels, temperature)


def _compare_soft(got: Any, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, T: float) -> None:  # noqa: N803
    scored = labels != -100

    def rows(to: torch.Tensor, from_: torch.Tensor, t: float = T) -> torch.Tensor:
        """KL(to || from) at every position."""
        log_p, log_q = (to.detach() / t).log_softmax(-1), (from_.detach() / t).log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    forward, n = rows(teacher, student), int(scored.sum())
    want = T**2 * forward[scored].mean()
    cross = -((teacher.detach() / T).softmax(-1) * (student.detach() / T).log_softmax(-1)).sum(-1)
    known = labels[scored].clamp(0, student.shape[-1] - 1)
    hard = torch.nn.functional.cross_entropy(student.detach()[scored], known)
    per_row = torch.stack([forward[i][scored[i]].mean() for i in range(len(labels)) if bool(scored[i].any())]).mean()
    unlike = (student.detach()[scored] - teacher.detach()[scored]).square().mean()
    mistakes = {
        "T² is missing: without it a high temperature turns the teacher down": forward[scored].mean(),
        "multiply by T², not by T": T * forward[scored].mean(),
        "the KL is the wrong way round: the teacher's probabilities come first":
            T**2 * rows(student, teacher)[scored].mean(),
        "positions labelled -100 (padding) count in your mean; leave them out": T**2 * forward.mean(),
        "positions labelled -100 were left out of the sum, but you divide by all positions":
            T**2 * (forward * scored).sum() / scored.numel(),
        "the mean is over positions; do not divide by the number of classes, too": want / student.shape[-1],
        "that is the sum over positions; take the mean": want * n,
        "divide by the number of scored positions, not by the number of sentences": want * n / len(labels),
        "that is a mean of the sentences' means; each scored position should weigh the same": T**2 * per_row,
        "that is the cross-entropy with the teacher: subtract the teacher's own entropy": T**2 * cross[scored].mean(),
        "the temperature is missing: divide both logits by T": rows(teacher, student, 1.0)[scored].mean(),
        "the temperature is missing inside the softmax: divide both logits by T":
            T**2 * rows(teacher, student, 1.0)[scored].mean(),
        "the logits are multiplied by T; divide them": T**2 * rows(teacher, student, 1 / T)[scored].mean(),
        "only the student is softened; divide the teacher's logits by T, too":
            T**2 * rows(teacher * T, student)[scored].mean(),
        "only the teacher is softened; divide the student's logits by T, too":
            T**2 * rows(teacher, student * T)[scored].mean(),
        "that is the labels' cross-entropy; the soft half uses the teacher": hard,
        "that is the squared distance of the logits, not the KL": unlike,
        "the sign is wrong: the KL is not negative": -want,
    }  # fmt: skip
    if isinstance(got, torch.Tensor) and got.numel() == 1 and not bool(torch.isfinite(got.detach())):
        raise Wrong("the loss is nan or inf where logits are large: a probability became 0 and its logarithm -inf; "
                    "use log_softmax")  # fmt: skip
    if isinstance(got, torch.Tensor) and got.ndim:
        raise Wrong(f"return a scalar: the mean over the scored positions, got shape {tuple(got.shape)}")
    plain = {hint: value for hint, value in mistakes.items() if bool(torch.isfinite(value))}
    value = got.detach() if isinstance(got, torch.Tensor) else got
    close(value, want, "the loss", rtol=1e-4, atol=1e-5, mistakes=plain)
    true(isinstance(got, torch.Tensor) and got.requires_grad, "no gradient flows to the student: the loss must stay a "
         "tensor of its graph (no .item(), no detach of the student)")  # fmt: skip
    to_student, to_teacher = torch.autograd.grad(got, (student, teacher), allow_unused=True)
    true(to_student is not None, "no gradient flows to the student; do not detach its logits")
    true(to_teacher is None or not bool(to_teacher.any()), "a gradient flows to the teacher: detach its logits, or the "
         "teacher would learn from the student")  # fmt: skip
