# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   coursekit:
#     budget:
#       quick: {minutes: 1.0, memory_mb: 2500}
#       full: {minutes: 6.0, memory_mb: 4500}
# ---

# %% [markdown]
# # Mixed precision: numbers with few bits
#
# **In this lesson you take floating-point formats apart, train one encoder in five precisions side by side, and
# account for every byte and every operation of a training step.**
#
# *Time*: about 60 minutes of reading and exercises; the machine computes for about four of them (and five more if the
# encoder of lesson @mlm_pretraining has to be made first).
#
# *You need to know*: how the encoder is trained (lesson @mlm_pretraining), what AdamW does (lesson @loss_derivation).
#
# *You will be able to*
# - read a number's format from its bits, and say where it overflows, underflows and rounds;
# - write autocast, a loss scaler and a Kahan sum by hand, and get the library's numbers to the bit;
# - say which part of training may be in 16 bits, and what breaks when another part is;
# - predict the memory of a training step, and say how much of a machine's arithmetic a run uses.

# %% tags=["parameters"]
profile = "auto"

# %%
from coursekit import start

lesson = start("mixed_precision", profile)

# %%
import bisect
import copy
import json
from dataclasses import replace
from datetime import date
from functools import partial

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import transformers

from sslcourse.data import corpus, tokenizer as wordpiece
from sslcourse.data.ignored import IGNORE
from sslcourse.measure import hardware, intervals, memory_use, operation_counts, timing
from sslcourse.models import number_formats
from sslcourse.models.encoder import EncoderConfig, EncoderForMaskedLM, filled_up
from sslcourse.models.number_formats import FORMATS, round_to
from sslcourse.studies import lesson_encoder
from sslcourse.train import bf16_optimizer, mixed_precision, step_costs
from sslcourse.train.loss_scaling import LossScaler
from sslcourse.train.mixed_precision import Session
from sslcourse.train.recipe import Recipe
from sslcourse.train.step import has_bf16, learning_rate
from sslcourse.train.token_rows import Tape
from coursekit import Slider, check, live_picture, plots

device = "cuda" if lesson.profile == "gpu" else "cpu"
if device == "cuda" and not torch.cuda.is_available():
    raise ValueError("profile='gpu' needs a GPU that torch can see; run this lesson with profile='full' here")

# %% [markdown]
# ## What is in 16 bits?
#
# A floating-point number is scientific notation in base two. One bit is the sign, some are the exponent $e$, the rest
# are the mantissa $m$:
#
# $$ x = (-1)^s \cdot 1.m \cdot 2^{e - \text{bias}}, \qquad \text{bias} = 2^{\text{exponent bits} - 1} - 1 $$
#
# Two exponents are set aside. All ones means infinity (mantissa 0) or nan. All zeros means that the leading 1 is
# missing: these *subnormal* numbers fill the gap around zero evenly. That is everything. Here it is in code.


# %%
def value_of(pattern, exponent_bits, mantissa_bits):
    """The number that a pattern of bits stands for, given as an integer."""
    mantissa = pattern % 2**mantissa_bits / 2**mantissa_bits
    exponent = pattern >> mantissa_bits & (2**exponent_bits - 1)
    sign = -1 if pattern >> (exponent_bits + mantissa_bits) else 1
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent == 2**exponent_bits - 1:
        return float("nan") if mantissa else sign * float("inf")
    if exponent == 0:
        return sign * mantissa * 2.0 ** (1 - bias)
    return sign * (1 + mantissa) * 2.0 ** (exponent - bias)


# %% [markdown]
# fp16 has 5 bits of exponent and 10 of mantissa; bf16 has 8 and 7. Both have $2^{16}$ patterns, few enough to try every
# one of them against torch.

# %%
patterns = torch.arange(2**16, dtype=torch.int32)
for name, bits, dtype in (("fp16", (5, 10), torch.float16), ("bf16", (8, 7), torch.bfloat16)):
    ours = torch.tensor([value_of(pattern, *bits) for pattern in range(2**16)])
    theirs = patterns.to(torch.int16).view(dtype).float()
    wrong = int((ours.view(torch.int32) != theirs.view(torch.int32))[~theirs.isnan()].sum())
    wrong += int((ours.isnan() != theirs.isnan()).sum())
    lesson.record(f"{name}-patterns-wrong", wrong)
    print(f"{name}: {wrong} of {2**16} patterns read differently")

# %% [markdown]
# The package has the same as `Format`, together with what follows from the two numbers of bits. *eps* is the distance
# from 1 to the next number. tf32 is what a GPU's matrix units read of an fp32 number. Of the two fp8 formats, e4m3
# gives up infinity to gain range.

# %% tags=["nbval-check-output"]
print(f"{'format':9s} bits   exponent+mantissa    largest   min normal   min subnormal        eps")
for format in FORMATS.values():
    split = f"{format.exponent_bits} + {format.mantissa_bits}"
    print(f"{format.name:9s} {format.bits:4d} {split:>19s} {format.max:10.4g} {format.min_normal:12.3g} "
          f"{format.min_subnormal:15.3g} {format.eps:10.3g}")

# %%
gaps = [0.0]
for format in FORMATS.values():
    if format.dtype is not None:
        info = torch.finfo(format.dtype)
        gaps += [abs(format.max - info.max), abs(format.min_normal - info.tiny), abs(format.eps - info.eps)]
lesson.record("format-limits-difference", max(gaps))
print(f"limits from the bits and torch.finfo differ by {max(gaps)}")

# %% [markdown]
# A picture says more. On the left, the numbers of the two fp8 formats between 0 and 2, every one of them. On the right,
# the range of each format, and how finely it is filled.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(1, 1.2))
for row, name in enumerate(("fp8_e4m3", "fp8_e5m2")):
    format = FORMATS[name]
    values = [format.decode(pattern) for pattern in range(2 ** (format.bits - 1))]
    left.plot([v for v in values if v <= 2], [row] * sum(v <= 2 for v in values), "|", markersize=26)
left.set(yticks=(0, 1), yticklabels=("e4m3", "e5m2"), ylim=(-0.6, 1.6), xlabel="value", title="Every number up to 2")
for row, format in enumerate(FORMATS.values()):
    low, normal, high = (torch.tensor(v).double().log2() for v in (format.min_subnormal, format.min_normal, format.max))
    right.barh(row, high - normal, left=normal, color=plots.COLOURS[0])
    right.barh(row, normal - low, left=low, color=plots.COLOURS[5])
    right.text(140, row, f"eps $2^{{-{format.mantissa_bits}}}$", va="center")
right.set(yticks=range(len(FORMATS)), yticklabels=FORMATS, xlabel="$\\log_2$ of the value", xlim=(-155, 185))
right.set_title("Range (pale: subnormal numbers)")
plots.show(figure, alt="Left: the numbers of fp8 e4m3 and e5m2 up to 2 as ticks, denser towards zero. Right: the range "
           "of six formats in powers of two; bf16 and tf32 span as much as fp32, fp16 far less.")

# %% [markdown]
# What to see: the ticks stand closer the nearer to zero. And bf16 is as *wide* as fp32, only coarser; fp16 is finer and
# narrow. How far neighbours are apart, everywhere:

# %%
figure, axis = plt.subplots(figsize=(7, 3.8))
places = torch.logspace(-12, 6, 400, base=10, dtype=torch.float64)
for (name, format), style in zip(FORMATS.items(), ("-", "--", "-.", ":", "-", "--"), strict=True):
    inside = places[(places <= format.max) & (places >= format.min_subnormal)]
    axis.loglog(inside, format.spacing(inside), style, label=name)
axis.set(xlabel="value", ylabel="distance to the next number", title="Spacing")
axis.legend(ncols=2)
plots.show(figure, alt="Distance between neighbouring numbers against their size on two log scales: stairs that rise "
           "in parallel, fp32 lowest, fp8 highest; fp16 and fp8 become level below their smallest normal number.")

# %% [markdown]
# What to see: each line climbs in stairs, doubling with every power of two, so that the *relative* distance stays the
# same. fp16 and the fp8 formats become level on the left: there the subnormal numbers begin, evenly spaced down to 0.
#
# > **Misconception: "16 bits are 16 bits; bf16 is only a worse fp16."** Look at the two columns of the table. fp16 is
# > eight times finer, yet it cannot hold 70,000, nor a gradient of $10^{-8}$. bf16 holds both. For activations and
# > gradients range matters more than fineness: a rounding error averages out over a batch, a number that became `inf`
# > or 0 is gone. For *weights* it is the other way round, as we shall see.

# %% tags=["nbval-check-output"]
for number in (70_000.0, 1e-8, 1 + 1 / 256):
    half, brain = torch.tensor(number).half().item(), torch.tensor(number).bfloat16().item()
    print(f"{number:.9g}: fp16 {half:.9g}, bf16 {brain:.9g}")

# %% [markdown]
# ## Rounding
#
# Almost no result of a calculation is a number of the format. The rule is: take the nearest; if two are equally near,
# take the one whose last bit is 0. (Always rounding ties up would push sums upward.) With a sorted list of all positive
# numbers of a format this is a binary search, and the place in the list is the pattern of bits itself.


# %%
def round_by_search(x, table):
    """The nearest entry of the sorted ``table`` to x >= 0, ties to the even place."""
    above = bisect.bisect_left(table, x)
    if above == 0 or above == len(table):
        return table[min(above, len(table) - 1)]
    low, high = table[above - 1], table[above]
    if x - low == high - x:
        return low if (above - 1) % 2 == 0 else high
    return low if x - low < high - x else high


table = [FORMATS["fp16"].decode(pattern) for pattern in range(0x7C00)]  # 0x7C00 is infinity
some = (torch.rand(2000, dtype=torch.float64) * 2 ** torch.randint(-26, 15, (2000,)).double()).float()
searched = torch.tensor([round_by_search(x, table) for x in some.tolist()])
assert torch.equal(searched, some.half().float())

