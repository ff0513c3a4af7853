""".ci/stages.py counts what ran: a setting that leaves tests out is red, wherever it stands."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def stages(tmp_path, monkeypatch):
    """The stages, for a scratch repository of two files of tests."""
    spec = importlib.util.spec_from_file_location("stages", ROOT / ".ci" / "stages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "REPORT", tmp_path / "build" / "tests")
    monkeypatch.setitem(module.STAGES, "unit", ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"])
    (tmp_path / "tests").mkdir()
    for name in ("one", "two"):
        (tmp_path / "tests" / f"test_{name}.py").write_text(f"def test_{name}():\n    assert True\n")
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    return module


def test_all_of_them_are_green(stages):
    assert stages.main(["unit"]) == 0


@pytest.mark.parametrize(("file", "planted"), [
    ("pyproject.toml", '[tool.pytest.ini_options]\naddopts = "--ignore=tests/test_two.py"\n'),
    ("pyproject.toml", '[tool.pytest.ini_options]\naddopts = "-k one"\n'),
    ("pytest.ini", "[pytest]\npython_files = test_one.py\n"),
    ("tests/conftest.py", 'collect_ignore = ["test_two.py"]\n'),
])  # fmt: skip
def test_a_setting_that_leaves_tests_out_is_red(stages, file, planted, capfd):
    (stages.ROOT / file).write_text(planted)
    assert stages.main(["unit"]) == 1
    assert "== unit: test_two::test_two did not run" in capfd.readouterr().out
