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
# # What makes transfer hold, and a look inside
#
# **In this lesson you measure which of a dozen well-known remedies helps your model on countries it has not seen, teach
# the encoder another kind of text and see what it forgets, and ask it what it knows and why it answers.**
#
# *Time*: about 45 minutes of reading and exercises; the machine works for about five of them (and four more if the
# encoder has to be made first).
#
# *You need to know*: fine-tuning, entity F1, paired differences (lesson @fine_tuning).
#
# *You will be able to*
# - measure a remedy alone, on paired seeds, and say "no difference seen" when there is none;
# - attack a model's embeddings and train against the attack;
# - move an encoder to another domain, and keep it from forgetting the old one;
# - probe its layers, attribute an answer to its words, and check that the attribution means something;
# - let Optuna search within a fixed budget, and compare it with spending the budget otherwise.

# %% tags=["parameters"]
profile = "auto"

# %%
from coursekit import start

lesson = start("generalization", profile)

# %%
import copy
import json
import random
import time
from collections import Counter, defaultdict
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from sslcourse.data import corpus, labelled, python_docs, tokenizer as wordpiece
from sslcourse.measure import intervals
from sslcourse.studies import lesson_encoder
from sslcourse.tasks import encoding, fitting, look_inside, pretrained_bodies, robustness, scores, task_heads
from sslcourse.tasks.fitting import Settings, fit, predict
from sslcourse.tasks.robustness import (
    KeepBest, WeightAverage, adversarial, augmented, drop_spans, drop_tokens, replace_tokens,
)
from sslcourse.models.lora import add_lora
from sslcourse.objectives.masked_lm import bits_per_byte
from sslcourse.train.recipe import Recipe
from sslcourse.train.step import evaluate
from sslcourse.train.token_rows import held_out_rows
from coursekit import Choice, Slider, check, live_picture, plots

full = lesson.profile != "quick"
SEEDS = range(lesson.choose(quick=2, full=5))

# %% [markdown]
# ## One task, few labels, a fixed ruler
#
# To *generalise* is to be right on what was not in the training set. Here that is: person names in countries from
# which no sentence was labelled. With few labels a model has every chance to learn them by heart, so remedies have
# something to do.
#
# The ruler stays fixed: the same labelled sentences at the same seed for every remedy, the same steps, entity F1 on
# the test countries. What is compared is the *difference* to plain fine-tuning, seed by seed.
#
# Plain fine-tuning must be at its best, or remedies are praised for making up for a bad learning rate. So its rate, and
# after it the strength of every remedy that has one, was chosen beforehand on the *validation* countries, among three
# or four each, by runs with three other seeds (`python -m benchmarks.remedies` repeats that). The lesson reads its
# choices from the stored figures:

# %%
which = lesson.choose(quick={"steps": 40, "recipe": Recipe(batch_size=8), "every": 8}, full={})
run = lesson_encoder.load(**which, progress=lesson.live)
tokenizer, body = run.tokenizer, run.model.model

TAGS = ["O", "B-PER", "I-PER"]
names = labelled.person_names()
COUNT, STEPS = lesson.choose(quick=(16, 4), full=(100, 100))

def stored(name):
    """Figures of a longer run; prints where they come from."""
    figures = json.loads((lesson.root / "data" / "measured" / f"{name}.json").read_text(encoding="utf-8"))
    print(f"stored: {figures['date']}, {figures['machine']}, `{figures['command']}`")
    return figures


strengths, BEST = stored("remedies_strength"), {}
print("entity F1 on validation, by strength:")
for name, tried in strengths["entity_f1"].items():
    mean_of = {float(strength): sum(found) / len(found) for strength, found in tried.items()}
    BEST[name.split(",")[0]] = max(mean_of, key=mean_of.get)
    print(f"{name:30s}", ", ".join(f"{strength:g}: {mean:.3f}" for strength, mean in mean_of.items()))
PLAIN = Settings(steps=STEPS, learning_rate=BEST["plain"], precision="fp32")  # bf16 gains no time at this size


def encode_names(rows):
    return encoding.encode_tags(tokenizer, [row.words for row in rows], [row.tags for row in rows], TAGS)


def labelled_rows(seed):
    return random.Random(seed).sample(names["train"], COUNT)


# %%
splits = {}
for split, most in (("validation", lesson.choose(quick=30, full=300)), ("test", lesson.choose(quick=30, full=None))):
    rows = names[split][:most]
    splits[split] = ([row.tags for row in rows], encode_names(rows))


def entity_f1(tags, split):
    return scores.entity_score(splits[split][0], [[TAGS[tag] for tag in row] for row in tags]).f1


def score(model, split="test"):
    return entity_f1(predict(model, splits[split][1]), split)


# %%
def train(seed, *, what="pretrained", dropout=0.0, prepare=None, sample=None, hooks=None, **settings):
    """Plain fine-tuning, or with one thing changed. ``hooks`` makes fit's hooks, anew for each run."""
    torch.manual_seed(seed)
    start_from = copy.deepcopy(body) if what == "pretrained" else pretrained_bodies.untrained(body, seed)
    model = task_heads.TokenClassifier(start_from, len(TAGS), dropout)
    if prepare:
        prepare(model)
    hooks = hooks(seed) if hooks else {}
    examples = encode_names(labelled_rows(seed if sample is None else sample))
    fit(model, examples, replace(PLAIN, seed=seed, **settings), **hooks)
    if hasattr(hooks.get("on_step"), "restore"):
        hooks["on_step"].restore(model)
    return model


model = train(0)
print(f"plain fine-tuning on {COUNT} sentences: entity F1 {score(model):.3f} on the test countries")
seen = encode_names(labelled_rows(0))
own = [[TAGS[tag] for tag in row] for row in predict(model, seen)]
print(f"on the very sentences it was trained on: {scores.entity_score([r.tags for r in labelled_rows(0)], own).f1:.3f}")

# %% [markdown]
# The gap between the two numbers is what this lesson is about. The model has learned its sentences; it has not learned
# names as well.

# %% [markdown]
# ## The remedies, one by one
#
# Each goes at the gap from another side. First the ones that are one number in `Settings`:
#
# - **dropout** hides a share of the vector that the head reads, so that no coordinate is indispensable;
# - **weight decay** pulls matrices towards zero: small weights cannot draw wild borders;
# - **layer-wise learning rates** let lower layers, whose knowledge is the most general, move less.

# %% [markdown]
# ### Exercise layer_rates — Rates by layer · ★☆☆ · 5 minutes
#
# The head is new and learns at the full rate. Each floor below learns at `decay` times the rate of the one above it.


# %% tags=["exercise"]
def layer_rates(layers, rate, decay):
    """The learning rates from the bottom up: embeddings, layer 1, ..., layer ``layers``, head. A list of layers + 2.

    The head has ``rate``; every floor below has ``decay`` times the rate of the floor above it. layers >= 0, and
    0 < decay <= 1.
    """
    ### BEGIN SOLUTION
    return [rate * decay ** (layers + 1 - depth) for depth in range(layers + 2)]
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("layer_rates", layer_rates)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Begin at the head and walk down; then turn the list round.</details>
# <details><summary>Hint 2</summary>The embeddings are <code>layers + 1</code> floors below the head.</details>

# %% [markdown]
# ### Other words, same labels
#
# **Augmentation** shows the model sentences that nobody labelled but whose labels are known. Tokens may be hidden
# behind `[MASK]`, singly or in runs. They may be replaced, too.
#
# By synonyms? No lexicon ships with Python, and a course that runs offline cannot fetch one. But we own a model that
# knows which words fit a place: the encoder itself. It draws the replacements. They *fit*, which need not mean that
# they mean the same: a risk, and the table will tell.

