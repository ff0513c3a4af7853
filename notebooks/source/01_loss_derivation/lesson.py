# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   coursekit:
#     budget:
#       quick: {minutes: 1.0, memory_mb: 2500}
#       full: {minutes: 4.0, memory_mb: 3000}
# ---

# %% [markdown]
# # The loss, derived
#
# **You will derive the masked-language-modelling loss, its gradient and the update that uses it, prove each against
# PyTorch, and compute the lowest loss that any model can reach.**
#
# About 60 minutes to read and solve; the code runs in less than 4 of them on two CPU cores.
#
# *You need:* Python, tensors, what a derivative and a conditional probability are.
#
# *You will be able to:*
# - write the loss over the masked set, and say what it is conditioned on;
# - differentiate it by hand, down to the parameters, and check it against autograd;
# - write SGD, momentum, Adam and AdamW, and say why the last two differ;
# - say how low a loss can go, and use that number to catch a leak.

# %% tags=["parameters"]
profile = "auto"

# %%
from coursekit import start

lesson = start("loss_derivation", profile)

# %%
import functools
import itertools
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from sslcourse.objectives import entropy_floor, masked_lm
from sslcourse.objectives.masking import mask_tokens
from sslcourse.train import update_rules
from coursekit import Slider, check, live_picture, plots

torch.set_num_threads(1)  # the matrices of this lesson are too small to be worth sharing between cores

# %% [markdown]
# ## 1 · What is minimised?
#
# A masked language model sees a text with some tokens hidden and says, at each hidden place, how likely every token of
# the vocabulary is. Four letters are enough to write down what it should learn:
#
# - $x = (x_1, \dots, x_N)$ is a text, drawn from a source;
# - $S \subset \{1, \dots, N\}$ is the set of **scored** (masked) positions, drawn by us at random;
# - $\tilde x$ is the **corrupted input**: $x$ with the tokens in $S$ hidden;
# - $p_\theta(\cdot \mid \tilde x)_i$ is the model's distribution at position $i$.
#
# The objective is an expectation over texts *and* masks. We cannot compute it, so we average over a sample of $B$
# texts: the **empirical risk**. All scored positions of the sample go into one mean.
#
# $$
# \theta^* = \arg\min_\theta \; \mathbb E\left[-\log p_\theta(x_i \mid \tilde x)_i \;\middle|\; i \in S\right]
# \qquad
# \hat L(\theta) = -\frac{1}{\sum_b |S_b|} \sum_{b=1}^{B} \sum_{i \in S_b}
# \log p_\theta\big(x_{b,i} \mid \tilde x_b\big)_i
# $$
#
# Two things in this formula are easy to lose. The sum runs over $S$ only, and the condition is $\tilde x$, not $x$.
# Section 5 shows what happens without them.
#
# In code, a label is the original id where a position is scored, and −100 elsewhere.

# %%
generator = torch.Generator().manual_seed(0)
batch, length, vocab = 4, 12, 7
logits = torch.randn(batch, length, vocab, generator=generator, dtype=torch.float64)
labels = torch.randint(vocab, (batch, length), generator=generator)
labels[torch.rand(batch, length, generator=generator) > 0.3] = -100
print(labels)

# %% [markdown]
# ## 2 · From scores to a loss
#
# The model gives **logits** $z \in \mathbb R^V$: one score a token. Softmax makes them a distribution, and the loss
# is minus the logarithm of what it gives to the right token $y$. Put the first into the second, line by line:
#
# $$
# \ell(z, y) = -\log \frac{e^{z_y}}{\sum_v e^{z_v}}
#            = -\log e^{z_y} + \log \sum_v e^{z_v}
#            = \underbrace{\log \sum_v e^{z_v}}_{\text{log-sum-exp}} - z_y
# $$
#
# So no softmax is needed: one log-sum-exp and one look-up. That is also the safe way. $e^{800}$ overflows; but any
# number can be taken out of all scores, and with the largest of them, $z_{\max} = \max_v z_v$, every exponent in
# $\log \sum_v e^{z_v} = z_{\max} + \log \sum_v e^{z_v - z_{\max}}$ is at most 0.

# %%
def log_sum_exp(z):
    """[..., V] -> [...]; safe for large scores, since every exponent is at most 0."""
    largest = z.max(dim=-1, keepdim=True).values
    return largest.squeeze(-1) + (z - largest).exp().sum(-1).log()


def masked_loss(z, y):
    """[..., V] scores and [...] labels -> mean loss in nats over the scored positions."""
    scored = y != -100
    right = z[scored].gather(-1, y[scored][:, None]).squeeze(-1)
    return (log_sum_exp(z[scored]) - right).mean()


loud = torch.tensor([800.0, 0.0])
naive = -(loud.exp() / loud.exp().sum()).log()
print("naive:", naive[0].item(), "  log-sum-exp:", (log_sum_exp(loud) - loud[0]).item())

# %% [markdown]
# The library has the same thing in one call, where −100 is the default `ignore_index`. The package has it too, as
# `sslcourse.objectives.masked_lm.mlm_loss`. Do the three agree?

# %%
by_hand = masked_loss(logits, labels)
by_library = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
by_package = masked_lm.mlm_loss(logits, labels)
lesson.record("loss-value-error", max((by_hand - by_library).abs().item(), (by_package - by_library).abs().item()))

# %% [markdown]
# **A number to know by heart.** A model that has learned nothing gives every token $1/V$ and loses $-\log \frac1V = \ln
# V$. For a vocabulary of 4096, $\ln V = 8.3$. A random start lies a little above it. A loss that stays clearly above
# $\ln V$ is worse than not answering: look for a bug.

# %%
uniform = masked_loss(torch.zeros_like(logits), labels)
lesson.record("loss-uniform-error", abs(uniform.item() - math.log(vocab)))

# %% [markdown]
# ### Exercise masked_mean_loss — The masked mean · ★☆☆ · 5 minutes
#
# Write the loss yourself, without looking up. Cross-entropy and NLL functions of PyTorch are not allowed; `logsumexp`
# and `log_softmax` are. The check also tries logits of a few thousand.

