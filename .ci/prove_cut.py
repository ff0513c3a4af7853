"""Exit status 0 if this process reaches itself and nothing else; .ci/run calls it before the tests.

In a new network namespace the loopback interface is down: with ``--raise-loopback`` it is brought up first.
"""

import errno
import socket
import struct
import subprocess
import sys

ELSEWHERE = ("192.0.2.1", 443)  # reserved for documentation (RFC 5737): there is nobody to disturb


def raise_loopback() -> None:
    """What `ip link set lo up` does, for machines without `ip` (Linux: SIOCSIFFLAGS, IFF_UP | IFF_RUNNING)."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 0x1 | 0x40))


def loopback_works() -> bool:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()  # the backlog takes it; no accept needed
    return True


def cut(kind: int) -> bool:
    """True if a socket of this kind is refused at once. A timeout is no proof: a slow network times out too."""
    with socket.socket(socket.AF_INET, kind) as attempt:
        attempt.settimeout(3)
        try:
            attempt.connect(ELSEWHERE)
        except OSError as error:
            return isinstance(error, PermissionError) or error.errno == errno.ENETUNREACH
    return False


def main(arguments: list[str]) -> int:
    if "--raise-loopback" in arguments:
        raise_loopback()
    pip = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode
    faults = {
        "the loopback interface does not answer": not loopback_works(),
        "a TCP connection was not refused": not cut(socket.SOCK_STREAM),
        "a UDP route exists": not cut(socket.SOCK_DGRAM),
        "pip can be called": pip == 0 or subprocess.run(["pip", "--version"], capture_output=True).returncode == 0,
    }
    for fault in (fault for fault, found in faults.items() if found):
        print(f".ci/run: not offline: {fault}", file=sys.stderr)
    return int(any(faults.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
