"""Bombs: each takes one thing until it is refused it, or has as many as `MOST` and the like say.

So each ends by itself, where nothing stops it, with no more than some hundred processes, files or
descriptors, half a GiB of memory and a few seconds. Who was refused anything fails: a box without
control groups knows by that alone that a limit was reached.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .prelude import note

PROCESSES = 300
SECONDS = 3.0
"""How long those wait for more that were refused, or hold what they have got."""


def fork_bomb() -> None:
    """Everybody forks, as long as there are tokens; whoever has none waits for the end."""
    tokens, filling = os.pipe()
    life, end = os.pipe()
    refused, refusing = os.pipe()
    os.write(filling, b"x" * PROCESSES)
    for descriptor in (tokens, refused):
        os.set_blocking(descriptor, False)
    main, owned = os.getpid(), [end]
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            os.read(tokens, 1)
        except BlockingIOError:
            break
        try:
            if os.fork() == 0 and owned:
                os.close(owned.pop())
        except OSError:
            os.write(refusing, b"x")
            time.sleep(0.005)
    if os.getpid() != main:
        os.read(life, 1)
        os._exit(0)
    os.close(end)
    try:
        note("fork without end", f"EAGAIN {len(os.read(refused, 1 << 16))} times")
    except BlockingIOError:
        note("fork without end", f"ok: {PROCESSES} processes")
