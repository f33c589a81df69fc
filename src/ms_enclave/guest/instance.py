"""What a process of a sandbox does first: read from its channel what it is to be, and become it.

The channel (descriptor 3) brings a byte with descriptors attached: standard input, output and
error, as the request says. The request is JSON; it follows the byte (2), or is in a file before
those descriptors (1). `run` is Python code in a
fresh `__main__`, `exec` a program, `guest` the file server, `kernel` a kernel, `prepare` imports
modules and parks again, to be copied. Nothing here is trusted by the outside: what it says is what
any program in the sandbox could say, and what counts (exit status, time, memory) is measured
elsewhere.
"""

import _socket
import builtins
import errno
import io
import json
import os
import signal
import sys
import types

from . import ending

# Annotations that are not builtins stand in quotes: `from __future__ import annotations` would be
# one more module to load each time an interpreter starts for one program.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, NoReturn, Optional, Tuple

    Request = Dict[str, Any]
    _Values = Tuple[Any, ...]
else:
    _Values = tuple

__all__ = ["be_kernel", "main"]

_PACKAGE = __package__ or "guest"
_CHANNEL_DESCRIPTORS = 8
_MOST_INLINE = 1 << 16
_INLINE = 2  # first byte: the request follows
_scan: "Callable[[str, int], Tuple[Any, int]]" = getattr(json.JSONDecoder(), "scan_once")  # noqa: B009
"""What surrounds it in `json` reads the pages of regular expressions."""
_TIOCSCTTY = 0x540E
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126


def main(channel: int) -> None:
    """Take one request from the channel and do it; ends the interpreter."""
    while True:
        request, streams = _receive(channel)
        operation = request["op"]
        if operation == "prepare":
            _prepare(request, channel)
            continue
        if operation == "guest":
            _serve(request, channel)
        elif operation == "exec":
            _execute(request, streams)
        elif operation == "kernel":
            _become_kernel(request, streams, channel)
        else:
            _run(request, streams)
        return


def _receive(channel: int) -> "Tuple[Request, List[int]]":
    """The request and the descriptors that came with it. Ends the process if nobody asks."""
    connection = _socket.socket(fileno=channel)
    space = _socket.CMSG_SPACE(4 * _CHANNEL_DESCRIPTORS)
    data, ancillary, _, _ = connection.recvmsg(_MOST_INLINE, space)
    connection.detach()
    if not data:
        os._exit(0)
    received: List[int] = []
    for _level, _kind, content in ancillary:
        received += memoryview(content[: len(content) - len(content) % 4]).cast("i").tolist()
    if received and min(received) <= 3:
        received = [_high(number) for number in received]
    if data[0] == _INLINE:
        return _scan(data[1:].decode(), 0)[0], received
    with os.fdopen(received[0], "rb") as file:
        file.seek(0)
        return json.loads(file.read()), received[1:]


def _high(descriptor: int) -> int:
    """Out of the way of 0 to 3, which may be free here."""
    import fcntl

    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved


# --- becoming a process -------------------------------------------------------------------------


def _take_place(request: "Request", streams: "List[int]") -> "Optional[int]":
    """Streams and folder of a new process; returns an exit status if that fails."""
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.umask(request.get("umask", 0o022))
    try:
        os.chdir(request["cwd"])
    except OSError as error:
        _complain("cannot enter %s: %s" % (request["cwd"], os.strerror(error.errno or 0)))
        return _NOT_EXECUTABLE
    return None


def _take_environment(environment: "Dict[str, str]") -> None:
    """Make it this interpreter's own; nothing where a zygote has it already."""
    global _environment
    if environment != _environment:
        os.environ.clear()
        os.environ.update(environment)
        _environment = environment


_environment: "Optional[Dict[str, str]]" = None


def _complain(text: str) -> None:
    os.write(2, ("ms-enclave: %s\n" % text).encode("utf-8", "surrogateescape"))


def _take_terminal(streams: "List[int]") -> None:
    """Be the leader of a session with a terminal: that of the first three streams, or a fourth."""
    import fcntl

    if os.getsid(0) != os.getpid():
        os.setsid()
    fcntl.ioctl(streams[-1], _TIOCSCTTY, 0)
    for descriptor in streams[3:]:
        os.close(descriptor)
    del streams[3:]


def _execute(request: "Request", streams: "List[int]") -> "NoReturn":
    if request.get("terminal"):
        _take_terminal(streams)
    failed = _take_place(request, streams)
    if failed is not None:
        os._exit(failed)
    _default_signals()
    words: List[str] = request["argv"]
    environment: Dict[str, str] = request["env"]
    os.close(3)
    try:
        if "/" in words[0]:
            os.execve(words[0], words, environment)
        os.execvpe(words[0], words, environment)
    except (FileNotFoundError, NotADirectoryError):
        _complain("%s: not found" % words[0])
        os._exit(_NOT_FOUND)
    except OSError as error:
        if error.errno == errno.ENOEXEC:
            _try_script(words, environment)
        _complain("%s: %s" % (words[0], os.strerror(error.errno or 0)))
        os._exit(_NOT_EXECUTABLE)
    except ValueError as error:
        _complain(str(error))
        os._exit(_NOT_EXECUTABLE)