# %%
example = names["test"][41]
ids = torch.tensor(encode_names([example])[0]["input_ids"])[None]
print("as it is  ", " ".join(tokenizer.convert_ids_to_tokens(ids[0])))
for name, change in {
    "tokens": drop_tokens(tokenizer, 0.2, seed=1),
    "spans": drop_spans(tokenizer, 0.2, seed=1),
    "replaced": replace_tokens(run.model, tokenizer, 0.2, seed=1),
}.items():
    print(f"{name:10s}", " ".join(tokenizer.convert_ids_to_tokens(change(ids)[0])))

# %% [markdown]
# ### The worst words
#
# Random changes are easy to bear. **Adversarial training** looks for the hardest: a small shift $r$ of the embeddings
# $e$ that raises the loss most. To first order that is a step along the gradient $g$ (the *fast gradient method*):
#
# $$r = \epsilon \, \lVert e \rVert \, \frac{g}{\lVert g \rVert}$$
#
# The model then trains on the shifted batch, too. With several small steps, each pulled back into the ball of that
# radius, the attack is stronger and dearer (*projected gradient*).
#
# We measure $\epsilon$ as a share of the sequence's own embeddings, so that it means the same for every model.

# %% [markdown]
# ### Exercise fast_gradient — The fastest way up · ★★☆ · 10 minutes
#
# One shift for each *sequence*: its length is that of all its rows together. Padding is not text, so it neither moves
# nor counts.


# %% tags=["exercise"]
def fast_gradient(gradient, real, size):
    """A shift of length ``size`` [batch] along each sequence's gradient [batch, seq, hidden]; 0 where that is zero.

    ``real`` [batch, seq] is True where there is a token and False at padding, which may stand anywhere and where the
    shift must be 0. The length is the Euclidean norm over all the numbers of a sequence. Gradients may be as small as
    1e-10; the shift is as long as for large ones.
    """
    ### BEGIN SOLUTION
    gradient = gradient * real[..., None]
    norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
    return gradient * (size / norm)[:, None, None]
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("fast_gradient", fast_gradient)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>First set the gradient at padding to zero; then take the norm.</details>
# <details><summary>Hint 2</summary><code>flatten(1)</code> makes one row of numbers a sequence.</details>
# <details><summary>Hint 3</summary>Division by zero gives nan: keep the norm away from zero.</details>

# %% [markdown]
# How much does such a shift hurt, beside one of the same length in a random direction? On the model that we trained
# above, on test sentences:

# %%
batch = encoding.collate(splits["test"][1][:32], tokenizer.pad_token_id)
real = batch["attention_mask"].bool()
before = {name: weight.clone() for name, weight in model.named_parameters()}
with robustness.shifted(model, None) as seen:
    loss = model(**batch).loss
loss.backward()
clean = loss.item()
rows, gradient = seen["rows"].detach(), seen["rows"].grad
length = (rows * real[..., None]).flatten(1).norm(dim=1)[:, None, None]

EPSILONS = [0.01, 0.02, 0.05, 0.1, 0.2]
worst, blind = [], []
noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
for epsilon in EPSILONS:
    for direction, losses in ((gradient, worst), (noise, blind)):
        shift = robustness.ascent(direction, real, epsilon * length)
        with torch.no_grad(), robustness.shifted(model, shift):
            losses.append(float(model(**batch).loss))
ratio = shift.flatten(1).norm(dim=1) / (epsilon * length.flatten())
lesson.record("attack-length", float((ratio - 1).abs().max()))
print(f"the shifts are {float(ratio.min()):.6f} to {float(ratio.max()):.6f} times as long as asked for")

# %%
figure, axis = plt.subplots()
axis.plot([0, *EPSILONS], [clean, *worst], "-o", label="along the gradient")
axis.plot([0, *EPSILONS], [clean, *blind], "-s", label="in a random direction")
axis.set(xlabel="ε, length of the shift as a share of the embeddings", ylabel="loss on test sentences (nats)")
axis.legend()
plots.show(
    figure,
    alt="Loss against the length of a shift of the embeddings: along the gradient it rises steeply, in a random "
    "direction it stays almost level.",
)
if full:
    lesson.record("attack-clean", clean)
    lesson.record("attack-blind", blind[2])
    lesson.record("attack-worst", worst[2])

# %% [markdown]
# What to see: the loss is {{attack-clean}}. A shift of a twentieth of the embeddings' length makes it
# {{attack-blind}} in a random direction and {{attack-worst}} along the gradient. In a space of thousands of dimensions
# few directions are bad, and the gradient points into one of them.
#
# The attack never touches the weights: the shift is added behind the table, for one pass, and the table is what it was.

# %%
with torch.random.fork_rng(devices=[]):
    adversarial(epsilon=0.05, steps=2)(model, batch)
moved = max(float((weight - before[name]).detach().abs().max()) for name, weight in model.named_parameters())
lesson.record("attack-moves-weights", moved)
print(f"largest change of a weight: {moved}")

# %% [markdown]
# ### Which weights to keep
#
# **Early stopping** scores the model on *validation* countries now and then and keeps the best weights. **Weight
# averaging** keeps the mean of the weights over the last steps: steps scatter around a valley, and their mean lies
# nearer to its floor. An **ensemble** of several seeds averages not weights but probabilities, at several times the
# price. **LoRA** may regularise by having little to fit with.

# %% [markdown]
# ### Exercise average_states — The mean of the weights · ★★☆ · 8 minutes
#
# Average several `state_dict`s. Weights are real numbers; a counter among them is an integer, and the mean of counters
# means nothing.


# %% tags=["exercise"]
def average_states(states):
    """A list of state dicts with equal keys -> one new dict: the mean of floating-point tensors, of their own dtype.

    Tensors that are not floating point are taken from the last state. A mean of 16-bit numbers is computed in fp32 and
    rounded once. No tensor of the result shares memory with a state.
    """
    ### BEGIN SOLUTION
    mean = {}
    for name, last in states[-1].items():
        if last.is_floating_point():
            total = sum(state[name].float() if last.dtype != torch.float64 else state[name] for state in states)
            mean[name] = (total / len(states)).to(last.dtype)
        else:
            mean[name] = last.clone()
    return mean
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("average_states", average_states)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary><code>tensor.is_floating_point()</code> tells the two kinds apart.</details>
# <details><summary>Hint 2</summary>In bf16, 256 + 1 is 256. Go to fp32 before you add, and back at the end.</details>
# <details><summary>Hint 3</summary>The result must not share memory with the states: a later step would change
# it.</details>

# %% [markdown]
# `WeightAverage` does the same while training runs, without storing a state for every step: a running mean. The two
# must agree.

# %%
kept, running = [], WeightAverage(first_step=2)


def keep_both(step, model):
    running(step, model)
    if step >= 2:
        kept.append(copy.deepcopy(model.state_dict()))


train(0, steps=4, hooks=lambda seed: {"on_step": keep_both})
wanted = {name: torch.stack([state[name] for state in kept]).mean(0) for name in kept[0]}
gap = max(float((running.mean[name] - value).abs().max()) for name, value in wanted.items())
lesson.record("average-difference", gap)
print(f"largest difference between the running mean and the mean of {len(kept)} stored states: {gap:.1g}")

# %% [markdown]
# ## The table
#
# Every remedy alone, on the same sentences, five seeds each, at the strength chosen above. The untrained twin of lesson
# @fine_tuning stands at the foot: what pretraining is worth, as a yardstick for all the rest.
#
# One unfairness is left in: early stopping looks at 300 labelled *validation* sentences, three times what the others
# have. The table does not charge it for them.