# %% tags=["exercise"]
def masked_mean_loss(logits, labels):
    """Mean loss in nats over the positions whose label is not -100.

    logits: [batch, seq, vocab] floats; labels: [batch, seq] ids, -100 where nothing is scored. Returns a scalar tensor.
    """
    ### BEGIN SOLUTION
    scored = labels != -100
    log_p = torch.log_softmax(logits[scored], dim=-1)
    return -log_p.gather(-1, labels[scored][:, None]).mean()
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("masked_mean_loss", masked_mean_loss)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary> First keep only the scored rows: <code>logits[labels != -100]</code> is [scored,
# vocab]. </details>
#
# <details><summary>Hint 2</summary> The score of the right token is <code>scores.gather(-1, targets[:,
# None]).squeeze(-1)</code>. </details>
#
# <details><summary>Hint 3</summary> loss = logsumexp of the scores − score of the right token; then one mean over all
# rows. </details>

# %% [markdown]
# ## 3 · The gradient with respect to the logits
#
# Differentiate $\ell = \log \sum_v e^{z_v} - z_y$ by one score $z_k$:
#
# $$
# \frac{\partial}{\partial z_k} \log \sum_v e^{z_v} = \frac{e^{z_k}}{\sum_v e^{z_v}} = \operatorname{softmax}(z)_k
# \qquad
# \frac{\partial z_y}{\partial z_k} = [k = y]
# $$
#
# $$
# \boxed{\;\frac{\partial \hat L}{\partial z_{i}} = \frac{\operatorname{softmax}(z_i) - \text{one-hot}(x_i)}{|S|}
# \ \text{ for } i \in S, \qquad 0 \ \text{ elsewhere}\;}
# $$
#
# Read it as: *what you said, minus what was there*. It sums to zero over the vocabulary, and a model that is sure and
# right gets no gradient.

# %%
def logits_grad_by_hand(z, y):
    """d masked_loss / d z: (softmax - one-hot) / number of scored positions; 0 where nothing is scored."""
    scored = y != -100
    grad = torch.zeros_like(z)
    one_hot = F.one_hot(y[scored], z.shape[-1])
    grad[scored] = (z[scored].softmax(-1) - one_hot) / scored.sum()
    return grad


z = logits.clone().requires_grad_()
autograd = torch.autograd.grad(F.cross_entropy(z.flatten(0, 1), labels.flatten()), z)[0]
closed_form = logits_grad_by_hand(logits, labels)
assert torch.equal(masked_lm.mlm_loss_grad(logits, labels), closed_form)
lesson.record("loss-gradient-error", (closed_form - autograd).abs().max().item())

# %% [markdown]
# The picture shows one scored position. Bars above zero are tokens that the model named too loudly; the one bar below
# zero is the right token. A step against the gradient lowers the first and raises the second.

# %%
i, j = (labels != -100).nonzero()[0].tolist()
fig, ax = plt.subplots(figsize=(6, 2.6))
residual = logits[i, j].softmax(-1) - F.one_hot(labels[i, j], vocab)
ax.bar(range(vocab), residual, color=["C1" if v == labels[i, j] else "C0" for v in range(vocab)])
ax.axhline(0, color="black", linewidth=0.8)
ax.set(xlabel=f"token id (the right one is {labels[i, j].item()})", ylabel="softmax − one-hot")
plots.show(fig, alt="Bars of softmax minus one-hot: positive at wrong tokens, negative at the right one.")

# %% [markdown]
# ### Exercise logits_gradient — The gradient · ★★☆ · 8 minutes
#
# Write the gradient without autograd. Mind the positions that are not scored, and what you divide by.

# %% tags=["exercise"]
def logits_gradient(logits, labels):
    """d loss / d logits for the mean over the scored positions (label != -100).

    logits: [batch, seq, vocab]; labels: [batch, seq]. Returns a new tensor shaped like logits.
    """
    ### BEGIN SOLUTION
    scored = labels != -100
    one_hot = F.one_hot(labels.clamp(min=0), logits.shape[-1])
    residual = torch.softmax(logits, dim=-1) - one_hot
    return residual * scored[..., None] / scored.sum()
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("logits_gradient", logits_gradient)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary> Build softmax − one-hot everywhere first; <code>labels.clamp(min=0)</code> makes
# −100 a valid id for <code>one_hot</code>. </details>
#
# <details><summary>Hint 2</summary> Multiply by <code>(labels != -100)[..., None]</code>, then divide by the number of
# scored positions, not by batch × seq. </details>

# %% [markdown]
# ## 4 · Down the chain, into the parameters
#
# The last layer of an encoder is linear: it turns the hidden vector $h_i \in \mathbb R^d$ into scores, $z_i = W h_i +
# c$. Stack the hidden vectors as the rows of a matrix $H$: $Z = H W^\top + c$. Call $G = \partial \hat L / \partial
# Z$, the matrix that we just derived. The chain rule, one entry at a time:
#
# $$
# \frac{\partial \hat L}{\partial W_{vr}}
#   = \sum_i \frac{\partial \hat L}{\partial Z_{iv}} \frac{\partial Z_{iv}}{\partial W_{vr}}
#   = \sum_i G_{iv} H_{ir}
# \;\Rightarrow\; \frac{\partial \hat L}{\partial W} = G^\top H,
# \qquad \frac{\partial \hat L}{\partial H} = G W,
# \qquad \frac{\partial \hat L}{\partial c} = \sum_i G_i
# $$
#
# $\partial \hat L / \partial H$ is what the layer hands down. Every layer below does the same with its own matrix,
# and that is all of backpropagation.

# %%
width = 5
H = torch.randn(batch, length, width, generator=generator, dtype=torch.float64, requires_grad=True)
W = torch.randn(vocab, width, generator=generator, dtype=torch.float64, requires_grad=True)
c = torch.randn(vocab, generator=generator, dtype=torch.float64, requires_grad=True)
Z = H @ W.T + c
by_autograd = torch.autograd.grad(masked_loss(Z, labels), [W, H, c])

G = logits_grad_by_hand(Z.detach(), labels)
by_chain_rule = [torch.einsum("biv,bir->vr", G, H), G @ W, G.sum((0, 1))]
errors = [(a - b).abs().max().item() for a, b in zip(by_chain_rule, by_autograd, strict=True)]
lesson.record("loss-chain-rule-error", max(errors))

# %% [markdown]
# ## 5 · The article's loss, tried
#
# This course started from an article that prints its own loss and gradient (its section 4.2). Formulas in articles
# are seldom run, so let us run them. In its notation, $N$ is the length of the input and $M$ the number of masked
# positions:
#
# $$
# \mathcal L = -\frac1N \sum_{i=1}^{N} \log M_\theta(x_i)
# \qquad
# \frac{\partial \mathcal L}{\partial \theta_k} = -\frac1N \sum_{i=1}^{N}
# \Big(\frac1M \sum_{j=1}^{M} \frac{1}{\hat y_j(x_i)} - 1\Big) \frac{\partial M_\theta(x_i)}{\partial \theta_k}
# $$
#
# **The loss first.** It sums over all $N$ positions, and its model reads $x$, with nothing hidden. Then there is a
# model that gets a perfect score: one that copies its input. Here it is, beside the loss over the masked set.

# %%
ids = torch.randint(vocab, (batch, length), generator=generator)
hidden_id, scored = vocab, torch.rand(batch, length, generator=generator) < 0.3
corrupted = torch.where(scored, hidden_id, ids)


def copy_model(seen):
    """A 'model' that is nearly sure of the token that it sees; where it sees [MASK], it has no idea."""
    return 20.0 * F.one_hot(seen, vocab + 1)[..., :vocab].double()


article_loss = F.cross_entropy(copy_model(ids).flatten(0, 1), ids.flatten()).item()
masked_set_loss = masked_loss(copy_model(corrupted), torch.where(scored, ids, -100)).item()
lesson.record("loss-article-copy-model", article_loss)
print(f"copier: {article_loss:.1e} nats, over the masked set {masked_set_loss:.3f} (ln V: {math.log(vocab):.3f})")

# %% [markdown]
# The copier has learned nothing about language: over the masked set it is as bad as a uniform guess. Under the
# article's loss it is unbeatable. The 15 % that are hidden are not a detail of the recipe; they are the task.
#
# **Now the gradient.** Is it the gradient of the article's own loss? Write $p_i = M_\theta(x_i)$. From the loss,
# $\partial \mathcal L / \partial \theta = -\frac1N \sum_i \frac{1}{p_i} \frac{\partial p_i}{\partial \theta}$: the
# coefficient must be $1/p_i$. The article has $\frac1M \sum_j 1/\hat y_j(x_i) - 1$ in its place. The symbol $\hat
# y_j(x_i)$ is not defined there, so we try both readings: the probability at masked position $j$ of token $x_i$, or
# of that position's own token.

# %%
def gradient_with(coefficient, probabilities, ids):
    """-1/N sum_i coefficient_i dp_i/dz, using dp_i/dz_i = p_i (one-hot - softmax). All for one row: [N, V]."""
    own = probabilities.gather(-1, ids[:, None])
    return -coefficient[:, None] * own * (F.one_hot(ids, vocab) - probabilities) / len(ids)


row, masked_at = ids[0], torch.tensor([1, 4, 7])
z = logits[0].clone().requires_grad_()
truth = torch.autograd.grad(F.cross_entropy(z, row), z)[0]
p = logits[0].softmax(-1)
own = p.gather(-1, row[:, None]).squeeze(-1)
coefficients = {
    "1 / p_i, from the chain rule": 1 / own,
    "the article's, ŷ_j(x_i) of token x_i": (1 / p[masked_at][:, row]).mean(0) - 1,
    "the article's, ŷ_j of its own token": ((1 / own[masked_at]).mean() - 1).expand(len(row)),
}

# %%
print(f"{'coefficient':<40}{'norm':>8}{'cosine':>9}{'error relative to autograd':>29}")
relative = []
for name, coefficient in coefficients.items():
    grad = gradient_with(coefficient, p, row)
    relative.append(((grad - truth).norm() / truth.norm()).item())
    cosine = F.cosine_similarity(grad.flatten(), truth.flatten(), dim=0).item()
    print(f"{name:<40}{grad.norm().item():>8.3f}{cosine:>9.3f}{relative[-1]:>29.1e}")
lesson.record("loss-article-gradient-error", min(relative[1:]))
assert relative[0] < 1e-12

# %% [markdown]
# Whichever way one reads it, the printed gradient is off by {{loss-article-gradient-error}} times the true gradient's
# length or more. What went wrong is understandable: two correct formulas were mixed. With respect to a *probability*
# the derivative is $-1/p_i$; with respect to a *logit* it is $p_i - 1$ at the right token. Each is right alone. A sum
# of both, averaged over other positions, is neither.
#
# The moral is not about one article. **A formula that was not compared with autograd is a conjecture**, and the
# comparison costs one line.

# %% [markdown]
# ## 6 · Misconception: "the mean of the batch losses is the loss"
#
# Batches hold different numbers of scored tokens, since masks are drawn at random and texts differ in length. The
# mean of batch means gives every batch one vote; the loss gives every *token* one vote. The same happens across
# gradient accumulation steps and across the ranks of a distributed run.

# %%
sizes = [2, 5, 40, 60]
difficulty = [6.0, 5.0, 3.0, 2.5]  # short texts give less context, so their tokens are harder
token_losses = [d + 0.5 * torch.randn(n, generator=generator) for n, d in zip(sizes, difficulty, strict=True)]
mean_of_means = torch.stack([losses.mean() for losses in token_losses]).mean().item()
mean = torch.cat(token_losses).mean().item()
carried = sum(losses.sum().item() for losses in token_losses) / sum(sizes)  # what to do: carry (sum, count)
assert abs(carried - mean) < 1e-5
lesson.record("loss-mean-of-means-error", abs(mean_of_means - mean))
print(f"mean of batch means {mean_of_means:.3f} nats, mean over tokens {mean:.3f} nats, same losses")

# %% [markdown]
# The same token losses, and the two numbers are {{loss-mean-of-means-error}} nats apart. That is more than many
# papers report as a gain. So whatever adds up over batches carries `(sum, count)`, as the package's `mlm_loss_sum`
# does, and divides once, at the end.

# %% [markdown]
# ## 7 · What to do with a gradient
#
# Four updates, each the previous idea plus one. $g$ is the gradient, $w$ a weight, $\eta$ the learning rate, $t$ the
# number of the step.
#
# | name | idea | update |
# |---|---|---|
# | SGD | go downhill | $w \leftarrow w - \eta g$ |
# | momentum | keep some of the speed | $u \leftarrow \mu u + g,\quad w \leftarrow w - \eta u$ |
# | Adam | divide by the gradient's usual size | $w \leftarrow w - \eta\, \hat m / (\sqrt{\hat s} + \epsilon)$ |
# | AdamW | and shrink the weight | $w \leftarrow (1 - \eta\lambda) w - \eta \hat m / (\sqrt{\hat s} + \epsilon)$ |
#
# (In the code below Adam, too, is asked to shrink its weights: in the old way, by $\lambda w$ added to $g$. So the last
# two rows differ in where the shrinking happens.) Here $m \leftarrow \beta_1 m + (1 - \beta_1) g$ and $s \leftarrow
# \beta_2 s + (1 - \beta_2) g^2$. Both start at zero, so early on they are too small, by exactly the factor $1 -
# \beta^t$: $\hat m = m / (1 - \beta_1^t)$, $\hat s = s / (1 - \beta_2^t)$.

# %%
ETA, MU, BETA1, BETA2, EPS, LAMBDA = 0.05, 0.9, 0.9, 0.99, 1e-8, 0.1


def direction(g, state):
    """Adam's m-hat / (sqrt(s-hat) + eps); the dictionary remembers t, m and s from step to step."""
    t = state["t"] = state.get("t", 0) + 1
    m = state["m"] = BETA1 * state.get("m", 0) + (1 - BETA1) * g
    s = state["s"] = BETA2 * state.get("s", 0) + (1 - BETA2) * g**2
    return m / (1 - BETA1**t) / ((s / (1 - BETA2**t)).sqrt() + EPS)


def momentum(w, g, state):
    state["u"] = MU * state.get("u", 0) + g
    return w - ETA * state["u"]


rules = {
    "SGD": lambda w, g, state: w - ETA * g,
    "momentum": momentum,
    "Adam": lambda w, g, state: w - ETA * direction(g + LAMBDA * w, state),  # L2 in the loss: its gradient joins g
    "AdamW": lambda w, g, state: (1 - ETA * LAMBDA) * w - ETA * direction(g, state),
}

# %% [markdown]
# The test is the decoder of section 4, trained for 100 steps on fresh batches: once by hand (our gradient, our
# update) and once by the library (autograd, `torch.optim`). They start alike, and we keep the largest difference
# between any two weights at any step.

# %%
data = torch.Generator().manual_seed(1)
hidden = torch.randn(100, 32, width, generator=data, dtype=torch.float64)  # 100 batches of 32 scored positions
targets = torch.randint(vocab, (100, 32), generator=data)
optimisers = {
    "SGD": lambda w: torch.optim.SGD([w], lr=ETA),
    "momentum": lambda w: torch.optim.SGD([w], lr=ETA, momentum=MU),
    "Adam": lambda w: torch.optim.Adam([w], lr=ETA, betas=(BETA1, BETA2), eps=EPS, weight_decay=LAMBDA),
    "AdamW": lambda w: torch.optim.AdamW([w], lr=ETA, betas=(BETA1, BETA2), eps=EPS, weight_decay=LAMBDA),
}


def by_hand_steps(rule):
    """The weight after each of 100 steps: gradient G^T h, then the rule."""
    w, state, path = W.detach().clone(), {}, []
    for h, y in zip(hidden, targets, strict=True):
        w = rule(w, logits_grad_by_hand(h @ w.T, y).T @ h, state)
        path.append(w)
    return torch.stack(path)


# %%
def library_steps(make_optimiser):
    """The same 100 steps by autograd and torch.optim."""
    w, path = W.detach().clone().requires_grad_(), []
    optimiser = make_optimiser(w)
    for h, y in zip(hidden, targets, strict=True):
        optimiser.zero_grad()
        F.cross_entropy(h @ w.T, y).backward()
        optimiser.step()
        path.append(w.detach().clone())
    return torch.stack(path)


deviation = {name: (by_hand_steps(rules[name]) - library_steps(optimisers[name])).abs().max().item() for name in rules}
print({name: f"{value:.1e}" for name, value in deviation.items()})
lesson.record("loss-optimiser-deviation", max(deviation.values()))

# %% [markdown]
# The package's `sgd_step`, `adam_step` and `adamw_step` are the same rules; unlike ours, they change the weight in
# place.

# %%
def package_adamw(w, g, state):
    return update_rules.adamw_step(w.clone(), g, state, lr=ETA, betas=(BETA1, BETA2), eps=EPS, weight_decay=LAMBDA)


def package_adam(w, g, state):
    return update_rules.adam_step(w.clone(), g, state, lr=ETA, betas=(BETA1, BETA2), eps=EPS, weight_decay=LAMBDA)


assert torch.allclose(by_hand_steps(package_adamw), by_hand_steps(rules["AdamW"]), rtol=0, atol=1e-10)
assert torch.allclose(by_hand_steps(package_adam), by_hand_steps(rules["Adam"]), rtol=0, atol=1e-10)

# %% [markdown]
# ### Why Adam with L2 in the loss is not AdamW
#
# With SGD, adding $\frac\lambda2 w^2$ to the loss and shrinking $w$ by $\eta\lambda$ is the same step. (The article's
# update, $\theta \leftarrow \theta - \eta\nabla\mathcal L - \eta\lambda\theta$, is the second form: SGD with decay.
# It calls it "SGD, Adam"; for Adam it is not true.) Adam divides whatever is in the gradient by the gradient's usual
# size, the decay included:
#
# $$
# \text{Adam + L2: shrinks by about } \frac{\eta\,\lambda\, w}{\sqrt{\hat s}}
# \qquad\qquad
# \text{AdamW: shrinks by } \eta\,\lambda\, w
# $$
#
# So under Adam + L2 a weight with large gradients is hardly decayed at all. To see it, take two kinds of weights, all
# at 1, whose gradients are pure noise: small for one kind, a hundred times larger for the other. Only the decay has a
# direction.

# %%
def shrink(rule, scale, steps=400, copies=400):
    """Mean weight after each step, when the gradient is noise of this size. Both kinds see the same noise, scaled."""
    noise = torch.Generator().manual_seed(2)
    w, state, means = torch.ones(copies, dtype=torch.float64), {}, [1.0]
    for _ in range(steps):
        g = scale * torch.randn(copies, generator=noise, dtype=torch.float64)
        w = rule(w, g, state)
        means.append(w.mean().item())
    return means


def l2(w, g, state):
    return w - 0.01 * direction(g + LAMBDA * w, state)


def decoupled(w, g, state):
    return (1 - 0.01 * LAMBDA) * w - 0.01 * direction(g, state)


kinds = {"Adam + L2": l2, "AdamW": decoupled}
curves = {(name, scale): shrink(rule, scale) for name, rule in kinds.items() for scale in (0.1, 10)}

# %% [markdown]
# *See:* on the left the two lines part: the weight with small gradients is driven to zero, the other stays near 1. On
# the right they lie on each other.

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
for ax, name in zip(axes, kinds, strict=True):
    ax.plot(curves[name, 0.1], label="gradients of size 0.1")
    ax.plot(curves[name, 10], "--", label="gradients of size 10")
    ax.set(title=name, xlabel="step", ylim=(-0.1, 1.1))
axes[0].set_ylabel("mean weight (started at 1)")
axes[0].legend()
plots.show(fig, alt="Mean weight over steps. Adam with L2: small gradients, it shrinks to zero; large ones, hardly. "
           "AdamW: both lines coincide.")
small, large = curves["AdamW", 0.1], curves["AdamW", 10]
lesson.record("adamw-shrink-spread", max(abs(a - b) for a, b in zip(small, large, strict=True)))
lesson.record("adam-l2-shrink-spread", curves["Adam + L2", 10][-1] - curves["Adam + L2", 0.1][-1])

# %% [markdown]
# ### Exercise adamw_update — One step of AdamW · ★★☆ · 10 minutes
#
# Return the new weight, mean and mean square as *new* tensors: the caller keeps the old ones. `step` counts from 1.

# %% tags=["exercise"]
def adamw_update(param, grad, mean, square, step, lr, beta1, beta2, eps, weight_decay):
    """One AdamW step. All tensors have one shape; mean and square are the running averages before this step.

    Returns (new param, new mean, new square); changes none of its arguments.
    """
    ### BEGIN SOLUTION
    mean = beta1 * mean + (1 - beta1) * grad
    square = beta2 * square + (1 - beta2) * grad**2
    mean_hat = mean / (1 - beta1**step)
    square_hat = square / (1 - beta2**step)
    param = (1 - lr * weight_decay) * param - lr * mean_hat / (square_hat.sqrt() + eps)
    return param, mean, square
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("adamw_update", adamw_update)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary> Update the two averages first, from the gradient alone: the decay is not part of
# it. </details>
#
# <details><summary>Hint 2</summary> Divide each average by 1 − beta**step for the step's direction, but return the
# averages without this correction. </details>
#
# <details><summary>Hint 3</summary> <code>param * (1 - lr * weight_decay) - lr * mean_hat / (square_hat.sqrt() +
# eps)</code>; an operator such as <code>*=</code> or <code>.mul_()</code> would change the caller's tensor.
# </details>

# %% [markdown]
# ## 8 · How low can the loss go?
#
# On real text nobody knows. A loss of $2.4$ may be excellent or poor. So take a source that we know exactly, a
# **Markov chain**: each token depends on the one before it, by a table $T$. For it the answer is a number.
#
# **Why there is a floor.** Let $P_i = P(x_i \mid \tilde x,\ i \in S)$, the true distribution of the hidden token
# given all that the model sees. For a model $q$, the expected loss at a scored position splits in two (add and
# subtract $\log P_i$):
#
# $$
# \mathbb E\left[-\log q_i(x_i)\right] = \underbrace{\mathbb E\left[-\log P_i(x_i)\right]}_{\text{the floor}} +
# \underbrace{\mathbb E\left[\mathrm{KL}(P_i \,\|\, q_i)\right]}_{\ge\, 0}
# $$
#
# No size and no training gets a model below the first term, on average. One that does has seen the answer.
#
# BERT's recipe, which the rest of this lesson uses and lesson @masking_dataset examines, scores 15 % of the positions.
# It shows 80 % of the scored ones as `[MASK]`, 10 % as a token drawn at random, and leaves 10 % as they are. So a
# scored position may show an ordinary token.
#
# The condition $i \in S$ looks pedantic, and it decides everything: the loss averages over scored positions, and
# *that a position is scored is itself news about its token*. An ordinary token at an unscored position is certain. An
# ordinary token at a scored position may have been put there at random.

# %%
V, LENGTH = 16, 32
MASK = V  # the id of [MASK]: one above the ordinary tokens
transition = entropy_floor.random_transition(V, concentration=0.3, generator=torch.Generator().manual_seed(1))
source = entropy_floor.MarkovSource(transition)


def corrupt(ids, generator, **rates):
    """80/10/10 masking at 15 %; a random replacement is any of the V ordinary tokens."""
    return mask_tokens(ids, special_tokens_mask=None, vocab_size=V + 1, mask_token_id=MASK, special_ids=[MASK],
                       generator=generator, **rates)


sample = source.sample(1, 12, torch.Generator().manual_seed(3))
inputs, labels = corrupt(sample, torch.Generator().manual_seed(8))
print("text  ", sample[0].tolist(), "\ninputs", inputs[0].tolist(), f"   ({MASK} is [MASK])")

# %% [markdown]
# ### The picture
#
# The text $x_1, x_2, \dots$ is a hidden chain. Below each token hangs what the model sees of it, $\tilde x_i$. To
# know $x_i$, collect three messages: what the left says (**forward**), what the right says (**backward**), and what
# is seen at $i$ itself.

# %%
fig, ax = plt.subplots(figsize=(7, 2.8))
centre = {"ha": "center", "va": "center"}
grey = {"arrowstyle": "->", "color": "0.4"}
for n in range(5):
    colour = "C1" if n == 2 else "C0"
    ax.text(n, 1, f"$x_{n + 1}$", **centre, bbox={"boxstyle": "circle", "fc": "white", "ec": colour, "lw": 2})
    ax.text(n, 0, rf"$\tilde x_{n + 1}$", **centre, bbox={"boxstyle": "square", "fc": "0.9", "ec": colour})
    ax.annotate("", (n, 0.2), (n, 0.74), arrowprops=grey)
    if n:
        ax.annotate("", (n - 0.24, 1), (n - 0.76, 1), arrowprops=grey)
        ax.text(n - 0.5, 1.08, "$T$", ha="center", color="0.4")
ax.annotate("", (1.9, 1.45), (0, 1.45), arrowprops={"arrowstyle": "->", "color": "C2", "lw": 3})
ax.annotate("", (2.1, 1.45), (4, 1.45), arrowprops={"arrowstyle": "->", "color": "C4", "lw": 3})
ax.text(0.9, 1.55, "forward: what the left says", ha="center", color="C2")
ax.text(3.1, 1.55, "backward: what the right says", ha="center", color="C4")
ax.text(2.12, 0.45, "emission\nif selected", va="center", color="C1", fontsize=9)
ax.set(xlim=(-0.4, 4.4), ylim=(-0.3, 1.8))
ax.axis("off")
plots.show(fig, alt="Five hidden tokens in a chain, each with its visible input below. A forward arrow from the left "
           "and a backward arrow from the right meet at the third, scored token.")

# %% [markdown]
# ### The emission: what is seen, given the token
#
# A token $v$ that was **selected** is shown as `[MASK]` with probability 0.8, as itself with 0.1, as each of the $V$
# tokens at random with $0.1 / V$. One that was **not selected** is shown as itself. At position $i$ we know that it
# was selected. At any other position we do not, and take the mixture, 15 % to 85 %.

# %%
def emissions(seen, size, rate=0.15, mask=0.8, random=0.1):
    """P(seen | token = v) for all v: [length, V] if selected, and for the mixture over selected and not."""
    same = F.one_hot(seen, size + 1)[:, :size].double()
    is_mask = (seen == size)[:, None]
    selected = torch.where(is_mask, mask, (1 - mask - random) * same + random / size)
    return selected, rate * selected + (1 - rate) * same


# %% [markdown]
# ### Forward and backward
#
# Call $\alpha_i(v) \propto P(x_i = v,\ \tilde x_1 \dots \tilde x_{i-1})$ and $\beta_i(v) \propto P(\tilde x_{i+1}
# \dots \tilde x_N \mid x_i = v)$. Given $x_i$, left and right are independent: that is what a Markov chain is. So
# each message comes from its neighbour, by the mixture emission $e$ and the table $T$, and the answer is a product of
# three:
#
# $$
# \alpha_{i+1} = (\alpha_i \cdot e_i)\, T \qquad
# \beta_{i-1} = T\, (\beta_i \cdot e_i) \qquad
# P(x_i \mid \tilde x,\ i \in S) \;\propto\; \alpha_i \cdot e^{\text{selected}}_i \cdot \beta_i
# $$
#
# Enumeration costs $V^N$ terms; this costs $N V^2$.

# %%
def posterior_by_hand(seen, table, initial, scored=True):
    """P(x_i | inputs, i scored) for one row: [length] ids -> [length, V]. scored=False leaves out the news."""
    selected, mixture = emissions(seen, len(table))
    alpha, beta = [initial], [torch.ones_like(initial)]
    for e in mixture[:-1]:
        message = (alpha[-1] * e) @ table
        alpha.append(message / message.sum())  # rescaled, or a long row would underflow
    for e in mixture.flip(0)[:-1]:
        message = table @ (beta[-1] * e)
        beta.append(message / message.sum())
    joint = torch.stack(alpha) * (selected if scored else mixture) * torch.stack(beta[::-1])
    return joint / joint.sum(-1, keepdim=True)


# %% [markdown]
# ### Is it right? Enumerate
#
# A chain of 3 tokens and 4 positions is small enough to write down every world: each text (81), each set of selected
# positions (16). Keep the worlds in which position $i$ is selected, weigh each by its probability of showing these
# inputs, and count.

# %%
def enumerate_posterior(seen, table, initial, i, rate=0.15, mask=0.8, random=0.1):
    """P(x_i | inputs, i selected), by summing over every text and every selection."""
    size, total = len(table), torch.zeros(len(table), dtype=torch.float64)
    for text in itertools.product(range(size), repeat=len(seen)):
        chain = initial[text[0]].item() * math.prod(table[a, b].item() for a, b in itertools.pairwise(text))
        for chosen in itertools.product((False, True), repeat=len(seen)):
            if not chosen[i]:
                continue
            p = chain
            for token, shown, is_chosen in zip(text, seen, chosen, strict=True):
                kept = (1 - mask - random) * (shown == token)
                if_chosen = mask if shown == size else kept + random / size
                p *= rate * if_chosen if is_chosen else (1 - rate) * (shown == token)
            total[text[i]] += p
    return total / total.sum()


# %%
small = entropy_floor.MarkovSource(entropy_floor.random_transition(3, concentration=0.5, generator=generator))
tiny_inputs = torch.tensor([[0, 3, 3, 2], [1, 1, 3, 0], [3, 3, 3, 3], [2, 0, 1, 1]])  # 3 is [MASK]
enumerated = torch.stack([
    torch.stack([enumerate_posterior(row.tolist(), small.transition, small.initial, i) for i in range(4)])
    for row in tiny_inputs
])
hand = torch.stack([posterior_by_hand(row, small.transition, small.initial) for row in tiny_inputs])
lesson.record("floor-enumeration-error", (hand - enumerated).abs().max().item())
lesson.record("floor-package-error", (small.masked_posterior(tiny_inputs) - enumerated).abs().max().item())

# %% [markdown]
# `MarkovSource.masked_posterior` is the same for a whole batch, and `floor_losses` looks up $-\log P_i(x_i)$ at each
# scored position.
#
# ### The floor against masks per window
#
# How low the loss can go depends on what is left to read. Move how many of the $32$ positions are scored, and how much
# a token says about its neighbours: rows of $T$ that are drawn with a small *concentration* name the next token nearly
# for sure, with a large one every token is about as likely as any other. The sliders need a running notebook and obey
# the arrow keys; the picture is the one at their start.


# %%
def lowest_losses(chain, texts, rate, **recipe):
    """(inputs, where they are scored, lowest expected loss at each position); the same dice at every rate."""
    seen, wanted = corrupt(texts, torch.Generator().manual_seed(58), mask_rate=rate, **recipe)
    posterior = chain.masked_posterior(seen, mask_rate=rate, **recipe)
    return seen, wanted != -100, torch.special.entr(posterior).sum(-1)  # entr: -p log p


ALL_MASKED, NUMBERS = {"mask_prob": 1.0, "random_prob": 0.0}, (1, 3, 5, 8, 12, 16, 20, 24, 28, 32)


@functools.cache  # it does not depend on the slider of masks, so a move of that one answers at once
def floor_curves(concentration):
    """(chain, windows of it, {recipe: its floor for each of NUMBERS}), on average over windows and masks."""
    table = entropy_floor.random_transition(
        V, concentration=concentration, generator=torch.Generator().manual_seed(1)
    )
    chain = entropy_floor.MarkovSource(table)
    windows, curves = chain.sample(256, LENGTH, torch.Generator().manual_seed(5)), {}
    for name, recipe in (("100/0/0", ALL_MASKED), ("80/10/10", {})):
        found = [lowest_losses(chain, windows, number / LENGTH, **recipe) for number in NUMBERS]
        curves[name] = [float(lowest[where].mean()) for _, where, lowest in found]
    return chain, windows, curves


# %%
def draw_window(ax, seen, where, lowest):
    """One window: a bar at each scored position as high as its lowest expected loss, below it what is seen."""
    at = where.nonzero().squeeze(1).tolist()
    ax.bar(at, lowest[at].tolist(), color="C1", hatch="//", edgecolor="white")
    ax.set_xticks(range(LENGTH), ["M" if token == MASK else token for token in seen.tolist()], fontsize=7)
    ax.set(title="one window at 100/0/0: the floor at each scored position", xlim=(-0.6, LENGTH - 0.4))
    ax.set_xlabel("what is seen at each position: a token's id, or M for [MASK]")
    ax.grid(axis="x", visible=False)


# %%
def floor_figure(masks, concentration):
    """Left: the floor against scored positions a window, for two recipes. Right: where in a window it comes from."""
    chain, windows, curves = floor_curves(concentration)
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True, width_ratios=[1, 1.4])
    for (name, curve), style in zip(curves.items(), ("s-C1", "o--C0"), strict=True):
        left.plot(NUMBERS, curve, style, label=f"floor at {name}", markersize=4)
    for ax in (left, right):
        unigram = float(torch.special.entr(chain.initial).sum())
        ax.axhline(unigram, color="black", linestyle=":", label="unigram")
    left.axvline(masks, color="0.4", linewidth=1, label="the slider")
    left.set(xlabel=f"scored positions a window of {LENGTH}, on average", ylabel="loss (nats)", ylim=(0, 2.9))
    left.legend(fontsize=9, loc="lower right")
    seen, where, lowest = lowest_losses(chain, windows[:1], masks / LENGTH, **ALL_MASKED)
    draw_window(right, seen[0], where[0], lowest[0])
    return fig


