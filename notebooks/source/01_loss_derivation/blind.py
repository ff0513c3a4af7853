import math

import torch
import torch.nn.functional as F


# 1.1 ------------------------------------------------------------------
def w11_row_means(logits, labels):
    means = []
    for z, y in zip(logits, labels):
        keep = y != -100
        if keep.any():
            t = y[keep]
            means.append((z[keep].logsumexp(-1) - z[keep].gather(-1, t[:, None]).squeeze(-1)).mean())
    return torch.stack(means).mean()


def w11_overflow(logits, labels):
    keep = labels != -100
    p = logits[keep].softmax(-1)
    return -(p.gather(-1, labels[keep][:, None]).squeeze(-1) + 1e-12).log().mean()


def w11_ids_above_zero(logits, labels):
    keep = labels > 0
    t = labels[keep]
    return (logits[keep].logsumexp(-1) - logits[keep].gather(-1, t[:, None]).squeeze(-1)).mean()


def w11_nll(logits, labels):
    return F.nll_loss(logits.log_softmax(-1).flatten(0, 1), labels.flatten(), ignore_index=-100)


def w11_sslcourse(logits, labels):
    from sslcourse.objectives.masked_lm import mlm_loss

    return mlm_loss(logits, labels)


def r11_logsumexp(logits, labels):
    keep = labels != -100
    z, y = logits[keep], labels[keep]
    return (z.logsumexp(-1) - z[torch.arange(len(y), device=z.device), y]).mean()


def r11_loop(logits, labels):
    losses = []
    for b in range(labels.shape[0]):
        for i in range(labels.shape[1]):
            y = int(labels[b, i])
            if y != -100:
                losses.append(-torch.log_softmax(logits[b, i], dim=0)[y])
    return sum(losses) / len(losses)


# 1.2 ------------------------------------------------------------------
def w12_all_positions(logits, labels):
    grad = logits.softmax(-1) - F.one_hot(labels.clamp(min=0), logits.shape[-1])
    return grad * (labels != -100)[..., None] / labels.numel()


def w12_unscored_not_zero(logits, labels):
    scored = labels != -100
    one_hot = F.one_hot(labels.clamp(min=0), logits.shape[-1]) * scored[..., None]
    return (logits.softmax(-1) - one_hot) / scored.sum()


def w12_count_per_row(logits, labels):
    scored = labels != -100
    grad = (logits.softmax(-1) - F.one_hot(labels.clamp(min=0), logits.shape[-1])) * scored[..., None]
    return grad / scored.sum(1).clamp(min=1)[:, None, None] / len(logits)


def w12_autograd(logits, labels):
    with torch.enable_grad():
        z = logits.detach().clone().requires_grad_()
        loss = F.cross_entropy(z.flatten(0, 1), labels.flatten())
        return torch.autograd.grad(loss, z)[0]


def w12_ids_above_zero(logits, labels):
    scored = labels > 0
    grad = logits.softmax(-1) - F.one_hot(labels.clamp(min=0), logits.shape[-1])
    return grad * scored[..., None] / scored.sum()


def r12_vectorised(logits, labels):
    scored = labels != -100
    grad = logits.softmax(-1)
    grad = grad - F.one_hot(labels.clamp(min=0), logits.shape[-1]).to(grad.dtype)
    return torch.where(scored[..., None], grad, torch.zeros_like(grad)) / scored.sum()


def r12_loop(logits, labels):
    out = torch.zeros_like(logits)
    n = int((labels != -100).sum())
    for b, i in (labels != -100).nonzero().tolist():
        z = logits[b, i]
        e = (z - z.max()).exp()
        g = e / e.sum()
        g[labels[b, i]] -= 1
        out[b, i] = g / n
    return out


# 1.3 ------------------------------------------------------------------
def w13_l2(param, grad, mean, square, step, lr, beta1, beta2, eps, weight_decay):
    grad = grad + weight_decay * param
    mean = beta1 * mean + (1 - beta1) * grad
    square = beta2 * square + (1 - beta2) * grad**2
    return param - lr * (mean / (1 - beta1**step)) / ((square / (1 - beta2**step)).sqrt() + eps), mean, square


def w13_inplace(param, grad, mean, square, step, lr, beta1, beta2, eps, weight_decay):
    mean.mul_(beta1).add_(grad, alpha=1 - beta1)
    square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    new = param * (1 - lr * weight_decay) - lr * (mean / (1 - beta1**step)) / (
        (square / (1 - beta2**step)).sqrt() + eps
    )
    return new, mean, square


