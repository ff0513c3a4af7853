"""Two hosts on one machine: two network namespaces joined by a virtual cable, one rank on each.

Run inside a network namespace of its own (see test_two_hosts.py); what it prints at the end is one line of JSON.

    python two_hosts.py equal             the differences of ``sslcourse.equalities`` between the two hosts
    python two_hosts.py cut OUT           trains, pulls the cable after the first checkpoint, plugs it in again, resumes
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAINS = Path(__file__).with_name("pretraining.py")
ADDRESS = ("10.9.0.1", "10.9.0.2")
CABLE = ("near0", "far0")
STEPS = ("--steps", 600, "--timeout", 8)


class TwoHosts:
    def __init__(self) -> None:
        self.far = subprocess.Popen(["unshare", "--net", "sleep", "900"])
        ours = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self.far.pid}/ns/net") == ours:
            time.sleep(0.05)
        self.enter = ([], ["nsenter", "-t", str(self.far.pid), "-n"])
        self.ip(0, "link", "add", CABLE[0], "type", "veth", "peer", "name", CABLE[1])
        self.ip(0, "link", "set", CABLE[1], "netns", str(self.far.pid))
        for host in (0, 1):
            self.ip(host, "addr", "add", f"{ADDRESS[host]}/24", "dev", CABLE[host])
            self.ip(host, "link", "set", "lo", "up")
            self.ip(host, "link", "set", CABLE[host], "up")

    def ip(self, host: int, *arguments: str) -> None:
        subprocess.run([*self.enter[host], "ip", *arguments], check=True)

    def torchrun(self, port: int, *target: object) -> list[tuple[subprocess.Popen, Path]]:
        """The line that one would type on each host, and where each writes."""
        started = []
        for host in (0, 1):
            log = Path(tempfile.mkdtemp()) / "log"
            command = [
                *(
                    *self.enter[host],
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--nnodes=2",
                    f"--node-rank={host}",
                ),
                *(f"--master-addr={ADDRESS[0]}", f"--master-port={port}", "--nproc-per-node=1", *map(str, target)),
            ]
            surroundings = {**os.environ, "GLOO_SOCKET_IFNAME": CABLE[host], "OMP_NUM_THREADS": "1"}
            with log.open("w") as file:
                started.append((subprocess.Popen(command, env=surroundings, stdout=file, stderr=file), log))
        return started


def finished(started: list[tuple[subprocess.Popen, Path]], seconds: float) -> list[str]:
    """What each host wrote; an error if it did not end well in time."""
    said = []
    for process, log in started:
        status = process.wait(seconds)
        said.append(log.read_text())
        if status:
            raise RuntimeError(said[-1][-3000:])
    return said


def equal(hosts: TwoHosts) -> dict:
    said = finished(hosts.torchrun(29511, "-m", "sslcourse.equalities", "collectives", "data_parallel"), 120)
    return json.loads(next(line for line in said[0].splitlines() if line.startswith("{")))


def cut(hosts: TwoHosts, out: str) -> dict:
    started = hosts.torchrun(29512, TRAINS, out, *STEPS)
    checkpoint = Path(f"{out}.partial/checkpoint/state.json")
    until(checkpoint.is_file, 90)
    hosts.ip(0, "link", "set", CABLE[0], "down")
    began = time.monotonic()
    until(lambda: all("Timed out" in log.read_text() for _, log in started), 60)
    noticed = time.monotonic() - began
    for process, _ in started:  # torchrun itself waits minutes for the other host's
        process.kill()
    step = json.loads(checkpoint.read_text())["state"]["step"]
    hosts.ip(0, "link", "set", CABLE[0], "up")
    (said, _) = finished(hosts.torchrun(29513, TRAINS, out, *STEPS, "--resume"), 120)
    return {"noticed after": noticed, "kept": step, "said": said.strip().splitlines()[-1]}


def until(true, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"did not come true in {seconds} s: {true}")
        time.sleep(0.05)


def main() -> None:
    hosts = TwoHosts()
    try:
        print(json.dumps({"equal": equal, "cut": cut}[sys.argv[1]](hosts, *sys.argv[2:])))
    finally:
        hosts.far.kill()


if __name__ == "__main__":
    main()