# %%
live_picture(
    floor_figure,
    alt="Left: the lowest possible loss rises with the number of scored positions in a window of 32, from what two "
    "seen neighbours leave open up to the dotted unigram line. Right: one window; a bar at each scored position, low "
    "between two seen neighbours, high inside a long gap.",
    masks=Slider("scored positions a window, of 32", (1, 2, 3, 5, 8, 12, 16, 20, 24, 28, 32), start=8),
    concentration=Slider("concentration (small: tokens tell their neighbours)", (0.1, 0.3, 1, 3, 30), start=0.3),
)

# %% [markdown]
# *See:* few masks, and nearly each scored position has two seen neighbours: that is as low as it gets, and it is not
# zero. More masks, and the gaps grow. Inside a long one nothing is near, and the floor comes up to the entropy of the
# unigram, the dotted line, where a model that reads nothing stands. (What is seen can also leave more open than that,
# at one position; on average it cannot.) So a loss is neither good nor poor without its mask rate. At a large
# concentration the curve is flat: where tokens say nothing about each other, there is nothing to learn but frequencies.
# Under 80/10/10 the floor is lower, since some of the scored tokens are left as they are.
#
# ### The other reading is not a bound
#
# Leave out "$i$ is scored" and compute $P(x_i \mid \tilde x)$. It sounds like the same thing. Look at a scored
# position where an ordinary token is seen. The other reading trusts it, because most ordinary tokens are unselected.
# The scored reading asks: was it kept, or drawn at random? *See:* the bars differ where the token seen does not suit
# its neighbours.