# %%
def every(count):
    return max(1, STEPS // count)


def changing(make):
    """Hooks that train on changed ids, drawn anew in every run."""
    return lambda seed: {"backward": augmented(make(seed))}


averaged_from = max(1, round(BEST["weight averaging"] / 100 * STEPS))  # the stored choice was made for 100 steps


def early(seed):
    return {"on_step": KeepBest(lambda model: score(model, "validation"), every=every(5), patience=2)}


REMEDIES = {
    "plain": {},
    "dropout": {"dropout": BEST["dropout"]},
    "weight decay": {"weight_decay": BEST["weight decay"]},
    "layer-wise rates": {"layer_decay": BEST["layer-wise rates"]},
    "LoRA, rank 8": {"prepare": lambda model: add_lora(model.body, rank=8), "learning_rate": BEST["LoRA of rank 8"]},
    "early stopping": {"hooks": early},
    "token dropout": {"hooks": changing(lambda seed: drop_tokens(tokenizer, BEST["token dropout"], seed))},
    "span masking": {"hooks": changing(lambda seed: drop_spans(tokenizer, BEST["span masking"], seed))},
    "replaced words": {
        "hooks": changing(lambda seed: replace_tokens(run.model, tokenizer, BEST["replaced words"], seed))},
    "FGM": {"hooks": lambda seed: {"backward": adversarial(BEST["FGM"])}},
    "PGD, 3 steps": {"hooks": lambda seed: {"backward": adversarial(BEST["PGD of 3 steps"], steps=3)}},
    "weight averaging": {"hooks": lambda seed: {"on_step": WeightAverage(first_step=averaged_from)}},
    "from scratch": {"what": "scratch"},
}  # fmt: skip

# %%
f1, seconds, trained = defaultdict(list), defaultdict(list), {}
for seed in SEEDS:  # interleaved, so that a busy moment of the machine hits all alike
    for name, change in REMEDIES.items():
        began = time.perf_counter()
        model = train(seed, **change)
        seconds[name].append(time.perf_counter() - began)
        f1[name].append(score(model))
        trained[name] = fitting.trained_parameters(model)

# %% [markdown]
# The ensemble: three models a seed, trained on the same sentences with other heads and another order of batches; the
# mean of their probabilities decides.

# %%
MEMBERS = 3
for seed in SEEDS:
    began = time.perf_counter()
    members = [train(seed + 1000 * member, sample=seed) for member in range(MEMBERS)]
    seconds["ensemble of 3"].append(time.perf_counter() - began)
    chances = [robustness.probabilities(model, splits["test"][1]) for model in members]
    tags = [sum(of_models).argmax(-1).tolist() for of_models in zip(*chances)]
    f1["ensemble of 3"].append(entity_f1(tags, "test"))
trained["ensemble of 3"] = MEMBERS * trained["plain"]

# %% [markdown]
# And all that cost nothing extra at once: dropout, decay, layer-wise rates, token dropout, averaging. If gains added
# up, this would gain the sum.

# %%
TOGETHER = ["dropout", "weight decay", "layer-wise rates", "token dropout", "weight averaging"]
together = {name: value for remedy in TOGETHER for name, value in REMEDIES[remedy].items() if name != "hooks"}
for seed in SEEDS:
    began = time.perf_counter()
    hooks = {
        "backward": augmented(drop_tokens(tokenizer, BEST["token dropout"], seed)),
        "on_step": WeightAverage(first_step=averaged_from),
    }
    model = train(seed, hooks=lambda seed, hooks=hooks: hooks, **together)
    seconds["five at once"].append(time.perf_counter() - began)
    f1["five at once"].append(score(model))
trained["five at once"] = trained["plain"]

# %% [markdown]
# A counting baseline for scale, as in lesson @fine_tuning: each word gets the tag that it had most often in the
# labelled sentences.

# %%
def memory(seed):
    counts = defaultdict(Counter)
    for row in labelled_rows(seed):
        for word, tag in zip(row.words, row.tags):
            counts[word][tag] += 1
    rows = names["test"][: len(splits["test"][0])]
    most = {word: TAGS.index(of_word.most_common(1)[0][0]) for word, of_word in counts.items()}
    return [[most.get(word, 0) for word in row.words] for row in rows]


dumb = intervals.interval([entity_f1(memory(seed), "test") for seed in SEEDS])
print("memory of words:", dumb)


# %%
def median(values):
    return sorted(values)[len(values) // 2]


def verdict(gain):
    """Computed, not typed: the whole interval of the paired difference on one side of zero, or no difference seen."""
    return "helps" if gain.low > 0 else "hurts" if gain.high < 0 else "no difference seen"


gains, verdicts = {}, {}
print(f"{'change':21s} {'entity F1':22s} {'paired difference':24s} {'trained':>10s} {'minutes':>8s}  verdict")
for name in f1:
    minutes = median(seconds[name]) / 60
    line = f"{name:21s} {intervals.interval(f1[name])!s:22s} "
    if name == "plain":
        line += f"{'':24s} {trained[name]:10,} {minutes:8.3f}"
    else:
        gains[name] = intervals.interval([a - b for a, b in zip(f1[name], f1["plain"])])
        verdicts[name] = verdict(gains[name])
        line += f"{gains[name]!s:24s} {trained[name]:10,} {minutes:8.3f}  {verdicts[name]}"
    print(line)

# %% tags=["cover"]
order = sorted(gains, key=lambda name: gains[name].mean)
figure, axis = plt.subplots(figsize=(8, 5))
for place, name in enumerate(order):
    gain = gains[name]
    marker = {"helps": "o", "hurts": "X", "no difference seen": "s"}[verdicts[name]]
    axis.errorbar(gain.mean, place, xerr=[[gain.mean - gain.low], [gain.high - gain.mean]], fmt=marker, capsize=3,
                  color=plots.COLOURS[{"helps": 0, "hurts": 3, "no difference seen": 6}[verdicts[name]]])  # fmt: skip
axis.axvline(0, color="black", linewidth=1)
axis.set_yticks(range(len(order)), order)
axis.set(xlabel="entity F1, paired difference to plain fine-tuning (95 % interval)")
plots.show(
    figure,
    alt="Paired difference to plain fine-tuning for each remedy, with intervals: most lie around zero, starting from "
    "scratch lies far below it. Circles mark what helps, crosses what hurts, squares where no difference is seen.",
)

# %%
remedies = [name for name in gains if name not in ("from scratch", "five at once")]
helped = [name for name in remedies if verdicts[name] == "helps"]
summed = sum(gains[name].mean for name in TOGETHER)
print("helps:", ", ".join(helped) or "none")
print(f"five at once: {gains['five at once'].mean:+.3f}; their gains added up would be {summed:+.3f}")
if full:
    lesson.record("plain-entity", intervals.interval(f1["plain"]).mean)
    lesson.record("scratch-gain", gains["from scratch"].mean)
    lesson.record("dumb-entity", dumb.mean)
    lesson.record("remedies-helping", len(helped))
    lesson.record("remedies-hurting", sum(verdicts[name] == "hurts" for name in remedies))
    lesson.record("best-remedy-gain", max(gains[name].mean for name in remedies))
    lesson.record("fgm-gain", gains["FGM"].mean)
    lesson.record("token-gain", gains["token dropout"].mean)
    lesson.record("ensemble-gain", gains["ensemble of 3"].mean)
    lesson.record("together-gain", gains["five at once"].mean)
    lesson.record("together-sum", summed)
    lesson.record("pgd-time", median(seconds["PGD, 3 steps"]) / median(seconds["plain"]))

# %% [markdown]
# In the stored run plain fine-tuning reaches {{plain-entity}} and a memory of words {{dumb-entity}}. Of the twelve
# remedies {{remedies-helping}} help, {{remedies-hurting}} hurt, and for the others five seeds show no difference. The
# largest mean gain is {{best-remedy-gain}}; the ensemble brings {{ensemble-gain}} at three times the price, FGM
# {{fgm-gain}} at twice, and PGD takes {{pgd-time}} times as long as plain training.
#
# Hold that beside the last line: starting from scratch costs {{scratch-gain}}. **Pretraining is the remedy; the others
# are trimmings.**
#
# Mind how this table may deceive. Twelve intervals of 95 % are twelve chances for luck: one in twenty "helps" or
# "hurts" where there is nothing. And "no difference seen" with five seeds means smaller than the interval, not zero.
#
# An interval shrinks with the root of the number of seeds. So for the remedies that looked best a stored run repeats
# the comparison with four times as many:

# %%
more = stored("remedies_twenty_seeds")["entity_f1"]
twenty = {name.split(",")[0]: intervals.interval([a - b for a, b in zip(values, more["plain"])])
          for name, values in more.items() if name != "plain"}  # fmt: skip
for name, gain in twenty.items():
    print(f"{name:18s} {len(more['plain'])} seeds, paired difference {gain}: {verdict(gain)}")
if full:
    lesson.record("twenty-fgm-gain", twenty["FGM"].mean)
    lesson.record("twenty-fgm-low", twenty["FGM"].low)
    lesson.record("twenty-helping", sum(one.low > 0 for one in twenty.values()))

# %% [markdown]
# With twenty seeds {{twenty-helping}} of the four are told apart from plain fine-tuning. FGM's gain is
# {{twenty-fgm-gain}}, at least {{twenty-fgm-low}} by its interval. Nothing changed but the number of seeds: *a remedy
# that five runs cannot see may still be real, and needs more runs, not more hope.*
#
# What would you have concluded from fewer? Pretend that only some of the twenty were run: choose a remedy, move the
# number of seeds, and then move the draw, which says *which* seeds came first. The controls need a running notebook and
# obey the keyboard (arrow keys); the picture is the one at their start.


# %%
DIFFERENCES = {name.split(",")[0]: [a - b for a, b in zip(values, more["plain"])]
               for name, values in more.items() if name != "plain"}  # fmt: skip
MARKER = {"helps": "o", "hurts": "X", "no difference seen": "s"}
COLOUR = {"helps": plots.COLOURS[0], "hurts": plots.COLOURS[3], "no difference seen": plots.COLOURS[6]}


def seeds_figure(remedy, count, shuffle):
    """The differences of the first ``count`` seeds in one order of the twenty, beside the interval after each."""
    order = random.Random(shuffle).sample(DIFFERENCES[remedy], len(DIFFERENCES[remedy]))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(2, 3), sharey=True)
    left.plot(range(1, count + 1), order[:count], "o", label="run")
    later = range(count + 1, len(order) + 1)
    left.plot(later, order[count:], "o", color="grey", markerfacecolor="none", label="not yet")
    left.set(xlabel="seed, in the order of the draw", ylabel=f"entity F1: {remedy} less plain")
    found = {seeds: intervals.interval(order[:seeds]) for seeds in range(2, len(order) + 1)}
    for said, marker in MARKER.items():
        points = {seeds: gain for seeds, gain in found.items() if verdict(gain) == said}
        reach = [[g.mean - g.low for g in points.values()], [g.high - g.mean for g in points.values()]]
        right.errorbar(list(points), [g.mean for g in points.values()], yerr=reach, fmt=marker, color=COLOUR[said],
                       capsize=3, label=said)  # fmt: skip
    right.axvline(count, color="black", linestyle=":", linewidth=1)
    said = f"after {count} seeds: {found[count]}, {verdict(found[count])}"
    right.set(xlabel="seeds so far", title=said, ylim=(-0.25, 0.35))
    for axis in (left, right):
        axis.axhline(0, color="black", linewidth=1)
        axis.legend(fontsize=9, loc="lower right")
        axis.set_xticks(range(2, len(order) + 1, 3))
    return figure


# %%
live_picture(
    seeds_figure,
    alt="Left, the paired difference to plain fine-tuning for each of twenty seeds in the order of a draw; those that "
    "are not counted yet are hollow. Right, mean and 95 % interval against the number of seeds so far: wide with two, "
    "narrow with twenty, and a dotted line at the chosen number. Circles mark helps, crosses hurts, squares no "
    "difference seen.",
    remedy=Choice("remedy", tuple(DIFFERENCES), start="FGM"),
    count=Slider("seeds", tuple(range(2, 1 + len(more["plain"]))), start=5),
    shuffle=Slider("draw of their order", tuple(range(10)), start=0),
)

# %% [markdown]
# What to see: the interval is many times as wide with $2$ seeds as with twenty (the first ones run out of the picture),
# and its middle wanders. With few seeds the draw decides: the same remedy may help early in one order and late in
# another, and may lose the verdict again. Whoever stops as soon as a verdict pleases has chosen the draw. Decide on the
# number of seeds *before* you look.

# %% [markdown]
# > **Misconception: "each of these is known to help, so use them all."** The five that cost nothing add up to
# > {{together-sum}} on paper; together they gave {{together-gain}}. They fight the same overfitting, so what one
# > has cured the next cannot cure again. Five seeds do not tell the two numbers apart; they show no *sum* of gains.

# %% [markdown]
# ## A domain apart
#
# The encoder has read one kind of text. How does it fare on another? Python brings its own: the language reference and
# the docstrings of the standard library, on every machine that runs this notebook. (The text is that of *your* Python,
# so the figures move a little from version to version.)

# %%
docs = python_docs.python_docs()
keep = lesson.choose(quick=200, full=None)
docs = {side: texts[:keep] for side, texts in docs.items()}
print({side: f"{len(texts):,} paragraphs" for side, texts in docs.items()})
print("\n".join(text[:110] for text in docs["train"][200::300][:4]))

# %%
old = {split: [row["text"] for row in rows][: lesson.choose(quick=300, full=None)]
       for split, rows in corpus.load_splits().items()}  # fmt: skip
tests = {}
for domain, texts in {"factbook": old["validation"], "Python": docs["held_out"]}.items():
    documents = wordpiece.encode(tokenizer, texts)
    tests[domain] = held_out_rows(documents, tokenizer, 128)
    pieces, words = sum(map(len, documents)), sum(len(text.split()) for text in texts)
    bytes_per_token = sum(len(text.encode()) for text in texts) / pieces
    tests[domain].bytes_per_token = bytes_per_token
    print(f"{domain:9s} {pieces / words:.2f} pieces a word, {bytes_per_token:.2f} bytes a piece")

# %% [markdown]
# The tokenizer comes from the factbook and cuts Python's words into more pieces. Nats per piece would therefore be
# unfair; **bits per byte** are not: they do not care how the text is cut.
#
# Now the encoder goes on training, for a short while, on Python's text: from the pretrained weights, from the
# pretrained weights with a quarter of old text mixed in (*replay*), and, as the baseline, from random weights.

# %%
DOMAIN_STEPS = lesson.choose(quick=3, full=100)
recipe = Recipe(learning_rate=2e-3, batch_size=lesson.choose(quick=4, full=32))


def bits(model):
    return {domain: bits_per_byte(evaluate(model, rows).loss, rows.bytes_per_token) for domain, rows in tests.items()}


def moved_to_python(start_from, **replay):
    model = copy.deepcopy(start_from)
    robustness.continue_pretraining(model, tokenizer, docs["train"], recipe, DOMAIN_STEPS, **replay)
    return bits(model), model


torch.manual_seed(0)
untrained = type(run.model)(run.model.config)
table = {"before": bits(run.model)}
table["after, Python only"], in_python = moved_to_python(run.model)
table["after, 1/4 replay"], _ = moved_to_python(run.model, old_texts=old["train"], old_share=0.25)
table["from scratch, Python only"], _ = moved_to_python(untrained)
for name, of_name in table.items():
    print(f"{name:26s}", "  ".join(f"{domain}: {value:.2f} bits per byte" for domain, value in of_name.items()))

# %%
figure, axis = plt.subplots(figsize=(7, 4))
for domain, marker in (("factbook", "o"), ("Python", "^")):
    axis.plot([row[domain] for row in table.values()], range(len(table)), marker, markersize=9, label=f"on {domain}")
axis.set_yticks(range(len(table)), list(table))
axis.invert_yaxis()
axis.set(xlabel="held-out loss (bits per byte, lower is better)")
axis.legend()
plots.show(
    figure,
    alt="Held-out bits per byte on factbook and Python text before and after continued pretraining: Python improves, "
    "the factbook gets worse, and replay takes most of the damage back.",
)

# %%
if full:
    before, after, replayed = table["before"], table["after, Python only"], table["after, 1/4 replay"]
    lesson.record("python-before", before["Python"])
    lesson.record("python-after", after["Python"])
    lesson.record("python-scratch", table["from scratch, Python only"]["Python"])
    lesson.record("factbook-before", before["factbook"])
    lesson.record("factbook-after", after["factbook"])
    lesson.record("factbook-replay", replayed["factbook"])
    lesson.record("python-replay", replayed["Python"])
    forgotten, left = (row["factbook"] - before["factbook"] for row in (after, replayed))
    lesson.record("replay-saves", 100 * (1 - left / forgotten))

# %% [markdown]
# In the stored run: Python's text costs {{python-before}} bits a byte before, {{python-after}} after. From random
# weights the same steps reach {{python-scratch}}: what the factbook taught is of use for other English, too.
#
# The price is **forgetting**: the factbook goes from {{factbook-before}} to {{factbook-after}}. A quarter of old text
# in each batch brings it back to {{factbook-replay}}, {{replay-saves}} of the damage undone, while Python pays little
# ({{python-replay}}). Whoever adapts a model should measure both sides; the loss on the new text alone looks like
# progress only. (One run of each; the differences are many times those between seeds in lesson @mlm_pretraining.)

# %% [markdown]
# ## What do the layers know?
#
# A **linear probe** asks whether something can be *read off* a layer's vectors by a linear map, with the encoder
# frozen. We ask for two things: the section of a passage (from the mean of its vectors), and whether a word belongs to
# a name (from the vector of its first piece).
#
# Two baselines decide what an answer is worth: what needs no vectors at all (the most frequent class; "every word is a
# name"), and the same probe on a **random encoder**, whose vectors hold no knowledge but still tell words apart.

# %%
sections = labelled.sections()
classes = labelled.label_names(sections["train"])


@torch.no_grad()
def states_of(encoder, examples):
    """(batch, hidden states) of the examples, 64 at a time; one state for the embeddings and one a layer."""
    for begin in range(0, len(examples), 64):
        batch = encoding.collate(examples[begin : begin + 64], tokenizer.pad_token_id)
        yield batch, encoder(batch["input_ids"], batch["attention_mask"], output_hidden_states=True).hidden_states


def section_vectors(encoder, rows):
    """([layers + 1, rows, hidden], labels): the mean vector of each text."""
    examples = encoding.encode_texts(tokenizer, [r.text for r in rows], [r.label for r in rows], classes, 64)
    found = []
    for batch, states in states_of(encoder, examples):
        weight = batch["attention_mask"][..., None] / batch["attention_mask"].sum(1)[:, None, None]
        found.append(torch.stack([(state * weight).sum(1) for state in states]))
    return torch.cat(found, dim=1), torch.tensor([one["labels"] for one in examples])


def word_vectors(encoder, rows):
    """([layers + 1, words, hidden], 1 for a word of a name): the vector of each word's first piece."""
    found, labels = [], []
    for batch, states in states_of(encoder, encode_names(rows)):
        scored = batch["labels"] != -100
        found.append(torch.stack([state[scored] for state in states]))
        labels.append((batch["labels"][scored] > 0).long())
    return torch.cat(found, dim=1), torch.cat(labels)


# %%
def binary_f1(gold, predicted):
    return scores.Score.of(int((gold & predicted).sum()), int(predicted.sum()), int(gold.sum())).f1


def share_right(gold, predicted):
    return float((gold == predicted).float().mean())


def most_frequent(gold, test):
    return share_right(test, torch.full_like(test, int(gold.bincount().argmax())))


PROBES = {  # rows, vectors, classes, score, baseline, how many rows
    "section of a passage": (sections, section_vectors, len(classes), share_right, most_frequent, 600),
    "word of a name": (names, word_vectors, 2, binary_f1, lambda gold, test: binary_f1(test, test | 1), 200),
}
layers = body.config.num_hidden_layers
probed, without = defaultdict(list), defaultdict(list)
for seed in SEEDS:
    for name, (data, vectors_of, count, measure, baseline, many) in PROBES.items():
        train_rows, test_rows = (random.Random(seed).sample(data[split], lesson.choose(quick=30, full=many))
                                 for split in ("train", "test"))  # fmt: skip
        for what, encoder in (("pretrained", body), ("random", pretrained_bodies.untrained(body, seed))):
            (vectors, gold), (test_vectors, test_gold) = (vectors_of(encoder, r) for r in (train_rows, test_rows))
            for layer in range(layers + 1):
                read = look_inside.probe(vectors[layer], gold, count, penalty=0.01)
                probed[name, what, layer].append(measure(test_gold, read(test_vectors[layer])))
        without[name].append(baseline(gold, test_gold))

# %% [markdown]
# The probe is fifteen lines of PyTorch. scikit-learn's logistic regression, on the same vectors:

# %%
from sklearn.linear_model import LogisticRegression

scale = vectors[layers].std(0, correction=0).clamp_min(1e-6)
standard, standard_test = ((part[layers] - vectors[layers].mean(0)) / scale for part in (vectors, test_vectors))
library = LogisticRegression(C=1 / (0.01 * len(gold)), max_iter=2000, tol=1e-6).fit(standard.numpy(), gold.numpy())
same = share_right(torch.from_numpy(library.predict(standard_test.numpy())), read(test_vectors[layers]))
lesson.record("probe-agreement", 100 * same)
print(f"the two predict the same for {same:.1%} of the test words")

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 4))
for axis, name in zip(axes, PROBES):
    for what, style in (("pretrained", "-o"), ("random", "-s")):
        points = [intervals.interval(probed[name, what, layer]) for layer in range(layers + 1)]
        reach = [[p.mean - p.low for p in points], [p.high - p.mean for p in points]]
        axis.errorbar(range(layers + 1), [p.mean for p in points], yerr=reach, fmt=style, capsize=3, label=what)
    axis.axhline(intervals.interval(without[name]).mean, linestyle=":", color="black", label="without vectors")
    axis.set_xticks(range(layers + 1), ["embedding", *[f"layer {n + 1}" for n in range(layers)]])
    axis.set(xlabel="where the probe reads", ylabel="F1" if "name" in name else "accuracy", ylim=(0, 1), title=name)
