"""Wrong answers to the exercises, named after the mistake, with a fragment of the message each must get."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def _picked(logits, labels):
    """Loss at every position, of token 0 where nothing is scored."""
    return -torch.log_softmax(logits, -1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)


# --- 1.1 --------------------------------------------------------------------------------------------------------------


def averages_over_all_positions(logits, labels):
    return _picked(logits, labels).mean()


def divides_by_all_positions(logits, labels):
    return (_picked(logits, labels) * (labels != -100)).mean()


def sums(logits, labels):
    return (_picked(logits, labels) * (labels != -100)).sum()


def mean_of_row_means(logits, labels):
    scored = labels != -100
    rows = scored.any(-1)
    return ((_picked(logits, labels) * scored).sum(-1)[rows] / scored.sum(-1)[rows]).mean()


def wrong_sign(logits, labels):
    return -_picked(logits, labels)[labels != -100].mean()


def scores_the_visible(logits, labels):
    return _picked(logits, labels)[labels == -100].mean()


def in_bits(logits, labels):
    return _picked(logits, labels)[labels != -100].mean() / math.log(2)


def overflows(logits, labels):
    scored = labels != -100
    exponentials = logits[scored].exp()
    probabilities = exponentials / exponentials.sum(-1, keepdim=True)
    return -probabilities.gather(-1, labels[scored][:, None]).log().mean()


def loses_the_log_sum_exp(logits, labels):
    scored = labels != -100
    return -logits[scored].gather(-1, labels[scored][:, None]).mean()


def asks_the_library(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def changes_the_labels(logits, labels):
    scored = labels != -100
    loss = _picked(logits, labels)[scored].mean()
    labels[~scored] = 0
    return loss


def forgets_to_return(logits, labels):
    _picked(logits, labels)[labels != -100].mean()


# --- 1.2 --------------------------------------------------------------------------------------------------------------


def _residual(logits, labels):
    return logits.softmax(-1) - F.one_hot(labels.clamp(min=0), logits.shape[-1])


def gradient_of_the_sum(logits, labels):
    return _residual(logits, labels) * (labels != -100)[..., None]


def gradient_over_all_positions(logits, labels):
    return _residual(logits, labels) * (labels != -100)[..., None] / labels.numel()


def gradient_uphill(logits, labels):
    return -_residual(logits, labels) * (labels != -100)[..., None] / (labels != -100).sum()


def gradient_where_nothing_is_scored(logits, labels):
    return _residual(logits, labels) / (labels != -100).sum()


def gradient_without_one_hot(logits, labels):
    return logits.softmax(-1) * (labels != -100)[..., None] / (labels != -100).sum()


def gradient_over_the_vocabulary(logits, labels):
    return gradient_of_the_sum(logits, labels) / (labels != -100).sum() / logits.shape[-1]


def gradient_by_autograd(logits, labels):
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(_picked(leaf, labels)[labels != -100].mean(), leaf)[0]


def gradient_in_place(logits, labels):
    scored = labels != -100
    logits.copy_(_residual(logits, labels) * scored[..., None] / scored.sum())
    return logits


# --- 1.3 --------------------------------------------------------------------------------------------------------------


def _averages(grad, mean, square, beta1, beta2):
    return beta1 * mean + (1 - beta1) * grad, beta2 * square + (1 - beta2) * grad**2


def _direction(mean, square, step, beta1, beta2, eps):
    return mean / (1 - beta1**step) / ((square / (1 - beta2**step)).sqrt() + eps)


def l2_in_the_loss(param, grad, mean, square, step, lr, beta1, beta2, eps, weight_decay):
    mean, square = _averages(grad + weight_decay * param, mean, square, beta1, beta2)
    return param - lr * _direction(mean, square, step, beta1, beta2, eps), mean, square


def no_decay(param, grad, mean, square, step, lr, beta1, beta2, eps, weight_decay):
    mean, square = _averages(grad, mean, square, beta1, beta2)
    return param - lr * _direction(mean, square, step, beta1, beta2, eps), mean, square


def decay_without_learning_rate(param, grad, mean, square, step, lr, beta1, beta2, eps, weight_decay):
    mean, square = _averages(grad, mean, square, beta1, beta2)
    return param * (1 - weight_decay) - lr * _direction(mean, square, step, beta1, beta2, eps), mean, square


def no_bias_correction(param, grad, mean, square, step, lr, beta1, beta2, eps, weight_decay):
    mean, square = _averages(grad, mean, square, beta1, beta2)
    return param * (1 - lr * weight_decay) - lr * mean / (square.sqrt() + eps), mean, square


def stores_the_corrected_mean(param, grad, mean, square, step, lr, beta1, beta2, eps, weight_decay):
    mean, square = _averages(grad, mean, square, beta1, beta2)
    mean, square = mean / (1 - beta1**step), square / (1 - beta2**step)
    return param * (1 - lr * weight_decay) - lr * mean / (square.sqrt() + eps), mean, square


def eps_inside_the_root(param, grad, mean, square, step, lr, beta1, beta2, eps, weight_decay):
    mean, square = _averages(grad, mean, square, beta1, beta2)
    direction = mean / (1 - beta1**step) / (square / (1 - beta2**step) + eps).sqrt()
    return param * (1 - lr * weight_decay) - lr * direction, mean, square


def no_root(param, grad, mean, square, step, lr, beta1, beta2, eps, weight_decay):
    mean, square = _averages(grad, mean, square, beta1, beta2)
    direction = mean / (1 - beta1**step) / (square / (1 - beta2**step) + eps)
    return param * (1 - lr * weight_decay) - lr * direction, mean, square


def betas_swapped(param, grad, mean, square, step, lr, beta1, beta2, eps, weight_decay):
    mean, square = (1 - beta1) * mean + beta1 * grad, (1 - beta2) * square + beta2 * grad**2
    return param * (1 - lr * weight_decay) - lr * _direction(mean, square, step, beta1, beta2, eps), mean, square


def in_place(param, grad, mean, square, step, lr, beta1, beta2, eps, weight_decay):
    mean, square = _averages(grad, mean, square, beta1, beta2)
    param.mul_(1 - lr * weight_decay).sub_(lr * _direction(mean, square, step, beta1, beta2, eps))
    return param, mean, square


def returns_the_weight_alone(param, grad, mean, square, step, lr, beta1, beta2, eps, weight_decay):
    mean, square = _averages(grad, mean, square, beta1, beta2)
    return param * (1 - lr * weight_decay) - lr * _direction(mean, square, step, beta1, beta2, eps)


# --- 1.4 --------------------------------------------------------------------------------------------------------------


def _emission(seen, size, mask_prob, keep, noise):
    same = F.one_hot(seen, size + 1)[:, :size].double()
    return torch.where((seen == size)[:, None], mask_prob, keep * same + noise)


def _normalised(joint):
    return joint / joint.sum(-1, keepdim=True)


def the_other_reading(prior, seen, mask_rate, mask_prob, random_prob):
    size = prior.shape[-1]
    selected = _emission(seen, size, mask_prob, 1 - mask_prob - random_prob, random_prob / size)
    same = F.one_hot(seen, size + 1)[:, :size].double()
    return _normalised(prior * (mask_rate * selected + (1 - mask_rate) * same))


def trusts_what_is_seen(prior, seen, mask_rate, mask_prob, random_prob):
    size = prior.shape[-1]
    same = F.one_hot(seen, size + 1)[:, :size].double()
    return torch.where((seen == size)[:, None], prior, same)


def not_normalised(prior, seen, mask_rate, mask_prob, random_prob):
    size = prior.shape[-1]
    return prior * _emission(seen, size, mask_prob, 1 - mask_prob - random_prob, random_prob / size)


def noise_not_shared_out(prior, seen, mask_rate, mask_prob, random_prob):
    return _normalised(prior * _emission(seen, prior.shape[-1], mask_prob, 1 - mask_prob - random_prob, random_prob))


def noise_on_other_tokens_only(prior, seen, mask_rate, mask_prob, random_prob):
    size = prior.shape[-1]
    noise = random_prob / (size - 1)
    return _normalised(prior * _emission(seen, size, mask_prob, 1 - mask_prob - random_prob - noise, noise))


def no_prior(prior, seen, mask_rate, mask_prob, random_prob):
    size = prior.shape[-1]
    return _normalised(_emission(seen, size, mask_prob, 1 - mask_prob - random_prob, random_prob / size) + 0 * prior)


def never_kept(prior, seen, mask_rate, mask_prob, random_prob):
    return _normalised(prior * _emission(seen, prior.shape[-1], mask_prob, 0.0, random_prob))


# --- 1.5 --------------------------------------------------------------------------------------------------------------


def _nats(batch_means, counts):
    return sum(mean * count for mean, count in zip(batch_means, counts, strict=True))


def mean_of_means(batch_means, counts, n_bytes):
    return sum(batch_means) / len(batch_means) / math.log(2) * sum(counts) / sum(n_bytes)


def in_nats(batch_means, counts, n_bytes):
    return _nats(batch_means, counts) / sum(n_bytes)


def multiplies_by_ln_2(batch_means, counts, n_bytes):
    return _nats(batch_means, counts) * math.log(2) / sum(n_bytes)


def bits_per_token(batch_means, counts, n_bytes):
    return _nats(batch_means, counts) / math.log(2) / sum(counts)


def sum_of_means(batch_means, counts, n_bytes):
    return sum(batch_means) / math.log(2) / sum(n_bytes)


def mean_of_ratios(batch_means, counts, n_bytes):
    ratios = [m * c / b for m, c, b in zip(batch_means, counts, n_bytes, strict=True)]
    return sum(ratios) / len(ratios) / math.log(2)


def upside_down(batch_means, counts, n_bytes):
    return sum(n_bytes) * math.log(2) / _nats(batch_means, counts)


MUTANTS = {
    "masked_mean_loss": {
        "averages over all positions": (averages_over_all_positions, "did you average over all positions?"),
        "divides by all positions": (divides_by_all_positions, "divide by the number of masked ones"),
        "sum in place of mean": (sums, "this is the sum"),
        "mean of row means": (mean_of_row_means, "mean of the rows' means"),
        "wrong sign": (wrong_sign, "the sign is wrong"),
        "scores the visible positions": (scores_the_visible, "not masked"),
        "bits": (in_bits, "in bits"),
        "softmax, then log: overflows": (overflows, "torch.logsumexp"),
        "no log-sum-exp": (loses_the_log_sum_exp, "log-sum-exp over the vocabulary is missing"),
        "asks the library": (asks_the_library, "calls cross_entropy"),
        "changes the labels": (changes_the_labels, "in place"),
        "forgets to return": (forgets_to_return, "`return` missing"),
    },
    "logits_gradient": {
        "gradient of the sum": (gradient_of_the_sum, "gradient of the sum"),
        "divides by all positions": (gradient_over_all_positions, "number of all positions"),
        "uphill": (gradient_uphill, "the sign is wrong"),
        "gradient where nothing is scored": (gradient_where_nothing_is_scored, "their gradient is 0"),
        "no one-hot": (gradient_without_one_hot, "the one-hot is missing"),
        "divides by the vocabulary": (gradient_over_the_vocabulary, "size of the vocabulary"),
        "asks autograd": (gradient_by_autograd, "calls grad"),
        "overwrites the logits": (gradient_in_place, "in place"),
    },
    "adamw_update": {
        "L2 in the loss": (l2_in_the_loss, "Adam with L2"),
        "no decay": (no_decay, "the weight decay is missing"),
        "decay without the learning rate": (decay_without_learning_rate, "not scaled by the learning rate"),
        "no bias correction": (no_bias_correction, "the bias correction is missing"),
        "stores the corrected averages": (stores_the_corrected_mean, "not stored"),
        "eps inside the root": (eps_inside_the_root, "not inside it"),
        "no root": (no_root, "the root is missing"),
        "betas swapped": (betas_swapped, "swapped"),
        "changes the weight in place": (in_place, "in place"),
        "returns the weight alone": (returns_the_weight_alone, "three tensors"),
    },
    "scored_posterior": {
        "the other reading": (the_other_reading, "without the news that the position is scored"),
        "trusts what is seen": (trusts_what_is_seen, "may be a random replacement"),
        "not normalised": (not_normalised, "normalise"),
        "random_prob not divided by V": (noise_not_shared_out, "random_prob / V, not random_prob"),
        "random draw over the other tokens": (noise_on_other_tokens_only, "not / (V - 1)"),
        "no prior": (no_prior, "without the prior"),
        "a token is never kept": (never_kept, "a kept token may be the original"),
    },
    "bits_per_byte": {
        "mean of means": (mean_of_means, "mean of batch means"),
        "nats": (in_nats, "nats per byte"),
        "multiplies by ln 2": (multiplies_by_ln_2, "you multiply by ln 2"),
        "bits per token": (bits_per_token, "bits per token"),
        "sum of means": (sum_of_means, "added as they are"),
        "mean of ratios": (mean_of_ratios, "mean of the batches' bits per byte"),
        "upside down": (upside_down, "bytes per bit"),
    },
}