# %%
held_out = torch.Generator().manual_seed(99)
texts = source.sample(2048, LENGTH, held_out)
inputs, labels = corrupt(texts, held_out)
scored = labels != -100
right = source.masked_posterior(inputs)
other = source.masked_posterior(inputs, scored=False)
assert torch.allclose(right[0], posterior_by_hand(inputs[0], source.transition, source.initial), atol=1e-12)

# %%
changed = (scored & (inputs != MASK) & (inputs != labels)).nonzero()[1].tolist()
fig, ax = plt.subplots(figsize=(7, 2.8))
ax.bar(torch.arange(V) - 0.2, right[tuple(changed)], width=0.4, label="given that i is scored")
ax.bar(torch.arange(V) + 0.2, other[tuple(changed)], width=0.4, label="the other reading")
truth, seen = labels[tuple(changed)].item(), inputs[tuple(changed)].item()
ax.set(xlabel=f"token id (true: {truth}; seen, drawn at random: {seen})", ylabel="probability")
ax.legend()
plots.show(fig, alt="Two posteriors at a randomly replaced token. The other reading puts its mass on the token that is "
           "seen, the scored one on tokens that suit the neighbours.")

# %% [markdown]
# Now the losses of the two, on the same scored positions. They share their luck, so compare them in pairs: the
# difference at each position, and an interval for its mean. Positions of one text are not independent, so the
# bootstrap redraws whole texts.

