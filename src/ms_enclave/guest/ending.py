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
    from typing import Any, Callable, Dict, FrozenSet, List, Optional

__all__ = ["leave", "remember"]

_LOST_OUTPUT = 120  # as the interpreter says it
_STREAMS = ("stdin", "stdout", "stderr")
_LAST = ("last_type", "last_value", "last_traceback", "last_exc")
_WITH_OWN_END = frozenset({"_ctypes", "_curses", "_tkinter", "readline"})
"""Modules of the standard library through which what is not Python may have something to write."""

_there: "FrozenSet[str]" = frozenset()
_last = ""
_leave: "Callable[[int], object]" = os._exit


def remember() -> None:
    """What is loaded now is not the program's.

    Where code that is not Python's is among it, the C library's own `exit` is what ends the
    process: it writes the buffers and runs the ends that such code has.
    """
    global _there, _last, _leave
    if any(_is_foreign(name) for name in list(sys.modules)):
        import ctypes

        _leave = ctypes.PyDLL(None).exit
    _there = frozenset(sys.modules) - {"__main__"}
    _last = next(name for name in reversed(sys.modules) if name != "__main__")


def _new() -> "List[str]":
    """Names of the modules that came after. Whoever looks at the others copies their pages."""
    found: List[str] = []
    for name in reversed(sys.modules):
        if name == _last:
            break
        if name not in _there and name != "__main__":
            found.append(name)
    return found


def leave(status: int) -> None:
    """End the process with an exit status; returns where only the interpreter can do it right."""
    try:
        if not _is_simple():
            return
        threading = sys.modules.get("threading")
        if threading is not None:
            threading._shutdown()
        if atexit._ncallbacks():
            _run_exit_functions()
            if not _is_simple():  # now that the program's last functions have run
                return
        _flush()
    except BaseException:  # noqa: BLE001 - a program's own objects: the interpreter reports it
        return
    _clear()
    try:
        _flush()
    except BaseException:  # noqa: BLE001 - the same, and nobody is left to report it to
        status = _LOST_OUTPUT
    _leave(status)


def rehearse() -> None:
    """What `leave` does, without the end."""
    if _is_simple():
        _flush()
        _clear_module(sys.modules["__main__"])


def _is_simple() -> bool:
    """Whether nothing but Python code in this one thread can have anything left to do."""
    if len(sys._current_frames()) != 1 or sys.gettrace() or sys.getprofile():
        return False
    return not any(_is_foreign(name) for name in _new())


def _is_foreign(name: str) -> bool:
    """Whether a module is, or calls, code with an end of its own."""
    file = getattr(sys.modules[name], "__file__", None)
    from_elsewhere = file and file.endswith(".so") and "/lib-dynload/" not in file
    return bool(from_elsewhere) or name in _WITH_OWN_END


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
    names = _new()
    own = [sys.modules.pop(name) for name in names]
    if "__main__" in sys.modules:
        own.append(sys.modules["__main__"])
    gc.collect()
    if sum([_clear_module(module) for module in own]):
        gc.collect()


def _clear_module(module: "ModuleType") -> int:
    """Its names, in the interpreter's order: those with one underscore, then the others.

    Returns how many there were that a module does not have of itself.
    """
    names: Optional[Dict[Any, Any]] = getattr(module, "__dict__", None)
    if not isinstance(names, dict):
        return 0
    found = 0
    for private in (True, False):
        for name in list(names):
            is_private = name[:1] == "_" and name[1:2] != "_"
            if name != "__builtins__" and (is_private or not private):
                found += name[:2] != "__" and names[name] is not None
                names[name] = None
    return found
