"""Where a course stands, what its lessons are called, and how they are numbered."""

import pytest

from coursekit import course, source

NUMBERS = {"fine_tuning": "04", "merge": "4.5", "e1": "1.2"}


@pytest.mark.parametrize("word", ["12_fine_tuning", "fine_tuning", "12"])
def test_a_lesson_is_found_by_its_id_its_name_and_its_number(tmp_path, word):
    make(tmp_path, "01_tiny", "12_fine_tuning")
    assert course.find(tmp_path, word) == "12_fine_tuning"


@pytest.mark.parametrize("word", ["1", "01", "tiny"])
def test_a_number_may_go_without_its_zero(tmp_path, word):
    make(tmp_path, "01_tiny", "11_tinier")
    assert course.find(tmp_path, word) == "01_tiny"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("fine_tunning", "'fine_tunning'; did you mean 'fine_tuning'?"),
        ("77", "'77'."),
        ("", "''."),
    ],
)
def test_a_lesson_that_there_is_not_is_named_with_the_nearest(tmp_path, word, said):
    make(tmp_path, "01_tiny", "04_fine_tuning")
    with pytest.raises(LookupError) as error:
        course.find(tmp_path, word)
    assert error.value.args[0] == f"there is no lesson {said} Known: 01_tiny, 04_fine_tuning"


def test_a_course_without_lessons_says_so(tmp_path):
    assert course.lessons(tmp_path) == []
    with pytest.raises(LookupError, match="Known: none"):
        course.find(tmp_path, "1")


def test_lessons_are_folders_with_a_source_in_order_of_their_numbers(tmp_path):
    make(tmp_path, "10_last", "00_first", "1_one", "02_Capital", "__pycache__")
    (course.sources(tmp_path) / "03_empty").mkdir()
    (course.sources(tmp_path) / "04_flat.py").write_text("")
    assert course.lessons(tmp_path) == ["00_first", "10_last"]


def make(root, *lessons):
    for lesson in lessons:
        course.part(root, lesson, "lesson.py").parent.mkdir(parents=True)
        course.part(root, lesson, "lesson.py").write_text("")


# -- what a course says of itself --------------------------------------------------------------------------------------


def test_a_course_may_say_nothing_of_itself(tmp_path):
    assert course.config(tmp_path) == course.Config()
    assert course.command(tmp_path) == "python -m coursekit"
    assert course.config(tmp_path).variable("PROFILE") == "COURSE_PROFILE"
    assert course.config(tmp_path).call("machine") is None


def test_what_a_course_says_of_itself_is_read(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[tool.coursekit]\npackage = "kitchen"\ncode = ["kitchen"]\nmachine = "platform:system"\n')
    config = course.config(tmp_path)
    assert (config.package, config.code) == ("kitchen", ("kitchen",))
    assert config.variable("ONLINE") == "KITCHEN_ONLINE"
    assert course.command(tmp_path) == "python -m kitchen"
    assert config.call("machine") == __import__("platform").system()


def test_a_key_that_nobody_reads_is_refused(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.coursekit]\npakage = "kitchen"\n')
    with pytest.raises(ValueError, match=r"\[tool.coursekit\] has 'pakage'; known are .*package"):
        course.config(tmp_path)


# -- numbers in prose --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prose", "said"),
    [
        ("lesson @fine_tuning, exercise @merge.", "lesson 04, exercise 4.5."),
        ("(@merge) @e1: @fine_tuning's", "(4.5) 1.2: 04's"),
        ("**@merge**, 5 min.", "**4.5**, 5 min."),
        ("@merger and @Merge and @_merge", "@merger and @Merge and @_merge"),
        ("`@merge`, me@merge, me.@merge, /@merge, @@merge", "`@merge`, me@merge, me.@merge, /@merge, @@merge"),
        ("@no_grad stays, @unknown too", "@no_grad stays, @unknown too"),
    ],
)
def test_names_become_numbers_in_prose(prose, said):
    assert course.numbered(prose, NUMBERS) == said


def test_names_of_nothing_are_told():
    prose = "@fine_tuning, @merge, @merger, `@property`, me@example.org, and @gone."
    assert course.unknown_references(prose, NUMBERS) == ["@merger", "@gone"]


def test_numbers_follow_the_folders_and_the_order_of_exercises(tiny):
    tiny.add("12_other")
    assert source.numbers(tiny.root) == {"tiny": "01", "masked_mean_loss": "1.1", "other": "12", "other_loss": "12.1"}
    tiny.folder.rename(tiny.folder.with_name("03_tiny"))
    assert source.numbers(tiny.root)["masked_mean_loss"] == "3.1"


@pytest.mark.parametrize(
    ("lesson", "word", "said"),
    [
        ("02_tiny", "tiny_loss", "02_tiny: 'tiny' is already 01; names of lessons and exercises are unique"),
        ("02_other", "masked_mean_loss", "02_other: 'masked_mean_loss' is already 1.1; names of"),
        ("02_other", "tiny", "02_other: 'tiny' is already 01; names of"),
    ],
)
def test_two_lessons_or_exercises_of_one_name_are_refused(tiny, lesson, word, said):
    other = tiny.add(lesson) / "lesson.py"
    tiny.plant(f"{lesson[3:]}_loss", word, other)
    with pytest.raises(ValueError, match=said):
        source.numbers(tiny.root)


def test_an_exercise_has_not_the_name_of_another_in_its_lesson_or_of_the_lesson(tiny):
    text = tiny.source.read_text()
    start, end = text.index("# %% [markdown]\n# ### Exercise"), text.index("# %% [markdown] tags")
    tiny.source.write_text(text[:end] + text[start:end] + text[end:])
    with pytest.raises(ValueError, match="01_tiny: 'masked_mean_loss' is already"):
        source.numbers(tiny.root)
    tiny.source.write_text(text.replace("masked_mean_loss", "tiny"))
    with pytest.raises(ValueError, match="01_tiny: 'tiny' is already"):
        source.numbers(tiny.root)
