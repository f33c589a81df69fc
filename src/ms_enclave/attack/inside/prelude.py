"""What probes are written with. A try that goes through is `ok`; else it is an error's name."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MARK = "attack: "
"""What the line begins with that says what came of a probe."""

NUMBERS: dict[str, dict[str, int]] = {}
"""By machine, the numbers of the system calls; whoever sends the program fills it in."""

tried: dict[str, list[str]] = {}
"""By what was tried: what came of it, and the guard that stands against it, if there is a name."""

_libc = ctypes.CDLL(None, use_errno=True)


def note(name: str, outcome: str, guard: str = "") -> None:
    """Say what came of a try."""
    tried[name] = [outcome, guard]


def attempt(
    name: str, action: Callable[..., Any], *arguments: Any, guard: str = "", harmless: str = ""
) -> None:
    """Try it; `harmless` are the names of errors that also mean that it went through."""
    try:
        action(*arguments)
    except OSError as error:
        said = errno.errorcode.get(error.errno or 0, str(error.errno))
        note(name, "ok" if said in harmless.split() else said, guard)
    except Exception as error:  # noqa: BLE001 - also a refusal
        note(name, type(error).__name__, guard)
    else:
        note(name, "ok", guard)


def saw(name: str, what: object, guard: str = "") -> None:
    """Something that is not to be seen, if there is anything."""
    note(name, f"ok: {str(what)[:200]}" if what else "nothing", guard)


def call(name: str, *arguments: Any) -> int:
    """Make a system call. Raises OSError; ENOSYS also where this machine has none of that name."""
    number = NUMBERS[platform.machine()].get(name)
    if number is None:
        raise OSError(errno.ENOSYS, name)
    return call_number(number, *arguments)


def call_number(number: int, *arguments: Any) -> int:
    """The same by its number."""
    ctypes.set_errno(0)
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def in_a_copy(name: str, action: Callable[..., Any], *arguments: Any, guard: str = "") -> None:
    """Try in a child what may end whoever tries; its end by a signal is a refusal."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            attempt(name, action, *arguments, guard=guard)
            os.write(writing, tried[name][0].encode())
        finally:
            os._exit(0)
    os.close(writing)
    said = os.read(reading, 100).decode()
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    note(name, f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else said, guard)


def take_name(name: str) -> None:
    """Be called so, with all who come of us, for whoever looks from outside. At most 15 bytes."""
    _libc.prctl(15, name.encode(), 0, 0, 0)


def tell() -> None:
    """Say everything, on a line of its own."""
    os.write(1, ("\n" + MARK + json.dumps(tried) + "\n").encode())


def was_refused() -> bool:
    """Whether anything was."""
    return any(not row[0].startswith("ok") for row in tried.values())
