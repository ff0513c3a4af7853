# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   coursekit:
#     budget:
#       quick: {minutes: 2.0, memory_mb: 3500}
#       full: {minutes: 6.0, memory_mb: 4500}
# ---

# %% [markdown]
# # Distributed training
#
# **In this lesson several processes train one model, and you prove that they compute what one would.**
#
# *Time*: about 50 minutes of reading and exercises; the machine works for three of them.
#
# *You need to know*: gradients and AdamW (lesson @loss_derivation), the pretraining loop (lesson @mlm_pretraining).
#
# *You will be able to*
# - write an all-reduce from sends and receives, and count its bytes;
# - train on N ranks with the gradients of one, also when ranks hold unequal numbers of scored tokens;
# - say what ZeRO and FSDP shard, and how many bytes that leaves on a rank;
# - start ranks with `torchrun`, read the right traceback, and lose a rank without losing the run;
# - predict, from small measurements, where more processes stop paying.

# %% tags=["parameters"]
profile = "auto"

# %%
from coursekit import start

lesson = start("distributed_training", profile)

# %%
import json
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from safetensors.torch import load_file

from sslcourse.data import corpus, token_files, tokenizer
from sslcourse.measure import hardware
from sslcourse.studies import pipeline_timetable, scaling
from sslcourse.studies.scaling import Job, Machine, Network
from sslcourse.train import across_ranks, token_rows
from sslcourse.train.recipe import Recipe
from sslcourse.train.start_processes import RankFailed, torchrun
from coursekit import Slider, check, live_picture, plots

full = lesson.profile != "quick"
scratch = tempfile.TemporaryDirectory(prefix="lesson06-")  # gone with the kernel
folder = Path(scratch.name)

# %% [markdown]
# ## Ranks
#
# A batch of 4,096 rows does not fit one GPU, or takes too long on it. So *N* processes, called **ranks**, each compute
# a part. They run the same program and differ in one number, their rank, from 0 to N − 1. What they cannot do is look
# into each other's memory: everything that one knows and another needs is *sent*.
#
# On a laptop the ranks are processes on its cores and talk through `gloo`; on a cluster each has a GPU, and `NCCL`
# carries the messages. The program is the same.

# %% [markdown]
# ## All for one: a sum that everybody gets
#
# Almost all of distributed training is one operation: every rank has a tensor of gradients, and every rank needs the
# **sum** of all of them. That is an *all-reduce*.
#
# The obvious way sends everything to rank 0, which adds and sends back. Then rank 0 moves $N - 1$ times as many bytes
# as anybody else, and all wait for it. The **ring** is fair: cut the tensor into N parts; at each turn every rank sends
# *one* part to its right neighbour and adds the one that arrives from its left. After N − 1 turns each rank owns one
# part that is complete. Another N − 1 turns carry the complete parts round.
#
# Here with three simulated ranks. Each cell says whose numbers are in the sum so far:

# %%
def ring(world):
    """Before the first turn and after each: holds[rank][part], whose numbers are added up in it."""
    holds = [[{rank} for _ in range(world)] for rank in range(world)]
    yield [list(of_rank) for of_rank in holds]
    for turn in range(2 * (world - 1)):
        sent = sends(world, turn)
        going = [holds[rank][part] for rank, part in enumerate(sent)]
        for rank, (part, arrives) in enumerate(zip(sent, going)):
            right = (rank + 1) % world
            holds[right][part] = holds[right][part] | arrives if turn < world - 1 else arrives
        yield [list(of_rank) for of_rank in holds]


def sends(world, turn):
    """The part that each rank sends at a turn: first its own, then what it has just made; later what just arrived."""
    adding = turn < world - 1
    return [(rank + (0 if adding else 1) - turn % (world - 1)) % world for rank in range(world)]


# %%
world = 3
history = list(ring(world))
for ranks in range(2, 9):
    *_, last = ring(ranks)
    assert all(part == set(range(ranks)) for of_rank in last for part in of_rank)

# %% tags=["cover"]
figure, axes = plt.subplots(1, len(history), figsize=(12, 3))
for turn, (axis, state) in enumerate(zip(axes, history)):
    done = [[len(part) == world for part in of_rank] for of_rank in state]
    axis.imshow(np.array(done, dtype=float), cmap="Blues", vmin=0, vmax=3, aspect="auto")
    for rank in range(world):
        for part in range(world):
            axis.text(part, rank, "+".join(map(str, sorted(state[rank][part]))), ha="center", va="center", fontsize=10)
    axis.set_title("start" if turn == 0 else f"turn {turn}: " + ("add" if turn < world else "pass on"), fontsize=10)
    axis.set_xticks(range(world), [f"part {part}" for part in range(world)], fontsize=8)
    axis.set_yticks(range(world), [f"rank {rank}" for rank in range(world)] if turn == 0 else [""] * world, fontsize=8)
    axis.grid(False)
figure.supxlabel("part of the tensor; the numbers say whose are added up in it", fontsize=9)
axes[0].set_ylabel("rank")
plots.show(
    figure,
    alt="Five tables of three ranks by three parts: at first each rank has its own numbers; after two turns of adding "
    "each rank has one part with the numbers of all three; after two more turns every rank has every part.",
)

# %% [markdown]
# What to see: after the turns of adding, each row has exactly one complete part (shaded), and it is another one in each
# row. That half alone is called **reduce-scatter**, the second half **all-gather**.
#
# The bytes: at each turn a rank sends one N-th of the tensor, 2 (N − 1) turns in all, so
#
# $$\text{bytes sent by a rank} = 2\,\frac{N-1}{N} \cdot \text{size},$$
#
# never more than twice the tensor, *however many ranks there are*. That is why data parallelism scales at all.
#
# Walk through it with other numbers of ranks. An arrow shows what a rank sends in the turn that comes next; the last
# rank's right neighbour is rank 0. On the right stand the bytes that each rank has sent so far, the ring's way and the
# obvious way, in which rank 0 takes in a whole tensor a turn and then sends a whole sum a turn. The sliders need a
# running notebook and obey the arrow keys; the picture is the one at their start.


# %%
def draw_parts(axis, world, turn):
    """Ranks by parts after so many turns: whose numbers are in each, and what goes where at the next turn."""
    state = list(ring(world))[turn]
    shades = [[len(part) / world for part in of_rank] for of_rank in state]
    axis.imshow(shades, cmap="Blues", vmin=0, vmax=2, aspect="auto")
    for rank, of_rank in enumerate(state):
        for part, whose in enumerate(of_rank):
            said = "all" if len(whose) == world else "".join(map(str, sorted(whose)))
            weight = "bold" if said == "all" else "normal"
            axis.text(part, rank, said, ha="center", va="center", fontsize=9, weight=weight)
    adding, over = turn < world - 1, turn == 2 * (world - 1)
    for rank, part in enumerate([] if over else sends(world, turn)):
        look = {"arrowstyle": "-|>", "color": plots.COLOURS[3 if adding else 2], "linewidth": 2}
        for begin in (rank, -1) if rank == world - 1 else (rank,):  # round the corner: out below, in again above
            axis.annotate("", (part, begin + 0.78), (part, begin + 0.2), arrowprops=look)
    goes_on = "finished" if over else "next, " + ("add what arrives" if adding else "pass on what is complete")
    axis.set_title(f"after turn {turn} of {2 * (world - 1)}: {goes_on}", fontsize=11)
    axis.set(xlabel="part; digits say whose numbers are added up in it", ylim=(world - 0.15, -0.85))
    axis.set_xticks(range(world), [f"part {part}" for part in range(world)], fontsize=8)
    axis.set_yticks(range(world), [f"rank {rank}" for rank in range(world)], fontsize=8)
    axis.grid(False)


