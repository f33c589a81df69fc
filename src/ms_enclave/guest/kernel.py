"""A Python kernel: takes cells from its channel one by one, and keeps what they leave.

Imported by a zygote it makes its shell ready, so that a copy has only to run; `serve` is what a
kernel's process then is. IPython does the work where this interpreter has it, a shell of our own
elsewhere. Whatever is said here, any cell could say just as well: the host believes none of it that
it could not bear to be wrong.

Output of Python goes as frames, in order with displays; descriptors 1 and 2, which other programs
and C code write to, are pipes to the host. Message types and contents are Jupyter's.
"""

from __future__ import annotations

import _thread
import builtins
import collections
import faulthandler
import io
import os
import resource
import signal
import sys
import time

from . import kernel_displays as displays
from . import kernel_plain, protocol

kernel_ipython: Any = None
if "%s.kernel_light" % __package__ not in sys.modules:
    try:
        from . import kernel_ipython
    except ImportError:  # none here, or one too old for us: a shell of our own does
        kernel_ipython = None

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, NoReturn

    from .kernel_plain import Shell

__all__ = ["Link", "Stream", "serve"]

_set_handler: Any = sys.modules["_signal"].signal
"""Without the enums of `signal.signal`, which are a hundred pages to copy."""

_READ = 1 << 18
_PIECE = protocol.MAX_PAYLOAD
_HELD = 8192
"""Characters of an unfinished line that a stream holds back."""
_MOST_OF_ERROR, _MOST_LINES = 1 << 18, 1000
"""Characters and entries of a traceback that are sent."""
_SHOWN_AFTER = 0.05
"""Seconds after which an unfinished line is sent with what comes next."""


_shell: Shell = kernel_plain.PlainShell() if kernel_ipython is None else kernel_ipython.make()
"""Made where the module is imported: in a zygote, whose copies have it then."""
_ready = False


def make_ready() -> None:
    """Do all that a kernel's process needs before its channel is there. Idempotent; in a zygote,
    after the last import, so that a copy has only to run."""
    global _ready
    if _ready:
        return
    _ready = True
    link = _link
    os.register_at_fork(after_in_child=link.detach)
    _set_handler(int(signal.SIGINT), link.on_interrupt)
    sys.stdout, sys.stderr = link.streams
    builtins.input = link.input
    _replace_getpass(link)
    _show_crashes()
    _shell.connect(link)
    _shell.begin()
    sys.path.insert(0, "")


_renew: Callable[[bool], object] | None = None


def serve(source: int, target: int, renew: Callable[[bool], object] | None = None) -> NoReturn:
    """Be a kernel: read from one descriptor, write to the other (they may be the same one).

    `renew` is what a fork of it does to be another than it; it is told whether random numbers are
    to be others, too.
    """
    global _renew
    _renew = renew
    make_ready()
    _begin(source, target)
    while True:
        number, body = _link.next_request(_shell)
        _answer(_link, number, body)


def _begin(source: int, target: int) -> None:
    _link.open(source, target)
    _shell.take_environment()
    _link.greet({"implementation": _shell.name, "implementation_version": _shell.version()})


def _show_crashes() -> None:
    """What the C stack was when a library crashes, for whoever reads its stderr."""
    try:
        faulthandler.enable(2)
    except (OSError, ValueError):  # closed
        return


def _replace_getpass(link: Link) -> None:
    def ask(prompt: str = "Password: ", stream: object = None, **_rest: object) -> str:
        del stream
        return link.input(prompt, password=True)

    if "getpass" in sys.modules:
        sys.modules["getpass"].getpass = ask  # type: ignore[attr-defined]
    else:
        sys.meta_path.insert(0, _Patch("getpass", ask))  # type: ignore[arg-type]


class _Patch:
    """Puts a function of ours into a module when that is imported, so that nobody has to before."""

    def __init__(self, name: str, function: Any) -> None:
        self._name = name
        self._function = function

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        del path, target
        if name != self._name:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        import importlib.util

        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            setattr(module, self._name, self._function)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _answer(link: Link, number: int, body: dict[str, Any]) -> None:
    """Do one request, and say that it is done, whatever it did."""
    link.call = number
    operation = body.get("op")
    if operation == "execute":
        answer = _execute(link, body)
    elif operation == "forked":
        answer = _go_on(body)
    else:
        answer = _ask(operation, body)
    if link.detached:
        os._exit(0)  # a fork of the kernel has come to the end of the cell: it is nobody's kernel
    link.send_json(protocol.RESULT, _clipped(answer))


# --- as a fork ----------------------------------------------------------------------------------


def _go_on(body: dict[str, Any]) -> dict[str, Any]:
    """This process is a copy of the kernel that waited for its next request: have what a copy of
    memory does not bring."""
    try:
        if _renew is not None:
            _renew(bool(body["reseed"]))
    except Exception as error:  # noqa: BLE001 - whatever it stumbles over, this is its only report
        return {"status": "error", "ename": type(error).__name__, "evalue": _text(error)[:1000]}
    return {"status": "ok"}


