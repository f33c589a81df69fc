"""What a network for a process sandbox takes, and where it never leads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ms_enclave.errors import CapabilityError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "REFUSED",
    "helpers",
    "missing_for_network",
    "refuse_without_helper",
    "tun_is_usable",
]

REFUSED = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
    "224.0.0.0/4", "240.0.0.0/4",
    "168.63.129.16/32",
)  # fmt: skip
"""Loopback, private, shared, link-local (the metadata of a cloud), special and multicast addresses,
and the one public address by which a cloud (Azure) speaks to its machines. The host's own are added
to them when a sandbox is opened."""

_HELPERS = ("pasta", "slirp4netns")  # the better one first
_FOLDERS = ("/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin")
_TUN = "/dev/net/tun"


def helpers() -> list[str]:
    """The programs of this machine that can give a sandbox a network, by their paths."""
    found: list[str] = []
    for name in _HELPERS:
        paths = [f"{folder}/{name}" for folder in _FOLDERS]
        found += [path for path in paths if os.access(path, os.X_OK)][:1]
    return found


def tun_is_usable() -> bool:
    """Whether a helper can be given the device that it makes a network with."""
    # Root can make a copy that the helper may open; the kernel has to know the device at all.
    return os.path.exists(_TUN) if os.geteuid() == 0 else os.access(_TUN, os.R_OK | os.W_OK)


def missing_for_network(found: Sequence[str], *, tun: bool) -> tuple[str, str] | None:
    """What a network for a sandbox lacks on a machine with these helpers, and what gives it."""
    if not found:
        return (
            "A network needs pasta or slirp4netns, and this machine has neither",
            "install one of them: apt-get install passt (or slirp4netns); "
            "dnf install passt; apk add passt; pacman -S passt",
        )
    if not tun:
        return (
            f"A network needs {_TUN}, and this program cannot open it",
            f"sudo modprobe tun; sudo chmod 0666 {_TUN}   "
            f"(in a container: docker run --device {_TUN} …)",
        )
    return None


def refuse_without_helper() -> None:
    """Raise CapabilityError where this machine has nothing that a network can be made with."""
    missing = missing_for_network(helpers(), tun=tun_is_usable())
    if missing is not None:
        raise CapabilityError("network", message=missing[0], remedy=missing[1])
