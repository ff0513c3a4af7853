# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   coursekit:
#     budget:
#       quick: {minutes: 1.0, memory_mb: 2500}
#       full: {minutes: 12.0, memory_mb: 4500}
# ---

# %% [markdown]
# # Pretraining a masked language model from scratch
#
# **In this lesson you train an encoder on real text, on your own CPU, in five minutes, and you can say why it works.**
#
# *Time*: about 45 minutes of reading and exercises; the machine trains for about eight of them.
#
# *You need to know*: the loss (lesson @loss_derivation), masking and packing (lesson @masking_dataset), what a
# Transformer layer is.
#
# *You will be able to*
# - write a training epoch and an evaluation that count the right positions;
# - say what a loss in nats is worth, by the dumb baselines beside it;
# - choose a learning rate and a schedule, and show that they matter more than most things;
# - stop early, keep the best weights, resume an interrupted run to the bit;
# - open what you trained in stock `transformers`, with nothing of this course installed.

# %% tags=["parameters"]
profile = "auto"

# %%
from coursekit import start

lesson = start("mlm_pretraining", profile)

# %%
import math
import re
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from sslcourse.data import corpus, tokenizer as wordpiece
from sslcourse.data.ignored import IGNORE
from sslcourse.models.encoder import EncoderConfig, EncoderForMaskedLM
from sslcourse.objectives.masked_lm import bits_per_byte, perplexity
from sslcourse.objectives.masking import MaskedLMDataset
from sslcourse.train.loop import pretrain
from sslcourse.train.recipe import Recipe
from sslcourse.train.step import evaluate, train_epoch
from sslcourse.train.token_rows import Tape, held_out_rows
from coursekit import Choice, Slider, Text, check, live_picture, plots
from sslcourse.studies import pictures

scratch = Path(tempfile.mkdtemp(prefix="lesson03-"))

# %% [markdown]
# ## What is there to learn from?
#
# The factbook again, split by country: the model trains on some countries and is asked about others. In the `quick`
# profile, which CI runs, we take every eighth passage, so that everything below happens in seconds.

# %%
stride = lesson.choose(quick=8, full=1)
splits = {name: [row["text"] for row in rows][::stride] for name, rows in corpus.load_splits().items()}
tokenizer = wordpiece.train(splits["train"], vocab_size=4096)
documents = {name: wordpiece.encode(tokenizer, texts) for name, texts in splits.items()}
for name, encoded in documents.items():
    print(f"{name:10s} {len(encoded):6,} passages {sum(map(len, encoded)):9,} tokens")

# %% [markdown]
# The held-out set is packed into rows of 128, and its masks are drawn **once**: 15 % of the ordinary tokens are scored
# (`[CLS]` and `[SEP]` never are), 80/10/10, with a fixed seed. Unless the text says otherwise, every held-out loss in
# this lesson is a mean over these same positions, so numbers can be compared. (The neighbour baseline leaves out the
# two ends of each row.)

# %%
held_out = held_out_rows(documents["validation"], tokenizer, length=128)
scored = held_out.labels != IGNORE
print(f"{len(held_out):,} rows, {int(scored.sum()):,} scored positions, {scored.float().mean():.1%} of all")

# %% [markdown]
# ## How good is good? Two baselines that know nothing
#
# A loss of $3$ says little by itself. So before any network, we ask what counting alone can do.
#
# The **unigram** baseline ignores the context: it gives every token its frequency in the training text. A model that
# has learnt nothing but frequencies sits there. It is called the *unigram plateau*, and networks like to rest
# on it.

# %%
train_tape = Tape(documents["train"], tokenizer, 128).tokens.tolist()
vocab = len(tokenizer)
unigram = torch.bincount(torch.tensor(train_tape), minlength=vocab).double() + 0.1  # 0.1: no token is impossible
unigram /= unigram.sum()

targets = held_out.labels[scored]
unigram_loss = float(-unigram[targets].log().mean())
print(f"uniform over {vocab} tokens: {math.log(vocab):.2f} nats; unigram: {unigram_loss:.2f} nats")

# %% [markdown]
# The **neighbour** baseline looks at the token on the left and the token on the right, as far as they are visible, and
# counts what stood between them in the training text. Pairs that never occurred are handled by mixing four
# estimates: both neighbours, left alone, right alone, frequency.

