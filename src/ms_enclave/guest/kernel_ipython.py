"""Cells in IPython: its shell with displays, errors and input that go to the host.

The shell is IPython's own, not ipykernel's: no sockets, no threads, no history file. What it sends
has the shapes that ipykernel's would have.
"""

# IPython has few types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportOptionalMemberAccess=false

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile

import IPython
from IPython.core import interactiveshell, page
from IPython.core.completer import provisionalcompleter, rectify_completions
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.error import StdinNotImplementedError
from IPython.core.profiledir import ProfileDir
from IPython.utils.tokenutil import token_at_cursor
from traitlets import Type
from traitlets.config import Config

from . import kernel_displays as displays
from .kernel_plain import Shell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .kernel import Link

__all__ = ["make"]

_INLINE = "module://matplotlib_inline.backend_inline"
_TOLD = {
    "TERM": "xterm-color", "CLICOLOR": "1", "FORCE_COLOR": "1", "CLICOLOR_FORCE": "1",
    "PAGER": "cat", "GIT_PAGER": "cat",
}  # fmt: skip
"""What ipykernel tells programs that a cell starts: colours, and no pager."""


_ELSEWHERE = ("--target", "-t", "--user", "--prefix", "--root")
"""Options of pip's that say where to."""


def _is_closed_environment() -> bool:
    """Whether pip can install nothing here: outside of an environment, it finds a place itself."""
    if sys.prefix == sys.base_prefix:
        return False
    return not os.access(sysconfig.get_path("purelib"), os.W_OK)


def _own_packages() -> str:
    version = "python%d.%d" % sys.version_info[:2]
    return os.path.join(os.path.expanduser("~"), ".local", "lib", version, "site-packages")


def make() -> IPythonShell:
    """A shell, with all that a first cell needs loaded."""
    return IPythonShell()


class IPythonShell(Shell):
    """What a kernel asks for, of IPython's shell."""

    name = "ipython"

    def __init__(self) -> None:
        super().__init__()
        config = Config()
        config.HistoryManager.enabled = False  # it would have a thread and a file
        config.HistoryManager.hist_file = ":memory:"
        keep = {name: os.environ.get(name) for name in ("PAGER", "TERM")}
        self.shell: Any = _Interactive.instance(config=config)
        self.shell.db = {}  # what magics remember would be in files
        self.shell.loop_runner = self.run_coroutine
        self._pip: Any = self.shell.find_line_magic("pip")
        self.shell.register_magic_function(self.pip, "line", "pip")
        os.environ.setdefault("MPLBACKEND", _INLINE)  # for what is preloaded after this
        for name, value in keep.items():
            if value is not None:
                os.environ[name] = value

    def version(self) -> str:
        return str(IPython.__version__)

    def connect(self, link: Link) -> None:
        super().connect(link)
        for part in (self.shell, self.shell.displayhook, self.shell.display_pub):
            part.link = link

    def forget(self) -> None:
        self.shell.reset(new_session=True)

    def begin(self) -> None:
        sys.modules["__main__"] = self.shell.user_module
        sys.argv[:] = [""]

    def take_environment(self) -> None:
        environment = os.environ
        if "MPLBACKEND" not in environment:
            environment["MPLBACKEND"] = _INLINE
        for name, value in _TOLD.items():
            if environment.get(name) != value:
                environment[name] = value
        folder = _own_packages()
        if _is_closed_environment() and os.path.isdir(folder):
            sys.path.append(folder)  # of a kernel before this one

    def pip(self, line: str) -> None:
        """Run pip in this interpreter: `%pip install package`.

        Where that is a virtual environment which the sandbox may not change, what is installed goes
        to a folder of the sandbox's own, which its kernels import from.
        """
        words = line.split()
        own = (
            words[:1] == ["install"]
            and _is_closed_environment()
            and not any(word.startswith(_ELSEWHERE) for word in words)
        )
        folder = _own_packages()
        self._pip(line + " --target " + shlex.quote(folder) if own else line)
        if own and os.path.isdir(folder) and folder not in sys.path:
            sys.path.append(folder)
        importlib.invalidate_caches()

    def count(self) -> int:
        return int(self.shell.execution_count) - 1

    def no_input(self) -> BaseException:
        return StdinNotImplementedError(
            "raw_input was called, but this frontend does not support input requests."
        )

    def execute(self, body: dict[str, Any]) -> dict[str, Any]:
        shell = self.shell
        silent = bool(body.get("silent"))
        shell.last_traceback = None
        shell.failed_in_display = False
        done = shell.run_cell(
            body["code"],
            store_history=bool(body.get("store_history", True)) and not silent,
            silent=silent,
        )
        error = done.error_before_exec or done.error_in_exec
        reply: dict[str, Any] = {"status": "ok", "user_expressions": {}}
        if done.success and not shell.failed_in_display:
            reply["user_expressions"] = shell.user_expressions(body.get("user_expressions") or {})
        else:
            reply = {
                "status": "error",
                "ename": type(error).__name__,
                "evalue": _text(error),
                "traceback": shell.last_traceback or [],
                "user_expressions": {},
            }
        reply["execution_count"] = self.count()
        reply["payload"] = shell.payload_manager.read_payload()
        shell.payload_manager.clear_payload()
        return reply

    # --- editors ---

    def complete(self, code: str, cursor: int) -> dict[str, Any]:
        with provisionalcompleter():
            found = list(rectify_completions(code, self.shell.Completer.completions(code, cursor)))
        kinds = [
            {"start": one.start, "end": one.end, "text": one.text, "type": one.type or "",
             "signature": one.signature}
            for one in found
        ]  # fmt: skip
        return {
            "status": "ok",
            "matches": [one.text for one in found],
            "cursor_start": found[0].start if found else cursor,
            "cursor_end": found[0].end if found else cursor,
            "metadata": {"_jupyter_types_experimental": kinds},
        }

    def inspect(self, code: str, cursor: int, detail: int) -> dict[str, Any]:
        name = token_at_cursor(code, cursor)
        reply: dict[str, Any] = {"status": "ok", "found": False, "data": {}, "metadata": {}}
        try:
            bundle = self.shell.object_inspect_mime(name, detail_level=detail)
        except KeyError:
            return reply
        return dict(reply, found=True, data=bundle)

    def is_complete(self, code: str) -> dict[str, Any]:
        status, spaces = self.shell.input_transformer_manager.check_complete(code)
        reply = {"status": status}
        if status == "incomplete":
            reply["indent"] = " " * spaces
        return reply