# %% [markdown]
# ### Exercise round_mantissa — Round by arithmetic · ★★☆ · 10 minutes
#
# No hardware searches. Near $x$ the numbers with `bits` bits of mantissa stand at equal distances, so rounding is: find
# the distance, divide, round to a whole number, multiply. Do that, for a format whose exponent has no limits.


# %% tags=["exercise"]
def round_mantissa(x, bits):
    """x, a float32 tensor, rounded to the nearest number with ``bits`` bits of mantissa after the leading 1.

    A new float32 tensor; 1 <= bits <= 23. Ties go to the number whose last mantissa bit is 0. Zeros, negative numbers
    and exact numbers occur; infinities and nan do not, nor numbers so large or small that the exponent would matter.
    """
    ### BEGIN SOLUTION
    _, exponent = torch.frexp(x.double())  # x = m * 2^exponent with 0.5 <= |m| < 1
    spacing = 2.0 ** (exponent - 1 - bits).double()
    return (torch.round(x.double() / spacing) * spacing).float()
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("round_mantissa", round_mantissa)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Between a power of two and the next there are $2^{\text{bits}}$ numbers. How far
# apart are they?</details>
# <details><summary>Hint 2</summary><code>torch.frexp(x)</code> gives the exponent without a logarithm, but its mantissa
# lies between 0.5 and 1, so its exponent is one more than ours.</details>
# <details><summary>Hint 3</summary><code>torch.round</code> takes ties to the even whole number: just what is
# needed.</details>

# %% [markdown]
# `number_formats.round_to` does it for a whole format, with its limits. It reads the exponent from the bits, uses the
# subnormal spacing below the smallest normal number, and sends what rounds beyond the largest number to infinity. We
# compare it with torch's own casts on random patterns of fp32 bits, so that every exponent occurs.

# %%
everywhere = torch.randint(-(2**31), 2**31, (lesson.choose(quick=10**5, full=10**6),)).to(torch.int32)
everywhere = everywhere.view(torch.float32)
edges = [v * (1 + d) for f in FORMATS.values() for v in (f.max, f.min_normal, f.min_subnormal, f.min_subnormal / 2)
         for d in (0.0, f.eps / 2, f.eps / 4, -f.eps / 4)]  # fmt: skip
everywhere = torch.cat([everywhere, torch.tensor(edges), torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])])
mismatches = 0
for format in FORMATS.values():
    if format.dtype is None:
        continue  # tf32 has no type of its own
    inputs = everywhere if format.overflow == "inf" else everywhere[everywhere.abs() < 464]  # rounds to 448 at most
    ours, theirs = round_to(inputs, format), inputs.to(format.dtype).float()
    mismatches += int(((ours != theirs) & ~(ours.isnan() & theirs.isnan())).sum())
lesson.record("rounding-mismatches", mismatches)
print(f"{mismatches} of {len(everywhere):,} numbers rounded differently, over five formats")

# %% [markdown]
# fp8 beyond its largest number is left out of the comparison. e4m3 has no infinity, its specification allows both `nan`
# and 448 there, and libraries differ. A training recipe in fp8 scales every tensor so that it does not happen. Here is
# what this version does:

# %%
print("torch:", torch.tensor([500.0, 1e6]).to(torch.float8_e4m3fn).float().tolist())
print("ours: ", round_to(torch.tensor([500.0, 1e6]), "fp8_e4m3").tolist(), "(overflow='saturate')")

# %% [markdown]
# ### A number of your own
#
# Choose a number by its first digits and its power of ten, and see its bits in four formats, what it becomes, and by
# how much it is off. The sliders need a running notebook and obey the arrow keys; the picture is the one at their
# start.


# %%
def bits_of(x, format):
    """(the number that x becomes, its bits as text: sign, exponent, mantissa)."""
    rounded = round_to(torch.tensor(x, dtype=torch.float64), format)
    whole = int(rounded.to(format.dtype).view(torch.uint8 if format.bits == 8 else torch.int16))
    bits = f"{whole % 2**format.bits:0{format.bits}b}"
    return float(rounded), bits[0], bits[1 : 1 + format.exponent_bits], bits[1 + format.exponent_bits :]


def in_words(x, rounded, format):
    """What has become of x > 0."""
    if rounded == float("inf"):
        return f"overflow: the largest number is {format.max:.6g}"
    if x - format.max > format.spacing(format.max) / 2:
        return f"overflow: it stops at {format.max:.6g}, the largest number"
    if rounded == 0:
        return f"underflow: the smallest number over 0 is {format.min_subnormal:.2g}"
    small = "subnormal, few bits left: " if rounded < format.min_normal else ""
    return small + ("exact" if rounded == x else f"off by {100 * abs(rounded / x - 1):.2g} %")


# %%
def draw_bits(axis, row, format, fields):
    """A row of boxes; the point between exponent and mantissa stands at 0 in every row."""
    places = (-format.exponent_bits - 1.8, -format.exponent_bits - 0.4, 0.0)
    for field, place, colour, what in zip(fields, places, (4, 1, 5), ("sign", "exponent", "mantissa")):
        shades = [(plots.COLOURS[colour], 0.9 if bit == "1" else 0.3) for bit in field]
        lefts = [place + at + 0.04 for at in range(len(field))]
        axis.barh([-row] * len(field), 0.92, left=lefts, height=0.5, color=shades, edgecolor="black")
        for left, bit in zip(lefts, field):
            axis.text(left + 0.46, -row, bit, ha="center", va="center", family="monospace")
        if row == 0:
            axis.text(place + len(field) / 2, 0.42, what, ha="center", fontsize=10)


def format_figure(digits, power):
    """digits · 10^power in four formats: bits, value, error."""
    x = float(f"{digits}e{power}")
    figure = plt.figure(figsize=(11, 4), layout="none")  # its own layout, which is quick to draw
    axis = figure.add_axes((0, 0, 1, 0.9))
    for row, name in enumerate(("bf16", "fp16", "fp8_e5m2", "fp8_e4m3")):
        format = FORMATS[name]
        rounded, *fields = bits_of(x, format)
        draw_bits(axis, row, format, fields)
        value, stored = f"{rounded:.6g}", int(fields[1], 2)
        if 0 < rounded < float("inf"):
            significand = (stored > 0) + int(fields[2], 2) / 2**format.mantissa_bits
            value += f" = {significand:.6g} · $2^{{{max(stored, 1) - format.bias}}}$"
        axis.text(-10.4, -row, name.replace("_", " "), ha="right", va="center", weight="bold")
        axis.text(10.9, -row + 0.13, value, va="center", weight="bold")
        axis.text(10.9, -row - 0.19, in_words(x, rounded, format), va="center", fontsize=10)
    axis.set(xlim=(-13.3, 23), ylim=(-3.5, 0.75), title=f"x = {x:.6g}")
    axis.axis("off")
    return figure


# %%
live_picture(
    format_figure,
    alt="A number as bits in bf16, fp16, fp8 e5m2 and fp8 e4m3: boxes for sign, exponent and mantissa, beside them the "
    "number that it is rounded to and how far that is off. At the start it is 0.1, which no format holds: bf16 is off "
    "by 0.098 %, fp16 by 0.024 %, e5m2 by 6.2 %, e4m3 by 1.6 %.",
    digits=Slider("first digits", (1, 1.001, 1.1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 4.48, 5, 6, 6.55, 7, 8, 9), start=1),
    power=Slider("power of ten", (-41, -40, -38, -30, -20, -15, *range(-10, 7), 10, 20, 30, 38, 39), start=-1),
)

# %% [markdown]
# What to see: as the power of ten moves, the exponent counts and the relative error of a format stays about the same,
# until the format ends. Go down: e4m3 ends first, bf16 last, and before each end the leading 1 is lost and the error
# grows. Go up: the last numbers are $448$ (e4m3), $57{,}344$ (e5m2), $65{,}504$ (fp16), and only bf16 goes on. As the
# first digits move, the mantissa counts: $1.001$ is $1$ everywhere but in fp16, while $1.25$ is exact everywhere, at a
# power of ten of 0.
#
# ## Where gradients live
#
# Which of these ranges does training need? We take the encoder that lesson @mlm_pretraining pretrained, one real
# masked batch, and look at every gradient on the way back: those of the logits, where the backward pass starts, those
# of the layers' outputs, and those of the weights.

# %%
short = {"steps": 40, "recipe": Recipe(batch_size=8), "every": 8}
known = lesson_encoder.load(**lesson.choose(quick=short, full={}))
tokenizer = known.tokenizer
texts = [row["text"] for row in corpus.load_splits()["train"]][:: lesson.choose(quick=8, full=1)]
tape = Tape(wordpiece.encode(tokenizer, texts), tokenizer, length=128)
batch = next(tape.batches(Recipe(vocab_size=len(tokenizer), batch_size=32)))

# %%
heard = []


def listen(module, inputs, output):
    """When a layer has run, ask to be told the gradient of its output."""
    output.register_hook(lambda gradient: heard.append(gradient.flatten()))


model = copy.deepcopy(known.model)
for layer in model.model.layers:
    layer.register_forward_hook(listen)
logits = model.masked_logits(*batch)
logits.retain_grad()
F.cross_entropy(logits, batch[1][batch[1] != IGNORE]).backward(retain_graph=True)  # once more below
gradients = {
    "logits": logits.grad.flatten(),
    "layers' outputs": torch.cat(heard),
    "weights": torch.cat([weight.grad.flatten() for weight in model.parameters()]),
}
gradients = {name: values[values != 0] for name, values in gradients.items()}

# %% tags=["cover"]
figure, (axis, below) = plt.subplots(2, 1, figsize=(8, 5), sharex=True, height_ratios=(3, 1))
for (name, values), style in zip(gradients.items(), ("-", "--", ":"), strict=True):
    density, borders = torch.histogram(values.abs().log2(), bins=80, range=(-80.0, 5.0), density=True)
    axis.stairs(density, borders, label=f"gradients of the {name}", linewidth=2, linestyle=style)
