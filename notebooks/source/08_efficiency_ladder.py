# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   sslcourse:
#     budget:
#       quick: {minutes: 1.5, memory_mb: 3500}
#       full: {minutes: 8.0, memory_mb: 4500}
# ---

# %% [markdown]
# # 08 · The efficiency ladder: one measured change at a time
#
# **In this lesson you take the article's recipe and make it fast, one change at a time, and say of each change how much
# it brings, and of which kind: more learning a token, fewer operations a token, or more operations a second.**
#
# *Time*: about 55 minutes of reading and exercises; the machine works for about six of them.
#
# *You need to know*: masking and packing (lesson 02), pretraining (lesson 03), operations and bf16 (lesson 05).
#
# *You will be able to*
# - take a training recipe apart into the three things that its time is made of;
# - predict from a formula what a change brings, and measure it fairly;
# - tell a change that pays from one that does not, on your machine and your budget;
# - find the flaw in somebody's benchmark.

# %% tags=["parameters"]
profile = "auto"

# %%
from sslcourse.teaching.lesson import start

lesson = start("08_efficiency_ladder", profile)

# %%
import json
import math
from dataclasses import asdict, replace

import matplotlib.pyplot as plt
import torch

from sslcourse import corpus, ladder, precision, scores
from sslcourse.ladder import LADDER, Text, climb
from sslcourse.pretraining import Tape
from sslcourse.teaching import plots
from sslcourse.teaching.checks import check

full = lesson.profile != "quick"

# %% [markdown]
# ## What is a recipe's time made of?
#
# "Faster" needs a goal: the time until the held-out loss is **as low as you want it**. Steps a second say nothing if
# each step teaches little. That time is a product of three things:
#
# $$ \text{time} = \underbrace{N}_{\text{tokens to read}} \cdot \underbrace{F}_{\text{operations a token}} \,/\,
# \underbrace{R}_{\text{operations a second}} $$
#
# So there are three kinds of gain, and every trick in this course is one of them:
# - **more learning a token** (a smaller $N$): a better learning rate, a better start, more masks;
# - **fewer operations a token** (a smaller $F$): no padding, logits only where they are scored, a smaller model;
# - **more operations a second** (a larger $R$): bf16, larger products, better kernels.
#
# The gains multiply. Ten changes that bring $1.6$ each make $1.6^{10} \approx 110$.

# %% [markdown]
# ## The rungs
#
# All recipes are one dataclass. Its defaults are what `pretrain` does; at the bottom stands the article's recipe,
# repaired just enough to run. Each rung is the one before with **one** change.

# %%
recipes = ladder.recipes()
bottom, top = ladder.ARTICLE, list(recipes.values())[-1]
print("the article, repaired:", {name: value for name, value in asdict(bottom).items() if value != asdict(top)[name]})
for change in LADDER:
    print(f"{change.kind:9s} {change.name:42s} {change.fields}")

# %% [markdown]
# Why do these help? In one line each:
# - **Score masked tokens only.** The article's loss runs over all positions. Most of them are visible, so the model is
#   mostly paid for copying (lesson 01).
# - **A rate for training from scratch.** $2 \cdot 10^{-5}$ is for fine-tuning; with it the weights hardly move. A
#   **warm-up** keeps the first steps of a large rate from doing harm.
# - **Masks drawn anew.** Masks drawn once show the same holes in every epoch (lesson 02). Who reads less than one
#   epoch, as here, gains nothing by it yet.
# - **No dropout**: who reads a text less than once has nothing to overfit.
# - **Norms before**, gates, rotary positions: gradients reach the bottom unscaled, so a large rate is borne.
# - **Start by width, outputs at zero**: for narrow models the usual 0.02 is too small (the ladder measures it).
# - **Decay on the clock**: the rate is zero when the budget is spent, whatever the machine's speed.
# - **No padding**: less work a token. It also reads what padding cuts off, has the held-out rows' form, and gives each
#   update more tokens.
# - **Logits where they are scored** and **bf16**: the same sums for less work, and faster work.
# - **A size for the budget**: in a short time a small model sees more text, and that is worth more. Its own rate,
#   Adam's memory and activation follow.
# - **More masks**: each step gives more answers for nearly the same work.
# - **Larger batches**: longer products use the machine better, until learning a token suffers.

