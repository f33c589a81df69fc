"""A PostgreSQL server of the tests' own, and databases in it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Cluster", "why_no_postgres"]

SCRIPT = Path(__file__).parents[2] / "scripts" / "postgres"
_SECONDS = 60.0


def why_no_postgres() -> str | None:
    """What this machine lacks for it; None where it works."""
    if any(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        return None
    return "there is no PostgreSQL here: scripts/postgres ensure"


class Cluster:
    """A server in a folder of its own, from when it is entered."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="pg-")
        self._process: subprocess.Popen[bytes] | None = None

    def _start(self) -> None:
        with open(f"{self.folder}/log", "ab") as log:
            self._process = subprocess.Popen(
                [str(SCRIPT), "run", self.folder], stdout=log, stderr=log
            )
        end = time.monotonic() + _SECONDS
        while True:
            try:
                psycopg.connect(self.url_of("postgres")).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > end:
                    text = Path(self.folder, "log").read_text(errors="replace")
                    raise AssertionError(f"it does not start: {text[-1000:]}") from None
                time.sleep(0.05)
            else:
                return

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)
            process.wait(_SECONDS)

    def url_of(self, database: str) -> str:
        """The address of a database."""
        return f"postgresql://ms_enclave@/{database}?host={self.folder}"

    def new_database(self) -> str:
        """The address of an empty one."""
        name = f"test_{uuid4().hex}"
        self._do(f"CREATE DATABASE {name}")
        return self.url_of(name)

    def take_away(self, url: str) -> None:
        """Have a database end every connection and take none."""
        name = _name_in(url)
        self._do(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        self._do(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

    def bring_back(self, url: str) -> None:
        """Have it take connections again."""
        self._do(f"ALTER DATABASE {_name_in(url)} ALLOW_CONNECTIONS true")

    def hang(self) -> None:
        """Have it keep its connections and say nothing any more, as one that is stopped."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it answer again."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        main = self._process.pid
        os.kill(main, number)  # the first one first, so that no further one begins
        children = Path(f"/proc/{main}/task/{main}/children").read_text()
        for child in map(int, children.split()):
            with suppress(ProcessLookupError):
                os.kill(child, number)

    def _do(self, statement: str) -> None:
        with psycopg.connect(self.url_of("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())

    def __enter__(self) -> Self:
        os.chmod(self.folder, 0o700)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _name_in(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]