for row, name in enumerate(("fp8_e5m2", "fp16", "bf16")):
    low, high = (torch.tensor(v).double().log2() for v in (FORMATS[name].min_subnormal, FORMATS[name].max))
    below.barh(row, min(high, 20) - max(low, -80), left=max(low, -80), color="grey")
below.set(yticks=range(3), yticklabels=("fp8 e5m2", "fp16", "bf16"), xlabel="$\\log_2$ |gradient|")
for each in (axis, below):
    each.axvline(-25, color="black", linestyle=":", linewidth=1)
axis.set(ylabel="density", xlim=(-80, 20), title="Real gradients and what can hold them")
axis.legend(loc="upper left")
plots.show(figure, alt="Histograms of the logarithm of three kinds of gradient of the pretrained encoder; below "
           "them bars with the ranges of bf16, fp16 and fp8 e5m2. Most gradients of the logits lie left of what fp16 "
           "can hold.")

# %% [markdown]
# What to see: the bars below show what each format can hold (bf16's goes on far to the left and right). Left of the
# dotted line at $2^{-25}$ a number becomes 0 in fp16: it is less than half of the smallest one, $2^{-24}$. The
# gradients of the logits lie furthest to the left. They are $\mathrm{softmax}(z) - \text{one-hot}(y)$, divided by the
# number of scored positions (lesson @loss_derivation): mostly a small probability, made smaller still. In the stored
# run most of them are left of the line. (In the profile `quick` the encoder is hardly trained. It gives every token
# about the same probability, so they are narrow hills, and few are so small.) On the right, half of fp16's range is
# empty.
#
# So move the numbers! Multiply the loss by a scale $c$, and by the chain rule every gradient is $c$ times as large;
# divide by $c$ at the end, in fp32. That is **loss scaling**. With $c$ a power of two only exponents change, and
# nothing is rounded.

# %%
scales = range(0, 33, 2)
lost = {name: [float((round_to(values * 2.0**s, "fp16") == 0).float().mean()) for s in scales]
        for name, values in gradients.items()}  # fmt: skip
largest = max(values.abs().max() for values in gradients.values())
burst = [bool(round_to(largest * 2.0**s, "fp16").isinf()) for s in scales]
figure, axis = plt.subplots(figsize=(7, 3.6))
for (name, shares), style in zip(lost.items(), ("-o", "--s", ":^"), strict=True):
    axis.plot(scales, [100 * share for share in shares], style, label=f"of the {name}")
first = next((s for s, any_inf in zip(scales, burst) if any_inf), None)
if first is not None:
    axis.axvspan(first - 1, max(scales), color=plots.COLOURS[3], alpha=0.15, label="some gradient overflows")
axis.set(xlabel="$\\log_2$ of the loss scale", ylabel="gradients that become 0 in fp16 (%)", xlim=(0, max(scales)))
axis.legend()
plots.show(figure, alt="Share of gradients lost in fp16 against the loss scale: it falls as the scale grows, "
           "until from some scale on a gradient overflows, which is shaded.")

# %%
bf16_lost = float(max((round_to(values, "bf16") == 0).float().mean() for values in gradients.values()))
if lesson.profile != "quick":
    lesson.record("fp16-lost-logits", 100 * lost["logits"][0])
    lesson.record("fp16-lost-logits-scaled", 100 * lost["logits"][scales.index(16)])
    lesson.record("fp16-lost-weights", 100 * lost["weights"][0])
    lesson.record("fp16-lost-weights-scaled", 100 * lost["weights"][scales.index(16)])
    lesson.record("bf16-lost", 100 * bf16_lost)

# %% [markdown]
# What to see, in the stored run: without a scale fp16 loses {{fp16-lost-logits}} % of the nonzero gradients of the
# logits and {{fp16-lost-weights}} % of the weights'. With the usual first scale of $2^{16}$ these are
# {{fp16-lost-logits-scaled}} % and {{fp16-lost-weights-scaled}} %. (What is still lost of the logits' are tokens that
# the model gives next to no probability.) Too large a scale overflows. bf16 loses none: it needs no scale.
#
# Push the gradients into fp16's range yourself. The slider needs a running notebook and obeys the arrow keys; the
# picture is the one at its start, without a scale.

# %%
borders = torch.arange(-81.0, 6.0)  # whole numbers, so that a scale moves the hills by whole bins
hills = {name: torch.histogram(values.abs().log2().clamp(-80.5, 4.5), borders).hist
         for name, values in gradients.items()}  # fmt: skip


def scale_figure(power):
    """The gradients of a loss that was multiplied by 2^power, against what fp16 can hold."""
    figure, axis = plt.subplots(figsize=(9, 4))
    axis.axvspan(-25, 16, color=plots.COLOURS[5], alpha=0.25, label="what fp16 can hold")
    for (name, counts), style in zip(hills.items(), ("-", "--", ":")):
        shares = 100 * counts / counts.sum()
        gone = float(shares[borders[1:] + power <= -25].sum())
        label = f"of the {name}: {gone:.1f} % become 0"
        axis.stairs(shares, borders + power, label=label, linestyle=style, linewidth=2)
    bursts = bool(round_to(largest * 2.0**power, "fp16").isinf())
    verdict = "some gradient OVERFLOWS, the step is lost" if bursts else "no gradient overflows"
    axis.set(xlabel="$\\log_2$ |gradient of the scaled loss|", ylabel="gradients (%)", xlim=(-80, 40))
    axis.set_title(f"scale $2^{{{power}}}$: {verdict}")
    axis.legend(loc="upper left", fontsize=9)
    return figure


# %%
live_picture(
    scale_figure,
    alt="Three hills of gradients over a band that shows what fp16 can hold. A slider moves the hills to the right by "
    "the loss scale; the legend says how many become 0 on the left of the band, the title whether any overflows.",
    power=Slider("log2 of the loss scale", tuple(range(0, 33, 2)), start=0),
)

# %% [markdown]
# What to see: all hills move together, and none changes its shape. The right end of the widest hill decides how far one
# may go: from some scale on a gradient overflows, and the title says so. A good scale stands a little before that.
#
# But these are counts, and the lost ones are the smallest. Do they *matter*? Send the gradient of the logits through
# the format, finish the backward pass in fp32, and see how far the gradient of the weights is off.

# %%
true_gradient = logits.grad.clone()


def weights_gradient(of_logits):
    """The gradient of all weights that follows from one of the logits."""
    model.zero_grad()
    logits.backward(of_logits, retain_graph=True)
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


exact = weights_gradient(true_gradient)
off = {}
for name, change in {
    "fp16, no scale": lambda g: round_to(g, "fp16"),
    "fp16, scale 2^16": lambda g: round_to(g * 2.0**16, "fp16") / 2.0**16,
    "bf16": lambda g: round_to(g, "bf16"),
    "fp8 e5m2, scale 2^16": lambda g: round_to(g * 2.0**16, "fp8_e5m2") / 2.0**16,
}.items():
    off[name] = float((weights_gradient(change(true_gradient)) - exact).norm() / exact.norm())
    print(f"{name:21s} the weights' gradient is off by {off[name]:.3%}")
if lesson.profile != "quick":
    lesson.record("gradient-off-fp16", 100 * off["fp16, no scale"])
    lesson.record("gradient-off-scaled", 100 * off["fp16, scale 2^16"])
    lesson.record("gradient-off-bf16", 100 * off["bf16"])

# %% [markdown]
# In the stored run the error is {{gradient-off-fp16}} % without a scale, {{gradient-off-scaled}} % with one, and
# {{gradient-off-bf16}} % in bf16, which loses nothing and rounds more coarsely. So at the logits alone the loss of so
# many small entries is bearable. It becomes worse where gradients are smaller: in deeper networks, with larger batches
# (the mean divides by more), and late in training. The scale costs nothing, so one takes it. fp8 is in the list to show
# why its recipes choose a scale for every tensor.
#
# ## A scale that finds itself
#
# Which scale? It depends on the model and changes in training. So try: when a gradient is `inf` or `nan`, the scale was
# too large. Skip that step and halve the scale. After a long stretch of good steps, double it.
#
# ### Exercise scale_history — The scale's history · ★★☆ · 8 minutes
#
# For each step you are told whether a gradient overflowed. Return the scale with which each step was made.


# %% tags=["exercise"]
def scale_history(overflows, first_scale, growth_interval):
    """[bool for each step] -> [the scale in use at each step]. It has no upper or lower limit.

    After an overflow the scale is halved. After ``growth_interval`` good steps in a row it is doubled, and the count of
    good steps starts again, as it does after an overflow.
    """
    ### BEGIN SOLUTION
    scale, good, history = first_scale, 0, []
    for overflowed in overflows:
        history.append(scale)
        good = 0 if overflowed else good + 1
        if overflowed:
            scale = scale / 2
        elif good == growth_interval:
            scale, good = scale * 2, 0
    return history
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("scale_history", scale_history)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>The scale of a step is decided by the steps before it: append first, then
# change.</details>
# <details><summary>Hint 2</summary>Two things start the count again: an overflow, and a doubling.</details>

# %% [markdown]
# One step with a scale, written out. The order matters: divide by the scale *before* anybody looks at the gradients.


# %%
def scaled_step(loss, optimizer, scale):
    """True if the step was made; False if a gradient was not finite and nothing was changed."""
    optimizer.zero_grad()
    (loss * scale).backward()
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for weight in weights:
        weight.grad /= scale
    finite = all(bool(weight.grad.isfinite().all()) for weight in weights)
    if finite:
        optimizer.step()
    return finite


def next_scale(made, scale, good, interval):
    """(scale, good steps in a row) after a step that was made or skipped."""
    if not made:
        return scale / 2, 0
    return (scale * 2, 0) if good + 1 == interval else (scale, good + 1)


# %% [markdown]
# `torch.amp.GradScaler` does just this, and so does the package's `LossScaler`, which is a page long. All three must
# agree at every step, over a run in which we plant overflows and a `nan`: same scale, same steps skipped, same weights
# to the last bit.