# %% [markdown]
# ## Predict first
#
# One factor can be counted, one can be timed in a few steps, and only learning needs training. Counting first.

# %% [markdown]
# ### Exercise 8.1 — Operations a real token · ★★☆ · 10 minutes


# %% tags=["exercise"]
def operations_a_token(recipe):
    """Floating-point operations that a training step executes, for each *real* token of its batch. A float.

    recipe: a dictionary. "layers" L, "hidden" H, "inner" F, "vocabulary" V, "length" S of a row; "gated": whether an
    MLP has three matrices of H · F (True) or two; "scored": the share of all positions, padding included, that
    are masked; "sparse": whether the head works on those positions alone (True) or on all; "real": the share of
    positions that are no padding.

    For each position of a batch, padding or not, forward and backward together: 6 operations for every number of a
    matrix that the position passes through, and 12 · S · H in each layer for attention's own products. A layer has four
    matrices of H · H and its MLP; the head has one of H · H and one of V · H. Looking up a table costs nothing.
    """
    ### BEGIN SOLUTION
    hidden, inner = recipe["hidden"], recipe["inner"]
    layer = 4 * hidden**2 + (3 if recipe["gated"] else 2) * hidden * inner
    head = (recipe["scored"] if recipe["sparse"] else 1) * (hidden**2 + recipe["vocabulary"] * hidden)
    attention = 12 * recipe["layers"] * recipe["length"] * hidden
    return (6 * (recipe["layers"] * layer + head) + attention) / recipe["real"]
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("8.1", operations_a_token)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>First one position: layers, head, attention. Padding comes last.</details>
# <details><summary>Hint 2</summary>A sparse head is there for the scored share of positions only.</details>
# <details><summary>Hint 3</summary>Padded positions are worked on, too: divide by the share of real ones.</details>

# %% [markdown]
# The corpus says how much padding there is. With that the formula predicts what each change of the kind *fewer
# operations* brings:

# %%
splits = corpus.load_splits()
train, held_out = ([row["text"] for row in splits[name]] for name in ("train", "validation"))
text = Text.of(train[:: lesson.choose(quick=8, full=1)], held_out[:: lesson.choose(quick=60, full=24)])
lengths = [min(len(document) + 2, 128) for document in text.train]
REAL = sum(lengths) / (128 * len(lengths))
print(f"padded to 128, {REAL:.0%} of the positions hold a real token")
lesson.record("real-share", 100 * REAL)


def executed(rung):
    """Operations a real token, by the same formula, of a rung."""
    matrices = 4 * rung.hidden_size**2 + (2 if rung.body == "bert" else 3) * rung.hidden_size * rung.intermediate_size
    real = REAL if rung.rows == "padded" else 1
    scored = rung.mask_rate * real if rung.head == "sparse" else 1  # only real tokens are masked
    head = scored * (rung.hidden_size**2 + len(text.tokenizer) * rung.hidden_size)
    attention = 12 * rung.layers * rung.sequence_length * rung.hidden_size
    return (6 * (rung.layers * matrices + head) + attention) / real


names = list(recipes)
predicted = {after: executed(recipes[before]) / executed(recipes[after]) for before, after in zip(names, names[1:])}
for change in LADDER:
    print(f"{change.name:42s} operations a token: {executed(recipes[change.name]) / 1e6:6.1f} M, "
          f"{predicted[change.name]:.2f} times fewer")  # fmt: skip
lesson.record("predicted-packing", predicted["no padding"])
lesson.record("predicted-sparse", predicted["logits where they are scored"])
lesson.record("predicted-size", predicted["a size for the budget"])

