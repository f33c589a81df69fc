"""Starts the station of tier `landlock` and outlives it: `python -I -S … CONTROL PLAN`.

It takes a range of ids and control groups where it may, makes the folder that the sandboxes'
folders are in, and becomes two: its copy is the station, and it itself waits, to remove what is
left when the station is gone.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from ms_enclave.spawner import _calls as calls
from ms_enclave.spawner import cgroups, folders, landlock, launcher, survey
from ms_enclave.spawner.landlock_station import LandlockStation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from ms_enclave.spawner._shapes import LandlockPlan

__all__ = ["main"]

_PREFIX = "ms-enclave-landlock-"
_SMALL = (20_000, 40_000)
"""First id and how many, where the machine's own map has no room for a range like the others."""
_NEEDED = {0: "CHOWN", 5: "KILL", 6: "SETGID", 7: "SETUID"}
_WAIT_SECONDS = 3.0  # with what the station takes to end, less than its owner waits for us
_PAUSE = 0.002
_LOOK = 0.02


def main(control: int, plan_file: int) -> None:
    plan: LandlockPlan = launcher.begin(plan_file)
    peer = socket.socket(fileno=control)
    groups: list[cgroups.Hierarchy] = []
    scratch, listener = "", None
    try:
        if plan["keep"] is not None:
            listener = launcher.announce(plan["keep"], plan["instance"])
        plan["version"] = min(_landlock_version(), plan["newest"])
        plan["first_id"], plan["ids"], lock = _ids()
        scratch = plan["scratch"] = _scratch(plan)
        groups = _groups(plan)
        plan["groups"] = [group.row() for group in groups]  # pyright: ignore[reportGeneralTypeIssues]
        plan["root_mode"] = plan["first_id"] is not None
        plan["spare_slots"] = 0
        station, ours = _become_two(plan, peer, groups)
    except launcher.StartError as error:
        launcher.withdraw(plan)
        _clean_up(scratch, groups)
        peer.send(json.dumps(error.row).encode())
        return
    peer.close()
    if listener is not None:
        launcher.Desk(ours, plan, station, None).serve(listener)
        launcher.withdraw(plan)
    _wait_for_all(station)
    ours.close()
    _clean_up(scratch, groups)
    if lock >= 0:
        os.close(lock)


def _landlock_version() -> int:
    version = launcher.step("landlock", landlock.abi)
    if version < landlock.OLDEST:
        text = f"ABI {landlock.OLDEST} is needed, and there is {version or 'none'}"
        raise launcher.StartError("landlock", errno.EOPNOTSUPP, text)
    return version


def _ids() -> tuple[int | None, int, int]:
    """The first of a range of users of our own, how many, and the lock on it. (None, 0, -1) where
    we are an ordinary user (perhaps as the root of a namespace of his), and so is the sandbox.

    Raises StartError for root that cannot become anybody else: nothing in a sandbox may be root.
    """
    if os.geteuid() != 0 or _is_one_user(launcher.id_maps()):
        return None, 0, -1
    held = calls.capabilities()
    missing = [name for bit, name in _NEEDED.items() if not held >> bit & 1]
    if missing:
        text = f"root without CAP_{' and CAP_'.join(missing)} cannot give a sandbox its own user"
        raise launcher.StartError("ids", errno.EPERM, text)
    first, lock = launcher.choose_ids()
    if first is not None:
        return first, launcher.RANGE, lock
    return _small_range()


def _is_one_user(maps: list[list[list[int]]]) -> bool:
    """Whether nobody can be had but one user, who is not root outside of our namespace."""
    return all(len(lines) == 1 and lines[0][2] == 1 and lines[0][1] != 0 for lines in maps)