def _try_script(words: "List[str]", environment: "Dict[str, str]") -> None:
    """A file without an interpreter line is a shell script, as execlp and every shell have it."""
    try:
        os.execve("/bin/sh", ["/bin/sh", *words], environment)
    except OSError:
        return


def _default_signals() -> None:
    """What Python ignores for itself, a program expects untouched."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)


def _serve(request: "Request", channel: int) -> "NoReturn":
    from guest import server

    os.umask(0o022)
    _take_environment(request["env"])
    try:  # noqa: SIM105 - contextlib is one more module to load
        os.chdir(request["cwd"])
    except OSError:
        pass  # closed to this user, as a call with a path below it will say
    server.serve(channel, request.get("moved", ()))
    os._exit(0)


# --- Python -------------------------------------------------------------------------------------


_kernel: "Any" = None
"""The module that is a kernel, where it was preloaded."""


def _find_kernel() -> None:
    """Keep hold of the kernel's module: the program is to see nothing of the guest."""
    global _kernel
    _kernel = sys.modules.get(_PACKAGE + ".kernel", _kernel)


def _import_what_can_be(names: "List[str]") -> None:
    for name in names:
        try:
            __import__(name)
        except ImportError:
            continue  # the cell's own import says it better


def _become_kernel(request: "Request", streams: "List[int]", channel: int) -> None:
    """A Python that runs cells, one after the other."""
    failed = _take_place(request, streams)
    if failed is not None:
        os._exit(failed)
    be_kernel(request, channel, channel)


def be_kernel(request: "Request", source: int, target: int) -> None:
    """Go on as a kernel that reads from one descriptor and writes to another."""
    _take_environment(request["env"])
    if _kernel is None:  # else all of this was done before the copy
        _become_ordinary()
        if not request["ipython"]:
            __import__(_PACKAGE + ".kernel_light")
        __import__(_PACKAGE + ".kernel")
        _find_kernel()
        _keep_nothing_of_ours()
        _import_what_can_be(request["preload"])
    kernel: Any = _kernel
    _after_copy(request.get("seed"))
    kernel.serve(source, target, _after_fork)


_OWN_NEEDS = ("linecache", "random", "types")
"""What `_run` imports where it is not there yet: as long as all the rest of a small program."""


def _prepare(request: "Request", channel: int) -> None:
    """Become an ordinary interpreter with modules loaded, then go back to parking.

    Says R when done, or E and why not.
    """
    try:
        _become_ordinary()
        for name in (*_OWN_NEEDS, *request["preload"]):
            __import__(name)  # under the zygote's environment, which holds libraries to one thread
        _find_kernel()
        _take_environment(request["env"])
        _keep_nothing_of_ours()
        ending.remember()
        _find_numpy_state()
        if _kernel is None:
            _rehearse()
        else:
            _rehearse_kernel(request["env"])
        import gc

        gc.collect()
        if _kernel is not None:
            _fill_holes()
        gc.freeze()
    except BaseException as error:  # noqa: BLE001 - whatever it raises, this is its only report
        os.write(channel, ("E%s: %s" % (type(error).__name__, error)).encode("utf-8", "replace"))
        os._exit(1)
    os.write(channel, b"R")


def _rehearse() -> None:
    """Do once what every run will do, so that the interpreter's caches are filled in the original
    and need not be written in each copy."""
    for _ in range(3):
        text, _ = _scan(json.dumps({"code": "print(1)\n", "args": [], "seed": None}), 0)
        main, out, argv, path = sys.modules["__main__"], sys.stdout, sys.argv[:], sys.path[:]
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(os.dup(1), "w")))
        try:
            _after_copy(None)
            sys.argv[:] = ["-c", *text["args"]]
            sys.path.insert(0, "")
            _execute_main(text["code"])
            ending.rehearse()
        finally:
            sys.stdout.close()
            sys.modules["__main__"], sys.stdout, sys.argv[:], sys.path[:] = main, out, argv, path
    sys.modules["linecache"].cache.clear()


_ENOUGH = 20
"""Times after which the interpreter has settled how it runs something."""