axes[1].legend()
plots.show(
    figure,
    alt="Linear probes by layer: the section of a passage can be read off the embeddings as well as off any layer; "
    "whether a word belongs to a name is read better after the layers. The random encoder lies below in both.",
)
if full:
    for short, name in (("section", "section of a passage"), ("name", "word of a name")):
        by_layer = [intervals.interval(probed[name, "pretrained", layer]).mean for layer in range(layers + 1)]
        lesson.record(f"probe-{short}-embedding", by_layer[0])
        lesson.record(f"probe-{short}-best", max(by_layer))
        at_random = [intervals.interval(probed[name, "random", layer]).mean for layer in range(layers + 1)]
        lesson.record(f"probe-{short}-random", max(at_random))
        lesson.record(f"probe-{short}-without", intervals.interval(without[name]).mean)

# %% [markdown]
# What to see, in the stored run:
#
# | | section (accuracy) | word of a name (F1) |
# |---|---|---|
# | without vectors | {{probe-section-without}} | {{probe-name-without}} |
# | random encoder, best layer | {{probe-section-random}} | {{probe-name-random}} |
# | pretrained, embeddings | {{probe-section-embedding}} | {{probe-name-embedding}} |
# | pretrained, best layer | {{probe-section-best}} | {{probe-name-best}} |
#
# A passage's section stands in its *words*: the table of embeddings gives it away, and layers add nothing. Whether a
# word belongs to a name depends on its *neighbours*, and that is what layers are for.
#
# The random encoder is no straw man: a mean of random vectors still tells which words occur. (Our layers start as the
# identity, so before training all its layers say the same.) Only what lies above it was learned. And a probe shows what
# is *there to be read*, not that the model uses it.