# %%
def library_step(loss, optimizer, scaler):
    """The same in four lines; the scale of the next step."""
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale()


# %%
planted = {3: float("inf"), 4: float("inf"), 11: float("nan"), 12: -float("inf")}


def scaled_run(kind, steps=24, first=1024.0, interval=4):
    """[(scale, weights) after each step]."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    settings = {"init_scale": first, "growth_interval": interval}
    scaler = torch.amp.GradScaler("cpu", **settings) if kind == "torch" else LossScaler(**settings)
    scale, good, trace = first, 0, []
    for step in range(steps):
        loss = net(torch.randn(5, 6)).pow(2).mean() * planted.get(step, 1.0)
        if kind == "by hand":
            scale, good = next_scale(scaled_step(loss, optimizer, scale), scale, good, interval)
        else:
            scale = library_step(loss, optimizer, scaler)
        trace.append((scale, [weight.detach().clone() for weight in net.parameters()]))
    return trace


# %%
traces = {kind: scaled_run(kind) for kind in ("torch", "package", "by hand")}
differences = 0
for kind in ("package", "by hand"):
    for (scale, ours), (their_scale, theirs) in zip(traces[kind], traces["torch"], strict=True):
        differences += scale != their_scale or not all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
weights_after = [weights for _, weights in traces["package"]]
skipped = sum(all(torch.equal(a, b) for a, b in zip(*pair)) for pair in zip(weights_after, weights_after[1:]))
lesson.record("scaler-differences", differences)
lesson.record("scaler-skipped", skipped)
print(f"{skipped} steps were skipped; scale after each step:", [int(scale) for scale, _ in traces["package"]])

# %% [markdown]
# An infinite loss is a rude example: no scale heals it. The everyday case is a scale that is too large for these
# gradients. Here are the real ones from above, in fp16, with a first scale of $2^{30}$ and a growth interval of 6.
# (With torch's 2,000 the picture is the same, only longer.)

# %%
scale, good, settling = 2.0**30, 0, []
for _ in range(36):
    made = bool(round_to(largest * scale, "fp16").isfinite())  # the largest gradient overflows first
    settling.append(f"{'' if made else 'x'}{int(torch.tensor(scale).log2())}")
    scale, good = next_scale(made, scale, good, interval=6)
print("log2 of the scale, x where the step was skipped:\n" + " ".join(settling))

# %% [markdown]
# ### Exercise unscale_and_clip — Clip, in the right order · ★★☆ · 8 minutes
#
# Lesson @mlm_pretraining clips gradients to a joint norm of `max_norm`. Here they come from a scaled loss. Return what
# the optimiser should get. (Recall: one factor for all, never over 1.)


# %% tags=["exercise"]
def unscale_and_clip(gradients, scale, max_norm):
    """[gradients of scale * loss] -> [gradients of the loss, their joint 2-norm at most ``max_norm``], new tensors.

    The gradients are finite fp32 tensors, and stay in fp32. Written out, without ``clip_grad_norm_``.
    """
    ### BEGIN SOLUTION
    unscaled = [gradient / scale for gradient in gradients]
    norm = sum((gradient**2).sum() for gradient in unscaled).sqrt()
    factor = max_norm / max(max_norm, float(norm))
    return [gradient * factor for gradient in unscaled]
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("unscale_and_clip", unscale_and_clip)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Suppose the scale is 65536 and you clip first. Is there a gradient that is not
# clipped?</details>
# <details><summary>Hint 2</summary>In torch: <code>scaler.unscale_(optimizer)</code>, then
# <code>clip_grad_norm_</code>, then <code>scaler.step(optimizer)</code>.</details>

# %% [markdown]
# ## Autocast: which operations may be coarse?
#
# **Mixed precision** keeps the weights in fp32 and casts *operations*. `torch.autocast` is a context in which torch
# does that by itself: before each operation it casts the inputs to the type that suits it. Matrix products go to 16
# bits: nearly all the time is spent there, and inside them the hardware adds up in fp32. What sums many numbers must
# *add up* in fp32. Why? Count to 4096 in steps of 1, in bf16:

# %%
total = torch.tensor(0.0, dtype=torch.bfloat16)
for _ in range(4096):
    total += 1
lesson.record("bf16-sum-stalls", float(total))
print(f"4096 times 1, added one by one in bf16: {float(total):.0f}; in fp32: {float(torch.ones(4096).sum()):.0f}")
print(f"torch's own sum of a bf16 tensor of 4096 ones: {float(torch.ones(4096).bfloat16().sum()):.0f}")

# %% [markdown]
# It stops at {{bf16-sum-stalls}}. There the spacing of bf16 is 2, so adding 1 lands half-way and is rounded back. A
# mean over a batch, the sum in a softmax or the variance in a norm would suffer the same. Therefore torch's kernels for
# these add up in fp32 inside, as the second line shows, and the loss is computed in fp32 throughout. So tell two
# things apart: the type in which a kernel *accumulates*, and the type of its *result*. Autocast decides the second:

# %%
a, w, targets = torch.randn(4, 8), torch.randn(8, 8), torch.tensor([1, 2, 3, 4])
operations = {
    "linear": lambda x: F.linear(x, w), "matmul": lambda x: x @ w, "gelu": F.gelu, "softmax": lambda x: x.softmax(-1),
    "layer_norm": lambda x: F.layer_norm(x, (8,)), "sum": torch.sum, "add to fp32": lambda x: x + a,
    "cross_entropy": lambda x: F.cross_entropy(x, targets),
}  # fmt: skip
print(f"on {device:16s} from fp32   from bf16")
a, w, targets = a.to(device), w.to(device), targets.to(device)
with torch.autocast(device, dtype=torch.bfloat16):
    for name, operation in operations.items():
        results = [str(operation(x).dtype).removeprefix("torch.") for x in (a, a.bfloat16())]
        print(f"{name:19s} {results[0]:10s} {results[1]}")

# %% [markdown]
# Three kinds: *cast down* (products), *cast up* (the loss), and *leave as it comes* (everything cheap). The lists
# differ: on a GPU softmax, norms and sums are cast up; on a CPU they take bf16 and use fp32 inside. In both, adding a
# bf16 result to the fp32 residual gives fp32.
#
# Autocast is no magic, then. It is four casts in a two-layer network:


# %%
def by_hand(x, first, norm, second, targets):
    """Linear, GELU, norm, linear, loss: what autocast makes of it on a CPU."""
    hidden = F.linear(x.bfloat16(), first.bfloat16())  # the master weight stays fp32, its copy is used
    hidden = F.layer_norm(F.gelu(hidden), norm.shape, norm)
    logits = F.linear(hidden, second.bfloat16())
    return F.cross_entropy(logits.float(), targets)


def plain(x, first, norm, second, targets):
    return F.cross_entropy(F.linear(F.layer_norm(F.gelu(F.linear(x, first)), norm.shape, norm), second), targets)


torch.manual_seed(5)
data, weights = torch.randn(16, 32), [torch.randn(64, 32) / 6, torch.ones(64), torch.randn(10, 64) / 8]
results = []
for function, casts in ((by_hand, False), (plain, True)):
    mine = [weight.clone().requires_grad_() for weight in weights]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=casts):
        loss = function(data, *mine, torch.arange(16) % 10)
    loss.backward()
    results.append([loss.detach(), *(weight.grad for weight in mine)])
difference = max(float((a - b).abs().max()) for a, b in zip(*results, strict=True))
lesson.record("autocast-difference", difference)
print(f"loss and gradients by hand and by torch.autocast differ by {difference}; gradients are {mine[0].grad.dtype}")

# %% [markdown]
# ## Why the weights stay in fp32
#
# If the products are in bf16 anyway, why not keep the weights in bf16 and save half of the memory? Because a weight
# changes by little in each step. An update below half the spacing around the weight does **nothing**, and the next one
# does nothing again.

# %%
weight = torch.tensor(1.0, dtype=torch.bfloat16)
half_spacing = float(number_formats.FORMATS["bf16"].spacing(1.0)) / 2
for _ in range(1000):
    weight = (weight.float() + 0.9 * half_spacing).bfloat16()
lesson.record("bf16-small-update", float(weight) - 1)
print(f"1 + 1000 x {0.9 * half_spacing:.5f} in bf16: {float(weight)}; it should be {1 + 900 * half_spacing:.2f}")

# %% [markdown]
# Is that a curiosity or the rule? One AdamW step on the pretrained encoder, all weights in bf16, at several learning
# rates: how many weights are as they were?

# %%
rates = [1e-5, 1e-4, 1e-3, 1e-2]
quiet = []
for rate in rates:
    session = Session(replace(known.recipe, weight_decay=0.0), "pure_bf16", model=known.model)
    session.step(*(tensor[:8] for tensor in batch), lr=rate)
    old = torch.cat([weight.detach().bfloat16().flatten() for weight in known.model.parameters()])
    new = torch.cat([weight.detach().flatten() for weight in session.model.parameters()])
    moved = torch.cat([weight.grad.flatten() for weight in session.model.parameters()]) != 0  # had a reason to move
    quiet.append(float((old == new)[moved].float().mean()))
    print(f"learning rate {rate:g}: {quiet[-1]:.0%} of the weights with a gradient did not change")
if lesson.profile != "quick":
    lesson.record("weights-unmoved", 100 * quiet[0])
    lesson.record("weights-unmoved-fast", 100 * quiet[rates.index(1e-3)])

# %% [markdown]
# At $10^{-5}$, a common rate for fine-tuning large models, {{weights-unmoved}} % of the weights did not move in that
# step. At $10^{-3}$, the rate of lesson @fine_tuning for its small encoder, it is {{weights-unmoved-fast}} %: this
# trap opens as rates fall, and they fall with the size of the model and towards the end of every schedule.
#
# There are three ways out. **Master weights**: keep the weights in fp32 and cast copies, as autocast does.
# **Stochastic rounding**: round up or down at random, with the probability that makes the mean right. bf16 is the
# upper half of fp32's bits. So add a random number to the lower half, which carries into the upper one as often as the
# lower half is large, and set the lower half to zero (the mask $-2^{16}$ is sixteen ones, then sixteen zeros):


# %%
def round_at_random(x):
    """fp32 to bf16; each result is one of the two neighbours, and their mean is x."""
    noise = torch.randint(0, 2**16, x.shape, dtype=torch.int32)
    return ((x.view(torch.int32) + noise) & -(2**16)).view(torch.float32).bfloat16()


number = torch.full((200_000,), 1.0 + 0.3 * 2**-7)  # three tenths of the way from 1 to its neighbour
rounded = round_at_random(number).float()
package = bf16_optimizer.stochastic_round(number).float()
assert rounded.unique().tolist() == package.unique().tolist() == [1.0, 1.0 + 2**-7]
bias = max(abs(float((r.double() - number.double()).mean())) * 2**7 for r in (rounded, package))
lesson.record("stochastic-bias", bias)
sampling = (0.3 * 0.7 / len(number)) ** 0.5
print(f"rounded up {float((rounded > 1).float().mean()):.1%} of the time; the mean is off by {bias:.1e} of the spacing,"
      f" and sampling alone gives about {sampling:.1e}")

# %% [markdown]
# **Kahan summation** is the third: keep what was rounded away in a second bf16 number, and add it the next time.
#
# ### Exercise compensated_add — A sum that forgets nothing · ★★★ · 10 minutes
#
# Add a small update to a bf16 weight, without losing what does not fit.


# %% tags=["exercise"]
def compensated_add(weight, update, lost):
    """(new weight, new lost): bf16 tensors, all of one shape. ``lost`` is what earlier rounding owes; zeros at first.

    First the two small ones: update + lost, a bf16 sum. The new weight is the bf16 sum of weight and that. The new lost
    is what this last rounding left out, with the sign with which it must be added next time. Updates may be 0.
    """
    ### BEGIN SOLUTION
    wanted = update + lost
    new = weight + wanted
    return new, wanted - (new - weight)
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("compensated_add", compensated_add)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>How much has the weight really changed? Compute it from the new and the old one:
# that subtraction is exact.</details>
# <details><summary>Hint 2</summary>Lost is what you wanted to add, minus what was added.</details>
# <details><summary>Hint 3</summary>Stay in bf16: fp32 in between would need the memory that we want to save.</details>

# %%
steps, update = 3000, torch.tensor(3e-4)
names = ("fp32", "bf16, nearest", "bf16, Kahan", "stochastic, mean of 100", "low", "high")
walks = {name: [1.0] for name in names}
exact = torch.tensor(1.0)
nearest = kahan = torch.tensor(1.0).bfloat16()
owed, random = torch.zeros_like(kahan), torch.ones(100).bfloat16()
for _ in range(steps):
    exact = exact + update
    nearest = (nearest.float() + update).bfloat16()
    random = bf16_optimizer.stochastic_round(random.float() + update)
    kahan, owed = bf16_optimizer.kahan_add(kahan, update, owed)
    spread = random.float().quantile(torch.tensor([0.1, 0.9]))
    for walk, value in zip(walks.values(), (exact, nearest, kahan, random.float().mean(), *spread), strict=True):
        walk.append(float(value))
kahan_error = abs(walks["bf16, Kahan"][-1] / (1 + steps * 3e-4) - 1)
lesson.record("kahan-toy-error", kahan_error)
print(f"after {steps} steps Kahan's sum is off by {kahan_error:.1e} of the weight")

# %%
figure, panels = plt.subplots(1, 2, figsize=(10, 3.8))
for axis, until, title in zip(panels, (steps, 120), ("3000 steps", "the first 120 steps"), strict=True):
    for name, style in zip(names[:4], ("-", "--", "-", ":"), strict=True):
        axis.plot(walks[name][: until + 1], style, label=name, linewidth=1.6)
    axis.fill_between(range(until + 1), walks["low"][: until + 1], walks["high"][: until + 1], alpha=0.2,
                      label="stochastic, 80 of 100 walks")  # fmt: skip
    axis.set(xlabel="step", ylabel="weight", title=title)
panels[0].legend()
plots.show(figure, alt="A weight to which 0.0003 is added again and again: fp32 rises in a line, bf16 rounded to "
           "nearest stays at 1, Kahan follows in stairs seen in the zoomed panel, and the mean of a hundred stochastic "
           "walks follows the line with a band around it.")

# %% [markdown]
# What to see: to-nearest stays at 1 forever. Kahan follows the line in stairs one bf16 spacing high (right); stochastic
# rounding is right on average and pays with noise. Kahan costs two more bytes a weight, stochastic rounding none.
# (`bf16_optimizer.kahan_add` keeps what is lost with the opposite sign of exercise @compensated_add, as Kahan wrote it.)
#
# ## The race
#
# Enough toys. One encoder of width 256, the same start, the same batches, the same masks, in five precisions. They
# train *in turns*, a few steps each: whatever else this machine does meanwhile hits all of them alike. The optimiser
# of the three pure bf16 runs (`bf16_optimizer.Bf16AdamW`) is the same but for the rounding of the new weight, and keeps
# its averages in fp32.

# %%
fast = has_bf16(device)
print(f"{device} multiplies bf16 matrices in hardware: {fast}" + ("" if fast or device == "cuda" else
      ". So bf16 is emulated here: expect autocast to be SLOWER than fp32. It saves memory only; what you see is why "
      "the package's precision='auto' chooses fp32 on this machine."))  # fmt: skip
size = lesson.choose(quick={"layers": 2, "hidden_size": 256, "intermediate_size": 512, "heads": 2, "batch_size": 2},
                     full={"layers": 2, "hidden_size": 256, "intermediate_size": 512, "heads": 2, "batch_size": 16},
                     gpu={"layers": 12, "hidden_size": 768, "intermediate_size": 1152, "heads": 12, "batch_size": 128})
wide = Recipe(vocab_size=len(tokenizer), learning_rate=lesson.choose(quick=3e-3, full=3e-3, gpu=1e-3), **size)
steps = lesson.choose(quick=4, full=100, gpu=200)
stream = Tape(wordpiece.encode(tokenizer, texts), tokenizer, length=128).batches(wide)
batches = [next(stream) for _ in range(steps)]
rates = [learning_rate(wide, (step + 1) / steps) for step in range(steps)]

# %% [markdown]
# What this machine cannot do is left out, and said. Several seeds for each precision: a seed decides the first weights,
# and all precisions start from the same ones. So the difference to fp32 is taken seed by seed, as in lesson
# @fine_tuning.

# %%
names = ["fp32", "bf16", "pure_bf16", "pure_bf16_kahan", "pure_bf16_stochastic"]
names += ["tf32", "fp16"] if device == "cuda" else []
if device == "cuda" and not fast:
    print("left out, since this GPU does not compute in bf16:", [name for name in names if "bf16" in name])
    names = [name for name in names if "bf16" not in name]
half = "bf16" if "bf16" in names else "fp16"
SEEDS = range(lesson.choose(quick=2, full=3))
ends, tracks = {name: [] for name in names}, {name: mixed_precision.Track() for name in names}
tail = max(2, steps // 10)  # the mean over the last tenth: one batch's loss is noisy
for seed in SEEDS:
    contenders = {name: Session(wide, name, device, seed=seed) for name in names}
    for session in contenders.values():  # a first step apart: it allocates the optimizer's averages
        session.step(*batches[0], lr=0.0)
    for name, track in mixed_precision.race(contenders, batches, rates, turn=4).items():
        tracks[name].losses.append(track.losses)
        tracks[name].seconds += track.seconds
        ends[name].append(sum(track.losses[-tail:]) / tail)

# %%
def held_bytes(session):
    """(weights, gradients and optimizer; the most at one moment of a step), in MB."""
    state = mixed_precision.state_bytes(session)
    session.optimizer.zero_grad(set_to_none=True)  # the step makes new ones; they must not count twice
    peak = memory_use.peak_bytes(lambda: session.step(*batches[0], lr=0.0), device)
    return sum(state.values()) / 1e6, (state["weights"] + state["optimizer"] + peak) / 1e6


tokens = batches[0][0].numel()
apart = {name: intervals.interval([a - b for a, b in zip(ends[name], ends["fp32"], strict=True)]) for name in names[1:]}
noise = float(torch.tensor(ends["fp32"]).std())
print(f"{'':21s} thousand tokens/s (quartiles)   state MB   peak MB   loss   minus fp32, paired, {len(SEEDS)} seeds")
for name, session in contenders.items():
    low, middle, high = timing.quartiles([tokens / s / 1000 for s in tracks[name].seconds])
    state, peak = held_bytes(session)
    print(f"{name:21s} {middle:8.2f} ({low:.2f} to {high:.2f}) {state:18.1f} {peak:9.1f} "
          f"{sum(ends[name]) / len(SEEDS):7.3f}   {apart.get(name, '')}")
print(f"between seeds, the loss of fp32 has a standard deviation of {noise:.3f}")

# %%
turns = [[sum(tracks[name].seconds[i : i + 4]) for i in range(0, len(tracks[name].seconds), 4)]
         for name in ("fp32", half)]  # fmt: skip
speedups = [slow / quick for slow, quick in zip(*turns, strict=True)]
low, small_speedup, high = timing.quartiles(speedups)
print(f"autocast {half} against fp32, turn by turn: {small_speedup:.2f}x (quartiles {low:.2f} to {high:.2f})")

# %% [markdown]
# With few rows a good part of a step is the optimiser, which no cast makes faster. Four of these batches at once:

# %%
many = [torch.cat(parts) for parts in zip(*batches[:4], strict=True)]
speedups = []
for _ in range(lesson.choose(quick=2, full=6)):  # in turns
    times = [timing.seconds(partial(contenders[name].step, *many, lr=0.0), 1, device) for name in ("fp32", half)]
    speedups.append(times[0] / times[1])
low, speedup, high = timing.quartiles(speedups)
print(f"{len(many[0])} rows at once: {speedup:.2f}x (quartiles {low:.2f} to {high:.2f})")
if "pure_bf16_stochastic" in contenders:
    states = {name: sum(mixed_precision.state_bytes(contenders[name]).values()) for name in ("fp32", "pure_bf16_stochastic")}
    lesson.record("state-saving", 1 - states["pure_bf16_stochastic"] / states["fp32"])
if lesson.profile == "full":
    lesson.record("autocast-speedup", speedup)
    lesson.record("autocast-speedup-small", small_speedup)
    lesson.record("seed-noise", noise)
    for name, short in zip(names[1:], ("autocast", "pure", "kahan", "stochastic"), strict=True):
        lesson.record(f"{short}-loss-difference", apart[name].mean)
        lesson.record(f"{short}-loss-half", (apart[name].high - apart[name].low) / 2)

# %%
def smooth(values, width):
    """Mean over the last ``width`` values, or over as many as there are."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(i + 1, width) for i in range(len(values))]


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=(1.5, 1))
for (name, track), style in zip(tracks.items(), ("-", "--", "-", "-.", ":", "--", "-."), strict=False):
    mean_loss = [sum(of_seeds) / len(of_seeds) for of_seeds in zip(*track.losses, strict=True)]
    left.plot(smooth(mean_loss, tail), style, label=name, linewidth=1.8)