def w13_returns_corrected(param, grad, mean, square, step, lr, beta1, beta2, eps, weight_decay):
    mean = (beta1 * mean + (1 - beta1) * grad) / (1 - beta1**step)
    square = (beta2 * square + (1 - beta2) * grad**2) / (1 - beta2**step)
    return param * (1 - lr * weight_decay) - lr * mean / (square.sqrt() + eps), mean, square


def w13_eps_inside(param, grad, mean, square, step, lr, beta1, beta2, eps, weight_decay):
    mean = beta1 * mean + (1 - beta1) * grad
    square = beta2 * square + (1 - beta2) * grad**2
    m, s = mean / (1 - beta1**step), square / (1 - beta2**step)
    return param * (1 - lr * weight_decay) - lr * m / (s + eps).sqrt(), mean, square


def w13_decay_after(param, grad, mean, square, step, lr, beta1, beta2, eps, weight_decay):
    mean = beta1 * mean + (1 - beta1) * grad
    square = beta2 * square + (1 - beta2) * grad**2
    m, s = mean / (1 - beta1**step), square / (1 - beta2**step)
    new = param - lr * m / (s.sqrt() + eps)
    return new * (1 - lr * weight_decay), mean, square


def r13_formula(param, grad, mean, square, step, lr, beta1, beta2, eps, weight_decay):
    mean = beta1 * mean + (1 - beta1) * grad
    square = beta2 * square + (1 - beta2) * grad**2
    m, s = mean / (1 - beta1**step), square / (1 - beta2**step)
    return (1 - lr * weight_decay) * param - lr * m / (s.sqrt() + eps), mean, square


def r13_clones(param, grad, mean, square, step, lr, beta1, beta2, eps, weight_decay):
    p, m, s = param.clone(), mean.clone(), square.clone()
    m.lerp_(grad, 1 - beta1)
    s.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    p.mul_(1 - lr * weight_decay)
    denominator = s.sqrt().div_(math.sqrt(1 - beta2**step)).add_(eps)
    p.addcdiv_(m, denominator, value=-lr / (1 - beta1**step))
    return p, m, s


# 1.4 ------------------------------------------------------------------
def _emission(seen, V, mask_prob, keep, random_each, dtype):
    same = F.one_hot(seen, V + 1)[:, :V].to(dtype)
    e = keep * same + random_each
    return torch.where((seen == V)[:, None], torch.full_like(e, mask_prob), e)


def w14_mixture(prior, seen, mask_rate, mask_prob, random_prob):
    V = prior.shape[1]
    same = F.one_hot(seen, V + 1)[:, :V].to(prior.dtype)
    e = _emission(seen, V, mask_prob, 1 - mask_prob - random_prob, random_prob / V, prior.dtype)
    joint = prior * (mask_rate * e + (1 - mask_rate) * same)
    return joint / joint.sum(-1, keepdim=True)


def w14_other_tokens(prior, seen, mask_rate, mask_prob, random_prob):
    V = prior.shape[1]
    same = F.one_hot(seen, V + 1)[:, :V].to(prior.dtype)
    e = (1 - mask_prob - random_prob) * same + random_prob / (V - 1) * (1 - same)
    e = torch.where((seen == V)[:, None], torch.full_like(e, mask_prob), e)
    joint = prior * e
    return joint / joint.sum(-1, keepdim=True)


def w14_uniform_at_mask(prior, seen, mask_rate, mask_prob, random_prob):
    V = prior.shape[1]
    joint = prior * _emission(seen, V, mask_prob, 1 - mask_prob - random_prob, random_prob / V, prior.dtype)
    post = joint / joint.sum(-1, keepdim=True)
    return torch.where((seen == V)[:, None], torch.full_like(post, 1 / V), post)


def w14_keep_too_large(prior, seen, mask_rate, mask_prob, random_prob):
    V = prior.shape[1]
    joint = prior * _emission(seen, V, mask_prob, 1 - mask_prob, random_prob / V, prior.dtype)
    return joint / joint.sum(-1, keepdim=True)


def w14_hard_coded(prior, seen, mask_rate, mask_prob, random_prob):
    V = prior.shape[1]
    joint = prior * _emission(seen, V, 0.8, 0.1, 0.1 / V, prior.dtype)
    return joint / joint.sum(-1, keepdim=True)