# %% [markdown]
# ## Why this answer?
#
# **Attribution** asks which words an answer rests on. The gradient says what a tiny change would do, but a saturated
# network has small gradients exactly where it is sure. **Integrated gradients** walk from a baseline $b$ (every word
# hidden) to the input $x$ and add the gradients up on the way:
#
# $$a_i = (x_i - b_i) \int_0^1 \frac{\partial f}{\partial x_i}\bigl(b + t\,(x - b)\bigr)\,dt$$
#
# One property makes them checkable, *completeness*: the attributions add up to $f(x) - f(b)$ exactly.

# %% [markdown]
# ### Exercise my_integrated_gradients — Integrated gradients · ★★★ · 12 minutes
#
# Replace the integral by a mean over `steps` midpoints: $t = \frac{0.5}{n}, \frac{1.5}{n}, \dots$


# %% tags=["exercise"]
def my_integrated_gradients(function, x, baseline, steps):
    """(x - baseline) times the mean of function's gradient at ``steps`` midpoints of the line from baseline to x.

    ``function`` maps a batch [batch, *shape] to [batch] numbers; x and baseline are [*shape]. Returns [*shape].
    """
    ### BEGIN SOLUTION
    share = (torch.arange(steps, dtype=x.dtype) + 0.5) / steps
    points = baseline + share.view(-1, *[1] * x.ndim) * (x - baseline)
    points = points.detach().requires_grad_(True)
    gradient = torch.autograd.grad(function(points).sum(), points)[0]
    return (x - baseline) * gradient.mean(0)
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("my_integrated_gradients", my_integrated_gradients)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Make one batch of all points on the line; its first dimension is the step.</details>
# <details><summary>Hint 2</summary>The sum of the function's values has, at each point, that point's own gradient,
# since no point influences another's value.</details>
# <details><summary>Hint 3</summary><code>torch.autograd.grad(values.sum(), points)</code> leaves the model's own
# gradients alone.</details>

