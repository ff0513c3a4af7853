# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   coursekit:
#     budget:
#       quick: {minutes: 1.5, memory_mb: 3500}
#       full: {minutes: 6.0, memory_mb: 4500}
# ---

# %% [markdown]
# # Quantization: small integers that keep the answers
#
# **In this lesson you turn a model's weights and products into small integers, by hand and by the libraries in use, and
# measure what that costs in quality and what it brings in size and speed.**
#
# *Time*: about 60 minutes of reading and exercises; the machine computes for about four of them (and five more if the
# encoder of lesson @mlm_pretraining has to be made first).
#
# *You need to know*: the encoder (lesson @mlm_pretraining), rounding and formats (lesson @mixed_precision), the tagger
# of names (lesson @fine_tuning).
#
# *You will be able to*
# - put a tensor on a grid of whole numbers, and bound the error;
# - multiply in int8 with exact sums, and take the zero point out of them again;
# - say why one outlier spoils a tensor, and move it to where it does less harm;
# - train a model that bears two bits;
# - choose a route to int8 by numbers: file, memory, latency, score.

# %% tags=["parameters"]
profile = "auto"

# %%
from coursekit import start

lesson = start("quantization", profile)

# %%
import copy
import json
import random
import tempfile
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertModel

from sslcourse.compress import activation_ranges, fake_quantization, int8_copies, integers, onnx_files, serving_routes
from sslcourse.compress.int8_copies import fake_copy, int8_copy, sqnr
from sslcourse.compress.int8_layers import Int8Linear
from sslcourse.compress.integers import quantize
from sslcourse.compress.onnx_files import OnnxModel
from sslcourse.data import corpus, labelled, tokenizer as wordpiece
from sslcourse.data.ignored import IGNORE
from sslcourse.measure import hardware, intervals, timing
from sslcourse.studies import lesson_encoder
from sslcourse.tasks import encoding, fitting, scores, task_heads
from sslcourse.train.optimizers import make_optimizer
from sslcourse.train.recipe import Recipe
from sslcourse.train.step import evaluate, learning_rate, train_step
from sslcourse.train.token_rows import Tape, held_out_rows
from coursekit import Choice, Slider, check, live_picture, plots

full = lesson.profile != "quick"
scratch = tempfile.TemporaryDirectory(prefix="lesson07-")  # gone with the kernel
folder = Path(scratch.name)

# %% [markdown]
# ## What do eight bits buy?
#
# After training, nobody adds small updates to the weights any more. So the reason for 32 bits is gone (lesson
# @mixed_precision), and eight will do: a quarter of the file and of the memory traffic. And the processor may multiply
# faster. One instruction of a CPU with *VNNI* multiplies, in each place of 32 bits, four pairs of int8 numbers and
# adds them to an int32, where fp32 handles one pair.