def _execute(link: Link, body: dict[str, Any]) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    link.allow_input = bool(body.get("allow_stdin"))
    link.display_limit = int(body["display_limit"])
    link.interruptible = True
    try:
        answer = _shell.execute(body)
    except KeyboardInterrupt:  # between two things that are ours
        answer = _shell.failed("KeyboardInterrupt", "")
    except BaseException as error:  # noqa: BLE001 - the cell has broken what shells need
        sys.stdout, sys.stderr = link.streams
        answer = _shell.failed(type(error).__name__, _text(error))
    finally:
        link.interruptible = False
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    after = resource.getrusage(resource.RUSAGE_SELF)
    answer["cpu"] = [after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime]
    return answer


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the exception's own
        return ""


def _flush(stream: Any) -> None:
    try:
        stream.flush()
    except Exception:  # noqa: BLE001 - it may be anything, the cell has replaced it
        return


def _ask(operation: object, body: dict[str, Any]) -> dict[str, Any]:
    """What an editor asks: completion, inspection, whether a cell is whole."""
    try:
        if operation == "complete":
            return _shell.complete(body["code"], int(body["cursor_pos"]))
        if operation == "inspect":
            return _shell.inspect(body["code"], int(body["cursor_pos"]), int(body["detail_level"]))
        if operation == "is_complete":
            return _shell.is_complete(body["code"])
    except Exception as error:  # noqa: BLE001 - whatever a completer stumbles over
        return {"status": "error", "ename": type(error).__name__, "evalue": str(error)[:1000]}
    return {"status": "error", "ename": "ValueError", "evalue": "unknown operation"}


class Link:
    """The kernel's end of the channel.

    Sends from any thread; a frame is never cut in two by an interrupt or by another thread's. A
    fork of the process loses it, and writes to descriptors 1 and 2.
    """

    def __init__(self) -> None:
        self.call = 0xFFFFFFFF
        """The number of the host's request that is being done, or was last."""
        self.interruptible = False
        self.allow_input = False
        self.display_limit = 0
        self.detached = False
        self.streams = (
            Stream(self, "stdout", protocol.STDOUT, 1), Stream(self, "stderr", protocol.STDERR, 2),
        )  # fmt: skip
        self._source = self._target = -1
        self._decoder = protocol.Decoder()
        self._frames: collections.deque[protocol.Frame] = collections.deque()
        self._lock = _thread.RLock()
        self._main = _thread.get_ident()
        """The same in a copy of the process."""
        self._guarded = self._interrupted = self._writing = False
        self._waiting: collections.deque[bytes] = collections.deque()

    def open(self, source: int, target: int) -> None:
        """Read and write these from now on; -1 for none."""
        self._source, self._target = source, target
        for descriptor in {source, target} - {-1}:
            os.set_inheritable(descriptor, False)
            os.set_blocking(descriptor, True)

    def detach(self) -> None:
        """A fork of the process has begun."""
        self.detached = True
        self._lock = _thread.RLock()
        for descriptor in {self._source, self._target}:
            try:
                os.close(descriptor)
            except OSError:
                continue

    def on_interrupt(self, _number: int, _frame: object) -> None:
        """SIGINT: ends a cell, and nothing where none is running."""
        if self._guarded:
            self._interrupted = True
        elif self.interruptible or self.detached:
            raise KeyboardInterrupt

    # --- sending ---

    def greet(self, facts: dict[str, Any]) -> None:
        body = dict(facts, version=protocol.VERSION, python=sys.version.split()[0])
        self._send(protocol.encode(protocol.HELLO, 0, protocol.dump(body)))

    def send_output(self, channel: int, data: bytes) -> None:
        """Bytes of standard output (1) or standard error (2)."""
        if self.detached:
            _write_all(channel, data)
            return
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            self._send(protocol.encode(protocol.DATA, self.call, piece, channel))

    def send_message(self, kind: str, content: dict[str, Any]) -> None:
        """A message of Jupyter's, after what was printed before it."""
        if self.detached:
            return
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, Stream):
                stream.flush()
        if kind == "error":
            content = _clipped(content)
        self.send_json(protocol.EVENT, {"type": kind, "content": content})

    def send_json(self, kind: int, body: dict[str, Any]) -> None:
        text = displays.to_json(body)
        if len(text) <= _PIECE:
            self._send(protocol.encode(kind, self.call, text))
            return
        starts = range(0, len(text), _PIECE)
        self._send(b"".join(
            protocol.encode(kind, self.call, text[start : start + _PIECE], int(start != starts[-1]))
            for start in starts
        ))  # fmt: skip

    def _send(self, frames: bytes) -> None:
        main = _thread.get_ident() == self._main
        guarded = self._guarded
        if main:
            self._guarded = True
        try:
            with self._lock:
                self._waiting.append(frames)
                if not self._writing:  # else a finaliser prints in the middle of a frame
                    self._writing = True
                    try:
                        while self._waiting:
                            _write_all(self._target, self._waiting.popleft())
                    finally:
                        self._writing = False
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)  # nobody listens any more
        finally:
            if main:
                self._guarded = guarded
        if main and self._interrupted and not self._guarded:
            self._interrupted = False
            if self.interruptible:
                raise KeyboardInterrupt

    # --- receiving ---

    def next_request(self, shell: Shell) -> tuple[int, dict[str, Any]]:
        """Wait for what to do next; background tasks of the cells go on meanwhile."""
        text = b""
        while True:
            kind, more, number, payload = self._next_frame(shell)
            if kind != protocol.REQUEST:
                continue
            text += payload
            if not more:
                return number, protocol.load_body(text)

    def _next_frame(self, shell: Shell | None = None) -> protocol.Frame:
        while not self._frames:
            if shell is not None:
                shell.wait_for(self._source)
            data = os.read(self._source, _READ)
            if not data:
                os._exit(0)  # the host has gone
            self._frames.extend(self._decoder.feed(data))
        return self._frames.popleft()

    def input(self, prompt: object = "", *, password: bool = False) -> str:
        """What whoever runs the cell answers; stands for the builtin `input`."""
        if self.detached or not self.allow_input:
            raise _shell.no_input()
        self.send_message("input_request", {"prompt": str(prompt), "password": password})
        while True:
            kind, _more, number, payload = self._next_frame()
            if kind == protocol.DATA and number == self.call:
                return payload.decode("utf-8", "replace")
            if kind == protocol.END and number == self.call:
                raise EOFError("nobody answers")