# %%
rows = scored.nonzero()[:, 0]  # the text that each scored position belongs to


def interval(differences, draws=1000):
    """Mean of paired differences, and its 95 % interval by redrawing texts with replacement."""
    n = len(inputs)
    total = torch.zeros(n, dtype=torch.float64).index_add(0, rows, differences)
    count = torch.bincount(rows, minlength=n).double()
    picked = torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(4))
    means = total[picked].sum(1) / count[picked].sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return differences.mean().item(), low, high


def losses_of(distribution):
    return -distribution[scored].gather(-1, labels[scored][:, None]).squeeze(-1).log()


floor_losses, other_losses = source.floor_losses(inputs, labels), losses_of(other)
assert torch.allclose(floor_losses, losses_of(right))
mean, low, high = interval(floor_losses - other_losses)
lesson.record("floor-nats", floor_losses.mean().item())
lesson.record("floor-other-reading-nats", other_losses.mean().item())
lesson.record("floor-honest-dips-below-other", high)
print(f"scored − other reading: {mean:.4f} nats, 95 % interval [{low:.4f}, {high:.4f}], {len(rows)} positions")

# %% [markdown]
# The scored posterior uses the inputs and nothing else: it is an honest model. It loses {{floor-nats}} nats, *below*
# the {{floor-other-reading-nats}} nats of the other reading. So the other reading is not a floor. Had we taken it for
# one, an honest model would have been accused of cheating.
#
# ### Exercise scored_posterior — The scored posterior · ★★★ · 12 minutes
#
# The neighbours have spoken: `prior` is the distribution of each token given the rest. Now take in what is seen at
# the position itself, knowing that it is scored. One argument is not needed; which one, and why?

