"""What stands around a process, read from outside while it is held at a system call.

Two sandboxes of one kind compare equal: what differs from one to the next (pids, inode numbers, the
first id of a slot, names of control groups) is taken out.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, cast

from tests.security.boxes import status_of

__all__ = ["walls_of"]

_STATUS = (
    "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp",
    "Seccomp_filters",
)  # fmt: skip
_LIMITS = (
    "memory.max", "memory.swap.max", "pids.max", "cpu.max", "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes", "cpu.cfs_quota_us", "cpu.cfs_period_us",
)  # fmt: skip
_PF_EXITING = 0x4
_DRAWN = re.compile(r"[0-9a-z]{8}")
_SPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")


def walls_of(pid: int) -> dict[str, Any]:
    """Everything that holds the process. Raises OSError if it ends meanwhile."""
    root = Path("/proc", str(pid))
    status = status_of(pid)
    (user_map,) = (root / "uid_map").read_text().splitlines()[:1]
    inside, outside, count = (int(word) for word in user_map.split())
    users = sorted({int(word) for word in status["Uid"].split()})
    own = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in _SPACES}
    found = {
        **{name: status[name] for name in _STATUS},
        # Without namespaces each sandbox has a user of the host to itself.
        "users": [u - outside + inside for u in users] if outside else [len(users), 0 in users],
        "ids of its own": outside >= 100_000 and count == 65536,
        "spaces": [kind for kind in _SPACES if os.readlink(root / "ns" / kind) != own[kind]],
        "depth": len(status["NSpid"].split()),
        # Without a namespace of its own they are the machine's, and change with that.
        "mounts": _mounts(root) if os.readlink(root / "ns/mnt") != own["mnt"] else [],
        "limits": _limits(root),
        "descriptors": sorted(_plain(os.readlink(entry)) for entry in (root / "fd").iterdir()),
        "groups": _groups(root),
    }
    _require_alive(root)
    return found


def _require_alive(root: Path) -> None:
    """Who has begun to end is in no group any more, and runs nothing."""
    fields = (root / "stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX" or int(fields[6]) & _PF_EXITING:
        raise ProcessLookupError(root.name)


def _mounts(root: Path) -> list[str]:
    """Sorted: where, how, what. Layers' numbers are each sandbox's own."""
    found: list[str] = []
    for line in (root / "mountinfo").read_text().splitlines():
        words = line.split()
        rest = words[words.index("-") + 1 :]
        found.append(" ".join([words[4], words[5], rest[0], _plain(rest[2])]))
    return sorted(found)


def _limits(root: Path) -> list[str]:
    return (root / "limits").read_text().splitlines()[1:]


def _groups(root: Path) -> list[str]:
    """Where the process is in each hierarchy, and what the groups above it allow."""
    found: list[str] = []
    places = _hierarchies()
    for line in (root / "cgroup").read_text().splitlines():
        number, names, path = line.split(":", 2)
        top = places.get(names, "") if names or number == "0" else ""
        if not top or "ms-enclave" not in path:
            continue
        parts = path[path.index("ms-enclave") :].split("/")
        found.append(f"{names} {_plain('/'.join(map(_nameless, parts[1:])))}")
        while len(parts) > 1:
            folder = Path(top + path[: path.index("ms-enclave")] + "/".join(parts))
            for name in _LIMITS:
                if (folder / name).exists():
                    found.append(f"{names} {len(parts)} {name} {(folder / name).read_text()}")
            parts.pop()
    return sorted(found)


def _hierarchies() -> dict[str, str]:
    """Names of controllers to where they are mounted; nothing for version 2."""
    found: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        rest = words[words.index("-") + 1 :]
        if rest[0] == "cgroup2":
            found[""] = words[4]
        elif rest[0] == "cgroup":
            for names in _combinations(rest[2]):
                found[names] = words[4]
    return found


def _combinations(options: str) -> list[str]:
    """The kernel lists `cpu,cpuacct` of a mount among other options."""
    words = [word for word in options.split(",") if word not in ("rw", "xattr", "nosuid")]
    return [",".join(words), *words]


def _nameless(part: str) -> str:
    """A group of a sandbox has a name of eight letters that were drawn."""
    return "box" if _DRAWN.fullmatch(part) and part != "carriers" else part


def _plain(text: str) -> str:
    return re.sub(r"[0-9a-f]{8,}|\d+", "N", text)


def difference(expected: dict[str, Any], seen: dict[str, Any]) -> list[str]:
    """Where two descriptions differ in what holds. Of the host's folders one may be missing; and
    where a layer could not be made, the work folder and /tmp are folders of the store itself.
    A group that only counts processor time may be missing, too: it holds nothing."""
    found = [
        f"{name}: {seen[name]} instead of {expected[name]}"
        for name in expected
        if name != "mounts" and _holding(seen[name]) != _holding(expected[name])
    ]
    before, after = ({_layered(row) for row in each["mounts"]} for each in (expected, seen))
    missing = {row for row in before - after if not _is_of_the_host(row)}
    found += [f"without {row}" for row in missing]
    return found + [f"with {row}" for row in after - before]


def _holding(rows: Any) -> Any:
    """Without the groups that only count."""
    if not isinstance(rows, list):
        return rows
    return [row for row in cast("list[Any]", rows) if not str(row).startswith("cpuacct ")]


def _layered(row: str) -> str:
    if row.split()[0] not in ("/tmp", "/sandbox"):
        return row
    return re.sub(r"(?:relatime|noatime) (?:overlay|tmpfs) .*", "bounded", row)


def _is_of_the_host(row: str) -> bool:
    where, how = row.split()[:2]
    if where == "/" or where.startswith(("/proc", "/sys", "/dev")):
        return False
    return how.split(",")[0] == "ro"
