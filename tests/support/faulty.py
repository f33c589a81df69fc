"""A manager in a process of its own whose system calls, and those of all it starts, may fail."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import selectors
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.faults import KILL, NUMBERS, Call, start_watched
from tests.support.parts import descendants_of, wait_until_dead
from tests.support.traced_calls import start_traced
from tests.support.walls import walls_of

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Faulty", "Hit", "Round"]

_MARK = 777_123
_SECONDS = 60.0

PROGRAM = """
import asyncio, json, sys, traceback
from ms_enclave.errors import EnclaveError
from ms_enclave.manager.local_manager import LocalSandboxManager
from ms_enclave.spawner import launch

launch._SPARE_SLOTS = 0  # each sandbox makes its slot when it is asked for: a fixed order of calls
CODE = '''
import os
try:
    os.getpgid(%d)
except OSError:
    pass
try:
    os.listdir('/sys/kernel')
except OSError:
    print('done')  # what no sandbox sees: rules of Landlock cannot be read from outside
''' % int(sys.argv[1])
CONFIG = json.loads(sys.argv[2])

async def use(manager):
    stage = 'create'
    try:
        name = await manager.create_sandbox('process', CONFIG)
        try:
            stage = 'run'
            box = await manager.get_sandbox(name)
            result = await box.run_code(CODE)
            stage = 'delete'
        finally:
            await manager.delete_sandbox(name)
        return {'stage': 'done', 'result': [result.verdict, result.exit_code, result.stdout]}
    except Exception as error:
        row = {'stage': stage, 'type': type(error).__name__, 'text': str(error)}
        if not isinstance(error, EnclaveError):
            row['trace'] = traceback.format_exc()
        return {**row, 'ours': isinstance(error, EnclaveError)}

async def main():
    loop = asyncio.get_running_loop()
    async def read():
        return (await loop.run_in_executor(None, sys.stdin.readline)).strip()
    manager = None
    async def warm():
        nonlocal manager
        manager = manager or await LocalSandboxManager().__aenter__()
        return await use(manager)
    async def cold():
        async with LocalSandboxManager() as other:
            return await use(other)
    while word := await read():
        row = await {'warm': warm, 'cold': cold}[word]()
        print(json.dumps(row), flush=True)
    if manager is not None:
        await manager.__aexit__(None, None, None)

asyncio.run(main())
"""

_ERRORS = {
    errno.EMFILE: "openat socket socketpair pipe2 memfd_create fsopen fsmount open_tree dup2 dup3 "
    "pidfd_open pidfd_getfd epoll_create1 eventfd2 timerfd_create signalfd4 fcntl accept4",
    errno.ENOSPC: "write pwrite64 mkdir mkdirat epoll_ctl inotify_add_watch symlink symlinkat",
    errno.ENOMEM: "clone clone3 fork vfork mmap fsconfig move_mount recvfrom recvmsg ioctl poll "
    "execve landlock_create_ruleset landlock_add_rule",
    errno.ENOBUFS: "sendto sendmsg",
    errno.EIO: "read pread64 rmdir unlink unlinkat rename",
    errno.ESRCH: "ptrace kill",
    errno.EPERM: "mount umount2 pivot_root setns unshare setresuid setresgid setgroups setsid "
    "prctl capset seccomp chown fchown fchownat chmod fchmod fchmodat mount_setattr prlimit64 "
    "flock bind sched_setaffinity sethostname chdir close_range rseq listen connect "
    "landlock_restrict_self",
}
_ERROR_OF = {name: number for number, names in _ERRORS.items() for name in names.split()}

_TRUSTED = frozenset({"launcher", "station", "landlock_launcher"})

_NOT_ITS_OWN: dict[str, tuple[int | None, int]] = {
    "write": (0, 1), "sendto": (2, 1), "recvfrom": (2, 4096), "read": (None, 0),
}  # fmt: skip
"""Call to which argument tells, and how."""


@dataclass
class Hit:
    """The call that was made to fail."""

    name: str
    who: str
    number: int
    arguments: tuple[int, ...]
    fault: int

    def __str__(self) -> str:
        how = "killed" if self.fault == KILL else errno.errorcode[self.fault]
        return f"{self.name}{self.arguments[:4]} of {self.who}, number {self.number}: {how}"


@dataclass
class Round:
    """What became of one use of a sandbox."""

    row: dict[str, Any]
    hit: Hit | None
    marks: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """What stood around the user's program when it made its first call."""
    early: bool = False
    """Whether the fault came before that."""

    @property
    def worked(self) -> bool:
        return self.row["stage"] == "done"

    @property
    def was_killed(self) -> bool:
        """Whether it was no error, but a death."""
        return self.hit is not None and self.hit.fault == KILL

    @property
    def is_deleting(self) -> bool:
        """Whether it failed when the program had run already."""
        return self.row["stage"] == "delete"