# %%
flags = hardware.cpu_flags()
fast = sorted(flags & {"avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "asimddp"})
print("int8 instructions of this CPU:", ", ".join(fast) or "none: files will be smaller here, but hardly faster")

# %%
short = {"steps": 40, "recipe": Recipe(batch_size=8), "every": 8}
known = lesson_encoder.load(**lesson.choose(quick=short, full={}), progress=lesson.live)
tokenizer, model = known.tokenizer, known.model.eval()
texts = {split: [row["text"] for row in rows] for split, rows in corpus.load_splits().items()}
held_out = wordpiece.encode(tokenizer, texts["validation"][:: lesson.choose(quick=40, full=4)])
held_out = held_out_rows(held_out, tokenizer, 128)


def loss_of(model):
    """Held-out loss in nats a scored token; the same rows and masks for every model of this lesson."""
    return evaluate(model, held_out).loss


exact_loss = loss_of(model)
scored = int((held_out.labels != IGNORE).sum())
print(f"fp32: {exact_loss:.4f} nats on {scored:,} scored tokens; {int8_copies.disk_bytes(model) / 1e6:.2f} MB")

# %% [markdown]
# ## A grid of whole numbers
#
# Quantizing is: choose a step, called the **scale**, and say how many steps a number is away from zero. For int8 the
# largest weight gets 127:

# %%
def to_int8(x):
    """(whole numbers, scale) of a symmetric grid."""
    scale = x.abs().max() / 127
    return torch.round(x / scale).clamp(-127, 127).to(torch.int8), scale


weight = model.model.layers[1].mlp.Wi.weight.detach()
values, scale = to_int8(weight)
back = values.float() * scale
print(f"scale {scale:.5f}: {weight[0, 0]:.5f} -> {values[0, 0]} -> {back[0, 0]:.5f}")
assert torch.equal(values, quantize(weight).values)

# %% [markdown]
# A number lies between two points of the grid, and goes to the nearer one. So it moves by **half a step at most**. The
# package asserts no less, for every matrix of the encoder, for two to eight bits (in fp64, where nothing else rounds):

# %%
worst = 0.0
matrices = {name: one.weight.detach() for name, one in model.named_modules() if isinstance(one, nn.Linear)}
for matrix in matrices.values():
    for bits in (2, 4, 8):
        for symmetric in (True, False):
            found = quantize(matrix.double(), bits, symmetric=symmetric)
            worst = max(worst, float((found.dequantize() - matrix.double()).abs().max() / found.scale.max()))
lesson.record("half-step", worst)
print(f"{len(matrices)} matrices: no weight moved by more than {worst:.4f} steps")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
row = weight[3]
four = quantize(row, 4)
left.hist(row.numpy(), bins=40, color=plots.COLOURS[5])
for level in range(-7, 8):
    left.axvline(level * float(four.scale), color="black", linewidth=0.6)
left.set(xlabel="weight", ylabel="how many", title="128 weights of one row, and a grid of 4 bits")
order = row.sort().values
for bits, colour in ((3, plots.COLOURS[3]), (4, plots.COLOURS[0])):
    right.step(order, quantize(row, bits).dequantize().sort().values, where="mid", color=colour, label=f"{bits} bits")
right.plot(order, order, color="grey", linewidth=1, label="as it was")
right.set(xlabel="weight", ylabel="weight on the grid", title="Stairs")
right.legend()
plots.show(figure, alt="Left: histogram of a row of weights, bell-shaped, over fifteen evenly spaced lines of a 4-bit "
           "grid; few weights lie near the outer lines. Right: the rounded weights as stairs around the diagonal, "
           "coarser with 3 bits than with 4.")

# %% [markdown]
# What to see: the grid is even and the weights are not. The outermost lines serve a handful of weights, and most
# weights share the few lines in the middle. Everything clever in quantization fights this.
#
# A symmetric grid suits weights. What comes out of a ReLU is never negative, and half of the grid would be empty: an
# **affine** grid shifts. The *zero point* is the whole number that stands for 0. It must be whole, so that 0, the
# padding, is exact.

# %% [markdown]
# ### Exercise affine_int8 — An affine grid · ★★☆ · 10 minutes


# %% tags=["exercise"]
def affine_int8(x):
    """(values, scale, zero_point): x on a grid of 256 whole numbers, -128 to 127, that covers its range and 0.

    x: a float32 tensor of any shape, not empty, finite, not all zeros. values: int8, of x's shape. scale: a Python
    float, the range from low = min(x.min(), 0) to high = max(x.max(), 0), divided by 255. zero_point: a Python int, the
    number that 0 falls on: round(-128 - low / scale), and at least -128 and at most 127. A number becomes
    round(x / scale) + zero_point, ties to even, and what falls outside the 256 numbers goes to the nearer end.
    """
    ### BEGIN SOLUTION
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / 255
    zero_point = max(-128, min(127, round(-128 - low / scale)))
    values = (torch.round(x / scale) + zero_point).clamp(-128, 127).to(torch.int8)
    return values, scale, zero_point
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("affine_int8", affine_int8)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>First the two ends of the range; 0 must lie between them.</details>
# <details><summary>Hint 2</summary>The lowest number should become -128. What does 0 become then?</details>
# <details><summary>Hint 3</summary>Clamp before you convert to int8: 128 as an int8 is -128.</details>

# %% [markdown]
# ### A grid of your own
#
# Must the grid reach the largest weight? A smaller scale has finer steps, and what lies beyond the ends is **clipped**:
# it goes to the end. Choose a scale, as a share of the one that reaches minimum and maximum, move the zero point, and
# look at the error. The controls need a running notebook and obey the keyboard; the picture is the one at their start.


# %%
def put_on_grid(x, bits, share, moved):
    """(x after rounding, where it was clipped, all numbers of the grid, zero point) of an affine grid.

    share: of the scale that reaches minimum and maximum. moved: the zero point's shift in % of the grid.
    """
    bottom, top = integers.limits(bits, symmetric=False)
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / (top - bottom)
    zero = round(bottom - low / scale) + round(moved / 100 * 2**bits)
    zero, scale = min(max(zero, bottom), top), share * scale  # 0 stays on the grid
    level = torch.round(x / scale) + zero
    clipped = (level < bottom) | (level > top)
    return (level.clamp(bottom, top) - zero) * scale, clipped, (torch.arange(bottom, top + 1) - zero) * scale, zero


def errors(x, *grid):
    """Mean squared error by (rounding, clipping); the two add up to the whole."""
    back, clipped, _, _ = put_on_grid(x, *grid)
    squares = (x - back).square()
    return float((squares * ~clipped).mean()), float((squares * clipped).mean())


# %%
SHOWN = {"layer 1, mlp.Wi": matrices["model.layers.1.mlp.Wi"], "head.dense": matrices["head.dense"]}
SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0)
EDGES = {"left": 0.07, "right": 0.985, "bottom": 0.11, "top": 0.9, "wspace": 0.24, "hspace": 0.4}


def draw_errors(axis, x, bits, share, moved):
    """Rounding and clipping against the scale, and where we stand."""
    rounding, clipping = zip(*(errors(x, bits, one, moved) for one in SHARES))
    both = [sum(pair) for pair in zip(rounding, clipping)]
    for values, style, label in ((both, "-", "both"), (rounding, "--", "rounding"), (clipping, ":", "clipping")):
        axis.loglog(SHARES, [value or float("nan") for value in values], style, label=label)
    axis.plot(share, both[SHARES.index(share)], "o", color="black", markersize=9, label="this grid")
    axis.set_xticks((0.02, 0.1, 0.5, 1, 2), ("0.02", "0.1", "0.5", "1", "2"))
    axis.set(xlabel="scale (share of the one that reaches all)", ylabel="mean squared error",
             ylim=(min(both) / 30, 3 * max(both)))  # fmt: skip
    axis.minorticks_off()
    axis.legend(fontsize=9)
    rounded, cut = errors(x, bits, share, moved)
    noise = 10 * float(torch.log10(x.square().mean() / (rounded + cut)))
    parts = f"rounding {rounded:.2g} + clipping {cut:.2g}"
    axis.set_title(f"error {rounded + cut:.2g} ({noise:.1f} dB)\n= {parts}", fontsize=10)


# %%
def grid_figure(which, bits, share, moved):
    """Real weights, the grid under them, what they become, and the error."""
    x = SHOWN[which]
    back, clipped, numbers, zero = put_on_grid(x, bits, share, moved)
    figure = plt.figure(figsize=(11, 4.8), layout="none")  # its own layout, which is quick to draw
    at = figure.subplot_mosaic([["above", "error"], ["below", "error"]], width_ratios=(3, 2), gridspec_kw=EDGES)
    at["above"].hist(x.flatten().numpy(), bins=100, color=plots.COLOURS[5])
    at["above"].set_title(f"{which}: {100 * clipped.float().mean():.2f} % of {x.numel():,} weights are clipped")
    found, counts = back.unique(return_counts=True)
    at["below"].vlines(found, 0.5, counts, color=plots.COLOURS[0], linewidth=4 if bits < 6 else 1.2)
    at["below"].plot(numbers, [0.35] * len(numbers), "|", color="black", markersize=9, markeredgewidth=0.7)
    at["below"].set_title(f"{len(found)} of {len(numbers)} numbers of the grid in use; zero point {zero}")
    at["below"].set_xlabel("weight")
    reach = 1.1 * float(x.abs().max())
    for axis in (at["above"], at["below"]):
        for end, label in ((numbers[0], "ends of the grid"), (numbers[-1], None)):
            axis.axvline(float(end), color=plots.COLOURS[3], linestyle="--", linewidth=1, label=label)
        axis.set(yscale="log", ylim=(0.2, 3 * x.numel()), xlim=(-reach, reach), ylabel="how many")
        axis.minorticks_off()
    at["above"].legend(fontsize=9, loc="upper left")
    draw_errors(at["error"], x, bits, share, moved)
    return figure


# %%
live_picture(
    grid_figure,
    alt="Above a histogram of the weights of one layer, below it the numbers of a grid as ticks and how many weights "
    "become each of them, the grid's ends dashed. Right: the mean squared error against the scale, of rounding, "
    "clipping and both, with a dot at the chosen scale. For the layer at the start, with four bits, the least error "
    "is at a scale smaller than the one that reaches all weights.",
    which=Choice("weights", tuple(SHOWN), start="layer 1, mlp.Wi"),
    bits=Slider("bits", (2, 3, 4, 5, 6, 7, 8), start=4),
    share=Slider("scale (share of the one that reaches all)", SHARES, start=1.0),
    moved=Slider("zero point moved (% of the grid)", (-50, -25, -10, -5, 0, 5, 10, 25, 50), start=0),
)

# %% [markdown]
# What to see: to the right of the valley steps are too wide, to the left too much is clipped, and the best scale
# balances the two. With few bits the valley lies left of 1: to clip a few weights pays, for all others get finer steps.
# With each bit more, rounding falls to a quarter (6 dB) and the valley moves towards 1. Move the zero point: the grid
# slides, one side is clipped, the other side's numbers stand empty. Weights lie on both sides of 0, so the middle is
# best; what comes out of a ReLU would want an end.
#
# ## One outlier spoils it
#
# The scale follows the *largest* number. We plant a single weight that is twenty times as large as the largest, and
# look at all the others. The unit is the decibel: signal to noise, $10 \log_{10}(\sum x^2 / \sum \text{error}^2)$; 6 dB
# are one bit.

# %%
planted = weight.clone()
planted[0, 0] = 20 * weight.abs().max()
others = torch.ones_like(weight, dtype=torch.bool)
others[0, 0] = False
clean, spoilt, by_row = (sqnr(matrix[others], quantize(matrix, axis=axis).dequantize()[others])
                         for matrix, axis in ((weight, None), (planted, None), (planted, 0)))  # fmt: skip
levels = quantize(planted).values[others].unique().numel()
print(f"without the outlier {clean:.1f} dB; with it {spoilt:.1f} dB, and all the others share {levels} whole numbers")
print(f"with it, and a scale for each row: {by_row:.1f} dB")
lesson.record("outlier-cost", clean - spoilt)
lesson.record("row-scale-gain", by_row - spoilt)

# %% [markdown]
# One weight of {{weights-in-matrix}} cost the others {{outlier-cost}} dB, more than four of their eight bits. The
# remedy is cheap: a scale of its own for every row (*per channel*). Then only one row suffers, and it gains
# {{row-scale-gain}} dB back. A row of weights makes one output, so its scale can be taken out of the sum. (A scale for
# each *column* could not.)

# %%
lesson.record("weights-in-matrix", weight.numel())
print(f"{'matrix':28s} one scale   a scale for each row")
for name, matrix in matrices.items():
    one, per_row = (sqnr(matrix, quantize(matrix, axis=axis).dequantize()) for axis in (None, 0))
    print(f"{name:28s} {one:6.1f} dB   {per_row:6.1f} dB")

# %% [markdown]
# ## Multiplying whole numbers
#
# A product of two int8 numbers takes up to 16 bits, and a sum of many more than that. So the sum is an int32, and up to
# $131{,}071$ products it is *exact*: nothing is rounded in it, in whatever order. We write the product out, and compare
# it with the library's kernel, also where every number is −128, the most that can come together.

# %%
def product(a, b):
    """The sums of products, one by one, in int32."""
    return (a[:, :, None].int() * b[None].int()).sum(1, dtype=torch.int32)


different = 0
for fill in (None, -128, 127):
    a, b = torch.randint(-128, 128, (9, 300), dtype=torch.int8), torch.randint(-128, 128, (300, 40), dtype=torch.int8)
    if fill is not None:
        a, b = torch.full_like(a, fill), torch.full_like(b, -128)
    different += int((product(a, b) != torch._int_mm(a, b)).sum())
lesson.record("int-sums-different", different)
print(f"{different} sums differ; the largest, 300 times (-128) times (-128), is {300 * 128**2:,}")

# %% [markdown]
# A linear layer in int8: weights on a grid beforehand, a scale for each row; activations on a grid as they come, a
# scale for each token; one exact product; then one multiplication by both scales. That is *dynamic* quantization.


# %%
def int8_linear(x, linear):
    """What ``linear`` computes, by a product of whole numbers."""
    w_scale = linear.weight.abs().amax(1) / 127
    w = torch.round(linear.weight / w_scale[:, None]).to(torch.int8)
    x_scale = x.abs().amax(1) / 127
    x_int = torch.round(x / x_scale[:, None]).to(torch.int8)
    y = product(x_int, w.t()) * x_scale[:, None] * w_scale
    grids = (x_int.double() * x_scale[:, None].double()) @ (w.double() * w_scale[:, None].double()).t()
    return (y if linear.bias is None else y + linear.bias), grids


# %%
with torch.no_grad():
    linear = nn.Linear(128, 96)
    x = torch.randn(20, 128)
    ours, grids = int8_linear(x, linear)
    from_grids = float((ours.double() - linear.bias - grids).abs().max() / grids.abs().max())
    from_package = float((ours - Int8Linear(linear)(x)).abs().max() / ours.abs().max())
    from_fp32 = float((ours - linear(x)).abs().max() / ours.abs().max())
lesson.record("int8-layer-error", max(from_grids, from_package))
print(f"from what its grids stand for {from_grids:.0e}, from the package {from_package:.0e}, from fp32 {from_fp32:.4f}")

# %% [markdown]
# So all the error comes from putting numbers on grids, none from multiplying ({{int8-layer-error}} at most is fp32's
# own rounding at the end). With ranges that are known beforehand (*static* quantization), activations have **one**
# affine grid, and a zero point that enters every sum. It must come out again.

# %% [markdown]
# ### Exercise affine_product — Take the zero point out · ★★★ · 12 minutes


# %% tags=["exercise"]
def affine_product(x, x_scale, zero_point, w, w_scale, bias):
    """What a linear layer gives whose input and weights are whole numbers: [n, outputs], float32.

    x: int8 [n, inputs] on an affine grid: it stands for (x - zero_point) * x_scale, with x_scale a float and zero_point
    an int. w: int8 [outputs, inputs] on a symmetric grid, a scale for each output: it stands for w * w_scale[:, None],
    with w_scale float32 [outputs]. bias: float32 [outputs]. All sums of products must be exact, and the zero point be
    taken out of them as a whole number, too: compute in int32 (or wider), and scale at the end. There may be 20,000
    inputs.
    """
    ### BEGIN SOLUTION
    sums = x.int() @ w.int().t() - zero_point * w.int().sum(1)
    return sums * x_scale * w_scale + bias
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("affine_product", affine_product)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Write the sum: Σ (x − z) · w = Σ x · w − z · Σ w.</details>
# <details><summary>Hint 2</summary>Σ w is a sum over inputs: one number for each output.</details>
# <details><summary>Hint 3</summary>Two int8 tensors multiply to an int8 tensor, which overflows: convert
# first.</details>

# %% [markdown]
# May one subtract the zero point *before* the product? The numbers are the same, and the check takes it. But what is
# left then needs nine bits, and no int8 instruction multiplies that. Kernels multiply the eight bits as they are, and
# take out afterwards what depends on the weights alone and can be computed beforehand.
#
# ### The same layer by the libraries
#
# Do libraries give the same numbers? Not to the bit. The grid of the activations is up to them: torchao has a scale for
# each token, as we do. `torch.ao`'s kernel, its deprecated predecessor, has one for all tokens and gives up a bit:
# older CPUs add pairs of products in 16 bits, and with eight-bit activations those sums would saturate. So it uses 7.


# %%
def per_tensor(x, linear, bits):
    """As ``int8_linear``, but one affine grid of ``bits`` bits for all activations."""
    on_grid = quantize(x, bits, symmetric=False).dequantize()
    return nn.functional.linear(on_grid, quantize(linear.weight, axis=0).dequantize(), linear.bias)


with warnings.catch_warnings(), torch.no_grad():
    warnings.simplefilter("ignore")  # that it is deprecated; the next version of torch may not have it
    x = torch.randn(64, 128) * torch.linspace(0.2, 3, 64)[:, None]  # tokens differ in size
    old = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear}, torch.qint8)
    rivals = {
        "8 bits, by token (ours)": Int8Linear(linear)(x),
        "torchao": int8_copies.torchao_copy(nn.Sequential(linear))(x),
        "8 bits, one grid for all": per_tensor(x, linear, 8), "7 bits, one grid for all": per_tensor(x, linear, 7),
        "torch.ao (deprecated)": old(x)}  # fmt: skip
    noise = {name: sqnr(linear(x), y) for name, y in rivals.items()}
