"""One cell of a kernel: collects what it shows, within bounds, and says what came of it.

Pure state without I/O. What the kernel says is taken in as it comes; how the cell ended (time-out,
death) only its driver can say.
"""

from __future__ import annotations

import codecs
import io
import time
from collections import deque
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, cast

import anyio

from ms_enclave.boxes._execution import Capture
from ms_enclave.channel.kernel import Message, Output, error_of
from ms_enclave.model import ExecutionStatus, Usage, Verdict
from ms_enclave.model.kernels import CellError, Execution, KernelEvent

if TYPE_CHECKING:
    from ms_enclave.channel.kernel import Result
    from ms_enclave.model import ResolvedLimits

__all__ = ["MOST_DISPLAYS", "Cell", "Ending"]

MOST_DISPLAYS = 1000
"""Displays of one cell that are kept at a time."""

_MOST_WAITING = 2 * MOST_DISPLAYS
"""Events that may wait for whoever reads them."""

_JOINED = 1 << 13
"""Characters of one stream that are joined in one event, while nobody takes it."""

_FALLBACK = {
    ExecutionStatus.TIMEOUT: "TimeoutError",
    ExecutionStatus.CANCELLED: "CancelledError",
    ExecutionStatus.ERROR: "KernelDied",
}


class Ending:
    """How a cell ended, by the word of who is outside."""

    def __init__(self, status: ExecutionStatus, verdict: Verdict, text: str = "") -> None:
        self.status = status
        self.verdict = verdict
        self.text = text


