"""What this machine is and how fast: processor, cores, memory, accelerator, products of matrices, copies.

    described()                           # what a reader must know about a machine to judge a number
    allowed_cores(), memory()             # those that this process may use
    cgroup_limits()                       # what a container leaves it
    gflops, peak_flops, bandwidth         # what one gets, measured

Flags say what a CPU claims; a product of matrices says what one gets from it. What this module does not do: change any
setting, or judge a GPU that torch does not see.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from sslcourse.measure.timing import seconds


def peak_flops(
    dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu", size: int = 2048, repeats: int = 5
) -> float:
    """FLOP/s of a large matrix product, the best of several: the most that this machine does in practice.

    Raises:
        ValueError: if the device cannot multiply matrices of this type.
    """
    try:
        left = torch.randn(size, size, device=device).to(dtype)
        right = torch.randn(size, size, device=device).to(dtype)
        return 2 * size**3 / seconds(lambda: left @ right, repeats, device, pick=min)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(f"dtype={dtype} cannot be multiplied on device={str(device)!r} ({error}); "
                         "use torch.bfloat16 or torch.float32") from error  # fmt: skip


def bandwidth(megabytes: float, device: torch.device | str = "cpu", repeats: int = 7) -> float:
    """Bytes a second that a copy moves, reads and writes added, at best; a small buffer measures a cache."""
    if not megabytes > 0:
        raise ValueError(f"megabytes={megabytes} must be positive")
    source = torch.zeros(max(1, int(megabytes * 2**20 / 4)), device=device)
    target = torch.empty_like(source)
    times = max(1, int(64 / megabytes))  # small copies many times, or the clock would be measured

    def copy() -> None:
        for _ in range(times):
            target.copy_(source)

    return 2 * source.nbytes * times / seconds(copy, repeats, device, pick=min)


GB = 1e9


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Names of instruction sets, as Linux spells them; on macOS those that matter here, elsewhere what torch knows."""
    if cpuinfo.exists():
        lines = (line.partition(":") for line in cpuinfo.read_text(errors="replace").splitlines())
        return {flag for key, _, value in lines if key.strip() in ("flags", "Features") for flag in value.split()}
    if sys.platform == "darwin":
        names = {"bf16": "hw.optional.arm.FEAT_BF16", "asimddp": "hw.optional.arm.FEAT_DotProd"}
        return {flag for flag, key in names.items() if sysctl(key) == "1"}
    probes = {"avx512_bf16": "_is_avx512_bf16_supported", "avx512_vnni": "_is_avx512_vnni_supported",
              "amx_tile": "_is_amx_tile_supported"}  # fmt: skip
    return {flag for flag, probe in probes.items() if getattr(torch.cpu, probe, bool)()}


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return " ".join(value.split())
    return sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine() or "unknown"


def described() -> dict[str, object]:
    """What a reader must know about a machine to judge a measured number."""
    return {
        "cpu": cpu_name(),
        "cores": allowed_cores(),
        "bf16": bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"}),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def sysctl(key: str) -> str:
    """One value of macOS's sysctl; empty where there is none."""
    program = shutil.which("sysctl")
    if sys.platform != "darwin" or program is None:
        return ""
    return subprocess.run([program, "-n", key], capture_output=True, text=True, timeout=10).stdout.strip()


def allowed_cores() -> int:
    """Cores that this process may be scheduled on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores() -> int | None:
    import psutil  # comes with accelerate

    return psutil.cpu_count(logical=False)


def memory() -> tuple[int, int]:
    """(total, available) bytes of the whole machine."""
    import psutil

    now = psutil.virtual_memory()
    return now.total, now.available


def cgroup_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> tuple[float, ...]:
    """(cores, bytes, bytes in use) that the container allows; infinite and 0 where nothing is limited.

    Every group from this process's own up to the root counts; the narrowest limit wins. Version 2 keeps one tree,
    version 1 one a resource. Pages of files that the kernel would give back do not count as used.
    """
    cores, limit, used = float("inf"), float("inf"), 0.0
    for folder in _cgroup_folders(root, own):
        quota, period = (_numbers(folder / "cpu.max") or _numbers(folder / "cpu.cfs_quota_us")
                         + _numbers(folder / "cpu.cfs_period_us") or [-1, 1])[:2]
        if quota > 0 and period > 0:
            cores = min(cores, quota / period)
        for most, now in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            values = _numbers(folder / most)
            if values and 0 < values[0] < min(limit, 2**60):  # version 1 says "no limit" with a number near 2**63
                limit, used = values[0], max(0.0, sum(_numbers(folder / now)[:1]) - _inactive_file(folder))
    return cores, limit, used


def _cgroup_folders(root: Path, own: Path) -> Iterator[Path]:
    if not own.exists():
        return
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        tree = root / controllers if controllers else root
        inside = tree / path.lstrip("/")
        yield from (folder for folder in (inside, *inside.parents) if folder == tree or tree in folder.parents)


def _numbers(file: Path) -> list[float]:
    """The numbers in a one-line file; "max" and an absent or unreadable file give none."""
    try:
        return [float(word) for word in file.read_text().split() if word.lstrip("-").isdigit()]
    except OSError:
        return []


def _inactive_file(folder: Path) -> float:
    stat = folder / "memory.stat"
    lines = stat.read_text().splitlines() if stat.exists() else []
    return next((float(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0.0)


def accelerator() -> tuple[str | None, float | None, str]:
    """(name, memory in GB, torch's name for it) of the GPU that torch would use; (None, None, "cpu") without one."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        count = torch.cuda.device_count()
        return f"{count} × {properties.name}" if count > 1 else properties.name, properties.total_memory / GB, "cuda"
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)", None, "cpu"  # the lessons train on CUDA or on the CPU
    return None, None, "cpu"


def gflops(dtype: torch.dtype, size: int = 1024, seconds: float = 0.25) -> float:
    """GFLOP/s of a product of two ``[size, size]`` matrices on the CPU: the fastest of those that fit ``seconds``."""
    left = torch.ones(size, size, dtype=dtype)
    left @ left  # the first call prepares its kernel
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end or best == float("inf"):
        left @ left
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9