def _text(error: object) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the exception's own
        return ""


class _Hook(DisplayHook):
    """The result of a cell."""

    link: Link
    message: dict[str, Any] | None = None

    def start_displayhook(self) -> None:
        self.message = {"execution_count": 0, "data": {}, "metadata": {}}

    def write_output_prompt(self) -> None:
        if self.message is not None:
            self.message["execution_count"] = self.prompt_count

    def write_format_data(self, format_dict: Any, md_dict: Any = None) -> None:
        if self.message is not None:
            self.message["data"], lost = displays.fit(self.link, dict(format_dict))
            self.message["metadata"] = {} if lost else dict(md_dict or {})
            if lost:
                self.message["lost"] = lost

    def finish_displayhook(self) -> None:
        message, self.message = self.message, None
        if message is not None and message["data"]:
            self.link.send_message("execute_result", message)


class _Publisher(DisplayPublisher):
    """What cells display besides their results."""

    link: Link

    def publish(
        self,
        data: Any,
        metadata: Any = None,
        source: Any = None,
        *,
        transient: Any = None,
        update: bool = False,
        **_rest: Any,
    ) -> None:
        del source
        fitting, lost = displays.fit(self.link, dict(data))
        content: dict[str, Any] = {
            "data": fitting,
            "metadata": {} if lost else dict(metadata or {}),
            "transient": dict(transient or {}),
        }
        if lost:
            content["lost"] = lost
        self.link.send_message("update_display_data" if update else "display_data", content)

    def clear_output(self, wait: bool = False) -> None:
        self.link.send_message("clear_output", {"wait": bool(wait)})


class _Profile(ProfileDir):
    """A folder that IPython has to know, and that is not made: a kernel has no files of its own."""

    def _location_changed(self, change: Any) -> None:
        """Leave it alone."""


class _Interactive(interactiveshell.InteractiveShell):  # type: ignore[misc]
    """IPython's shell, over the link."""

    displayhook_class = Type(_Hook)
    display_pub_class = Type(_Publisher)
    displayhook: Any
    link: Link
    last_traceback: Any = None
    failed_in_display = False

    def init_ipython_dir(self, ipython_dir: Any) -> None:
        """There is none: a kernel reads no files of its user's either."""

    def init_profile_dir(self, profile_dir: Any) -> None:
        self.profile_dir = _Profile(location=os.path.join(tempfile.gettempdir(), ".ipython"))

    def init_hooks(self) -> None:
        super().init_hooks()
        self.set_hook("show_in_pager", page.as_hook(self._page), 99)

    def init_io(self) -> None:
        """The streams are the kernel's."""

    def _page(self, text: Any, start: int = 0, **_rest: Any) -> None:
        data = text if isinstance(text, dict) else {"text/plain": text}
        payload: dict[str, Any] = {"source": "page", "data": data, "start": max(0, start)}
        self.payload_manager.write_payload(payload)

    def set_next_input(self, text: str, replace: bool = False) -> None:
        payload = {"source": "set_next_input", "text": text, "replace": replace}
        self.payload_manager.write_payload(payload)

    def ask_exit(self) -> None:
        """`exit` and `quit`: a kernel ends when its owner says so, so that this is `sys.exit`."""
        raise SystemExit

    def enable_gui(self, gui: Any = None) -> None:
        """There is no screen here."""

    def _showtraceback(self, etype: Any, evalue: Any, stb: Any) -> None:
        if self.displayhook.message is not None:
            self.failed_in_display = True
        self.last_traceback = stb
        self.link.send_message(
            "error", {"ename": etype.__name__, "evalue": _text(evalue), "traceback": list(stb)}
        )

    def system(self, cmd: str) -> None:
        """`!cmd`: its output is the cell's, as it comes."""
        if cmd.rstrip().endswith("&"):
            raise OSError("Background processes not supported.")
        words = ["/bin/sh", "-c", self.var_expand(cmd, depth=1)]
        if os.path.exists("/bin/bash"):
            words[0] = "/bin/bash"
        with subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as child:
            pipe = child.stdout
            try:
                while pipe is not None:
                    data = os.read(pipe.fileno(), 1 << 16)
                    if not data:
                        break
                    _print(data)
            except KeyboardInterrupt:
                child.terminate()
                raise
        self.user_ns["_exit_code"] = child.returncode
        if getattr(self, "system_raise_on_error", False) and child.returncode:
            raise subprocess.CalledProcessError(child.returncode, cmd)

    system_piped = system_raw = system


def _print(data: bytes) -> None:
    stream = getattr(sys.stdout, "buffer", None)
    if stream is not None:
        stream.write(data)
    else:
        sys.stdout.write(data.decode("utf-8", "replace"))