class Faulty:
    """The manager's process, under watch. `use` has it make, use and delete one sandbox.

    Args:
        before: Python code that its program begins with.
        traced: whether it is watched by a tracer, and not by a listener of its filter.
    """

    def __init__(
        self, config: dict[str, Any] | None = None, *, before: str = "", traced: bool = False
    ) -> None:
        program = before + PROGRAM
        words = [sys.executable, "-c", program, str(_MARK), json.dumps(config or {})]
        self._lock = threading.Lock()
        self._armed = False
        self._at: int | None = None
        self._kill = False
        self._round: Round | None = None
        self._trusted: set[int] = set()
        self._buffer = b""
        self.sequence: list[tuple[int, str]] = []
        """Pid and name of each call of the last use."""

        start = start_traced if traced else start_watched
        self.process, self.watch = start(words, _watched(), self._decide)

    def use(self, how: str, at: int | None = None, *, kill: bool = False) -> Round:
        """Use a sandbox, of the manager that is there (`warm`) or of a new one (`cold`), with the
        call number `at` failing, or with whoever makes it killed."""
        with self._lock:
            self.sequence, self._at, self._kill = [], at, kill
            self._trusted = {self.process.pid}
            self._round = current = Round({}, None)
            self._armed = True
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(how.encode() + b"\n")
            current.row = json.loads(self._line())
        finally:
            with self._lock:
                self._armed = False
        return current

    def _line(self) -> bytes:
        assert self.process.stdout is not None
        deadline = time.monotonic() + _SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                assert selector.select(deadline - time.monotonic()), f"it hangs: {self._round}"
                data = self.process.stdout.read(1 << 16)
                assert data, f"the manager's process has ended: {self._round}"
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _decide(self, call: Call) -> int:
        with self._lock:
            current = self._round
            if not self._armed or current is None:
                return 0
            if call.name == "getpgid":
                if call.arguments[0] == _MARK:
                    current.early = current.early or current.hit is not None
                    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                        current.marks.append(walls_of(call.pid))  # unless it is ending
                return 0
            fault = _ERROR_OF.get(call.name, 0)
            if not fault or self._is_the_drivers(call) or self._is_users(call):
                return 0
            number = len(self.sequence)
            self.sequence.append((call.pid, call.name))
            if number != self._at:
                return 0
            if self._kill:
                if self._is_a_thread_of_its(call.pid):
                    self._at = number + 1
                    return 0
                fault = KILL
            current.hit = Hit(call.name, _who(call.pid), number, call.arguments, fault)
            current.early = not current.marks
            return fault

    def _is_the_drivers(self, call: Call) -> bool:
        """Whether a call of the manager's process is none of its own: the answer to us, how threads
        wake a loop, and reading a pipe, which does not fail."""
        if call.name not in _NOT_ITS_OWN or not self._is_a_thread_of_its(call.pid):
            return False
        which, value = _NOT_ITS_OWN[call.name]
        return which is None or call.arguments[which] == value

    def _is_a_thread_of_its(self, task: int) -> bool:
        return os.path.exists(f"/proc/{self.process.pid}/task/{task}")

    def _is_users(self, call: Call) -> bool:
        """Whether a process that holds a user's program makes it, and not our code in that."""
        if call.pid in self._trusted:
            return False
        if _who(call.pid) in _TRUSTED or self._is_a_thread_of_its(call.pid):
            self._trusted.add(call.pid)
            return False
        try:
            status = Path(f"/proc/{call.pid}/status").read_text()
        except OSError:
            return True
        if "CapPrm:\t0000000000000000" not in status or "NoNewPrivs:\t1" not in status:
            return False
        return not _is_ours(call.pid, call.place)

    def parts(self) -> dict[str, int]:
        """How much there is of what could be left behind, of the whole tree of processes."""
        found: Counter[str] = Counter()
        for pid in [self.process.pid, *descendants_of(self.process.pid)]:
            who = _who(pid)
            found[who] += 1
            try:
                found[f"descriptors of {who}"] += len(list(Path(f"/proc/{pid}/fd").iterdir()))
                if who == "station":
                    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
                    found["mounts of the station"] += len(lines)
            except OSError:
                continue
        return dict(found)

    def excess(self, before: dict[str, int], seconds: float = 5.0) -> list[str]:
        """What there is too much of after so long. A folder of the host that could not be listed is
        a plan of its own, which has a station of its own; and what inits come from may be kept for
        the next ones."""
        deadline = time.monotonic() + seconds
        while (found := self._excess(before)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def _excess(self, before: dict[str, int]) -> list[str]:
        after = self.parts()
        stations = after.get("station", 0)
        most = {
            "landlock_launcher": before.get("landlock_launcher", 0) * 2,
            "descriptors of landlock_launcher": before.get("descriptors of landlock_launcher", 0)
            * 2
            + 20,
            "launcher": stations,
            "descriptors of launcher": before.get("descriptors of launcher", 0) * stations,
            "descriptors of python": before["descriptors of python"] + 4,
            "descriptors of station": (before.get("descriptors of station", 0) + 20) * stations,
            "mounts of the station": before.get("mounts of the station", 0) * stations,
            "made": (before.get("made", 0) + 4) * stations,
            "boot": (before.get("boot", 0) + 2) * stations,
            "station": 3,
        }
        return [
            f"{after[name]} {name}, and {limit} are the most: {after}"
            for name, limit in most.items()
            if after.get(name, 0) > limit
        ]

    def close(self) -> int:
        """Let it end in good order; gives its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            return self.watch.wait(_SECONDS)
        finally:
            self._end()

    def _end(self) -> None:
        """Whatever runs under the watch ends before it: nobody else would answer its calls."""
        family = descendants_of(self.process.pid)
        if self.process.returncode is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.watch.wait(_SECONDS)
        wait_until_dead(family, 5)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.watch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self._end()


def _watched() -> list[str]:
    return [name for name in [*_ERROR_OF, "getpgid"] if name in NUMBERS]


def _who(pid: int) -> str:
    """What a process is, by its command line."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "gone"
    for word in words:
        if name := re.search(rb"(\w+)\.py$", word):
            return name[1].decode()
    return "made" if words == [b""] else words[0].decode(errors="replace").rpartition("/")[2]


def _is_ours(pid: int, place: int) -> bool:
    """Whether the call comes from the page of code that a carrier's copies run."""
    try:
        with open(f"/proc/{pid}/maps") as file:
            for line in file:
                first, last = (int(word, 16) for word in line.split()[0].split("-"))
                if first <= place < last:
                    return len(line.split()) == 5
    except OSError:
        pass
    return False
