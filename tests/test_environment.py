"""What the course stands on: one list of packages behind every door, thin commands, tests without a network, the data.

Names of package registries are put together from parts here, because no committed file may hold one.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from sslcourse.data import corpus

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DIRECT = [Requirement(line) for line in PROJECT["dependencies"]]
BY_CHOICE = {"minilm", "site", "browser"}  # extras that the two commands do not install
DIRECT += [Requirement(line) for extra in PROJECT["optional-dependencies"].values() for line in extra]
CHOSEN = {Requirement(line).name for extra in BY_CHOICE for line in PROJECT["optional-dependencies"][extra]}
PINS = {
    canonicalize_name(requirement.name): requirement
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
    for requirement in [Requirement(line)]
}


def pinned(requirement: Requirement) -> Version:
    [specifier] = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is not a pin"
    return Version(specifier.version)


# -- packages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_every_direct_dependency_is_pinned_within_its_range(requirement):
    pin = PINS.get(canonicalize_name(requirement.name))
    assert pin is not None, f"constraints.txt does not pin {requirement.name}"
    assert requirement.specifier.contains(pinned(pin)), f"{pin} is outside {requirement}"


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_every_direct_dependency_has_a_lower_bound(requirement):
    assert any(bound.operator in (">=", "~=", "==") for bound in requirement.specifier)


def test_pins_are_public_versions_and_platform_packages_stay_free():
    assert not [str(pin) for pin in PINS.values() if pinned(pin).local]
    assert not [name for name in PINS if name == "triton" or name.startswith(("nvidia-", "sslcourse"))]


def test_installed_versions_equal_the_pins():
    """Also those of packages that nobody names directly; a package for another platform may be absent."""
    different = {}
    for name, pin in PINS.items():
        if (have := installed(name)) not in (None, pinned(pin)):
            different[name] = f"{have} installed, {pinned(pin)} pinned"
    assert not different
    assert not [str(need) for need in DIRECT if need.name not in CHOSEN and installed(need.name) is None]


LOWEST = ("3.11.0", "3.12.0", "3.13.0")  # of each Python that README names: who has it may not have a later patch


def pins_that_refuse(python_of_pin: dict[str, str | None]) -> list[str]:
    """A line for each package and each of ``LOWEST`` that its ``Requires-Python`` leaves out."""
    found = []
    for name, needs in python_of_pin.items():
        refused = [python for python in LOWEST if not SpecifierSet(needs or "").contains(python)]
        found += [f"{name} needs Python {needs}, which {python} is not" for python in refused]
    return found


def test_every_pin_fits_the_lowest_python_of_each_version_that_readme_names():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(python.removesuffix(".0") in readme for python in LOWEST)
    here = [name for name in PINS if installed(name) is not None]
    assert not pins_that_refuse({name: importlib.metadata.metadata(name)["Requires-Python"] for name in here})


def test_a_pin_that_needs_a_later_patch_is_found():
    assert pins_that_refuse({"good": ">=3.10", "silent": None, "patch": ">=3.11.5", "old": "<3.13"}) == [
        "patch needs Python >=3.11.5, which 3.11.0 is not",
        "old needs Python <3.13, which 3.13.0 is not",
    ]


def installed(name: str) -> Version | None:
    try:
        return Version(Version(importlib.metadata.version(name)).public)
    except importlib.metadata.PackageNotFoundError:
        return None


def test_nothing_that_is_needed_is_unpinned():
    """Every requirement of a requirement, as this platform and Python evaluate it, has its pin."""
    todo, seen = list(DIRECT), set()
    while todo:
        requirement = todo.pop()
        for extra in {"", *requirement.extras}:
            name = canonicalize_name(requirement.name)
            if (name, extra) in seen or installed(name) is None:
                continue
            seen.add((name, extra))
            needs = map(Requirement, importlib.metadata.requires(name) or [])
            todo += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    free = {name for name, _ in seen} - set(PINS)
    assert not {name for name in free if name != "triton" and not name.startswith(("nvidia-", "cuda-"))}


def test_conda_door_opens_on_the_same_list():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert {re.split(r"[<>=]", entry)[0] for entry in conda} == {"python", "pip"}
    assert f"python{PROJECT['requires-python']}" in conda
    assert pip[0] == "-c constraints.txt"
    [editable] = re.findall(r"-e \.\[(.*)]", pip[1])
    assert len(pip) == 2, "packages are named in pyproject.toml only"
    assert set(editable.split(",")) == set(PROJECT["optional-dependencies"]) - BY_CHOICE
    assert environment["name"] == PROJECT["name"]


def test_every_door_installs_the_same():
    """make, conda, the lines without make, and the container, which calls make."""
    same = "-c constraints.txt -e"
    extras = ",".join(extra for extra in PROJECT["optional-dependencies"] if extra not in BY_CHOICE)
    for name in ("Makefile", "README.md", "CONTRIBUTING.md"):
        found = re.findall(rf"{same} ['\"]\.\[([^]]*)]['\"]", (ROOT / name).read_text(encoding="utf-8"))
        assert extras in found, name
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert container["postCreateCommand"] == "make .venv/.ready"
    assert container["forwardPorts"] == [8888]  # where `make lab` looks for a free port first
    [python] = re.findall(r"^python:(\d+\.\d+)-", container["image"])
    assert Version(python) in SpecifierSet(PROJECT["requires-python"])
    assert f"Python {python}, git and make" in (ROOT / "README.md").read_text(encoding="utf-8"), "what CI runs on"
    settings = container["customizations"]["vscode"]["settings"]
    assert settings["python.defaultInterpreterPath"].endswith("/.venv/bin/python")
    assert set(container["containerEnv"]) == {"TORCH_INDEX"}, "nothing else of a person's machine goes in"


def test_readme_names_every_door():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for door in (".devcontainer", "build colab --repository", "environment.yml", "make lab", "py -3.11 -m venv"):
        assert door in text
    assert (ROOT / ".devcontainer").is_dir()


def test_versions_that_doctor_asks_for_are_those_of_pyproject():
    from sslcourse.commands import doctor

    bounds = {requirement.name: str(requirement.specifier) for requirement in DIRECT}
    for name, least in doctor.MIN_VERSIONS.items():
        assert f">={least}" in bounds[name].split(",")
    assert PROJECT["requires-python"] == ">=" + ".".join(map(str, doctor.MIN_PYTHON))


# -- commands ----------------------------------------------------------------------------------------------------------

MAKE = shutil.which("make")


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    outer = ("MAKE", "MFLAGS", "ARGS", "PYTHON", "TORCH_INDEX")  # of the `make test` that may be running this
    clean = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    return subprocess.run([MAKE, *arguments], cwd=folder, env=clean, capture_output=True, text=True, timeout=60)


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


def test_makefile_has_the_promised_targets():
    assert {"lab", "test", "run", "notebooks", "bench", "gate", "site", "clean"} <= targets()


@pytest.mark.skipif(MAKE is None, reason="there is no make here; the lines without make are in CONTRIBUTING.md")
class TestMake:
    @pytest.fixture
    def copy(self, tmp_path: Path) -> Path:
        """The Makefile alone, with a stand-in for Python that writes down how it was called."""
        for name in ("Makefile", "constraints.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path)
        stub = tmp_path / "python"
        stub.write_text(
            "#!/bin/sh\n"
            f'echo "$@" >> "{tmp_path}/calls"\n'
            'case "$*" in\n'
            "*fail*) exit 1;;\n"
            f'"-m venv"*) rm -rf .venv; mkdir -p .venv/bin; cp "{stub}" .venv/bin/python;;\n'
            "esac\n"
        )
        stub.chmod(0o755)
        return tmp_path

    def calls(self, copy: Path) -> list[str]:
        log = copy / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        log.write_text("")
        return [line for line in lines if line.startswith("-m")]

    def test_first_call_installs_torch_first_and_the_second_nothing(self, copy):
        done = make("lab", "PYTHON=./python", folder=copy)
        assert done.returncode == 0, done.stderr
        assert "190 MB" in done.stdout
        assert "TORCH_INDEX" in done.stdout
        venv, pip, torch, rest, lab = self.calls(copy)
        assert venv == "-m venv --clear .venv"
        assert re.search(r" pip==[\d.]+$", pip)
        assert all("--only-binary :all:" in call for call in (pip, torch, rest)), "nothing is built from source"
        assert torch.endswith(str(PINS["torch"]))
        assert rest.endswith("-c constraints.txt -e .[lessons,test]")
        assert lab == "-m sslcourse lab"
        assert make("lab", "PYTHON=./python", folder=copy).returncode == 0
        assert self.calls(copy) == ["-m sslcourse lab"]

    def test_the_site_installs_what_only_it_needs_once(self, copy):
        assert make("site", "PYTHON=./python", folder=copy).returncode == 0
        *_, extra, site = self.calls(copy)
        assert extra.endswith("-c constraints.txt -e .[site]")
        assert site == "-m sslcourse site"
        assert make("site", "PYTHON=./python", folder=copy).returncode == 0
        assert self.calls(copy) == ["-m sslcourse site"]

    def test_torch_alone_comes_from_its_own_index(self, copy):
        make("gate", "PYTHON=./python", "TORCH_INDEX=https://index.example/cpu", folder=copy)
        _, pip, torch, rest, _ = self.calls(copy)
        assert "--index-url https://index.example/cpu" in torch
        assert "index" not in pip + rest

    def test_an_interrupted_installation_starts_again(self, copy):
        (copy / ".venv" / "bin").mkdir(parents=True)
        (copy / ".venv" / "bin" / "python").write_text("half made")
        assert make(".venv/.ready", "PYTHON=./python", folder=copy).returncode == 0
        assert self.calls(copy)[0] == "-m venv --clear .venv"

    def test_a_failed_installation_leaves_no_stamp(self, copy):
        make(".venv/.ready", "PYTHON=./python", folder=copy)
        stub = copy / ".venv" / "bin" / "python"
        stub.write_text(stub.read_text().replace("*fail*", "*install*"))
        os.utime(copy / ".venv" / ".ready", (0, 0))
        assert make("gate", "PYTHON=./python", folder=copy).returncode != 0
        assert not (copy / ".venv" / ".ready").exists()

    def test_changed_pins_are_installed_into_the_same_environment(self, copy):
        make(".venv/.ready", "PYTHON=./python", folder=copy)
        self.calls(copy)
        os.utime(copy / ".venv" / ".ready", (0, 0))
        assert make(".venv/.ready", "PYTHON=./python", folder=copy).returncode == 0
        assert [line for line in self.calls(copy) if "venv --clear" in line] == []

    def test_a_broken_python_and_a_moved_folder_are_mended(self, copy):
        make(".venv/.ready", "PYTHON=./python", folder=copy)
        (copy / ".venv" / "bin" / "python").unlink()
        assert make("--question", ".venv/.ready", "PYTHON=./python", folder=copy).returncode == 1
        make(".venv/.ready", "PYTHON=./python", folder=copy)
        assert make("--question", ".venv/.ready", "PYTHON=./python", folder=copy).returncode == 0
        (copy / ".venv" / ".ready").write_text("/somewhere/else\n")
        assert make("--question", ".venv/.ready", "PYTHON=./python", folder=copy).returncode == 1

    def test_an_old_python_gets_one_clear_line(self, copy):
        old = copy / "old"
        old.write_text("#!/bin/sh\nexit 1\n")
        old.chmod(0o755)
        done = make("lab", "PYTHON=./old", folder=copy)
        assert done.returncode != 0
        assert "Python 3.11 or newer is needed" in done.stdout
        assert not (copy / ".venv").exists()


def test_stages_run_on_after_a_failure_and_end_red(tmp_path, monkeypatch, capfd):
    spec = importlib.util.spec_from_file_location("stages", ROOT / ".ci" / "stages.py")
    stages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stages)
    assert list(stages.STAGES) == ["lint", "gate", "unit", "teacher", "learner"]
    monkeypatch.setattr(stages, "STAGES", {"bad": ["-c", "raise SystemExit(3)"], "good": ["-c", "print('ran')"]})
    assert stages.main([]) == 1
    shown = capfd.readouterr().out
    assert "ran" in shown
    assert re.search(r"bad +FAILED", shown)
    assert re.search(r"good +passed", shown)
    assert stages.main(["good"]) == 0
    assert stages.main(["unheard-of"]) == 2


# -- no network --------------------------------------------------------------------------------------------------------


def guarded(code: str) -> subprocess.CompletedProcess[str]:
    """``code`` in a Python that has .ci/offline before it, as .ci/run does it without a namespace."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".ci" / "offline")}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('192.0.2.1', 443), timeout=3)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 9))",
        "socket.socket(socket.AF_INET6).connect(('2001:db8::1', 443))",
        "socket.getaddrinfo('example.org', 443)",
    ],
)
def test_socket_guard_refuses_the_world(attempt):
    done = guarded(f"import socket; {attempt}")
    assert done.returncode != 0
    assert "was refused by .ci/offline" in done.stderr


