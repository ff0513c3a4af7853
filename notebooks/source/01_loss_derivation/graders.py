"""Graders: the masked loss, its gradient, AdamW's step, the scored posterior, bits per byte."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from coursekit.checks import Answer, Rng, close, grader, true

IGNORE = -100
LOSSES = ("cross_entropy", "cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss2d", "nll_loss_forward")
DERIVATIVES = ("grad", "backward", "run_backward", "jacobian", "jacrev", "jacfwd", "vjp", "vhp")
OPTIMISERS = ("adam", "adamw", "_single_tensor_adam", "_single_tensor_adamw", "_fused_adam_", "_fused_adamw_")


# --- 1.1 and 1.2: the loss and its gradient ---------------------------------------------------------------------------


@grader("masked_mean_loss", forbidden=LOSSES)
def masked_mean_loss(answer: Answer, rng: Rng) -> None:
    for share in (0.4, 0.4, 1.0, 0.0):  # of scored positions: some, some others, all, only three
        logits, labels = _batch(rng, share)
        log_p = torch.log_softmax(logits, -1)
        close(answer(logits, labels), _mean(log_p, labels), "the loss", mistakes=_loss_mistakes(logits, labels))
    loud = logits * 1000  # softmax first and logarithm afterwards meets exp(1000), or log(0)
    labels = torch.where(labels == IGNORE, IGNORE, logits.argmin(-1))  # by chance, all could be the likeliest
    got = torch.as_tensor(answer(loud, labels))
    true(torch.isfinite(got.double()).all(),
         "for logits of a few thousand the loss is nan or inf: exp overflows, or log meets a 0; use torch.logsumexp")
    close(got, _mean(torch.log_softmax(loud, -1), labels), "the loss for logits of a few thousand")


def _mean(log_p: Tensor, labels: Tensor) -> Tensor:
    scored = labels != IGNORE
    return -log_p[scored].gather(-1, labels[scored][:, None]).mean()


def _loss_mistakes(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    log_p, scored = torch.log_softmax(logits, -1), labels != IGNORE
    everywhere = -log_p.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    right = _mean(log_p, labels)
    kept = everywhere * scored
    rows = scored.any(-1)
    probability = (-everywhere[scored]).exp()
    return {
        "this is the sum over the masked positions; divide by their number":
            kept.sum(),
        "you divide by the number of all positions; divide by the number of masked ones (label != -100)":
            kept.mean(),
        "positions whose label is -100 are not scored; did you average over all positions?":
            everywhere.mean(),
        "you scored the positions that are not masked; a label of -100 means: leave out":
            everywhere[~scored].mean(),
        "the sign is wrong: a loss is minus the log-probability":
            -right,
        "this is in bits; the loss is in nats, with the natural logarithm":
            right / math.log(2),
        "this is minus the logit of the right token; the log-sum-exp over the vocabulary is missing":
            _mean(logits, labels),
        "this is the mean of minus the probability; take its logarithm":
            -probability.mean(),
        "this is minus the log of the mean probability; take the logarithm first, then the mean":
            -probability.mean().log(),
        "this is the mean of the rows' means; rows hold unequal numbers of masked tokens, so average over positions":
            (kept.sum(-1)[rows] / scored.sum(-1)[rows]).mean(),
        "you divide by the number of rows; divide by the number of masked positions":
            kept.sum() / len(labels),
        "a softmax over the wrong dimension; the vocabulary is the last one":
            _mean(torch.log_softmax(logits, 0), labels),
    }


@grader("logits_gradient", forbidden=DERIVATIVES)
def logits_gradient(answer: Answer, rng: Rng) -> None:
    for share in (0.4, 0.4, 1.0, 0.0):
        logits, labels = _batch(rng, share)
        scored = (labels != IGNORE)[..., None]
        one_hot = F.one_hot(labels.clamp(min=0), logits.shape[-1]) * scored
        residual = (logits.softmax(-1) - one_hot) * scored
        got, count = answer(logits, labels), scored.sum()
        close(got, residual / count, "the gradient", atol=1e-7, mistakes={
            "the sign is wrong: it is softmax minus one-hot, since the loss falls when the right logit grows":
                -residual / count,
            "this is the gradient of the sum; divide by the number of masked positions":
                residual,
            "you divide by the number of all positions; the loss averages over the masked ones":
                residual / labels.numel(),
            "positions that are not masked have no part in the loss; their gradient is 0":
                (logits.softmax(-1) - one_hot) / count,
            "positions that are not masked have no part in the loss; their gradient is 0 (a -100 is not token 0)":
                (logits.softmax(-1) - F.one_hot(labels.clamp(min=0), logits.shape[-1])) / count,
            "the one-hot is missing: subtract 1 at the right token":
                logits.softmax(-1) * scored / count,
            "the softmax is missing: only the one-hot is left":
                -one_hot / count,
            "use the softmax, not its logarithm":
                (logits.log_softmax(-1) - one_hot) * scored / count,
            "you divide by the number of rows; divide by the number of masked positions":
                residual / len(labels),
            "you divide by the size of the vocabulary too; only the number of masked positions divides":
                residual / count / logits.shape[-1],
            "a softmax over the wrong dimension; the vocabulary is the last one":
                (logits.softmax(0) - one_hot) * scored / count,
        })
        dtype = torch.as_tensor(got).dtype
        true(dtype == logits.dtype, f"the gradient's dtype is {dtype}, its logits' is {logits.dtype}; keep the latter")


def _batch(rng: Rng, share: float) -> tuple[Tensor, Tensor]:
    """Logits and labels of a fresh shape. Rows hold unequal numbers of scored positions, unless ``share`` is 1."""
    batch, seq, vocab = rng.integer(3, 5), rng.integer(6, 10), rng.integer(5, 11)
    logits = 2 * rng.normal(batch, seq, vocab, dtype=rng.python.choice([torch.float32, torch.float64]))
    scored = rng.uniform(batch, seq) < share
    if share < 1:
        scored[0], scored[1], scored[1, 1], scored[2, 0] = False, False, True, share > 0
        scored[2, 2:4] = True
    return logits, torch.where(scored, rng.integers(0, vocab, batch, seq), IGNORE)


# --- 1.3: AdamW -------------------------------------------------------------------------------------------------------


@grader("adamw_update", forbidden=OPTIMISERS)
def adamw_update(answer: Answer, rng: Rng) -> None:
    for start in (4, 1, rng.integer(2, 50)):  # in the middle of a run first: at step 1 many mistakes look alike
        shape = [rng.integer(2, 5) for _ in range(rng.integer(1, 3))]
        param = rng.normal(*shape, dtype=torch.float64) + 3
        mean = 0.3 * rng.normal(*shape, dtype=torch.float64) * (start > 1)
        square = (0.2 + rng.uniform(*shape).double()) * (start > 1)
        uniform = rng.python.uniform
        settings = {"lr": uniform(0.01, 0.2), "beta1": uniform(0.7, 0.95), "beta2": uniform(0.8, 0.99), "eps": 0.01,
                    "weight_decay": uniform(0.05, 0.3)}
        for step in range(start, start + 3):
            grad = rng.normal(*shape, dtype=torch.float64) + 0.5
            want = _adamw(param, grad, mean, square, step, **settings)
            _grade_update(answer(param, grad, mean, square, step, **settings), want, param, grad, mean, square, step,
                          settings)
            param, mean, square = want


def _adamw(param: Tensor, grad: Tensor, mean: Tensor, square: Tensor, step: int, *, lr: float, beta1: float,
           beta2: float, eps: float, weight_decay: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = beta1 * mean + (1 - beta1) * grad
    square = beta2 * square + (1 - beta2) * grad**2
    direction = mean / (1 - beta1**step) / ((square / (1 - beta2**step)).sqrt() + eps)
    return param * (1 - lr * weight_decay) - lr * direction, mean, square


def _grade_update(got: tuple, want: tuple, param: Tensor, grad: Tensor, mean: Tensor, square: Tensor, step: int,
                  settings: dict[str, float]) -> None:
    true(isinstance(got, (tuple, list)) and len(got) == 3, "return three tensors: the new param, mean and square")
    one, two, decay = settings["beta1"], settings["beta2"], settings["weight_decay"]
    exactly = {"rtol": 1e-8, "atol": 1e-10}
    close(got[1], want[1], "the new mean", **exactly, mistakes={
        "the decay acts on the weight, not on the gradient: this is Adam with L2 in the loss":
            one * mean + (1 - one) * (grad + decay * param),
        "the factor 1 - beta1 in front of the gradient is missing":
            one * mean + grad,
        "beta1 and 1 - beta1 are swapped":
            (1 - one) * mean + one * grad,
        "mean uses beta1, not beta2":
            two * mean + (1 - two) * grad,
        "return the running mean itself; its bias correction serves the step and is not stored":
            want[1] / (1 - one**step),
        "return the mean after this step, not the one before":
            mean,
    })
    close(got[2], want[2], "the new square", **exactly, mistakes={
        "the gradient is not squared":
            two * square + (1 - two) * grad,
        "the factor 1 - beta2 in front of the squared gradient is missing":
            two * square + grad**2,
        "beta2 and 1 - beta2 are swapped":
            (1 - two) * square + two * grad**2,
        "square uses beta2, not beta1":
            one * square + (1 - one) * grad**2,
        "square averages the squared gradient, not the squared mean":
            two * square + (1 - two) * want[1] ** 2,
        "return the running mean square itself; its bias correction serves the step and is not stored":
            want[2] / (1 - two**step),
        "return the square after this step, not the one before":
            square,
    })
    close(got[0], want[0], "the new param", **exactly,
          mistakes=_step_mistakes(param, want[1], want[2], step, **settings))


def _step_mistakes(param: Tensor, mean: Tensor, square: Tensor, step: int, *, lr: float, beta1: float, beta2: float,
                   eps: float, weight_decay: float) -> dict[str, Tensor]:
    m, s = mean / (1 - beta1**step), square / (1 - beta2**step)
    move, kept = lr * m / (s.sqrt() + eps), param * (1 - lr * weight_decay)
    return {
        "the weight decay is missing: the weight also shrinks by the factor 1 - lr * weight_decay":
            param - move,
        "the decay is not scaled by the learning rate; the factor is 1 - lr * weight_decay":
            param * (1 - weight_decay) - move,
        "the decay makes the weight grow; the factor is 1 - lr * weight_decay":
            param * (1 + lr * weight_decay) - move,
        "shrink the weight as it was before the step; you decay the moved weight":
            (param - move) * (1 - lr * weight_decay),
        "the bias correction is missing: divide mean and square by 1 - beta**step":
            kept - lr * mean / (square.sqrt() + eps),
        "mean lacks its bias correction, 1 - beta1**step":
            kept - lr * mean / (s.sqrt() + eps),
        "square lacks its bias correction, 1 - beta2**step":
            kept - lr * m / (square.sqrt() + eps),
        "the bias correction is one step off: step counts from 1, so use it as it is":
            kept - lr * mean / (1 - beta1 ** (step + 1)) / ((square / (1 - beta2 ** (step + 1))).sqrt() + eps),
        "the bias correction is 1 - beta**step: a power, not a product":
            kept - lr * mean / (1 - beta1) / ((square / (1 - beta2)).sqrt() + eps),
        "the root is missing: divide by the square root of the mean square":
            kept - lr * m / (s + eps),
        "eps is added after the root, not inside it":
            kept - lr * m / (s + eps).sqrt(),
        "eps is missing from the denominator":
            kept - lr * m / s.sqrt(),
        "the step goes uphill: subtract lr times the direction":
            kept + move,
    }


# --- 1.4: the floor's posterior ---------------------------------------------------------------------------------------


@grader("scored_posterior")
def scored_posterior(answer: Answer, rng: Rng) -> None:
    for _ in range(4):
        n, size = rng.integer(8, 20), rng.integer(3, 8)
        prior = rng.uniform(n, size).double() + 0.05
        prior = prior / prior.sum(-1, keepdim=True)
        seen = rng.integers(0, size + 1, n)
        seen[0], seen[1] = size, 0  # a [MASK] and an ordinary token in every draw
        uniform = rng.python.uniform
        rates = {"mask_rate": uniform(0.1, 0.4), "mask_prob": uniform(0.3, 0.5), "random_prob": uniform(0.1, 0.2)}
        want = _bayes(prior, _emission(seen, size, rates["mask_prob"], rates["random_prob"]))
        close(answer(prior, seen, **rates), want, "the posterior", rtol=1e-5, atol=1e-8,
              mistakes=_posterior_mistakes(prior, seen, size, **rates))


def _emission(seen: Tensor, size: int, mask: float, random: float, keep: float | None = None) -> Tensor:
    """P(seen | token v, selected), [n, V]. ``random`` is the probability of the random branch as a whole."""
    same = F.one_hot(seen, size + 1)[:, :size].double()
    keep = 1 - mask - random if keep is None else keep
    return torch.where((seen == size)[:, None], mask, keep * same + random / size)


def _bayes(prior: Tensor, emission: Tensor) -> Tensor:
    joint = prior * emission
    return joint / joint.sum(-1, keepdim=True)


def _posterior_mistakes(prior: Tensor, seen: Tensor, size: int, mask_rate: float, mask_prob: float,
                        random_prob: float) -> dict[str, Tensor]:
    is_mask, same = (seen == size)[:, None], F.one_hot(seen, size + 1)[:, :size].double()
    right, keep = _emission(seen, size, mask_prob, random_prob), 1 - mask_prob - random_prob
    others_only = torch.where(is_mask, mask_prob, torch.where(same > 0, keep, random_prob / (size - 1)))
    return {
        "this is P(x | seen) without the news that the position is scored: mask_rate has no place in the emission":
            _bayes(prior, mask_rate * right + (1 - mask_rate) * same),
        "normalise: each row of the posterior sums to 1":
            prior * right,
        "this is the emission, without the prior: multiply the two, then normalise":
            right / right.sum(-1, keepdim=True),
        "this is the emission; multiply it by the prior, then normalise":
            right,
        "a token that is seen may be a random replacement: every token needs its random_prob / V":
            torch.where(is_mask, prior, same),
        "a random draw hits each of the V tokens with probability random_prob / V, not random_prob":
            _bayes(prior, _emission(seen, size, mask_prob, random_prob * size, keep)),
        "the random draw is over all V tokens, the original included: random_prob / V, not / (V - 1)":
            _bayes(prior, others_only),
        "a kept token may be the original: add 1 - mask_prob - random_prob at the token that is seen":
            prior,
        "the random draw is over the V ordinary tokens; [MASK] is not one of them, so divide by V, not V + 1":
            _bayes(prior, _emission(seen, size, mask_prob, random_prob * size / (size + 1), keep)),
        "the rates are swapped: a token is kept with 1 - mask_prob - random_prob and replaced with random_prob":
            _bayes(prior, _emission(seen, size, mask_prob, keep, random_prob)),
        "normalise over the vocabulary, the last dimension, not over the positions":
            prior * right / (prior * right).sum(0),
    }


# --- 1.5: bits per byte -----------------------------------------------------------------------------------------------


@grader("bits_per_byte")
def bits_per_byte(answer: Answer, rng: Rng) -> None:
    for _ in range(4):
        batches = rng.integer(3, 6)
        means = [rng.python.uniform(1.0, 6.0) for _ in range(batches)]
        counts = [rng.integer(1, 9) for _ in range(batches - 1)] + [rng.integer(40, 90)]  # never equal
        n_bytes = [count * rng.integer(2, 3) + rng.integer(1, 5) for count in counts]
        nats = sum(mean * count for mean, count in zip(means, counts, strict=True))
        flat, tokens, size, ln2 = sum(means) / batches, sum(counts), sum(n_bytes), math.log(2)
        by_batch = sum(m * c / b for m, c, b in zip(means, counts, n_bytes, strict=True)) / batches
        close(answer(means, counts, n_bytes), nats / ln2 / size, "bits per byte", mistakes={
            "this is built on a mean of batch means: batches hold unequal numbers of tokens; add up mean × count":
                flat / ln2 * tokens / size,
            "the batch means are added as they are; each stands for count tokens, so add up mean × count":
                sum(means) / ln2 / size,
            "this is the mean of the batches' bits per byte: add up nats and bytes first, divide once":
                by_batch / ln2,
            "this is in nats per byte; divide by ln 2 to get bits":
                nats / size,
            "you multiply by ln 2; a bit is ln 2 nats, so divide":
                nats * ln2 / size,
            "divide by ln 2, not by 2":
                nats / 2 / size,
            "this is bits per token; divide by the number of bytes":
                nats / ln2 / tokens,
            "this is bits per token, divided by bytes once more; total bits / total bytes":
                nats / ln2 / tokens / size,
            "this is the total in bits; divide by the number of bytes":
                nats / ln2,
            "the fraction is upside down: this is bytes per bit":
                size * ln2 / nats,
            "this is the perplexity; bits per byte are logarithms":
                math.exp(nats / tokens),
        })