def _rehearse_kernel(environment: "Dict[str, str]") -> None:
    """The same for a kernel: its way from the request to the end of its first cells."""
    folder = os.getcwd()
    request: Request = {
        "op": "kernel", "cwd": folder, "env": environment, "preload": [], "seed": None,
        "ipython": True,
    }  # fmt: skip
    ours, theirs = _socket.socketpair()
    nothing = os.open(os.devnull, os.O_RDWR)
    rights = nothing.to_bytes(4, sys.byteorder) * 3
    try:
        for _ in range(_ENOUGH):
            ours.sendmsg(
                [b"\2" + json.dumps(request).encode()],
                [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)],
            )
            received, streams = _receive(theirs.fileno())
            _take_place(received, streams)
            _take_environment(received["env"])
            _after_copy(None)
        _kernel.rehearse()
        sys.modules["linecache"].cache.clear()
    finally:
        os.close(nothing)
        ours.close()
        theirs.close()


_filling: "List[Any]" = []
_POOL = 1 << 14
"""Bytes; the allocator has objects of one size together."""
_POOL_HEADER = 48
_MOST_HOLES = 1 << 16


def _fill_holes() -> None:
    """Take the places that imports have left free between objects, so that what a copy makes comes
    to lie together: each page with a single new object in it would have to be copied.

    In an interpreter whose allocator is another one, this makes a few MiB of nothing.
    """
    for size in range(16, 513, 16):
        held: List[Any] = [None] * _MOST_HOLES
        for number in range(_MOST_HOLES):
            held[number] = one = _object_of(size)
            if id(one) % _POOL == _POOL_HEADER:
                del held[number + 1 :]  # the first of a new pool: there is no hole left
                break
        _filling.append(held)


def _object_of(size: int) -> object:
    """One of so many bytes, which nothing but the allocator keeps a stock of."""
    if size == 16:
        return object()
    if size == 32:
        return complex(0, 1)
    return bytes(size - sys.getsizeof(b""))


_ordinary = False


def _become_ordinary() -> None:
    """Undo `-I -S`: site packages, flags as a plain `python` shows them, streams of its own."""
    global _ordinary
    if _ordinary:
        return
    _ordinary = True
    sys.flags = _Flags(sys.flags)
    sys.dont_write_bytecode = False
    _new_standard_streams()
    import site

    site.main()


def _keep_nothing_of_ours() -> None:
    """The program sees no module of the guest."""
    for name in list(sys.modules):
        if name == _PACKAGE or name.startswith(_PACKAGE + "."):
            del sys.modules[name]
    finders = [finder for finder in sys.meta_path if hasattr(finder, "guest_sources")]
    for finder in finders:
        sys.meta_path.remove(finder)


class _Flags(_Values):
    """`sys.flags` of a plain interpreter: what started this one must not reach its children."""

    _PLAIN = ("isolated", "no_site", "ignore_environment", "no_user_site", "safe_path")

    def __new__(cls, flags: object) -> "_Flags":
        names = [name for name in dir(flags) if not name.startswith(("_", "n_"))]
        values: Dict[str, Any] = {
            name: (type(getattr(flags, name))(0) if name in cls._PLAIN else getattr(flags, name))
            for name in names
            if name not in ("count", "index")
        }
        values["dont_write_bytecode"] = 0
        made = super().__new__(cls, values.values())
        made.__dict__.update(values)
        return made

    def __repr__(self) -> str:
        return "sys.flags(%s)" % ", ".join("%s=%r" % item for item in self.__dict__.items())


def _run(request: "Request", streams: "List[int]") -> None:
    """Python source in a fresh `__main__`, as `python -c` would, and the interpreter's own end."""
    failed = _take_place(request, streams)
    if failed is not None:
        os._exit(failed)
    os.close(3)
    _take_environment(request["env"])
    if not _ordinary:
        _become_ordinary()
        _keep_nothing_of_ours()
        ending.remember()
    try:
        for name in request["preload"]:
            __import__(name)
    except ImportError:
        pass  # the code's own import says it better
    _after_copy(request.get("seed"))
    sys.argv[:] = ["-c", *request["args"]]
    sys.path.insert(0, "")
    status: object = None
    try:
        _execute_main(request["code"])
    except SystemExit as error:
        status = error.code
    if status is None or status is True or status is False:
        status = int(status or 0)
    if type(status) is int and 0 <= status <= 255:
        ending.leave(status)
    raise SystemExit(status)


def _execute_main(source: str) -> None:
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    name = "<string>"
    _remember_lines(name, source)
    try:
        code = compile(source, name, "exec", 0, True)
        exec(code, module.__dict__)
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - as the interpreter itself does
        _show(error)
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGINT)
        sys.exit(1)