# %%
def ring_figure(turn, ranks):
    """The ring after so many turns (or after its last, if those are more), beside the bytes of both ways."""
    world, turn = int(ranks), int(min(turn, 2 * (ranks - 1)))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), width_ratios=(3, 2))
    draw_parts(left, world, turn)
    to_first, back = min(turn, world - 1), max(0, turn - world + 1)  # turns of the obvious way: in, and out again
    ways = {
        "ring": [turn / world] * world,
        "all to rank 0 and back": [float(back), *[float(rank <= to_first) for rank in range(1, world)]],
    }
    for (way, sent), place, look in zip(ways.items(), (-0.2, 0.2), ({}, {"hatch": "//", "edgecolor": "white"})):
        right.barh([rank + place for rank in range(world)], sent, 0.36, label=way, **look)
    right.axvline(2 * (world - 1) / world, color="black", linestyle=":", label="the ring at its end")
    right.set(xlim=(0, max(2.2, world - 0.8)), ylim=(world - 0.4, -0.6), xlabel="sent so far, in sizes of the tensor",
              title=f"a turn sends 1/{world} of the tensor, or all of it")  # fmt: skip
    right.title.set_fontsize(11)
    right.set_yticks(range(world), [f"rank {rank}" for rank in range(world)], fontsize=8)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=8)
    return figure


# %%
live_picture(
    ring_figure,
    alt="Left, a table of ranks by parts of the tensor: digits in a cell say whose numbers are added up in it, and "
    "arrows from each rank to the next what is sent at the turn that follows, one other part for each rank. Right, "
    "bars of what each rank has sent so far: equal for all ranks in the ring, never twice the tensor; where all send "
    "to rank 0 and back, rank 0 alone sends one tensor less than there are ranks. Sliders set turn and ranks.",
    turn=Slider("turns made", tuple(range(15)), start=2),
    ranks=Slider("ranks", tuple(range(2, 9)), start=4),
)

# %% [markdown]
# What to see: at every turn each rank sends *one* part and no two ranks the same one, so all links work at once. In the
# middle each rank has one part that says "all"; from there on nothing is added any more. Then move the ranks: the
# ring's bars end left of two tensors with two ranks and with eight, and those of rank 0 on the obvious way grow by a
# tensor with every rank. Both ways take the same number of turns, but a turn of the ring carries a smaller part the
# more ranks there are.

# %% [markdown]
# ### Exercise reduce_scatter — Reduce-scatter · ★★★ · 15 minutes
#
# Write the first half, as one rank sees it. Your function runs on all ranks at once. `exchange(part)` sends a tensor to
# the right neighbour and returns what the left one sent in the same turn.


# %% tags=["exercise"]
def reduce_scatter(rank, world, parts, exchange):
    """Part (rank + 1) % world, summed over all ranks.

    parts: a list of this rank's own ``world`` tensors of one shape, whatever that is; leave the list and the tensors as
    they are. exchange(tensor) -> tensor must be called exactly world - 1 times, with one part each time (world may be
    1). At turn t = 0, 1, ... a rank sends part (rank - t) % world, with all that has been added to it so far, and so
    receives part (rank - t - 1) % world.
    """
    ### BEGIN SOLUTION
    going = parts[rank]
    for turn in range(world - 1):
        going = parts[(rank - turn - 1) % world] + exchange(going)
    return parts[0].clone() if world == 1 else going
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("reduce_scatter", reduce_scatter)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>At turn 0 you send your own part number <code>rank</code> as it is.</details>
# <details><summary>Hint 2</summary>What you send at a turn is what you made at the turn before: your own part plus what
# arrived.</details>
# <details><summary>Hint 3</summary>After the last turn you have made part <code>(rank + 1) % world</code>.</details>

# %% [markdown]
# ## Between real processes
#
# `sslcourse/train/rings.py` has the same ring with `dist.isend` and `dist.irecv`. A notebook is one process, so we
# start others, by `torchrun`, on a module of this package. Each rank prints; we get the outputs in order. The module,
# `sslcourse/studies/rank_proofs.py`, computes everything twice: with all ranks, and alone.

# %%
RANKS = lesson.choose(quick=(2,), full=(2, 3))
equal = {}
for world in RANKS:
    said = torchrun("sslcourse.studies.rank_proofs", processes=world, timeout=180)
    equal[world] = json.loads(said[0])
    bytes_sent = {share for of_rank in equal[world]["collectives"] for share in of_rank["bytes"]}
    right = all(of_rank["all-reduce"] and of_rank["reduce-scatter"] for of_rank in equal[world]["collectives"])
    print(f"{world} ranks: ring equals dist.all_reduce: {right}; bytes sent over 2 (N - 1) / N · size: {bytes_sent}")
    assert right
    lesson.record("ring-bytes", max(bytes_sent))

# %% [markdown]
# ## Data parallel: N ranks, one gradient
#
# Every rank has a copy of the model. Each takes its rows of the batch, computes gradients, and the ranks average them
# by an all-reduce. Then all make the same step and stay equal.
#
# The trap is the word *average*. A batch's loss is a mean over its **scored tokens** (those that masking chose, most of
# which show `[MASK]`), and ranks hold unequal numbers of them. Say rank 0 has 3 scored tokens and rank 1 has 27. The
# mean of their two means gives each of the three tokens nine times the weight of each of the 27. It is another loss,
# and nobody sees it: training runs, a little worse.
#
# So each rank must divide its *sum* by the count of **all** ranks. And since `DistributedDataParallel` (**DDP**),
# torch's own data parallelism, divides by the number of ranks afterwards, multiply by it beforehand.

# %% [markdown]
# ### Exercise rank_loss — The loss of one rank · ★★☆ · 8 minutes
#
# `total(number)` adds a number up over all ranks. It is a collective: every rank must call it, or the others wait.


# %% tags=["exercise"]
def rank_loss(loss_sum, count, world, total):
    """What this rank calls ``backward`` on, so that gradients *averaged* over ranks are those of the global mean.

    loss_sum: sum of the losses at this rank's scored tokens, a tensor with a graph. count: how many there are; 0 is
    possible (loss_sum is then 0, and its graph gives zeros). world: number of ranks. total(number) -> its sum over all
    ranks, a float; call it exactly once on every rank, with the count. At least one rank has a scored token.
    """
    ### BEGIN SOLUTION
    return loss_sum * world / total(count)
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("rank_loss", rank_loss)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Write the global mean as a sum over ranks: which factor stands before this rank's
# <code>loss_sum</code>?</details>
# <details><summary>Hint 2</summary>The average over ranks divides by <code>world</code>; undo that.</details>

