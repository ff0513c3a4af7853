# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   coursekit:
#     budget:
#       quick: {minutes: 1.0, memory_mb: 3500}
#       full: {minutes: 6.0, memory_mb: 4500}
# ---

# %% [markdown]
# # Fewer weights: what is smaller, what is faster, what it costs
#
# **In this lesson you set weights to zero, take whole parts out of a model, and teach a small model by a large one.
# Then you draw every method, int8 included, into one picture of score against milliseconds.**
#
# *Time*: about 55 minutes of reading and exercises; the machine works for about six of them (and four more if the
# encoder has to be made first).
#
# *You need to know*: the encoder (lesson @mlm_pretraining), tagging names and paired intervals (lesson @fine_tuning),
# int8 (lesson @quantization).
#
# *You will be able to*
# - choose which weights may go: by size, by movement, in a pattern, by whole heads, columns and layers;
# - tell a model that is smaller on paper from one that is faster on your machine;
# - take parts out of a Transformer, and prove that nothing else has changed;
# - distil a model into a smaller one, beside a student that had no teacher;
# - say which of a dozen methods are worth having, by a frontier of measured points.

# %% tags=["parameters"]
profile = "auto"

# %%
from coursekit import start

lesson = start("pruning_and_sparsity", profile)

# %%
import copy
import random
import tempfile
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch.nn.utils import prune
from transformers import AutoModelForMaskedLM

from sslcourse.compress import distillation, onnx_files, pruning, serving_routes
from sslcourse.compress.distillation import distilled
from sslcourse.compress.pruning import Gradual, Hold, Movement, magnitude_masks, n_of_m_mask, prunable, random_masks
from sslcourse.compress.removal import lowest, remove_columns, remove_heads, remove_layers, taylor_importance
from sslcourse.data import labelled
from sslcourse.measure import intervals, timing
from sslcourse.studies import lesson_encoder
from sslcourse.tasks import encoding, scores, task_heads
from sslcourse.tasks.fitting import Settings, fit, predict
from sslcourse.train.recipe import Recipe
from coursekit import Choice, Slider, check, live_picture, plots

warnings.filterwarnings("ignore", message="Sparse CSR tensor support")  # beta, says torch; we only time it
full = lesson.profile != "quick"
SEEDS = range(lesson.choose(quick=2, full=4))
scratch = tempfile.TemporaryDirectory(prefix="lesson10-")  # gone with the kernel
folder = Path(scratch.name)

# %% [markdown]
# ## A model to make smaller
#
# The task is lesson @fine_tuning's: find the words of person names, in countries from which no sentence was labelled.
# The score is **token F1** (is this word part of a name?). The large model, which will be the *teacher* later, is the
# encoder of lesson @mlm_pretraining fine-tuned on 400 sentences; one for each seed, since every result below comes
# with an interval over four seeds.

# %%
which = lesson.choose(quick={"steps": 40, "recipe": Recipe(batch_size=8), "every": 8}, full={})
run = lesson_encoder.load(**which, progress=lesson.live)
tokenizer, body = run.tokenizer, run.model.model
TAGS = ["O", "B-PER", "I-PER"]
names = labelled.person_names()
COUNT, STEPS, RECOVER = lesson.choose(quick=(16, 4, 2), full=(400, 100, 30))
test_rows = names["test"][: lesson.choose(quick=30, full=None)]


def encode_names(rows):
    return encoding.encode_tags(tokenizer, [row.words for row in rows], [row.tags for row in rows], TAGS)


labelled_rows = {seed: random.Random(seed).sample(names["train"], COUNT) for seed in SEEDS}
examples = {seed: encode_names(rows) for seed, rows in labelled_rows.items()}
test, gold = encode_names(test_rows), [row.tags for row in test_rows]


# %%
def token_f1(tags):
    return scores.token_score(gold, tags).f1


def score(model):
    return token_f1([[TAGS[tag] for tag in row] for row in predict(model, test, precision="fp32")])


def train(model, seed, steps=RECOVER, rows=None, **hooks):
    """Train a copy for some steps on the seed's sentences (or others) and return it."""
    model = copy.deepcopy(model)
    settings = Settings(steps=steps, learning_rate=1e-3, precision="fp32", seed=seed)
    fit(model, rows or examples[seed], settings, **hooks)
    return model


def fresh(seed):
    torch.manual_seed(seed)
    return task_heads.TokenClassifier(copy.deepcopy(body), len(TAGS))


teachers = {seed: train(fresh(seed), seed, STEPS) for seed in SEEDS}
dense = [score(teachers[seed]) for seed in SEEDS]
print("teacher, token F1:", intervals.interval(dense))

# %% [markdown]
# Three baselines, before anything is cut. A **memory of words** needs no network: each word gets the tag that it had
# most often in the labelled sentences. **More training** without any cut: what is cut will be trained a little longer
# to recover, so the teacher must be allowed the same. (The third, cuts *by lot*, comes beside the choices of weights
# and columns.)


# %%
def memory(seed):
    counts = defaultdict(Counter)
    for row in labelled_rows[seed]:
        for word, tag in zip(row.words, row.tags):
            counts[word][tag] += 1
    most = {word: of_word.most_common(1)[0][0] for word, of_word in counts.items()}
    return [[most.get(word, "O") for word in row.words] for row in test_rows]


dumb = intervals.interval([token_f1(memory(seed)) for seed in SEEDS])
longer = [score(train(teachers[seed], seed)) for seed in SEEDS]
print("memory of words:      ", dumb)
print("teacher, trained on:  ", intervals.interval(longer))

weights = prunable(teachers[0])
in_layers, in_all = sum(w.numel() for w in weights.values()), sum(w.numel() for w in teachers[0].parameters())
print(f"{len(weights)} matrices in the layers hold {in_layers:,} of {in_all:,} weights; most others are the embeddings")

# %% [markdown]
# ## Which weights may go?
#
# The simplest answer: the **small** ones (Han et al. 2015). A weight near zero adds little to any sum. Sort all weights
# by size and set the smallest to zero; the share of zeros is the **sparsity**.

# %%
sizes = torch.cat([weight.detach().abs().flatten() for weight in weights.values()])
threshold = sizes.kthvalue(round(0.8 * len(sizes))).values  # the largest of the smallest 80 %
by_hand = {name: weight.detach().abs() > threshold for name, weight in weights.items()}
zeros = sum(int((~mask).sum()) for mask in by_hand.values())
print(f"{zeros:,} of {len(sizes):,} weights go, {100 * zeros / len(sizes):.2f} %")
energy = pruning.kept_energy(weights, by_hand)
print(f"the fifth that stays holds {100 * energy:.0f} % of the sum of squares")

# %% [markdown]
# A threshold has one weakness: where many weights are *equal* (zeros of an earlier cut, say), either all of them go or
# none. Ranks do better.

# %% [markdown]
# ### Exercise magnitude_mask — Exactly so many zeros · ★★☆ · 10 minutes
#
# All tensors compete with one another (*global* pruning), and the number of zeros is exact, ties or not.


# %% tags=["exercise"]
def magnitude_mask(tensors, sparsity):
    """A list of float tensors of any shapes, and a share from 0 to 1 -> a list of boolean masks of the same shapes.

    Exactly round(sparsity · n) entries are False, n being the number of weights in all tensors together, and round
    Python's own. They are those of smallest absolute value over all the tensors. Of weights that are equally large the
    earlier stays (earlier tensor in the list, then earlier in reading order). The tensors are not changed.
    """
    ### BEGIN SOLUTION
    flat = torch.cat([tensor.abs().flatten() for tensor in tensors])
    order = flat.argsort(descending=True, stable=True)  # of equals the earlier comes first
    keep = len(flat) - round(sparsity * len(flat))
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[order[:keep]] = True
    parts = mask.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors)]
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("magnitude_mask", magnitude_mask)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Make one long row of all weights, rank that, and cut the answer up again.</details>
# <details><summary>Hint 2</summary><code>sort</code> and <code>argsort</code> keep the order of equals only with
# <code>stable=True</code>; <code>topk</code> promises nothing.</details>
# <details><summary>Hint 3</summary>Sort downwards and keep the first n - round(sparsity · n).</details>

