"""The site but for Sphinx, which `make site` calls: pages, errata, translation, and the checks on built pages."""

import json
import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from markdown_it import MarkdownIt

from coursekit import audit, claims, course, site, source, translation

ROOT = Path(__file__).resolve().parents[1]
LESSONS = course.lessons(ROOT)


@pytest.fixture(scope="module")
def pages():
    return site.pages(ROOT)


def notebook(lesson):
    return nbformat.read(ROOT / "notebooks" / f"{lesson}.ipynb", as_version=4)


# -- errata ------------------------------------------------------------------------------------------------------------


def test_each_correction_leads_to_one_cell_and_each_test_exists():
    found = site.errata(ROOT)
    assert len(found) == 13
    for one in found:
        assert site.proof(one, notebook(one.lesson)) >= 0
        if one.test:
            file, _, name = one.test.partition("::")
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")


def test_the_anchor_of_a_correction_stands_before_its_cell(pages):
    for one in site.errata(ROOT):
        assert f"(lessons/{one.lesson}.ipynb#{one.anchor})" in pages["errata.md"]
        cells = json.loads(pages[f"lessons/{one.lesson}.ipynb"])["cells"]
        sources = ["".join(cell["source"]) for cell in cells]
        [place] = [index for index, source in enumerate(sources) if f"({one.anchor})=" in source.splitlines()]
        assert one.cell in sources[place + 1]