# %% [markdown]
# Now the real thing. Each rank has another number of rows and of scored tokens, the last rank has **none**, and the
# gradients are compared with those of one process on the whole batch: by hand with one `all_reduce`, by
# DDP, by FSDP2 (explained under *Shards*), and with two accumulated micro-batches: parts of a batch whose gradients add
# up, and which `no_sync` exchanges once, at the last part. In `one row` the whole batch
# is one row, so that all ranks but the first have nothing at all. The figure is the largest difference, as a share of
# the largest gradient; fp32 itself rounds at 6e-8.
#
# A detail: the package multiplies by the number of ranks *after* the backward pass. In mathematics that is the same. In
# fp32 a factor of 3 in front makes every later number round elsewhere than in one process.

# %%
for world, found in equal.items():
    print(f"{world} ranks")
    for how, difference in found["data_parallel"].items():
        print(f"    {how:18s} {difference:.1e}")
of_all = [found["data_parallel"] for found in equal.values()]
exact = [name for name in of_all[0] if name != "mean of means"]
lesson.record("gradient-difference", max(one[name] for one in of_all for name in exact))
lesson.record("mean-of-means", min(one["mean of means"] for one in of_all))

# %% [markdown]
# > **Misconception: "averaging is averaging."** The line `mean of means` is what a loop gives in which every rank calls
# > its own mean loss `.backward()`. In the stored run its gradient is off by at least {{mean-of-means}} of the largest
# > one, where the right way is off by {{gradient-difference}}. (With two ranks, one of them without a scored token, it
# > is simply halved. With three, tokens weigh unequally, too.)

# %% [markdown]
# ### After ten steps
#
# Equal gradients up to rounding give equal weights up to rounding. For every optimiser?

# %%
for world, found in equal.items():
    print(f"{world} ranks, largest difference of a weight after ten steps:",
          {name: f"{difference:.0e}" for name, difference in found["ten_steps"].items()})  # fmt: skip
steps = [found["ten_steps"] for found in equal.values()]
lesson.record("sgd-weights", max(one["sgd fp32"] for one in steps))
lesson.record("adamw-weights-64", max(one["adamw fp64"] for one in steps))
lesson.record("adamw-weights-32", max(one["adamw fp32"] for one in steps))

# %% [markdown]
# SGD in fp32 stays within {{sgd-weights}}. AdamW in fp32 is off by {{adamw-weights-32}}, and in fp64 by
# {{adamw-weights-64}} only. Why? Adam divides a gradient by its own size, so rounding counts in proportion to each
# gradient, however small that is. In the extreme, where only rounding noise is left, the step may even be of full
# length, in a random direction. Watch that extreme: five weights whose gradient is nothing but noise, from that of fp64
# to that of fp32 sums and above.

# %%
noise = torch.tensor([1e-16, 1e-10, 1e-8, 1e-7, 1e-6], dtype=torch.float64)
lengths = {}
for name, optimizer in (("SGD", torch.optim.SGD), ("AdamW", torch.optim.AdamW)):
    weight = torch.nn.Parameter(torch.zeros_like(noise))
    weight.grad = noise.clone()
    optimizer([weight], lr=0.001).step()
    lengths[name] = weight.detach().abs() / 0.001
    print(f"{name:5s} moves by (learning rates): {[f'{length:.0e}' for length in lengths[name].tolist()]}")
assert torch.allclose(lengths["AdamW"], noise / (noise + 1e-8))  # the first step: g / (|g| + ε)
lesson.record("adamw-noise", float(lengths["AdamW"][3]));

# %% [markdown]
# A gradient of $10^{-7}$, rounding noise in fp32, moves a weight by {{adamw-noise}} of a whole step. In fp64 the noise
# lies far below Adam's ε and is suppressed. So compare runs by their losses, not bit by bit, unless the order of all
# sums is the same.

# %% [markdown]
# ## Whose rows?
#
# The ranks must agree on who takes which rows, without a word. The rule: everybody draws the *same* shuffled order from
# the same seed, cuts it into the same global batches, and takes its own share of each.
#
# torch's `DistributedSampler` repeats rows, or drops some, until all shares are equal. For training that hardly
# matters; for an evaluation it is wrong. With the global count of exercise @rank_loss unequal shares do no harm, so
# none need be repeated and none lost.

# %% [markdown]
# ### Exercise my_rows — My rows · ★☆☆ · 6 minutes


# %% tags=["exercise"]
def my_rows(order, batch_size, step, rank, world):
    """The rows of global batch number ``step`` that belong to ``rank``, a list, maybe empty.

    order: this epoch's shuffled row numbers, the same list on every rank; leave it as it is. The global batch is
    order[step · batch_size : (step + 1) · batch_size]; the last batch may be smaller. Every row of it goes to exactly
    one rank, whichever, and the ranks' shares differ by one row at most.
    """
    ### BEGIN SOLUTION
    return order[step * batch_size : (step + 1) * batch_size][rank::world]
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("my_rows", my_rows)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Cut out the global batch first; the ranks play no part in that.</details>
# <details><summary>Hint 2</summary>A slice may have a stride: <code>[start::step]</code>.</details>

# %% [markdown]
# The package's `ShardedBatches` also knows where it stands, so a run goes on in the middle of an epoch. Thirteen rows
# on three ranks, in batches of four:

# %%
shares = [list(across_ranks.ShardedBatches(13, 4, rank, 3, seed=0)) for rank in range(3)]
for rank, batches in enumerate(shares):
    print(f"rank {rank}: {batches}")
seen = sorted(row for batches in shares for batch in batches for row in batch)
assert seen == list(range(13))
assert list(across_ranks.ShardedBatches(13, 4, 1, 3, seed=0, step=2)) == shares[1][2:]

# %% [markdown]
# ### Text that is larger than memory
#
# Rows need not be in memory. Tokenise **once**, write all ids to one file, and let every rank *map* it: the operating
# system reads the pages that are touched, and ranks on one machine share them.

# %%
tokens = torch.randint(5, 4096, (1000, 128), dtype=torch.int32).numpy()
np.save(folder / "tokens.npy", tokens)
mapped = np.load(folder / "tokens.npy", mmap_mode="r")  # nothing is read yet
batch = next(iter(across_ranks.ShardedBatches(len(mapped), 32, rank=1, world=4)))
assert isinstance(mapped, np.memmap)
assert np.array_equal(mapped[batch], tokens[batch])
print(f"{mapped.nbytes:,} bytes mapped; this rank reads {len(batch)} rows of {mapped.shape[1]} tokens")

