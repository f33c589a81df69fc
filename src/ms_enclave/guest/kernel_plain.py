"""What runs cells: what every shell does, and the one for interpreters without IPython."""

from __future__ import annotations

import ast
import builtins
import contextlib
import inspect
import linecache
import os
import select
import sys
import traceback
import types
from abc import ABC, abstractmethod

from . import kernel_displays as displays

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Coroutine

    from .kernel import Link

__all__ = ["PlainShell", "Shell"]

_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.")


class Shell(ABC):
    """What a kernel asks of a shell, and what both kinds share: the loop that cells await on."""

    name = "python"
    link: Link

    def __init__(self) -> None:
        self._loop: Any = None

    def version(self) -> str:
        return sys.version.split()[0]

    @abstractmethod
    def begin(self) -> None:
        """Take the interpreter's place for what runs in it; it is connected already."""

    @abstractmethod
    def take_environment(self) -> None:
        """Add to the environment variables of the kernel's own process."""

    def connect(self, link: Link) -> None:
        """Have what cells show go there."""
        self.link = link

    @abstractmethod
    def forget(self) -> None:
        """Be as before the first cell."""

    @abstractmethod
    def execute(self, body: dict[str, Any]) -> dict[str, Any]:
        """Run a cell to its end. Gives the reply; what it shows is sent as it comes."""

    def failed(self, name: str, text: str) -> dict[str, Any]:
        """The reply to a cell that ended in code that is not its own."""
        error = {"ename": name, "evalue": text, "traceback": [f"{name}: {text}"]}
        self.link.send_message("error", error)
        return dict(error, status="error", execution_count=self.count())

    @abstractmethod
    def count(self) -> int:
        """The number of the last cell."""

    def no_input(self) -> BaseException:
        """What `input` raises where nobody can answer."""
        return EOFError("input() was called, but nobody can answer here")

    @abstractmethod
    def complete(self, code: str, cursor: int) -> dict[str, Any]: ...

    @abstractmethod
    def inspect(self, code: str, cursor: int, detail: int) -> dict[str, Any]: ...

    @abstractmethod
    def is_complete(self, code: str) -> dict[str, Any]: ...

    # --- top-level await ---

    def run_coroutine(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Await a cell. What it started in the background goes on when the kernel is idle."""
        import asyncio

        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(work)
        try:
            return self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
                self._loop.run_until_complete(task)
            raise

    def wait_for(self, descriptor: int) -> None:
        """Return when there is something to read; tasks in the background run meanwhile."""
        if self._loop is None or self._loop.is_closed():
            return
        import asyncio

        while asyncio.all_tasks(self._loop):
            if select.select([descriptor], [], [], 0)[0]:
                return
            came = self._loop.create_future()
            self._loop.add_reader(descriptor, _settle, came)
            try:
                self._loop.run_until_complete(came)
            finally:
                self._loop.remove_reader(descriptor)


def _settle(future: Any) -> None:
    if not future.done():
        future.set_result(None)


class PlainShell(Shell):
    """Cells without IPython: the last expression is the result, `await` works, no magics."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self._module = types.ModuleType("__main__")
        self._module.__dict__["__builtins__"] = builtins
        # For what is preloaded after this.
        os.environ.setdefault("MPLBACKEND", _BACKEND)
        sys.meta_path.append(_figures)  # type: ignore[arg-type]

    def connect(self, link: Link) -> None:
        super().connect(link)
        self._displays = displays.Displays(link)
        sys.modules["__main__"] = self._module
        sys.displayhook = self._show_result

    def forget(self) -> None:
        self._count = 0
        self._module.__dict__.clear()
        self._module.__dict__.update(types.ModuleType("__main__").__dict__)
        self._module.__dict__["__builtins__"] = builtins

    def begin(self) -> None:
        sys.modules["__main__"] = self._module
        sys.displayhook = self._show_result
        shown = self._displays
        for name in ("display", "update_display", "clear_output"):
            setattr(builtins, name, getattr(shown, name))
        sys.argv[:] = [""]
        _figures.shown = shown

    def take_environment(self) -> None:
        if "MPLBACKEND" not in os.environ:
            os.environ["MPLBACKEND"] = _BACKEND

    def count(self) -> int:
        return self._count

    def execute(self, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("store_history", True) and not body.get("silent"):
            self._count += 1
        self._silent = bool(body.get("silent"))
        reply: dict[str, Any] = {
            "status": "ok", "execution_count": self._count, "user_expressions": {}, "payload": [],
        }  # fmt: skip
        try:
            self._run(body["code"])
            show_figures(self._displays)
            for name, text in dict(body.get("user_expressions") or {}).items():
                reply["user_expressions"][name] = self._evaluate(text)
        except BaseException as error:  # noqa: BLE001 - a cell may raise anything, and the next one runs
            said = self._describe(error)
            if not self._silent:
                self.link.send_message("error", said)
            reply.update(said, status="error")
        return reply

    def _run(self, source: str) -> None:
        name = "<cell %d>" % self._count
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        tree = ast.parse(source, name)
        last: Any = None
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not _is_hushed(source):
            last = ast.Interactive([tree.body.pop()])
        for part, mode in ((tree, "exec"), (last, "single")):
            if part is not None and part.body:
                self._run_part(compile(part, name, mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, True))

    def _run_part(self, code: types.CodeType) -> None:
        if code.co_flags & inspect.CO_COROUTINE:
            self.run_coroutine(eval(code, self._module.__dict__))  # noqa: S307 - it is what is to be run
        else:
            exec(code, self._module.__dict__)

    def _show_result(self, value: Any) -> None:
        if value is None or self._silent:
            return
        self._module.__dict__["_"] = value
        if displays.show_by_itself(value):
            return
        data, metadata = displays.bundle(value)
        fitting, lost = displays.fit(self.link, data)
        content: dict[str, Any] = {
            "data": fitting, "metadata": {} if lost else metadata, "execution_count": self._count,
        }  # fmt: skip
        if lost:
            content["lost"] = lost
        self.link.send_message("execute_result", content)

    def _evaluate(self, text: str) -> dict[str, Any]:
        try:
            data, metadata = displays.bundle(eval(text, self._module.__dict__))  # noqa: S307
        except Exception as error:  # noqa: BLE001 - the expression's own
            return dict(self._describe(error), status="error")
        return {"status": "ok", "data": data, "metadata": metadata}

    def _describe(self, error: BaseException) -> dict[str, Any]:
        """An error as Jupyter has it, without the frames that are ours."""
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_globals.get("__name__") != "__main__":
            trace = trace.tb_next
        try:
            lines = traceback.format_exception(type(error), error, trace)
        except Exception:  # noqa: BLE001 - an exception's own __str__ may raise
            lines = [type(error).__name__ + "\n"]
        return {
            "ename": type(error).__name__,
            "evalue": _text(error),
            "traceback": [line.rstrip("\n") for line in lines],
        }

    # --- editors ---

    def complete(self, code: str, cursor: int) -> dict[str, Any]:
        import rlcompleter

        start = cursor
        while start > 0 and code[start - 1] in _WORD:
            start -= 1
        completer = rlcompleter.Completer(self._module.__dict__)
        found: list[str] = []
        word = code[start:cursor]
        while word and len(found) < 1000:
            match = completer.complete(word, len(found))
            if match is None:
                break
            found.append(match.rstrip("("))
        return {
            "status": "ok", "matches": sorted(set(found)), "cursor_start": start,
            "cursor_end": cursor, "metadata": {},
        }  # fmt: skip

    def inspect(self, code: str, cursor: int, detail: int) -> dict[str, Any]:
        start = end = cursor
        while start > 0 and code[start - 1] in _WORD:
            start -= 1
        while end < len(code) and code[end] in _WORD:
            end += 1
        missing: dict[str, Any] = {"status": "ok", "found": False, "data": {}, "metadata": {}}
        names = code[start:end].strip(".").split(".")
        space = self._module.__dict__
        if not names[0] or (names[0] not in space and not hasattr(builtins, names[0])):
            return missing
        value = space[names[0]] if names[0] in space else getattr(builtins, names[0])
        for name in names[1:]:
            if not hasattr(value, name):
                return missing
            value = getattr(value, name)
        text = "Type: %s\n%s" % (type(value).__name__, inspect.getdoc(value) or "")
        if detail:
            with contextlib.suppress(OSError, TypeError):
                text += "\n" + inspect.getsource(value)
        return dict(missing, found=True, data={"text/plain": text})

    def is_complete(self, code: str) -> dict[str, Any]:
        import codeop

        try:
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            compiler = codeop.CommandCompiler()
            compiler.compiler.flags |= flags
            whole = compiler(code + "\n", "<cell>", "exec") is not None
        except (SyntaxError, ValueError, OverflowError):
            return {"status": "invalid"}
        if whole:
            return {"status": "complete"}
        last = code.rstrip("\n").rpartition("\n")[2]
        indent = len(last) - len(last.lstrip()) + (4 if last.rstrip().endswith(":") else 0)
        return {"status": "incomplete", "indent": " " * indent}


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the exception's own
        return ""


def _is_hushed(source: str) -> bool:
    """A semicolon at the end means that the result is not wanted."""
    import io
    import tokenize

    if ";" not in source:
        return False
    last = ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type not in (
                tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER,
                tokenize.INDENT, tokenize.DEDENT,
            ):  # fmt: skip
                last = token.string
    except (tokenize.TokenError, SyntaxError):
        return False
    return last == ";"


# --- matplotlib ---

_FIGURES = "enclave_figures"
_BACKEND = "module://" + _FIGURES


class _Figures:
    """Makes a backend of matplotlib's when it is wanted: figures are drawn in memory and shown as
    displays. As a finder of modules, so that nothing of matplotlib is imported before."""

    shown: displays.Displays | None = None

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        del path, target
        if name != _FIGURES:
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, self)  # type: ignore[arg-type]

    def create_module(self, _spec: object) -> None:
        """An ordinary one."""

    def exec_module(self, module: Any) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        module.FigureCanvas = FigureCanvasAgg
        module.show = self.show

    def show(self, *_args: object, **_options: object) -> None:
        if self.shown is not None:
            show_figures(self.shown)


_figures = _Figures()


def show_figures(shown: displays.Displays) -> None:
    """Show the figures that are open, and close them."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None or not pyplot.get_fignums():
        return
    backend = sys.modules.get("matplotlib")
    if backend is None or _FIGURES not in str(backend.get_backend()):
        return
    for number in pyplot.get_fignums():
        shown.display(pyplot.figure(number))
    pyplot.close("all")