left.set(xlabel="step", ylabel="training loss (nats), mean of the seeds", title="Same starts, same batches")
left.legend()
for row, (name, track) in enumerate(tracks.items()):
    low, middle, high = timing.quartiles([tokens / s / 1000 for s in track.seconds])
    right.barh(row, middle, xerr=[[middle - low], [high - middle]], color=plots.COLOURS[row % 7])
right.set(yticks=range(len(tracks)), yticklabels=tracks, xlabel="thousand tokens/s, median and quartiles")
plots.show(figure, alt="Left: loss curves of five precisions over the same steps. Right: their speed in tokens "
           "a second with quartiles.")

# %% [markdown]
# What to see: in the stored run autocast was {{autocast-speedup-small}} times as fast as fp32 with 16 rows, and
# {{autocast-speedup}} times with 64. If your machine has no bf16
# instructions the bars say the opposite, and that is the right answer there.
#
# And the loss, at equal steps? Differences to fp32, paired by seed, with the half-width of their 95 % intervals
# (positive is worse): autocast {{autocast-loss-difference}} ± {{autocast-loss-half}} nats; weights in bf16 rounded to
# nearest {{pure-loss-difference}} ± {{pure-loss-half}}, with Kahan {{kahan-loss-difference}} ± {{kahan-loss-half}},
# stochastic {{stochastic-loss-difference}} ± {{stochastic-loss-half}}. A difference smaller than its interval is no
# difference seen, in either direction: a "gain" by coarser rounding least of all. Seeds alone scatter by
# {{seed-noise}}.
#
# This short run at a high learning rate cannot show what nearest rounding breaks, since most updates are large. So we
# also go on where updates are small, from the pretrained encoder.

