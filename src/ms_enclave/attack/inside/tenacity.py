"""Programs that do not want to end. Each of their processes ends by itself after `LIFE` seconds."""

from __future__ import annotations

import os
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .prelude import note

LIFE = 2.0
BEGUN = time.monotonic()


def is_over() -> bool:
    return time.monotonic() > BEGUN + LIFE


def outlive() -> None:
    """Be there until the end of one's life, whatever the time-out was."""
    while not is_over():
        time.sleep(0.05)
    note("be there when the time is up", f"ok: {LIFE} s")


def ignore_signals() -> None:
    for number in {*range(1, signal.NSIG)} - {signal.SIGCHLD}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            continue


def signals_ignored() -> None:
    ignore_signals()
    outlive()


def busy() -> None:
    ignore_signals()
    while not is_over():
        pass
    outlive()


def unbegun() -> None:
    """Whoever starts a program by vfork hears of nothing until it has begun, and this one stands
    before a gate; one opens it at the end, and there is no such program behind it."""
    ignore_signals()
    os.mkfifo("gate")
    if os.fork() == 0:
        while not is_over():
            time.sleep(0.05)
        gate = os.open("gate", os.O_RDWR)
        time.sleep(0.2)
        os.close(gate)
        os._exit(0)
    try:
        os.posix_spawn("/nowhere", ["x"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, "gate", 0, 0)])
    except FileNotFoundError:
        outlive()


def stopped() -> None:
    """Nobody runs any more, so nobody hears of anything; one starts them again at the end."""
    ignore_signals()
    main, group = os.getpid(), [0]
    if os.fork() == 0:
        os.setsid()
        while not is_over():
            time.sleep(0.05)
        os.kill(main, signal.SIGCONT)
        os._exit(0)
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        group.append(pid)
    os.kill(main, signal.SIGSTOP)
    for pid in group[1:]:
        os.kill(pid, signal.SIGCONT)
    outlive()


def daemons() -> None:
    """Eight in sessions of their own, without a parent or a descriptor, that are somebody else
    every millisecond."""
    for _ in range(8):
        if os.fork() == 0:
            os.setsid()
            ignore_signals()
            if os.fork() == 0:
                os.closerange(0, 64)
                while not is_over():
                    try:
                        if os.fork():
                            os._exit(0)
                        os.setsid()
                    except OSError:
                        continue
                    time.sleep(0.001)
            os._exit(0)
    ignore_signals()
    outlive()


def tree() -> None:
    """A tree of processes of which each waits for its children."""
    ignore_signals()
    depth = 0
    children: list[int] = []
    while depth < 4:
        children = []
        for _ in range(2):
            pid = os.fork()
            if pid == 0:
                depth += 1
                break
            children.append(pid)
        else:
            break
    if depth:
        for pid in children:
            os.waitpid(pid, 0)
        while not is_over():
            time.sleep(0.05)
        os._exit(0)
    outlive()
