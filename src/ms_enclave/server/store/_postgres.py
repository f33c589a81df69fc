"""Connections to PostgreSQL that wait for no server that hangs. Imports its client."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["Impatient"]


class Impatient(psycopg.Connection[Any]):
    """A connection that is closed where the server has not answered for some seconds.

    The server's own bounds on a statement hold while it works. One that is stopped, or whose
    machine is, keeps its connections and says nothing on them.
    """

    hang_seconds: ClassVar[float] = 10.0
    """More than the server's own bounds, which say better what was wrong."""
    is_bounded = True
    """Whether that holds for this connection now."""

    @override
    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        """Have something done that takes turns with the server."""
        return super().wait(self._bounded(gen) if self.is_bounded else gen, *args, **options)

    def _bounded(self, work: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """The same work, that ends where nothing has come for too long."""
        until = time.monotonic() + self.hang_seconds
        try:
            wanted = next(work)
            while True:
                ready = yield wanted
                if ready:
                    until = time.monotonic() + self.hang_seconds
                elif time.monotonic() > until:
                    work.close()
                    self.close()
                    raise psycopg.OperationalError(
                        f"the server did not answer for {self.hang_seconds:g} s"
                    )
                wanted = work.send(ready)
        except StopIteration as done:
            return done.value