# %%
both, left, right = Counter(), Counter(), Counter()
between, after, before = Counter(), Counter(), Counter()
for a, b, c in zip(train_tape, train_tape[1:], train_tape[2:]):
    both[a, b, c] += 1
    between[a, c] += 1
    left[a, b] += 1
    after[a] += 1
    right[b, c] += 1
    before[c] += 1


def neighbour_probability(a, b, c, weights=(0.5, 0.25, 0.2, 0.05)):
    """P(b stands between a and c), a mixture of four counts."""
    estimates = (
        both[a, b, c] / between[a, c] if between[a, c] else 0.0,
        left[a, b] / after[a] if after[a] else 0.0,
        right[b, c] / before[c] if before[c] else 0.0,
        float(unigram[b]),
    )
    known = (between[a, c] > 0, after[a] > 0, before[c] > 0, True)
    total = sum(weight for weight, is_known in zip(weights, known) if is_known)
    return sum(weight * p for weight, p, is_known in zip(weights, estimates, known) if is_known) / total


# %%
def neighbour_loss(rows):
    """Mean -log P over the scored positions that have a neighbour on both sides."""
    losses = []
    for inputs, labels in zip(rows.inputs.tolist(), rows.labels.tolist()):
        for i in range(1, len(inputs) - 1):
            if labels[i] != IGNORE:
                losses.append(-math.log(neighbour_probability(inputs[i - 1], labels[i], inputs[i + 1])))
    return sum(losses) / len(losses)


ngram_loss = neighbour_loss(held_out)
if lesson.profile != "quick":
    lesson.record("unigram-loss", unigram_loss)
    lesson.record("neighbour-loss", ngram_loss)
print(f"two neighbours: {ngram_loss:.2f} nats")

# %% [markdown]
# Those are the marks to beat: {{unigram-loss}} nats for frequencies and {{neighbour-loss}} for two neighbours. A
# Transformer that does not pass the second has learnt nothing that counting could not.

# %% [markdown]
# ## One epoch, right this time
#
# The article's `train_epoch` has the right skeleton: batch, loss, backward, step. Three details are wrong in it, and
# none of them raises an error:
#
# 1. Nothing is masked, so the model is asked to copy what it sees.
# 2. The epoch's loss is a mean of batch means. Batches hold unequal numbers of scored positions, so it is not the mean.
# 3. There is no clipping. One odd batch early on, while Adam's averages are young, can throw a run away.
#
# Here is the whole of it, mended.


# %%
def my_train_epoch(model, dataset, batch_size, optimizer, generator):
    model.train()
    loss_sum, count = 0.0, 0
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=True, generator=generator)
    for batch in loader:
        scored_here = int((batch["labels"] != IGNORE).sum())
        if scored_here == 0:
            continue  # nothing was asked, so there is nothing to learn
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss_sum += loss.item() * scored_here  # the sum, not the mean
        count += scored_here
    return loss_sum / count


# %% [markdown]
# The package's `train_epoch` is the same thing with its errors spelt out. Given the same seed the two must agree to
# the last bit, so we compare with `==`, not with a tolerance.


