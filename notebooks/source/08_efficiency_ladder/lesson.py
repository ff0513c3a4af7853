# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   coursekit:
#     budget:
#       quick: {minutes: 1.5, memory_mb: 3500}
#       full: {minutes: 8.0, memory_mb: 4500}
# ---

# %% [markdown]
# # The efficiency ladder: one measured change at a time
#
# **In this lesson you take the article's recipe and make it fast, one change at a time, and say of each change how much
# it brings, and of which kind: more learning a token, fewer operations a token, or more operations a second.**
#
# *Time*: about 55 minutes of reading and exercises; the machine works for about six of them.
#
# *You need to know*: masking and packing (lesson @masking_dataset), pretraining (lesson @mlm_pretraining), operations
# and bf16 (lesson @mixed_precision).
#
# *You will be able to*
# - take a training recipe apart into the three things that its time is made of;
# - predict from a formula what a change brings, and measure it fairly;
# - tell a change that pays from one that does not, on your machine and your budget;
# - find the flaw in somebody's benchmark.

# %% tags=["parameters"]
profile = "auto"

# %%
from coursekit import start

lesson = start("efficiency_ladder", profile)

# %%
import json
import math
import operator
import statistics
import time
from dataclasses import asdict, replace

import matplotlib.pyplot as plt
import torch

from sslcourse.data import corpus
from sslcourse.measure import hardware, intervals, timing
from sslcourse.models.encoder import EncoderForMaskedLM
from sslcourse.models.initial_weights import look_at_neighbours, neighbour_counts, token_vectors
from sslcourse.studies import ladder
from sslcourse.studies.ladder import LADDER, Text, climb
from sslcourse.train.recipe import Recipe
from sslcourse.train.step import learning_rate
from sslcourse.train.token_rows import Tape
from coursekit import Choice, Slider, check, live_picture, plots

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
# repaired just enough to run. Each rung is the one before with **one** change. The last goes a step beyond the
# defaults, to a start that `pretrain` has on request.

# %%
recipes = ladder.recipes()
bottom, top = ladder.ARTICLE, list(recipes.values())[-1]
print("the article, repaired:", {name: value for name, value in asdict(bottom).items() if value != asdict(top)[name]})
for change in LADDER:
    print(f"{change.kind:9s} {change.name:42s} {change.fields}")

# %% [markdown]
# Why do these help? In one line each:
# - **Score masked tokens only**: those that masking chose, four in five of which show `[MASK]`. The article's loss runs
#   over all positions. Most of them are visible, so the model is mostly paid for copying (lesson @loss_derivation).
# - **A rate for training from scratch.** $2 \cdot 10^{-5}$ is for fine-tuning; with it the weights hardly move. A
#   **warm-up** keeps the first steps of a large rate from doing harm.
# - **Masks drawn anew.** Masks drawn once show the same holes in every epoch (lesson @masking_dataset). Who reads less
#   than one epoch, as here, gains nothing by it yet.
# - **No dropout**: who reads a text less than once has nothing to overfit.
# - **Norms before**, gates, rotary positions: gradients reach the bottom unscaled, so a large rate is borne.
# - **Start by width, outputs at zero**: for narrow models the usual 0.02 is too small (the ladder measures it).
# - **Decay on the clock**: the rate is zero when the budget is spent, whatever the machine's speed.
# - **No padding**: less work a token. It also reads what padding cuts off, has the held-out rows' form, and gives each
#   update more tokens.
# - **Logits where they are scored** and **bf16**: the same sums for less work, and faster work.
# - **A size for the budget**: in a short time a small model sees more text, and that may be worth more. Its own rate,
#   Adam's memory and activation follow.
# - **More masks**: each step gives more answers for nearly the same work.
# - **Larger batches**: longer products use the machine better, until learning a token suffers.
# - **A start where counting ends**: what a table of counts knows need not be learnt by steps (further down).

# %% [markdown]
# ## Predict first
#
# One factor can be counted, one can be timed in a few steps, and only learning needs training. Counting first.

# %% [markdown]
# ### Exercise operations_a_token — Operations a real token · ★★☆ · 10 minutes