# %% [markdown]
# By the formula alone, packing should bring {{predicted-packing}} times, the sparse head {{predicted-sparse}}, the
# smaller model {{predicted-size}} (if it learnt as much a token, which it does not). For *speed* there is a ceiling:
# how much faster the machine multiplies in bf16. For *learning* there is neither; it has to be measured.

# %%
ceiling = precision.peak_flops(torch.bfloat16) / precision.peak_flops(torch.float32)
print(f"bf16 multiplies large matrices {ceiling:.1f} times as fast as fp32 here: for products, no more can come of it")

# %% [markdown]
# ## Measure
#
# The rules, and each has been broken by somebody:
# - the same text, the same held-out positions, the same clock for all;
# - the clock runs while steps and batches are made; not at the start, not while the held-out loss is taken;
# - the budget is *time*, and each recipe's schedule knows it;
# - the gain is a ratio of times to one loss. We need that time from a curve of a few looks.

# %% [markdown]
# ### Exercise 8.2 — The time to a loss · ★★☆ · 8 minutes


# %% tags=["exercise"]
def seconds_to(points, loss):
    """Seconds until the held-out loss was *first* ``loss`` or lower; float("inf") if it never was.

    points: a list of (seconds, held-out loss), at least one, by rising seconds. Between two looks the loss changes in a
    straight line; before the first look nothing is known, so if the first look is low enough, its time is the answer.
    """
    ### BEGIN SOLUTION
    for at, (seconds, now) in enumerate(points):
        if now <= loss:
            if at == 0:
                return seconds
            earlier, high = points[at - 1]
            return earlier + (seconds - earlier) * (high - loss) / (high - now)
    return float("inf")
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("8.2", seconds_to)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Walk along the points until one is low enough; then look one back.</details>
# <details><summary>Hint 2</summary>On the line, the share of the way is (high - loss) / (high - low).</details>

# %% [markdown]
# Before any comparison: how far apart do two runs of *the same* recipe end, which differ by their seed alone? A gain
# that is smaller cannot be told from luck.

# %%
SECONDS, LOOKS = lesson.choose(quick=(0.4, 2), full=(12.0, 10))
same = [climb(replace(top, seed=seed), text, SECONDS, LOOKS) for seed in (10, 11)]
noise = ladder.speedup(*same)
print(f"two seeds: {same[0].loss:.3f} and {same[1].loss:.3f} nats after {SECONDS:.0f} s; as a gain: {noise:.2f}")
if full:
    lesson.record("seeds-apart", max(noise, 1 / noise))

# %% [markdown]
# One seed was {{seeds-apart}} times as fast as the other: one draw of the noise, in the gains' own unit. Now the climb:
# every rung for the same time.

# %%
tracks = {}
for name, rung in recipes.items():
    tracks[name] = climb(rung, text, SECONDS, LOOKS)
    track = tracks[name]
    print(f"{name:42s} {track.loss:6.3f} nats  {track.tokens_per_second:8,.0f} real tokens/s  "
          f"{track.flops / track.points[-1][0] / 1e9:5.0f} useful GFLOP/s")  # fmt: skip

# %%
figure, axis = plt.subplots(figsize=(9, 4.8))
for number, (name, track) in enumerate(tracks.items()):
    seconds, losses = zip(*track.points)
    axis.plot(seconds, losses, marker="osD^vX"[number % 6], markersize=4, linewidth=1.4,
              color=plots.COLOURS[number % len(plots.COLOURS)], label=f"{number}  {name}")  # fmt: skip
axis.axhline(math.log(len(text.tokenizer)), color="black", linestyle=":", label="knowing nothing")
axis.set(xlabel="seconds of training", ylabel="held-out loss (nats)")
axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
plots.show(figure, alt="Held-out loss against seconds of training for every rung of the ladder: the article's recipe "
           "hardly moves below knowing nothing, and most rungs end lower than the one before.")