# %% [markdown]
# The package's `magnitude_masks` does that, over all layers (*global*) or in each matrix by itself (*layer*). PyTorch
# has both in `torch.nn.utils.prune`. All three must agree:

# %%
def torchs_masks(model, sparsity, scope):
    model = copy.deepcopy(model)
    modules = [model.get_submodule(name.removesuffix(".weight")) for name in prunable(model)]
    if scope == "global":
        prune.global_unstructured([(one, "weight") for one in modules], prune.L1Unstructured, amount=sparsity)
    else:
        for one in modules:
            prune.l1_unstructured(one, "weight", amount=sparsity)
    return [one.weight_mask.bool() for one in modules]


different = sum(int((mask != by_hand[name]).sum()) for name, mask in magnitude_masks(weights, 0.8).items())
for sparsity in (0.1, 0.5, 0.9, 0.99):
    for scope in ("global", "layer"):
        ours, theirs = magnitude_masks(weights, sparsity, scope), torchs_masks(teachers[0], sparsity, scope)
        different += sum(int((a != b).sum()) for a, b in zip(ours.values(), theirs))
lesson.record("prune-mask-differences", different)
print(f"places where the masks differ: {different}")

# %% [markdown]
# ### What it costs
#
# Cutting hurts; a short training afterwards, with the zeros *held*, heals part of it. The optimiser moves every weight,
# so `Hold` sets the masked ones back to zero after each step.
#
# Cutting **gradually** hurts less: fine-tune and cut at the same time, fast at first, then ever slower
# (Zhu and Gupta 2017). From sparsity 0 at step 0 to $\rho$ at step $K$, at step $k$:
#
# $$\rho_k = \rho - \rho \left(1 - \frac{k}{K}\right)^3$$

# %%
def my_cubic(step, last, final):
    return final - final * (1 - min(step / last, 1)) ** 3


