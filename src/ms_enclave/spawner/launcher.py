"""Starts a station and outlives it: `python -I -S launcher.py CONTROL PLAN`, by the client.

The only part that may run as host root. It does what only the host can do (an id range that
nobody else uses, control groups, trees of folders whose parents are closed), makes the station in
namespaces of its own, writes its id map, and from then on only waits: to hand out a folder of the
host that the plan already names, mapped to a slot's user, to start the helper of a network, and to
remove the control groups when the station is gone. CONTROL is the station's end of the control
socket, PLAN a file with the plan as JSON.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from ms_enclave.spawner import _calls as calls
from ms_enclave.spawner import alone, cgroups, root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, NoReturn, ParamSpec, TypeVar

    from ms_enclave.spawner._shapes import LauncherPlan, Plan, StationPlan, Trees
    from ms_enclave.spawner.helpers import Helpers

    _P = ParamSpec("_P")
    _T = TypeVar("_T")

__all__ = [
    "FIRST_ID",
    "LOCKS",
    "RANGE",
    "SLOTS",
    "Desk",
    "StartError",
    "announce",
    "begin",
    "choose_ids",
    "id_maps",
    "main",
    "remove_group",
    "step",
    "withdraw",
]

FIRST_ID = 300_000
SLOTS = 1024
RANGE = SLOTS * 65536
_RANGES = (2**32 - FIRST_ID) // RANGE
LOCKS = "/run/ms-enclave/ids"


class StartError(Exception):
    """A step of the start that failed: its name, the error number, and the kernel's words."""

    def __init__(self, step: str, number: int, text: str) -> None:
        super().__init__(f"{step}: {text}")
        self.row = {"event": "failed", "step": step, "errno": number, "text": text}


def begin(plan_file: int) -> Any:
    """What every launcher does first; gives its plan."""
    os.umask(0o022)  # what is made for the sandbox's user must not depend on the caller's
    be_ordinary()
    with open(plan_file, "rb") as file:
        return json.load(file)


def main(control: int, plan_file: int) -> None:
    plan: LauncherPlan = begin(plan_file)
    peer = socket.socket(fileno=control)
    first, lock, listener = -1, -1, None
    try:
        if plan["keep"] is not None:
            listener = announce(plan["keep"], plan["instance"])
        first, lock = choose_ids()
        station, groups, ours = _start(plan, control, first)
    except StartError as error:
        withdraw(plan)
        peer.send(json.dumps(error.row).encode())
        return
    peer.close()
    Desk(ours, plan, station, first).serve(listener)
    withdraw(plan)
    os.waitpid(station, 0)
    for group in groups:
        remove_group(group.path)
    if lock >= 0:
        os.close(lock)


def announce(folder: str, instance: str) -> socket.socket:
    from ms_enclave.spawner import keeping  # most stations end with their owner

    try:
        return keeping.announce(folder, instance)
    except OSError as error:  # says nothing of what the machine allows
        raise StartError("announce", 0, str(error)) from error


def withdraw(plan: Plan) -> None:
    if plan["keep"] is not None:
        from ms_enclave.spawner import keeping  # most stations end with their owner

        keeping.withdraw(plan["keep"], plan["instance"])


_IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}


def be_ordinary() -> None:
    """Give up what is the caller's own and would be inherited by every program in a sandbox.

    A real-time priority: no sandbox may starve the machine, and a control group for processor time
    takes no process that has one. Signals that are ignored or held back, as by `nohup` and of what
    a script starts in the background: a program there could not be interrupted.
    """
    for number in signal.valid_signals() - _IGNORED_BY_PYTHON:
        if signal.getsignal(number) == signal.SIG_IGN:
            interrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if interrupt else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK in (os.SCHED_FIFO, os.SCHED_RR):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _start(
    plan: LauncherPlan, control: int, first: int | None
) -> tuple[int, list[cgroups.Hierarchy], socket.socket]:
    """Make the station; returns its pid, its control groups and our end of the line to it."""
    if first is None:  # the sandbox's user is the caller: what is writable needs no mapping
        for number, volume in enumerate(plan["volumes"]):
            shown = f"{root.WRITABLE}/{number}"
            plan["binds"].append({**volume, "target": shown})
            plan["late"].append({"source": shown, "target": volume["target"]})
    name = f"{cgroups.PREFIX}{plan['instance']}"
    groups: list[cgroups.Hierarchy] = []
    if plan["groups"]:
        found = cgroups.own_hierarchies()
        cgroups.sweep(found)
        groups = cgroups.prepare(found, name, first)
    whole: StationPlan = {
        **plan,
        "groups": [group.row() for group in groups],
        "root_mode": first is not None,
        "first_id": first,
    }
    try:
        pid, ours = _clone_station(whole, control, first, groups)
    except BaseException:
        for group in groups:
            remove_group(group.path)
        raise
    return pid, groups, ours


