"""Starts one sandbox of tier `gvisor` and outlives it: `python -I -S … CONTROL PLAN OWNER`.

It makes control groups where it may, and a child in namespaces of its own, the keeper, whose first
program there is `runsc`. The root that the sandbox gets, its disk, and the state and bundle of
`runsc` are in the keeper's mount namespace alone, and whatever `runsc` starts is in the keeper's
pid namespace: with the keeper all of it is gone. The keeper ends with `runsc`, with this process,
and when the owner hangs up, however the owner has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from ms_enclave.spawner import _calls as calls
from ms_enclave.spawner import cgroups, launcher, root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from ms_enclave.spawner._shapes import GvisorPlan, Trees

__all__ = ["main"]

_NAMESPACES = (
    calls.CLONE_NEWNS | calls.CLONE_NEWPID | calls.CLONE_NEWNET | calls.CLONE_NEWIPC
    | calls.CLONE_NEWUTS
)  # fmt: skip
_HOME = "/run/enclave/gvisor"
_MOST_WORDS = 1 << 12
"""Bytes of what `runsc` says, or whoever in the sandbox gets hold of that stream, that are kept."""
_PDEATHSIG = 1


def main(control: int, plan_file: int) -> None:
    plan: GvisorPlan = launcher.begin(plan_file)
    peer = socket.socket(fileno=control)
    _, (channel, *_), _, _ = socket.recv_fds(peer, 1, 1)
    groups: list[cgroups.Hierarchy] = []
    keeper = 0
    try:
        groups = _groups(plan)
        words, keeper, go = _make_keeper(plan, peer, channel)
        box = _hold(plan, groups, keeper)
        row = {"event": "started", "controllers": _controllers(groups)}
        peer.send(json.dumps(row).encode())
        os.write(go, b"g")
        os.close(go)
        text, status = _follow(peer, words, keeper)
        keeper = 0
        killed = box.figures().oom_kills if box is not None else 0
        row = {"event": "ended", "status": status, "text": text, "oom": killed}
        with contextlib.suppress(OSError):  # nobody is there to hear it
            peer.send(json.dumps(row).encode())
    except launcher.StartError as error:
        with contextlib.suppress(OSError):
            peer.send(json.dumps(error.row).encode())
    finally:
        if keeper:
            os.kill(keeper, signal.SIGKILL)
            os.waitpid(keeper, 0)
        for group in groups:
            launcher.remove_group(group.path)


def _groups(plan: GvisorPlan) -> list[cgroups.Hierarchy]:
    if not plan["groups"]:
        return []
    found = cgroups.own_hierarchies()
    cgroups.sweep(found)
    return cgroups.prepare(found, f"{cgroups.PREFIX}{plan['instance']}", None)


def _controllers(groups: list[cgroups.Hierarchy]) -> list[str]:
    return sorted({name for group in groups for name in group.controllers})


def _make_keeper(plan: GvisorPlan, peer: socket.socket, channel: int) -> tuple[int, int, int]:
    """Returns where what `runsc` says can be read, the keeper's pid, and what it waits for."""
    trees = launcher.step("open", root.open_trees, plan)
    program = launcher.step("runsc", os.open, plan["runsc"], os.O_RDONLY | os.O_CLOEXEC)
    go_read, go_write = os.pipe()
    words_read, words_write = os.pipe()
    pid = launcher.step("clone", calls.clone, _NAMESPACES)
    if pid == 0:
        for descriptor in (go_write, words_read, peer.fileno()):
            os.close(descriptor)
        _be_the_keeper(plan, trees, program, (channel, words_write), go_read)
    for descriptor in (go_read, words_write, channel, program, *(tree for tree, _ in trees)):
        os.close(descriptor)
    return words_read, pid, go_write


def _hold(plan: GvisorPlan, groups: list[cgroups.Hierarchy], keeper: int) -> cgroups.Group | None:
    """Have the groups hold the keeper, which has not made anything yet."""
    if not groups:
        return None
    for group in groups:
        launcher.step("control groups", cgroups.seat, group, keeper)
    station = cgroups.Station([group.row() for group in groups])
    limits = plan["limits"]
    box = launcher.step("limits", station.lend, limits["memory"], limits["pids"], limits["cpu"])
    launcher.step("control groups", box.admit, keeper, stays=True)
    launcher.step("control groups", box.settle, keeper, 0)
    return box


def _follow(peer: socket.socket, words: int, keeper: int) -> tuple[str, int]:
    """Wait for the keeper's end, and end it when the owner hangs up.

    Returns the last that was said, and the keeper's exit status.
    """
    held = calls.pidfd_open(keeper)
    said = b""
    poll = select.poll()
    for descriptor in (peer.fileno(), words, held):
        poll.register(descriptor, select.POLLIN)
    ended = False
    while not ended:
        for descriptor, _ in poll.poll():
            if descriptor == words:
                piece = os.read(words, 1 << 16)
                said = (said + piece)[-_MOST_WORDS:]
                if not piece:
                    poll.unregister(words)
            elif descriptor == held:
                ended = True
            elif not peer.recv(1):
                os.kill(keeper, signal.SIGKILL)
                poll.unregister(peer.fileno())
    os.close(held)
    _, status = os.waitpid(keeper, 0)
    os.set_blocking(words, False)
    with contextlib.suppress(BlockingIOError):
        said = (said + os.read(words, 1 << 16))[-_MOST_WORDS:]
    return said.decode(errors="replace"), os.waitstatus_to_exitcode(status)


# --- the keeper's side --------------------------------------------------------------------------


def _be_the_keeper(
    plan: GvisorPlan, trees: Trees, program: int, streams: tuple[int, int], go: int
) -> NoReturn:
    """The first process of the pid namespace: makes the root, starts `runsc`, ends with it."""
    status = 125
    try:
        calls.prctl(_PDEATHSIG, signal.SIGKILL)
        if os.read(go, 1) == b"g":
            os.close(go)
            root.build(plan, trees)
            _furnish(plan)
            status = _run(plan, program, streams)
    except OSError as error:
        os.write(streams[1], f"ms-enclave: {error}\n".encode())
    finally:
        os._exit(status)


def _furnish(plan: GvisorPlan) -> None:
    """The disk of the sandbox, and what `runsc` reads and writes itself."""
    limits = plan["limits"]
    options = {"size": str(limits["disk"]), "nr_inodes": str(limits["inodes"]), "mode": "0755"}
    disk = calls.make_filesystem("tmpfs", options, calls.MOUNT_NOSUID | calls.MOUNT_NODEV)
    for folder in ("disk", "state", "bundle"):
        os.makedirs(f"{_HOME}/{folder}", 0o700)
    calls.move_mount(disk, f"{_HOME}/disk")
    os.close(disk)
    for name, mode in (("work", 0o755), ("tmp", 0o1777)):
        path = f"{_HOME}/disk/{name}"
        os.mkdir(path)
        os.chmod(path, mode)
    os.chown(f"{_HOME}/disk/work", *plan["user"])
    with open(f"{_HOME}/bundle/config.json", "w") as file:
        json.dump(plan["bundle"], file)


def _run(plan: GvisorPlan, program: int, streams: tuple[int, int]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            channel, words = streams
            os.dup2(channel, 0)
            os.dup2(channel, 1)
            os.dup2(words, 2)
            os.close(channel)
            os.close(words)
            os.execve(program, plan["runsc_words"], {"PATH": os.defpath})
        finally:
            os._exit(125)
    for descriptor in streams:
        os.close(descriptor)
    while True:
        ended, status = os.wait()
        if ended == pid:
            return os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)