def test_socket_guard_lets_this_machine_talk_to_itself():
    code = "s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname()).close()"
    assert guarded(f"import socket; {code}").returncode == 0
    assert guarded("import socket; socket.getaddrinfo('localhost', 80)").returncode == 0


def test_pip_cannot_be_called_behind_the_shims():
    shims = ROOT / ".ci" / "nopip"
    environment = {**os.environ, "PYTHONPATH": str(shims), "PATH": f"{shims}{os.pathsep}{os.environ['PATH']}"}
    calls = [[sys.executable, "-m", "pip", "--version"]]
    calls += [["pip", "--version"], ["pip3", "--version"]] if os.name == "posix" else []
    for call in calls:
        done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=30)
        assert done.returncode != 0
        assert "after the installation" in done.stderr


def test_ci_runs_make_test_inside_the_cut():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "set -euo pipefail" in script
    steps = ["\nmake .venv/.ready", "make .venv/.ready PYTHON=", "prove_imports.py"]
    steps += ["unshare --net", "prove_cut.py", "&& make test"]
    places = [script.index(step) for step in steps]
    assert places == sorted(places)
    for cache in ("HF_HOME", "HF_DATASETS_CACHE", "TORCH_HOME", "XDG_CACHE_HOME"):
        assert cache in script


