"""A warm interpreter that forks for each program, and isolates nothing: the price of the walls.

`python -I _fork_server.py ADDRESS [MODULE]...`: whoever connects to the socket sends a program,
shuts its side down, and reads what the program prints until the end. It ends when its standard
input does, and only then: who measures has been interrupted as well, and ends it.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import socket
import sys

__all__: list[str] = []


def _serve(line: socket.socket) -> None:
    """In the child: be the program."""
    source = b""
    while data := line.recv(65536):
        source += data
    os.dup2(line.fileno(), 1)
    exec(compile(source, "<program>", "exec"), {"__name__": "__main__"})  # noqa: S102 - that is its job
    sys.stdout.flush()


def main(address: str, modules: list[str]) -> None:
    """Serve until standard input is closed."""
    for name in modules:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen(64)
        os.write(1, b"ready\n")
        while select.select([door, 0], [], [])[0] == [door]:
            line, _ = door.accept()
            if os.fork() == 0:
                try:
                    _serve(line)
                finally:
                    os._exit(0)
            line.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