def test_a_correction_whose_cell_is_gone_or_not_the_only_one_is_refused():
    one = site.errata(ROOT)[0]
    with pytest.raises(site.SiteError, match="0 cells"):
        site.proof(one, notebook("01_loss_derivation"))
    twice = notebook(one.lesson)
    twice.cells += twice.cells
    with pytest.raises(site.SiteError, match="2 cells"):
        site.proof(one, twice)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('lesson = "masking_dataset"', 'lesson = "gone"', "entry 1: there is no lesson 'gone'"),
        ('lesson = "masking_dataset"', "", "entry 1: there is no lesson ''"),
        ("title =", "name =", "entry 1: .* unexpected keyword argument 'name'"),
    ],
)
def test_an_entry_that_is_badly_written_is_named(tmp_path, old, new, says):
    text = (ROOT / "docs" / "errata.toml").read_text(encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "errata.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    with pytest.raises(site.SiteError, match=says):
        site.errata(tmp_path)


# -- pages -------------------------------------------------------------------------------------------------------------


def test_every_claim_is_on_the_page_with_its_value_and_bound(pages):
    lines = pages["claims.md"].splitlines()
    rows = {match[1]: line for line in lines if (match := re.search(r"<br>`([a-z0-9-]+)` \|", line))}
    known = claims.load_all(ROOT)
    assert set(rows) == set(known)
    for lesson in LESSONS:
        ledger = claims.stored(ROOT, lesson)
        assert ledger.date in pages["claims.md"]
        for claim in claims.load(ROOT, lesson).values():
            row = rows[claim.id].replace("\\", "")
            assert claim.bound() in row
            assert claim.id not in ledger.values or claim.with_unit(ledger.values[claim.id]) in row


def test_the_front_page_lists_every_lesson_in_order_and_shows_the_cover(pages, tmp_path):
    assert re.findall(r"\(lessons/(\w+)\.ipynb\)", pages["index.md"]) == LESSONS
    cover = course.find(ROOT, course.config(ROOT).cover)
    assert f"(pictures/{cover}.png)" in pages["index.md"]
    site.write({"index.md": pages["index.md"]}, ROOT, tmp_path / "site")
    shown = set(re.findall(r"\((pictures/[^)]+)\)", pages["index.md"]))
    assert shown == {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.png")}
    assert len(shown) == len(LESSONS)


def test_what_readme_links_to_is_linked_on_the_site_and_is_there(pages):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = {one for one in re.findall(r"\]\(((?:docs|data)/[^)#\s]*)\)", text) if not one.endswith(".png")}
    assert len(linked) > 5
    assert linked <= set(site._LINKS)
    assert set(site._LINKS.values()) <= set(pages)


def test_every_module_that_people_import_has_a_page(pages):
    modules = {name[4:-4] for name in pages if name.startswith("api/") and name.endswith(".rst")}
    cells = "\n".join(cell.source for lesson in LESSONS for cell in build_code(lesson))
    imported = set(re.findall(r"^from ((?:sslcourse|coursekit)\.[\w.]+) import", cells, re.MULTILINE))
    imported |= {f"{room}.{name}" for room, names in re.findall(r"^from (sslcourse\.\w+) import (.+)$", cells, re.M)
                 for name in re.sub(r" as \w+", "", names).split(", ")}  # fmt: skip
    assert len(imported) > 20
    assert imported | {"coursekit.checks", "coursekit.lesson", "coursekit.plots", "coursekit.widgets"} <= modules
    assert not {name for name in modules if name.endswith("__main__")} | (modules & {"coursekit.commands", "sslcourse"})
    assert set(pages["api/index.md"].split()) >= modules


def test_what_unfolds_becomes_a_directive_with_markdown_in_its_summary():
    folded = site.markdown("<details><summary>a) `x` is &lt; <code>y</code></summary>\n\nText.\n\n</details>")
    assert folded.strip() == "::::{folded} a) `x` is < `y`\nText.\n::::"


def test_every_figure_keeps_its_alt_text_also_when_a_cell_shows_two(pages):
    for lesson in LESSONS:
        stored = [output for cell in notebook(lesson).cells for output in cell.get("outputs", [])]
        alts = [" ".join(one.data["text/plain"].split()) for one in stored if "image/png" in one.get("data", {})]
        assert alts
        assert all(len(alt) > 40 and not alt.startswith("<") for alt in alts)
        cells = json.loads(pages[f"lessons/{lesson}.ipynb"])["cells"]
        assert [cell["metadata"]["mystnb"]["image"]["alt"] for cell in cells if "mystnb" in cell["metadata"]] == alts


def test_two_figures_of_one_cell_each_have_their_own_text():
    picture = {"output_type": "display_data", "metadata": {}}
    outputs = [nbformat.from_dict({**picture, "data": {"image/png": "", "text/plain": alt}}) for alt in ("one", "two")]
    made = site._described(nbformat.v4.new_code_cell("draw()", outputs=outputs), None)
    assert [(cell.metadata["mystnb"]["image"]["alt"], cell.source) for cell in made] == [("one", "draw()"), ("two", "")]
    assert made[1].metadata["tags"] == ["remove-input"]


@pytest.mark.parametrize("lesson", LESSONS)
def test_headings_of_a_lesson_come_in_order(lesson):
    text = "\n\n".join(cell.source for cell in notebook(lesson).cells if cell.cell_type == "markdown")
    levels = [int(token.tag[1]) for token in MarkdownIt().parse(text) if token.type == "heading_open"]
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in zip([0, *levels], levels, strict=False))


@pytest.mark.parametrize("folder", ["cheatsheets", "teaching"])
def test_every_lesson_has_its_page_and_the_index_leads_to_it(pages, folder):
    general = [path.stem for path in sorted((ROOT / "docs" / folder).glob("*.md"))]
    entries = pages[f"{folder}/index.md"].partition(":maxdepth: 1\n")[2].strip("`\n").split("\n")
    assert entries == [*general, *LESSONS]
    for lesson in LESSONS:
        assert pages[f"{folder}/{lesson}.md"].startswith(f"# {course.number(lesson)} · "), lesson


# A name that stands for a number, and a claim's id. "`@record`" is a decorator.
UNFILLED = re.compile(r"(?<![\w.`])@[a-z]\w*|\{\{.*?\}\}|\(not measured yet\)")


def test_every_name_and_every_claim_in_prose_has_become_its_number(pages, tmp_path):
    said = {name: prose(text) if name.endswith(".ipynb") else text for name, text in pages.items()}
    left = {name: UNFILLED.findall(re.sub(r"(?s)<!--.*?-->", "", text)) for name, text in said.items()
            if not name.startswith("api/")}  # fmt: skip
    assert {name: found for name, found in left.items() if found} == {}
    numbers = source.numbers(ROOT)
    assert f"lesson {numbers['fine_tuning']}" in said["data.md"]
    assert re.search(rf"\b{re.escape(numbers['merge'])}\b", said["teaching/plans.md"])
    assert f"(lesson {numbers['quantization']})" in said["glossary.md"]


@pytest.mark.parametrize("text", ["as lesson @fine_tuning says", "{{fine-tuning-f1}}", "it is (not measured yet)"])
def test_what_was_left_unfilled_is_seen(text):
    assert UNFILLED.search(text)


def prose(text):
    return "\n\n".join(cell.source for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "markdown")


def build_code(lesson):
    return [cell for cell in notebook(lesson).cells if cell.cell_type == "code"]


NO_LINK = re.compile(r"(?s)```.*?```|`[^`\n]*`|\$[^$]*\$|!\[(?:[^\]\\]|\\.)*\]\([^)]*\)")  # code, formulas, pictures


def test_links_of_written_pages_lead_somewhere(pages):
    """Sphinx finds these, too, where it is installed."""
    at_all = 0
    for name, text in pages.items():
        text = prose(text) if name.endswith(".ipynb") else text
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(NO_LINK, "", text)):
            page, _, _ = target.partition("#")
            if page and not re.match(r"https?:|mailto:|en:", page):
                at_all += 1
                assert posixpath.normpath(posixpath.join(posixpath.dirname(name), page)) in pages, f"{name}: {target}"
    assert at_all > 50


