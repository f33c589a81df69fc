"""Changes modes and times of a sandbox's own files, for programs that may not do it themselves.

No rule of Landlock's keeps a program from changing the mode or the times of a file, and where a
sandbox's user is the caller, all of the caller's files are its own. So a filter hands these calls
to the sandbox's keeper (seccomp's user notification), who looks up the file, sees whether it is in
the sandbox, and makes the change itself: nothing the program does meanwhile changes which file
that is.

Formats: linux/seccomp.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import struct

from . import _calls as calls
from . import seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Broker", "install"]

_RECEIVE, _SEND, _IS_VALID = 0xC0502100, 0xC0182101, 0x40082102
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_AT_FDCWD = 2**32 - 100
_NO_FOLLOW, _EMPTY_PATH = 0x100, 0x1000
_LONGEST = 4096
_PAGE = 4096
_BENEATH = 0x08 | 0x02  # RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS
_MODE = 0o1777


class Refused(OSError):
    """Not a file of the sandbox."""


def install() -> int:
    """Hand this process's calls over, and those of whatever it becomes; returns the descriptor on
    which they are heard. The process must have no_new_privs.

    Raises OSError.
    """
    return calls.set_listening_seccomp(seccomp.listening_filter())


class Broker:
    """Does what is asked on one listener."""

    def __init__(self, listener: int, folders: list[str]) -> None:
        self.listener = listener
        self._folders = [(folder, os.open(folder, os.O_PATH | os.O_CLOEXEC)) for folder in folders]
        self._names = {
            number: name
            for name, number in seccomp.ARCHITECTURES[platform.machine()][1].items()
            if name in seccomp.LISTENED
        }

    def close(self) -> None:
        os.close(self.listener)
        for _, descriptor in self._folders:
            os.close(descriptor)

    def serve(self) -> bool:
        """Answer one call; False when nobody is left who could make one."""
        request = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self.listener, _RECEIVE, request, True)
        except OSError as error:
            # Whoever asked was killed before we looked; or there is nobody any more.
            return error.errno in (errno.ENOENT, errno.EINTR)
        number, pid, _, call, _, _, *values = _NOTIFICATION.unpack(request)
        said = self._answer(self._names[call], number, pid, values)
        answer = struct.pack("=QqiI", number, 0, said, 0)
        try:
            fcntl.ioctl(self.listener, _SEND, answer)
        except OSError:
            return True  # it does not wait any more
        return True

    def _answer(self, name: str, number: int, pid: int, values: list[int]) -> int:
        """Do a call; 0, or the error number with a minus."""
        memory = -1
        try:
            memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            self._do(name, _Caller(number, pid, memory), values)
        except (OSError, ValueError, OverflowError) as error:
            return -(getattr(error, "errno", None) or errno.EPERM)
        finally:
            if memory >= 0:
                os.close(memory)
        return 0

    def is_valid(self, number: int) -> bool:
        try:
            fcntl.ioctl(self.listener, _IS_VALID, struct.pack("=Q", number))
        except OSError:
            return False
        return True

    def _do(self, name: str, caller: _Caller, values: list[int]) -> None:
        if name in ("fchmod", "fchmodat", "fchmodat2", "chmod"):
            file, rest = self._find(name, caller, values)
            try:
                os.chmod(f"/proc/self/fd/{file}", rest[0] & _MODE)
            finally:
                os.close(file)
            return
        times = _TIMES[name](caller, values)
        file, _ = self._find(name, caller, values)
        try:
            path = f"/proc/self/fd/{file}".encode()
            calls.call("utimensat", -100, path, times, 0)
        finally:
            os.close(file)

    def _find(self, name: str, caller: _Caller, values: list[int]) -> tuple[int, list[int]]:
        """The file that a call is about, and the arguments behind it."""
        if name == "fchmod":
            return self._of_descriptor(caller, values[0]), values[1:]
        if name in ("chmod", "utime", "utimes"):
            return self._of_path(caller, _AT_FDCWD, values[0], 0), values[1:]
        flags = {"fchmodat2": values[3], "utimensat": values[3]}.get(name, 0) & 0xFFFFFFFF
        if values[1] == 0 and name == "utimensat":
            return self._of_descriptor(caller, values[0]), values[2:]
        return self._of_path(caller, values[0] & 0xFFFFFFFF, values[1], flags), values[2:]

    def _of_descriptor(self, caller: _Caller, descriptor: int) -> int:
        place = f"/proc/{caller.pid}/fd/{descriptor & 0xFFFFFFFF}"
        try:
            file = os.open(place, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            raise OSError(errno.EBADF, "no such descriptor") from None
        return self._checked(caller, file)

    def _of_path(self, caller: _Caller, folder: int, address: int, flags: int) -> int:
        path = caller.text(address)
        if not path:
            if flags & _EMPTY_PATH:
                return self._of_descriptor(caller, folder)
            raise OSError(errno.ENOENT, "an empty path")
        if not path.startswith(b"/"):
            start = "cwd" if folder == _AT_FDCWD else f"fd/{folder}"
            path = os.readlink(f"/proc/{caller.pid}/{start}".encode()) + b"/" + path
        for name, descriptor in self._folders:
            inside = name.encode() + b"/"
            if (path + b"/").startswith(inside):
                how = os.O_PATH | os.O_CLOEXEC | (os.O_NOFOLLOW if flags & _NO_FOLLOW else 0)
                rest = path[len(inside) :].lstrip(b"/") or b"."
                try:
                    return self._checked(caller, calls.openat2(descriptor, rest, how, _BENEATH))
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
        raise Refused(errno.EPERM, "not a file of the sandbox")

    def _checked(self, caller: _Caller, file: int) -> int:
        """The descriptor, if it is of a file in the sandbox and its caller still waits."""
        place = os.readlink(f"/proc/self/fd/{file}")
        own = any(place == name or place.startswith(f"{name}/") for name, _ in self._folders)
        if not own or not self.is_valid(caller.number):
            os.close(file)
            raise Refused(errno.EPERM, "not a file of the sandbox")
        return file


class _Caller:
    """Who made a call, and what is in its memory."""

    def __init__(self, number: int, pid: int, memory: int) -> None:
        self.number = number
        self.pid = pid
        self._memory = memory

    def bytes(self, address: int, length: int) -> bytes:
        try:
            found = os.pread(self._memory, length, address)
        except (OSError, OverflowError):
            found = b""
        if len(found) < length:
            raise OSError(errno.EFAULT, "not its memory")
        return found

    def text(self, address: int) -> bytes:
        """The bytes up to a NUL, which may be the last before memory that is not there."""
        found = b""
        while b"\0" not in found:
            if len(found) >= _LONGEST:
                raise OSError(errno.ENAMETOOLONG, "too long a path")
            found += self.bytes(address + len(found), _PAGE - (address + len(found)) % _PAGE)
        return found.partition(b"\0")[0]


def _from_timespecs(caller: _Caller, values: list[int]) -> bytes | None:
    return caller.bytes(values[2], 32) if values[2] else None


def _from_timevals(caller: _Caller, address: int) -> bytes | None:
    if not address:
        return None
    first, micro, second, more = struct.unpack("=4q", caller.bytes(address, 32))
    if not 0 <= micro < 1_000_000 or not 0 <= more < 1_000_000:
        raise OSError(errno.EINVAL, "no such time")
    return struct.pack("=4q", first, micro * 1000, second, more * 1000)


def _from_seconds(caller: _Caller, values: list[int]) -> bytes | None:
    if not values[1]:
        return None
    accessed, changed = struct.unpack("=2q", caller.bytes(values[1], 16))
    return struct.pack("=4q", accessed, 0, changed, 0)


_TIMES: dict[str, Callable[[_Caller, list[int]], bytes | None]] = {
    "utime": _from_seconds,
    "utimes": lambda caller, values: _from_timevals(caller, values[1]),
    "futimesat": lambda caller, values: _from_timevals(caller, values[2]),
    "utimensat": _from_timespecs,
}