# %% [markdown]
# A data set that comes as a **stream** has no row numbers. `datasets` splits it by files if their number divides by the
# ranks'. If not, every rank reads everything and keeps each N-th example: right, but N times the reading. And a
# stream is shuffled through a *buffer*: each example is drawn from a window of the next few. First the files:

# %%
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node


def examples(files):
    for file in files:
        yield from ({"file": file, "row": row} for row in range(5))


for files in (6, 7):
    stream = IterableDataset.from_generator(examples, gen_kwargs={"files": list(range(files))})
    per_rank = [[(one["file"], one["row"]) for one in split_dataset_by_node(stream, rank, 3)] for rank in range(3)]
    everything = [(file, row) for file in range(files) for row in range(5)]
    assert sorted(one for of_rank in per_rank for one in of_rank) == everything
    assert min(map(len, per_rank)) > 0  # no rank starves
    print(f"{files} files on 3 ranks: {[len(of_rank) for of_rank in per_rank]} examples a rank, "
          f"from {[len({file for file, _ in of_rank}) for of_rank in per_rank]} files each")  # fmt: skip

# %% [markdown]
# Now the buffer. A thousand examples stand in a file in order. Where do they come out?

# %%
LENGTH = 1000
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True)
for axis, size in zip(axes, (10, 100, LENGTH)):
    stream = IterableDataset.from_generator(lambda: ({"place": place} for place in range(LENGTH)))
    order = np.array([one["place"] for one in stream.shuffle(seed=0, buffer_size=size)])
    earlier = int((order - np.arange(LENGTH)).max())
    assert sorted(order) == list(range(LENGTH))  # none lost, none twice
    assert earlier <= size  # nobody comes from behind the buffer
    axis.plot(order, np.arange(LENGTH), ".", markersize=3)
    axis.set(title=f"buffer of {size}\n{earlier} places earlier at most", xlabel="place in the file")
axes[0].set_ylabel("place after shuffling")
plots.show(
    figure,
    alt="Place after shuffling against place in the file for buffers of 10, 100 and 1000 of 1000 examples: a thin "
    "line, a band along the diagonal, and a cloud that fills the square.",
)

# %% [markdown]
# What to see: with a small buffer the file's order stays. An example may wait long, but none comes from behind the
# buffer. If a file holds one country after another, so does training. So write examples into the files in a *random*
# order, once, and into a number of files that the number of ranks divides.
#
# And **tokenise once**. Otherwise N ranks do the same work N times, and again after each restart. Under `torchrun` the
# first rank of `python -m sslcourse pretrain` writes all ids into one file, two bytes each. All ranks map that file
# into memory and read only the rows whose turn it is:

# %%
texts = corpus.load()["validation"]["text"][:: lesson.choose(quick=4, full=1)]
wordpieces = tokenizer.train(texts, vocab_size=1024)
path = folder / "tokens.uint16"
tokens = token_files.write_tape(path, texts, wordpieces)
on_disk = token_rows.TapeOnDisk(path, wordpieces, 128)
in_memory = token_rows.Tape(tokenizer.encode(wordpieces, texts), wordpieces, 128)
recipe = Recipe(vocab_size=len(wordpieces), batch_size=8)
for ours, theirs, _ in zip(on_disk.batches(recipe), in_memory.batches(recipe), range(100)):
    assert all(map(torch.equal, ours, theirs))
print(f"{tokens:,} tokens: {path.stat().st_size / 1e3:,.0f} kB on disk, {in_memory.tokens.nbytes / 1e3:,.0f} kB as a "
      f"tensor in each rank; 100 batches are the same")  # fmt: skip
lesson.record("bytes-a-token", path.stat().st_size / tokens);

# %% [markdown]
# ## Shards: why keep it all N times?
#
# In data parallelism every rank holds all weights, all gradients and the optimiser's whole state. **ZeRO** shards
# them: stage 1 the optimiser's state, stage 2 also gradients, stage 3 also weights. Nothing is lost: in stage 3,
# before a layer computes, its weights are gathered (*all-gather*); after its backward pass the gradients are summed and
# each rank keeps its part (*reduce-scatter*). Those are the two halves of the ring. **FSDP** (fully sharded data
# parallel, now FSDP2) is PyTorch's stage 3.

# %% [markdown]
# ### Exercise bytes_a_rank — Bytes a rank · ★☆☆ · 6 minutes


# %% tags=["exercise"]
def bytes_a_rank(weights, world, stage):
    """Bytes that one rank holds for weights, gradients and AdamW's state, all in fp32; activations are not counted.

    weights: how many there are. stage 0 shards nothing; 1 the optimiser's state (AdamW keeps two numbers a weight); 2
    gradients, too; 3 weights, too. What is sharded is divided evenly among ``world`` ranks; do not round.
    """
    ### BEGIN SOLUTION
    total = 0
    for level, size in enumerate((8, 4, 4)):  # state, gradients, weights
        total += weights * size / (world if stage > level else 1)
    return total
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("bytes_a_rank", bytes_a_rank)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>fp32 takes 4 bytes a number; without sharding a weight costs 16 in all.</details>
# <details><summary>Hint 2</summary>Write the three terms one under another, and divide those that the stage
# shards.</details>

# %%
for world, found in equal.items():
    for kind, stage in (("ddp", 0), ("fsdp", 3)):
        held = [of_rank[kind] for of_rank in found["memory"]]
        print(f"{world} ranks, {kind:4s}: bytes held, of those of stage {stage}: {[f'{one:.3f}' for one in held]}")
lesson.record("sharded-bytes-error", 100 * max(abs(one[kind] - 1) for found in equal.values() for one in found["memory"]
                                        for kind in ("ddp", "fsdp")))  # fmt: skip

# %% [markdown]
# FSDP2 cuts along the first dimension, so a matrix of 100 rows on three ranks becomes 34, 34 and 32: the few per cent
# between formula and measurement ({{sharded-bytes-error}} % here at most, less in a larger model).

# %%
BERT, BILLION = 110e6, 1e9
figure, axis = plt.subplots(figsize=(8, 4.2))
worlds = [1, 2, 4, 8, 16, 32, 64]
for stage, marker in enumerate("osD^"):
    held = [across_ranks.state_bytes(int(BILLION), world, stage) / 1e9 for world in worlds]
    axis.loglog(worlds, held, marker=marker, color=plots.COLOURS[stage],
                label=("nothing sharded", "optimiser (1)", "and gradients (2)", "and weights (3)")[stage])  # fmt: skip
axis.set_xticks(worlds, worlds)
axis.minorticks_off()
axis.set(xlabel="ranks", ylabel="GB a rank, without activations")
axis.legend()
plots.show(
    figure,
    alt="Gigabytes a rank for a model of a billion weights against the number of ranks, log scales: level without "
    "sharding; stages 1 and 2 fall and level off at what is not sharded; stage 3 falls in a straight line.",
)

# %% [markdown]
# What to see: stages 1 and 2 level off at what they do not shard. Only stage 3 goes on falling with the ranks.