# %% [markdown]
# A rung's gain is how many times as fast it gets to the loss at which the rung *below* ended. (If it does not get
# there, the question is turned round, and the gain is below 1.) A rung whose rate decays is read in the middle of its
# decay then. With a budget of just that time it would get there sooner, so gains above 1 are *lower* bounds. And before
# the first look nothing is known: a rung that is there already at that look has a gain of "at least".

# %%
gains = {after: ladder.speedup(tracks[before], tracks[after]) for before, after in zip(names, names[1:])}
product = math.prod(gains.values())
for change in LADDER:
    print(f"{change.name:42s} {gains[change.name]:6.2f} times   (meant for: {change.kind})")
print(f"{'all of them, multiplied':42s} {product:6.0f} times")

# %% [markdown]
# The product is a product of *ratios at different losses*, each near the end of the rung below. It is not the ratio of
# two runs to one loss: no one can wait for the article's recipe to get to where the top rung ends. How long the bottom
# would need is unknown; that it is not there yet is what one sees.
#
# ## Three kinds, told apart
#
# The time ratio of two rungs at one loss is the product of three ratios: tokens read until there, operations a token,
# operations a second. So a gain can be taken apart, and the label checked:

# %%
print(f"{'':42s}{'time':>7s} = {'tokens':>7s} × {'operations':>10s} × {'speed':>6s}")
parts = {}
for before, after in zip(names, names[1:]):
    a, b = tracks[before], tracks[after]
    tokens = gains[after] * a.tokens_per_second / b.tokens_per_second  # tokens to the same loss: time × tokens a second
    fewer = executed(recipes[before]) / executed(recipes[after])
    speed = b.tokens_per_second * executed(recipes[after]) / (a.tokens_per_second * executed(recipes[before]))
    parts[after] = tokens, fewer, speed
    assert math.isclose(tokens * fewer * speed, gains[after], rel_tol=1e-9)
    print(f"{after:42s}{gains[after]:7.2f} = {tokens:7.2f} × {fewer:10.2f} × {speed:6.2f}")
lesson.record("packing-measured", parts["no padding"][1] * parts["no padding"][2])
lesson.record("sparse-measured", parts["logits where they are scored"][1] * parts["logits where they are scored"][2])

# %% [markdown]
# Operations here are *executed* ones (padding and unscored logits included), so a change that removes useless work
# shows in the middle column. *Speed* holds all the rest of a step, too: dropout, norms, the optimiser. Look at how a
# smaller model pays: far fewer operations a token, less learnt from each token, and slower arithmetic, because small
# products use the machine less.
#
# A label is what a change is *meant* for; the columns say what it does.

# %% [markdown]
# ## Where does packing stop paying?
#
# Packing is no free lunch everywhere: somebody must cut and shuffle, and a row's documents read each other unless that
# is masked (lesson 02).

# %% [markdown]
# ### Exercise 8.3 — The least padding that is worth packing · ★★☆ · 8 minutes


# %% tags=["exercise"]
def packing_stops_paying(token, attention, packing, length):
    """The share of padding, from 0 to 1, at which padded rows cost as much a real token as packed ones.

    All costs are seconds. Rows of both kinds have ``length`` positions, and each position, real or padding, costs
    token + attention · length. Packed rows have no padding, but ``packing`` is added for each real token. Above the
    share that is asked for, packing pays. token is positive, the other two may be 0.
    """
    ### BEGIN SOLUTION
    work = token + attention * length
    return packing / (work + packing)
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("8.3", packing_stops_paying)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Padded rows: with a share p of padding, 1 / (1 − p) positions are worked on for each
# real token.</details>
# <details><summary>Hint 2</summary>Set both costs equal and solve for p.</details>

# %%
tape, rung = Tape(text.train, text.tokenizer, 128), replace(top, vocab_size=len(text.tokenizer))
source = tape.batches(rung)
next(source)
batch_seconds = precision.seconds(lambda: next(source), 20)
step_seconds = 128 * rung.batch_size / tracks[names[-1]].tokens_per_second
share = batch_seconds / step_seconds
lesson.record("batch-share", 100 * share)
print(f"cutting, shuffling and masking a batch: {1e3 * batch_seconds:.2f} ms of a step's {1e3 * step_seconds:.0f} ms")