def r14_vectorised(prior, seen, mask_rate, mask_prob, random_prob):
    V = prior.shape[1]
    same = seen[:, None] == torch.arange(V, device=seen.device)
    e = same.to(prior.dtype) * (1 - mask_prob - random_prob) + random_prob / V
    e[seen == V] = 1.0
    joint = prior * e
    return joint / joint.sum(-1, keepdim=True)


def r14_loop(prior, seen, mask_rate, mask_prob, random_prob):
    V = prior.shape[1]
    rows = []
    for row, s in zip(prior.tolist(), seen.tolist()):
        if s != V:
            row = [p * (random_prob / V + (1 - mask_prob - random_prob if v == s else 0)) for v, p in enumerate(row)]
        total = math.fsum(row)
        rows.append([p / total for p in row])
    return torch.tensor(rows, dtype=prior.dtype)


# 1.5 ------------------------------------------------------------------
def w15_mean_of_means(batch_means, counts, n_bytes):
    mean = sum(batch_means) / len(batch_means)
    return mean * sum(counts) / math.log(2) / sum(n_bytes)


def w15_mean_of_ratios(batch_means, counts, n_bytes):
    return sum(m * c / b / math.log(2) for m, c, b in zip(batch_means, counts, n_bytes)) / len(counts)


def w15_nats(batch_means, counts, n_bytes):
    return sum(m * c for m, c in zip(batch_means, counts)) / sum(n_bytes)


def w15_weighted_by_bytes(batch_means, counts, n_bytes):
    mean = sum(m * b for m, b in zip(batch_means, n_bytes)) / sum(n_bytes)
    return mean / math.log(2) * sum(counts) / sum(n_bytes)


def w15_rounded(batch_means, counts, n_bytes):
    return round(sum(m * c for m, c in zip(batch_means, counts)) / math.log(2) / sum(n_bytes), 2)


def r15_fsum(batch_means, counts, n_bytes):
    return math.fsum(m * c for m, c in zip(batch_means, counts)) / (math.log(2) * sum(n_bytes))


def r15_torch(batch_means, counts, n_bytes):
    means = torch.tensor(batch_means, dtype=torch.float64)
    total = means @ torch.tensor(counts, dtype=torch.float64)
    return (total * math.log2(math.e) / torch.tensor(n_bytes, dtype=torch.float64).sum()).item()


WRONG = {
    "masked_mean_loss": {
        "mean of row means": w11_row_means,
        "log of softmax with epsilon": w11_overflow,
        "id 0 not scored": w11_ids_above_zero,
        "nll_loss": w11_nll,
        "imports sslcourse": w11_sslcourse,
    },
    "logits_gradient": {
        "divides by batch x seq": w12_all_positions,
        "unscored not zero": w12_unscored_not_zero,
        "count per row": w12_count_per_row,
        "uses autograd": w12_autograd,
        "id 0 not scored": w12_ids_above_zero,
    },
    "adamw_update": {
        "L2 in the gradient": w13_l2,
        "averages in place": w13_inplace,
        "returns corrected averages": w13_returns_corrected,
        "eps inside root": w13_eps_inside,
        "decays after the step": w13_decay_after,
    },
    "scored_posterior": {
        "mixture emission": w14_mixture,
        "random among the V-1 others": w14_other_tokens,
        "uniform at [MASK]": w14_uniform_at_mask,
        "keep is 1 - mask_prob": w14_keep_too_large,
        "hard-coded 80/10/10": w14_hard_coded,
    },
    "bits_per_byte": {
        "mean of means": w15_mean_of_means,
        "mean of batch ratios": w15_mean_of_ratios,
        "nats per byte": w15_nats,
        "means weighted by bytes": w15_weighted_by_bytes,
        "rounded to 2 decimals": w15_rounded,
    },
}
RIGHT = {
    "masked_mean_loss": {"logsumexp": r11_logsumexp, "loop with log_softmax": r11_loop},
    "logits_gradient": {"vectorised": r12_vectorised, "loop": r12_loop},
    "adamw_update": {"formula": r13_formula, "clones in place": r13_clones},
    "scored_posterior": {"vectorised": r14_vectorised, "python loop": r14_loop},
    "bits_per_byte": {"fsum": r15_fsum, "torch": r15_torch},
}