# %% [markdown]
# ## Cutting the model itself
#
# When even one layer is too large, or too slow, it is cut. **Tensor parallel**: each rank has some of the attention's
# heads and some of the MLP's columns, computes its part of the output; one sum closes the attention and one the MLP,
# and as many go back. With four sums in *every* layer it stays within a machine. `sslcourse/studies/tensor_parallel.py`
# does it by hand; here beside the whole layer, the output and every gradient:

# %%
for world, found in equal.items():
    worst = {name: max(of_rank[name] for of_rank in found["tensor_parallel"]) for name in found["tensor_parallel"][0]}
    print(f"{world} ranks: {', '.join(f'{name} {difference:.0e}' for name, difference in worst.items())}")
lesson.record("tensor-parallel", max(difference for found in equal.values() for of_rank in found["tensor_parallel"]
                                     for difference in of_rank.values()))  # fmt: skip

# %% [markdown]
# **Pipeline parallel**: each rank has some of the *layers*, and micro-batches pass through like cars through a factory.
# At the start the last stage has nothing to do yet, at the end the first has nothing left. That idle time is the
# *bubble*: of p stages and m micro-batches, (p − 1) / (m + p − 1) of the time.

# %%
stages, micro_batches = 4, 8
figure, axes = plt.subplots(2, 1, figsize=(11, 4.4), sharex=True)
for axis, schedule in zip(axes, ("gpipe", "1f1b")):
    rows = pipeline_timetable.timetable(stages, micro_batches, schedule)
    for stage, row in enumerate(rows):
        for time, job in enumerate(row):
            if job:
                colour = plots.COLOURS[0] if job[0] == "F" else plots.COLOURS[1]
                axis.add_patch(plt.Rectangle((time, stage - 0.4), 1, 0.8, color=colour, alpha=0.45))
                axis.text(time + 0.5, stage, job, ha="center", va="center", fontsize=8)
    idle = sum(job == "" for row in rows for job in row) / sum(map(len, rows))
    axis.set(ylim=(stages - 0.4, -0.6), xlim=(0, len(rows[0])), ylabel="layers", title=f"{schedule}: {idle:.0%} idle")
    axis.set_yticks(range(stages), [f"stage {stage}" for stage in range(stages)])
axes[1].set_xlabel("time, in passes of one micro-batch through one stage")
lesson.record("bubble", 100 * idle)
plots.show(
    figure,
    alt="Timetables of four stages and eight micro-batches, forward passes marked F and backward passes marked B: "
    "GPipe runs all forward passes first, 1F1B alternates; both leave the same empty corners.",
)
assert abs(idle - pipeline_timetable.bubble(stages, micro_batches)) < 1e-12

# %% [markdown]
# What to see: both timetables are idle for the same {{bubble}} % of the time. GPipe runs all forward passes first;
# **1F1B** alternates one forward, one backward. What it saves is *memory*: a stage keeps the activations of four
# micro-batches at most where GPipe's keeps those of eight.

# %% [markdown]
# ## Launching
#
# On this machine, in a terminal:
#
# ```
# torchrun --standalone --nproc-per-node=2 -m sslcourse pretrain --text FOLDER --out DIR
# ```
#
# On two machines of eight GPUs each, the same line on both, where `node0` is the name of one of them:
#
# ```
# TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes=2 --nproc-per-node=8 --max-restarts=3 \
#     --rdzv-backend=c10d --rdzv-endpoint=node0:29500 --rdzv-id=run1 \
#     -m sslcourse pretrain --text FOLDER --out DIR --strategy fsdp --precision bf16
# ```
#
# `--out` must be a folder that both can reach. Under SLURM the scheduler runs that line on every node:
#
# ```
# #!/bin/bash
# #SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=64 --gpus-per-node=8 --time=04:00:00
# export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not take it from the lines above by itself
# export HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -1) TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# srun torchrun --nnodes=2 --nproc-per-node=8 --max-restarts=3 --rdzv-backend=c10d --rdzv-id=$SLURM_JOB_ID \
#     --rdzv-endpoint=$HEAD:29500 -m sslcourse pretrain --text FOLDER --out DIR --strategy fsdp --resume
# ```
#
# (With `--ntasks-per-node=1` SLURM starts one `torchrun` a node, and that starts the ranks; by default a task has a
# single core, so give it all of a node's. "rdzv" is the *rendezvous*, where ranks find each other; the variable makes
# each restart meet afresh. `--resume` begins where there is no checkpoint yet, so every job of a chain is the same.)
#
# ### The same with `accelerate`
#
# `accelerate launch` starts `torchrun` itself; a file says what to start, and `accelerate config` asks for
# its lines, or you write them. For the same two machines:

# %%
CONFIG = """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU     # several processes that torchrun starts
num_machines: 2
num_processes: 16               # in all, not on each machine
machine_rank: 0                 # 1 on the other machine; or --machine_rank on the command line
main_process_ip: node0          # where all meet
main_process_port: 29500
rdzv_backend: c10d
mixed_precision: bf16           # for scripts that make an Accelerator; ours has --precision
"""
here = {"num_machines: 2": "num_machines: 1", "num_processes: 16": "num_processes: 2", "node0": "127.0.0.1",
        "main_process_port: 29500": "main_process_port: 0", "rdzv_backend: c10d": "rdzv_backend: static"}  # fmt: skip
ours = CONFIG
for line, instead in here.items():
    ours = ours.replace(line, instead)
(folder / "accelerate.yaml").write_text(ours, encoding="utf-8")

# %% [markdown]
# On each machine then: `accelerate launch --config_file FILE --machine_rank N -m sslcourse pretrain --text ...`. Here
# is the same file cut down to this machine and two ranks, and beside it the line that one would type first on a CPU.
# Each rank that starts says how many there are:

# %%
script = folder / "counts.py"
script.write_text("from sslcourse.train import across_ranks\n"
                  "with across_ranks.start(timeout=60, device='cpu') as ranks:\n"
                  "    print('ranks:', ranks.world)\n", encoding="utf-8")  # fmt: skip
started = {}
for name, options in (("by the file", ["--config_file", folder / "accelerate.yaml"]),
                      ("--cpu --num_processes 2", ["--cpu", "--num_processes", "2"])):  # fmt: skip
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *options, script]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    started[name] = said.count("ranks:")
    print(f"{name}: {started[name]} rank(s)")
assert started["by the file"] == 2

# %% [markdown]
# The second line asked for two processes and, in the version of the stored run, quietly got one. So let a script *say*
# how many ranks there are, as ours does.
#
# ### From a notebook
#
# From a notebook we use `start_processes.torchrun`, which adds a time limit, ordered output and the right error. What is
# the right error? When rank 1 fails, rank 0 fails too, a moment later, with "connection closed by peer". That is the
# line one sees first, and it says nothing.