def _small_range() -> tuple[int, int, int]:
    start, count = _SMALL
    for lines in launcher.id_maps():
        if not any(a <= start and start + count <= a + n for a, _, n in lines):
            raise launcher.StartError("ids", errno.EUSERS, "no users that a sandbox could be")
    lock = os.open(f"{launcher.LOCKS}/small", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise launcher.StartError("ids", errno.EUSERS, "another station has the users") from None
    return start, count, lock


def _scratch(plan: LandlockPlan) -> str:
    """The station's folder, in the first place of the plan where it can be, with a copy of the
    guest, which may lie where only we can read it."""
    why = "there is no place for its files"
    for place in plan["places"]:
        if plan["first_id"] is not None and not _others_may_enter(place):
            why = f"others than its owner may not enter {place}"
            continue
        _sweep(place)
        path = f"{place}/{_PREFIX}{plan['instance']}"
        try:
            os.mkdir(path, 0o711 if plan["first_id"] is not None else 0o700)
        except OSError as error:
            why = str(error)
            continue
        held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)  # both of us hold it to our ends
        fcntl.flock(held, fcntl.LOCK_EX)
        shutil.copytree(f"{plan['package']}/guest", f"{path}/code/guest")
        for folder, _, files in os.walk(f"{path}/code"):
            os.chmod(folder, 0o755)  # noqa: S103 - nothing secret is in it
            for name in files:
                os.chmod(f"{folder}/{name}", 0o644)
        plan["guest"] = f"{path}/code/guest"
        return path
    raise launcher.StartError("folder", errno.EACCES, why)


def _others_may_enter(path: str) -> bool:
    while True:
        try:
            if not os.stat(path).st_mode & 0o001:
                return False
        except OSError:
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


def _sweep(place: str) -> None:
    """Remove what stations that were killed have left. A living one holds a lock."""
    try:
        names = [name for name in os.listdir(place) if name.startswith(_PREFIX)]
    except OSError:
        return
    for name in names:
        path = f"{place}/{name}"
        try:
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # somebody else's, or it has just gone
        try:
            if os.fstat(held).st_uid == os.geteuid():
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
        except BlockingIOError:
            continue
        finally:
            os.close(held)


def _remove(path: str) -> None:
    folders.empty(path)
    try:
        os.rmdir(path)
    except OSError:
        return  # something of another user's is in it, and we may not remove that


def _groups(plan: LandlockPlan) -> list[cgroups.Hierarchy]:
    if not plan["groups"]:
        return []
    found = cgroups.own_hierarchies()
    cgroups.sweep(found)
    return cgroups.prepare(found, f"{cgroups.PREFIX}{plan['instance']}", None)


def _become_two(
    plan: LandlockPlan, control: socket.socket, groups: list[cgroups.Hierarchy]
) -> tuple[int, socket.socket]:
    """Fork the station; returns its pid and our end of the line by which each learns of the
    other's end."""
    calls.prctl(36, 1)  # SET_CHILD_SUBREAPER: what a killed station leaves comes to us
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        ours.close()
        os.close(write)
        _be_the_station(plan, control, theirs, read)
    theirs.close()
    os.close(read)
    try:
        for group in groups:
            launcher.step("control groups", cgroups.seat, group, pid)
    except launcher.StartError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.write(write, b"g")
        os.close(write)
    return pid, ours


def _be_the_station(
    plan: LandlockPlan, control: socket.socket, life: socket.socket, go: int
) -> NoReturn:
    mouth = control.dup()
    try:
        os.read(go, 1)
        os.close(go)
        calls.prctl(36, 1)
        made = LandlockStation(control.detach(), life.detach(), plan)
        try:
            made.run()
        finally:
            made.end_everything()
            _remove(plan["scratch"])
    except Exception as error:  # noqa: BLE001 - nobody else would hear of it
        number = getattr(error, "errno", None) or 0
        row = {"event": "failed", "step": "station", "errno": number, "text": repr(error)}
        mouth.send(json.dumps(row).encode())
    finally:
        os._exit(0)


def _wait_for_all(station: int) -> None:
    """Wait for the station, and for whatever a killed one has left to end itself. What is in a
    sandbox does not: that becomes ours when its keeper was killed, too."""
    os.waitpid(station, 0)
    deadline = time.monotonic() + _WAIT_SECONDS
    look_at = 0.0
    while (now := time.monotonic()) < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] != 0:
                continue
        except ChildProcessError:
            return
        if now >= look_at:
            look_at = now + _LOOK
            survey.stop_and_kill(_strays)
        time.sleep(_PAUSE)
    survey.stop_and_kill(lambda: survey.descendants(os.getpid()))


def _strays() -> survey.Members:
    """Those of our children, with their descendants, that have a filter: keepers have none."""
    found: survey.Members = {}
    for pid in survey.children_of(os.getpid()):
        if survey.is_filtered(pid):
            found |= {pid: [], **survey.descendants(pid)}
    return found


def _clean_up(scratch: str, groups: list[cgroups.Hierarchy]) -> None:
    for group in groups:
        launcher.remove_group(group.path)
    if scratch:
        _remove(scratch)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)