def _clone_station(
    plan: StationPlan, control: int, first: int | None, groups: list[cgroups.Hierarchy]
) -> tuple[int, socket.socket]:
    trees = step("open", root.open_trees, plan) if first is not None else []
    go_read, go_write = os.pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for group in groups:
        step("control groups", cgroups.enter, group)
    pid = step("clone", calls.clone, calls.EVERY_NAMESPACE)
    if pid == 0:
        os.close(go_write)
        ours.close()
        _become_station(plan, control, theirs.fileno(), go_read, trees)
    for tree, _ in trees:
        os.close(tree)
    os.close(go_read)
    theirs.close()  # ours stays open: its end is how the station learns of the launcher's
    try:
        step("id map", _write_map, pid, first)
        for group in groups:
            step("control groups", cgroups.seat, group, pid)
    except BaseException:
        os.close(go_write)
        os.waitpid(pid, 0)
        raise
    os.write(go_write, b"g")
    os.close(go_write)
    return pid, ours


class Desk:
    """Answers the station until it is gone, and looks after the helpers that it has asked for.

    A request is the number of a writable volume of the plan and the user of a slot, or the number
    of a helper of the plan and the two namespaces of a router, or one for the next owner; nothing
    else can be asked for.
    """

    def __init__(self, line: socket.socket, plan: Plan, station: int, first: int | None) -> None:
        self._line = line
        self._plan = plan
        self._station = station
        self._first = first
        self._helpers: Helpers | None = None

    def serve(self, listener: socket.socket | None) -> None:
        """Serve to the end; `listener` is where the next owner comes to."""
        waits = False
        try:
            while True:
                helpers = [] if self._helpers is None else self._helpers.descriptors()
                doors = [listener] if waits and listener is not None else []
                ready = _wait([self._line.fileno(), *(d.fileno() for d in doors), *helpers])
                if self._helpers is not None and ready.intersection(helpers):
                    self._helpers.look_after()
                for door in doors:
                    if door.fileno() in ready:
                        waits = not _send_next_owner(self._line, door)
                if self._line.fileno() in ready:
                    request, descriptors, _, _ = socket.recv_fds(self._line, 256, 2)
                    if not request:
                        return
                    waits = waits or request == alone.NEXT
                    self._answer(request, descriptors)
        finally:
            if self._helpers is not None:
                self._helpers.end()

    def _answer(self, request: bytes, descriptors: list[int]) -> None:
        try:
            if request.startswith(b"network"):
                self._start_helper(int(request.split()[1]), descriptors)
            elif request != alone.NEXT:
                index, user = (int(word) for word in request.split())
                self._show_volume(index, user)
        except (OSError, IndexError) as error:
            number = getattr(error, "errno", None) or errno.EINVAL
            self._line.send(f"{number}|{error}".encode())
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _start_helper(self, choice: int, spaces: list[int]) -> None:
        if self._helpers is None:
            from ms_enclave.spawner.helpers import Helpers  # most stations never need it

            programs = self._plan["helpers"]
            self._helpers = Helpers(programs, self._station, self._first is not None)
        line, addresses = self._helpers.start(choice, spaces)
        with line:
            socket.send_fds(self._line, [f"0|{' '.join(addresses)}".encode()], [line.fileno()])

    def _show_volume(self, index: int, user: int) -> None:
        tree = _mapped_tree(self._plan["volumes"][index]["source"], user, self._first)
        try:
            socket.send_fds(self._line, [b"0|"], [tree])
        finally:
            os.close(tree)