# %% tags=["exercise"]
def scored_posterior(prior, seen, mask_rate, mask_prob, random_prob):
    """P(x | rest, seen, scored) by Bayes' rule.

    prior: [n, V] distributions; seen: [n] ids, V stands for [MASK]. A selected token becomes [MASK] with
    mask_prob, one of all V tokens uniformly with random_prob, and stays itself otherwise.
    Returns [n, V], each row summing to 1.
    """
    ### BEGIN SOLUTION
    size = prior.shape[-1]
    same = F.one_hot(seen, size + 1)[:, :size].to(prior.dtype)
    shown = (1 - mask_prob - random_prob) * same + random_prob / size
    emission = torch.where((seen == size)[:, None], mask_prob, shown)
    joint = prior * emission
    return joint / joint.sum(-1, keepdim=True)
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("scored_posterior", scored_posterior)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary> Bayes: posterior ∝ prior × P(seen | token, selected); then divide each row by its
# sum. </details>
#
# <details><summary>Hint 2</summary> If [MASK] is seen, the emission is the same for every token. Otherwise it is
# random_prob / V for every token, and 1 − mask_prob − random_prob more for the token that is seen. </details>
#
# <details><summary>Hint 3</summary> mask_rate says how likely a position is to be selected. You know already that it
# was. </details>