# -- translation -------------------------------------------------------------------------------------------------------


def test_nothing_is_untranslated_or_stale():
    assert site.untranslated(ROOT) == []


def test_a_sentence_that_is_missing_and_one_that_nobody_says_are_named(monkeypatch):
    sentences = translation.load(ROOT)
    gone = "Labels are dear, text is free"
    del sentences.pairs[gone]
    sentences.pairs["Nobody says this."] = "没有人这样说。"
    monkeypatch.setattr(translation, "load", lambda root: sentences)
    assert site.untranslated(ROOT) == [f"{translation.PO}: untranslated: {gone}",
                                          f"{translation.PO}: stale, no page says it: Nobody says this."]  # fmt: skip


def test_links_and_numbers_need_no_translation_of_their_own():
    sentences = translation.Sentences({"The loss, derived": "推导损失函数"})
    assert sentences.word("[The loss, derived](en:lessons/01.html)") == "[推导损失函数](en:lessons/01.html)"
    assert sentences.word("12") == "12"
    assert sentences.problems() == []


def test_measured_numbers_are_filled_into_both_languages():
    filled = [pair for pair in translation.load(ROOT).pairs.items() if "nats a masked token" in pair[0]]
    value = claims.fill("{{pretrained-loss}}", ROOT)
    assert filled
    assert all(value in english and value in chinese for english, chinese in filled)


def test_merge_writes_what_sphinx_reads(tmp_path):
    template = tmp_path / "site.pot"
    template.write_text("".join(f'msgid "{one}"\nmsgstr ""\n\n' for one in ("", "Lesson", "New.")), encoding="utf-8")
    found = translation.merge(translation.Sentences({"Lesson": "课"}), template, tmp_path)
    assert found == [f"{translation.PO}: untranslated: New."]
    assert 'msgid "Lesson"\nmsgstr "课"' in (tmp_path / "zh_CN" / "LC_MESSAGES" / "site.po").read_text(encoding="utf-8")


# -- what a built page must hold ---------------------------------------------------------------------------------------

GOOD = ('<html lang="en"><body><article><h1>T</h1><h2 id="a">A</h2><h3>B</h3><img src="p.png" alt="What to see">'
        '<a href="#a">here</a> <a href="https://example.org">there</a></article></body></html>')  # fmt: skip


def build(folder: Path, html: str) -> list[str]:
    (folder / "index.html").write_text(html, encoding="utf-8")
    (folder / "p.png").write_bytes(b"")
    return audit.problems(folder)


def test_a_good_page_passes_and_an_empty_folder_does_not(tmp_path):
    assert audit.problems(tmp_path) == [f"{tmp_path} holds no page: run `make site`"]
    assert build(tmp_path, GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('href="#a"', 'href="#b"', "the link '#b' leads to no such place"),
        ('href="#a"', 'href="gone.html"', "the link 'gone.html' leads to no file"),
        ('src="p.png"', 'src="https://example.org/p.png"', "fetches from elsewhere: https://example.org/p.png"),
        ("<body>", '<body><script src="//example.org/x.js"></script>', "fetches from elsewhere: //example.org/x.js"),
        ("<body>", '<body><link rel="stylesheet" href="https://example.org/x.css">', "fetches from elsewhere"),
        ('alt="What to see"', 'alt=" "', "a picture has no alt text: p.png"),
        ('alt="What to see"', "", "a picture has no alt text: p.png"),
        ('<h2 id="a">A</h2>', '<i id="a"></i>', "after level 1 comes level 3: B"),
        ("<h3>B</h3>", "<h1>B</h1>", "it has 2 headings of the first level"),
        ('<html lang="en">', "<html>", "the page does not say its language"),
    ],
)
def test_each_fault_of_a_page_is_named(tmp_path, old, new, says):
    assert old in GOOD
    found = build(tmp_path, GOOD.replace(old, new))
    assert len(found) == 1
    assert says in found[0]


def test_a_style_that_fetches_a_font_is_named(tmp_path):
    (tmp_path / "x.css").write_text("@font-face { src: url(https://example.org/f.woff2) }", encoding="utf-8")
    [found] = build(tmp_path, GOOD)
    assert found.startswith("x.css: fetches from elsewhere")


@pytest.mark.parametrize("script", ["axe", "keyboard"])
def test_without_a_browser_they_say_so_and_do_not_pass(tmp_path, script):
    command = [sys.executable, ROOT / "tests" / "browser" / f"{script}.py"]
    command += [tmp_path, tmp_path / "axe.js"] if script == "axe" else []
    none = {**os.environ, "CHROMIUM": str(tmp_path / "none")}
    done = subprocess.run(command, env=none, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "nothing was" in done.stderr
    assert done.stdout == ""