# %%
script = folder / "fails.py"
script.write_text(textwrap.dedent("""
    import torch.distributed as dist
    from torch.distributed.elastic.multiprocessing.errors import record
    from sslcourse.train import across_ranks

    @record
    def main():
        with across_ranks.start(timeout=30, device="cpu") as ranks:
            if ranks.rank == 1:
                raise ArithmeticError("a planted error")
            dist.barrier()

    main()
"""), encoding="utf-8")  # fmt: skip
try:
    torchrun(script, processes=2, timeout=60)
except RankFailed as error:
    lines = str(error).splitlines()
    print(lines[0].replace(str(folder), "..."), "...", lines[-1], sep="\n")
    assert "ArithmeticError: a planted error" in lines[-1]

# %% [markdown]
# ## When a rank dies
#
# With a thousand GPUs something breaks every day. The answer is not to prevent it, but to lose little: write
# checkpoints, and let `torchrun --max-restarts` start all ranks again from the last one.
#
# Two things are needed so that a restart leaves *no trace in the weights*. Everything random must depend on the step
# alone, not on how the run came there (lesson @mlm_pretraining did that). And every sum must be made in the same
# order: DDP sends gradients in *buckets*, several tensors at once, and cuts them anew after the first backward pass;
# with three ranks a number's place in its bucket decides the order of its sum. So a run makes one backward pass whose
# result it throws away, at its start and after every restart.
#
# The script below is a whole pretraining run. Its last rank kills itself, if told to, in the middle.

# %%
script = folder / "trains.py"
script.write_text(textwrap.dedent("""
    import os, random, sys
    from torch.distributed.elastic.multiprocessing.errors import record
    from sslcourse.train import across_ranks, loop_across_ranks
    from sslcourse.train.recipe import Recipe

    @record
    def main(out, strategy, steps, dies_at):
        draw = random.Random(0)
        words = [f"w{number}" for number in range(200)]
        texts = [" ".join(draw.choice(words) for _ in range(60)) for _ in range(80)]
        recipe = Recipe(vocab_size=300, hidden_size=32, intermediate_size=64, layers=2, heads=1, sequence_length=32,
                        batch_size=12, precision="fp32")
        with across_ranks.start(timeout=60, device="cpu") as ranks:
            first_start = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
            seen = []  # the first number is the step at which this start went on

            def on_step(step):
                seen.append(step)
                if step == dies_at and first_start and ranks.rank == ranks.world - 1:
                    os._exit(9)  # as if the machine had lost power: no exception, no goodbye

            run = loop_across_ranks.pretrain(texts[:70], texts[70:], recipe, ranks=ranks, out=out, steps=steps,
                                             strategy=strategy, evaluations=4, on_step=on_step)
            if ranks.first:
                print("ended after start number", 1 + int(os.environ["TORCHELASTIC_RESTART_COUNT"]),
                      "which began with step", seen[0])

    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
"""), encoding="utf-8")  # fmt: skip


def trained(name, *, strategy="ddp", steps=12, dies_at=0):
    """The weights that a run ends with."""
    world = lesson.choose(quick=2, full=3)
    said = torchrun(script, folder / name, strategy, steps, dies_at, processes=world, max_restarts=1, timeout=240)
    print(f"{name}: {said[0].strip()}")
    return load_file(folder / name / "model.safetensors")


# %%
undisturbed, killed = trained("undisturbed"), trained("killed", dies_at=8)
differs = sum(int((undisturbed[name] != killed[name]).sum()) for name in undisturbed)
lesson.record("weights-changed-by-a-death", differs)
print(f"{differs} of {sum(weight.numel() for weight in undisturbed.values()):,} weights differ")

# %% [markdown]
# The checkpoint is *sharded*: each rank writes its own part, in parallel, in safetensors, through
# `torch.distributed.checkpoint`. It can be read by another number of ranks, so a run that lost half of its machines
# goes on with the other half. What guards it: a list of all shards with their sizes, written last. A checkpoint that
# lacks a shard or was cut off is refused by name, and not deleted.
#
# A rank that *hangs* is worse than one that dies, for nothing tells the others. Therefore every collective has a time
# limit (`across_ranks.start(timeout=...)`): past it all ranks end, and the restart begins.

# %% [markdown]
# ## Does it pay?
#
# Now the speed. A step of N ranks takes the time of its arithmetic, plus what communication the arithmetic cannot hide.
# Five numbers describe that: $F$, the FLOP/s of a rank; a fixed time $a$ a step and $b$ a token besides; $\ell$ seconds
# a message; $B$ bytes a second. With $W$ weights, $T$ tokens and $N$ ranks a step of DDP takes
#
# $$ c \left(a + b \, \frac{T}{N} + \frac{6 W T}{N F}\right) + 2 (N - 1) \, \ell + 2 \, \frac{N - 1}{N} \,
# \frac{4 W}{B}, \qquad c = \max(1, N / \text{cores}). $$
#
# The factor $c$ says that cores are shared: more ranks than cores take turns. Overlap is none here: on a laptop who
# sends and who computes share the cores. We measure small steps on this machine, fit the five numbers, and **hold
# one configuration back** to see what the fit is worth.

# %%
cores = hardware.allowed_cores()
print(f"cores that this notebook may use: {cores}")
measured = []
for world in lesson.choose(quick=(1, 2), full=(1, 2, 3, 4)):
    rows, sizes = lesson.choose(quick=((12, 24), (64, 128)), full=((12, 24, 48), (64, 128, 256)))
    said = torchrun("sslcourse.studies.scaling", "--rows", *rows, "--hidden-size", *sizes, "--steps",
                    lesson.choose(quick=3, full=15), processes=world, timeout=240)  # fmt: skip
    measured += [json.loads(line) for line in said[0].splitlines()]
held_back = next(one for one in measured if one["world"] == 2 and one["tokens"] == 24 * 64 and one["weights"] > 2e5)
machine, network = scaling.fit([one for one in measured if one is not held_back], cores)


def predicted(one):
    return scaling.predicted(one, machine, network)


print("fitted:", scaling.described(machine, network))
error = abs(predicted(held_back) / held_back["seconds"] - 1)
print(f"held back: {held_back['world']} ranks, {held_back['weights']:,} weights, {held_back['tokens']:,} tokens: "
      f"{1e3 * held_back['seconds']:.1f} ms measured, {1e3 * predicted(held_back):.1f} ms predicted")  # fmt: skip
