"""Refuses every connection of a Python process except to this machine; .ci/run puts it on PYTHONPATH.

The second-best proof of "offline", for machines that allow no network namespace. It does not see sockets that
compiled code opens by itself.
"""

import importlib.util
import ipaddress
import os
import socket
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def local(host: object) -> bool:
    if host in (None, "", "localhost", b"localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return False  # a name: to look it up is already a question to the network
    return address.is_loopback or address.is_unspecified


def refuse(what: object) -> None:
    raise PermissionError(f"offline: a connection to {what} was refused by .ci/offline/sitecustomize.py")


def guarded(name: str, position: int):
    """``socket.socket.<name>``, its address being the argument at ``position`` from the left (-1: the last)."""
    original = getattr(socket.socket, name)

    def method(self, *args):
        address = args[position] if args else None
        if self.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple) and not local(address[0]):
            refuse(address)
        return original(self, *args)

    return method


def install() -> None:
    for name, position in {"connect": 0, "connect_ex": 0, "sendto": -1}.items():
        setattr(socket.socket, name, guarded(name, position))
    look_up = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        if not local(host):
            refuse(host)
        return look_up(host, *args, **kwargs)

    socket.getaddrinfo = getaddrinfo


def chain() -> None:
    """Run the sitecustomize that this file hides, if there is one."""
    for entry in sys.path:
        other = Path(entry or os.curdir) / "sitecustomize.py"
        if other.is_file() and other.resolve().parent != HERE:
            spec = importlib.util.spec_from_file_location("sitecustomize_chained", other)
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
            return


install()
chain()
