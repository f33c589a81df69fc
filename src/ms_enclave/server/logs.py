"""How a server that runs by itself logs: a line for each record, written by a thread of its own."""

from __future__ import annotations

import json
import logging
import queue
import sys
from contextlib import contextmanager
from datetime import datetime, timezone
from logging.handlers import QueueHandler, QueueListener
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from ms_enclave.server.observer import REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["logging_to_stderr"]

_WAITING = 10_000
"""Records that wait to be written; further ones are dropped, so that no reader holds us up."""
_ALWAYS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@contextmanager
def logging_to_stderr(*, as_json: bool) -> Generator[None, None, None]:
    """Log what this package says, for the length of a block."""
    waiting: queue.Queue[Any] = queue.Queue(_WAITING)
    writing = logging.StreamHandler(sys.stderr)
    writing.setFormatter(JsonLines() if as_json else Lines())
    listener = QueueListener(waiting, writing)
    handler = _Queueing(waiting)
    ours = logging.getLogger("ms_enclave")
    before = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    listener.start()
    try:
        yield
    finally:
        ours.setLevel(before)
        ours.removeHandler(handler)
        listener.stop()


class _Queueing(QueueHandler):
    @override
    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        if "request_id" not in record.__dict__:
            record.__dict__["request_id"] = REQUEST_ID.get()  # this thread still knows it
        return super().prepare(record)

    @override
    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            return


class Lines(logging.Formatter):
    """For people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s")


class JsonLines(logging.Formatter):
    """For machines: one object a line, with whatever the record has besides its message."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        said |= {
            name: value
            for name, value in record.__dict__.items()
            if name not in _ALWAYS and value is not None
        }
        return json.dumps(said, default=str)