# %% tags=["exercise"]
def operations_a_token(recipe):
    """Floating-point operations that a training step executes, for each *real* token of its batch. A float.

    recipe: a dictionary. "layers" L, "hidden" H, "inner" I, "vocabulary" V, "length" S of a row; "gated": whether an
    MLP has three matrices of H · I (True) or two; "scored": the share of all positions, padding included, that
    are scored; "sparse": whether the head works on those positions alone (True) or on all; "real": the share of
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
check("operations_a_token", operations_a_token)

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
    scored = rung.mask_rate * real if rung.head == "sparse" else 1  # only real tokens are scored
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
# smaller model {{predicted-size}} (if it learnt as much a token; whether it does, the climb must show). For *speed*
# there is a ceiling: how much faster the machine multiplies in bf16. For *learning* there is neither; it has to be
# measured.

# %%
ceiling = hardware.peak_flops(torch.bfloat16) / hardware.peak_flops(torch.float32)
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
# ### Exercise seconds_to — The time to a loss · ★★☆ · 8 minutes


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
check("seconds_to", seconds_to)

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
plots.show(figure, alt="Held-out loss against seconds of training, a line with markers for every rung of the ladder, "
           "numbered from 0, and a dotted line for knowing nothing. "
           f"{sum(b.loss < a.loss for a, b in zip(tracks.values(), list(tracks.values())[1:]))} of {len(LADDER)} rungs "
           f"end lower than the one before; the lowest end is that of: {min(tracks, key=lambda n: tracks[n].loss)}.")

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
# shows in the middle column. *Speed* holds all the rest of a step, too: dropout, norms, the optimiser. Look at the
# smaller model: it needs far fewer operations a token, by the formula. What that costs stands beside it: a first number
# below 1 says that it learns less from each token, a last one below 1 that small products use the machine less well.
#
# A label is what a change is *meant* for; the columns say what it does.

# %% [markdown]
# ## One step, looked at closely: rate and schedule
#
# Three rungs of the ladder (a rate, a warm-up, a decay) are three numbers of one curve: the learning rate against the
# share of the budget that is used. Which curve is best? `python -m benchmarks.schedules` has trained this course's
# encoder with many of them, each for the same few seconds; the figures are stored, so you can ask and get an answer at
# once.

# %%
asked = json.loads((lesson.root / "data" / "measured" / "schedules.json").read_text(encoding="utf-8"))
print(f"{asked['date']}, {asked['machine']}, torch {asked['torch']}: {len(asked['runs'])} runs of "
      f"{asked['seconds']:.0f} s, {asked['seeds']} seed(s) a setting: `{asked['command']}`")  # fmt: skip
RATES, WARMUPS = (sorted({one[field] for one in asked["runs"]}) for field in ("rate", "warmup"))


def ended(one):
    """The last held-out loss; nan where a run diverged."""
    return math.nan if one["diverged"] or not one["points"] else one["points"][-1][1]


# %% [markdown]
# Move rate, schedule and warm-up. The controls need a running notebook and obey the keyboard (arrow keys for sliders
# and for the list); the picture is the one at their start.


# %%
def schedule_figure(rate, schedule, warmup):
    """The rate's curve, the loss's curve, and where all rates end, for one schedule and warm-up."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 4.2))
    recipe = Recipe(learning_rate=rate, schedule=schedule, warmup=warmup)
    steps = [step / 200 for step in range(200)]
    left.plot([asked["seconds"] * step for step in steps], [1e3 * learning_rate(recipe, step) for step in steps])
    left.set(xlabel="seconds of training", ylabel="learning rate (thousandths)", ylim=(0, 1.1e3 * rate),
             title=f"{schedule}, warm-up {warmup:g}")  # fmt: skip
    draw_losses(middle, rate, schedule, warmup)
    draw_ends(right, rate, schedule, warmup)
    return figure


# %%
def draw_losses(axis, rate, schedule, warmup):
    """The chosen runs in front of all, which are one line with gaps: that is drawn faster."""
    points = [point for one in asked["runs"] for point in (*one["points"], (math.nan, math.nan))]
    axis.plot(*zip(*points), color="0.8", linewidth=0.8)
    chosen = [one for one in asked["runs"] if (one["rate"], one["schedule"], one["warmup"]) == (rate, schedule, warmup)]
    for one in chosen:
        axis.plot([at for at, _ in one["points"]], [loss for _, loss in one["points"]], "-o", color=plots.COLOURS[0])
    back = sum(one["restores"] for one in chosen)
    went = "diverged" if any(one["diverged"] for one in chosen) else f"went back {back} time(s)" if back else "steady"
    axis.set(xlabel="seconds of training", ylabel="held-out loss (nats)", title=f"rate {rate:g}: {went}")


def draw_ends(axis, rate, schedule, warmup):
    """The mean last loss of every rate, a line a schedule; a ring round what is chosen."""
    for (name, marker), line in zip({"constant": "o", "linear": "s", "cosine": "D"}.items(), ("-", "--", ":")):
        ends = [[ended(one) for one in asked["runs"] if (one["rate"], one["schedule"], one["warmup"]) == (
            each, name, warmup)] for each in RATES]  # fmt: skip
        means = [sum(of_rate) / len(of_rate) if of_rate else math.nan for of_rate in ends]
        axis.semilogx(RATES, means, marker=marker, linestyle=line, label=name)
        if name == schedule:
            axis.plot(rate, means[RATES.index(rate)], "o", markersize=16, markerfacecolor="none", color="black")
    axis.set_xticks(RATES, [f"{1e3 * each:g}" for each in RATES])
    axis.minorticks_off()
    ends = [end for end in map(ended, asked["runs"]) if math.isfinite(end)]
    axis.set(xlabel="learning rate (thousandths)", ylabel="held-out loss at the end (nats)",
             title=f"all, warm-up {warmup:g}", ylim=(min(ends) - 0.2, max(ends) + 0.2))  # fmt: skip
    axis.legend(fontsize=9)