# %% [markdown]
# All of the batch, masks included, is {{batch-share}} % of a step here. So packing pays from that share of padding on
# at most. Only a corpus of long documents has less.
#
# > **Misconception: "the GPU is 100 % busy, so it is used well."** A recipe with three quarters of padding and logits
# > nobody scores keeps a machine as busy as a good one. Busy is not useful. Count useful operations: those of real
# > tokens, and of logits that are scored.

# %% [markdown]
# ## The committed benchmark: three seeds, and the order
#
# One run with one seed is an anecdote. `python -m benchmarks.ladder` climbed every rung with three seeds, and did two
# things more: it took single changes *back from the top*, and tried what else one reads about. (The gains are
# geometric means over the seeds, with 95 % intervals.)

# %%
stored = json.loads((lesson.root / "data" / "measured" / "ladder.json").read_text(encoding="utf-8"))
print(f"{stored['date']}, {stored['machine']}, torch {stored['torch']}, {stored['seconds']:.0f} s a rung, "
      f"{stored['seeds']} seeds: `{stored['command']}`\n")  # fmt: skip


def of_seeds(group, name):
    return [ladder.Track([tuple(point) for point in one["points"]], one["steps"], one["tokens"], one["flops"])
            for one in stored[group][name]]  # fmt: skip


def gain_of(before, after):
    """The geometric mean of the gain over seeds, and its 95 % interval, taken of logarithms."""
    found = scores.interval([math.log(ladder.speedup(a, b)) for a, b in zip(before, after)])
    return tuple(map(math.exp, (found.low, found.mean, found.high)))


committed = {}
for before, after in zip(names, names[1:]):
    committed[after] = gain_of(of_seeds("climb", before), of_seeds("climb", after))
    low, mean, high = committed[after]
    loss = scores.interval([one.loss for one in of_seeds("climb", after)])
    print(f"{after:42s} {mean:6.2f} times ({low:.2f} to {high:.2f}), ends at {loss.mean:.2f} nats")
ends = [one.loss for one in of_seeds("climb", names[-1])]
lesson.record("top-apart", max(ends) - min(ends))
lesson.record("decay-up", committed["decay on the clock"][1])
lesson.record("batch-up", committed["larger batches"][1])

# %% [markdown]
# Two things to see before the picture. **Seeds matter more than most rungs**: the three runs of the top rung ended
# {{top-apart}} nats apart. In so short a time a run may or may not leave the plateau of lesson 03, where the model
# knows how often each word occurs and nothing else; and whoever leaves it falls fast. That is why the intervals are
# wide.
#
# And **a gain belongs to a budget**. `pretrain`'s defaults are for minutes, and this benchmark gave each rung seconds:
# there the decay makes {{decay-up}} and the larger batch {{batch-up}} of the speed before. A rate that falls, and half
# as many steps, keep a run on the plateau. (Lesson 03, with more steps, found the schedule worth more than a nat.) So
# ask of every trick: at which budget?

# %% tags=["cover"]
KINDS = {"learning": ("more learning a token", 0), "fewer": ("fewer operations a token", 2),
         "faster": ("more operations a second", 1)}  # fmt: skip
figure, axis = plt.subplots(figsize=(10, 5.2))
height, seen = 1.0, set()  # a bar that ends lower than it begins is a change that did not pay
for number, change in enumerate(LADDER):
    low, mean, high = committed[change.name]
    label, colour = KINDS[change.kind]
    axis.bar(number, height * mean - height, bottom=height, color=plots.COLOURS[colour],
             label=None if label in seen else label, hatch={"learning": "", "fewer": "//", "faster": ".."}[change.kind],
             edgecolor="white")  # fmt: skip
    axis.errorbar(number, height * mean, yerr=[[height * (mean - low)], [height * (high - mean)]], color="black",
                  capsize=3, linewidth=1)  # fmt: skip
    axis.text(number, max(height, height * mean) * 1.15, f"×{mean:.1f}", ha="center", fontsize=9)
    height *= mean
    seen.add(label)
