"""A WordPiece tokenizer, trained on the course's own corpus.

Text is lower-cased and stripped of accents, split at white space and punctuation (BERT's rules), and each word is
cut into the longest pieces that the vocabulary holds; ``##`` marks a piece that continues a word. The counting is
done by the ``tokenizers`` library; what is decided here is the layout: special tokens at ids 0 to 4 and ``[MASK]``
the last of them, so that "every id above [MASK] is an ordinary token" is a rule the masking code can rely on.

Source: Schuster and Nakajima 2012 (WordPiece); Devlin et al. 2019, arXiv 1810.04805 (BERT's use of it).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from transformers import PreTrainedTokenizerFast

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_LENGTH = 512


def train(texts: Iterable[str], vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """Train a tokenizer on ``texts``; the same texts give the same vocabulary.

    Returns a stock ``PreTrainedTokenizerFast``: what it saves, ``AutoTokenizer`` opens without this package.

    Raises:
        ValueError: if ``vocab_size`` leaves no room for a piece beside the special tokens, or ``texts`` is empty.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    if vocab_size < len(SPECIAL_TOKENS) + 2:  # one character, at a start and behind "##"
        raise ValueError(f"vocab_size={vocab_size} has no room beside {len(SPECIAL_TOKENS)} special tokens; try 4096")
    normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    words = Counter(
        word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    )
    if not words:
        raise ValueError("texts holds no word to train a tokenizer on")
    room = vocab_size - len(SPECIAL_TOKENS)
    # a character may take two places, at a start and behind "##"
    alphabet, continuing = _alphabet(words, most=max(1, min(room // 2, vocab_size // 4)))

    # The library numbers "##" pieces in the order of a hash map and breaks ties by number, so two runs would differ.
    # Given to the trainer as reserved tokens, they are numbered before the map is read, and the runs agree.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *(f"##{char}" for char in continuing)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    scratch = Tokenizer(models.WordPiece(unk_token=UNK))
    scratch.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    scratch.train_from_iterator(_repeated(words), trainer)

    backend = Tokenizer(models.WordPiece(vocab=scratch.get_vocab(), unk_token=UNK))
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.normalizer, backend.pre_tokenizer, backend.decoder = normalizer, splitter, decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in (CLS, SEP)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNK,
        cls_token=CLS,
        sep_token=SEP,
        mask_token=MASK,
        model_max_length=MAX_LENGTH,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> list[list[int]]:
    """Ids of each text without special tokens and without cutting; packing adds and cuts on its own terms."""
    return tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]


def _repeated(words: Counter[str], at_once: int = 1000) -> Iterator[str]:
    """Each word as often as it was counted, which is how the trainer wants to be told, in pieces of bounded length."""
    for word, count in sorted(words.items()):
        for begin in range(0, count, at_once):
            yield " ".join([word] * min(at_once, count - begin))


def _alphabet(words: Counter[str], most: int) -> tuple[list[str], list[str]]:
    """The ``most`` most frequent characters, and those among them that ever continue a word, each in a fixed order."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for char in word:
            counts[char] += count
    kept = sorted(counts, key=lambda char: (-counts[char], char))[:most]
    continuing = {char for word in words for char in word[1:]}
    return sorted(kept), sorted(continuing.intersection(kept))