for name, decibels in noise.items():
    print(f"{name:26s} {decibels:5.1f} dB from fp32")
lesson.record("torchao-from-ours", abs(noise["torchao"] - noise["8 bits, by token (ours)"]))
lesson.record("by-token-gain", noise["8 bits, by token (ours)"] - noise["torch.ao (deprecated)"])

# %% [markdown]
# Read the list in pairs. torchao's noise is ours within {{torchao-from-ours}} dB: the same grids, ties and orders
# apart. The old kernel lies {{by-token-gain}} dB below, where one 7-bit grid for all tokens puts it.
#
# ## A whole model
#
# `int8_copy` puts `Int8Linear` in the place of every linear layer, and an int8 table in that of the embeddings. Norms,
# softmax and the sums of the residual stream stay in fp32: they are cheap, and they need the range.

# %%
small = int8_copy(model)
int8_loss, ratio = loss_of(small), int8_copies.disk_bytes(small) / int8_copies.disk_bytes(model)
print(f"fp32 {exact_loss:.4f} nats, int8 by hand {int8_loss:.4f}; file {ratio:.3f} times as large")
if full:
    lesson.record("int8-loss", int8_loss - exact_loss)
    lesson.record("int8-file", ratio)

# %% [markdown]
# The loss moves by {{int8-loss}} nats, the file shrinks to {{int8-file}} of its size.
#
# ## Activations have outliers, too
#
# Activations are often less even than weights. `observe` reads some rows of
# training text and notes what comes into every layer, channel by channel.