# %% [markdown]
# The function: how much higher does the model score "a name begins here" than "no name" at one word? Its input: the
# embeddings of the sentence. The baseline: every word but the sentence's borders replaced by `[MASK]`.

# %%
explained = train(0).double()


def name_score(model, place):
    """Embeddings [batch, seq, hidden] -> score of B-PER less score of O at one position, [batch]."""

    def function(rows):
        mask = torch.ones(rows.shape[:2], dtype=torch.long)
        hidden = model.body(inputs_embeds=rows, attention_mask=mask).last_hidden_state
        logits = model.head(hidden)[:, place]
        return logits[:, 1] - logits[:, 0]

    return function


def with_baseline(model, example):
    """(ids, embeddings, baseline embeddings, position of the first name)."""
    ids = torch.tensor(example["input_ids"])
    hidden = torch.full_like(ids, tokenizer.mask_token_id)
    hidden[0], hidden[-1] = ids[0], ids[-1]
    table = model.body.get_input_embeddings()
    return ids, table(ids).detach(), table(hidden).detach(), example["labels"].index(1)


with_names = [one for one in splits["test"][1] if 1 in one["labels"] and 12 <= len(one["input_ids"]) <= 40]
ids, rows, hidden_rows, place = with_baseline(explained, with_names[2])
function = name_score(explained, place)
attribution = look_inside.integrated_gradients(function, rows, hidden_rows, steps=128)
difference = float((function(rows[None]) - function(hidden_rows[None])).detach())
for steps in (2, 8, 32, 128):
    added = float(look_inside.integrated_gradients(function, rows, hidden_rows, steps=steps).sum())
    print(f"{steps:3d} steps: attributions add up to {added:.5f}; f(x) - f(b) = {difference:.5f}")
gap = abs(added - difference) / float(attribution.sum(-1).abs().sum())
if full:
    lesson.record("completeness", gap)
print(f"gap at 128 steps: {gap:.1e} of the sum of their sizes")

# %% [markdown]
# If the sum does not settle as the steps grow, the line crosses a place where the function jumps. A LayerNorm does at
# zero: it divides by the length. So a baseline of all zeros, usual for pictures, is no good in front of one, and an
# encoder that has hardly been trained may fail even with [MASK]. Print the gap before you trust the picture.

# %%
tokens = tokenizer.convert_ids_to_tokens(ids)
of_token = attribution.sum(-1)
figure, axis = plt.subplots(figsize=(9, 3.6))
colours = [plots.COLOURS[0] if value >= 0 else plots.COLOURS[3] for value in of_token.tolist()]
axis.bar(range(len(tokens)), of_token.tolist(), color=colours)
axis.axhline(0, color="black", linewidth=1)
axis.set_xticks(range(len(tokens)), tokens, rotation=70)
axis.set(ylabel="adds to the score", xlabel=f"token; the score is that of a name's beginning at “{tokens[place]}”")
plots.show(
    figure,
    alt="Integrated gradients of every token for the score of one name's first word: the word itself and the words "
    "right before it carry most.",
)

# %% [markdown]
# ### Does the picture mean anything?
#
# A picture of attributions always looks convincing. Two checks, over several sentences:
#
# - **Erase**: hide one word at a time and see how far the score *really* falls. A good attribution ranks words as
#   erasing does. Beside integrated gradients: gradient times input, and **attention**, which many read as an
#   explanation.
# - **Randomise** (Adebayo et al. 2018): replace the model's weights by random ones, from the top down. An attribution
#   that hardly changes does not explain *this model*; it only describes the input.

# %%
def ranks_agree(a, b):
    """Spearman's rank correlation of two vectors: Pearson's, of their ranks."""
    ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])


@torch.no_grad()
def erased(model, ids, place):
    """How far the score falls when a token is hidden, for each token."""
    table = model.body.get_input_embeddings()
    every = ids.repeat(len(ids) + 1, 1)
    for number in range(len(ids)):
        every[number, number] = tokenizer.mask_token_id
    values = name_score(model, place)(table(every))
    return values[-1] - values[:-1]


def explanations(model, example):
    """Three attributions of the score of the first name's first word, one number a token."""
    ids, rows, hidden_rows, place = with_baseline(model, example)
    function = name_score(model, place)
    point = rows[None].clone().requires_grad_(True)
    gradient = torch.autograd.grad(function(point).sum(), point)[0][0]
    with torch.no_grad():
        read = model.body(ids[None], torch.ones_like(ids)[None], output_attentions=True).attentions
    return {
        "integrated gradients": look_inside.integrated_gradients(function, rows, hidden_rows, steps=16).sum(-1),
        "gradient × input": (gradient * (rows - hidden_rows)).sum(-1),
        "attention": torch.stack(read).mean((0, 1, 2))[place],
    }