# -- the repository ----------------------------------------------------------------------------------------------------


def committed() -> list[Path]:
    """Files that git tracks or would add."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout  # fmt: skip
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_package_registry():
    hosts = [("py", "pi.org"), ("files.python", "hosted.org"), ("download.", "pytorch.org"), ("conda.ana", "conda.org"),
             ("repo.ana", "conda.com"), ("registry.npm", "js.org"), ("pypi.", "nvidia.com")]  # fmt: skip
    names = ["".join(parts).encode() for parts in hosts]
    named = [(str(file.relative_to(ROOT)), name) for file in committed() for name in names if name in file.read_bytes()]
    assert not named


def test_what_is_made_here_is_not_committed():
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert {".venv", "work/", "build/", "data/cache/"} <= set(ignored)


def test_licences_and_citation_agree():
    assert PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert "creativecommons.org/licenses/by/4.0" in (ROOT / "LICENSE-prose").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], "MIT")
    assert PROJECT["version"] in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# -- the data card -----------------------------------------------------------------------------------------------------


def test_numbers_in_the_data_card_are_recomputed():
    card = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    splits = corpus.load_splits()
    everything = [row for rows in splits.values() for row in rows]
    for name, rows in {**splits, "all": everything}.items():
        assert table_row(name, rows) in card
    sections = Counter(row["section"] for row in everything).most_common()
    distinct = {key: len({row[key] for row in everything}) for key in ("region", "field")}
    assert f"sections: {len(sections)}; regions: {distinct['region']}; distinct fields: {distinct['field']}" in card
    assert f"largest section: {sections[0][0]} ({sections[0][1]:,} passages)" in card
    assert f"smallest: {sections[-1][0]} ({sections[-1][1]:,})" in card
    train = [row["text"] for row in splits["train"]]
    for name in ("validation", "test"):
        share = corpus.duplicate_share([row["text"] for row in splits[name]], train)
        assert f"{share:.1%} of {name}" in card
    assert f"under {corpus.MIN_WORDS} words" in card
    assert f"{corpus.HELD_OUT_COUNTRIES} for validation, {corpus.HELD_OUT_COUNTRIES} for test" in card


def table_row(name: str, rows: list[dict[str, str]]) -> str:
    countries = len({row["country"] for row in rows})
    words, characters = sum(len(row["text"].split()) for row in rows), sum(len(row["text"]) for row in rows)
    return f"| {name} | {countries:,} | {len(rows):,} | {words:,} | {characters:,} |"
