"""Five labelled tasks whose labels come with the factbook, so that nobody had to annotate anything.

    sections, regions   a passage -> the section it stands in, the region of its country
    person_names        a lower-cased sentence -> which words are a person's name (BIO tags)
    questions           a field's name and a paragraph -> the words of the paragraph that answer it
    relations           a country and an item marked in a paragraph -> how they are related

Each function returns ``{"train": [...], "validation": [...], "test": [...]}``, split by country as the corpus is.

Labels that cost nothing have noise of their own, and each docstring says which. What this module does not do: correct
them by hand, or balance the classes.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sslcourse.data import corpus

SEED = 20261124


# --- what an example is ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A text and its class."""

    text: str
    label: str
    country: str


@dataclass(frozen=True)
class Tagged:
    """Words and one BIO tag each: B-PER begins a name, I-PER goes on with it, O is outside."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    country: str


@dataclass(frozen=True)
class Question:
    """``context[start:end]`` answers ``question``."""

    question: str
    context: str
    start: int
    end: int
    country: str

    @property
    def answer(self) -> str:
        return self.context[self.start : self.end]


@dataclass(frozen=True)
class Relation:
    """``text[subject]`` and ``text[object]``, each a (start, end) in characters, stand in relation ``label``."""

    text: str
    subject: tuple[int, int]
    object: tuple[int, int]
    label: str
    country: str


# --- sequence classification -----------------------------------------------------------------------------------------


def sections(min_words: int = corpus.MIN_WORDS) -> dict[str, list[Text]]:
    """Passages with the factbook's section ("Economy", "Geography", ...: 13 of them).

    Names of sub-fields are left out of the text, since they alone would give most sections away. Noise: a text that one
    country has under two sections (the climate stands in two) has no single answer and is dropped; what remains is as
    its editors filed it, and "Military" and "Transnational Issues" overlap in meaning.
    """
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for leaf in _leaves():
        if len(leaf.text.split()) >= min_words:
            found[leaf.country, leaf.text].add(leaf.section)
    rows = [Text(text, one.pop(), code) for (code, text), one in found.items() if len(one) == 1]
    return _split(rows)


def regions(min_words: int = 20) -> dict[str, list[Text]]:
    """Passages of at least ``min_words`` words with the region of their country (12, the factbook's own).

    Noise: a passage may say nothing about where its country is, so nobody can be right always.
    """
    texts = dict.fromkeys((leaf.text, leaf.region, leaf.country) for leaf in _leaves())
    return _split([Text(*row) for row in texts if len(row[0].split()) >= min_words])


# --- names of persons ------------------------------------------------------------------------------------------------

NAME_FIELDS = (
    "Background",
    "Executive branch",
    "Diplomatic representation in the US",
    "Diplomatic representation from the US",
    "National anthem(s)",
)
MIN_SENTENCE_WORDS = 5
MAX_WORD_LETTERS = 24  # longer ones are addresses, or whole sentences in a script without spaces
TITLES = frozenset(
    """President Prime Minister King Queen Prince Princess Emperor Sultan Emir Amir Sheikh Ambassador Governor General
    Governor-General Premier Chancellor Chairman Chairperson Commissioner Administrator Captain Colonel Major Lieutenant
    Brigadier Admiral Marshal Dictator Secretary Speaker Dame Sir Lord Dr Gen Lt Col Maj Capt Brig Chargé Affaires
    d'Affaires Co-Prince Pope Grand Duke Vice Acting Interim Transitional Chief Deputy Head Councilor Consul The In On
    At As By But And Since After When While Under Following Despite During Representative Taoiseach Monarch Shah Imam
    Ayatollah Supreme Leader State Government Republic Chef Bishop Regent Captains Premiere Conceding With For His Her
    President-elect""".split()
)
PARTICLES = frozenset("al el bin ibn bint de da do dos das del della di du van von der den la le ben ould y e".split())
NOT_NAMES = frozenset("FAX GDP USA UAE USSR NATO ECOWAS TBD BBC CIA AIDS HIV COVID UN EU AU UK US NA".split())
_WORD = re.compile(r"[^\W_]+(?:['’.\-][^\W_]+)*|[^\w\s]")
_SENTENCE = re.compile(r"(?<=[;.])\s+")
_ACRONYM = re.compile(r"\(([^\W\d_a-z-]{2,})\)")


def person_names(max_words: int = 48) -> dict[str, list[Tagged]]:
    """Lower-cased sentences of five fields that speak of persons; three in ten hold a name.

    The factbook prints surnames in capitals ("Samuel DOE", "Nguyen Phu TRONG"), so the case of the original gives the
    tags, and lower-casing hides them. A name is an all-capital word of three letters or more that is not known as an
    acronym, with the capitalised words and particles beside it that are not titles.

    Noise: a name printed without capitals is missed, a rare acronym is taken for a name, and where a first name begins
    behind an unlisted title is a guess. ``max_words`` cuts longer sentences.
    """
    acronyms = NOT_NAMES | {found for leaf in _leaves() for found in _ACRONYM.findall(leaf.text)}
    rows = {}
    for leaf in _leaves():
        if leaf.field in NAME_FIELDS:
            for sentence in _SENTENCE.split(leaf.text):
                words = _WORD.findall(sentence)[:max_words]
                if len(words) >= MIN_SENTENCE_WORDS and max(map(len, words)) <= MAX_WORD_LETTERS:
                    tags = tag_names(words, acronyms)
                    rows[Tagged(tuple(word.lower() for word in words), tuple(tags), leaf.country)] = None
    return _split(rows)


def tag_names(words: Sequence[str], acronyms: frozenset[str] | set[str] = NOT_NAMES) -> list[str]:
    """BIO tags of words in their original case.

    >>> tag_names("President Samuel DOE met Ruud VAN DER BERG".split())
    ['O', 'B-PER', 'I-PER', 'O', 'B-PER', 'I-PER', 'I-PER', 'I-PER']
    """
    tags = ["O"] * len(words)
    for start, end in _runs(words):
        if any(_is_surname(word, acronyms) for word in words[start:end]):
            tags[start:end] = ["B-PER"] + ["I-PER"] * (end - start - 1)
    return tags


def _runs(words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Longest runs of capitalised words and particles that hold no title and end in a capitalised word."""
    start = 0
    while start < len(words):
        end = start
        while end < len(words) and (_capitalised(words[end]) or (end > start and words[end].lower() in PARTICLES)):
            end += 1
        last = end
        while last > start and not _capitalised(words[last - 1]):
            last -= 1
        if last > start:
            yield start, last
        start = max(end, start + 1)


def _capitalised(word: str) -> bool:
    stem = word.removesuffix("’s").removesuffix("'s")
    known = stem in TITLES or stem.replace("’", "'") in TITLES
    return not known and (word[0].isupper() or bool(re.match(r"(al|el|ul)-[^\W\d_a-z]", word)))


def _is_surname(word: str, acronyms: frozenset[str] | set[str]) -> bool:
    stem = re.sub(r"['’]s$", "", word)
    letters = [char for char in stem if char.isalpha()]
    capitals = sum(char.isupper() for char in letters)
    roman = re.fullmatch(r"[IVXLC]+", stem)
    return capitals >= 3 and capitals / len(letters) > 0.6 and stem not in acronyms and not roman


# --- paragraphs, for questions and relations -------------------------------------------------------------------------

QUESTIONS = {  # the leaf of the factbook, and how one asks for it
    ("Climate",): "what is the climate like",
    ("Terrain",): "what is the terrain like",
    ("Location",): "where does it lie",
    ("Natural resources",): "what are the natural resources",
    ("Natural hazards",): "what are the natural hazards",
    ("Elevation", "highest point"): "what is the highest point",
    ("Elevation", "lowest point"): "what is the lowest point",
    ("Area", "total"): "how large is the area",
    ("Area - comparative",): "what is the area comparable to",
    ("Population", "total"): "how large is the population",
    ("Religions",): "what are the religions",
    ("Industries",): "what are the industries",
    ("Agricultural products",): "what are the agricultural products",
    ("Exports - commodities",): "what commodities are exported",
    ("Imports - commodities",): "what commodities are imported",
    ("Exports - partners",): "who are the partners of exports",
    ("Government type",): "what is the type of government",
    ("Legal system",): "what is the legal system",
    ("Independence",): "when was independence",
    ("National holiday",): "what is the national holiday",
    ("National anthem(s)", "title"): "what is the title of the national anthem",
    ("National symbol(s)",): "what is the national symbol",
    ("National color(s)",): "what are the national colors",
    ("Executive branch", "chief of state"): "who is the chief of state",
    ("Executive branch", "cabinet"): "how is the cabinet formed",
    ("Capital", "time difference"): "what is the time difference",
    ("Constitution", "history"): "what is the history of the constitution",
    ("Suffrage",): "who may vote",
    ("Median age", "total"): "what is the median age",
    ("Life expectancy at birth", "total population"): "what is the life expectancy",
    ("Major urban areas - population",): "what are the major urban areas",
    ("Judicial branch", "subordinate courts"): "what are the subordinate courts",
}
RELATIONS = {  # fields that list items, and how the country is related to each
    ("Natural resources",): "has the natural resource",
    ("Agricultural products",): "grows",
    ("Industries",): "has the industry",
    ("Exports - commodities",): "exports",
    ("Imports - commodities",): "imports",
    ("Exports - partners",): "exports to",
    ("Ethnic groups",): "has the ethnic group",
    ("Religions",): "has the religion",
    ("Languages",): "speaks",
    ("Natural hazards",): "suffers from",
    ("National color(s)",): "has the national colour",
}
FIELDS_A_PARAGRAPH = 4


def questions(per_country: int = 16, seed: int = SEED) -> dict[str, list[Question]]:
    """A paragraph of four fields of one country, without their names; a question asks for one of them.

    The answer is the whole text of that field. Noise: another field of the paragraph may answer as well (what is
    exported is often also a natural resource), and where one field ends nothing but a full stop tells.
    """
    rows = []
    for country, _, context, spans in _paragraphs(QUESTIONS, per_country, seed, longest=12):
        path = random.Random(f"{seed}{country}{context}").choice(sorted(spans))
        rows.append(Question(QUESTIONS[path], context, *spans[path], country))
    return _split(rows)


def relations(per_country: int = 16, seed: int = SEED) -> dict[str, list[Relation]]:
    """A paragraph of four lists that opens with the country's name (the subject); the object is one item of one list.

    The relation is the field that lists the item (11 relations). Noise: an item may stand in two lists and be in both
    relations ("gold" is mined and exported); only the list in which it is marked counts.
    """
    rows = []
    for country, name, context, spans in _paragraphs(RELATIONS, per_country, seed, longest=20):
        draw = random.Random(f"{seed}{country}{context}")
        path = draw.choice(sorted(spans))
        items = list(_items(context, *spans[path]))
        if items and name:
            opening = f"{name}: "
            start, end = draw.choice(items)
            moved = (start + len(opening), end + len(opening))
            rows.append(Relation(opening + context, (0, len(name)), moved, RELATIONS[path], country))
    return _split(rows)


def _paragraphs(
    fields: Iterable[tuple[str, ...]], per_country: int, seed: int, longest: int
) -> Iterator[tuple[str, str, str, dict[tuple[str, ...], tuple[int, int]]]]:
    """(country, its name, paragraph, span of each field in it); the fields are drawn and ordered at random.

    A field of more than ``longest`` words is left out, to keep paragraphs short.
    """
    wanted = set(fields)
    texts: dict[str, dict[tuple[str, ...], str]] = defaultdict(dict)
    names: dict[str, str] = {}
    for leaf in _leaves():
        names[leaf.country] = leaf.name
        path = (leaf.field, *leaf.path)
        if path in wanted and len(leaf.text.split()) <= longest:
            texts[leaf.country].setdefault(path, leaf.text.rstrip(" .;"))
    for country, of_country in texts.items():
        draw = random.Random(f"{seed}{country}")
        for _ in range(per_country if len(of_country) > FIELDS_A_PARAGRAPH else 0):
            paragraph, spans = "", {}
            for path in draw.sample(sorted(of_country), FIELDS_A_PARAGRAPH):
                spans[path] = (len(paragraph), len(paragraph) + len(of_country[path]))
                paragraph += of_country[path] + ". "
            yield country, names[country], paragraph.rstrip(), spans


def _items(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Spans of the items of a comma-separated list, without percentages and what stands in brackets."""
    depth, begin = 0, start
    for place in range(start, end + 1):
        char = text[place] if place < end else ","
        depth += (char == "(") - (char == ")")
        if char in ",;" and depth <= 0:
            item = re.match(r"\s*(?:and |other )?([^\d(%<>]+?)(?=\s*(?:[\d(%<>]|$))", text[begin:place])
            if item and 2 < len(item[1]) <= 40:
                yield begin + item.start(1), begin + item.end(1)
            begin = place + 1


# --- the corpus, leaf by leaf ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Leaf:
    country: str
    name: str
    region: str
    section: str
    field: str
    path: tuple[str, ...]
    text: str


def _leaves() -> Iterator[_Leaf]:
    for region, code, tree in corpus.countries():
        name = corpus.country_name(tree)
        for section, fields in tree.items():
            for field, content in fields.items():
                for path, raw in corpus.leaves(content):
                    text = corpus.clean(raw)
                    if text:
                        yield _Leaf(code, name, region, section, field, path, text)


def _split(rows: Iterable[Text | Tagged | Question | Relation]) -> dict[str, list]:
    """By country, with the corpus's own draw."""
    drawn = corpus.split_countries(code for _, code, _ in corpus.countries())
    of_country = {code: split for split, codes in drawn.items() for code in codes}
    splits: dict[str, list] = {"train": [], "validation": [], "test": []}
    for row in rows:
        splits[of_country[row.country]].append(row)
    return splits


def label_names(rows: Iterable[Text | Relation]) -> list[str]:
    """The labels that occur, the most frequent first."""
    return [label for label, _ in Counter(row.label for row in rows).most_common()]
