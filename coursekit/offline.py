"""A guard that keeps the course offline: every connection to another machine is refused, with a clear message.

Libraries try the network in silence and fall back when it fails, so that a lesson which needs a download may go
unnoticed for months. Here every attempt raises at once, and is remembered in ``attempts``.

What this module does not do: guard child processes, or sockets that are opened by C code. ``.ci/run`` cuts the network
for those. Jupyter's own sockets belong to ZeroMQ, on the loopback interface, and are not affected.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

ALLOW = "call offline.release()"  # a lesson says which variable does it
attempts: list[str] = []  # every host that was refused, in order

_original = {
    "connect": socket.socket.connect,
    "connect_ex": socket.socket.connect_ex,
    "getaddrinfo": socket.getaddrinfo,
}


class OfflineError(OSError):
    """A connection was refused because the course runs offline."""


def guard() -> None:
    """Refuse every address that is not this machine. Calling it twice is calling it once."""
    socket.socket.connect = _connect  # type: ignore[method-assign]
    socket.socket.connect_ex = _connect_ex  # type: ignore[method-assign]
    socket.getaddrinfo = _getaddrinfo  # create_connection and urllib3 ask it first


def release() -> None:
    """Undo ``guard``."""
    socket.socket.connect = _original["connect"]  # type: ignore[method-assign]
    socket.socket.connect_ex = _original["connect_ex"]  # type: ignore[method-assign]
    socket.getaddrinfo = _original["getaddrinfo"]


def is_here(host: Any) -> bool:
    """True for this machine: a loopback address, ``localhost``, its own name, or no host at all."""
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if not host or host in ("localhost", "0.0.0.0", "::", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:  # a name, and not ours
        return False


def _refuse(host: Any) -> OfflineError:
    attempts.append(str(host))
    return OfflineError(f"the course runs offline: connection to {host} refused; {ALLOW} to allow")


def _check(connection: socket.socket, address: Any) -> None:
    internet = connection.family in (socket.AF_INET, socket.AF_INET6)
    if internet and not is_here(address[0]):
        raise _refuse(address[0])


def _connect(self: socket.socket, address: Any) -> None:
    _check(self, address)
    return _original["connect"](self, address)


def _connect_ex(self: socket.socket, address: Any) -> int:
    _check(self, address)
    return _original["connect_ex"](self, address)


def _getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> list:
    if not is_here(host):
        raise _refuse(host)
    return _original["getaddrinfo"](host, *args, **kwargs)