axis.set(yscale="log", ylabel="product of the gains so far")
axis.set_xticks(range(len(LADDER)), [change.name for change in LADDER], rotation=35, ha="right", fontsize=9)
axis.legend(loc="upper left", title="what a change is meant for")
plots.show(
    figure,
    alt="A staircase of bars on a log scale, one a change, each standing on the one before. The rate for training from "
    "scratch is the highest step; some steps, like the decay and larger batches, lead down.",
)

# %%
logs = {kind: [0.0] * stored["seeds"] for kind in KINDS}  # each gain taken apart, and not by its label
for before, after in zip(names, names[1:]):
    fewer = executed(recipes[before]) / executed(recipes[after])
    for seed, (a, b) in enumerate(zip(of_seeds("climb", before), of_seeds("climb", after))):
        gain = ladder.speedup(a, b)
        tokens = gain * a.tokens_per_second / b.tokens_per_second
        for kind, part in zip(KINDS, (tokens, fewer, gain / tokens / fewer)):
            logs[kind][seed] += math.log(part)
totals = {kind: scores.interval(values) for kind, values in logs.items()}
totals["whole"] = scores.interval([sum(values) for values in zip(*logs.values())])
for kind, found in totals.items():
    name = KINDS[kind][0] if kind in KINDS else "the whole ladder"
    print(f"{name:26s} {math.exp(found.mean):7.1f} times ({math.exp(found.low):.1f} to {math.exp(found.high):.1f})")
lesson.record("ladder-product", math.exp(totals["whole"].mean))
for kind in KINDS:
    lesson.record(f"ladder-{kind}", math.exp(totals[kind].mean))

# %% [markdown]
# In the committed benchmark the ladder's product is {{ladder-product}} times: {{ladder-learning}} from more learning a
# token, {{ladder-fewer}} from fewer operations, {{ladder-faster}} from faster ones. (Each gain was taken apart for
# that, as above.)
#
# ### Does the order matter?
#
# A change is worth what it is worth *given the others*. Take single changes back from the top, and compare with
# what the same change brought on its way up:

# %%
print(f"{'':42s}{'on the way up':>14s}{'at the top':>12s}")
at_top = {}
for name in stored["without"]:
    at_top[name] = gain_of(of_seeds("without", name), of_seeds("climb", names[-1]))
    low, mean, high = at_top[name]
    print(f"{name:42s}{committed[name][1]:13.2f}×{mean:11.2f}× ({low:.2f} to {high:.2f})")
lesson.record("sparse-up", committed["logits where they are scored"][1])
lesson.record("sparse-top", at_top["logits where they are scored"][1])
lesson.record("packing-top", at_top["no padding"][1])
lesson.record("decay-top", at_top["decay on the clock"][1])

# %% [markdown]
# The operations say yes: a dense head is a small part of a large model's work and nearly half of a small one's. The
# clock cannot say it with three seeds of a few seconds: the sparse head brought {{sparse-up}} on its way up and
# {{sparse-top}} at the top, the decay is worth {{decay-top}} there, packing {{packing-top}}, and the intervals at the
# top are wide. Either way, a number for "what trick X brings" means little without the recipe around it.

# %% [markdown]
# ### What else was tried
#
# On top of the last rung, one at a time:

# %%
for name in stored["further"]:
    low, mean, high = gain_of(of_seeds("climb", names[-1]), of_seeds("further", name))
    verdict = "pays" if low > 1 else "does not pay" if high < 1 else "no difference seen"
    print(f"{name:42s} {mean:5.2f} times ({low:.2f} to {high:.2f}): {verdict}")
    lesson.record("further-" + name.split()[0].lower(), mean)