# %%
def first_epoch(train_function, seed=0):
    torch.manual_seed(seed)
    model = EncoderForMaskedLM(EncoderConfig(vocab_size=vocab))
    dataset = MaskedLMDataset(splits["train"][:96], tokenizer, max_length=64, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return train_function(model, dataset, 16, optimizer, generator=torch.Generator().manual_seed(seed))


mine, package = first_epoch(my_train_epoch), first_epoch(train_epoch)
lesson.record("train-epoch-difference", abs(mine - package))
print(f"mine {mine:.6f}, package {package:.6f}")

# %% [markdown]
# The loss of a first epoch is a little below $\ln 4096 = 8.3$: the model starts close to calling every token equally
# likely.
#
# `evaluate` returns sums and counts, so that the evaluations of two halves can be added up. Again, padding and
# positions that are not scored do not count. The article's version scored every position, which mostly measures how
# well a model copies.

# %%
untrained = EncoderForMaskedLM(EncoderConfig(vocab_size=vocab))
before_training = evaluate(untrained, held_out)
print(f"untrained: {before_training.loss:.2f} nats, accuracy {before_training.accuracy:.2%}")
assert before_training.loss > unigram_loss  # it does not even know the frequencies yet

# %% [markdown]
# An accuracy of a tenth, before any training? The 80/10/10 rule leaves 10 % of the scored tokens as they are, and this
# network starts as a copying machine: its layers are the identity, and its output table is its input table. What it
# copies is right exactly where nothing was changed. Accuracy needs its dumb baseline as much as the loss does.

# %% [markdown]
# ### Exercise evaluate_batches — Evaluate unequal batches · ★★☆ · 8 minutes
#
# You get a list of `(logits, labels)`; labels are -100 where nothing is scored. Return the mean loss and the accuracy
# over all scored positions of all batches together.


# %% tags=["exercise"]
def evaluate_batches(batches):
    """[(logits [b, s, V], labels [b, s]), ...] -> (mean loss in nats, accuracy), both over scored positions only.

    Numbers or 0-d tensors; the accuracy is a share between 0 and 1. Batches differ in size. One may have nothing scored
    at all, but never every one.
    """
    ### BEGIN SOLUTION
    loss_sum, hits, count = 0.0, 0, 0
    for logits, labels in batches:
        scored = labels != -100
        scores, targets = logits[scored], labels[scored]
        loss_sum += F.cross_entropy(scores, targets, reduction="sum")
        hits += (scores.argmax(-1) == targets).sum()
        count += len(targets)
    return loss_sum / count, hits / count
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("evaluate_batches", evaluate_batches)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Keep three running numbers: the sum of losses, the number of hits, the number of
# scored positions.</details>
# <details><summary>Hint 2</summary><code>logits[labels != -100]</code> has one row for each scored position, whatever
# the shape of the batch.</details>
# <details><summary>Hint 3</summary><code>F.cross_entropy(..., reduction="sum")</code> of nothing is 0; the mean of
# nothing is nan.</details>

# %% [markdown]
# ## The encoder
#
# 3 layers of width 128: about a million weights, half of them the embedding table. Five minutes on two cores are
# worth about ten million tokens, and a model much larger than that would not have the time to learn anything (lesson
# @efficiency_ladder climbs through the alternatives, measured).

# %%
model = EncoderForMaskedLM(EncoderConfig(vocab_size=4096))
parameters = sum(weight.numel() for weight in model.parameters())
table = model.model.embeddings.tok_embeddings.weight.numel()
lesson.record("encoder-parameters", parameters)
print(f"{parameters:,} weights, {table:,} of them in the embedding table, which is also the output layer")

# %% [markdown]
# One thing in it pays at once. In training we score 30 % of the positions (more questions a sentence; evaluation
# stays at 15 %). So why compute 4096 logits at the other 70 %? `masked_logits` gathers the scored positions *before*
# the head. Same values, a fraction of the work.

# %%
inputs, labels = held_out.inputs[:8], held_out.labels[:8]
with torch.no_grad():
    dense = untrained(inputs).logits[labels != IGNORE]
    sparse = untrained.masked_logits(inputs, labels)
lesson.record("sparse-head-difference", float((dense - sparse).abs().max()))

H, Fi, V, L, S, p = 128, 256, 4096, 3, 128, Recipe().mask_rate
body = 6 * L * (4 * H * H + 3 * H * Fi) + 12 * L * H * S
head = 6 * (V * H + H * H)
lesson.record("sparse-head-saving", 1 - (body + p * head) / (body + head))
print(
    f"MFLOP per token: body {body / 1e6:.1f}, dense head {head / 1e6:.1f}, sparse head {p * head / 1e6:.1f}"
)

# %% [markdown]
# With a vocabulary this large beside a body this small, the sparse head saves {{sparse-head-saving}} of all the
# arithmetic, and changes nothing in the result.

# %% [markdown]
# ## The learning rate is the first thing to get right
#
# The article trains with a constant 2e-5. That is a rate for *fine-tuning*, where the weights are nearly right already.
# From scratch it is a few hundred times too small. We see it by short runs, side by side: same text, same model, same
# number of steps, only the rate and what happens to it over time differ.

# %%
short = Recipe(vocab_size=vocab, batch_size=lesson.choose(quick=8, full=32), seed=1)
contenders = {
    "2e-5 constant (the article)": replace(short, learning_rate=2e-5, schedule="constant", warmup=0.0),
    "1e-3 constant": replace(short, learning_rate=1e-3, schedule="constant", warmup=0.0),
    "6e-3 constant": replace(short, learning_rate=6e-3, schedule="constant", warmup=0.0),
    "6e-3, warm-up, then linear to 0": replace(short, learning_rate=6e-3, schedule="linear", warmup=0.1),
    "6e-2, warm-up, then linear to 0": replace(short, learning_rate=6e-2, schedule="linear", warmup=0.1),
}
steps = lesson.choose(quick=12, full=120)

# %%
curves = {}
for name, recipe in contenders.items():
    run = pretrain(
        splits["train"],
        splits["validation"],
        recipe,
        steps=steps,
        tokenizer=tokenizer,
        evaluations=lesson.choose(quick=1, full=3),
        progress=False,
    )
    curves[name] = run.history
    print(f"{name:34s} {run.history[-1]['loss']:.2f} nats after {steps} steps")

# %%
figure, axis = plt.subplots(figsize=(7, 4))
for marker, (name, history) in zip("os^Dv", curves.items()):
    axis.plot([row["step"] for row in history], [row["loss"] for row in history], marker=marker, label=name)
axis.axhline(unigram_loss, color="grey", linestyle=":", label="unigram baseline")
axis.set_xlim(left=0)
axis.set(xlabel="step", ylabel="held-out loss (nats)", title="Only the learning rate differs")
axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
plots.show(
    figure,
    alt="Held-out loss against step for five learning rates, a marker for each; the article's rate stays above the "
    "unigram line, a rate of 6e-3 with warm-up and decay falls furthest.",
)

# %% [markdown]
# What to see: the article's rate has not even learnt the frequencies. A rate ten times too large reaches the plateau
# and hardly leaves it. Between the two, rate and schedule belong together: compare the two runs at 6e-3, which differ
# in nothing but the schedule.

# %%
final = {name: history[-1]["loss"] for name, history in curves.items()}
if lesson.profile != "quick":
    ours = final["6e-3, warm-up, then linear to 0"]
    lesson.record("article-rate-loss", final["2e-5 constant (the article)"])
    lesson.record("our-rate-loss", ours)
    lesson.record("decay-gain", final["6e-3 constant"] - ours)

# %% [markdown]
# In numbers, from the run above: {{article-rate-loss}} nats with the article's rate and {{our-rate-loss}} with ours,
# after the same steps on the same text. At the same peak rate, the warm-up and the decay together are worth
# {{decay-gain}} nats.

# %% [markdown]
# > **Misconception: "2e-5 is the learning rate for Transformers."** It is a rate for *one* use of them. The cell above
# > trains the same network at 2e-5 and at 6e-3. Copying a number from a fine-tuning script is the most expensive line
# > of
# > the article's code: it costs nearly everything, and no error message tells.

# %% [markdown]
# ### Exercise schedule — Warm-up, then down · ★☆☆ · 5 minutes
#
# Write the schedule that won: up in a straight line from 0 to `peak` at step `warmup`, then down in a straight line
# to 0
# at step `steps`.


# %% tags=["exercise"]
def schedule(step, steps, peak, warmup):
    """The learning rate at ``step``, which goes from 0 to ``steps``, both included.

    ``warmup`` is a number of steps, less than ``steps``; it may be 0.
    """
    ### BEGIN SOLUTION
    if step < warmup:
        return peak * step / warmup
    return peak * (steps - step) / (steps - warmup)
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("schedule", schedule)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>There are two straight lines. Decide first which of them the step is on.</details>
# <details><summary>Hint 2</summary>The second line starts at <code>warmup</code>, not at 0: how many steps are left
# there?</details>
# <details><summary>Hint 3</summary>With <code>warmup=0</code> the first branch must never be reached, or it divides
# by zero.</details>

# %% [markdown]
# ### Exercise clip — Clip by the joint norm · ★★☆ · 8 minutes
#
# `pretrain` clips gradients before each step: if the norm of *all* gradients together is over `max_norm`, all of them
# are multiplied by the same factor, so that the joint norm becomes `max_norm`. The direction of the step stays.


# %% tags=["exercise"]
def clip(gradients, max_norm):
    """New tensors: ``gradients`` scaled by one common factor, so that their joint 2-norm is at most ``max_norm``."""
    ### BEGIN SOLUTION
    norm = sum((gradient**2).sum() for gradient in gradients).sqrt()
    factor = max_norm / max(max_norm, float(norm))  # never over 1, and defined where every gradient is zero
    return [gradient * factor for gradient in gradients]
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("clip", clip)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>The joint norm is the norm of one long vector that holds every gradient.</details>
# <details><summary>Hint 2</summary>Square, sum over everything, then take the root once.</details>
# <details><summary>Hint 3</summary>Small gradients stay as they are: the factor is never over 1.</details>

# %% [markdown]
# ## The run
#
# Now the real thing. `pretrain` packs the text, draws new masks at every step, computes in bf16 where the CPU can,
# warms up for a tenth of the budget and lets the rate fall to zero **exactly when the budget ends**. That last point
# is worth a sentence: a decay planned for 10,000 steps and stopped after 1,500 has hardly decayed. (Documents stay in
# the corpus's order and are not isolated from each other here: the field before is context, as on the page.)
#
# Ten times on the way it measures the held-out loss, and it keeps the weights that did best.

# %%
recipe = replace(Recipe(), vocab_size=vocab, batch_size=lesson.choose(quick=8, full=32))
budget = lesson.choose(quick={"steps": 30, "evaluations": 2}, full={"minutes": 4.5, "evaluations": 10})
folder = Path(tempfile.mkdtemp(dir=scratch))  # a new one each time this cell is run
run = pretrain(
    splits["train"],
    splits["validation"],
    recipe,
    tokenizer=tokenizer,
    out=folder / "encoder",
    tensorboard=folder / "tensorboard",
    progress=lesson.live,
    **budget,
    on_evaluation=lambda row: print(
        f"step {row['step']:5,}: held-out {row['loss']:.3f} nats, accuracy {row['accuracy']:.1%}"
    ),
)

# %%
last = run.history[-1]
tokens_per_second = last["tokens"] / last["seconds"]
evaluation = evaluate(run.model, held_out)
# how many bytes of text a scored token stands for: the unit in which other tokenizers can be compared
bytes_per_token = sum(len(text.encode()) for text in splits["validation"]) / sum(map(len, documents["validation"]))
print(
    f"{evaluation.loss:.3f} nats = perplexity {perplexity(evaluation.loss):.1f} "
    f"= {bits_per_byte(evaluation.loss, bytes_per_token):.2f} bits per byte; accuracy {evaluation.accuracy:.1%}"
)
print(f"{last['tokens'] / 1e6:.1f} M tokens in {last['seconds'] / 60:.1f} minutes")

# %%
if lesson.profile != "quick":
    lesson.record("pretrained-loss", evaluation.loss)
    lesson.record("pretrained-accuracy", 100 * evaluation.accuracy)
    lesson.record("pretrained-bits-per-byte", bits_per_byte(evaluation.loss, bytes_per_token))
    lesson.record("pretraining-minutes", last["seconds"] / 60)
    lesson.record("pretraining-tokens", last["tokens"] / 1e6)
    lesson.record("pretraining-speed", tokens_per_second / 1000)

# %% tags=["cover"]
figure, axis = plt.subplots(figsize=(7, 4))
minutes = [row["seconds"] / 60 for row in run.history]
axis.plot(minutes, [row["loss"] for row in run.history], marker="o", label="held-out")
axis.plot(
    minutes,
    [row["train_loss"] for row in run.history],
    marker=".",
    linestyle="--",
    label="training (since the last point)",
)
axis.axhline(unigram_loss, color="grey", linestyle=":", label="unigram baseline")
axis.axhline(ngram_loss, color="grey", linestyle="-.", label="two neighbours, counted")
axis.set_xlim(left=0)
axis.set(
    xlabel="minutes of training", ylabel="loss (nats per scored token)", title="Pretraining, with what counting can do"
)
axis.legend()
plots.show(
    figure,
    alt="Held-out and training loss against minutes of training; both fall below the lines of the unigram "
    "and the two-neighbour baselines.",
)

# %% [markdown]
# What to see: at the first point the curve is already far below the unigram line, it passes the neighbours in the first
# part of the run, and each further stretch gains less than the one before.
#
# In the stored run, {{pretraining-minutes}} minutes of training on {{pretraining-tokens}} million tokens
# ({{pretraining-speed}} thousand tokens a second) end at **{{pretrained-loss}} nats**, {{pretrained-bits-per-byte}}
# bits per byte (at the average number of bytes of a held-out token), with the right token as first guess
# {{pretrained-accuracy}} % of the time. Counting neighbours ends at {{neighbour-loss}}.
#
# The training loss lies *above* the held-out loss all the way. That is no mistake. In training 30 % of the tokens are
# scored, in evaluation 15 %, so training asks harder questions; and each point is an average over the steps since the
# last one, most of them made by worse weights. Never compare two losses before you know what each is a mean of.

# %% [markdown]
# ## Look at it: before and after
#
# The loss is an average. What has the model learnt? We ask it to fill blanks, before and after training, through the
# library's own `pipeline`. And we load the trained folder with **stock** `transformers`, which has never heard of this
# course.

# %%
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

opened = AutoModelForMaskedLM.from_pretrained(folder / "encoder")
reopened_tokenizer = AutoTokenizer.from_pretrained(folder / "encoder")
with torch.no_grad():
    difference = (opened(inputs).logits - run.model(inputs).logits).abs().max()
lesson.record("stock-difference", float(difference))
print(type(opened).__module__, type(opened).__name__)

# %%
blanks = [
    "members are directly [MASK] by popular vote to serve five-year terms",
    "mild winters with hot, dry [MASK]",
    "the president is both chief of [MASK] and head of government",
    "exports: crude petroleum, natural [MASK], refined petroleum",
    "the country gained [MASK] from france in 1960",
]
fillers = {
    "before": pipeline("fill-mask", model=untrained, tokenizer=tokenizer, top_k=3),
    "after": pipeline("fill-mask", model=opened, tokenizer=reopened_tokenizer, top_k=3),
}
for sentence in blanks:
    print(sentence)
    for when, fill in fillers.items():
        print(f"    {when:7s}", ", ".join(f"{guess['token_str']} ({guess['score']:.0%})" for guess in fill(sentence)))

# %% [markdown]
# Before training, the network copies: its first guess is always `[MASK]`, the token that it sees, and every guess has a
# probability of nearly 0. After it, much of the grammar is in place, and so is what the factbook always says. Do not
# expect *facts* about one country: the model has a million weights and has read the text a handful of times.
#
# ### Your sentence, your checkpoint
#
# Ask it yourself, and look at where it looks. **Attention** is a table for each head of each layer: a row says from
# which tokens one token takes what it needs, and adds up to 100 %.


# %%
def with_blank(sentence, hide):
    """(the sentence with its word number ``hide`` as [MASK], that word, how many [MASK] stand before it)."""
    sentence = re.sub(r"\[mask\]", "[MASK]", sentence, flags=re.IGNORECASE)
    words = list(re.finditer(r"\[MASK\]|\w[\w'’-]*", sentence))
    if not 0 < hide <= len(words):
        return sentence, "", 0
    start, end = words[hide - 1].span()
    return sentence[:start] + "[MASK]" + sentence[end:], sentence[start:end], sentence[:start].count("[MASK]")


def as_row(sentence, number, most=20):
    """(ids with [CLS] and [SEP], place of the [MASK] of that number or None, tokens that were cut off around it)."""
    pieces = wordpiece.encode(tokenizer, [sentence])[0]
    blanks = [i for i, piece in enumerate(pieces) if piece == tokenizer.mask_token_id]
    place = blanks[number] if blanks else None
    first = max(0, min((place or 0) - most // 2, len(pieces) - most))
    ids = [tokenizer.cls_token_id, *pieces[first : first + most], tokenizer.sep_token_id]
    return torch.tensor([ids]), None if place is None else place - first + 1, len(pieces) + 2 - len(ids)


# %%
heads = {
    f"layer {layer + 1}, head {head + 1}": (layer, head)
    for layer in range(run.model.config.num_hidden_layers)
    for head in range(run.model.config.num_attention_heads)
}


@torch.no_grad()
def blank_figure(sentence, hide, head):
    """The five most probable tokens for the blank, and what each token reads in one head of one layer."""
    masked, hidden, number = with_blank(sentence, hide)
    ids, place, cut = as_row(masked, number)
    found = run.model(ids.to(run.model.device), output_attentions=True)
    layer, which = heads[head]
    fills, title = [], f"hidden (✓): {hidden}" if hidden else "the first [MASK] of the sentence"
    if place is None:
        title = "There is no [MASK] to fill: write one in place of a word, or hide a word by its number"
        title += f"\n(the sentence has no word number {hide})" if hide else ""
    else:
        share, tokens = found.logits[0, place].float().softmax(-1).topk(5)
        named = [f"✓ {name}" if name == hidden.lower() else name for name in tokenizer.convert_ids_to_tokens(tokens)]
        fills = list(zip(named, share.tolist()))
    unknown = int((ids == tokenizer.unk_token_id).sum())
    title += f"\n{unknown} × [UNK]: outside the alphabet" if unknown else ""
    title += f"\n{cut} tokens further off are cut away" if cut else ""
    names = tokenizer.convert_ids_to_tokens(ids[0].tolist())
    weights = found.attentions[layer][0, which].tolist()
    return pictures.fills_and_attention(names, weights, place, fills, title=title, head=head)


# %% [markdown]
# Write a sentence; hide one of its words by its number, or write `[MASK]` yourself; choose a head. The controls need a
# running notebook and obey the keyboard (Tab, arrow keys, Enter after writing); the picture is the one at their start.
# The model reads at most 20 tokens around the blank here, so that the table stays legible.

# %%
live_picture(
    blank_figure,
    alt="Left: bars with the probabilities of the five most probable tokens for the hidden word. Right: a square "
    "table, token that reads by token that is read, darker where more is read; the row of the blank stands in a frame.",
    sentence=Text(
        "your sentence",
        start="members are directly elected by popular vote to serve five-year terms",
        strange=("", "[MASK]", "$x_1$ is [MASK], 日本 [MASK] & नमस्ते", "the government of the republic " * 60),
    ),
    hide=Slider("hide word number (0: none, only your own [MASK])", tuple(range(16)), start=4),
    head=Choice("who reads whom in", tuple(heads), start=list(heads)[-1]),
)

# %% [markdown]
# What to see: hide one word after the other. Where the neighbours settle what must stand there, one bar is tall; where
# many words would do, all are short. The loss is minus the logarithm of the right word's share (✓), and large where the
# right word is not among the five. A blank holds one *token*: a word that the tokenizer cuts into pieces cannot be
# filled in whole. On the right, the framed row shows what the blank reads. Heads differ, and none of them need mean
# anything that has a name. Attention says where a head *looks*; whether the answer depends on it is another question,
# and lesson @generalization asks it.

# %% [markdown]
# ## When to stop
#
# With little text the picture changes. The same model on one fiftieth of the passages sees each of them again and
# again: the training loss goes on falling while the held-out loss turns and climbs. **Early stopping** ends the run
# when the held-out loss has not improved for `patience` evaluations in a row, and the **best** weights are kept, not
# the
# last ones.

# %%
few = splits["train"][:: lesson.choose(quick=4, full=50)]
small = replace(recipe, batch_size=lesson.choose(quick=4, full=8), schedule="constant", learning_rate=3e-3)
overfit = pretrain(
    few,
    splits["validation"][::4],  # a quarter of it says soon enough which way the loss goes
    small,
    tokenizer=tokenizer,
    progress=False,
    **lesson.choose(
        quick={"steps": 24, "evaluations": 6, "patience": 3}, full={"steps": 1200, "evaluations": 20, "patience": 4}
    ),
)
best = min(overfit.history, key=lambda row: row["loss"])
print(
    f"stopped by {overfit.stopped} at step {overfit.history[-1]['step']}; "
    f"best held-out loss {best['loss']:.3f} at step {best['step']}"
)

# %%
figure, axis = plt.subplots(figsize=(7, 4))
at = [row["step"] for row in overfit.history]
axis.plot(at, [row["loss"] for row in overfit.history], marker="o", label="held-out")
axis.plot(at, [row["train_loss"] for row in overfit.history], marker=".", linestyle="--", label="training")
axis.axvline(best["step"], color="grey", linestyle=":")
axis.annotate("kept", (best["step"], best["loss"]), xytext=(5, 12), textcoords="offset points")
axis.set(xlabel="step", ylabel="loss (nats)", title=f"{len(few):,} passages only: the held-out loss turns")
axis.legend()
plots.show(
    figure,
    alt="Training and held-out loss on very little text: the training loss keeps falling, the held-out loss turns "
    "upward and the run stops; the best point is marked.",
)

# %%
kept = evaluate(overfit.model, held_out_rows(documents["validation"][::4], tokenizer, 128)).loss
lesson.record("kept-is-best", abs(kept - best["loss"]))
print(f"loss of the weights that pretrain returned: {kept:.3f}")

# %% [markdown]
# ### Exercise early_stopping — Early stopping · ★★☆ · 8 minutes
#
# Given the held-out losses in order, say which evaluation is the best so far when training ends, and after which
# evaluation it ends: as soon as `patience` evaluations in a row have brought no new best, or with the last one.


# %% tags=["exercise"]
def early_stopping(losses, patience):
    """(best, stop): training ends after evaluation ``stop``, and ``best`` is the best one up to there.

    Both count from 0. An equal loss is no gain, so the earlier of two stays the best. ``patience`` is at least 1.
    """
    ### BEGIN SOLUTION
    best = 0
    for index, loss in enumerate(losses):
        if loss < losses[best]:
            best = index
        if index - best >= patience:
            return best, index
    return best, len(losses) - 1
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("early_stopping", early_stopping)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Walk through the losses and remember where the best one was.</details>
# <details><summary>Hint 2</summary>The number of evaluations since the best is the distance between two indices: you
# need no counter.</details>
# <details><summary>Hint 3</summary>Compare with the best so far, not with the one before.</details>

# %% [markdown]
# ## When the power goes
#
# A run that cannot be resumed will be lost one day. `pretrain(out=...)` keeps a checkpoint beside the goal: weights,
# the optimiser's averages, the step, each written beside the one before and then renamed. Randomness needs no saving,
# because the rows and masks of step *t* depend on `(seed, t)` alone.
#
# We prove it: one run goes through; another is cut off half-way by an exception, and goes on from its checkpoint. The
# weights must be the same to the bit.


# %%
class PowerCut(Exception):
    pass


def cut_half_way(row):
    if row["step"] == 4:
        raise PowerCut


small_run = dict(steps=8, evaluations=4, tokenizer=tokenizer, progress=False)
tiny = replace(recipe, batch_size=4, hidden_size=64, intermediate_size=128, heads=1, layers=2)
some, others = splits["train"][:200], splits["validation"][:40]

through = pretrain(some, others, tiny, **small_run)
place = Path(tempfile.mkdtemp(dir=scratch)) / "cut"
try:
    pretrain(some, others, tiny, out=place, on_evaluation=cut_half_way, **small_run)
except PowerCut:
    print("cut off; left on disk:", sorted(path.name for path in place.with_name("cut.partial").iterdir()))
resumed = pretrain(some, others, tiny, out=place, resume=True, **small_run)

# %%
gap = max(
    float((a - b).detach().abs().max())
    for a, b in zip(through.model.parameters(), resumed.model.parameters(), strict=True)
)
lesson.record("resume-difference", gap)
print(f"largest difference between the two runs' weights: {gap}")

# %% [markdown]
# ## The library's way
#
# `transformers.Trainer` does what `train_epoch` does and much besides. Our encoder is an ordinary `PreTrainedModel`, so
# it works there too. And the losses agree: the library's own loss on a batch is ours.

# %%
from transformers import PrinterCallback, Trainer, TrainingArguments

sample = MaskedLMDataset(splits["validation"][:32], tokenizer, max_length=64, dynamic=False)
trainer = Trainer(
    model=run.model,
    args=TrainingArguments(
        output_dir=str(scratch / "trainer"),
        per_device_eval_batch_size=32,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    ),
)
trainer.remove_callback(PrinterCallback)
library = trainer.evaluate(sample)["eval_loss"]
lesson.record("trainer-difference", abs(library - evaluate(run.model, sample).loss))
print(f"Trainer {library:.6f}, evaluate {evaluate(run.model, sample).loss:.6f}")

# %% [markdown]
# One batch, so the two must agree. Over several batches the library averages batch means, and they would not.

# %% [markdown]
# ## On your own text
#
# Everything above is one command. It takes text files, JSON lines, Parquet or a folder of them:
#
# ```
# python -m sslcourse pretrain --text my_notes/ --out my_encoder --minutes 5
# ```
#
# To watch the curves of this lesson's run in TensorBoard, give `pretrain` a `tensorboard=` folder, as above, and point
# `tensorboard --logdir` at it.

# %%
events = list((folder / "tensorboard").glob("events*"))
assert len(events) == 1, events
print("TensorBoard log written:", len(events), "file")

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
# ## Where it comes from
#
# - Devlin et al. 2019, [BERT](https://arxiv.org/abs/1810.04805): the objective and the 80/10/10 masks.
# - Warner et al. 2024, [ModernBERT](https://arxiv.org/abs/2412.13663): the encoder's layout.
# - Geiping and Goldstein 2022, [Cramming](https://arxiv.org/abs/2212.14034): one-cycle rate tied to the budget,
#   sparse head.
# - Loshchilov and Hutter 2019, [AdamW](https://arxiv.org/abs/1711.05101); Goyal et al. 2017,
#   [warm-up](https://arxiv.org/abs/1706.02677); Pascanu et al. 2013, [clipping](https://arxiv.org/abs/1211.5063).
# - Chen et al. 2023, [sudden drops](https://arxiv.org/abs/2309.07311): why the loss leaves the plateau all at once.
# - Hugging Face [`Trainer`](https://huggingface.co/docs/transformers/main_classes/trainer).