TOTAL, LAST = STEPS + RECOVER, (STEPS + RECOVER) * 2 // 3  # as many steps as the others, teacher included
plan = [pruning.cubic(step, LAST, 0.8) for step in range(TOTAL + 1)]
assert all(abs(a - my_cubic(step, LAST, 0.8)) < 1e-12 for step, a in enumerate(plan))
print("sparsity at a tenth of the way, a third, and from two thirds on:",
      ", ".join(f"{plan[place]:.2f}" for place in (TOTAL // 10, TOTAL // 3, LAST)))  # fmt: skip

# %% [markdown]
# ## The weights that move
#
# Is a small weight an idle one? In fine-tuning, size is mostly a memory of *pretraining*. **Movement pruning** (Sanh et
# al. 2020) asks which weights fine-tuning pushes *away from zero*. Give each weight $w$ a score $s$ that decides over
# its mask: $w' = w \cdot \text{mask}(s)$. The mask is a step, without a useful gradient, so one goes *straight through*
# it, as if it were $s$ itself:
#
# $$\frac{\partial L}{\partial s} \approx \frac{\partial L}{\partial w'} \, w
# \qquad\Rightarrow\qquad s \leftarrow s - \frac{\partial L}{\partial w'} \, w$$
#
# (Here with a rate of 1: only the order of the scores matters.)
#
# When the step grows the weight (gradient and weight of opposite sign), the score rises. Masked weights are scored,
# too, and may come back. In the cell below autograd does it: the factor has the *value* of the mask and the *gradient*
# of the score.

# %%
torch.manual_seed(0)
w = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
x, target = torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
s = torch.zeros(6, 8, dtype=torch.float64, requires_grad=True)
mask = torch.rand(6, 8) > 0.5

F.mse_loss(F.linear(x, w * (mask + s - s.detach())), target).backward()  # straight through
masked = (w.detach() * mask).requires_grad_(True)
F.mse_loss(F.linear(x, masked), target).backward()  # the masked matrix, as if it were a weight
error = float((s.grad - masked.grad * w.detach()).abs().max())
lesson.record("movement-score-error", error)
print(f"gradient of the score less gradient of w' times w: {error:.1g} at most")

# %% [markdown]
# ### Exercise movement_step — One step of movement · ★★☆ · 10 minutes
#
# The training loop hands you the gradient at the *masked* matrix. Update the scores, and draw the new mask.


# %% tags=["exercise"]
def movement_step(weight, mask, gradient, scores, sparsity):
    """All tensors are [rows, columns]; mask is boolean, gradient is dL/dw' at w' = weight · mask. -> (scores, mask).

    New scores: scores - gradient · weight, for *every* weight, masked or not. New mask (boolean): round(sparsity · n)
    of the n entries are False, round being Python's own: those of the smallest new scores, with their signs. No two
    new scores are equal. The arguments are not changed.
    """
    ### BEGIN SOLUTION
    scores = scores - gradient * weight
    gone = scores.flatten().argsort()[: round(sparsity * scores.numel())]
    new = torch.ones(scores.numel(), dtype=torch.bool)
    new[gone] = False
    return scores, new.view(scores.shape)
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("movement_step", movement_step)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>The factor is the whole weight, not the masked one: else what is masked can never
# come back.</details>
# <details><summary>Hint 2</summary>A score far below zero belongs to a weight that shrinks. It goes first, so do not
# take absolute values.</details>

# %% [markdown]
# ### Side by side
#
# Four ways to the same sparsity, all with the same number of steps in all. *By size* and *by lot* cut the teacher and
# recover. *Gradually, by size* and *by movement* start at the pretrained encoder and cut while they fine-tune. No
# strength was tuned for any of them. In one thing `Movement` goes beyond the exercise: as in the paper's code, Adam
# scales the steps of the scores. Plain sums are ruled by the first, large gradients.

# %%
SPARSITIES = lesson.choose(quick=[0.5, 0.95], full=[0.5, 0.8, 0.95])
f1, kept, right_after = defaultdict(list), {}, defaultdict(list)


def cut_and_recover(seed, masks):
    cut = copy.deepcopy(teachers[seed])
    hold = Hold(cut, masks)
    return score(cut), train(cut, seed, on_step=hold)


def by_movement(seed, sparsity):
    movement = Movement(sparsity, LAST)
    model = train(fresh(seed), seed, TOTAL, backward=movement.backward, on_step=movement)
    movement.finish(model)
    return model


# %%
for seed in SEEDS:
    for sparsity in SPARSITIES:
        teacher = prunable(teachers[seed])
        made = {}
        for name, masks in {"by size": magnitude_masks(teacher, sparsity),
                            "by lot": random_masks(teacher, sparsity, seed)}.items():  # fmt: skip
            before, made[name] = cut_and_recover(seed, masks)
            right_after[name, sparsity].append(before)
        gradual = Gradual(sparsity, LAST, every=lesson.choose(quick=1, full=5))
        made["gradually, by size"] = train(fresh(seed), seed, TOTAL, on_step=gradual)
        made["by movement"] = by_movement(seed, sparsity)
        for name, model in made.items():
            assert abs(pruning.sparsity_of(prunable(model)) - sparsity) < 1e-4
            f1[name, sparsity].append(score(model))
            kept[name, sparsity, seed] = model

# %%
WAYS = ("by size", "by lot", "gradually, by size", "by movement")
figure, axis = plt.subplots(figsize=(8, 4.5))
for way, marker in zip(WAYS, "osD^"):
    points = [intervals.interval(f1[way, sparsity]) for sparsity in SPARSITIES]
    reach = [[max(p.mean - p.low, 0) for p in points], [p.high - p.mean for p in points]]
    axis.errorbar([100 * one for one in SPARSITIES], [p.mean for p in points], yerr=reach, fmt=f"-{marker}", capsize=3,
                  label=way)  # fmt: skip
cut = [intervals.interval(right_after["by size", sparsity]).mean for sparsity in SPARSITIES]
axis.plot([100 * one for one in SPARSITIES], cut, ":o", color=plots.COLOURS[0], label="by size, before recovery")
axis.axhline(intervals.interval(dense).mean, color="black", linewidth=1, label="teacher")
axis.axhline(dumb.mean, color="black", linewidth=1, linestyle="--", label="memory of words")
axis.set(xlabel="weights of the layers that are zero (%)", ylabel="token F1 on the test countries", ylim=(0, 1))
axis.legend(fontsize=9, loc="lower left")
plots.show(
    figure,
    alt="Token F1 against sparsity for four ways of pruning, with intervals over seeds: at 50 % pruning by size costs "
    "hardly anything; at 95 % only gradual and movement pruning stay above the memory of words, movement on top.",
)

# %%
for sparsity in SPARSITIES:
    for way in WAYS:
        recovered = intervals.interval(f1[way, sparsity])
        cut = f"before recovery {intervals.interval(right_after[way, sparsity]).mean:.3f}" if way in WAYS[:2] else ""
        print(f"{sparsity:4.0%} zeros {way:20s} {recovered}  {cut}")


def paired(a, b):
    """Interval of the difference, seed by seed."""
    return intervals.interval([one - other for one, other in zip(a, b, strict=True)])


def verdict(gain):
    return "better" if gain.low > 0 else "worse" if gain.high < 0 else "no difference seen"


moves = {sparsity: paired(f1["by movement", sparsity], f1["gradually, by size", sparsity]) for sparsity in SPARSITIES}
for sparsity, gain in moves.items():
    print(f"{sparsity:4.0%} zeros: by movement less gradually by size {gain}: {verdict(gain)}")

# %%
if full:
    mean_of = {key: intervals.interval(values).mean for key, values in f1.items()}
    lesson.record("prune-teacher", intervals.interval(dense).mean)
    lesson.record("prune-longer", intervals.interval(longer).mean)
    lesson.record("prune-memory", dumb.mean)
    lesson.record("prune-size-50", mean_of["by size", 0.5])
    lesson.record("prune-size-80-before", intervals.interval(right_after["by size", 0.8]).mean)
    lesson.record("prune-size-80", mean_of["by size", 0.8])
    lesson.record("prune-lot-50", mean_of["by lot", 0.5])
    lesson.record("prune-lot-80", mean_of["by lot", 0.8])
    lesson.record("prune-gradual-80", mean_of["gradually, by size", 0.8])
    lesson.record("prune-size-95", mean_of["by size", 0.95])
    lesson.record("prune-movement-50", moves[0.5].mean)
    lesson.record("prune-movement-50-low", moves[0.5].low)
    lesson.record("prune-movement-50-high", moves[0.5].high)
    lesson.record("prune-movement-95", moves[0.95].mean)
    lesson.record("prune-movement-95-low", moves[0.95].low)

# %% [markdown]
# In the stored run the teacher has {{prune-teacher}} (trained on: {{prune-longer}}; memory of words: {{prune-memory}}).
# With half of the layers' weights at zero, cut by size, it has {{prune-size-50}}; cut by lot, {{prune-lot-50}}. With
# 80 % the cut leaves {{prune-size-80-before}}, recovery lifts that to {{prune-size-80}}, and cutting gradually gives
# {{prune-gradual-80}}.
#
# At 95 % a single cut by size is lost ({{prune-size-95}}). There **movement** pays: {{prune-movement-95}} over gradual
# pruning by size, at least {{prune-movement-95-low}} by its interval. At 50 % the interval holds zero
# ({{prune-movement-50}}, from {{prune-movement-50-low}} to {{prune-movement-50-high}}): when only half must go, size
# knows enough. That is what the paper reports, too: movement is for high sparsity.

# %% [markdown]
# ## A pattern that hardware can use: 2 of 4
#
# Zeros that lie anywhere are hard to use. NVIDIA's sparse tensor cores skip zeros in *one* pattern: of every four
# neighbours along the input dimension two are zero. An index of two bits then says where each survivor stood.

# %%
patch = weights["body.layers.0.mlp.Wi.weight"].detach()[:12, :24]
pictures = {
    "all": patch,
    "half, anywhere": patch * magnitude_masks({"patch": patch}, 0.5)["patch"],
    "2 of every 4": patch * n_of_m_mask(patch),
}
figure, axes = plt.subplots(1, 3, figsize=(10, 2.6))
for axis, (title, picture) in zip(axes, pictures.items()):
    axis.imshow(picture.abs(), cmap="cividis")
    axis.set(title=title, xlabel="input", ylabel="output")
    axis.set_xticks(range(0, 24, 4))
    axis.grid(axis="y", visible=False)
plots.show(
    figure,
    alt="A corner of a weight matrix, whole, with its smaller half at zero, and with two of every four neighbours at "
    "zero: the pattern of 2 of 4 has as many zeros in every group of four inputs.",
)

# %% [markdown]
# ### Exercise two_of_four — Two of four · ★★☆ · 8 minutes


# %% tags=["exercise"]
def two_of_four(weight):
    """A float tensor [..., 4k], of one dimension or more -> a boolean mask of its shape.

    Of every four neighbours in the last dimension (positions 0-3, 4-7, ...) the two of largest absolute value are True.
    Of equals the earlier stays. ``weight`` is not changed.
    """
    ### BEGIN SOLUTION
    groups = weight.abs().reshape(*weight.shape[:-1], -1, 4)
    kept = groups.argsort(dim=-1, descending=True, stable=True)[..., :2]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, kept, True)
    return mask.reshape(weight.shape)
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("two_of_four", two_of_four)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary><code>weight.reshape(..., -1, 4)</code> puts each group into a dimension of its
# own.</details>
# <details><summary>Hint 2</summary>Rank within that dimension, and put True at the places of the first two:
# <code>scatter</code>.</details>
# <details><summary>Hint 3</summary>Comparing with the second largest value keeps three where two are equal.</details>

# %%
pattern = {name: n_of_m_mask(weight) for name, weight in weights.items()}
free = magnitude_masks(weights, 0.5)
groups = torch.cat([mask.view(-1, 4).sum(1) for mask in pattern.values()])
lesson.record("two-four-odd-groups", int((groups != 2).sum()))
energies = {"2 of 4": pruning.kept_energy(weights, pattern), "half, anywhere": pruning.kept_energy(weights, free)}
for name, share in energies.items():
    print(f"{name:15s} half of the weights stay, with {100 * share:.1f} % of the sum of squares")

# %%
two_four = {}
for seed in SEEDS:
    masks = {name: n_of_m_mask(weight) for name, weight in prunable(teachers[seed]).items()}
    before, two_four[seed] = cut_and_recover(seed, masks)
    f1["2 of 4"].append(score(two_four[seed]))
    right_after["2 of 4"].append(before)
price = paired(f1["2 of 4"], f1["by size", 0.5])
print(f"2 of 4: {intervals.interval(right_after['2 of 4']).mean:.3f}, recovered {intervals.interval(f1['2 of 4'])}")
print(f"less half of the weights anywhere: {price}: {verdict(price)}")
if full:
    lesson.record("two-four-energy", 100 * energies["2 of 4"])
    lesson.record("half-energy", 100 * energies["half, anywhere"])
    lesson.record("two-four-price", price.mean)

# %% [markdown]
# In the stored run the pattern keeps {{two-four-energy}} % of the sum of squares where free choice keeps
# {{half-energy}} %, and changes F1 by {{two-four-price}} beside it: little or nothing for a model that may recover.
#
# And the speed? It needs those tensor cores. On a CPU torch refuses, in words:

# %% tags=["nbval-check-output"]
from torch.sparse import to_sparse_semi_structured

ready = torch.tensor([[1.0, 0, 2, 0]]).repeat(64, 16).half()
try:
    to_sparse_semi_structured(ready)
except RuntimeError as error:
    print(error)

# %% [markdown]
# ## Smaller on paper
#
# > **Misconception: "90 % of the weights are zero, so it is ten times smaller and ten times faster."** A zero in a
# > dense matrix takes four bytes and one multiplication, like any number. The cells below show it.
#
# To gain from zeros one must *not store* them. **Compressed sparse rows** (CSR) hold the values that are left, a column
# number for each, and where each row begins:
#
# $$\text{bytes} = \text{nonzeros} \cdot (4 + 4) + (\text{rows} + 1) \cdot 4$$
#
# (torch keeps indices in 8 bytes each; a file need not.) The column number costs as much as the value. So at 50 %
# nothing is gained yet. A file may also be compressed as it is: zeros compress well.

# %%
off = 0
print("bytes of the layers' matrices, by share of zeros")
for sparsity in (0.0, 0.5, 0.8, 0.9, 0.95):
    masks = magnitude_masks(weights, sparsity)
    pruned = {name: (weight * masks[name]).detach() for name, weight in weights.items()}
    found = pruning.stored_bytes(pruned)
    rows = [one.to_sparse_csr() for one in pruned.values()]
    in_torch = sum(row.values().nbytes + row.col_indices().to(torch.int32).nbytes
                   + row.crow_indices().to(torch.int32).nbytes for row in rows)  # fmt: skip
    off += abs(found.csr - in_torch)
    print(f"{sparsity:4.0%}  dense {found.dense:9,}  zlib {found.zipped:9,}  CSR {found.csr:9,}")
    if sparsity == 0.9 and full:
        lesson.record("csr-share-90", 100 * found.csr / found.dense)
        lesson.record("zip-share-90", 100 * found.zipped / found.dense)
lesson.record("csr-bytes-off", off)

# %% [markdown]
# Now the time. One product, as in an encoder's MLP, with 512 tokens: of this encoder's size and of BERT-base's. All
# contenders take turns, round by round.

# %%
THREADS = torch.get_num_threads()
torch.set_num_threads(1)  # more of them take turns with whatever else runs here, and times scatter
SHAPES = {"512 × 128": (512, 128), "3072 × 768": (3072, 768)}
SHARES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
TOKENS = lesson.choose(quick=256, full=512)
speed, gap = {}, 0.0
for shape, (outputs, inputs) in SHAPES.items():
    matrix, x = torch.randn(outputs, inputs), torch.randn(TOKENS, inputs)
    upright = x.T.contiguous()  # the layout that suits CSR
    calls = {"dense": lambda matrix=matrix, x=x: F.linear(x, matrix)}
    for share in SHARES:
        holes = matrix * magnitude_masks({"w": matrix}, share)["w"]
        rows = holes.to_sparse_csr()
        calls["zeros", share] = lambda holes=holes, x=x: F.linear(x, holes)
        calls["CSR", share] = lambda rows=rows, upright=upright: rows @ upright
        product = F.linear(x, holes)
        gap = max(gap, float(((rows @ upright).T - product).abs().max()) / float(F.linear(x, matrix).abs().max()))
    times = timing.side_by_side(calls, rounds=lesson.choose(quick=3, full=11))
    speed[shape] = {key: timing.ratio(times["dense"], seconds) for key, seconds in times.items()}
torch.set_num_threads(THREADS)
lesson.record("csr-difference", gap)

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
for axis, (shape, of_shape) in zip(axes, speed.items()):
    for what, marker in (("zeros", "s"), ("CSR", "o")):
        points = [of_shape[what, share] for share in SHARES]
        reach = [[p.median - p.low for p in points], [p.high - p.median for p in points]]
        label = {"zeros": "dense, with zeros", "CSR": "CSR, zeros left out"}[what]
        axis.errorbar([100 * one for one in SHARES], [p.median for p in points], yerr=reach, fmt=f"-{marker}",
                      capsize=3, label=label)  # fmt: skip
    axis.plot([100 * s for s in SHARES[:-1]], [1 / (1 - s) for s in SHARES[:-1]], ":", color="black",
              label="what one might expect")  # fmt: skip
    axis.axhline(1, color="black", linewidth=1)
    axis.set(xlabel="zeros (%)", yscale="log", title=f"weights {shape}, {TOKENS:,} tokens")
axes[0].set(ylabel="times as fast as dense")
axes[0].legend(fontsize=9)
plots.show(
    figure,
    alt="Speed relative to the dense product against the share of zeros, two matrix sizes: dense with zeros stays at "
    "1; CSR is far slower up to 80 or 90 % of zeros and overtakes only beyond.",
)


# %%
def crossover(of_shape):
    """The least share of zeros measured from which CSR is never slower than dense; 1 if there is none."""
    slower = [share for share in SHARES if of_shape["CSR", share].median < 1]
    return min([share for share in SHARES if share > max(slower, default=-1)], default=1.0)


for shape, of_shape in speed.items():
    print(f"{shape}: CSR at 50 % zeros {of_shape['CSR', 0.5].median:.2f} times as fast as dense, at 90 % "
          f"{of_shape['CSR', 0.9].median:.2f}, at 99 % {of_shape['CSR', 0.99].median:.2f}; "
          f"faster from {crossover(of_shape):.0%} on")  # fmt: skip
if full:
    large = speed["3072 × 768"]
    lesson.record("zeros-speed-90", large["zeros", 0.9].median)
    lesson.record("csr-speed-50", large["CSR", 0.5].median)
    lesson.record("csr-speed-90", large["CSR", 0.9].median)
    lesson.record("csr-speed-99", large["CSR", 0.99].median)
    lesson.record("csr-crossover", 100 * crossover(large))

# %% [markdown]
# In the stored run a dense product with 90 % zeros runs at {{zeros-speed-90}} of the speed without: nothing is gained.
# CSR at 50 % has {{csr-speed-50}} of the dense speed, at 90 % {{csr-speed-90}}, at 99 % {{csr-speed-99}}; among the
# shares measured it is faster from {{csr-crossover}} % on. A dense product walks through memory in order and multiplies
# eight or sixteen numbers at once; CSR jumps, and looks up where to. Most of what fewer multiplications save is eaten
# up by that.
#
# On disk zeros do pay: at 90 % CSR takes {{csr-share-90}} % of the dense bytes, and zlib alone brings the dense file to
# {{zip-share-90}} %. **Unstructured pruning is a way to compress, not a way to be fast**, unless nearly everything is
# zero or the hardware knows the pattern.
#
# ### What would you cut?
#
# The same matrix with its zeros in four patterns. For the fourth, whole rows, a smaller matrix can be stored and
# multiplied. It has its turn first, on the clock:

# %%
WHOLE = weights["body.layers.0.mlp.Wi.weight"].detach().clone()
tokens = torch.randn(TOKENS, WHOLE.shape[1], generator=torch.Generator().manual_seed(1))
smaller = {share: WHOLE[: round((1 - share) * len(WHOLE))].clone() for share in SHARES}
calls = {share: lambda matrix=matrix: F.linear(tokens, matrix) for share, matrix in smaller.items()}
torch.set_num_threads(1)
times = timing.side_by_side(calls, rounds=lesson.choose(quick=3, full=11))
torch.set_num_threads(THREADS)
without_rows = {share: timing.ratio(times[0.0], seconds).median for share, seconds in times.items()}
print("rows left out:", ", ".join(f"{share:.0%}: {ratio:.1f} times as fast" for share, ratio in without_rows.items()))

# %% [markdown]
# Now choose what goes, and how much. The controls need a running notebook and obey the keyboard; the picture is the one
# at their start.


# %%
ANYWHERE, LOT, PATTERN, ROWS = "anywhere, the smallest", "anywhere, by lot", "2 of 4", "whole rows, the smallest"


def cut_by(way, share):
    """True where a weight stays."""
    if way == PATTERN:
        return n_of_m_mask(WHOLE)
    if way == ROWS:
        order = WHOLE.square().sum(1).argsort(descending=True)
        return torch.zeros_like(WHOLE, dtype=torch.bool).index_fill(0, order[: len(smaller[share])], True)
    return {ANYWHERE: magnitude_masks, LOT: random_masks}[way]({"whole": WHOLE}, share)["whole"]


def ways_to_keep(way, share, mask):
    """[(what is stored, its bytes, times as fast as dense or why there is no such number)]."""
    measured, share = speed["512 × 128"], 0.5 if way == PATTERN else share
    found = pruning.stored_bytes({"whole": WHOLE * mask})
    rows = [("dense, zeros and all", WHOLE.nbytes, measured["zeros", share].median)]
    rows.append(("zlib", found.zipped, "only a file"))
    if way == ROWS:
        return [*rows, ("smaller matrix", smaller[share].nbytes, without_rows[share])]
    rows.append(("CSR", found.csr, measured["CSR", share].median))
    places = int(mask.sum()) * 2 / 8  # 2 bits say where among its four a number stood
    return [*rows, ("half, and places", WHOLE.nbytes / 2 + places, "not here")] if way == PATTERN else rows


# %%
def draw_ways(bytes_, fast, ways):
    """Bars of size and of speed; a word where there is no speed."""
    for row, (what, size, times_as_fast) in enumerate(ways):
        bytes_.barh(row, size / 1024, color=plots.COLOURS[0])
        bytes_.text(size / 1024, row, f" {size / 1024:.0f}", va="center")
        bytes_.text(-15, row, what, ha="right", va="center")
        if isinstance(times_as_fast, str):
            fast.text(1, row, f" {times_as_fast}", va="center")
        else:
            fast.barh(row, times_as_fast - 1, left=1, color=plots.COLOURS[2])
            fast.text(max(times_as_fast, 1), row, f" {times_as_fast:.2f}", va="center")
    bytes_.set(yticks=(), xlim=(0, 660), xticks=(0, 256, 512), ylim=(3.6, -0.6), xlabel="KiB", title="size")
    fast.axvline(1, color="black", linewidth=1)
    fast.set(yticks=(), xscale="log", xlim=(0.02, 500), ylim=(3.6, -0.6), xlabel="times as fast as dense")
    fast.set_title("speed")


def sparsity_figure(way, share):
    """A corner of the matrix, and the ways in which it can be kept."""
    mask = cut_by(way, share)
    figure = plt.figure(figsize=(11, 3.9), layout="none")  # its own layout, which is quick to draw
    picture, bytes_, fast = (figure.add_axes((left, 0.15, width, 0.66)) for left, width in
                             ((0.05, 0.34), (0.555, 0.19), (0.775, 0.215)))  # fmt: skip
    shown = WHOLE.abs().where(mask, torch.nan)[:48, :72]
    picture.imshow(shown, cmap="cividis_r", vmin=0, vmax=float(WHOLE.abs().max()) / 2)
    picture.set(title="a corner (dark: large, white: cut)", xlabel="input", ylabel="output")
    picture.grid(visible=False)
    draw_ways(bytes_, fast, ways_to_keep(way, share, mask))
    zeros, stays = 1 - float(mask.float().mean()), pruning.kept_energy({"whole": WHOLE}, {"whole": mask})
    always = " (always half)" if way == PATTERN else ""
    figure.suptitle(f"{way}: {100 * zeros:.0f} % zeros{always}, {100 * stays:.0f} % of the sum of squares stays")
    return figure


# %%
live_picture(
    sparsity_figure,
    alt="Left: a corner of a real weight matrix, cut weights white. Right: bars of its size as a dense matrix, "
    "compressed, in CSR or as a smaller matrix, and of the speed of each on this machine. At the start 90 % of the "
    "weights are cut, the smallest anywhere: zlib and CSR are far smaller, and the dense product is as fast as before.",
    way=Choice("what goes", (ANYWHERE, LOT, PATTERN, ROWS), start=ANYWHERE),
    share=Slider("share of zeros", SHARES, start=0.9),
)

# %% [markdown]
# What to see: follow the sum of squares, which says roughly what a cut takes from the model. It is largest for the
# smallest weights anywhere, less for 2 of 4 (compare at a share of 0.5), and far less for whole rows or by lot. Then
# follow the speed: it goes the other way. Only the smaller matrix gains at every share, and it needs no kernel of its
# own. (How much faster depends on the machine: a product too small has nothing to hide its start behind.) So
# structure costs quality and buys speed, and the question is whether what is left can recover.

# %% [markdown]
# ## Whole parts: heads, columns, layers
#
# To be faster everywhere, take out what makes the matrices smaller: a **head** of attention, a **column** of the MLP
# (one of its hidden units), a **layer**.
#
# Which ones? Put a factor $g = 1$ behind each part and ask what setting it to 0 would do to the loss, to first order
# (Michel et al. 2019; Molchanov et al. 2019):
#
# $$L(g{=}0) - L(g{=}1) \approx -\frac{\partial L}{\partial g}
# = -\sum_{\text{positions}} a \cdot \frac{\partial L}{\partial a}$$
#
# with $a$ the part's output. The importance is the mean over sentences of its absolute value. For the columns of one
# MLP, by hand:

# %%
batch = encoding.collate(examples[0][:32], tokenizer.pad_token_id)
seen = {}
model = teachers[0]
handle = model.body.layers[1].mlp.Wo.register_forward_pre_hook(lambda module, inputs: seen.update(a=inputs[0]))
labels = (batch["labels"] != -100).sum()  # the loss is a mean over them; a sentence's share is a sum
gradient = torch.autograd.grad(model(**batch).loss * labels, seen["a"])[0]
handle.remove()
by_hand = (seen["a"] * gradient).sum(1).abs().mean(0)  # sum over positions, absolute value, mean over sentences
theirs = taylor_importance(model, examples[0][:32]).columns[1]
error = float((by_hand - theirs).detach().abs().max() / theirs.max())
lesson.record("taylor-difference", error)
print(f"{len(by_hand)} columns of layer 1; largest relative difference to the package's {error:.1g}")

# %% [markdown]
# Then take them out. A column of the MLP is *two* rows of `Wi` (the activated half and the gate) and one column of
# `Wo`.

# %%
def without_columns(wi, wo, gone):
    keep = torch.tensor([column for column in range(wo.shape[1]) if column not in gone])
    return torch.cat([wi[keep], wi[wo.shape[1] + keep]]), wo[:, keep]


def mlp(x, wi, wo):
    activated, gate = F.linear(x, wi).chunk(2, dim=-1)
    return F.linear(F.silu(activated) * gate, wo)


layer = model.body.layers[1].mlp
wi, wo, gone = layer.Wi.weight.detach(), layer.Wo.weight.detach(), set(by_hand.argsort()[:100].tolist())
small_wi, small_wo = without_columns(wi, wo, gone)
zeroed = wo.clone()
zeroed[:, list(gone)] = 0
x = torch.randn(5, wi.shape[1])
print("Wi", list(wi.shape), "->", list(small_wi.shape), "  Wo", list(wo.shape), "->", list(small_wo.shape))
assert torch.allclose(mlp(x, small_wi, small_wo), mlp(x, wi, zeroed), atol=1e-5)
packaged = remove_columns(model, {1: gone}).body.layers[1].mlp
assert torch.equal(packaged.Wi.weight, small_wi)
assert torch.equal(packaged.Wo.weight, small_wo)

# %% [markdown]
# ### Exercise drop_heads — Take out heads · ★★★ · 12 minutes
#
# `Wqkv` makes the queries of all heads, then the keys of all heads, then the values of all heads. `Wo` reads the heads
# side by side.


# %% tags=["exercise"]
def drop_heads(wqkv, wo, heads, gone):
    """Weights without the heads in ``gone``: a list of numbers from 0 to heads - 1, each once, in any order; it may be
    empty, and at least one head is left.

    wqkv [3 · heads · size, hidden]: its rows are [3 (q, k, v), heads, size] in reading order. wo [hidden, heads ·
    size]: its columns are [heads, size]. -> (wqkv, wo), smaller, what is left in its old order. The arguments are not
    changed.
    """
    ### BEGIN SOLUTION
    keep = [head for head in range(heads) if head not in gone]
    hidden = wqkv.shape[1]
    rows = wqkv.reshape(3, heads, -1, hidden)[:, keep]
    columns = wo.reshape(wo.shape[0], heads, -1)[:, keep]
    return rows.reshape(-1, hidden), columns.reshape(wo.shape[0], -1)
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("drop_heads", drop_heads)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>View the rows of Wqkv as [3, heads, size, hidden]; then heads have a dimension of
# their own.</details>
# <details><summary>Hint 2</summary>Indexing with the list of heads that stay keeps their order.</details>
# <details><summary>Hint 3</summary>For Wo it is the columns: [hidden, heads, size].</details>

# %% [markdown]
# Nothing else may change. A removed part must give the outputs of the model with that part *silenced* (its columns of
# `Wo` at zero):

# %%
def silenced(model, heads, columns, layers):
    """The model as large as it was, with zeros where the parts enter the sum."""
    model = copy.deepcopy(model)
    for number, layer in enumerate(model.body.layers):
        attention, mlp = layer.attn.Wo.weight.data, layer.mlp.Wo.weight.data
        for head in heads.get(number, []):
            attention.view(len(attention), layer.attn.heads, -1)[:, head] = 0
        mlp[:, list(columns.get(number, []))] = 0
        if number in layers:
            attention.zero_(), mlp.zero_()
    return model


heads, columns = {0: [1], 2: [0]}, {0: range(0, 200), 1: range(50, 250), 2: range(30, 230)}
small = remove_layers(remove_columns(remove_heads(model, heads), columns), [1])
with torch.no_grad():
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    want = silenced(model, heads, columns, [1])(**inputs).logits[batch["attention_mask"].bool()]
    error = float((small(**inputs).logits[batch["attention_mask"].bool()] - want).abs().max() / want.abs().max())
lesson.record("removal-difference", error)
print(f"heads, columns and a layer taken out; largest relative difference of a logit: {error:.1g}")

# %% [markdown]
# Does it pay to ask the loss? Three quarters of all columns go, by importance, by lot, and (a warning) the most
# important ones; then heads and layers.

# %%
SHARE = lesson.choose(quick=128, full=192)  # columns of 256 that go, in every layer
parts = defaultdict(dict)
for seed in SEEDS:
    teacher, found = teachers[seed], taylor_importance(teachers[seed], examples[seed])
    lot = [torch.rand(256, generator=torch.Generator().manual_seed(seed + layer)) for layer in range(3)]
    parts["columns by importance"][seed] = remove_columns(teacher, lowest(found.columns, SHARE))
    parts["columns by lot"][seed] = remove_columns(teacher, lowest(lot, SHARE))
    parts["columns, the best ones"][seed] = remove_columns(teacher, lowest([-one for one in found.columns], SHARE))
    parts["one head of two"][seed] = remove_heads(teacher, lowest(found.heads, 1))
    parts["heads and columns"][seed] = remove_heads(parts["columns by importance"][seed], lowest(found.heads, 1))
    for layer in (0, 2):
        parts[f"without layer {layer}"][seed] = remove_layers(teacher, [layer])
for name, of_seeds in parts.items():
    for seed, cut in of_seeds.items():
        right_after[name].append(score(cut))
        parts[name][seed] = train(cut, seed)
        f1[name].append(score(parts[name][seed]))
    print(f"{name:24s} {intervals.interval(right_after[name]).mean:.3f}, recovered {intervals.interval(f1[name])}")

# %%
by_importance = paired(right_after["columns by importance"], right_after["columns by lot"])
healed = paired(f1["columns by importance"], f1["columns by lot"])
print(f"columns, importance less lot: {by_importance} before recovery ({verdict(by_importance)}), "
      f"{healed} after ({verdict(healed)})")  # fmt: skip
if full:
    for short, name in (("columns", "columns by importance"), ("lot", "columns by lot"),
                        ("best", "columns, the best ones"), ("heads", "one head of two")):  # fmt: skip
        lesson.record(f"cut-{short}-before", intervals.interval(right_after[name]).mean)
        lesson.record(f"cut-{short}", intervals.interval(f1[name]).mean)
    for layer in (0, 2):
        lesson.record(f"cut-layer-{layer}-before", intervals.interval(right_after[f"without layer {layer}"]).mean)
        lesson.record(f"cut-layer-{layer}", intervals.interval(f1[f"without layer {layer}"]).mean)

# %% [markdown]
# In the stored run, right after the cut and after recovery:
#
# | what goes | before | after recovery |
# |---|---|---|
# | three quarters of the columns, by importance | {{cut-columns-before}} | {{cut-columns}} |
# | as many, by lot | {{cut-lot-before}} | {{cut-lot}} |
# | as many, the most important | {{cut-best-before}} | {{cut-best}} |
# | the less important head of each layer | {{cut-heads-before}} | {{cut-heads}} |
# | the first layer | {{cut-layer-0-before}} | {{cut-layer-0}} |
# | the last layer | {{cut-layer-2-before}} | {{cut-layer-2}} |
#
# Mind the last column of the second row: a short recovery makes up for much of a bad choice. A method of pruning that
# is shown only *after* recovery, without the lot beside it, has shown the recovery.
#
# ### Who can open it?
#
# What is cut evenly is an ordinary ModernBERT with smaller numbers in its configuration. Stock `transformers` opens it,
# without this course. For the language model of lesson @mlm_pretraining:

# %%
cut = remove_layers(remove_columns(run.model, {layer: range(100) for layer in range(3)}), [2])
cut.save_pretrained(folder / "cut")
stock = AutoModelForMaskedLM.from_pretrained(folder / "cut")
with torch.no_grad():
    ours, theirs = (one(**inputs).logits[batch["attention_mask"].bool()] for one in (cut, stock))
lesson.record("stock-cut-difference", float((ours - theirs).abs().max() / ours.abs().max()))
print(f"{type(stock).__module__}: {stock.config.num_hidden_layers} layers of {stock.config.intermediate_size} columns, "
      f"largest relative difference {float((ours - theirs).abs().max() / ours.abs().max()):.1g}")  # fmt: skip

# %% [markdown]
# Other cuts have no place in that configuration: a head's size is `hidden_size / num_attention_heads` there, the
# columns are the same in all layers, and the first layer has no norm before its attention. Such a model runs and
# trains; saving it would give a file that opens as something else. So it refuses:

# %% tags=["nbval-check-output"]
from sslcourse.models.encoder import EncoderConfig, EncoderForMaskedLM
from sslcourse.models.lora import add_lora

torch.manual_seed(0)
plain = EncoderForMaskedLM(EncoderConfig())
task = task_heads.TokenClassifier(plain.model, 3)
other = task_heads.TokenClassifier(copy.deepcopy(plain.model), 4)
tiny_batch = encoding.collate([{"input_ids": [5, 6, 7], "labels": [0, 1, 2]}], 0)
attempts = {
    "saving a model without a head": lambda: remove_heads(plain, {1: [0]}).save_pretrained(folder / "no"),
    "saving uneven columns": lambda: remove_columns(plain, {1: [0]}).save_pretrained(folder / "no"),
    "saving without the first layer": lambda: remove_layers(plain, [0]).save_pretrained(folder / "no"),
    "all heads": lambda: remove_heads(plain, {2: [0, 1]}),
    "a head that is not there": lambda: remove_heads(plain, {2: [2]}),
    "a layer that is not there": lambda: remove_columns(plain, {3: [0]}),
    "heads of a model with LoRA": lambda: remove_heads(add_lora(copy.deepcopy(plain.model)), {0: [1]}),
    "more than all": lambda: magnitude_masks(prunable(plain), 1.2),
    "2 of 4 of a width of 6": lambda: n_of_m_mask(torch.ones(3, 6)),
    "a weight that is nan": lambda: magnitude_masks({"w": torch.tensor([1.0, float("nan")])}, 0.5),
    "a teacher of other classes": lambda: distilled(other)(task, tiny_batch),
}
for what, attempt in attempts.items():
    try:
        attempt()
    except ValueError as error:
        print(f"{what}:\n    {error}")

# %% [markdown]
# ## A small model that learns from a large one
#
# A teacher knows more than a label says: not only *a name begins here*, but *with 0.7, and with 0.2 it goes on here*.
# In **distillation** (Hinton et al. 2015) the student learns the teacher's probabilities, softened by a temperature
# $T$. With the teacher's logits $t$, the student's $z$, and $\alpha$ the teacher's share of the loss:
#
# $$L = \alpha \, T^2 \, \mathrm{KL}\bigl(\mathrm{softmax}(t / T) \,\|\, \mathrm{softmax}(z / T)\bigr)
# + (1 - \alpha) \, \text{cross-entropy}$$
#
# Why $T^2$? The gradient of the KL by the student's scores $z$ is
# $(\mathrm{softmax}(z/T) - \mathrm{softmax}(t/T)) / T$. For a large $T$ the difference shrinks as $1/T$, too.
# Without the factor, the temperature would silently turn the teacher down:

# %%
torch.manual_seed(0)
z, t = torch.randn(50, 3, dtype=torch.float64, requires_grad=True), torch.randn(50, 3, dtype=torch.float64)
everywhere, error = torch.ones(50, dtype=torch.bool), 0.0
for T in (1.0, 2.0, 4.0, 8.0, 16.0):
    found = torch.autograd.grad(distillation.distillation_loss(z, t, everywhere, T), z)[0]
    derived = T * ((z / T).softmax(-1) - (t / T).softmax(-1)).detach() / len(z)
    error = max(error, float((found - derived).abs().max()))
    length = float(found.norm())
    print(f"T = {T:4.0f}: length of the gradient with T² {length:.4f}, without {length / T**2:.5f}")
lesson.record("distillation-gradient-error", error)

# %% [markdown]
# ### Exercise soft_loss — The soft half of the loss · ★★☆ · 10 minutes


# %% tags=["exercise"]
def soft_loss(student, teacher, labels, temperature):
    """T² · KL(softmax(teacher / T) || softmax(student / T)), the mean over the scored positions. A scalar.

    student, teacher: logits [batch, seq, classes]. labels [batch, seq]: a position counts unless its label is -100;
    the labels mean nothing else here. At least one position counts. No gradient flows to the teacher. Logits may be as
    large as 200, so use ``log_softmax``, not the logarithm of a softmax; and write the KL out, without ``kl_div``.
    temperature is positive. No argument is changed.
    """
    ### BEGIN SOLUTION
    scored = labels != -100
    log_q = (student[scored] / temperature).log_softmax(-1)
    log_p = (teacher[scored].detach() / temperature).log_softmax(-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("soft_loss", soft_loss)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>First keep the scored positions: <code>student[labels != -100]</code> is
# [positions, classes].</details>
# <details><summary>Hint 2</summary>KL(p || q) = Σ p (log p - log q), and p is the teacher's.</details>
# <details><summary>Hint 3</summary>Sum over classes, mean over positions, and T² at the end.</details>

# %% [markdown]
# ### With and without a teacher
#
# The students are the teacher's lower layers, two of them or one, as DistilBERT is made of a part of BERT's (Sanh et
# al. 2019). Each is trained for the same number of steps in three ways: on the labels alone; on the same sentences with
# a teacher; and on *all* training sentences, whose labels nobody needs: the teacher tags them.

# %%
every_sentence = encode_names(names["train"][: lesson.choose(quick=60, full=None)])
students = defaultdict(dict)
for seed in SEEDS:
    for layers, gone in ((2, [2]), (1, [1, 2])):
        small = remove_layers(teachers[seed], gone)
        for name, rows, hooks in (
            ("no teacher", None, {}),
            ("teacher", None, {"backward": distilled(teachers[seed])}),
            ("teacher, unlabelled text", every_sentence, {"backward": distilled(teachers[seed], soft_share=1.0)}),
        ):
            students[layers, name][seed] = train(small, seed, STEPS, rows, **hooks)
            f1[layers, name].append(score(students[layers, name][seed]))

# %%
gains = {}
for (layers, name), of_seeds in students.items():
    line = f"{layers} layer(s), {name:25s} {intervals.interval(f1[layers, name])}"
    if name != "no teacher":
        gains[layers, name] = paired(f1[layers, name], f1[layers, "no teacher"])
        line += f"   gain {gains[layers, name]}: {verdict(gains[layers, name])}"
    print(line)
if full:
    for layers in (2, 1):
        lesson.record(f"student-{layers}", intervals.interval(f1[layers, "no teacher"]).mean)
        lesson.record(f"student-{layers}-teacher", gains[layers, "teacher"].mean)
        lesson.record(f"student-{layers}-unlabelled", gains[layers, "teacher, unlabelled text"].mean)
    lesson.record("distillation-helps", sum(gain.low > 0 for gain in gains.values()))

# %% [markdown]
# In the stored run, without a teacher, the student of two layers has {{student-2}} and that of one layer {{student-1}}.
# The teacher's soft answers on the same sentences add {{student-2-teacher}} and {{student-1-teacher}}; on unlabelled
# text {{student-2-unlabelled}} and {{student-1-unlabelled}}. Of these four gains {{distillation-helps}} have an
# interval above zero. Three tags leave little to be soft about, and a student that starts from the teacher's own layers
# knows much already. That is why *no teacher* must stand beside it.

# %% [markdown]
# ## The frontier
#
# Every method so far, and int8 from lesson @quantization on top of some of them, in one picture: token F1 against the
# milliseconds that a batch of 32 × 64 tokens takes. A model is on the **frontier** if no other beats it, by being at
# least as good and over 5 % faster, or better and less than 5 % slower. To be fair, all of them run in the same
# engine: ONNX Runtime, fp32 or dynamic int8, one thread. Their training is not quite equal: a student learns longer
# than a cut model recovers, and dense gets nothing on top. One more model joins, a combination: two layers, with half
# of their columns, taught by the teacher.

# %%
combined = {}
for seed in SEEDS:
    small = students[2, "teacher, unlabelled text"][seed]
    small = remove_columns(small, lowest(taylor_importance(small, examples[seed]).columns, 128))
    learn = distilled(teachers[seed], soft_share=1.0)
    combined[seed] = train(small, seed, RECOVER, every_sentence, backward=learn)
    f1["2 layers, half the columns"].append(score(combined[seed]))

MASKED = 0.8 if full else 0.95
CONTENDERS = {  # name -> (a model for each seed, what kind it is)
    "dense": (teachers, "whole"),
    "80 % zeros": ({seed: kept["gradually, by size", MASKED, seed] for seed in SEEDS}, "zeros"),
    "95 % zeros": ({seed: kept["by movement", 0.95, seed] for seed in SEEDS}, "zeros"),
    "2 of 4": (two_four, "zeros"),
    "3/4 of the columns out": (parts["columns by importance"], "parts"),
    "half the heads": (parts["one head of two"], "parts"),
    "heads and columns": (parts["heads and columns"], "parts"),
    "2 layers": (students[2, "no teacher"], "parts"),
    "1 layer": (students[1, "no teacher"], "parts"),
    "2 layers, taught": (students[2, "teacher, unlabelled text"], "taught"),
    "1 layer, taught": (students[1, "teacher, unlabelled text"], "taught"),
    "2 layers, half the columns, taught": (combined, "taught"),
}
IN_INT8 = ("dense", "80 % zeros", "3/4 of the columns out", "2 layers, taught", "1 layer, taught",
           "2 layers, half the columns, taught")  # fmt: skip
if not full:  # an export takes seconds
    CONTENDERS = {name: CONTENDERS[name] for name in ("dense", "1 layer, taught")}

# %%
generator = torch.Generator().manual_seed(0)
fixed = {"input_ids": torch.randint(5, len(tokenizer), (32, 64), generator=generator),
         "attention_mask": torch.ones(32, 64, dtype=torch.long)}  # fmt: skip
graphs, points, exported, engine_gap = {}, defaultdict(list), {}, 0.0


def graph_of(model, path):
    """Its graph. One of these shapes that stands already takes the weights, since an export takes seconds."""
    shapes = tuple(weight.shape for weight in model.parameters())
    if shapes in exported:
        source, old = exported[shapes]
        return onnx_files.refilled_onnx(source, path, old, model)
    exported[shapes] = onnx_files.export_onnx(model, path, fixed), model
    return path


for name, (models, kind) in CONTENDERS.items():
    for seed in SEEDS:
        points[name].append(score(models[seed]))
        if seed > 0 and name not in IN_INT8:
            continue
        path = graph_of(models[seed], folder / f"{len(points)}-{seed}.onnx")
        if seed == 0:
            graphs[name] = onnx_files.OnnxModel(path, threads=1)
            with torch.no_grad():
                engine_gap = max(engine_gap, float((graphs[name](**fixed) - models[seed](**fixed).logits).abs().max()))
        if name in IN_INT8:
            graph = onnx_files.OnnxModel(onnx_files.int8_onnx(path, path.with_suffix(".int8.onnx")), threads=1)
            graphs.setdefault(f"{name}, int8", graph)
            points[f"{name}, int8"].append(score(serving_routes.served(models[seed], graph)))
lesson.record("engine-difference", engine_gap)
print(f"{len(graphs)} points; ONNX Runtime's fp32 differs from torch's by {engine_gap:.1g} at most")

# %%
calls = {name: lambda graph=graph: graph(**fixed) for name, graph in graphs.items()}
torch.set_num_threads(1)
with torch.inference_mode():
    calls["torch, dense"] = lambda: teachers[0](**fixed)
    times = timing.side_by_side(calls, rounds=lesson.choose(quick=3, full=13))
torch.set_num_threads(THREADS)
milliseconds = {name: 1e3 * timing.summary(seconds).p50 for name, seconds in times.items()}
faster = {name: timing.ratio(times["dense"], seconds) for name, seconds in times.items()}
mean = {name: intervals.interval(values) for name, values in points.items()}


def beats(one, other):
    """Better or as good by its mean, and 5 % faster or more; or better, and as fast to within 5 %."""
    ratio = timing.ratio(times[other], times[one]).median
    better = mean[one].mean - mean[other].mean
    return (ratio > 1.05 and better >= 0) or (ratio > 0.95 and better > 0)


frontier = [one for one in graphs if not any(beats(other, one) for other in graphs if other != one)]
frontier.sort(key=milliseconds.get)

# %%
order = sorted(graphs, key=milliseconds.get)
print(f"torch, eager, dense: {milliseconds['torch, dense']:.1f} ms\n")
print(f"{'no':>2s}   {'model':40s} {'ms':>6s} {'× dense':>8s} {'MB':>6s}  token F1")
for number, name in enumerate(order, start=1):
    mark = "*" if name in frontier else " "
    print(f"{number:2d} {mark} {name:40s} {milliseconds[name]:6.2f} {faster[name].median:8.2f} "
          f"{graphs[name].bytes / 1e6:6.2f}  {mean[name]}")  # fmt: skip
print("\n* on the frontier. One step up along it:")
for quick, slow in zip(frontier, frontier[1:]):
    gain = paired(points[slow], points[quick])
    dearer = milliseconds[slow] / milliseconds[quick]
    print(f"   {quick} -> {slow}: {dearer:.2f} times the time, {gain}: {verdict(gain)}")

# %% tags=["cover"]
KINDS = {"whole": (0, "o"), "zeros": (3, "X"), "parts": (2, "s"), "taught": (4, "D")}
figure, axis = plt.subplots(figsize=(9.5, 5.5))
for number, name in enumerate(order, start=1):
    base = name.removesuffix(", int8")
    colour, marker = KINDS[CONTENDERS[base][1]]
    y = mean[name]
    axis.errorbar(milliseconds[name], y.mean, yerr=[[y.mean - y.low], [y.high - y.mean]], fmt=marker, markersize=8,
                  color=plots.COLOURS[colour], markerfacecolor="white" if base != name else None, elinewidth=1,
                  capsize=2, label=f"{number}  {name}")  # fmt: skip
    axis.annotate(str(number), (milliseconds[name], y.mean), xytext=(6, 6), textcoords="offset points", fontsize=9)
axis.step([milliseconds[name] for name in frontier], [mean[name].mean for name in frontier], where="post",
          color="black", linewidth=1, zorder=0)  # fmt: skip
axis.axhline(dumb.mean, color="black", linestyle="--", linewidth=1, label="memory of words")
axis.set(xlabel="milliseconds for 32 × 64 tokens, ONNX Runtime, one thread (median)",
         ylabel="token F1 on the test countries")  # fmt: skip
axis.set_xlim(left=0)
axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), title="hollow: int8")
plots.show(
    figure,
    alt="Token F1 against milliseconds for all methods of lessons 07 and 10, with intervals over seeds: models with "
    "zeros stand at about the dense model's time, those with parts taken out further left; hollow marks are int8, and "
    "a line joins the frontier.",
)

# %%
if full:
    lesson.record("frontier-size", len(frontier))
    lesson.record("frontier-int8", sum(name.endswith("int8") for name in frontier))
    lesson.record("frontier-zeros", sum(CONTENDERS[name.removesuffix(", int8")][1] == "zeros" for name in frontier))
    lesson.record("zeros-80-speed", faster["80 % zeros"].median)
    lesson.record("columns-speed", faster["3/4 of the columns out"].median)
    lesson.record("layers-2-speed", faster["2 layers, taught"].median)
    lesson.record("layers-1-speed", faster["1 layer, taught"].median)
    lesson.record("int8-speed", faster["dense, int8"].median)
    lesson.record("int8-price", paired(points["dense, int8"], points["dense"]).mean)
    best = "2 layers, half the columns, taught, int8"
    lesson.record("combined-speed", faster[best].median)
    lesson.record("combined-price", paired(points[best], points["dense"]).mean)
    lesson.record("combined-bytes", 100 * graphs[best].bytes / graphs["dense"].bytes)

# %% [markdown]
# What to see, in the stored run. Models with **zeros** stand at about the dense model's time (80 % of zeros:
# {{zeros-80-speed}} times as fast), wherever their score is. **Parts taken out** move to the left: with a quarter of
# the columns left it is {{columns-speed}} times as fast, two layers {{layers-2-speed}}, one layer {{layers-1-speed}}.
# **int8** alone is {{int8-speed}} times as fast and changes F1 by {{int8-price}}.
#
# The **combination** of two layers, half of the columns, a teacher and int8 is {{combined-speed}} times as fast in
# {{combined-bytes}} % of the bytes, and changes F1 by {{combined-price}}. The frontier has {{frontier-size}} points, of
# which {{frontier-int8}} are int8 and {{frontier-zeros}} have zeros and no part taken out. How far apart the neighbours
# on it are, and whether the seeds can tell them apart at all, stands below the table: where it says "no difference
# seen", the faster of the two is the one to take.
#
# What to keep in mind:
# - Zeros alone save no time here that could be told from the scatter of the clock. Where such a model is on the
#   frontier it is there for its score, or for what int8 adds. Zeros are for storage, or for hardware that knows the
#   pattern.
# - This encoder is small. Half of its weights are embeddings, which are looked up and cost no time: even one layer of
#   three leaves two thirds of the file, and int8 leaves less than a third.
# - One task, one encoder, one machine, short recoveries. Longer training may move the points, and not by the same.

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
# - Han et al. 2015, [learning both weights and connections](https://arxiv.org/abs/1506.02626); Zhu and Gupta 2017,
#   [to prune, or not to prune](https://arxiv.org/abs/1710.01878); Frankle and Carbin 2019,
#   [the lottery ticket hypothesis](https://arxiv.org/abs/1803.03635).
# - Sanh, Wolf and Rush 2020, [movement pruning](https://arxiv.org/abs/2005.07683).
# - Michel, Levy and Neubig 2019, [are sixteen heads really better than one?](https://arxiv.org/abs/1905.10650);
#   Molchanov et al. 2019, [importance estimation for pruning](https://arxiv.org/abs/1906.10771); Sajjad et al. 2020,
#   [on the effect of dropping layers](https://arxiv.org/abs/2004.03844).
# - Mishra et al. 2021, [accelerating sparse deep neural networks](https://arxiv.org/abs/2104.08378), the 2:4 pattern.
# - Hinton, Vinyals and Dean 2015, [distilling the knowledge in a neural network](https://arxiv.org/abs/1503.02531);
#   Sanh et al. 2019, [DistilBERT](https://arxiv.org/abs/1910.01108).
# - Blalock et al. 2020, [what is the state of neural network pruning?](https://arxiv.org/abs/2003.03033): why the
#   baselines beside each method matter.
# - [torch.nn.utils.prune](https://docs.pytorch.org/docs/stable/nn.html#utilities),
#   [torch.sparse](https://docs.pytorch.org/docs/stable/sparse.html), [ONNX Runtime](https://onnxruntime.ai).