# %% [markdown]
# Each was a gain in somebody's recipe, with larger models, longer runs, and settings tuned for it. Here, untuned and in
# seconds, three seeds tell few of them apart from nothing: Muon {{further-muon}}, fewer masks towards the end
# {{further-fewer}}, short rows first {{further-short}}, averaging {{further-the}}, more heads {{further-four}}.

# %% [markdown]
# ## Would you believe this benchmark?
#
# The last skill is to read other people's numbers. Five flaws come up again and again:
# - **timed compile**: a side that is compiled has its clock started at the first call, so the compiler is timed;
# - **other masks**: the two sides are scored on other positions (another seed or another rate);
# - **untuned peer**: the rival got fewer trials of its settings than the own method;
# - **one seed**: a side was run with one seed only (the same seed twice is one);
# - **warm cache**: one side found the cache warm, and the other found it cold.

# %% [markdown]
# ### Exercise 8.4 — Spot the flaws · ★★☆ · 10 minutes


# %% tags=["exercise"]
def flaws(report):
    """The set of flaws of a benchmark, by the names above; empty if there is none.

    report: {"ours": side, "theirs": side}; theirs is the rival. A side is a dictionary: "compiled" (a bool),
    "clock_starts" ("first call" or "first step"; the first call compiles, if anything does), "mask_seed" (an int) and
    "mask_rate" (a float) of the scored positions, "trials" (how many settings were tried), "seeds" (a list of ints,
    one a run), "cache" ("warm" or "cold"). "timed compile" and "one seed" are flaws if
    either side has them, also if both do. The other three compare: "other masks" if seed or rate differs, "untuned
    peer" only if theirs has fewer trials, "warm cache" if the caches differ.
    """
    ### BEGIN SOLUTION
    ours, theirs = report["ours"], report["theirs"]
    found = set()
    if any(side["compiled"] and side["clock_starts"] == "first call" for side in (ours, theirs)):
        found.add("timed compile")
    if any(ours[key] != theirs[key] for key in ("mask_seed", "mask_rate")):
        found.add("other masks")
    if theirs["trials"] < ours["trials"]:
        found.add("untuned peer")
    if any(len(set(side["seeds"])) < 2 for side in (ours, theirs)):
        found.add("one seed")
    if ours["cache"] != theirs["cache"]:
        found.add("warm cache")
    return found
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("8.4", flaws)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Two flaws show on one side alone, the other three only by comparing.</details>
# <details><summary>Hint 2</summary><code>len(set(seeds))</code> counts different seeds.</details>

# %% [markdown]
# And ours? The masks and the clock are the same for all rungs, seeds are three, nothing is compiled. But the rungs are
# *not tuned one by one*: the rate of the fifth rung is not the best for the fifth rung. Tuned rivals are the business
# of `python -m benchmarks.pretraining`: its `sweep` looks for the best settings of three stock models, with as many
# trials for each as for `pretrain`, and its `race` sets them side by side with the article's recipe and `run_mlm`'s
# defaults.

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
# - Geiping and Goldstein 2022, [Cramming](https://arxiv.org/abs/2212.14034): one GPU, one day, one change at a time.
# - Portes et al. 2023, [MosaicBERT](https://arxiv.org/abs/2312.17482); Warner et al. 2024,
#   [ModernBERT](https://arxiv.org/abs/2412.13663): unpadding, sparse heads, masks.
# - Izsak et al. 2021, [24hBERT](https://arxiv.org/abs/2104.07705): a schedule that ends with the clock.
# - Wettig et al. 2022, [Should you mask 15 %?](https://arxiv.org/abs/2202.08005)
# - Izmailov et al. 2018, [weight averaging](https://arxiv.org/abs/1803.05407); Jordan et al. 2024,
#   [Muon](https://kellerjordan.github.io/posts/muon/).
# - Dehghani et al. 2021, [The efficiency misnomer](https://arxiv.org/abs/2110.12894): parameters, operations and time
#   are three things.