# %%
tape = Tape(wordpiece.encode(tokenizer, texts["train"][:: lesson.choose(quick=20, full=1)]), tokenizer, 128)
real = [{"input_ids": rows, "attention_mask": torch.ones_like(rows)}
        for rows in tape.rows(0, 1)[: lesson.choose(quick=16, full=64)].split(16)]  # fmt: skip
seen = activation_ranges.observe(model, real, tokenizer)
for name, reach in seen.items():
    middle = float(reach.channels.median())
    print(f"{name:24s} {reach.low:7.2f} to {reach.high:6.2f}; largest channel / median channel: "
          f"{float(reach.channels.max()) / middle:5.1f}")  # fmt: skip

# %%
widest = "model.layers.0.mlp.Wo"
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4))
columns = {"activations": seen[widest].channels, "weights": matrices[widest].abs().amax(0)}
for axis, (what, reach) in zip(axes, columns.items()):
    axis.bar(range(len(reach)), reach, width=1.0, color=plots.COLOURS[0 if what == "activations" else 1])
    axis.set(xlabel="input channel", ylabel="largest absolute value", title=f"layer 0, mlp.Wo: {what}")
plots.show(figure, alt="Two bar charts over 256 input channels of one layer. Left: the largest activations differ much "
           "from channel to channel, with a few far above the rest. Right: the largest weights are more even.")

# %% [markdown]
# What to see: on the left a few channels set the scale for all, on the right there is room. **SmoothQuant** moves the
# difficulty across: divide channel *j* of the activations by $s_j$ and multiply column *j* of the weights with it. The
# product is the same. With
#
# $$ s_j = \frac{\max|x_j|^{\alpha}}{\max|w_j|^{1-\alpha}}, $$
#
# α = ½ leaves both sides with the same maximum. And the division costs nothing: it goes into the norm before. (The
# layer in the picture, our most uneven one, has none before it; below we smooth `Wqkv` and `Wi`.)

# %% [markdown]
# ### Exercise smoothing_factors — Smoothing factors · ★★☆ · 8 minutes


# %% tags=["exercise"]
def smoothing_factors(weight, reach, alpha):
    """What to divide each input channel's activations by: float32 [inputs].

    weight: [outputs, inputs]. reach: [inputs], the largest absolute activation of each channel. alpha: from 0 to 1.
    The factor of channel j is reach[j] ** alpha / (largest absolute weight of column j) ** (1 - alpha), however small
    they are; a channel with a reach of 0, or whose weights are all 0, has the factor 1.
    """
    ### BEGIN SOLUTION
    columns = weight.abs().amax(0)
    factors = reach**alpha / columns ** (1 - alpha)
    return torch.where((reach > 0) & (columns > 0), factors, 1.0)
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("smoothing_factors", smoothing_factors)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>A weight's column belongs to an input channel. Which axis is reduced?</details>
# <details><summary>Hint 2</summary>Compute all factors, then replace those of dead channels with
# <code>torch.where</code>.</details>

# %% [markdown]
# Does it help? Large language models have channels a hundred times larger than others; our small encoder does not. So
# we also make it *worse on purpose*, without changing what it computes: four channels of each norm are multiplied by
# 30, and the columns that read them divided by 30.


# %%
def readers(model):
    """(norm, the linear layer that reads it, its name): pairs that may pass factors to each other."""
    for index, layer in enumerate(model.model.layers):
        norm = model.model.embeddings.norm if index == 0 else layer.attn_norm
        if index > 0:  # layer 0's input is also the residual stream, which nobody divides
            yield norm, layer.attn.Wqkv, f"model.layers.{index}.attn.Wqkv"
        yield layer.mlp_norm, layer.mlp.Wi, f"model.layers.{index}.mlp.Wi"


def static_loss(model):
    """Loss with one grid a layer for all activations, ranges from ``real``."""
    found = activation_ranges.observe(model, real)
    return loss_of(int8_copy(model, reaches={name: (one.low, one.high) for name, one in found.items()}))


# %%
spiky = copy.deepcopy(model)
with torch.no_grad():
    for norm, linear, _ in readers(spiky):
        norm.weight[:4] *= 30
        linear.weight[:, :4] /= 30
before, after = static_loss(model), static_loss(spiky)
smoothed, plain = copy.deepcopy(spiky), copy.deepcopy(model)
for one in (smoothed, plain):
    found = activation_ranges.observe(one, real)
    for norm, linear, name in readers(one):
        activation_ranges.smooth(norm, linear, found[name].channels)
ids = held_out.inputs[:16]
with torch.no_grad():
    moved = max(float((model(ids).logits - one(ids).logits).abs().max()) for one in (spiky, smoothed, plain))
lesson.record("smoothing-moves", moved / float(model(ids).logits.detach().abs().max()))
rescued, harmless = static_loss(smoothed), static_loss(plain)
print(f"static int8: {before:.4f} nats; with spikes {after:.4f}; with spikes, smoothed {rescued:.4f}")
print(f"our encoder as it is, smoothed: {harmless:.4f}")

# %%
if full:
    lesson.record("static-loss", before - exact_loss)
    lesson.record("spikes-cost", after - before)
    lesson.record("smoothing-rescues", after - rescued)
    lesson.record("smoothing-plain", harmless - before)

# %% [markdown]
# All four models compute the same in fp32 (within {{smoothing-moves}} of the largest score). In static int8 the spikes
# cost {{spikes-cost}} nats, and smoothing gives {{smoothing-rescues}} of them back. Our encoder without spikes moves by
# {{smoothing-plain}}: what is not broken need not be mended.
#
# ## Four bits, in groups
#
# With 15 numbers the scale matters more. So neighbours in groups of 32 or so share a scale, at a price: a group of 32
# four-bit weights with an fp32 scale takes 5 bits a weight, not 4. Two of them share a byte:

