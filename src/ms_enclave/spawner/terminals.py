"""Makes the terminals of sandboxes, as the station does: both ends, for whoever starts a program.

The end that masters a terminal never is inside, so that nobody there can change how it is read;
the other comes from the sandbox's own devpts, where programs find it by its name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from . import _calls as calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._shapes import User

__all__ = ["MULTIPLEXER", "open_inside", "open_terminal"]

MULTIPLEXER = "/dev/pts/ptmx"
_NUMBER = (5, 2)  # of a multiplexer, as a device
_GET_NUMBER, _LOCK = 0x80045430, 0x40045431  # TIOCGPTN, TIOCSPTLCK
_FLAGS = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC


def open_inside(init: int, own_mounts: int, owner: User) -> tuple[int, int]:
    """A new terminal of the slot with that init: the end that masters it, and the other, which
    belongs to `owner` (uid and gid as we see them).

    `own_mounts` is a descriptor of our own mount namespace, to come back to. Raises OSError.
    """
    inside = os.open(f"/proc/{init}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        calls.setns(inside, calls.CLONE_NEWNS)
        try:
            return open_terminal(MULTIPLEXER, owner)
        finally:
            calls.come_back(own_mounts, calls.CLONE_NEWNS)
    finally:
        os.close(inside)


def open_terminal(multiplexer: str, owner: User | None) -> tuple[int, int]:
    """The same from a multiplexer that is where we are; our own where `owner` is None."""
    master = os.open(multiplexer, _FLAGS)
    try:
        found = os.fstat(master)
        device = (os.major(found.st_rdev), os.minor(found.st_rdev))
        if not stat.S_ISCHR(found.st_mode) or device != _NUMBER:
            raise OSError(errno.ENOTTY, f"{multiplexer} is no multiplexer of terminals")
        fcntl.ioctl(master, _LOCK, struct.pack("i", 0))
        (number,) = struct.unpack("I", fcntl.ioctl(master, _GET_NUMBER, bytes(4)))
        other = os.open(f"{os.path.dirname(multiplexer)}/{number}", _FLAGS)
        try:
            if owner is not None:
                os.fchown(other, *owner)
        except BaseException:
            os.close(other)
            raise
    except BaseException:
        os.close(master)
        raise
    return master, other
