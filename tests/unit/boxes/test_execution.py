"""What is said about an ended process follows from figures, never from what it printed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_enclave.boxes._execution import Capture, format_seconds, judge
from ms_enclave.channel.process import Exit
from ms_enclave.errors import SandboxLostError
from ms_enclave.model import ExecutionStatus, SandboxConfig, Verdict

LIMITS = SandboxConfig(
    timeout=2.5, cpu_time_limit=3, memory_limit="512m", pids_limit=7, output_limit=100
).resolve_limits()


def ended(exit_code: int = 0, signal: int | None = None, **more: Any) -> Exit:
    figures: dict[str, Any] = {
        "cause": None,
        "cpu_user": 0.0,
        "cpu_system": 0.0,
        "peak_memory": None,
        "processes": None,
        "source": "rusage",
    }
    return Exit(exit_code=exit_code, signal=signal, **{**figures, **more})


@pytest.mark.parametrize(
    ("end", "flags", "status", "verdict", "exit_code", "signal"),
    [
        (ended(0), {}, "success", "ok", 0, None),
        (ended(1), {}, "error", "error", 1, None),
        (ended(255), {}, "error", "error", 255, None),
        (ended(139), {}, "error", "error", 139, None),
        (ended(139, 11), {}, "error", "signal", 139, 11),
        (ended(137, 9), {}, "error", "signal", 137, 9),
        (ended(143, 15), {}, "error", "signal", 143, 15),
        (ended(137, 9, cause="oom"), {}, "error", "oom", 137, 9),
        (ended(1, None, cause="oom"), {}, "error", "oom", 1, None),
        (ended(137, 9, cause="cpu_timeout"), {}, "error", "cpu_timeout", 137, 9),
        (ended(1, None, cause="process_limit"), {}, "error", "process_limit", 1, None),
        (ended(1, None, cause="disk_limit"), {}, "error", "disk_limit", 1, None),
        (ended(152, 24, cpu_user=2.9), {}, "error", "cpu_timeout", 152, 24),
        (ended(152, 24, cpu_user=2.3), {}, "error", "cpu_timeout", 152, 24),
        (ended(152, 24, cpu_user=0.1), {}, "error", "signal", 152, 24),
        (ended(153, 25), {}, "error", "disk_limit", 153, 25),
        (ended(137, 9), {"timed_out": True}, "timeout", "wall_timeout", -1, None),
        (ended(0), {"timed_out": True}, "timeout", "wall_timeout", -1, None),
        (ended(137, 9, cause="oom"), {"timed_out": True}, "timeout", "wall_timeout", -1, None),
        (ended(137, 9), {"output_killed": True}, "error", "output_limit", 137, 9),
        (ended(0), {"output_killed": True}, "error", "output_limit", 0, None),
    ],
)
def test_the_verdict(
    end: Exit, flags: Any, status: str, verdict: str, exit_code: int, signal: int | None
) -> None:
    said = judge(end, LIMITS, **flags)
    assert said.status == ExecutionStatus(status)
    assert said.verdict == Verdict(verdict)
    assert said.exit_code == exit_code
    assert said.signal == signal
    assert (said.error is None) == (said.verdict is Verdict.OK)


def test_a_failure_of_the_box_is_never_a_result() -> None:
    with pytest.raises(SandboxLostError, match="the spawner is gone"):
        judge(ended(1, cause="infra", detail="the spawner is gone"), LIMITS, timed_out=True)


@pytest.mark.parametrize(
    ("end", "flags", "text"),
    [
        (ended(7), {}, "Command failed with exit code 7"),
        (ended(0), {"timed_out": True}, "Command timed out after 2.5 seconds"),
        (ended(139, 11), {}, "exit code 139: killed by signal 11 (SIGSEGV)"),
        (ended(163, 35), {}, "exit code 163: killed by signal 35"),
        (ended(137, 9, cause="oom"), {}, "exit code 137: out of memory (limit 536870912 bytes)"),
        (ended(1, cause="process_limit"), {}, "too many processes (limit 7)"),
        (ended(152, 24, cause="cpu_timeout"), {}, "more than 3 seconds of CPU"),
        (ended(137, 9), {"output_killed": True}, "more than 100 bytes of output"),
        (ended(126, detail="no such user: bob"), {}, "exit code 126: no such user: bob"),
    ],
)
def test_the_error_text_says_what_callers_search_for(end: Exit, flags: Any, text: str) -> None:
    assert text in str(judge(end, LIMITS, **flags).error)


@pytest.mark.parametrize(
    ("seconds", "text"), [(2, "2"), (2.0, "2"), (12.5, "12.5"), (0.25, "0.25"), (1e7, "10000000")]
)
def test_seconds_are_written_as_the_caller_gave_them(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(0, 60))
def test_a_capture_keeps_the_beginning_and_counts_the_rest(chunks: list[bytes], limit: int) -> None:
    capture = Capture(limit)
    for chunk in chunks:
        capture.feed(chunk)
    whole = b"".join(chunks)
    text, lost = capture.text()
    kept = whole[: len(whole) - lost]
    assert text == kept.decode(errors="replace")
    assert len(kept) <= limit
    assert capture.total == len(whole)
    assert capture.exceeded == (len(whole) > limit)


@given(st.text(max_size=60), st.integers(1, 5))
def test_text_cut_anywhere_is_whole_again(text: str, size: int) -> None:
    data = text.encode()
    capture = Capture(1000)
    for start in range(0, len(data), size):
        capture.feed(data[start : start + size])
    assert capture.text() == (text, 0)


@given(st.text(min_size=1, max_size=60), st.integers(0, 200))
def test_a_character_is_never_cut_in_two_by_the_limit(text: str, limit: int) -> None:
    capture = Capture(limit)
    capture.feed(text.encode())
    kept, lost = capture.text()
    assert text.startswith(kept)
    assert len(kept.encode()) + lost == len(text.encode())


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    capture = Capture(100)
    capture.feed(b"ok \xff\xfe \xe2\x82")
    assert capture.text() == ("ok \ufffd\ufffd \ufffd", 0)