# %%
gentle = replace(known.recipe, batch_size=lesson.choose(quick=4, full=16), weight_decay=0.0)
small_steps = lesson.choose(quick=3, full=80)
stream = tape.batches(replace(gentle, vocab_size=len(tokenizer), seed=7))
more = [next(stream) for _ in range(small_steps)]
kinds = [name for name in ("fp32", "pure_bf16", "pure_bf16_kahan", "pure_bf16_stochastic") if name in names]
going_on = {kind: Session(gentle, kind, device, model=known.model) for kind in kinds}
mixed_precision.race(going_on, more, [3e-5] * small_steps)


def towards(session, goal):
    """(share of the goal's change that a session made, cosine of the two changes)."""
    start = [weight.detach() for weight in known.model.parameters()]
    change, wanted = (torch.cat([(weight.detach().float().cpu() - begin).flatten()
                                 for weight, begin in zip(one.model.parameters(), start, strict=True)])
                      for one in (session, goal))  # fmt: skip
    return float(change @ wanted / (wanted @ wanted)), float(F.cosine_similarity(change, wanted, dim=0))


@torch.no_grad()
def loss_on(session, held_out):
    return sum(float(session.forward(*(tensor.to(device) for tensor in one))) for one in held_out) / len(held_out)


fresh_texts = [row["text"] for row in corpus.load_splits()["validation"]]
fresh_tape = Tape(wordpiece.encode(tokenizer, fresh_texts), tokenizer, length=128)
fresh_stream = fresh_tape.batches(replace(gentle, vocab_size=len(tokenizer), seed=8, batch_size=32))
held_out = [next(fresh_stream) for _ in range(lesson.choose(quick=1, full=8))]
untouched = Session(gentle, "fp32", device, model=known.model)
progress = {kind: towards(session, going_on["fp32"]) for kind, session in going_on.items()}
print(f"{'':21s} share of fp32's change   cosine   held-out loss (before: {loss_on(untouched, held_out):.4f})")
for kind, session in going_on.items():
    share, cosine = progress[kind]
    print(f"{kind:21s} {share:22.0%} {cosine:8.2f} {loss_on(session, held_out):15.4f}")
if lesson.profile == "full":
    lesson.record("pure-progress", 100 * progress["pure_bf16"][0])
    lesson.record("kahan-progress", 100 * progress["pure_bf16_kahan"][0])
    lesson.record("stochastic-progress", 100 * progress["pure_bf16_stochastic"][0])

# %% [markdown]
# What to see: at a rate of $3 \cdot 10^{-5}$, weights rounded to nearest made {{pure-progress}} % of the change that
# fp32 made; with Kahan's sum it is {{kahan-progress}} %, with stochastic rounding {{stochastic-progress}} %. The cosine
# says how much else they did: stochastic rounding goes the whole way, and adds noise in all other directions. The
# held-out loss moves little in eighty steps for any of them; what is lost here is the *training*, not the model.
#
# Whoever loads a model with `dtype=torch.bfloat16` and fine-tunes it with a plain optimiser repeats the second line of
# this table (stock AdamW would keep its averages in bf16, too).

# %% [markdown]
# ## One line in the libraries
#
# `accelerate` and `Trainer` do what `Session(precision="bf16")` does: autocast around the forward pass, fp32 weights.
# Given the same start and the same batches in the same order, the losses must be equal. First by hand:

# %%
narrow = EncoderConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2)
rows = [{"input_ids": inputs, "labels": labels} for inputs, labels in zip(*batch, strict=True)]
groups = [{name: torch.stack([row[name] for row in rows[i : i + 4]]) for name in rows[0]} for i in range(0, 24, 4)]


def fresh():
    torch.manual_seed(3)
    model = EncoderForMaskedLM(narrow)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


model, optimizer = fresh()
by_hand_losses = []
for group in groups:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**group).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    by_hand_losses.append(loss.item())

# %%
from accelerate import Accelerator

accelerator = Accelerator(mixed_precision="bf16", cpu=True)  # the one line
model, optimizer = accelerator.prepare(*fresh())
accelerate_losses = []
for group in groups:
    loss = model(**group).loss
    optimizer.zero_grad()
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    accelerate_losses.append(loss.item())
gap = max(abs(a - b) for a, b in zip(by_hand_losses, accelerate_losses, strict=True))
lesson.record("accelerate-difference", gap)
print(f"largest difference of a loss: {gap}")

# %% [markdown]
# `Trainer` shuffles; to compare batch by batch we ask for the rows in order. It also reports losses rounded, so we
# listen in where it computes them.

# %%
import tempfile

from transformers import PrinterCallback, Trainer, TrainingArguments

trainer_losses = []


class Listening(Trainer):
    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        trainer_losses.append(loss.item())
        return loss


# %%
model, optimizer = fresh()
arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(), bf16=True, use_cpu=True,  # the one line
    per_device_train_batch_size=4, max_steps=len(groups), train_sampling_strategy="sequential", report_to=[],
    disable_tqdm=True, save_strategy="no", logging_strategy="no", max_grad_norm=1.0,
)  # fmt: skip
constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
trainer = Listening(model, arguments, train_dataset=rows[:24], optimizers=(optimizer, constant))
trainer.remove_callback(PrinterCallback)
trainer.train()
gap = max(abs(a - b) for a, b in zip(by_hand_losses, trainer_losses, strict=True))
lesson.record("trainer-bf16-difference", gap)
print(f"largest difference of a loss: {gap:.1e}")

# %% [markdown]
# ## Where the memory goes
#
# A training step holds four things. The **weights**, the **gradients** and AdamW's **two averages**: in fp32 that is
# $4 + 4 + 8 = 16$ bytes a weight, whatever the batch. And the **activations**: what the forward pass must keep for the
# backward pass. They grow with the batch, and they can be counted op by op. A linear map keeps its input. A norm keeps
# its input and two numbers a row. The MLP of one layer, for `n` tokens in fp32:

# %%
n, hidden, inner = 6 * 32, 64, 128
mlp = EncoderForMaskedLM(narrow).model.layers[0].mlp
predicted = 4 * n * (hidden + 2 * inner + inner + inner)  # x for Wi; Wi's output; silu(a); silu(a) * b for Wo
measured = memory_use.saved_bytes(lambda: mlp(torch.randn(6, 32, hidden)), mlp)
print(f"predicted {predicted:,} bytes, kept {measured:,}")
assert predicted == measured

# %% [markdown]
# (Where is the gate $b$? It is the other half of Wi's output, which is kept already. We count each piece of memory
# once.) `step_costs.memory` does this for the whole encoder. We compare it with what torch keeps, caught by
# `saved_tensors_hooks`, for encoders of several shapes.