def _wait(descriptors: Iterable[int]) -> set[int]:
    """Wait until there is something to read, or an end, at some of them; returns those."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll()}


def _send_next_owner(ours: socket.socket, listener: socket.socket) -> bool:
    """Hand a connection to the station; False, and it is closed, if it is not by the same user."""
    from ms_enclave.spawner.keeping import peer_of

    connection, _ = listener.accept()
    with connection:
        if peer_of(connection).user != os.geteuid():
            return False
        socket.send_fds(ours, [b"owner"], [connection.fileno()])
        return True


def _mapped_tree(source: str, user: int, first: int | None) -> int:
    """A folder of the host in which its owner's files belong to a slot's user, and the other way.

    Raises OSError: EPERM for a folder of root's, which no sandbox may write as.
    """
    if first is None or not first <= user < first + RANGE:
        raise OSError(errno.EINVAL, "not a user of this station")
    tree = calls.open_tree(source, links=False)
    try:
        owner = os.fstat(tree)
        space = _map_of_owner(source, owner, user)
        try:
            calls.mount_setattr(tree, calls.MOUNT_NOSUID | calls.MOUNT_NODEV, id_map=space)
        finally:
            os.close(space)
    except BaseException:
        os.close(tree)
        raise
    return tree


def _map_of_owner(source: str, owner: os.stat_result, user: int) -> int:
    """A user namespace in which a folder's owner is a slot's user; the descriptor owns it."""
    if owner.st_uid == 0 or owner.st_gid == 0:
        raise OSError(
            errno.EPERM, f"{source} belongs to root, and nothing in a sandbox may be root"
        )
    read, write = os.pipe()
    pid = calls.clone(calls.CLONE_NEWUSER)
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    try:
        _put(f"/proc/{pid}/gid_map", f"{owner.st_gid} {user} 1\n")
        _put(f"/proc/{pid}/uid_map", f"{owner.st_uid} {user} 1\n")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(read)
        os.close(write)
        os.waitpid(pid, 0)


def step(name: str, action: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
    try:
        return action(*arguments, **named)
    except OSError as error:
        raise StartError(name, error.errno or 0, str(error.strerror or error)) from error


# --- identities ---------------------------------------------------------------------------------


def choose_ids() -> tuple[int | None, int]:
    """The first host id of a range of our own and the lock on it; (None, -1) for a one-id map.

    A station never has an outside id 0: started by host root it gets a range from `FIRST_ID` on,
    or it is refused.
    """
    maps = id_maps()
    if os.geteuid() != 0:
        return None, -1
    os.makedirs(LOCKS, 0o700, exist_ok=True)
    taken = _subordinate_ids()
    for number in range(_RANGES):
        first = FIRST_ID + number * RANGE
        fits = all(any(a <= first and first + RANGE <= a + n for a, _, n in m) for m in maps)
        if not fits or any(a < first + RANGE and first < a + n for a, n in taken):
            continue
        lock = os.open(f"{LOCKS}/{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return first, lock
    if maps[0][0][1] != 0:  # root of a user namespace, not of the host: its one id is harmless
        return None, -1
    raise StartError("id range", errno.EUSERS, "every range of ids is taken by a station")


def id_maps() -> list[list[list[int]]]:
    """The maps of users and of groups that we are under: inside, outside, how many."""
    with open("/proc/self/uid_map") as users, open("/proc/self/gid_map") as groups:
        return [_lines(users.read()), _lines(groups.read())]


def _lines(text: str) -> list[list[int]]:
    return [[int(word) for word in line.split()] for line in text.splitlines()]


def _subordinate_ids() -> list[tuple[int, int]]:
    """Ranges that /etc/subuid and /etc/subgid give to somebody."""
    found: list[tuple[int, int]] = []
    for path in ("/etc/subuid", "/etc/subgid"):
        try:
            with open(path) as file:
                rows = [line.strip().split(":") for line in file]
        except OSError:
            continue
        found += [(int(row[1]), int(row[2])) for row in rows if len(row) == 3]
    return found


def _write_map(pid: int, first: int | None) -> None:
    if first is None:
        lines = {"uid_map": f"0 {os.geteuid()} 1\n", "gid_map": f"0 {os.getegid()} 1\n"}
        _put(f"/proc/{pid}/setgroups", "deny")
    else:
        lines = dict.fromkeys(("gid_map", "uid_map"), f"0 {first} {RANGE}\n")
    for name, line in lines.items():
        _put(f"/proc/{pid}/{name}", line)


def _put(path: str, text: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


# --- the child's side ---------------------------------------------------------------------------


def _become_station(plan: StationPlan, control: int, life: int, go: int, trees: Trees) -> NoReturn:
    """From a copy of the launcher to the station's own program; never returns."""
    try:
        if os.read(go, 1) != b"g":
            os._exit(125)
        os.close(go)
        step("take ids", _take_ids, plan["root_mode"])
        if not plan["root_mode"]:
            trees = step("open", root.open_trees, plan)
        step("root", root.build, plan, trees)
        keep = [control, life, *(group["fd"] for group in plan["groups"])]
        for descriptor in keep:
            os.set_inheritable(descriptor, True)
        message = os.memfd_create("plan", 0)
        os.write(message, json.dumps(plan).encode())
        os.lseek(message, 0, os.SEEK_SET)
        program = f"{root.CODE}/ms_enclave/spawner/station.py"
        words = [plan["station_python"], "-I", "-S", program, str(control), str(life), str(message)]
        step("execute the station", os.execve, plan["station_python"], words, {})
    except StartError as error:
        os.write(control, json.dumps(error.row).encode())
    except Exception as error:  # noqa: BLE001 - nobody else would hear of a mistake of ours
        row = {"event": "failed", "step": "start", "errno": 0, "text": repr(error)}
        os.write(control, json.dumps(row).encode())
    finally:
        os._exit(125)


def _take_ids(root_mode: bool) -> None:
    if root_mode:
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def remove_group(path: str) -> None:
    """Remove a control group whose last process has just died; the kernel needs a moment."""
    deadline = time.monotonic() + 2
    while True:
        try:
            cgroups.remove(path)
            return
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                return
            time.sleep(0.005)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)  # nothing is buffered, and somebody waits: no need to take Python apart
