"""Training over a cable between two hosts, and what happens when it is slow, stalls, or is pulled."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks.two_hosts import STEPS, TRAINS
from safetensors.torch import load_file

from sslcourse.train.start_processes import torchrun

HOSTS = Path(__file__).parent / "ranks" / "two_hosts.py"
TRY = ["ip", "link", "add", "one", "type", "veth", "peer", "name", "two"]


def namespace() -> list[str] | None:
    """The command before a command that gives it a network of its own, if this machine allows that and cables in it."""
    if not (shutil.which("unshare") and shutil.which("nsenter") and shutil.which("ip")):
        return None
    for prefix in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if subprocess.run([*prefix, *TRY], capture_output=True, check=False).returncode == 0:
            return prefix
    return None


def without_a_slow_cable() -> bool:
    """Whether this machine has no tun interfaces (a container may hide them)."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError:
        return True
    return False


PREFIX = namespace()
pytestmark = pytest.mark.skipif(PREFIX is None, reason="no network namespaces with virtual cables on this machine")


def on_two_hosts(*arguments):
    run = subprocess.run([*PREFIX, sys.executable, HOSTS, *map(str, arguments)], capture_output=True, text=True,
                         timeout=400, check=False)  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_two_hosts_give_the_gradients_of_one():
    found = on_two_hosts("equal")
    assert all(of_rank["all-reduce"] for of_rank in found["collectives"])
    assert max(found["data_parallel"][how] for how in ("by hand", "ddp", "fsdp")) <= 1e-6


@pytest.mark.skipif(without_a_slow_cable(), reason="no tun interfaces on this machine")
def test_a_slow_cable_changes_no_gradient():
    found = on_two_hosts("delayed")
    assert found["there and back"] >= 0.01  # 5 ms each way
    assert found["packets"] > 100  # they did travel over this cable
    assert max(found["data_parallel"][how] for how in ("by hand", "ddp", "fsdp")) <= 1e-6


@pytest.mark.skipif(without_a_slow_cable(), reason="no tun interfaces on this machine")
def test_a_cable_that_stalls_for_less_than_the_limit_leaves_no_trace(tmp_path):
    found = on_two_hosts("stalled", tmp_path / "over the cable")
    assert found["passed while it stalled"] == [0, 0]
    undisturbed = torchrun(TRAINS, tmp_path / "here", *STEPS, processes=2, timeout=200)
    assert found["said"] == undisturbed[0].strip()
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("over the cable", "here"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_pulled_cable_ends_both_ranks_in_time_and_the_run_goes_on_afterwards(tmp_path):
    found = on_two_hosts("cut", tmp_path / "run")
    assert found["noticed after"] < 30  # the collective's limit is 8 s
    assert 150 <= found["kept"] < 600
    assert found["said"].startswith("steps ")
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert not (tmp_path / "run.partial").exists()
