"""Running programs for the host: streams, signals, kill."""

from __future__ import annotations

import os
import signal

from . import execution, families, kills
from .call import Refused
from .loop import READ, WRITE, Cancelled, Task
from .protocol import STDERR, STDIN, STDOUT, TERMINAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .call import Call
    from .loop import Loop, Steps

__all__ = ["OPERATIONS", "kill_everything"]

_ROUND = 4  # reads of one pipe before others have their turn
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05
_STOP_ROUNDS = 50
_SUPERVISOR_GRACE = 100  # pauses that a supervisor may take to end once nothing is below it
_LIMITS = ("cpu", "file_size", "nofile", "data")


def spawn(call: Call) -> Steps[dict[str, Any]]:
    """Start a program and carry its streams until it and they have ended.

    Cancelled, it kills what still runs of a program that has not ended; what a program left
    running behind itself is left alone.
    """
    child = call.child = call.sender.starter.start(
        _program(call), call.flag("stdin"), lambda status: _on_gone(call, status)
    )
    relay = _Relay(call, child)
    try:
        while True:
            pause = relay.step()
            if relay.ended:  # the end of the call goes with that of the program
                break
            yield call.patience() if pause is None else pause
    except Cancelled:
        child.read_report()
        relay.close_streams()
        if child.exit is None:
            call.sender.starter.leave(child)
            yield from kill_tree(child)
        raise
    finally:
        relay.close()
        call.sender.starter.ended(child)
    return {}


def _on_gone(call: Call, status: int) -> None:
    if os.WIFSIGNALED(status):  # by what it looked after, which is ours now
        call.loop.start(Task(_kill_orphans(call.loop), lambda _failure, _result: _set_gone(call)))
    else:
        _set_gone(call)


def _set_gone(call: Call) -> None:
    call.child.gone = True
    call.wake()


def _program(call: Call) -> execution.Program:
    body = call.body
    env: dict[str, Any] = call.value("env", dict)
    limits: dict[str, Any] = call.value("limits", dict)
    argv: list[Any] = call.value("argv", list)
    program = execution.Program(
        [_bytes(word) for word in argv],
        {_bytes(name): _bytes(value) for name, value in env.items()},
        os.path.join(call.sender.folder, _bytes(body.get("cwd"))),
        body.get("user"),
        {name: int(limits[name]) for name in _LIMITS if limits.get(name) is not None},
    )
    pty: Any = body.get("pty")
    if pty is not None:
        program.pty = (int(pty[0]), int(pty[1]))
        program.behind = call.flag("behind")
    if body.get("kernel") is not None:
        program.kernel = call.value("kernel", dict)
    elif body.get("code") is not None:
        program.code = _bytes(body["code"])
    elif not argv:
        raise Refused("an empty command")
    return program


def _bytes(value: object) -> bytes:
    if not isinstance(value, str) or "\0" in value:
        raise Refused(f"text without NUL bytes is wanted, not {str(value)[:200]!r}")
    return value.encode("utf-8", "surrogateescape")


class _Relay:
    """Moves bytes between a program's pipes and the channel, as far as both have room."""

    def __init__(self, call: Call, child: execution.Child) -> None:
        self._call = call
        self._child = child
        self._behind = child.kept >= 0
        self._said_pid = False
        self._said_exit = False
        self._kills = kills.counts()
        self._hit: list[str] | None = None
        self._input = b""
        self._held = b""

    @property
    def ended(self) -> bool:
        child = self._child
        open_ends = max(child.stdout, child.stderr, child.said)
        return self._said_exit and child.gone and open_ends < 0 and not self._held

    def step(self) -> float | None:
        """Move what can be moved; gives how long to wait (0: not at all, None: to be woken)."""
        child = self._child
        # The report first: what a program wrote before its end is then in the pipes already.
        child.read_report()
        if not child.reported:
            self._watch("report", READ)
        if child.pid and not self._said_pid:
            self._said_pid = True
            self._call.send_event({"pid": child.pid}, may_wait=True)
        self._hold_said()
        more = self._pump("stdout", STDOUT) | self._pump("stderr", STDERR)
        if self._behind:
            more |= self._pump("terminal", TERMINAL)
        if not more:
            more = self._send_said()
        self._feed()
        if more:
            return 0
        if child.exit is not None and not self._said_exit and self._makes_room():
            self._say_exit()
        return None

    def _makes_room(self) -> bool:
        """Whether its end may be told. Where it ran into the limit of processes, what it leaves
        behind ends with it first: whatever comes next is to find room."""
        child = self._child
        if self._hit is None:
            self._hit = kills.risen(self._kills) if child.exit and child.exit[0] else []
            if "processes" in self._hit:
                self._call.loop.start(Task(kill_tree(child), lambda _failure, _result: None))
        return child.gone or "processes" not in self._hit

    def _say_exit(self) -> None:
        assert self._child.exit is not None  # noqa: S101 - asked just before
        if not self._said_pid:  # its supervisor was killed before it had said anything
            self._said_pid = True
            self._call.send_event({"pid": 0}, may_wait=True)
        self._said_exit = True
        status, user, system, peak = self._child.exit
        code, number = execution.exit_code(status)
        figures = {"cpu_user": user, "cpu_system": system, "peak_memory": peak or None}
        self._call.send_event(dict(figures, exit=code, signal=number, hit=self._hit))
        self._call.sender.starter.ended(self._child)

    def _pump(self, name: str, channel: int) -> bool:
        """Send what a pipe holds; True when there may be more to send at once."""
        descriptor = getattr(self._child, name)
        for _ in range(_ROUND):
            if descriptor < 0:
                return False
            credit = self._call.credit(channel)
            if not credit:
                return False
            try:
                data = os.read(descriptor, credit)
            except BlockingIOError:
                self._watch(name, READ)
                return False
            except OSError:  # what a terminal gives that nobody has any more
                data = b""
            if not data:
                self._close(name)
                self._call.send_end(channel)
                return False
            self._call.send(data, channel)
        return True

    def _hold_said(self) -> None:
        """Take what a kernel says, but let what it printed before go first."""
        while not self._held and self._child.said >= 0:
            credit = self._call.credit(STDIN)
            if not credit:
                return
            try:
                self._held = os.read(self._child.said, credit)
            except BlockingIOError:
                self._watch("said", READ)
                return
            if not self._held:
                self._close("said")
                self._call.send_end(STDIN)

    def _send_said(self) -> bool:
        """Send what is held; True when there may be more."""
        if not self._held:
            return False
        credit = self._call.credit(STDIN)
        self._call.send(self._held[:credit], STDIN)
        self._held = self._held[credit:]
        return credit > 0

    def _feed(self) -> None:
        while self._child.stdin >= 0:
            if not self._input:
                data = self._call.take()
                if data is None:
                    return
                if not data:
                    self._close("stdin")
                    return
                self._input = data
            try:
                written = os.write(self._child.stdin, self._input)
            except BlockingIOError:
                self._watch("stdin", WRITE)
                return
            except OSError:  # it reads no more: its own affair, but the host need not send on
                self._close("stdin")
                self._call.send_event({"stdin": "closed"})
                return
            self._call.consumed(written)
            self._input = self._input[written:]

    def _watch(self, name: str, events: int) -> None:
        self._call.loop.watch(getattr(self._child, name), events, self._call.task)

    def _close(self, name: str) -> None:
        # In this order: a number that is watched must not become another file's.
        descriptor = getattr(self._child, name)
        if descriptor >= 0:
            self._call.loop.unwatch(descriptor)
            self._child.close_one(name)

    def close_streams(self) -> None:
        for name in ("stdin", "stdout", "stderr", "terminal", "kept", "said"):
            self._close(name)

    def close(self) -> None:
        self.close_streams()
        self._close("report")


