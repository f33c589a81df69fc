"""The end of an interpreter that has run a program: all that a program can notice, and no more.

To take a whole interpreter apart touches every page that it still shares with the zygote it was
copied from, which takes longer than most small programs do. So what the program made is ended in
the interpreter's own order (threads, `atexit`, buffers, its modules' names, its cycles, buffers
again), and what came with the interpreter is left to the kernel. Where that might differ from
the real end, the real one happens: other threads, tracing, and code that is not Python's and may
have buffers of its own.
"""

import atexit
import builtins
import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Dict, FrozenSet, Optional

__all__ = ["leave", "remember"]

_LOST_OUTPUT = 120  # as the interpreter says it
_STREAMS = ("stdin", "stdout", "stderr")
_LAST = ("last_type", "last_value", "last_traceback", "last_exc")
_WITH_OWN_END = frozenset({"_ctypes", "_curses", "_tkinter", "readline"})
"""Modules of the standard library through which what is not Python may have something to write."""

_there: "FrozenSet[str]" = frozenset()


def remember() -> None:
    """What is loaded now is not the program's."""
    global _there
    _there = frozenset(sys.modules) - {"__main__"}


def leave(status: int) -> None:
    """End the process with an exit status; returns where only the interpreter can do it right."""
    try:
        if not _is_simple():
            return
        threading = sys.modules.get("threading")
        if threading is not None:
            threading._shutdown()
        _run_exit_functions()
        _flush()
        if not _is_simple():  # now that the program's last functions have run
            return
    except BaseException:  # noqa: BLE001 - a program's own objects: the interpreter reports it
        return
    _clear()
    try:
        _flush()
    except BaseException:  # noqa: BLE001 - the same, and nobody is left to report it to
        status = _LOST_OUTPUT
    os._exit(status)


def _is_simple() -> bool:
    """Whether nothing but Python code in this one thread can have anything left to do."""
    if len(sys._current_frames()) != 1 or sys.gettrace() or sys.getprofile():
        return False
    if not _WITH_OWN_END.isdisjoint(sys.modules):
        return False
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and file.endswith(".so") and "/lib-dynload/" not in file:
            return False
    return True


def _run_exit_functions() -> None:
    try:
        atexit._run_exitfuncs()
    except BaseException:  # noqa: BLE001 - before Python 3.10 the last error, printed already, comes
        return


def _flush() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name, None)
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()


def _clear() -> None:
    """Let go of what the program made, so that its objects end: files are written, and so on."""
    for name in _STREAMS:
        setattr(sys, name, getattr(sys, f"__{name}__", None))
    for name in _LAST:
        if hasattr(sys, name):
            setattr(sys, name, None)
    if hasattr(builtins, "_"):
        setattr(builtins, "_", None)  # noqa: B010 - no name of it that a type checker knows
    own = [module for name, module in sys.modules.items() if name not in _there]
    for name in [name for name in sys.modules if name not in _there and name != "__main__"]:
        del sys.modules[name]
    gc.collect()
    for module in reversed(own):
        _clear_module(module)
    gc.collect()


def _clear_module(module: "ModuleType") -> None:
    """Its names, in the interpreter's order: those with one underscore, then the others."""
    names: Optional[Dict[Any, Any]] = getattr(module, "__dict__", None)
    if not isinstance(names, dict):
        return
    for private in (True, False):
        for name in list(names):
            is_private = name[:1] == "_" and name[1:2] != "_"
            if name != "__builtins__" and (is_private or not private):
                names[name] = None