# %%
shapes = [  # hidden, inner, layers, heads, batch, seq, vocabulary, mask rate
    (256, 512, 2, 4, 8, 64, 4096, 0.3), (128, 256, 3, 2, 3, 33, 517, 0.15), (96, 160, 1, 3, 2, 128, 2000, 0.4),
    (64, 64, 4, 1, 5, 20, 300, 0.05), (192, 768, 2, 6, 4, 100, 1000, 0.2),
]  # fmt: skip
worst = 0.0
for hidden, inner, layers, heads, rows_, length, vocab, rate in shapes:
    recipe = Recipe(vocab_size=vocab, hidden_size=hidden, intermediate_size=inner, layers=layers, heads=heads)
    ids = torch.randint(5, vocab, (rows_, length))
    labels = torch.where(torch.rand(rows_, length) < rate, ids, IGNORE)
    for kind in ("fp32", "bf16", "pure_bf16"):
        session = Session(recipe, kind)
        kept = memory_use.saved_bytes(partial(session.forward, ids, labels), session.model)
        formula = step_costs.memory(session.model.config, rows_, length, int((labels != IGNORE).sum()), kind)
        session.step(ids, labels)
        state = mixed_precision.state_bytes(session)
        parts = [(kept, formula["activations"]), *((state[name], formula[name]) for name in state)]
        worst = max(worst, *(abs(is_ - said) / is_ for is_, said in parts))
lesson.record("memory-error", worst)
print(f"largest error of a term, {len(shapes)} shapes in 3 precisions: {worst:.2%}")

# %% [markdown]
# Term by term, for one step of the race's encoder in fp32 and under autocast:

# %%
config, scored = wide.config(), int((batches[0][1] != IGNORE).sum())
count, length = batches[0][0].shape
terms = {kind: step_costs.activation_terms(config, count, length, scored, kind) for kind in ("fp32", "bf16")}
print(f"{count} x {length} tokens, {scored} of them scored; MB{'':13s} fp32    bf16")
for name in terms["fp32"]:
    print(f"{name:36s} {terms['fp32'][name] / 1e6:9.3f} {terms['bf16'][name] / 1e6:7.3f}")

# %%
predict = partial(step_costs.memory, config, 16, 128, round(0.3 * 16 * 128))  # 30 % of the tokens scored
figure, axis = plt.subplots(figsize=(8, 3.8))
kinds = ["fp32", "bf16", "pure_bf16_kahan", "pure_bf16_stochastic"]
parts = {kind: predict(kind) for kind in kinds}
parts["fp32, checkpointed"] = predict("fp32", checkpointed=True)
parts["bf16, checkpointed"] = predict("bf16", checkpointed=True)
left_edge = [0.0] * len(parts)
for term in ("weights", "gradients", "optimizer", "activations"):
    widths = [terms[term] / 1e6 for terms in parts.values()]
    axis.barh(range(len(parts)), widths, left=left_edge, label=term)
    left_edge = [a + b for a, b in zip(left_edge, widths)]
axis.set(yticks=range(len(parts)), yticklabels=parts, xlabel="MB", title="One step, 16 x 128 tokens")
axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
plots.show(figure, alt="Stacked bars of the memory of one training step in six settings: weights, gradients, "
           "optimizer, activations; activations are the largest part of every bar, and checkpointing cuts them most.")
saving = 1 - parts["bf16"]["activations"] / parts["fp32"]["activations"]
lesson.record("autocast-activation-saving", saving)
resident = memory_use.resident_bytes()
if resident:
    print(f"the whole process, with Python, libraries, text and every model above: {resident / 1e6:,.0f} MB resident")

# %% [markdown]
# What to see: at this batch most of the memory is activations. Autocast saves no weights (it even adds 16-bit copies,
# which count among the activations) but {{autocast-activation-saving}} of the activations; the residual stream and the
# loss stay in fp32. (In bf16 on a CPU our attention is written out, which is faster and keeps its weights, a number for
# each pair of positions; the fused kernel keeps none. The formula counts what is used.) Pure bf16 saves on both. The
# resident memory of the process is far more than any of these sums: it holds the libraries, the text, all other models
# of this lesson, and freed memory that the allocator has not given back. So account in bytes of tensors.
#
# **Gradient checkpointing** keeps only the input of each layer and computes the rest again on the way back. It wraps
# each layer's forward pass in `torch.utils.checkpoint.checkpoint`; `step_costs.checkpointed` does that and undoes it.
# The trade has three numbers: what is *kept* until the backward pass, the *peak* (while one layer is computed again,
# its activations are there once more), and the *time*: one more forward pass of the layers, which the formula for
# operations below predicts.

# %%
session = contenders["fp32"]
inputs, labels = (tensor.to(device) for tensor in batches[0])


def gradient_step():
    session.optimizer.zero_grad(set_to_none=True)
    session.forward(inputs, labels).backward()


def looked_at():
    """(gradients, bytes kept, peak bytes) of one step."""
    kept = memory_use.saved_bytes(lambda: session.forward(inputs, labels), session.model)
    session.optimizer.zero_grad(set_to_none=True)
    peak = memory_use.peak_bytes(gradient_step, device)
    return [weight.grad.clone() for weight in session.model.parameters()], kept, peak


plain = looked_at()
with step_costs.checkpointed(session.model):
    again = looked_at()
gap = max(float((a - b).abs().max()) for a, b in zip(plain[0], again[0], strict=True))

# %%
ratios = []
for _ in range(lesson.choose(quick=1, full=9)):  # in turns
    plain_time = timing.seconds(gradient_step, 1, device)
    with step_costs.checkpointed(session.model):
        ratios.append(timing.seconds(gradient_step, 1, device) / plain_time)
low, longer, high = timing.quartiles(ratios)
extra = step_costs.flops(config, *inputs.shape, 0, training=False)  # the layers forward, no head
expected = 1 + extra / step_costs.flops(config, *inputs.shape, scored)
lesson.record("checkpointing-gradient-difference", gap)
lesson.record("checkpointing-saving", 1 - again[1] / plain[1])
if lesson.profile == "full":
    lesson.record("checkpointing-peak-saving", 1 - again[2] / plain[2])
    lesson.record("checkpointing-time", longer)
    lesson.record("checkpointing-time-expected", expected)
print(f"kept {plain[1] / 1e6:.1f} -> {again[1] / 1e6:.1f} MB, peak {plain[2] / 1e6:.1f} -> {again[2] / 1e6:.1f} MB; "
      f"{longer:.2f} times as long (quartiles {low:.2f} to {high:.2f}, by operations {expected:.2f}); "
      f"gradients differ by {gap}")

# %% [markdown]
# {{checkpointing-saving}} less is kept, but the peak falls by {{checkpointing-peak-saving}} only: a layer's activations
# come back while it is computed again, and the gradients are there, too. With more layers the two come closer. It takes
# {{checkpointing-time}} times as long, where the operations alone would say {{checkpointing-time-expected}}.
#
# ## How much of the machine do we use?
#
# A matrix costs two operations for each of its weights, a token, on the way forward, and twice that on the way back.
# Attention has two products more, of $2 S H$ each ($S$ is the length of a row). So training costs, for a token,
#
# $$ 6\,[L(4H^2 + 3HF) + p\,(VH + H^2)] + 12\,L H S, $$
#
# with $p$ the share of positions that the head sees. `torch.utils.flop_counter` counts the same by watching every
# operation. It knows no formula for the CPU's attention and would count it as 0, so `counted_flops` gives it one.
# (The scored positions are filled up to a multiple of 64, `filled_up`, so that few shapes come again and again. Where
# each step has another shape, memory cannot be used again, and kernels are compiled anew.)

# %%
counted = operation_counts.counted_flops(lambda: session.forward(inputs, labels).backward())
predicted = step_costs.flops(config, *inputs.shape, filled_up(scored))
lesson.record("flops-difference", abs(counted / predicted - 1))
dense = step_costs.flops(config, *inputs.shape, None)
print(f"one step: {predicted / 1e9:.2f} GFLOP by formula, {counted / 1e9:.2f} counted; "
      f"with a dense head {dense / 1e9:.2f}")

# %% [markdown]
# **MFU**, model FLOPs utilisation, is useful operations per second divided by what the machine can do at most. Two
# traps:
#
# - The *peak*. A data sheet's is never reached. We measure a large matrix product, here and now.
# - *Useful* is not *executed*. A head that scores all positions, though 30 % are asked for, keeps the machine busy.
#   So does padding. Those operations are executed, and train nothing.