class Cell:
    """What one cell has shown so far.

    Args:
        number: what the kernel's words about it are known by.
        streamed: whether somebody takes its events one by one.
    """

    def __init__(
        self, number: int, code: str, count: int, limits: ResolvedLimits, *, streamed: bool,
        isolation: str | None,
    ) -> None:  # fmt: skip
        self.number = number
        self.limits = limits
        self.began = datetime.now(timezone.utc)
        self.started = time.monotonic()
        self.ended = anyio.Event()
        self.events: deque[KernelEvent] = deque()
        self.news = anyio.Event()
        self.ending: Ending | None = None
        """Set by whoever ends it from outside."""
        self.input_asked = False
        self._isolation = isolation
        self._streamed = streamed
        self._waiting = 0
        self._beyond = {name: io.StringIO() for name in ("stdout", "stderr")}
        self._captures = {name: Capture(limits.output) for name in ("stdout", "stderr")}
        self._decoders = {
            name: codecs.getincrementaldecoder("utf-8")("replace") for name in self._captures
        }
        self._lost = dict.fromkeys((*self._captures, "displays"), 0)
        self._displays: list[tuple[str | None, dict[str, Any], int]] = []
        self._held = 0
        self._result: dict[str, Any] | None = None
        self._error: dict[str, Any] | None = None
        self._reply: dict[str, Any] | None = None
        self._clear_next = False
        self._execution: Execution | None = None
        if streamed:
            self._tell("status", {"execution_state": "busy"})
            self._tell("execute_input", {"code": code, "execution_count": count})

    # --- what comes ---

    def take_output(self, stream: str, data: bytes) -> None:
        """Bytes of "stdout" or "stderr"."""
        self._clear_if_due()
        kept = self._captures[stream].feed(data)
        if self._streamed and kept:
            text = self._decoders[stream].decode(kept)
            self._tell_output(stream, text)

    def _tell_output(self, stream: str, text: str) -> None:
        last = self.events[-1] if self.events else None
        if self._is_crowded:
            self._beyond[stream].write(text)
        elif (
            last is not None
            and last.type == "stream"
            and last.content["name"] == stream
            and len(last.content["text"]) < _JOINED  # each time, all that is there is copied
        ):
            last.content["text"] += text
        elif text:
            self._tell("stream", {"name": stream, "text": text})

    @property
    def _is_crowded(self) -> bool:
        """Whether so much waits to be taken that no more events are made."""
        return len(self.events) >= _MOST_WAITING or self._waiting > self.limits.output

    @property
    def exceeded(self) -> bool:
        """Whether it printed more than is kept."""
        return any(capture.exceeded for capture in self._captures.values())

    def take(self, said: Output | Message) -> None:
        """Something that the kernel says of this cell."""
        if isinstance(said, Output):
            self.take_output(said.stream, said.data)
        elif not said.type:
            self._lost["displays"] += said.size
        elif said.type == "clear_output":
            self._take_clear(said.content)
        elif said.type == "error":
            self._clear_if_due()
            self._error = said.content
            self._tell("error", said.content)
        elif said.type == "input_request":
            self.input_asked = True
            self._tell("input_request", said.content)
        else:
            self._take_display(said)

    def _take_clear(self, content: dict[str, Any]) -> None:
        self._clear_next = content["wait"]
        if not self._clear_next:
            self._clear()
        self._tell("clear_output", content)

    def _clear_if_due(self) -> None:
        if self._clear_next:
            self._clear_next = False
            self._clear()

    def _clear(self) -> None:
        for name in self._captures:
            self._captures[name] = Capture(self.limits.output)
        self._displays.clear()
        self._held = 0

    def _take_display(self, said: Message) -> None:
        self._clear_if_due()
        content = said.content
        self._lost["displays"] += content.pop("lost", 0)
        if not self._keep(said):
            self._lost["displays"] += said.size
            return
        self._tell(said.type, content, said.size)

    def _keep(self, said: Message) -> bool:
        """Hold it for the result; False where there is no room."""
        name, data = said.content.get("transient", {}).get("display_id"), said.content["data"]
        label = name if isinstance(name, str) else None
        if said.type == "update_display_data":
            return self._update(label, data, said.size)
        if self._held + said.size > self.limits.output or len(self._displays) >= MOST_DISPLAYS:
            return False
        self._held += said.size
        if said.type == "execute_result":
            self._result = data
        else:
            self._displays.append((label, data, said.size))
        return True

    def _update(self, label: str | None, data: dict[str, Any], size: int) -> bool:
        """Change what was displayed in this cell; what others did is their readers' affair."""
        rows = [row for row in self._displays if row[0] == label] if label else []
        more = sum(size - row[2] for row in rows)
        if max(self._held + more, size) > self.limits.output:
            return False
        self._held += more
        self._displays = [
            (label, data, size) if label and row[0] == label else row for row in self._displays
        ]
        return True

    def _tell(self, kind: str, content: dict[str, Any], size: int = 0) -> None:
        if not self._streamed:
            return
        if self._is_crowded:
            self._lost["displays"] += size
            return
        self._waiting += size
        self._put(kind, content)

    def _put(self, kind: str, content: dict[str, Any], execution: Execution | None = None) -> None:
        event = KernelEvent.model_construct(type=kind, content=content, execution=execution)
        self.events.append(event)
        self.news.set()

    def _put_what_is_beyond(self) -> None:
        """Make events of the text that came while it was crowded."""
        for stream, held in self._beyond.items():
            if held.tell():
                self._put("stream", {"name": stream, "text": held.getvalue()})
                self._beyond[stream] = io.StringIO()

    def next_event(self) -> KernelEvent | None:
        """The oldest event that nobody took, if there is one."""
        if not self.events:
            self._waiting = 0
            self._put_what_is_beyond()
        if self.events:
            return self.events.popleft()
        self.news = anyio.Event()
        if self.ended.is_set():
            self.news.set()
        return None

    # --- its end ---

    def finish(self, result: Result | None) -> None:
        """Nothing more will come: with what the kernel said at last, or without its word."""
        if self.ended.is_set():
            return
        self._reply = None if result is None else result.body
        if self._streamed:
            execution = self.execution()
            reply = self._reply_content(execution)
            self._put_what_is_beyond()
            self._put("status", {"execution_state": "idle"})
            self._put("execute_reply", reply, execution)
        self.ended.set()
        self.news.set()

    @property
    def reply(self) -> dict[str, Any]:
        """What the kernel said at its end, in its own words."""
        return self._reply or {}

    def _reply_content(self, execution: Execution) -> dict[str, Any]:
        body = self._reply or {}
        content: dict[str, Any] = {
            "status": "ok" if execution.success else "error",
            "execution_count": execution.execution_count,
        }
        if execution.success:
            payload = body.get("payload")
            expressions = body.get("user_expressions")
            content["payload"] = payload if isinstance(payload, list) else []
            content["user_expressions"] = expressions if isinstance(expressions, dict) else {}
        elif execution.error is not None:
            error = execution.error
            content |= {
                "ename": error.name, "evalue": error.value, "traceback": list(error.traceback),
            }  # fmt: skip
        return content

    def execution(self) -> Execution:
        """What came of it, once it has ended."""
        if self._execution is None:
            self._execution = self._make_execution()
        return self._execution

    def _make_execution(self) -> Execution:
        status, verdict = self._judge()
        wall = time.monotonic() - self.started
        texts = {name: capture.text() for name, capture in self._captures.items()}
        for name, (_, lost) in texts.items():
            self._lost[name] += lost
        reply = self._reply or {}
        return Execution.model_construct(
            status=status,
            verdict=verdict,
            execution_count=_whole(reply.get("execution_count")),
            stdout=texts["stdout"][0],
            stderr=texts["stderr"][0],
            result=self._result,
            displays=[data for _, data, _ in self._displays],
            error=self._error_of(status),
            execution_time=wall,
            timestamp=self.began,
            truncated={name: lost for name, lost in self._lost.items() if lost},
            signal=None,
            usage=_usage(wall, reply.get("cpu")),
            isolation=self._isolation,
            metadata={},
        )

    def _judge(self) -> tuple[ExecutionStatus, Verdict]:
        if self.ending is not None:
            return self.ending.status, self.ending.verdict
        if self._reply is not None and self._reply.get("status") == "ok":
            return ExecutionStatus.SUCCESS, Verdict.OK
        return ExecutionStatus.ERROR, Verdict.ERROR

    def _error_of(self, status: ExecutionStatus) -> CellError | None:
        if status is ExecutionStatus.SUCCESS:
            return None
        said = self._error
        if said is None and self.ending is None and self._reply is not None:
            said = error_of(self._reply)
        if self.ending is not None and self.ending.text:
            trace: list[str] = [] if said is None else said["traceback"]
            return CellError(name=_FALLBACK[status], value=self.ending.text, traceback=trace)
        if said is None:
            return CellError(name="Error", value="")
        return CellError(name=said["ename"], value=said["evalue"], traceback=said["traceback"])


def _whole(value: Any) -> int | None:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
    return value if good else None


def _usage(wall: float, cpu: Any) -> Usage:
    """What it used; processor time by the kernel's own word, which counts for nothing."""
    pair = cast("list[Any]", cpu) if isinstance(cpu, list) else []
    good = len(pair) == 2 and all(
        isinstance(part, (int, float)) and 0 <= part < 1e9 for part in pair
    )
    user, system = pair if good else (0.0, 0.0)
    return Usage.model_construct(
        wall=wall, cpu_user=float(user), cpu_system=float(system), peak_memory=None,
        processes=None, source="kernel",
    )  # fmt: skip