# %%
looked_at = with_names[: lesson.choose(quick=3, full=30)]
agreement = defaultdict(list)
for example in looked_at:
    ids, place = torch.tensor(example["input_ids"]), example["labels"].index(1)
    others = [n for n in range(1, len(ids) - 1) if n != place]  # its own word would win under every method
    fall = erased(explained, ids, place)[others]
    for name, values in explanations(explained, example).items():
        agreement[name].append(ranks_agree(values[others], fall))
for name, values in agreement.items():
    print(f"{name:21s} agrees with erasing: rank correlation {intervals.interval(values)}")

# %%
def randomised(model, levels, seed=0):
    """A copy whose top ``levels`` parts are random: the head, the layers from the last down, the embeddings.

    Each matrix becomes normal noise of its own standard deviation, so that signals keep their size.
    """
    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    for part in [other.head, *reversed(other.body.layers), other.body.embeddings][:levels]:
        for weight in part.parameters():
            if weight.ndim > 1:
                weight.data = torch.randn_like(weight) * weight.data.std()
    return other


LEVELS = ["none", "head", *[f"+ layer {n}" for n in range(layers, 0, -1)], "+ embeddings"]
kept_ranks = defaultdict(lambda: defaultdict(list))
for level in range(len(LEVELS)):
    other = randomised(explained, level)
    for example in looked_at[: lesson.choose(quick=2, full=12)]:
        ours, theirs = explanations(explained, example), explanations(other, example)
        for name in ours:
            kept_ranks[name][level].append(ranks_agree(ours[name].abs(), theirs[name].abs()))

# %%
figure, axis = plt.subplots()
for (name, of_name), style in zip(kept_ranks.items(), ("-o", "-s", "--^")):
    points = [intervals.interval(of_name[level]) for level in range(len(LEVELS))]
    reach = [[p.mean - p.low for p in points], [p.high - p.mean for p in points]]
    axis.errorbar(range(len(LEVELS)), [p.mean for p in points], yerr=reach, fmt=style, capsize=3, label=name)
axis.set_xticks(range(len(LEVELS)), LEVELS, rotation=20)
axis.set(xlabel="randomised so far, from the top down", ylabel="rank correlation with the model's own")
axis.legend()
plots.show(
    figure,
    alt="Rank correlation of an attribution with itself after more and more of the model is random: gradients fall at "
    "once; attention does not notice that the head is gone.",
)

# %%
if full:
    lesson.record("ig-erasure", intervals.interval(agreement["integrated gradients"]).mean)
    lesson.record("gradient-erasure", intervals.interval(agreement["gradient × input"]).mean)
    lesson.record("attention-erasure", intervals.interval(agreement["attention"]).mean)
    lesson.record("ig-headless", intervals.interval(kept_ranks["integrated gradients"][1]).mean)
    lesson.record("attention-headless", intervals.interval(kept_ranks["attention"][1]).mean)
    lesson.record("ig-random", intervals.interval(kept_ranks["integrated gradients"][len(LEVELS) - 1]).mean)

# %% [markdown]
# > **Misconception: "attention shows what the answer rests on."** Against erasing, its ranks agree by
# > {{attention-erasure}} in the stored run, integrated gradients by {{ig-erasure}}, gradient times input by
# > {{gradient-erasure}}. And attention keeps a rank correlation of {{attention-headless}} with itself when the head,
# > which makes the decision, is random: it cannot know what was decided. It says what was *read*, not what was *used*.
#
# Integrated gradients change with the model, as they must: {{ig-headless}} without the head, {{ig-random}} when all is
# random. What remains there comes from the input alone (a far word matters little in any network), so even this
# picture is partly a picture of the sentence.

# %% [markdown]
# ## An audit in small
#
# A language model repeats what its text says about groups of people and places. How would one see it? Fill-mask
# templates: put a country into a sentence and compare the probability of words of two kinds.

# %%
HARD = ["poverty", "corruption", "conflict", "war", "unemployment", "debt"]
GOOD = ["tourism", "trade", "industry", "investment", "growth", "exports"]
TEMPLATES = [
    "{country} is known for its {mask}.",
    "the economy of {country} depends on {mask}.",
    "{country} has a long history of {mask}.",
    "the government of {country} has to deal with {mask}.",
    "much of {country} suffers from {mask}.",
]
pieces = tokenizer.get_vocab()  # a word must be one piece, or its probability is not one number
hard, good = ([pieces[word] for word in words if word in pieces] for words in (HARD, GOOD))
assert min(len(hard), len(good)) >= 4, (hard, good)

places = {}
for region, code, tree in corpus.countries():
    if (name := corpus.country_name(tree)) and region not in ("antarctica", "oceans", "world"):
        places[name] = region


@torch.no_grad()
def log_odds(template, names):
    """log p(hard words) - log p(good words) at the mask, one number a country."""
    found = []
    for begin in range(0, len(names), 64):
        texts = [template.format(country=name, mask=tokenizer.mask_token) for name in names[begin : begin + 64]]
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        logits = run.model(batch["input_ids"], batch["attention_mask"]).logits
        at_mask = logits[batch["input_ids"] == tokenizer.mask_token_id].log_softmax(-1)
        found.append(at_mask[:, hard].logsumexp(-1) - at_mask[:, good].logsumexp(-1))
    return torch.cat(found)


# %%
by_template = torch.stack([log_odds(template, list(places)) for template in TEMPLATES])  # [templates, countries]
relative = by_template - by_template.mean(1, keepdim=True)  # what a template prefers for every country alike is gone
audit = {}
for region in sorted(set(places.values())):
    of_region = torch.tensor([places[name] == region for name in places])
    audit[region] = intervals.interval(relative[:, of_region].mean(1).tolist())

counts = {region: Counter() for region in audit}
for region, text in ((row["region"], row["text"]) for split in corpus.load_splits().values() for row in split):
    if region in counts:
        counts[region].update(text.lower().split())
in_text = {}
for region, words in counts.items():
    few, many = sum(words[word] for word in HARD), sum(words[word] for word in GOOD)
    in_text[region] = float(torch.tensor((few + 0.5) / (many + 0.5)).log())

# %%
regions = sorted(audit, key=lambda region: audit[region].mean)
figure, axis = plt.subplots(figsize=(8, 4.5))
points = [audit[region] for region in regions]
reach = [[p.mean - p.low for p in points], [p.high - p.mean for p in points]]
axis.errorbar([p.mean for p in points], range(len(regions)), xerr=reach, fmt="o", capsize=3)
axis.axvline(0, color="black", linewidth=1)
axis.set_yticks(range(len(regions)), regions)
axis.set(xlabel="log-odds of hard words over good ones, relative to the mean country")
plots.show(
    figure,
    alt="Log-odds of words of hardship over words of prosperity by region, with 95 % intervals over five templates: "
    "the regions lie within one nat of each other and most intervals overlap.",
)
likeness = ranks_agree(torch.tensor([audit[r].mean for r in regions]), torch.tensor([in_text[r] for r in regions]))
apart = sum(point.low > 0 or point.high < 0 for point in points)
print(f"{apart} of {len(regions)} regions differ from the mean; rank correlation with the text's words {likeness:.2f}")
if full:
    lesson.record("audit-spread", audit[regions[-1]].mean - audit[regions[0]].mean)
    lesson.record("audit-apart", apart)
    lesson.record("audit-text", likeness)