if full:
    lesson.record("held-back-error", 100 * error)
    ratios = sorted(abs(predicted(one) / one["seconds"] - 1) for one in measured)
    lesson.record("fit-error-median", 100 * ratios[len(ratios) // 2])

# %%
figure, axis = plt.subplots(figsize=(6.5, 5))
for world, marker in zip(sorted({one["world"] for one in measured}), "osD^"):
    of_world = [one for one in measured if one["world"] == world and one is not held_back]
    axis.loglog([1e3 * one["seconds"] for one in of_world], [1e3 * predicted(one) for one in of_world], marker,
                color=plots.COLOURS[world - 1], label=f"{world} rank{'s' * (world > 1)}")  # fmt: skip
axis.loglog(1e3 * held_back["seconds"], 1e3 * predicted(held_back), "*k", markersize=16, label="held back")
ends = [1e3 * min(one["seconds"] for one in measured), 1e3 * max(one["seconds"] for one in measured)]
axis.loglog(ends, ends, color="grey", linewidth=1)
ticks = [tick for tick in (5, 10, 20, 50, 100, 200, 500, 1000, 2000) if ends[0] / 2 < tick < 2 * ends[1]]
axis.set_xticks(ticks, ticks)
axis.set_yticks(ticks, ticks)
axis.minorticks_off()
axis.set(xlabel="measured (ms a step)", ylabel="predicted (ms a step)")
axis.legend()
plots.show(
    figure,
    alt="Predicted against measured milliseconds a step for one to four ranks, log scales: the points lie along the "
    "diagonal, the one that was held back too.",
)

# %% [markdown]
# In the stored run the step that was held back is predicted within {{held-back-error}} %; of all steps, most of which
# the fit has seen, half are within {{fit-error-median}} %. Was it luck? Hold *each* one back in turn, and then all
# steps of three ranks at once:

# %%
errors = sorted(100 * abs(error) for error in scaling.left_out(measured, cores))
print(f"each held back in turn: half within {errors[len(errors) // 2]:.0f} %, the worst within {errors[-1]:.0f} %")
if full:
    lesson.record("left-out-median", errors[len(errors) // 2])
    lesson.record("left-out-worst", errors[-1])
    of_others = scaling.fit([one for one in measured if one["world"] != 3], cores)
    of_three = [one for one in measured if one["world"] == 3]
    errors = sorted(100 * abs(scaling.predicted(one, *of_others) / one["seconds"] - 1) for one in of_three)
    print(f"three ranks, from runs of one, two and four: half within {errors[len(errors) // 2]:.0f} %")
    lesson.record("three-ranks-error", errors[len(errors) // 2])

# %% [markdown]
# Half of the steps are within {{left-out-median}} % when the fit has not seen them, and half of those of three ranks
# within {{three-ranks-error}} %; the worst of all is off by {{left-out-worst}} %. It is a rule for thinking, not a
# stop-watch.
#
# **Strong scaling** holds the global batch fixed: how much faster is one step? **Weak scaling** gives every rank its
# own batch: how much longer does a step take than with one rank?

# %%
largest = max(one["weights"] for one in measured)
time_of = {(one["world"], one["tokens"]): one["seconds"] for one in measured if one["weights"] == largest}
most = max(tokens for _, tokens in time_of)
least = min(tokens for _, tokens in time_of)
for world in sorted({world for world, _ in time_of}):
    print(f"strong: {most:,} tokens, {world} rank(s): {time_of[1, most] / time_of[world, most]:.2f} times as fast as 1")
double = 2 * least
print(f"weak: 2 ranks with {least:,} tokens each take {time_of[2, double] / time_of[1, least]:.2f} times as long as 1")
if full:
    lesson.record("strong-two", time_of[1, most] / time_of[2, most])
    lesson.record("strong-four", time_of[1, most] / time_of[4, most])

# %% [markdown]
# In the stored run two ranks of one thread are {{strong-two}} times as fast as one, four are {{strong-four}} times. The
# machine's cores (the first line under the measurement says how many) are the limit: more ranks than cores take turns.
#
# ## What a cluster would do
#
# The same formula, with the numbers of a cluster in place of ours. **These are assumptions, not measurements**: each
# GPU does $400$ TFLOP/s of useful bf16 work, eight stand in a node with $300$ GB/s between them, nodes are joined by
# $25$ GB/s a GPU, a message takes $10$ µs inside a node and $30$ µs outside, a step costs $1$ ms besides, gradients
# travel in bf16, and half of the arithmetic can hide communication. The global batch is half a million tokens, whatever
# the number of GPUs.

# %%
GPU = Machine(flops=400e12, overhead=1e-3)
INSIDE, BETWEEN = Network(10e-6, 300e9), Network(30e-6, 25e9)


def speedup(weights, world, strategy="ddp", bandwidth=BETWEEN.bandwidth, gradient_bytes=2.0, overlap=0.5, tokens=2**19):
    """How many times as fast as one GPU."""
    job = Job(int(weights), tokens, gradient_bytes=gradient_bytes, weight_bytes=2.0)
    between = Network(BETWEEN.latency, bandwidth)
    return world * scaling.efficiency(strategy, job, world, GPU, between, node=8, inside=INSIDE, overlap=overlap)


print(f"{'':22s}" + "".join(f"{world:>8,} GPUs" for world in (8, 64, 1024)))
for name, weights in (("BERT-base, 110 M", BERT), ("an encoder of 1 B", BILLION)):
    for strategy in ("ddp", "fsdp"):
        times = [speedup(weights, world, strategy) for world in (8, 64, 1024)]
        print(f"{name:17s} {strategy:4s}" + "".join(f"{one:12.0f}×" for one in times))
lesson.record("bert-1024", speedup(BERT, 1024))
lesson.record("billion-64", speedup(BILLION, 64))
lesson.record("billion-1024", speedup(BILLION, 1024))

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
worlds = [8, 16, 32, 64, 128, 256, 512, 1024]
for axis, (name, weights) in zip(axes, (("BERT-base, 110 M weights", BERT), ("1 B weights", BILLION))):
    for bandwidth, marker in ((3e9, "o"), (25e9, "s"), (100e9, "D")):
        shares = [100 * speedup(weights, world, bandwidth=bandwidth) / world for world in worlds]
        axis.semilogx(worlds, shares, marker=marker, label=f"{bandwidth / 1e9:.0f} GB/s between nodes")
    axis.set_xticks(worlds, worlds)
    axis.minorticks_off()
    axis.set(xlabel="GPUs", ylabel="efficiency (% of perfect scaling)", title=name, ylim=(0, 105))
axes[0].legend()
plots.show(
    figure,
    alt="Efficiency of data parallelism against the number of GPUs for three bandwidths: with a fixed global batch it "
    "falls for both models, earlier for the smaller model, and bandwidth matters most in between.",
)

# %% [markdown]
# What to see: with a *fixed* global batch the arithmetic of a GPU shrinks with their number and communication does not,
# so every curve falls in the end. BERT-base on 1,024 GPUs would be {{bert-1024}} times as fast as one, the larger model
# {{billion-1024}} times. Up to 64 GPUs the large one loses little ({{billion-64}} times).
#
# Move the assumptions yourself. The sliders need a running notebook and obey the arrow keys; the picture is the one at
# their start.


# %%
def cluster_figure(bandwidth, overlap):
    """Efficiency on 8 to 1,024 GPUs, for a bandwidth between nodes in GB/s and a share of overlap."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    ways = (("DDP, gradients in fp32", "ddp", 4.0), ("DDP, in bf16", "ddp", 2.0), ("FSDP, in bf16", "fsdp", 2.0))
    for axis, (name, weights) in zip(axes, (("BERT-base, 110 M weights", BERT), ("1 B weights", BILLION))):
        for (label, strategy, size), marker in zip(ways, "osD"):
            times = [speedup(weights, world, strategy, 1e9 * bandwidth, size, overlap) for world in worlds]
            shares = [100 * one / world for one, world in zip(times, worlds)]
            axis.semilogx(worlds, shares, marker=marker, label=label)
        axis.set_xticks(worlds, worlds)
        axis.minorticks_off()
        axis.set(xlabel="GPUs", ylabel="efficiency (% of perfect scaling)", title=name, ylim=(0, 105))
    axes[0].legend(title=f"{bandwidth:g} GB/s, overlap {overlap:g}")
    return figure


# %%
live_picture(
    cluster_figure,
    alt="Efficiency against the number of GPUs for DDP with gradients in fp32 and in bf16 and for FSDP, two models, at "
    "a bandwidth and an overlap that sliders set: bf16 lies above fp32, FSDP between or below them; the lower the "
    "bandwidth, the earlier all three fall.",
    bandwidth=Slider("GB/s between nodes", (1, 3, 6, 12, 25, 50, 100, 200, 400), start=25),
    overlap=Slider("share of arithmetic that hides communication", (0.0, 0.25, 0.5, 0.75, 1.0), start=0.5),
)

# %% [markdown]
# What to see: at the left end of the bandwidth slider everything falls early, and half the bytes are worth most there.
# At its right end latency is left, which no compression helps, and the bytes inside a node.
#
# ## Fewer bytes
#
# Gradients need not travel as they are. **Rounded** to bf16 or fp16 they are half as long; DDP has *hooks* for that
# (`model.register_comm_hook(None, bf16_compress_hook)`). **PowerSGD** sends two thin factors of each gradient matrix
# (of a matrix of $1{,}000 \times 500$ numbers one of $1{,}000 \times 4$ and one of $4 \times 500$),
# and adds what was lost to the next step's gradient. `thin` is one round of it, written out in
# `sslcourse/studies/rank_proofs.py`. Measured between real ranks: the bytes, the first gradient, and the loss on one
# batch after sixty steps.

# %%
print(f"{'':12s}{'bytes':>8s}{'first gradient off by':>24s}{'loss after 60 steps':>22s}")
for world, found in equal.items():
    for name, one in found["compression"].items():
        print(f"{world} ranks {name:5s}{one['bytes']:7.2f}{one['difference']:24.0e}{one['loss']:22.3f}")
ways = [found["compression"] for found in equal.values()]
lesson.record("bf16-bytes", max(one["bf16"]["bytes"] for one in ways))
lesson.record("bf16-difference", max(one["bf16"]["difference"] for one in ways))
lesson.record("bf16-loss", max(abs(one["bf16"]["loss"] - one["fp32"]["loss"]) for one in ways))
lesson.record("thin-bytes", max(one["thin"]["bytes"] for one in ways))
if full:
    lesson.record("thin-loss", max(one["thin"]["loss"] - one["fp32"]["loss"] for one in ways))

# %% [markdown]
# bf16 costs a gradient at most {{bf16-difference}} and the loss {{bf16-loss}}: half the bytes for nothing that one
# would see. Thin factors send {{thin-bytes}} of the bytes of this small model (far fewer of a large one's) and pay with
# steps: after sixty, the loss is up to {{thin-loss}} above that of fp32. Compression that is not nearly free must win
# more time than it costs steps.
#
# ### What buys what, and where
#
# The cost model on 64 GPUs over a slow network, and on 1,024 over a fast one. Memory counts weights, gradients and the
# optimiser's state in mixed precision ($16$ bytes a weight). For thin factors a twentieth of fp32's bytes is assumed.

# %%
WAYS = (("DDP, fp32", "ddp", 4.0), ("DDP, bf16", "ddp", 2.0), ("DDP, thin", "ddp", 0.2), ("FSDP, bf16", "fsdp", 2.0))
MIXED = {"weight_bytes": 2, "gradient_bytes": 2, "optimizer_bytes": 12}
bought = {}
for name, weights in (("BERT-base", BERT), ("1 B", BILLION)):
    print(f"{name:12s}{'64, 3 GB/s':>14s}{'1024, 25 GB/s':>16s}{'GB a GPU of 64':>17s}")
    for label, strategy, size in WAYS:
        slow, fast = speedup(weights, 64, strategy, 3e9, size), speedup(weights, 1024, strategy, 25e9, size)
        memory = across_ranks.state_bytes(int(weights), 64, 3 if strategy == "fsdp" else 0, **MIXED) / 1e9
        bought[name, label] = slow
        print(f"  {label:10s}{slow:13.0f}×{fast:15.0f}×{memory:17.2f}")
lesson.record("bf16-buys", bought["1 B", "DDP, bf16"] / bought["1 B", "DDP, fp32"])
lesson.record("thin-buys", bought["1 B", "DDP, thin"] / bought["1 B", "DDP, fp32"])
lesson.record("fsdp-costs", bought["1 B", "FSDP, bf16"] / bought["1 B", "DDP, bf16"]);

# %% [markdown]
# - **DDP** while the model fits: the fewest bytes.
# - **bf16 on the wire** first: on the slow network it makes the larger model {{bf16-buys}} times as fast as fp32 does.
#   (Measured here between few ranks. With many, sums in bf16 lose more: watch the loss.)
# - **Thin factors** only where the network is the limit: there {{thin-buys}} times, before the steps that they cost.
# - **FSDP** where the model does not fit: it sends half as much again as DDP in bf16, which on the slow network leaves
#   {{fsdp-costs}} of the speed. It buys memory with that.
#
# What else would help? Larger batches (as far as learning bears them) and more overlap. **First ask whether one GPU,
# well used, would do**: that is lesson @efficiency_ladder.

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
# - Patarasuk and Yuan 2009, [bandwidth-optimal all-reduce](https://doi.org/10.1016/j.jpdc.2008.09.002): the ring.
# - Li et al. 2020, [PyTorch Distributed](https://arxiv.org/abs/2006.15704): DDP's buckets and overlap.
# - Rajbhandari et al. 2020, [ZeRO](https://arxiv.org/abs/1910.02054); Zhao et al. 2023,
#   [FSDP](https://arxiv.org/abs/2304.11277).
# - Vogels et al. 2019, [PowerSGD](https://arxiv.org/abs/1905.13727): gradients as thin factors.
# - Shoeybi et al. 2019, [Megatron-LM](https://arxiv.org/abs/1909.08053): cutting a layer.
# - Huang et al. 2019, [GPipe](https://arxiv.org/abs/1811.06965); Narayanan et al. 2021,
#   [1F1B](https://arxiv.org/abs/2104.04473).
# - [accelerate launch](https://huggingface.co/docs/accelerate/basic_tutorials/launch),
#   [torchrun](https://pytorch.org/docs/stable/elastic/run.html) and
#   [torch.distributed.checkpoint](https://pytorch.org/docs/stable/distributed.checkpoint.html).
# - [picotron](https://github.com/huggingface/picotron): all of this in a small code base, for learning.