# %%
codes = quantize(weight, 4, group=32)
packed = integers.pack_int4(codes.values)
assert torch.equal(integers.unpack_int4(packed), codes.values)
print(f"{codes.values.numel()} weights in {packed.numel()} bytes, and {codes.scale.numel()} scales: "
      f"{8 * codes.bytes / weight.numel():.1f} bits a weight")  # fmt: skip

# %%
kinds = lesson.choose(quick=((4, 32),), full=((8, None), (4, None), (4, 32), (3, None), (3, 32), (2, 32), (2, 8)))
lossy = {}
for bits, group in kinds:
    scales = {"group": group} if group else {"axis": 0}
    cost = 8 * sum(quantize(one, bits, **scales).bytes for one in matrices.values())
    cost /= sum(one.numel() for one in matrices.values())
    lossy[bits, group] = cost, loss_of(fake_copy(model, bits, group=group, activation_bits=None))
    where = f"groups of {group}" if group else "rows"
    print(f"{bits} bits, a scale for {where:12s}: {cost:5.2f} bits a weight, {lossy[bits, group][1]:.4f} nats")

# %%
if full:
    figure, axis = plt.subplots(figsize=(7, 4))
    for (bits, group), (cost, loss) in lossy.items():
        axis.plot(cost, loss, "o" if group else "s", color=plots.COLOURS[0 if group else 3])
        left = (bits, group) == (3, 32)  # on its right stands the next point's name
        axis.annotate(f"{bits} bits, {'groups of ' + str(group) if group else 'rows'}", (cost, loss), fontsize=9,
                      xytext=(-8 if left else 8, -4 if left else 4), textcoords="offset points",
                      ha="right" if left else "left")  # fmt: skip
    axis.axhline(exact_loss, color="grey", linestyle="--", label="fp32 (32 bits)")
    axis.set(xlabel="bits a weight, scales counted", ylabel="held-out loss (nats)", xlim=(2, 10))
    axis.legend()
    plots.show(figure, alt="Held-out loss against bits a weight: at eight bits the loss is fp32's, at four a little "
               "above, at three more, and at two bits it is far above; groups lie below rows of equal bits.")

# %% [markdown]
# What to see, in the stored run (the profile `quick` tries one grid only, and draws nothing): eight bits are free, four
# cost something, and between three and two the model falls off a cliff. Groups of 32 are worth their scales: three bits
# in groups take a little less than four in rows, and do better. Groups of 8 do not save two bits.

# %%
if full:
    lesson.record("int4-rows", lossy[4, None][1] - exact_loss)
    lesson.record("int4-groups", lossy[4, 32][1] - exact_loss)
    lesson.record("int2-groups", lossy[2, 32][1] - exact_loss)

# %% [markdown]
# In the stored run four bits cost {{int4-rows}} nats with a scale a row, {{int4-groups}} with groups of 32. Two bits
# cost {{int2-groups}}. Is that the end?
#
# ## Training with the rounding on
#
# The weights were never told that they would be rounded. Tell them: round in the forward pass (*fake quantization*),
# and train on. But the stairs are level almost everywhere, so their derivative is 0, and nothing would be learnt. The
# **straight-through estimator** leaves the rounding out on the way back: the gradient passes as if nothing had
# happened, except where the number lay beyond the grid. There, moving it changes nothing.

# %% [markdown]
# ### Exercise straight_through — Straight through · ★★☆ · 8 minutes


# %% tags=["exercise"]
def straight_through(x, gradient, scale, zero_point, low, high):
    """The gradient that goes back to x through a fake quantization: a new float32 tensor of x's shape.

    x: float32, what came in. gradient: float32, of x's shape, what comes back to the output. The grid: a number becomes
    round(x / scale) + zero_point, ties to even, which saturates below ``low`` and above ``high`` (whole numbers, both
    still on the grid). Where the whole number, before it saturates, is from ``low`` to ``high``, both included,
    the gradient passes unchanged; elsewhere it is 0.
    """
    ### BEGIN SOLUTION
    level = torch.round(x / scale) + zero_point
    return gradient * ((level >= low) & (level <= high))
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("straight_through", straight_through)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Compute the whole number <em>before</em> it is clamped: that tells whether it
# saturated.</details>
# <details><summary>Hint 2</summary>The scale appears only in that question; the gradient is not multiplied with
# it.</details>

# %%
x = (torch.randn(10_000) * 5).requires_grad_()
upstream, gradients = torch.randn(10_000), []
for fake in (lambda: fake_quantization.fake_quantize(x, torch.tensor(0.05), torch.tensor(7), -128, 127),
             lambda: torch.fake_quantize_per_tensor_affine(x, 0.05, 7, -128, 127)):  # fmt: skip
    x.grad = None
    y = fake()
    y.backward(upstream)
    gradients.append((y.detach(), x.grad.clone()))
unequal = sum(int((ours != theirs).sum()) for ours, theirs in zip(*gradients))
lesson.record("fake-quantize-unequal", unequal)
print(f"outputs and gradients that differ from torch's: {unequal}; gradients stopped: {int((x.grad == 0).sum())}")

# %% [markdown]
# Now the encoder with two bits a weight (three numbers: −1, 0 and 1), in groups of 32. Three contestants, the same
# batches, rates and number of steps for the last two: rounded without any training; trained a little *without* rounding
# and rounded afterwards (so that training alone gets its due); trained with the rounding on.

# %%
STEPS = lesson.choose(quick=4, full=120)
TUNE = Recipe(vocab_size=len(tokenizer), learning_rate=2e-3, batch_size=lesson.choose(quick=8, full=32), seed=7,
              precision="fp32")  # fmt: skip


def trained_on(model, recipe=TUNE, steps=STEPS):
    """A short further training of ``model`` itself; rates fall to zero."""
    optimizer = make_optimizer(model, recipe)
    for step, (inputs, labels) in zip(range(steps), tape.batches(recipe)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, (step + 1) / (steps + 1))
        train_step(model, optimizer, inputs, labels, recipe)
    return model.eval()


two = partial(fake_copy, bits=2, group=32, activation_bits=8)
longer = trained_on(copy.deepcopy(model))
contest = {"rounded": loss_of(two(model)), "trained, then rounded": loss_of(two(longer)),
           "trained with rounding": loss_of(trained_on(two(model))), "trained, in fp32": loss_of(longer)}  # fmt: skip
for name, loss in contest.items():
    print(f"{name:24s} {loss:.4f} nats")

# %%
if full:
    lesson.record("two-bits-rounded", contest["rounded"] - exact_loss)
    lesson.record("two-bits-control", contest["trained, then rounded"] - exact_loss)
    lesson.record("two-bits-trained", contest["trained with rounding"] - exact_loss)
    lesson.record("longer-fp32", contest["trained, in fp32"] - exact_loss)

# %% [markdown]
# Above fp32, in nats: rounded {{two-bits-rounded}}, trained and then rounded {{two-bits-control}}, trained with the
# rounding on {{two-bits-trained}}. {{qat-steps}} steps did that. (One run, one seed: the gaps are far larger than what
# seeds move in lesson @mlm_pretraining. The steps by themselves, in fp32, move the loss by {{longer-fp32}}.)
#
# torchao has the same under the name QAT: `prepare` puts fake quantization in, you train, `convert` makes it real. Here
# with its four-bit weights in groups:

