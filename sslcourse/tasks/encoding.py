"""From labelled text to batches of numbers: one ``encode_...`` for each kind of task, and ``collate``.

    examples = encode_texts(tokenizer, texts, labels, classes)   # or encode_tags, encode_questions, encode_relations
    batch = collate(examples, pad_token_id)

What comes in is looked at here, once. What this module does not do: models (``tasks.task_heads``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sslcourse.data.ignored import IGNORE
from sslcourse.tasks.scores import same_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Example = dict[str, Any]  # {"input_ids": [int], "labels": int or [int]}, and what a head needs besides
Batch = dict[str, Tensor]


def encode_texts(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    labels: Sequence[str],
    classes: Sequence[str],
    max_length: int = 128,
) -> list[Example]:
    """One class a text; longer texts are cut at ``max_length`` tokens.

    Raises:
        ValueError: for no texts, unequal lengths, or a label that is not among ``classes``.
    """
    _check_texts(tokenizer, max_length, texts=texts)
    same_length(texts=texts, labels=labels)
    ids = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    return [{"input_ids": row, "labels": _index(label, classes)} for row, label in zip(ids, labels, strict=True)]


def encode_tags(
    tokenizer: PreTrainedTokenizerFast,
    words: Sequence[Sequence[str]],
    tags: Sequence[Sequence[str]],
    classes: Sequence[str],
    max_length: int = 256,
) -> list[Example]:
    """One tag a word. A word's first piece carries its tag; its other pieces are not scored (Devlin et al. 2019, 5.3).

    Raises:
        ValueError: as ``encode_texts``, and where words are cut off: a cut would hide entities from the score.
    """
    same_length(words=words, tags=tags)
    examples = []
    for row, (of_words, of_tags) in enumerate(zip(words, tags, strict=True)):
        if len(of_words) != len(of_tags):
            raise ValueError(f"sentence {row} has {len(of_words)} words and {len(of_tags)} tags; give one tag a word")
        if not len(of_words):
            raise ValueError(f"sentence {row} has no words, so there is nothing to tag; leave it out")
        encoded = _encode_words(tokenizer, of_words)
        if len(encoded["input_ids"]) > max_length:
            raise ValueError(
                f"sentence {row} has {len(of_words)} words, more than max_length={max_length} tokens hold; "
                "cut it, or raise max_length"
            )
        labels, before = [], None
        for word in encoded.word_ids():
            first = word is not None and word != before
            labels.append(_index(of_tags[word], classes) if first else IGNORE)
            before = word
        examples.append({"input_ids": encoded["input_ids"], "labels": labels})
    return examples


def _encode_words(tokenizer: PreTrainedTokenizerFast, words: Sequence[str]) -> Any:
    """Pieces of every word; a word that the tokenizer leaves out (a lone control character) becomes [UNK]."""
    encoded = tokenizer(list(words), is_split_into_words=True, verbose=False)
    seen = set(encoded.word_ids())
    if len(seen - {None}) == len(words):
        return encoded
    kept = [word if place in seen else tokenizer.unk_token for place, word in enumerate(words)]
    return tokenizer(kept, is_split_into_words=True, verbose=False)


def encode_questions(
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[str],
    contexts: Sequence[str],
    spans: Sequence[tuple[int, int]],
    max_length: int = 256,
) -> list[Example]:
    """[CLS] question [SEP] context [SEP]; the label is the first and the last token of the answer.

    ``spans`` are (start, end) in characters of the context. ``offsets`` keeps each context token's characters, (0, 0)
    elsewhere, so that a prediction can be cut out of the text again.

    Raises:
        ValueError: as ``encode_texts``, and for a span that is empty, outside its context, or cut off.
    """
    _check_texts(tokenizer, max_length, questions=questions, contexts=contexts)
    same_length(questions=questions, contexts=contexts, spans=spans)
    examples = []
    for row, (question, context, (start, end)) in enumerate(zip(questions, contexts, spans, strict=True)):
        if not 0 <= start < end <= len(context):
            raise ValueError(f"spans[{row}]={(start, end)} is not a part of its context of {len(context)} characters")
        if not context[start:end].strip():
            raise ValueError(f"spans[{row}]={(start, end)} covers nothing but blanks; give the words of the answer")
        end = start + len(context[start:end].rstrip())
        asked = len(tokenizer(question, add_special_tokens=False)["input_ids"])
        if asked + tokenizer.num_special_tokens_to_add(pair=True) >= max_length:
            raise ValueError(f"questions[{row}] alone takes {asked} tokens of max_length={max_length}, and leaves none "
                             "for the context; shorten it, or raise max_length")  # fmt: skip
        encoded = tokenizer(
            question, context, truncation="only_second", max_length=max_length, return_offsets_mapping=True
        )
        of_context = [part == 1 for part in encoded.sequence_ids()]
        pairs = zip(encoded["offset_mapping"], of_context, strict=True)
        offsets = [pair if inside else (0, 0) for pair, inside in pairs]
        first = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        if not first or max(b for _, b in offsets) < end:
            raise ValueError(f"the answer spans[{row}]={(start, end)} is cut off at max_length={max_length}; raise it")
        examples.append({"input_ids": encoded["input_ids"], "labels": [first[0], first[-1]], "offsets": offsets})
    return examples


def encode_relations(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    subjects: Sequence[tuple[int, int]],
    objects: Sequence[tuple[int, int]],
    labels: Sequence[str],
    classes: Sequence[str],
    max_length: int = 256,
) -> list[Example]:
    """The text with its two arguments marked, ``@ subject @ ... # object #``, and where the two markers are.

    Punctuation as markers needs no new rows in the embedding table (Zhou and Chen 2022, arXiv 2102.01373, section 3.2).

    Raises:
        ValueError: as ``encode_texts``, and for arguments that overlap, lie outside the text or are cut off.
    """
    _check_texts(tokenizer, max_length, texts=texts)
    same_length(texts=texts, subjects=subjects, objects=objects, labels=labels)
    examples = []
    for row, (text, subject, item, label) in enumerate(zip(texts, subjects, objects, labels, strict=True)):
        for name, (start, end) in (("subjects", subject), ("objects", item)):
            if not 0 <= start < end <= len(text):
                raise ValueError(f"{name}[{row}]={(start, end)} is not a part of its text of {len(text)} characters")
        if max(subject[0], item[0]) < min(subject[1], item[1]):
            raise ValueError(f"subjects[{row}]={subject} and objects[{row}]={item} overlap; they must be apart")
        marked, starts = mark_arguments(text, subject, item)
        encoded = tokenizer(marked, truncation=True, max_length=max_length)
        tokens = [encoded.char_to_token(start) for start in starts]
        if None in tokens:
            raise ValueError(f"subjects[{row}] or objects[{row}] is cut off at max_length={max_length}; raise it")
        examples.append({"input_ids": encoded["input_ids"], "labels": _index(label, classes), "markers": tokens})
    return examples


def mark_arguments(text: str, subject: tuple[int, int], item: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """The text with its arguments marked, and the characters at which the subject's and the object's markers open."""
    pieces, at, starts = [], 0, {}
    for sign, (start, end) in sorted((("@", subject), ("#", item)), key=lambda pair: pair[1]):
        pieces.append(text[at:start])
        starts[sign] = sum(map(len, pieces))
        pieces.append(f"{sign} {text[start:end]} {sign}")
        at = end
    return "".join([*pieces, text[at:]]), (starts["@"], starts["#"])


def answer_text(example: Example, context: str, span: Sequence[int]) -> str:
    """The characters of the context between two tokens, both included."""
    return context[example["offsets"][span[0]][0] : example["offsets"][span[1]][1]]


def _check_texts(tokenizer: PreTrainedTokenizerFast, max_length: int, **columns: Sequence[str]) -> None:
    """ValueError, naming the argument and the row, for what a tokenizer would refuse or misread."""
    special = tokenizer.num_special_tokens_to_add()
    if max_length <= special:
        raise ValueError(f"max_length={max_length} leaves no room beside {special} special tokens; give more")
    for name, texts in columns.items():
        if isinstance(texts, str):
            raise ValueError(f"{name}={texts[:40]!r} is one string, which would be read letter by letter; give a list")
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"{name}[{row}]={text!r} is a {type(text).__name__}, not a string")
            if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
                raise ValueError(f"{name}[{row}] holds half of a surrogate pair; decode the file as UTF-8, or drop it")


def _index(label: str, classes: Sequence[str]) -> int:
    if len(set(classes)) < len(classes):
        raise ValueError(f"classes={list(classes)[:8]} names a class twice; give each once")
    try:
        return list(classes).index(label)
    except ValueError:
        known = ", ".join(map(str, list(classes)[:8]))
        raise ValueError(f"label {label!r} is not among classes ({known}); add it, or drop the example") from None


def collate(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """Pad to the longest; labels that are lists of tags are padded with -100.

    Raises:
        ValueError: for no examples.
    """
    if not examples:
        raise ValueError("examples is empty: there is nothing to train on or to score")
    longest = max(len(example["input_ids"]) for example in examples)

    def padded(name: str, fill: int) -> Tensor:
        return torch.tensor([list(row[name]) + [fill] * (longest - len(row[name])) for row in examples])

    ids = padded("input_ids", pad_token_id)
    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    batch = {"input_ids": ids, "attention_mask": (torch.arange(longest) < lengths[:, None]).long()}
    tagged = isinstance(examples[0]["labels"], list) and "offsets" not in examples[0]
    batch["labels"] = padded("labels", IGNORE) if tagged else torch.tensor([row["labels"] for row in examples])
    if "markers" in examples[0]:
        batch["markers"] = torch.tensor([row["markers"] for row in examples])
    if "offsets" in examples[0]:
        inside = [[b > a for a, b in row["offsets"]] + [False] * (longest - len(row["offsets"])) for row in examples]
        batch["answerable"] = torch.tensor(inside)
    return batch