# %% [markdown]
# ## 9 · A trained model against the floor
#
# How near does a real encoder come? Below: the package's Transformer (lesson @mlm_pretraining opens it), two layers of
# width 64, on fresh texts of the source, never the same twice. Warm-up, then a linear decay to zero; gradients clipped
# to norm 1.
#
# First the baselines, since a loss alone says nothing:
# - **unigram**: the token's frequency, whatever is seen;
# - **left neighbour**: a table of counts, given what is seen on the left;
# - **both neighbours**: a table of counts, given left, the position itself and right.

# %%
def context_number(seen, offsets):
    """One number for what is seen at i + offset, for each offset; outside the row an extra symbol. [n, length]"""
    padded = F.pad(seen, (1, 1), value=V + 1)
    number = torch.zeros_like(seen)
    for offset in offsets:
        number = number * (V + 2) + padded[:, 1 + offset : 1 + offset + seen.shape[1]]
    return number


def count_baseline(offsets, train_inputs, train_labels):
    """Losses at the held-out scored positions of a table P(label | context), counted with a little smoothing."""
    where = train_labels != -100
    counts = torch.full(((V + 2) ** len(offsets) * V,), 0.1, dtype=torch.float64)
    index = context_number(train_inputs, offsets)[where] * V + train_labels[where]
    counts.index_add_(0, index, torch.ones(len(index), dtype=torch.float64))
    table = counts.view(-1, V)
    table = table / table.sum(-1, keepdim=True)
    return losses_of(table[context_number(inputs, offsets)])


# %%
fresh = torch.Generator().manual_seed(2)
train_texts = source.sample(20_000, LENGTH, fresh)
train_batch = corrupt(train_texts, fresh)
baselines = {
    "unigram": losses_of(source.initial.expand(len(inputs), LENGTH, V)),
    "left neighbour": count_baseline((-1,), *train_batch),
    "both neighbours": count_baseline((-1, 0, 1), *train_batch),
}
lesson.record("baseline-unigram-nats", baselines["unigram"].mean().item())
lesson.record("baseline-left-nats", baselines["left neighbour"].mean().item())
lesson.record("baseline-neighbours-nats", baselines["both neighbours"].mean().item())

# %%
from sslcourse.models.encoder import EncoderConfig, EncoderForMaskedLM

STEPS, ROWS, PEAK = lesson.choose(quick=300, full=2000), 64, 6e-3
nothing_special = dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"])
torch.manual_seed(0)
model = EncoderForMaskedLM(
    EncoderConfig(vocab_size=V + 1, hidden_size=64, intermediate_size=128, num_hidden_layers=2, **nothing_special)
)
optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98), weight_decay=0.01)
warm_up = STEPS // 20
schedule = torch.optim.lr_scheduler.LambdaLR(
    optimiser, lambda step: min((step + 1) / warm_up, (STEPS - step) / (STEPS - warm_up))
)
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")


# %%
def train_step():
    """A fresh batch, the masked loss, one clipped AdamW step. Returns the loss in nats."""
    seen, targets = corrupt(source.sample(ROWS, LENGTH, fresh), fresh)
    total, count = model.masked_loss(seen, targets)
    loss = total / count
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    schedule.step()
    return loss.item()


history = [train_step() for _ in range(STEPS)]

# %%
@torch.no_grad()
def model_losses(seen):
    """The model's loss at each held-out scored position, in reading order, in float64."""
    return losses_of(model(seen).logits.double().softmax(-1))


honest = model_losses(inputs)
gap, low, high = interval(honest - floor_losses)
lesson.record("model-nats", honest.mean().item())
lesson.record("model-relative-gap", gap / floor_losses.mean().item())
lesson.record("model-not-below-floor", high)
print(f"model − floor: {gap:.4f} nats, 95 % interval [{low:.4f}, {high:.4f}]")
print(f"that is {gap / floor_losses.mean():.1%} of the floor")

# %% [markdown]
# *See:* each row knows more than the one above it, and the last bar is the floor, where knowing more is impossible.
# The curve on the right falls toward the floor (dashed) and does not cross it, except for the noise of single
# batches.

# %%
fig, (left, curve) = plt.subplots(1, 2, figsize=(9, 3.2))
bars = {**{name: loss.mean().item() for name, loss in baselines.items()}, "model": honest.mean().item(),
        "floor": floor_losses.mean().item()}
left.barh(list(bars)[::-1], list(bars.values())[::-1], color=["C2", "C1", "C0", "C0", "C0"])
left.bar_label(left.containers[0], fmt="%.2f", padding=3)
left.set(xlabel="held-out loss (nats)", xlim=(0, 3))
left.axvline(bars["floor"], color="C2", linestyle="--", linewidth=1)
smooth = torch.tensor(history).unfold(0, 20, 20).mean(1)
curve.plot(torch.arange(len(smooth)) * 20 + 10, smooth, color="C1", label="training loss, mean of 20 steps")
curve.axhline(bars["floor"], color="C2", linestyle="--", label="floor")
curve.set(xlabel="step", ylabel="loss (nats)")
curve.legend()
plots.show(fig, alt="Left: held-out losses falling from unigram over left neighbour, both neighbours and model to the "
           "floor. Right: training loss falling toward the dashed floor.")