# %%
from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
from torchao.quantization.qat import QATConfig

lesson.record("qat-steps", STEPS)
config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
theirs = copy.deepcopy(model)
quantize_(theirs, QATConfig(config, step="prepare"))
print("prepared: ", type(theirs.head.dense).__name__, f"{loss_of(theirs):.4f} nats")
trained_on(theirs, replace(TUNE, learning_rate=5e-4))  # four bits are nearly right already: small steps
prepared_loss = loss_of(theirs)
quantize_(theirs, QATConfig(config, step="convert"))
converted_loss = loss_of(theirs)
print("converted:", type(theirs.head.dense.weight).__name__, f"{prepared_loss:.4f} -> {converted_loss:.4f} nats")
lesson.record("convert-moves", abs(converted_loss - prepared_loss))
if full:
    lesson.record("qat-int4", converted_loss - exact_loss)

# %% [markdown]
# Converting changed the loss by {{convert-moves}}: what was trained is what is stored. Four bits are now {{qat-int4}}
# nats above the fp32 model that we began with; before the training the same grid stood at `prepared` above. (There is
# no control here: part of that gain may be the training's own.)
#
# > **Misconception: "quantization is compression, done once training is over."** Down to eight bits it is, and costs
# > next to nothing. Below four it is a matter of training: the cell above gave two bits to the same encoder
# > three times, and only one of the models is of use.
#
# ## What the libraries do to a model
#
# **torchao** leaves the modules alone and changes the *type of their weights*; the type decides which kernel runs. The
# embedding table stays in fp32, so the file shrinks less:

# %%
ao = int8_copies.torchao_copy(model)
print(type(model.decoder.weight).__name__, "->", type(ao.decoder.weight).__name__)
print(f"file: {int8_copies.disk_bytes(ao) / int8_copies.disk_bytes(model):.2f} times fp32's, "
      f"loss {loss_of(ao):.4f}")  # fmt: skip

# %% [markdown]
# (`torch.ao.quantization.quantize_dynamic`, which most tutorials show, is **deprecated**; torchao takes its place.)
#
# **ONNX Runtime** has no modules. The model is exported as a graph, and quantizing it replaces nodes. *Dynamic*: a
# `MatMul` with a weight becomes `DynamicQuantizeLinear` (look at the activations, choose a grid), `MatMulInteger` and
# two `Mul`. *Static*: grids are constants; `QuantizeLinear` and `DequantizeLinear` stand around each product, and the
# runtime fuses them when it loads the file.

# %%
example = {name: value[:4, :32] for name, value in real[0].items()}
plain = onnx_files.export_onnx(model, folder / "encoder.onnx", example)
dynamic = onnx_files.int8_onnx(plain, folder / "dynamic.onnx")
static = onnx_files.static_int8_onnx(plain, folder / "static.onnx", real)
nodes = {path.stem: onnx_files.operations(path) for path in (plain, dynamic, static)}
kinds = [kind for kind, _ in sum(nodes.values(), start=type(nodes["encoder"])()).most_common()
         if len({of_file[kind] for of_file in nodes.values()}) > 1][:8]  # fmt: skip
print(f"{'':24s}" + "".join(f"{name:>10s}" for name in nodes))
for kind in kinds:
    print(f"{kind:24s}" + "".join(f"{of_file[kind]:10d}" for of_file in nodes.values()))

# %%
with torch.no_grad():
    logits = model(**real[0]).logits
    difference = float((OnnxModel(plain)(**real[0]) - logits).abs().max() / logits.abs().max())
lesson.record("onnx-difference", difference)
losses = {path.stem: loss_of(serving_routes.served(model, OnnxModel(path))) for path in (plain, dynamic, static)}
print(f"fp32 graph and model differ by {difference:.0e} of the largest score; losses:",
      ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))  # fmt: skip
if full:
    lesson.record("onnx-dynamic-loss", losses["dynamic"] - exact_loss)
    lesson.record("onnx-static-loss", losses["static"] - exact_loss)

# %% [markdown]
# In the stored run the dynamic graph adds {{onnx-dynamic-loss}} nats, the static one {{onnx-static-loss}}: one grid for
# all tokens, and ONNX Runtime puts what comes *out* of each product on a grid as well.
#
# ## Calibration: whose ranges?
#
# Static quantization is as good as the text that its ranges come from. We measure them on much text, on little, on
# random ids, and on the wrong kind of row, and take the same held-out loss each time.

# %%
noise_ids = torch.randint(5, len(tokenizer), real[0]["input_ids"].shape, generator=torch.Generator().manual_seed(0))
padding = torch.full_like(noise_ids, tokenizer.pad_token_id)
sources = {"64 rows of text": real, "16 rows": real[:1],
           "1 row": [{name: value[:1] for name, value in real[0].items()}],
           "8 tokens": [{name: value[:1, :8] for name, value in real[0].items()}],
           "random ids": [{"input_ids": noise_ids, "attention_mask": torch.ones_like(noise_ids)}],
           "padding only": [{"input_ids": padding, "attention_mask": torch.ones_like(padding)}]}  # fmt: skip
calibrated = {}
for name, batches in sources.items():
    found = activation_ranges.observe(model, batches)
    calibrated[name] = loss_of(int8_copy(model, reaches={at: (one.low, one.high) for at, one in found.items()}))
    print(f"{name:16s} {calibrated[name]:.4f} nats")
if full:
    lesson.record("calibration-text", calibrated["64 rows of text"] - exact_loss)
    lesson.record("calibration-row", calibrated["1 row"] - exact_loss)
    lesson.record("calibration-tokens", calibrated["8 tokens"] - exact_loss)
    lesson.record("calibration-random", calibrated["random ids"] - exact_loss)
    lesson.record("calibration-padding", calibrated["padding only"] - exact_loss)

# %% [markdown]
# Above fp32: 64 rows {{calibration-text}}, a single row {{calibration-row}}, eight tokens {{calibration-tokens}},
# nothing but padding {{calibration-padding}}. A range that is too narrow saturates what matters. So a few dozen rows
# are enough, and eight tokens are not. Random ids give {{calibration-random}}, hardly worse than text: minimum and
# maximum are made by single tokens, and random ids hold all sorts of them. Count on that only after you have looked.
#
# ## Which layers mind?
#
# Not all layers suffer alike. Round one at a time, hard (three bits, a scale a row), and see what the loss does.

# %%
def cost_of(names):
    """What the loss grows by when these layers are rounded to three bits."""
    return loss_of(fake_copy(model, 3, activation_bits=None, only=names)) - exact_loss


alone = {name: cost_of([name]) for name in matrices}
ranked = sorted(alone, key=alone.get, reverse=True)
together = cost_of(list(matrices))

# %%
figure, axis = plt.subplots(figsize=(8, 4.2))
axis.barh(range(len(ranked)), [alone[name] for name in ranked], color=plots.COLOURS[0])
axis.set_yticks(range(len(ranked)), [name.removeprefix("model.") for name in ranked], fontsize=9)
axis.invert_yaxis()
axis.set(xlabel="loss above fp32 (nats) when this layer alone has three bits")
plots.show(figure, alt="Bars, one a layer, sorted: what the held-out loss grows by when that layer alone is rounded to "
           "three bits. A few layers cost much more than the rest.")

