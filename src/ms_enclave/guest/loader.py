"""The guest in an interpreter that has no file of ours: its modules come through standard input.

A container's first process runs `START`, a line that fits into an argument: it reads this module's
source and then all the others', of which `main` makes the package `guest` again, and last a secret
of the host's for `guest.offer`, which may be empty. Each part is eight decimal digits, which
say how long it is, and as many bytes. What follows on standard input is the guest's channel.
Standard library only, CPython 3.8 and later.

To compile all that takes longer than to start an interpreter. So the sources come with what the
host's own interpreter has made of them, for those that read the same.
"""

import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Tuple

__all__ = ["START", "TOO_OLD", "Finder", "main", "reads"]

TOO_OLD = 86
"""The exit status of an interpreter that is too old for the guest."""

START = (
    """\
import os, sys
if sys.version_info < (3, 8):
    os.write(2, b'Python 3.8 or later is needed')
    os._exit(%d)
def read(size):
    data = b''
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            os._exit(0)
        data += part
    return data
def take():
    return read(int(read(8)))
names = {'__name__': 'guest.loader'}
exec(compile(take(), '<guest.loader>', 'exec'), names)
names['main'](take)
"""
    % TOO_OLD
)


class Finder:
    """Imports the package `guest` from memory: sources, and what may be made of them already."""

    def __init__(
        self, sources: "Dict[str, bytes]", compiled: "Optional[Dict[str, bytes]]" = None
    ) -> None:
        self.guest_sources = sources
        self._compiled = compiled or {}

    def find_spec(self, name: str, path: object = None, target: object = None) -> "Any":
        """A module's spec; None for what is not ours."""
        if name not in self.guest_sources:
            return None
        module: Any = sys  # whose class of specs is there without importing `importlib`
        return type(module.__spec__)(name, self, is_package="." not in name)

    def create_module(self, spec: object) -> None:
        """As Python does it."""

    def exec_module(self, module: "Any") -> None:
        """Run a module."""
        name: str = module.__name__
        if name in self._compiled:
            code = marshal.loads(self._compiled[name])  # noqa: S302 - the host's
        else:
            code = compile(self.guest_sources[name], "<%s>" % name, "exec", dont_inherit=True)
        exec(code, module.__dict__)  # what it runs is ours


def reads() -> "Tuple[str, bytes]":
    """What interpreters have in common that run each other's compiled code."""
    external: Any = sys.modules["_frozen_importlib_external"]
    return str(sys.implementation.cache_tag), external.MAGIC_NUMBER


def main(take: "Callable[[], bytes]") -> None:
    """Become a guest whose channel are standard input and output."""
    sources, made_for, compiled = marshal.loads(take())  # noqa: S302 - the host's
    finders: List[Any] = sys.meta_path
    finders.insert(0, Finder(sources, compiled if reads() == made_for else None))
    secret, offer = take(), None
    if secret:
        offer = __import__("guest.offer", fromlist=["Offer"]).Offer(secret)
    container: Any = __import__("guest.container", fromlist=["main"])
    container.main(offer)
    os._exit(0)
