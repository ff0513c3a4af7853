"""The command line: a call that cannot work gets one line and exit status 2, and nothing runs."""

import pytest

from sslcourse.commands.command_line import main


def status(*words):
    try:
        return main(list(words))
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["run", "77"], "there is no lesson '77'"),
        (["gate", "intro"], "unrecognized arguments: intro"),
        (["notebooks", "77"], "there is no lesson '77'"),
        (["run", "00", "--profile", "quick", "--out", "README.md"], "--out README.md"),
        (["build", "teacher", "00", "--out", "README.md"], "--out README.md"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        ([], "COMMAND"),
    ],
)
def test_a_call_that_cannot_work_is_refused(words, fragment, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("a file, not a folder")
    assert status(*words) == 2
    error = capsys.readouterr().err
    assert fragment in error.strip().splitlines()[-1]
    assert "Traceback" not in error


def test_a_teachers_copy_is_built_where_it_is_asked_for(tmp_path, capsys):
    assert status("build", "teacher", "0", "--out", str(tmp_path / "new" / "folder")) == 0
    assert (tmp_path / "new" / "folder" / "00_start_here.ipynb").is_file()