# %% [markdown]
# What to see: a few layers carry most of the damage. The head's dense layer is one of them, though it is small. It
# *started at the identity* (lesson @mlm_pretraining), so each of its rows still has one large weight on the diagonal
# and 127 small ones: the outlier from above, this time by design. Keep such layers in fp32. To know whether the
# ranking is worth anything, the same number of layers chosen *at random* stands beside it.

# %%
draw, kept = random.Random(0), {}
for count in lesson.choose(quick=(1,), full=(1, 2, 4)):
    by_rank = cost_of(ranked[count:])
    at_random = [cost_of(draw.sample(ranked, len(ranked) - count)) for _ in range(lesson.choose(quick=1, full=5))]
    kept[count] = by_rank, sum(at_random) / len(at_random)
    share = sum(matrices[name].numel() for name in ranked[:count]) / sum(one.numel() for one in matrices.values())
    print(f"{count} of {len(ranked)} layers in fp32 ({share:.0%} of the weights): {by_rank:.4f} nats above, "
          f"at random {kept[count][1]:.4f}")  # fmt: skip
print(f"none in fp32: {together:.4f}")
if full:
    lesson.record("sensitive-first", alone[ranked[0]] / alone[ranked[len(ranked) // 2]])  # the last may cost nothing
    lesson.record("three-bits", together)
    lesson.record("kept-one", kept[1][0])
    lesson.record("kept-one-random", kept[1][1])
    lesson.record("kept-share", 100 * matrices[ranked[0]].numel() / sum(one.numel() for one in matrices.values()))

# %% [markdown]
# All layers at three bits cost {{three-bits}} nats. With the most sensitive one in fp32 it is {{kept-one}}, with one
# drawn at random {{kept-one-random}} on average: {{kept-share}} % of the weights, and most of the harm.
#
# ## Side by side: a task
#
# The test of a quantized model is the task. Three taggers of names (lesson @fine_tuning, three seeds), each quantized
# by every route, scored on the test countries; what is compared is the difference to fp32, seed by seed.

# %%
TAGS = ["O", "B-PER", "I-PER"]
names = labelled.person_names()
COUNT, TRAIN = lesson.choose(quick=(16, 4), full=(800, 150))
SEEDS = range(lesson.choose(quick=2, full=3))
test = names["test"][: lesson.choose(quick=40, full=None)]


def encoded(rows):
    return encoding.encode_tags(tokenizer, [row.words for row in rows], [row.tags for row in rows], TAGS)


def token_f1(model):
    found = fitting.predict(model, test_rows, precision="fp32")
    return scores.token_score([row.tags for row in test], [[TAGS[tag] for tag in row] for row in found]).f1


def tagger(seed):
    torch.manual_seed(seed)
    made = task_heads.TokenClassifier(copy.deepcopy(model.model), len(TAGS))
    sample = encoded(random.Random(seed).sample(names["train"], COUNT))
    fitting.fit(made, sample, fitting.Settings(TRAIN, learning_rate=1e-3, seed=seed, precision="fp32"))
    return made.eval()


test_rows = encoded(test)

# %%
f1 = {}  # route -> token F1 of each seed
for seed in SEEDS:
    for name, route in serving_routes.routes(tagger(seed), example, folder / f"seed{seed}", real).items():
        f1.setdefault(name, []).append(token_f1(route.model))
paired = {name: intervals.interval(a - b for a, b in zip(of_route, f1["fp32"])) for name, of_route in f1.items()}
for name, of_route in f1.items():
    low, high = paired[name].low, paired[name].high
    print(f"{name:22s} token F1 {intervals.interval(of_route).mean:.4f}, difference to fp32 {paired[name].mean:+.4f} "
          f"({low:+.4f} to {high:+.4f})")  # fmt: skip
if full:
    lesson.record("f1-fp32", intervals.interval(f1["fp32"]).mean)
    lesson.record("f1-onnx-dynamic", paired["ONNX dynamic"].mean)
    lesson.record("f1-worst", max(abs(one.mean) for one in paired.values()))

# %% [markdown]
# fp32 has {{f1-fp32}}; ONNX Runtime's dynamic int8 moves it by {{f1-onnx-dynamic}}, and no route by more than
# {{f1-worst}}. No difference can be seen with three seeds, whose
# intervals are about a hundredth wide.
#
# ## Side by side: size and time
#
# Our encoder is tiny: a million weights, half of them a table. So the same routes on one of **22 million** (six layers
# of 384, MiniLM's shape). Its weights are random, since no real ones can be fetched offline: time and size do not mind,
# and for quality we compare outputs (a best case, for random weights have no trained outliers). Every route takes its
# turn in every round.

# %%
torch.manual_seed(0)
shape = lesson.choose(quick={"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 128, "vocab_size": 500},
                      full={"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536})  # fmt: skip
large = BertModel(BertConfig(**shape, num_attention_heads=shape["hidden_size"] // 32), add_pooling_layer=False).eval()
millions = sum(one.numel() for one in large.parameters()) / 1e6


def random_batch(rows, length, seed=0):
    ids = torch.randint(5, large.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


calibration = [random_batch(4, 64, seed) for seed in range(1, 5)]
found = serving_routes.routes(large, random_batch(2, 16), folder / "large", calibration)

# %%
one, eight = (random_batch(rows, lesson.choose(quick=16, full=128), seed=9) for rows in (1, 8))
exact = found["fp32"](**eight).float()
quality = {name: sqnr(exact, route(**eight).float()) for name, route in found.items()}
ROUNDS = lesson.choose(quick=2, full=21)
times = {rows: timing.side_by_side({name: partial(route, **batch) for name, route in found.items()}, ROUNDS)
         for rows, batch in ((1, one), (8, eight))}  # fmt: skip
print(f"{millions:.1f} M weights; load of this machine, these two threads included: {timing.busy():.1f}")

# %%
print(f"{'':20s}   file  memory |  1 row: p50   p95 | 8 rows: p50   p95   rows/s  times as fast    | output")
for name, route in found.items():
    first, batch = timing.summary(times[1][name]), timing.summary(times[8][name])
    faster = timing.ratio(times[8]["fp32"], times[8][name])
    print(f"{name:20s} {route.disk / 1e6:6.1f}  {route.memory / 1e6:6.1f} | {1e3 * first.p50:11.1f} "
          f"{1e3 * first.p95:5.1f} | {1e3 * batch.p50:11.1f} {1e3 * batch.p95:5.1f}  {8 / batch.p50:7.0f}  "
          f"{faster.median:5.2f} ({faster.low:.2f} to {faster.high:.2f}) | {quality[name]:3.0f} dB")  # fmt: skip
print("file and memory in MB, times in ms; memory of ONNX Runtime: what a process grows by; of torch: all weights")

# %% tags=["cover"]
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
routes = list(found)
for axis, rows in ((left, 1), (right, 8)):
    quartiles = [timing.ratio(times[rows]["fp32"], times[rows][name]) for name in routes]
    colours = [plots.COLOURS[0 if "ONNX" in name else 1] for name in routes]
    axis.barh(range(len(routes)), [of.median for of in quartiles], color=colours,
              xerr=np.array([[of.median - of.low, of.high - of.median] for of in quartiles]).T)  # fmt: skip
    axis.axvline(1, color="black", linewidth=1)
    axis.set(xlabel="times as fast as fp32", title=f"{rows} × {eight['input_ids'].shape[1]} tokens")
left.set_yticks(range(len(routes)), routes)
left.invert_yaxis()
plots.show(figure, alt="Two bar charts, times as fast as fp32 in torch, for each route, for one and eight rows of an "
           "encoder with 22 million weights: dynamic int8 and bf16 are ahead of fp32, weight-only int8 hardly is.")

# %%
if full:
    speed = {name: timing.ratio(times[8]["fp32"], times[8][name]).median for name in routes}
    lesson.record("speed-onnx-dynamic", speed["ONNX dynamic"])
    lesson.record("speed-onnx-static", speed["ONNX static"])
    lesson.record("speed-onnx-fp32", speed["ONNX fp32"])
    lesson.record("speed-bf16", speed["bf16 weights"])
    lesson.record("speed-torchao", speed["torchao dynamic"])
    lesson.record("speed-weight-only", speed["torchao weight-only"])
    lesson.record("file-onnx-dynamic", found["ONNX dynamic"].disk / found["fp32"].disk)
    lesson.record("file-torchao", found["torchao dynamic"].disk / found["fp32"].disk)
    lesson.record("output-onnx-dynamic", quality["ONNX dynamic"])

# %% [markdown]
# What to see. ONNX Runtime's dynamic int8 is {{speed-onnx-dynamic}} times as fast as fp32 in torch, with a file of
# {{file-onnx-dynamic}}. That is not the runtime's doing: its fp32 has {{speed-onnx-fp32}} of torch's speed. torchao
# without a compiler gives {{speed-torchao}}, and a file of {{file-torchao}}, since its table stays in fp32. Weight-only
# int8 gives {{speed-weight-only}}: it unpacks weights before it multiplies, which pays only where memory is the
# bottleneck. bf16 gives {{speed-bf16}} with no calibration and no other runtime. That is the bar, and in the stored run
# few of the int8 routes pass it, none by what the instructions promise: norms, softmax and the conversions between
# grids stay.
#
# ### With real weights, and with a compiler
#
# Recorded beforehand, because it takes many minutes: MiniLM with its real weights, fine-tuned to the names with three
# seeds, every route, and two that start slowly (`torch.compile`).

# %%
store = lesson.root / "data" / "measured" / "quantization_minilm.json"
stored = json.loads(store.read_text(encoding="utf-8"))
print(f"stored: {stored['date']}, {stored['machine']}, torch {stored['torch']}, `{stored['command']}`")
shown = stored["speed"]["8 x 128"]
for name, row in sorted(shown.items(), key=lambda pair: -pair[1]["times_as_fast"][1]):
    low, median, high = row["times_as_fast"]
    uncompiled = name.removesuffix(", compiled")  # which has the same weights
    moved = stored["minus_fp32"].get(uncompiled)
    score = f"token F1 {moved[0]:+.4f} ({moved[1]:+.4f} to {moved[2]:+.4f})" if moved else ""
    megabytes = stored["bytes"].get(uncompiled, {}).get("disk", 0) / 1e6
    size = f"{megabytes:6.1f} MB" if megabytes else " " * 9
    print(f"{name:36s} {median:5.2f} ({low:.2f} to {high:.2f}) times as fast  {size}  {score}")
lesson.record("minilm-speed", shown["ONNX dynamic"]["times_as_fast"][1])
lesson.record("minilm-file", stored["bytes"]["ONNX dynamic"]["disk"] / stored["bytes"]["fp32"]["disk"])
lesson.record("minilm-f1", stored["minus_fp32"]["ONNX dynamic"][0])
TABLE = "torchao dynamic, table too"
lesson.record("minilm-compiled", shown[f"{TABLE}, compiled"]["times_as_fast"][1])
lesson.record("minilm-compiled-file", stored["bytes"][TABLE]["disk"] / stored["bytes"]["fp32"]["disk"])
lesson.record("minilm-compiled-f1", stored["minus_fp32"][TABLE][0])

# %% [markdown]
# On real weights ONNX Runtime's dynamic int8 is {{minilm-speed}} times as fast at {{minilm-file}} of the file, and its
# token F1 moves by {{minilm-f1}}. torchao with its table in int8, too, and with the compiler is {{minilm-compiled}}
# times as fast at {{minilm-compiled-file}} of the file, and moves F1 by {{minilm-compiled-f1}}. Without the compiler
# that table would be unpacked as a whole at every call; compiled, only the rows that are read are. The price is a start
# that takes half a minute, and again for every other shape of a batch.
#
# ## What goes wrong, in words

# %% tags=["nbval-check-output"]
broken = copy.deepcopy(model)
with torch.no_grad():
    broken.head.dense.weight[0, 0] = float("nan")
foreign = [{"input_ids": torch.full((2, 8), 30_000), "attention_mask": torch.ones(2, 8).long()}]
attempts = {
    "quantized twice": lambda: int8_copy(int8_copy(model)),
    "a weight that is nan": lambda: int8_copy(broken),
    "a norm in int8": lambda: int8_copy(model, only=["model.final_norm"]),
    "calibration data of another tokenizer": lambda: activation_ranges.observe(model, foreign),
    "no calibration data": lambda: activation_ranges.observe(model, []),
    "nine bits": lambda: quantize(weight, 9),
    "groups that do not fit": lambda: quantize(weight, 4, group=33),
}
for what, attempt in attempts.items():
    try:
        attempt()
    except ValueError as error:
        print(f"{what}:\n    {error}")

# %% [markdown]
# ## With a GPU
#
# By their data sheets A100 and H100 multiply int8 up to twice as fast as bf16; fp8 came with Ada and Hopper. `python -m
# benchmarks.quantization --device cuda` measures both there and stores what it finds; it is shown here as it was
# stored.

# %%
store = lesson.root / "data" / "measured" / "quantization_gpu.json"
if store.is_file():
    for name, value in json.loads(store.read_text(encoding="utf-8")).items():
        print(f"{name:12s} {value}")
else:
    print("No figures of a GPU are stored yet: nobody has run the benchmark on one. The command above writes them.")

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
# - Jacob et al. 2018, [Quantization and training of neural networks for integer-arithmetic-only
#   inference](https://arxiv.org/abs/1712.05877): affine grids, zero points, training with fake quantization.
# - Bengio et al. 2013, [Estimating or propagating gradients](https://arxiv.org/abs/1308.3432): the straight-through
#   estimator.
# - Krishnamoorthi 2018, [Quantizing deep networks](https://arxiv.org/abs/1806.08342): per channel, calibration,
#   a survey.
# - Dettmers et al. 2022, [LLM.int8()](https://arxiv.org/abs/2208.07339): outliers in activations; Xiao et al. 2023,
#   [SmoothQuant](https://arxiv.org/abs/2211.10438).
# - Shen et al. 2020, [Q-BERT](https://arxiv.org/abs/1909.05840): groups, and sensitivity by layer.
# - [torchao](https://docs.pytorch.org/ao/stable/) and
#   [ONNX Runtime's quantization](https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