# %% [markdown]
# In the stored run the unigram loses {{baseline-unigram-nats}} nats, the left neighbour {{baseline-left-nats}}, both
# neighbours {{baseline-neighbours-nats}}, the model {{model-nats}}, and the floor is {{floor-nats}}. The model is
# {{model-relative-gap}} above the floor, relative to it. That is what "nearly as good as possible" looks like, and it
# can be said here because the source is known.

# %% [markdown]
# And the other reading of section 8? The trained model is honest too, and it loses less than that "bound" as well:

# %%
mean, low, high = interval(honest - other_losses)
lesson.record("model-dips-below-other", high)
print(f"model − other reading: {mean:.4f} nats, 95 % interval [{low:.4f}, {high:.4f}]")

# %% [markdown]
# ## 10 · A leak dips below
#
# The floor is a bound for honest models only, so it is an alarm. Let us plant a leak of a common kind: a fast path in
# the data loader returns some rows without hiding anything, while their labels are still scored. No error, no
# warning, a nice loss. We score the same model on the same positions, with a growing share of leaky rows.

# %%
def leaky(share):
    """The inputs with this share of the rows left uncorrupted, spread evenly over the sample."""
    leaks = (torch.arange(len(texts)) * share % 1) >= 1 - share
    return torch.where(leaks[:, None], texts, inputs)


shares = [0, 1 / 32, 1 / 16, 1 / 8, 1 / 4]
leaks = {share: interval(model_losses(leaky(share)) - floor_losses) for share in shares}
lesson.record("leak-below-floor", leaks[1 / 4][2])
exact = interval(losses_of(source.masked_posterior(leaky(1 / 4))) - floor_losses)
lesson.record("leak-exact-below-floor", exact[2])

# %% [markdown]
# *See:* an honest model's point lies above the dashed line; a point below it has seen answers. The bars are 95 %
# intervals. A small leak only uses up the model's own gap to the floor, and hides; a larger one shows. So train close
# to the floor before you trust the alarm.

# %%
fig, ax = plt.subplots(figsize=(6, 3.2))
middle, low, high = torch.tensor(list(leaks.values())).T
percent = [100 * share for share in shares]
ax.errorbar(percent, middle, yerr=torch.stack([middle - low, high - middle]), fmt="o-", color="C1", capsize=3)
ax.axhline(0, color="C2", linestyle="--", label="floor")
ax.set(xlabel="rows returned uncorrupted (%)", ylabel="model − floor (nats)")
ax.legend()
plots.show(fig, alt="Model minus floor by share of leaky rows: above zero without a leak, well below it at 25 %.")

# %% [markdown]
# Would you have noticed without the floor? At one row in four the model loses less than before and beats
# every baseline: it looks like progress. **A loss that is too good is a bug until the floor says otherwise.** On real
# text the floor is unknown; then run the same pipeline on a Markov source first.

# %% [markdown]
# ## 11 · The same number in other units
#
# - **Nats** are natural logarithms: what the code computes.
# - **Perplexity** is $e^{\text{nats}}$: the model is as unsure as among that many equally likely tokens.
# - **Bits per token** are nats $/ \ln 2$.
# - **Bits per byte** divide the total bits by the bytes of the *scored* text. A tokenizer with long tokens has fewer
#   and harder ones, so losses per token of two tokenizers cannot be compared; per byte they can.

# %%
bytes_per_token = 2.0  # suppose that our 16 tokens were written as two letters each
for name, nats in {"uniform": math.log(V), **bars}.items():
    perplexity, bits = masked_lm.perplexity(nats), masked_lm.bits_per_token(nats)
    per_byte = masked_lm.bits_per_byte(nats, bytes_per_token)
    print(f"{name:<16}{nats:.3f} nats  perplexity {perplexity:5.2f}  {bits:.3f} bits/token  {per_byte:.3f} bits/byte")
lesson.record("uniform-bits-error", abs(masked_lm.bits_per_token(math.log(V)) - 4))

# %% [markdown]
# Sixteen equally likely tokens take 4 bits: check. One warning: a *masked* loss conditions on both sides, so its bits
# are not the size of a compressed file, as a next-token model's are. Compare masked losses with masked losses, at the
# same mask rate.
#
# ### Exercise bits_per_byte — Bits per byte, over unequal batches · ★★☆ · 6 minutes
#
# An evaluation loop gives you each batch's *mean* loss. Section 6 said what not to do with it.

# %% tags=["exercise"]
def bits_per_byte(batch_means, counts, n_bytes):
    """Bits per byte over all batches.

    batch_means: mean loss of each batch, in nats per scored token; counts: scored tokens of each batch;
    n_bytes: bytes of the scored text of each batch. Three lists of one length; returns a float.
    """
    ### BEGIN SOLUTION
    nats = sum(mean * count for mean, count in zip(batch_means, counts, strict=True))
    return nats / math.log(2) / sum(n_bytes)
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("bits_per_byte", bits_per_byte)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary> Undo the means first: mean × count is the batch's total in nats. </details>
#
# <details><summary>Hint 2</summary> Total nats → bits (divide by ln 2) → divide by the total number of bytes, once.
# </details>

# %% [markdown]
# ## Check yourself
#
# Choose before you unfold. Every answer says what speaks for it or against it.
#
# {{quiz}}

# %% [markdown]
# ## What we measured

# %%
lesson.claims()

# %% [markdown]
# ## What changed, and why it matters
#
# The loss is one log-sum-exp and one look-up, over the masked set, given the corrupted input. Its gradient is *what
# you said minus what was there*. AdamW's decay must not pass through Adam's division. And a loss is a number without
# meaning until it stands between a dumb baseline and a floor. Lesson @masking_dataset makes the data; lesson
# @mlm_pretraining spends this gradient.
#
# ## Where it comes from
#
# - The masked loss and 80/10/10: Devlin, Chang, Lee, Toutanova 2019, *BERT*, section 3.1, [arXiv
#   1810.04805](https://arxiv.org/abs/1810.04805).
# - Adam: Kingma, Ba 2015, [arXiv 1412.6980](https://arxiv.org/abs/1412.6980). AdamW: Loshchilov, Hutter 2019,
#   *Decoupled Weight Decay Regularization*, [arXiv 1711.05101](https://arxiv.org/abs/1711.05101).
# - Forward–backward: Rabiner 1989, *A tutorial on hidden Markov models*, section III,
#   [doi 10.1109/5.18626](https://doi.org/10.1109/5.18626).
# - Why no model beats the entropy: Cover, Thomas 2006, *Elements of Information Theory*, chapter 2,
#   [doi 10.1002/047174882X](https://doi.org/10.1002/047174882X).
# - The paired bootstrap: Efron, Tibshirani 1993, *An Introduction to the Bootstrap*,
#   [doi 10.1201/9780429246593](https://doi.org/10.1201/9780429246593).
# - The library's versions:
#   [cross_entropy](https://pytorch.org/docs/stable/generated/torch.nn.functional.cross_entropy.html),
#   [AdamW](https://pytorch.org/docs/stable/generated/torch.optim.AdamW.html).