# %%
dense_session = Session(wide, half, device)
padded, padded_labels = inputs.clone(), labels.clone()
padded[:, length // 2 :], padded_labels[:, length // 2 :] = 0, IGNORE


def wasteful_step():
    """What a model that scores all positions does, on rows of which half is padding."""
    dense_session.optimizer.zero_grad()
    with mixed_precision.autocast(half, device):
        dense_session.model(padded, labels=padded_labels).loss.backward()
    dense_session.optimizer.step()


contestants = {  # step, type of its products, operations that train, operations that run
    "fp32": (partial(contenders["fp32"].step, *batches[0], lr=0.0), "fp32", predicted, predicted),
    half: (partial(contenders[half].step, *batches[0], lr=0.0), half, predicted, predicted),
    "dense, half padding": (
        wasteful_step, half, step_costs.flops(config, count, length // 2, int((padded_labels != IGNORE).sum())),
        step_costs.flops(config, count, length, None)),
}  # fmt: skip

# %%
large, rounds = lesson.choose(quick=(512, 1), full=(2048, 5), gpu=(8192, 5))
peaks, useful, executed = {}, {name: [] for name in contestants}, {name: [] for name in contestants}
for _ in range(rounds):  # peaks and steps in turns: a machine's speed changes with what else it does
    now = {name: hardware.peak_flops(FORMATS[name].dtype, device, large, repeats=3) for name in ("fp32", half)}
    peaks = {name: max(rate, peaks.get(name, 0.0)) for name, rate in now.items()}
    for name, (step, kind, trains, runs) in contestants.items():
        rate = 1 / timing.seconds(step, 3, device) / now[kind]
        useful[name].append(trains * rate)
        executed[name].append(runs * rate)
mfu, busy = ({name: timing.quartiles(shares)[1] for name, shares in of.items()} for of in (useful, executed))
for name in contestants:
    print(f"{name:20s} executed {busy[name]:5.0%} of the peak, useful (MFU) {mfu[name]:5.0%}")
print("peaks:", ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in peaks.items()))
if lesson.profile == "full":
    lesson.record("mfu-fp32", 100 * mfu["fp32"])
    lesson.record("mfu-bf16", 100 * mfu["bf16"])
    lesson.record("wasteful-executed", 100 * busy["dense, half padding"])
    lesson.record("wasteful-useful", 100 * mfu["dense, half padding"])

# %% [markdown]
# In the stored run fp32 reaches {{mfu-fp32}} % of its peak. Autocast reaches {{mfu-bf16}} % of a peak that is
# {{peak-ratio}} times as high. The wasteful step *executes* {{wasteful-executed}} % of the peak, and
# {{wasteful-useful}} % is useful: whoever reports the first number for it hides most of the waste. (It executes a
# smaller share than our step does, too: the scores of all positions must also be written, read and exponentiated,
# which takes time and is no matrix product.)
#
# Why not 100 %? The **roofline** says. An operation that does few calculations for each byte that it moves waits for
# memory. Its ceiling is bandwidth times *arithmetic intensity* (operations per byte), up to the peak. We measure the
# bandwidth by copying, once from memory and once from cache, and then the encoder's main operations one by one.

# %%
hidden, inner = config.hidden_size, config.intermediate_size


def random_tensor(*shape, dtype):
    return torch.randn(*shape, device=device).to(dtype)


def product(rows, width, outputs, dtype):
    """(call, operations, bytes) of one matrix product."""
    left, right = random_tensor(rows, width, dtype=dtype), random_tensor(width, outputs, dtype=dtype)
    moved = left.element_size() * (rows * width + width * outputs + rows * outputs)
    return (lambda: left @ right), 2 * rows * width * outputs, moved


def elementwise(function, shape, tensors, per_number, dtype):
    """The same of an operation on every number; ``per_number`` is a count of its sums, products and exponentials."""
    given = [random_tensor(*shape, dtype=dtype) for _ in range(tensors)]
    return (lambda: function(*given)), per_number * given[0].numel(), (tensors + 1) * given[0].nbytes


# %%
operations = {}
for kind in ("fp32", half):
    dtype = FORMATS[kind].dtype
    query = random_tensor(count, wide.heads, length, hidden // wide.heads, dtype=dtype)
    operations |= {
        ("LayerNorm", kind): elementwise(lambda t: F.layer_norm(t, (hidden,)), (tokens, hidden), 1, 7, dtype),
        ("SiLU gate", kind): elementwise(lambda a, b: F.silu(a) * b, (tokens, inner), 2, 6, dtype),
        ("residual", kind): elementwise(torch.add, (tokens, hidden), 2, 1, dtype),
        ("log-softmax", kind): elementwise(lambda t: t.log_softmax(-1), (scored, config.vocab_size), 1, 5, dtype),
        ("Wqkv", kind): product(tokens, hidden, 3 * hidden, dtype),
        ("decoder", kind): product(scored, hidden, config.vocab_size, dtype),
        ("attention", kind): (partial(F.scaled_dot_product_attention, query, query, query),
                              4 * count * length**2 * hidden, 4 * query.nbytes),
    }  # fmt: skip
points = {name: (work / moved, work / timing.seconds(call, lesson.choose(quick=3, full=15), device))
          for name, (call, work, moved) in operations.items()}  # fmt: skip
sizes = lesson.choose(quick=(64, 0.25), full=(256, 0.25), gpu=(4096, 8))
speeds = dict(zip(("memory", "cache"), (hardware.bandwidth(size, device) for size in sizes), strict=True))

# %%
figure, axis = plt.subplots(figsize=(8.5, 5))
intensity = torch.logspace(-1.2, 3.2, 100)
for (place, speed), style in zip(speeds.items(), ("-", "--"), strict=True):
    axis.loglog(intensity, (intensity * speed).clamp(max=peaks[half]) / 1e9, style, color="grey",
                label=f"copy from {place}: {speed / 1e9:.0f} GB/s")  # fmt: skip
for kind, colour, marker in (("fp32", plots.COLOURS[0], "o"), (half, plots.COLOURS[3], "s")):
    axis.axhline(peaks[kind] / 1e9, color=colour, linestyle=":")
    axis.text(0.07, peaks[kind] / 1e9, f"peak {kind}", va="bottom", color=colour)
    of_kind = [point for (_, one), point in points.items() if one == kind]
    axis.plot(*zip(*((at, rate / 1e9) for at, rate in of_kind), strict=True), marker, color=colour, label=kind)
BESIDE = {  # points from the fp32 point, so that names of neighbours do not meet
    "residual": (8, 2, "left"), "SiLU gate": (-8, 4, "right"), "log-softmax": (0, -16, "center"),
    "LayerNorm": (-2, 10, "left"), "Wqkv": (-8, 2, "right"), "decoder": (2, -14, "left"), "attention": (-8, 4, "right"),
}  # fmt: skip
for name, (right, up, align) in BESIDE.items():  # a line from one type to the other
    (at, rate), other = points[name, "fp32"], points[name, half]
    axis.plot([at, other[0]], [rate / 1e9, other[1] / 1e9], color="grey", linewidth=0.6)
    axis.annotate(name, (at, rate / 1e9), fontsize=8, xytext=(right, up), textcoords="offset points", ha=align)
axis.set(xlabel="arithmetic intensity (operations per byte)", ylabel="GFLOP/s", title="Roofline of the main operations")
axis.legend(loc="lower right")
plots.show(figure, alt="Roofline plot, circles for fp32 and squares for the 16-bit type, a thin line from one to the "
           "other: norm, gate, residual and log-softmax lie far left and low; matrix products lie right, near the "
           "horizontal lines of the two peaks.")

# %% [markdown]
# What to see: norms, gates and sums stand on the left, where even a perfect kernel would be held by bandwidth, far
# below either peak. They take time and do hardly any arithmetic. Some lie below the slanted lines: their
# exponentials, statistics and conversions cost more than moving bytes. (Some lie above "memory": they are served from
# cache; a sum of two tensors can even beat a copy.) The products stand on the right, and gain from a higher peak.
# Compare the two points of attention: how much a kernel gains from 16 bits is up to the kernel.
#
# So autocast does not make a step faster by the ratio of the two peaks: what is not a product gains little or nothing.

# %%
if lesson.profile == "full":
    lesson.record("peak-ratio", peaks["bf16"] / peaks["fp32"])
    norm, decoder = points["LayerNorm", "fp32"], points["decoder", "fp32"]
    lesson.record("roofline-gap", decoder[1] / norm[1])
    print(f"the decoder's product does {decoder[1] / norm[1]:.0f} times as many operations a second as the norm")

# %% [markdown]
# ## What goes wrong, in words
#
# Errors should name what is wrong and what to do.

# %% tags=["nbval-check-output"]
attempts = {
    "fp16 on a CPU": lambda: Session(wide, "fp16", "cpu"),
    "fp8": lambda: Session(wide, "fp8_e4m3"),
    "a name that does not exist": lambda: round_to(torch.ones(3), "fp12"),
    "an empty batch": lambda: contenders["fp32"].step(torch.empty(0, 8).long(), torch.empty(0, 8).long()),
    "a step before backward": lambda: LossScaler().step(torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1.0)),
}
for what, attempt in attempts.items():
    try:
        attempt()
    except ValueError as error:
        print(f"{what}:\n    {error}")

# %% [markdown]
# ## With a GPU
#
# `python -m sslcourse run mixed_precision --profile gpu` runs these same cells on one, with tf32 and fp16
# (and its scaler) in the race. What was recorded on a GPU is shown here as it was stored.

# %%
from coursekit import seals

store = lesson.root / "data" / "measured" / "mixed_precision_gpu.json"
if device == "cuda":
    stored = {
        "date": date.today().isoformat(), "device": torch.cuda.get_device_name(), "cuda": torch.version.cuda,
        "torch": torch.__version__, "transformers": transformers.__version__,
        "command": "python -m sslcourse run mixed_precision --profile gpu", "recipe": size, "seeds": len(SEEDS),
        "tokens_per_second": {
            name: timing.quartiles([tokens / s for s in track.seconds]) for name, track in tracks.items()},
        "loss_minus_fp32": apart, "seed_noise": noise, "mfu": mfu, "peak_flops": peaks, "bytes_per_second": speeds,
    }  # fmt: skip
    store.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    seals.seal(store)
if store.is_file():
    for name, value in json.loads(store.read_text(encoding="utf-8")).items():
        print(f"{name:20s} {value}")
else:
    print("No figures of a GPU are stored yet: nobody has run this lesson on one. The command above writes them.")

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
# - Micikevicius et al. 2018, [Mixed precision training](https://arxiv.org/abs/1710.03740): master weights, loss
#   scaling.
# - Kalamkar et al. 2019, [A study of bfloat16](https://arxiv.org/abs/1905.12322); Micikevicius et al. 2022,
#   [FP8 formats](https://arxiv.org/abs/2209.05433).
# - Gupta et al. 2015, [Limited numerical precision](https://arxiv.org/abs/1502.02551): stochastic rounding; Zamirai et
#   al. 2020, [Revisiting bfloat16 training](https://arxiv.org/abs/2010.06192): Kahan summation for weights.
# - Chen et al. 2016, [Sublinear memory cost](https://arxiv.org/abs/1604.06174): checkpointing; Dao et al. 2022,
#   [FlashAttention](https://arxiv.org/abs/2205.14135).
# - Chowdhery et al. 2022, [PaLM](https://arxiv.org/abs/2204.02311): MFU, in its appendix B; Williams et al. 2009,
#   [Roofline](https://doi.org/10.1145/1498765.1498785).
# - torch's [automatic mixed precision](https://docs.pytorch.org/docs/stable/amp.html), Hugging Face
#   [Accelerate](https://huggingface.co/docs/accelerate).