def _clipped(body: dict[str, Any]) -> dict[str, Any]:
    """A body with no more of an error than somebody could read: the host takes no more either."""
    if "traceback" not in body:
        return body
    lines: list[str] = []
    room = _MOST_OF_ERROR
    for line in body["traceback"]:
        lines.append(line[:room])
        room = max(0, room - len(line))
    return dict(body, traceback=lines[:_MOST_LINES], evalue=body["evalue"][:_MOST_OF_ERROR])


def _write_all(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, data[written:])


class Stream(io.TextIOBase):
    """`sys.stdout` or `sys.stderr` of a kernel; lines go to the host as they are finished."""

    encoding = "utf-8"
    errors = "backslashreplace"
    newlines = None
    line_buffering = True

    def __init__(self, link: Link, name: str, channel: int, descriptor: int) -> None:
        super().__init__()
        self.name = "<%s>" % name
        self.mode = "w"
        self.buffer = _Bytes(self)
        self._link = link
        self._channel = channel
        self._descriptor = descriptor
        self._held: list[str] = []
        self._size = 0
        self._since = 0.0

    def write(self, text: str) -> int:
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError("write() argument must be str, not %s" % type(text).__name__)
        if not self._held:
            self._since = time.monotonic()
        self._held.append(text)
        self._size += len(text)
        if "\n" in text or self._size > _HELD or time.monotonic() - self._since > _SHOWN_AFTER:
            self.flush()
        return len(text)

    def flush(self) -> None:
        if self._held:
            held, self._held, self._size = self._held, [], 0
            self.write_bytes("".join(held).encode("utf-8", "backslashreplace"))

    def write_bytes(self, data: bytes) -> None:
        self._link.send_output(self._channel, data)

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def close(self) -> None:
        """A cell cannot close it: the next one prints, too."""
        self.flush()


class _Bytes(io.RawIOBase):
    """`sys.stdout.buffer`."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream

    def write(self, data: Any) -> int:
        content = bytes(data)
        self._stream.flush()
        self._stream.write_bytes(content)
        return len(content)

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        return


# --- before the first cell ----------------------------------------------------------------------

_FAILING = ("def f():\n    1/0\nf()", "1 +")
_USUAL = ("1 + 1", "print(1)")
_ENOUGH = 20
"""Times after which the interpreter has settled how it runs something."""


def rehearse() -> None:
    """Begin and run cells as every kernel will, so that what they load, remember and change is
    there in each copy and need not be written again."""
    make_ready()
    source, feed = os.pipe()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in range(1, _ENOUGH + 1):
            _begin(source, nowhere)
            for code in _USUAL if number > 1 else (*_FAILING, *_USUAL):
                body = {"op": "execute", "code": code, "display_limit": 1 << 20}
                os.write(feed, b"".join(protocol.encode_request(number, body)))
                _answer(_link, *_link.next_request(_shell))
    finally:
        _shell.forget()
        _link.open(-1, -1)
        for descriptor in (source, feed, nowhere):
            os.close(descriptor)


_link = Link()