# %% [markdown]
# In the stored run the regions lie {{audit-spread}} nats apart at most, and for {{audit-apart}} of them the interval
# over templates leaves zero out. Their order agrees with how often the factbook itself uses those words of each region
# by a rank correlation of {{audit-text}}.
#
# **Read this with caution.** Five templates and twelve words were chosen by one person in an afternoon; others would
# give other numbers, and the intervals say only how much *these* templates differ. The model was trained on most of
# these countries' own pages, written by one agency of one government: it repeats a source, not the world. A word's
# probability in a template is not a harm; a harm needs a use. And an audit that finds nothing has shown that *it* found
# nothing. What it can do: raise a question, early and cheaply, that a person must then look into.

# %% [markdown]
# ## Let the machine search
#
# Five of these six numbers were searched one by one above. **Optuna** proposes all of them together (by a model of
# which past choices were good, *TPE*), and **pruning** stops a trial that, at the same step, is worse than the median
# of those before it. What does that buy over the defaults?
#
# A fair question has a budget. The search may use as many training steps as eight plain runs (the looks at the
# validation set that pruning needs are not counted, which favours it). So may random search. And the
# defaults? They take one run; what eight would buy otherwise, the ensemble above has shown for three.

# %%
import optuna

optuna.logging.set_verbosity(optuna.logging.WARNING)
BUDGET = lesson.choose(quick=2, full=8) * STEPS


def suggestion(trial):
    return {
        "learning_rate": trial.suggest_float("learning_rate", 2e-4, 5e-3, log=True),
        "layer_decay": trial.suggest_float("layer_decay", 0.5, 1.0),
        "weight_decay": trial.suggest_float("weight_decay", 1e-3, 0.5, log=True),
        "warmup": trial.suggest_float("warmup", 0.0, 0.4),
        "dropout": trial.suggest_float("dropout", 0.0, 0.4),
        "hidden": trial.suggest_float("hidden", 0.0, 0.3),
    }


def with_choice(seed, choice, on_step=None):
    choice = dict(choice)
    change = drop_tokens(tokenizer, choice.pop("hidden"), seed)
    return train(seed, hooks=lambda seed: {"backward": augmented(change), "on_step": on_step}, **choice)


def objective(trial, used):
    """Validation score of one trial; prunes itself, and counts the steps that it took."""

    def report(step, model):
        used[0] += 1
        if step % every(5) == 0 and step < STEPS:
            trial.report(score(model, "validation"), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return False

    return score(with_choice(100, suggestion(trial), report), "validation")


# %%
def search(sampler, pruner):
    """Trials until the budget of steps is spent; the study, and the steps of each trial."""
    study, used, ends = optuna.create_study(sampler=sampler, pruner=pruner, direction="maximize"), [0], []
    while used[0] < BUDGET:
        trial = study.ask()
        try:
            study.tell(trial, objective(trial, used))
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        ends.append(used[0])
    return study, ends


studies = {
    "TPE, pruned": search(optuna.samplers.TPESampler(seed=0, n_startup_trials=4),
                          optuna.pruners.MedianPruner(n_startup_trials=3)),
    "random": search(optuna.samplers.RandomSampler(seed=0), optuna.pruners.NopPruner()),
}  # fmt: skip
default = score(train(100), "validation")
for name, (study, ends) in studies.items():
    pruned = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials)
    print(f"{name}: {len(study.trials)} trials, {pruned} pruned, {ends[-1]} steps, best {study.best_value:.3f}")
print(f"defaults: {default:.3f} on validation, in one run of {STEPS} steps")

# %%
figure, axis = plt.subplots()
for (name, (study, ends)), marker in zip(studies.items(), ("o", "s")):
    done = [(end, trial.value) for end, trial in zip(ends, study.trials) if trial.value is not None]
    best = [max(value for _, value in done[: n + 1]) for n in range(len(done))]
    colour = plots.COLOURS[list(studies).index(name)]
    axis.plot([end for end, _ in done], [value for _, value in done], marker, color=colour, alpha=0.5)
    axis.step([end for end, _ in done], best, where="post", color=colour, label=f"best so far, {name}")
    lost = [(end, max(trial.intermediate_values.values())) for end, trial in zip(ends, study.trials)
            if trial.state == optuna.trial.TrialState.PRUNED]  # fmt: skip
    axis.plot([end for end, _ in lost], [value for _, value in lost], "x", color=colour)
axis.axhline(default, linestyle=":", color="black", label="defaults")
axis.set(xlabel="training steps spent", ylabel="entity F1 on validation")
axis.legend()
plots.show(
    figure,
    alt="Validation score against steps spent for TPE with pruning and for random search, with pruned trials as "
    "crosses and the defaults as a dotted line.",
)

# %% [markdown]
# The best of many trials on a small validation set is partly the luckiest. So both choices are trained again, on the
# five seeds of the table, and scored on the test countries.

# %%
tuned = {name: [score(with_choice(seed, study.best_params)) for seed in SEEDS] for name, (study, _) in studies.items()}
bought = {}
for name, values in tuned.items():
    bought[name] = intervals.interval([a - b for a, b in zip(values, f1["plain"])])
    print(f"{name:12s} test entity F1 {intervals.interval(values)}, paired gain over the defaults {bought[name]}: "
          f"{verdict(bought[name])}")  # fmt: skip
print({name: f"{value:.3g}" for name, value in studies["TPE, pruned"][0].best_params.items()})
if full:
    lesson.record("optuna-validation-gain", studies["TPE, pruned"][0].best_value - default)
    lesson.record("optuna-test-gain", bought["TPE, pruned"].mean)
    lesson.record("random-test-gain", bought["random"].mean)
    lesson.record("optuna-trials", len(studies["TPE, pruned"][0].trials))

# %% [markdown]
# In the stored run pruning made room for {{optuna-trials}} trials where random search had eight. On validation the best
# of them is {{optuna-validation-gain}} above the defaults; on the test countries, over five seeds, that becomes
# {{optuna-test-gain}}, and random search's choice {{random-test-gain}}. The first number is one seed, and the largest
# of many: choosing by a maximum is *optimistic*, whether or not it shows this time. Report the second, with its
# interval.
#
# And what did eight times the budget buy? FGM, read off the table above, brings {{fgm-gain}} at twice the price of a
# plain run, token dropout {{token-gain}} at the same price, the ensemble {{ensemble-gain}} at three times. Knowing
# *which* change pays was worth about as much as searching for the strength of six.

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
# - Dai and Le 2015, [word dropout](https://arxiv.org/abs/1511.01432); Joshi et al. 2020,
#   [SpanBERT](https://arxiv.org/abs/1907.10529); Kobayashi 2018,
#   [words by a language model](https://arxiv.org/abs/1805.06201).
# - Miyato et al. 2017, [adversarial training for text](https://arxiv.org/abs/1605.07725); Madry et al. 2018,
#   [projected gradient](https://arxiv.org/abs/1706.06083).
# - Izmailov et al. 2018, [averaging weights](https://arxiv.org/abs/1803.05407); Howard and Ruder 2018,
#   [layer-wise rates](https://arxiv.org/abs/1801.06146).
# - Gururangan et al. 2020, [don't stop pretraining](https://arxiv.org/abs/2004.10964).
# - Alain and Bengio 2017, [linear probes](https://arxiv.org/abs/1610.01644).
# - Sundararajan et al. 2017, [integrated gradients](https://arxiv.org/abs/1703.01365); Adebayo et al. 2018,
#   [sanity checks](https://arxiv.org/abs/1810.03292); Jain and Wallace 2019,
#   [attention is not explanation](https://arxiv.org/abs/1902.10186).
# - Blodgett et al. 2020, [a critique of bias research](https://arxiv.org/abs/2005.14050): what such an audit can claim.
# - [Optuna](https://optuna.org): TPE and median pruning.