# %%
live_picture(
    schedule_figure,
    alt="Left, the learning rate against seconds of training for the chosen schedule. Middle, the held-out loss of the "
    "run with it, in front of all other runs in grey. Right, the loss at the end against the learning rate, a line for "
    "each schedule at the chosen warm-up, with a ring round the chosen setting; none where a run diverged.",
    rate=Slider("learning rate", RATES, start=RATES[len(RATES) // 2]),
    schedule=Choice("schedule", ("constant", "linear", "cosine"), start="linear"),
    warmup=Slider("warm-up, share of the budget", WARMUPS, start=WARMUPS[len(WARMUPS) // 2]),
)

# %% [markdown]
# What to see: the form of the curves on the right. A rate that is too small does not get far in the time that there is;
# one that is too large gets nowhere, or jumps and goes back to an earlier state (`pretrain` does that by itself; the
# title says how often). Where the lowest point lies depends on warm-up and schedule, so a comparison of schedules at
# *one* rate is a comparison of that rate. And look how far neighbours lie apart before you believe a small difference:
# two seeds of one setting differ, too.

# %% [markdown]
# ## One step more: start where counting ends
#
# What does a masked language model learn first? Which tokens are *frequent* (one row of numbers, the first few steps),
# then which tokens have *the same neighbours*, and that a masked token's neighbours are worth a look. For the second
# and the third no gradient is needed: both can be counted or written down, and put into the weights before step 1.
#
# **The table.** Count which tokens stand within four of each other. Keep what is more frequent than chance would have
# it, $\max(0, \log \frac{p(a, b)}{p(a)\,p(b)})$, the positive part of their *pointwise mutual information*, and
# factorise that table to as many columns as the model is wide. This is how word vectors were made before neural
# networks made them; word2vec approximates the same table in many small steps.

# %%
tokens = Tape(text.train, text.tokenizer, 128).tokens
began = time.perf_counter()
vectors = token_vectors(neighbour_counts(tokens, len(text.tokenizer)), 128)
print(f"{len(tokens):,} tokens counted and factorised in {time.perf_counter() - began:.1f} s; nearest to")
alike = torch.nn.functional.normalize(vectors, dim=1)
for word in ("north", "river", "million", "exports", "president"):
    place = text.tokenizer.get_vocab().get(word)
    if place is None:  # a small text has a small vocabulary
        continue
    nearest = (alike @ alike[place]).topk(6).indices.tolist()
    print(f"{word:10s}: {', '.join(text.tokenizer.convert_ids_to_tokens([one for one in nearest if one != place]))}")

# %% [markdown]
# No step of training has been made. **The heads.** A rotary head (lesson @masking_dataset) knows how far a token is
# away only through the angle between a query and a key. Give all tokens one direction in common, take query and key
# from that, turn the query by one position, and the head reads its neighbour, whatever stands there: for the right
# one, its score at distance $d$ is a sum of $\cos(\theta_i\,(d - 1))$ over the fastest angles $\theta_i$. Head 0 gets
# the left neighbour, head 1 the right one, in the first two layers. What to make of what they read is left to training.

# %%
begins = EncoderForMaskedLM(replace(Recipe(), vocab_size=len(text.tokenizer)).config()).eval()
look_at_neighbours(begins)
with torch.no_grad():
    first = begins.model(tokens[:128][None], output_attentions=True).attentions[0][0]
print(f"{'reads at distance':18s}" + "".join(f"{distance:+6d}" for distance in range(-3, 4)))
for head, weights in enumerate(first):
    shares = [float(weights.diagonal(distance).mean()) for distance in range(-3, 4)]
    print(f"layer 0, head {head:<4d}" + "".join(f"{share:6.2f}" for share in shares))

# %% [markdown]
# The model is still a stock ModernBERT; only its first weights differ. `Recipe(start="neighbours")` does both,
# `"table"` and `"heads"` one each, and `"width"` is what this course started with up to here. Is it worth it?
# `python -m benchmarks.starts` has let `pretrain` run from all four, with what the start costs on the clock.

# %%
starts = json.loads((lesson.root / "data" / "measured" / "starts.json").read_text(encoding="utf-8"))
print(f"{starts['date']}, {starts['machine']}, torch {starts['torch']}: `{starts['command']}`\n")


def against(unit):
    """A run as a track along seconds (0) or tokens (2), so that ``ladder.speedup`` compares either."""
    return lambda run: ladder.Track(points=[(point[unit], point[1]) for point in run["points"]])


# %%
of_start = {name: [one for one in starts["runs"] if one["start"] == name] for name in Recipe.STARTS}
print(f"{'start':12s}{'nats at the end, by seed':>26s}{'times fewer tokens (95 %)':>30s}{'times as fast':>24s}")
for name, runs in of_start.items():
    claim = "start-both" if name == "neighbours" else f"start-{name}"
    lesson.record(claim, statistics.median(one["points"][-1][1] for one in runs))
    line = f"{name:12s}{' '.join(format(one['points'][-1][1], '.2f') for one in runs):>26s}"
    for unit, label, width in ((2, "tokens", 30), (0, "faster", 24)) if name != "width" else ():
        before, after = (map(against(unit), each) for each in (of_start["width"], runs))
        found = intervals.interval([math.log(ladder.speedup(a, b)) for a, b in zip(before, after)])
        low, mean, high = (math.exp(end) for end in (found.low, found.mean, found.high))
        line += format(f"{mean:.2f} ({low:.2f} to {high:.2f})", f">{width}s")
        lesson.record(f"{claim}-{label}", mean)
        if label == "tokens":
            lesson.record(f"{claim}-tokens-low", low)
    print(line)
lesson.record("start-seconds", starts["seconds"])

# %%
figure, axis = plt.subplots(figsize=(8, 4.4))
for number, (name, runs) in enumerate(of_start.items()):
    for one in runs:
        seconds, losses, _ = zip(*one["points"])
        axis.plot(seconds, losses, color=plots.COLOURS[number], linestyle=("-", "--", "-.", ":")[number],
                  marker="osD^"[number], markersize=4, linewidth=1.3,
                  label=name if one["seed"] == 0 else None)  # fmt: skip
axis.set(xlabel="seconds of training", ylabel="held-out loss (nats)")
axis.legend(title="start")
by_end = sorted(of_start, key=lambda name: -statistics.median(one["points"][-1][1] for one in of_start[name]))
plots.show(
    figure,
    alt="Held-out loss against seconds of training for four starts, told apart by marker and stroke, "
    f"{starts['seeds']} seeds each. From the highest end to the lowest, by the median: {', '.join(by_end)}.",
)

# %% [markdown]
# After {{start-seconds}} seconds, medians of the seeds; the ratios ask when a start was where the start by width ended:
#
# | start | nats | times fewer tokens | by its interval at least | times as fast by the clock |
# |---|---|---|---|---|
# | by width | {{start-width}} | | | |
# | the table | {{start-table}} | {{start-table-tokens}} | {{start-table-tokens-low}} | {{start-table-faster}} |
# | the heads | {{start-heads}} | {{start-heads-tokens}} | {{start-heads-tokens-low}} | {{start-heads-faster}} |
# | both | {{start-both}} | {{start-both-tokens}} | {{start-both-tokens-low}} | {{start-both-faster}} |
#
# No step is cheaper or faster, so the gain is *more learning a token*, and tokens say it best: the clock adds whatever
# else the machine did. Where "at least" is below 1, these few seeds have not seen a gain.
#
# Look at the curves before you multiply that into everything: they lie apart by *seconds*. What is given here is what
# training would have taught anyway, early on. So expect a smaller ratio of a longer run; these runs cannot say how much
# smaller.

# %% [markdown]
# ## Where does packing stop paying?
#
# Packing is no free lunch everywhere: somebody must cut and shuffle, and a row's documents read each other unless that
# is masked (lesson @masking_dataset).

# %% [markdown]
# ### Exercise packing_stops_paying — The least padding that is worth packing · ★★☆ · 8 minutes


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
check("packing_stops_paying", packing_stops_paying)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Padded rows: with a share p of padding, 1 / (1 − p) positions are worked on for each
# real token.</details>
# <details><summary>Hint 2</summary>Set both costs equal and solve for p.</details>

# %%
tape, rung = Tape(text.train, text.tokenizer, 128), replace(top, vocab_size=len(text.tokenizer))
source = tape.batches(rung)
next(source)
batch_seconds = timing.seconds(lambda: next(source), 20)
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
    found = intervals.interval([math.log(ladder.speedup(a, b)) for a, b in zip(before, after)])
    return tuple(map(math.exp, (found.low, found.mean, found.high)))


committed = {}
for before, after in zip(names, names[1:]):
    committed[after] = gain_of(of_seeds("climb", before), of_seeds("climb", after))
    low, mean, high = committed[after]
    loss = intervals.interval([one.loss for one in of_seeds("climb", after)])
    print(f"{after:42s} {mean:6.2f} times ({low:.2f} to {high:.2f}), ends at {loss.mean:.2f} nats")
ends = [one.loss for one in of_seeds("climb", names[-1])]
lesson.record("top-apart", max(ends) - min(ends))
lesson.record("decay-up", committed["decay on the clock"][1])
lesson.record("batch-up", committed["larger batches"][1])

# %% [markdown]
# Two things to see before the picture. **Seeds matter**: the three runs of the top rung differ in nothing else and
# ended {{top-apart}} nats apart. Hold that beside what single rungs bring. In so short a time a run may or may not
# leave the plateau of lesson @mlm_pretraining, where the model knows how often each word occurs and nothing else; and
# whoever leaves it falls fast. Where some seeds left it and others did not, the interval is wide.
#
# And **a gain belongs to a budget**. `pretrain`'s defaults are for minutes, and this benchmark gave each rung seconds:
# there the decay multiplies the speed by {{decay-up}} and the larger batch by {{batch-up}}. A rate that falls, and half
# as many steps, may keep a run on the plateau; then the number is below 1. (Lesson @mlm_pretraining, with more steps,
# found the schedule worth {{decay-gain}} nats.) So ask of every trick: at which budget?

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
    alt="A staircase of bars on a log scale, one a change, each standing on the one before, with 95 % intervals. The "
    f"highest step is “{max(committed, key=lambda name: committed[name][1])}”; "
    f"{sum(mean < 1 for _, mean, _ in committed.values())} of {len(committed)} steps lead down.",
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
totals = {kind: intervals.interval(values) for kind, values in logs.items()}
totals["whole"] = intervals.interval([sum(values) for values in zip(*logs.values())])
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
# The operations say yes: a dense head is a small part of a large model's work and nearly half of a small one's. Whether
# the clock can say it with three seeds of a few seconds, the intervals tell: the sparse head brought {{sparse-up}} on
# its way up and {{sparse-top}} at the top, the decay is worth {{decay-top}} there, packing {{packing-top}}. An interval
# that holds both numbers does not tell them apart. Either way, a number for "what trick X brings" means little without
# the recipe around it.

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
# seconds, the verdicts say which of them three seeds tell apart from nothing: Muon {{further-muon}}, fewer masks
# towards the end {{further-fewer}}, short rows first {{further-short}}, averaging {{further-the}}, more heads
# {{further-four}}.

# %% [markdown]
# ## The committed race: six recipes on one clock
#
# The ladder compares this course with itself. What about others? `python -m benchmarks.pretraining race` sets six
# recipes side by side, each in a process of its own, in turns, with the same text, tokenizer, scored positions and
# threads, and a clock that stands still during start-up and looks:
# - **article**: the article's recipe, repaired; **run_mlm**: `BertForMaskedLM` with the defaults of `Trainer`;
# - **bert**, **modernbert**: the library's two models under `Trainer`, *tuned*; **started**: the same ModernBERT with
#   this course's first weights, tuned as well;
# - **course**: `pretrain`.
#
# Is that fair? A rival that is not tuned proves nothing. So a *sweep* looked for the best settings of every tuned peer,
# this course's among them: the same moves (where a move does nothing to a peer another stands in for it), the same
# number of trials, the same seconds, a seed that is none of the race's. All begin at one setting, except that `started`
# and `course`, which have this course's recipe, begin with its start from counts, its optimiser Muon and twice the
# rate, and may go back to AdamW; the other two have no Muon to go to. The whole table is committed
# (`data/measured/pretraining_sweep.json`). Do not take the loss of a best trial for a promise: it is the luckiest of
# twelve, each with one seed, and flatters everybody. The race has other seeds.

# %%
race, swept = (json.loads((lesson.root / "data" / "measured" / f"pretraining_{name}.json").read_text(encoding="utf-8"))
               for name in ("race", "sweep"))  # fmt: skip
trials = {}
for name in race["peers"]:
    if name not in swept["peers"]:
        print(f"{name:11s} as published, not tuned")
        continue
    tuned = swept["peers"][name]
    trials[name] = len(tuned["trials"])
    knobs = ", ".join(f"{knob} {value}" for knob, value in tuned["best"].items())
    print(f"{name:11s} {trials[name]} trials of {tuned['seconds']:.0f} s, best: {knobs}")
lesson.record("race-trials-apart", max(trials.values()) - min(trials.values()));

# %% [markdown]
# Now the race. A loss at a time answers "what do I get for my minutes", a time to a loss "how long must I wait"; each
# is the median of the seeds. *MFU* is the share of the machine's peak that does useful work, and memory is the most
# that a trial's process held.

# %%
print(f"{race['date']}, {race['machine']}, torch {race['torch']}, {race['seconds']:.0f} s: `{race['command']}`\n")
order = sorted(race["peers"], key=lambda name: -race["peers"][name]["loss"][1])
times, goals = (list(race["peers"][order[0]][field]) for field in ("loss_at", "time_to"))
reached = [goal for goal in goals if any(row["time_to"][goal][1] is not None for row in race["peers"].values())]
print(f"{'':12s}" + "".join(f"{'at ' + str(round(float(at))) + ' s':>9s}" for at in times)
      + "".join(f"{'to ' + goal:>9s}" for goal in reached) + f"{'tokens/s':>10s}{'MFU':>7s}{'MB':>7s}")  # fmt: skip
for name in order:
    row = race["peers"][name]
    waits = [row["time_to"][goal][1] for goal in reached]
    print(f"{name:12s}" + "".join(f"{row['loss_at'][at][1]:9.2f}" for at in times)
          + "".join(f"{'never':>9s}" if wait is None else f"{wait:7.0f} s" for wait in waits)
          + f"{row['tokens_per_second'][1]:10,.0f}{row['mfu'][1]:7.1%}{row['memory_mb']:7,.0f}")  # fmt: skip
lesson.record("race-course-loss", race["peers"]["course"]["loss"][1])
lesson.record("race-rival-loss", min(row["loss"][1] for name, row in race["peers"].items() if name != "course"))
lesson.record("race-course-mfu", 100 * race["peers"]["course"]["mfu"][1])
lesson.record("race-article-mfu", 100 * race["peers"]["article"]["mfu"][1]);

# %%
figure, axis = plt.subplots(figsize=(9, 4.8))
for place, name in enumerate(order):
    for one in (one for one in race["trials"] if one["peer"] == name and one["seconds"] == race["seconds"]):
        seconds, losses = zip(*((at, loss) for at, loss, *_ in one["points"]))
        axis.semilogx(seconds, losses, color=plots.COLOURS[place], linestyle=("-", "--", "-.", ":")[place % 4],
                      marker="osD^vX"[place], markersize=5, markevery=3, linewidth=1.3,
                      label=name if one["seed"] == 0 else None)  # fmt: skip
shorter = [one["points"][-1] for one in race["trials"] if one["seconds"] != race["seconds"]]
axis.plot([at for at, *_ in shorter], [loss for _, loss, *_ in shorter], "*", color="black", markersize=11,
          label="course, with this budget")  # fmt: skip
ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if tick <= 1.2 * race["seconds"]]
axis.set_xticks(ticks, ticks)
axis.minorticks_off()
axis.set(xlabel="seconds of training (log scale)", ylabel="held-out loss (nats)",
         xlim=(0.9 * min(one["points"][0][0] for one in race["trials"]), 1.1 * race["seconds"]))  # fmt: skip
axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
plots.show(
    figure,
    alt="Held-out loss against seconds of training on a log scale, a line for each of six recipes and each seed, told "
    "apart by marker, stroke and colour, and stars where this course's recipe ends when it is given less time. By the "
    f"loss at the end, from the highest to the lowest: {', '.join(order)}.",
)

# %% [markdown]
# How many times as fast is this course's recipe? There are two fair questions. **In its run**: when was `course` where
# the peer ended? That reads a decaying schedule in its middle, so a number above 1 says too little. **By budget**:
# `course` ran with a half, a third, a sixth and a twelfth of the time, too; how many times as short may its budget be,
# if it is to end no worse than the peer? Only those few were tried, so "at least"; 0 says that even the whole one ended
# worse.

# %%
print(f"{'course against':15s}{'in its run (least to most)':>30s}{'by budget, at least':>30s}")
for name in order:
    if (found := race["speedups"].get(name)) is not None:
        cells = (f"{middle:.1f} ({low:.1f} to {high:.1f})" for low, middle, high in (found["times_as_fast"],
                                                                                     found["by_budget"]))
        print(f"{name:15s}" + "".join(f"{cell:>30s}" for cell in cells))
        lesson.record(f"race-{name.replace('_', '-')}", found["times_as_fast"][1])
        lesson.record(f"race-{name.replace('_', '-')}-budget", found["by_budget"][1])
lesson.record("race-long-not-by", race["long"]["not_by"]["times_as_fast"][1])
slow = json.loads((lesson.root / "data" / "measured" / "pretraining_long.json").read_text(encoding="utf-8"))
long = slow["long"]
print(f"\n{slow['date']}, `{slow['command']}`:")
print(f"{long['peer']} for {long['seconds']:4.0f} s: {long['loss']:.2f} nats")
for budget, (least, middle, most) in slow["shorter"].items():
    print(f"course  for {float(budget):4.1f} s: {middle:.2f} nats ({least:.2f} to {most:.2f})")
enough = min(float(budget) for budget, (_, _, most) in slow["shorter"].items() if most < long["loss"])
lesson.record("race-long-budget", long["seconds"] / enough)
lesson.record("race-long", long["times_as_fast"][1])
lesson.record("race-long-minutes", long["seconds"] / 60)
lesson.record("race-long-loss", long["loss"])

# %% [markdown]
# In the stored race (medians over the seeds; the lists above say how far seeds lie apart):
#
# | against | in its run, times as fast | by budget, at least |
# |---|---|---|
# | the article, repaired | {{race-article}} | {{race-article-budget}} |
# | run_mlm, defaults | {{race-run-mlm}} | {{race-run-mlm-budget}} |
# | bert, tuned | {{race-bert}} | {{race-bert-budget}} |
# | modernbert, tuned | {{race-modernbert}} | {{race-modernbert-budget}} |
# | started, tuned | {{race-started}} | {{race-started-budget}} |
#
# `course` ends at {{race-course-loss}} nats, the best of the others at {{race-rival-loss}}. A number above 1 says that
# this course's recipe was faster, one below 1 that the peer was; where the seeds lie on both sides of 1, the race was
# not decided. The article's recipe puts {{race-article-mfu}} % of the machine's peak to use and this course's
# {{race-course-mfu}} %: the share says how well a machine is used, and not how much is learned with it.
#
# A race is too short for the article's recipe: it hardly moves, and what it ends with, others have passed at the first
# look. So it was run once more, for {{race-long-minutes}} minutes, beside `course` with budgets of less than one. It
# came to {{race-long-loss}} nats. With a budget {{race-long-budget}} times as short `course` ends below that with every
# seed, and in its own run it was there {{race-long}} times as fast. To {{race-rival-loss}} nats, the best that any
# other recipe had in the race, the article's did not come. So all we know is a lower bound: `course` reaches that loss
# at least {{race-long-not-by}} times as fast. Waiting longer would raise the bound and change no verdict.
#
# Hold the rows beside each other. `run_mlm` and `bert` are the same class of the same library; what lies between them
# is rate, schedule, size, precision: rungs of this lesson. From `modernbert` to `started` the first weights and the
# optimiser change, from `started` to `course` the code of model and loop, each with the settings that the sweep found.
# Most of the gap to `modernbert` closes with `started`, and that is recipe; the code brings the rest.

# %% [markdown]
# ## And on a GPU?
#
# Two cores are always busy, so whatever saves operations saves time. The GPU below does {{gpu-peak}} times as many
# operations a second, and there the first question is another: *is it ever waiting?* A step is many hundred *kernels*,
# programs that the GPU runs one after the other, such as one matrix product. In a small model most are over in
# microseconds, and Python may need longer to ask for them than the GPU to run them.
#
# In `sslcourse/train/gpu_step.py` tokens and masks live on the GPU, and every row has the same number of masks. So no
# shape ever changes, and forward and backward pass can be **recorded** once and asked for by one call (a *CUDA graph*).
# Masks and optimiser are still asked for kernel by kernel.
#
# `python -m benchmarks.accelerator` sets that beside BERT and ModernBERT: layers compiled (torch joins several kernels
# into one), the same masks drawn on the device, and the best of eight settings, four rates and two sizes of batch,
# each tried for two seconds. `course rows` lets a token read its whole row as they do; `course` keeps the documents in
# a row apart. Both have this course's first weights, the optimiser Muon (it takes a matrix's update as a whole and
# makes all its directions equally strong), and the start from counts, whose seconds are on the clock. It ran on an H100.
#
# In the table, what stands before the bar was measured with full batches of 64 rows, all in turns; what stands behind
# it with each one's own best setting.

# %%
on_gpu = {name: json.loads((lesson.root / "data" / "measured" / f"accelerator_{name}.json").read_text(encoding="utf-8"))
          for name in ("30m", "110m")}  # fmt: skip


def in_training(row):
    """Tokens a second with the size of batch that was best."""
    return statistics.fmean(curve[-1][2] / curve[-1][0] for curve in row["curves"])


def behind(found, name, axis):
    """How many times as much of an axis (0: seconds, 2: tokens) the best peer needs to its own lowest loss, by seed."""
    theirs, ours = (found["contestants"][one]["curves"] for one in (found["ratios"]["best_peer"], name))
    ratios = []
    for their_curve, our_curve in zip(theirs, ours):
        goal = min(loss for _, loss, _ in their_curve)
        needed = (ladder.time_to([(point[axis], point[1]) for point in curve], goal)
                  for curve in (their_curve, our_curve))  # fmt: skip
        ratios.append(operator.truediv(*needed))
    return ratios


for size, found in on_gpu.items():
    print(f"{found['device']}, {size} weights, {found['date']}, torch {found['torch']}; `{found['command']}`")
    print(f"{'':12s}{'tokens/s':>10s}{'MFU':>7s} | {'rows':>4s}{'rate':>9s}{'tokens/s':>10s}{'lowest nats':>12s}"
          f"   {found['ratios']['best_peer']} needs, to its own lowest")  # fmt: skip
    for name, row in found["contestants"].items():
        ends = ", ".join(f"{min(loss for _, loss, _ in curve):.2f}" for curve in row["curves"])
        print(f"{name:12s}{row['tokens_per_second'][1]:10,.0f}{row['mfu'][1]:7.1%} | {row['batch']:4d}{row['rate']:9g}"
              f"{in_training(row):10,.0f}{ends:>12s}", end="")  # fmt: skip
        if name.startswith("course"):
            field = f"gpu-{size}-{name.split()[-1]}"
            lesson.record(f"{field}-mfu", 100 * row["mfu"][1])
            for what, axis in (("seconds", 0), ("tokens", 2)):
                ratios = behind(found, name, axis)
                lesson.record(f"{field}-{what}", statistics.geometric_mean(ratios))
                print(f"   {' and '.join(f'{ratio:.1f}' for ratio in ratios)} times the {what}", end="")
        print()
    peer = found["contestants"]["modernbert"]
    lesson.record(f"gpu-{size}-peer-mfu", 100 * peer["mfu"][1])
    lesson.record(f"gpu-{size}-rows-speed", found["ratios"]["course rows"]["tokens_per_second"]["modernbert"])
    lesson.record(f"gpu-{size}-peer-slower", peer["tokens_per_second"][1] / in_training(peer))
cpu_peak = statistics.median(one["peak_flops"] for one in race["trials"])
lesson.record("gpu-peak", on_gpu["110m"]["peak_flops"] / cpu_peak);

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
for panel, (size, found) in zip(panels, on_gpu.items()):
    for place, (name, row) in enumerate(found["contestants"].items()):
        for seed, curve in enumerate(row["curves"]):
            seconds, losses, _ = zip(*curve)
            panel.plot(seconds, losses, color=plots.COLOURS[place], linestyle=("-", "--", "-.", ":")[place],
                       marker="osD^"[place], markersize=4, markevery=3, label=name if seed == 0 else None)  # fmt: skip
    panel.set(title=f"{size.replace('m', ' M')} weights", xlabel="seconds of training, compiler excluded")
panels[0].set_ylabel("held-out loss (nats)")
panels[1].legend(fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
plots.show(
    figure,
    alt="Two panels, for 30 and 110 million weights: held-out loss against ten seconds of training on a GPU, two seeds "
    "each of BERT, ModernBERT, and this course's step with whole rows and with documents kept apart. BERT stays high, "
    "ModernBERT falls late, the two of this course fall within the first seconds and lie on each other.",
)

# %% [markdown]
# Take the three kinds apart again, with means of the two seeds.
#
# - **Operations a second**, with full batches, are about the same for all: of a large product measured on the same GPU
#   `course rows` reaches {{gpu-30m-rows-mfu}} and {{gpu-110m-rows-mfu}} %, ModernBERT {{gpu-30m-peer-mfu}} and
#   {{gpu-110m-peer-mfu}} %. A large matrix keeps a GPU busy whoever asks for it.
# - **Fewer operations a token**: the last layer runs at scored positions alone. With four layers `course rows` reads
#   {{gpu-30m-rows-speed}} times as many tokens a second as ModernBERT for it, with fifteen {{gpu-110m-rows-speed}}
#   times: there Muon costs what the layer saves.
# - **Learning per token** is most of the rest with 110 million weights: ModernBERT needs {{gpu-110m-rows-seconds}}
#   times the seconds of `course rows`, and {{gpu-110m-rows-tokens}} times the tokens. With 30 million it needs
#   {{gpu-30m-rows-seconds}} times the seconds and only {{gpu-30m-rows-tokens}} times the tokens. There it is the batch:
#   `course rows` was best with full ones, ModernBERT with small ones, which it reads {{gpu-30m-peer-slower}} times as
#   slowly.
#
# Keeping documents apart does not pay in speed: `course` reads as many tokens a second as `course rows`, within a
# hundredth or two, though it needs fewer operations, so that its share of the peak is lower ({{gpu-30m-course-mfu}} and
# {{gpu-110m-course-mfu}} %). In rows this short FlexAttention loses what skipping saves. It learns a little more from a
# token: {{gpu-30m-course-seconds}} and {{gpu-110m-course-seconds}} times as fast as ModernBERT.
#
# What these numbers do not show:
# - Two seeds draw other batches and masks, and share the first weights. Ten seconds are short.
# - Settings were chosen in trials of two seconds, which favours whoever starts fast. With 30 million weights the best
#   rate was the largest tried, ModernBERT's and ours.
# - BERT with 110 million weights never left the plateau of token frequencies, at any rate; its row says nothing more.
# - No stock ModernBERT with our optimiser and first weights ran here, as `started` did in the race above.
# - BERT's passes could have been recorded and were not; of ModernBERT's only the layers could, since the sparse head
#   has another number of rows at each step.
#
# After that run two things changed in our step: what a layer hands to the next is bf16 and no longer fp32, and
# attention is asked of whichever of two libraries is faster on the GPU. Then, on an H100 again, the step was timed
# whole and with one part taken out or exchanged, all in turns. Before you look: which part matters most, the compiler,
# the recording, or the numbers between the layers? And what does Muon cost?

# %%
for size in on_gpu:
    stored = lesson.root / "data" / "measured" / f"accelerator_{size}_parts.json"
    found = json.loads(stored.read_text(encoding="utf-8"))
    whole = found["contestants"]["whole step"]
    print(f"{found['device']}, {size} weights; `{found['command']}`")
    print(f"{'':20s}{'tokens/s (least to most)':>36s}{'of the whole':>14s}{'MFU':>7s}")
    for name, row in found["contestants"].items():
        least, middle, most = row["tokens_per_second"]
        share = middle / whole["tokens_per_second"][1]
        print(f"{name:20s}{middle:12,.0f} ({least:9,.0f} to {most:9,.0f}){share:14.2f}{row['mfu'][1]:7.1%}")
        if row is not whole:
            lesson.record(f"gpu-{size}-part-{name.replace(' ', '-').lower()}", share)
    lesson.record(f"gpu-{size}-step-mfu", 100 * whole["mfu"][1])
    lesson.record(f"gpu-{size}-attention", found["attention_seconds"]["flash"] / found["attention_seconds"]["cudnn"])
    print()

# %% [markdown]
# **What to see:** the compiler, by far. Without it a step of many small kernels writes every result to memory and reads
# it again, and {{gpu-110m-part-not-compiled}} of the tokens are left. Recording brings little at this width: without it
# {{gpu-30m-part-kernel-by-kernel}} are left with four layers and {{gpu-110m-part-kernel-by-kernel}} with fifteen. bf16
# between the layers brings about as much: {{gpu-110m-part-layers-hand-on-fp32}} are left with fp32. One attention
# library takes {{gpu-110m-attention}} times the time of the other. And Muon has a price: with AdamW
# {{gpu-30m-part-adamw-for-muon}} and {{gpu-110m-part-adamw-for-muon}} times as many tokens a second, so Muon has to
# learn that much more from a token before it gains anything. The whole step now reaches {{gpu-30m-step-mfu}} and
# {{gpu-110m-step-mfu}} % of the peak. The peers' attention would gain from the faster library too, and nobody's time to
# a loss was taken again.

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
# ### Exercise flaws — Spot the flaws · ★★☆ · 10 minutes


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
check("flaws", flaws)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Two flaws show on one side alone, the other three only by comparing.</details>
# <details><summary>Hint 2</summary><code>len(set(seeds))</code> counts different seeds.</details>

# %% [markdown]
# And ours? In the ladder the masks and the clock are the same for all rungs, seeds are three, nothing is compiled. But
# the rungs are *not tuned one by one*: the rate of the fifth rung is not the best for the fifth rung. Tuned rivals
# stand in the race. Ask it the five questions, too: the sweep gave every tuned peer as many trials, but `article` and
# `run_mlm` are as published and were not tuned at all, so a ratio to them says what a *recipe* is worth, not a library.
# And the GPU? Compiling is off the clock for all, masks and trials are the same; but the trials were short, and there
# are two seeds with the same first weights.

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
# - Levy, Goldberg and Dagan 2015, [counts that equal word2vec](https://aclanthology.org/Q15-1016/); Trockman and
#   Kolter 2023, [first weights that mimic trained ones](https://arxiv.org/abs/2305.09828).
# - Izmailov et al. 2018, [weight averaging](https://arxiv.org/abs/1803.05407); Jordan et al. 2024,
#   [Muon](https://kellerjordan.github.io/posts/muon/).
# - Dehghani et al. 2021, [The efficiency misnomer](https://arxiv.org/abs/2110.12894): parameters, operations and time
#   are three things.
