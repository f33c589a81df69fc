"""What is the host's or somebody else's: files, sockets, the network, what tells of the machine."""

from __future__ import annotations

import hashlib
import os
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .prelude import attempt, saw

CANARY = ""
"""A word that stands in the environment of whoever sends this, and in a file of his."""
CANARY_FILE = ""
HOST: dict[str, str] = {}
"""By path, the digest of what the host has there."""

PLACES = ("/root", "/home", "/boot", "/var/lib", "/var/log", "/srv", "/opt", "/etc/shadow",
          "/etc/machine-id", "/etc/hosts", "/etc/ssh", "/run", "/mnt")  # fmt: skip


def digest_of(path: str) -> str:
    """Of a file's content, or of the names in a folder; empty where there is nothing to see."""
    try:
        if os.path.isdir(path):
            content = "\n".join(sorted(os.listdir(path))).encode()
        else:
            with open(path, "rb") as file:
                content = file.read(1 << 20)
    except OSError:
        return ""
    return hashlib.sha256(content).hexdigest() if content else ""


def files_of_the_host() -> None:
    for path, digest in HOST.items():
        if any(prefix.startswith(f"{path}/") for prefix in (sys.prefix, sys.base_prefix)):
            continue  # what is on the way to the interpreter has to be there
        saw(path, digest_of(path) == digest, guard="mount_namespace")
    attempt("a file of the caller's", lambda: open(CANARY_FILE).close())


def secrets_of_the_caller() -> None:
    saw("the caller's environment", CANARY and CANARY in "".join(os.environ.values()))
    found: list[str] = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if CANARY and CANARY.encode() in file.read():
                    found.append(name)
        except OSError:
            continue
    saw("the caller's environment in another process", found)


def sockets_of_the_host() -> None:
    paths = ["/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock",
             "/run/dbus/system_bus_socket", "/run/systemd/private", "/run/podman/podman.sock",
             "/run/systemd/journal/socket", "/tmp/.X11-unix/X0"]  # fmt: skip
    try:
        with open("/proc/net/unix") as file:
            paths += [line.split()[7] for line in file if len(line.split()) > 7]
    except OSError:
        pass
    for path in dict.fromkeys(paths):
        attempt(path, _connect, path)


def _connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as own:
        own.settimeout(2)
        own.connect("\0" + path[1:] if path.startswith("@") else path)


def the_network() -> None:
    for address in ("1.1.1.1", "10.0.0.1", "192.168.0.1", "169.254.169.254", "172.17.0.1"):
        attempt(f"TCP to {address}", _reach, address, guard="no_network",
                harmless="ECONNREFUSED ETIMEDOUT EINPROGRESS")  # fmt: skip
        attempt(f"UDP to {address}", _send, address, guard="no_network")
    attempt("TCP to ::ffff:10.0.0.1", _reach, "::ffff:10.0.0.1", guard="no_network",
            harmless="ECONNREFUSED ETIMEDOUT")  # fmt: skip
    try:
        names = [name for _, name in socket.if_nameindex() if name != "lo"]
    except OSError:
        names = []
    saw("an interface besides the loopback", names, guard="network_namespace")


def _reach(address: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as own:
        own.settimeout(1)
        own.connect((address, 80))


def _send(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.sendto(b"x", (address, 53))


def the_machine() -> None:
    for path in ("/proc/kcore", "/proc/kpageflags", "/proc/kpagecount", "/proc/vmallocinfo",
                 "/proc/timer_list", "/proc/slabinfo", "/sys/firmware/acpi/tables/DSDT",
                 "/sys/class/dmi/id/product_uuid", "/sys/kernel/debug",
                 "/sys/kernel/security"):  # fmt: skip
        saw(path, _is_readable(path), guard="masked_proc")
    try:
        with open("/proc/kallsyms") as file:
            first = file.readline().split()[:1]
    except OSError:
        first = []
    saw("addresses of the kernel", [word for word in first if int(word, 16)],
        guard="masked_proc")  # fmt: skip


def _is_readable(path: str) -> bool:
    try:
        if os.path.isdir(path):
            return bool(os.listdir(path))
        with open(path, "rb", buffering=0) as file:
            return bool(file.read(1))
    except OSError:
        return False


def the_file_system() -> None:
    for folder in ("/", "/usr", "/usr/bin", "/etc", "/dev", "/lib", "/bin"):
        path = os.path.join(folder, "planted")
        attempt(f"a file in {folder}", _plant, path, guard="read_only_root")
    for path in ("/proc/planted", "/sys/planted"):
        attempt(path, _plant, path)


def _plant(path: str) -> None:
    with open(path, "w"):
        pass
    os.unlink(path)