def _show(error: BaseException) -> None:
    """The traceback as `python -c` prints it: without the frames that are ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__") != "__main__":
        trace = trace.tb_next
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)


def _remember_lines(name: str, source: str) -> None:
    """So that a traceback shows the lines of code that is in no file."""
    import linecache

    lines = source.splitlines(True)
    linecache.cache[name] = (len(source), None, lines, name)


def _new_standard_streams() -> None:
    """Streams over 0 to 2; the interpreter's own were made over something else.

    Those of a zygote are for processes that have pipes there, and it has not: a stream asks once.
    """
    pipes = os.pipe()
    kept = [os.dup(number) for number in range(3)] if _is_null(1) else []
    for number in range(len(kept)):
        os.dup2(pipes[min(number, 1)], number)
    sys.stdin = sys.__stdin__ = _stream(0, "r", "strict", False)
    sys.stdout = sys.__stdout__ = _stream(1, "w", "strict", False)
    sys.stderr = sys.__stderr__ = _stream(2, "w", "backslashreplace", True)
    for number, descriptor in enumerate(kept):
        os.dup2(descriptor, number)
    for descriptor in (*kept, *pipes):
        os.close(descriptor)


def _is_null(number: int) -> bool:
    return os.path.samestat(os.fstat(number), os.stat("/dev/null"))


def _stream(number: int, mode: str, errors: str, by_line: bool) -> "io.TextIOWrapper[Any]":
    raw = io.FileIO(number, mode, closefd=False)
    buffered = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
    if mode == "r":
        errors = "surrogateescape"
    text = io.TextIOWrapper(
        buffered, encoding="utf-8", errors=errors, line_buffering=by_line or raw.isatty()
    )
    text.mode = mode  # pyright: ignore[reportAttributeAccessIssue] - as the own streams have it
    return text


def _after_copy(seed: "Optional[int]") -> None:
    """What a fork would have renewed: the copy is not a child that Python knows of.

    What is imported later is as new as it can be, unless a seed is wanted.
    """
    loaded = sys.modules
    _renew_thread_id()
    if seed is not None:
        _seed_random(seed)
    elif "random" in loaded:
        own = loaded["random"]._inst
        _random_seed(own)
        own.gauss_next = None
    if "numpy.random" in loaded:
        _seed_numpy(loaded["numpy.random"], seed)
    if "torch" in loaded:
        loaded["torch"].manual_seed(int.from_bytes(os.urandom(7), "big") if seed is None else seed)
    if "ssl" in loaded:
        # It tells a copy from its original by the process id, which is the same here.
        loaded["ssl"].RAND_add(os.urandom(48), 48.0)
    if "uuid" in loaded:
        setattr(loaded["uuid"], "_last_timestamp", None)  # noqa: B010 - not in its type


def _renew_thread_id() -> None:
    threading = sys.modules.get("threading")
    if threading is not None and hasattr(threading.main_thread(), "_set_native_id"):
        threading.main_thread()._set_native_id()


def _after_fork(reseed: bool) -> None:
    """The same for a copy of a kernel that has run cells; without `reseed` its generators go on as
    the other's do, and only what is to be secret is renewed."""
    global _numpy_state
    _numpy_state = None  # its own way also forgets what numpy has drawn ahead
    if reseed:
        _after_copy(None)
        return
    _renew_thread_id()
    if "ssl" in sys.modules:
        sys.modules["ssl"].RAND_add(os.urandom(48), 48.0)


def _seed_random(seed: int) -> None:
    import random

    random.seed(seed)
    if "numpy" in sys.modules:
        __import__("numpy.random")  # which it loads when it is asked for


_NUMPY_KEY = 2496
_NUMPY_USED_UP = (624).to_bytes(4, sys.byteorder)
_numpy_state: "Optional[memoryview]" = None
"""The memory of numpy's own generator: 624 words, and how many of them are used up."""


def _find_numpy_state() -> None:
    """Have the copies renew numpy's generator by writing random bytes where its state is: a hundred
    pages fewer than its own way, which goes through half of numpy. Nothing where numpy keeps it
    otherwise than is known."""
    global _numpy_state
    numpy = sys.modules.get("numpy.random")
    if numpy is None or "ctypes" not in sys.modules:
        return
    import ctypes

    try:
        numpy.seed()
        generator: Any = numpy.mtrand._rand._bit_generator
        size = _NUMPY_KEY + len(_NUMPY_USED_UP)
        place = (ctypes.c_ubyte * size).from_address(generator.ctypes.state_address)
        known: Any = generator.state["state"]
        if bytes(place) == known["key"].tobytes() + int(known["pos"]).to_bytes(4, sys.byteorder):
            _numpy_state = memoryview(place).cast("B")
    except Exception:  # noqa: BLE001 - another numpy than any that is known: its own way then
        return


def _seed_numpy(numpy: "Any", seed: "Optional[int]") -> None:
    if seed is None and _numpy_state is not None:
        _numpy_state[:] = os.urandom(_NUMPY_KEY) + _NUMPY_USED_UP
    else:
        numpy.seed(None if seed is None else seed % 2**32)


def _random_seed(generator: "Any") -> None:
    """From the system, as `seed()` does, without what that looks at first."""
    import _random

    _random.Random.seed(generator)
