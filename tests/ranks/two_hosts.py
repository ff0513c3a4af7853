"""Two hosts on one machine: two network namespaces joined by a virtual cable, one rank on each.

Run inside a network namespace of its own (see test_two_hosts.py); what it prints at the end is one line of JSON.

    python two_hosts.py equal             the differences of ``sslcourse.studies.rank_proofs`` between the two hosts
    python two_hosts.py cut OUT           trains, pulls the cable after the first checkpoint, plugs it in again, resumes
    python two_hosts.py delayed           the same differences where every packet arrives 5 ms late
    python two_hosts.py stalled OUT       trains, with a cable that twice holds back its packets for 3 s
"""

import contextlib
import fcntl
import json
import os
import queue
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TRAINS = Path(__file__).with_name("pretraining.py")
ADDRESS = ("10.9.0.1", "10.9.0.2")
CABLE = ("near0", "far0")
STEPS = ("--steps", 600, "--timeout", 8)


class SlowCable:
    """Two network interfaces and, between them, this process: it passes each packet on after ``delay`` seconds.

    The kernels that these tests run on seldom have netem. A tun interface hands its packets to who opened it.
    """

    def __init__(self, delay: float) -> None:
        self.delay, self.open, self.packets = delay, threading.Event(), 0
        self.open.set()
        ends = [self._interface(name) for name in CABLE]
        for source, target in (ends, ends[::-1]):
            under_way: queue.Queue = queue.Queue()
            threading.Thread(target=self._take, args=(source, under_way), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(under_way, target), daemon=True).start()

    @staticmethod
    def _interface(name: str) -> int:
        end = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(end, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1001))  # TUNSETIFF; IFF_TUN, IFF_NO_PI
        return end

    def _take(self, source: int, under_way: queue.Queue) -> None:
        while True:
            packet = os.read(source, 65536)
            under_way.put((time.monotonic() + self.delay, packet))

    def _pass_on(self, under_way: queue.Queue, target: int) -> None:
        while True:
            due, packet = under_way.get()
            time.sleep(max(0.0, due - time.monotonic()))
            self.open.wait()  # while it stalls nothing is lost, as in a switch that is stuck
            try:
                os.write(target, packet)
            except OSError:  # the interface is not up yet, or no more: a packet that is lost, as they are
                continue
            self.packets += 1


class TwoHosts:
    def __init__(self, delay: float | None = None) -> None:
        self.far = subprocess.Popen(["unshare", "--net", "sleep", "900"])
        ours = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self.far.pid}/ns/net") == ours:
            time.sleep(0.05)
        self.enter = ([], ["nsenter", "-t", str(self.far.pid), "-n"])
        if delay is None:
            self.ip(0, "link", "add", CABLE[0], "type", "veth", "peer", "name", CABLE[1])
        else:
            self.cable = SlowCable(delay)
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
    said = finished(hosts.torchrun(29511, "-m", "sslcourse.studies.rank_proofs", "collectives", "data_parallel"), 120)
    return json.loads(next(line for line in said[0].splitlines() if line.startswith("{")))


def delayed(hosts: TwoHosts) -> dict:
    found = equal(hosts)
    began = time.monotonic()
    with contextlib.suppress(ConnectionRefusedError):  # nobody listens at that port, which is an answer, too
        socket.create_connection((ADDRESS[1], 9), timeout=10).close()
    return {**found, "there and back": time.monotonic() - began, "packets": hosts.cable.packets}


def stalled(hosts: TwoHosts, out: str) -> dict:
    started = hosts.torchrun(29512, TRAINS, out, *STEPS)
    checkpoint = Path(f"{out}.partial/checkpoint/state.json")
    until(checkpoint.is_file, 90)
    steps = []
    for _ in range(2):
        hosts.cable.open.clear()
        time.sleep(1)  # what was under way when the cable stalled
        before = hosts.cable.packets
        time.sleep(2)
        steps.append(hosts.cable.packets - before)
        hosts.cable.open.set()
        time.sleep(1)
    (said, _) = finished(started, 120)
    return {"passed while it stalled": steps, "said": said.strip().splitlines()[-1]}


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
    hosts = TwoHosts(delay={"delayed": 0.005, "stalled": 0.0}.get(sys.argv[1]))
    todo = {"equal": equal, "cut": cut, "delayed": delayed, "stalled": stalled}[sys.argv[1]]
    try:
        print(json.dumps(todo(hosts, *sys.argv[2:])))
    finally:
        hosts.far.kill()


if __name__ == "__main__":
    main()