# --- signals ---


def send_signal(call: Call) -> Steps[dict[str, Any]]:
    yield 0
    child = _target(call)
    number = call.number_of("signal") or 0
    if child is not None and child.pid and child.exit is None:
        child.read_report()
        if child.exit is None:
            os.kill(child.pid, number)
    return {}


def resize(call: Call) -> Steps[dict[str, Any]]:
    """Give a program's terminal another size."""
    yield 0
    child = _target(call)
    if child is not None and child.terminal >= 0:
        execution.resize(child.terminal, call.number_of("rows") or 0, call.number_of("cols") or 0)
    return {}


def interrupt(call: Call) -> Steps[dict[str, Any]]:
    """Interrupt what has a program's terminal in the foreground."""
    yield 0
    child = _target(call)
    if child is not None and child.terminal >= 0:
        execution.interrupt(child.terminal)
    return {}


def kill(call: Call) -> Steps[dict[str, Any]]:
    """Kill a program and everything below it; ends when all of it is gone."""
    child = _target(call)
    if child is not None:
        yield from kill_tree(child)
    return {}


def _target(call: Call) -> Any:
    found = call.sender.find(call.number_of("call"))
    return None if found is None else found.child


def kill_tree(child: execution.Child) -> Steps[None]:
    """Kill all that is below a supervisor, which then ends by itself."""
    hunt = _Hunt(child.supervisor)
    while not child.gone:
        yield hunt.round()


def kill_everything(loop: Loop) -> Steps[None]:
    """Kill whatever was started and still runs, also what was left running on purpose."""
    hunts: dict[int, _Hunt] = {}
    while loop.owned:
        pauses = [hunts.setdefault(pid, _Hunt(pid)).round() for pid in loop.owned]
        yield min(pauses)


class _Hunt:
    """Kills what is below one process, round by round.

    Everything is stopped before anything is killed: what is stopped cannot start anything, so
    that even a chain of processes that replace each other comes to an end.
    """

    def __init__(self, supervisor: int) -> None:
        self._supervisor = supervisor
        self._rounds = 0
        self._idle = 0
        self._pause = _FIRST_PAUSE

    def round(self) -> float:
        """Do what can be done now; gives the seconds to wait before the next round."""
        alive, moving = families.descendants(self._supervisor)
        for pid in moving:
            _signal(pid, signal.SIGSTOP)
        self._rounds += 1
        stopping = bool(moving) and self._rounds <= _STOP_ROUNDS
        if not stopping:
            for pid in alive:
                _signal(pid, signal.SIGKILL)
        _signal(self._supervisor, signal.SIGCONT)  # any program may have stopped it
        self._idle = 0 if alive else self._idle + 1
        if self._idle > _SUPERVISOR_GRACE:
            _signal(self._supervisor, signal.SIGKILL)
        if stopping:
            return 0
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        return pause


def _kill_orphans(loop: Loop) -> Steps[None]:
    """Kill what has become a child of ours because its supervisor is gone."""
    while True:
        orphans = families.children(os.getpid()) - loop.owned
        if not orphans:
            return
        for orphan in orphans:
            for pid in families.descendants(orphan)[0] | {orphan}:
                _signal(pid, signal.SIGKILL)
        loop.reap()
        yield _FIRST_PAUSE


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        return  # gone already, or not ours to kill


OPERATIONS = {
    "spawn": spawn,
    "signal": send_signal,
    "resize": resize,
    "interrupt": interrupt,
    "kill": kill,
}
