"""What executions give."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from ms_enclave.model import (
    CommandResult,
    ExecutionStatus,
    SandboxInfo,
    ToolExecutionRequest,
    ToolResult,
    Usage,
    Verdict,
)


def test_a_command_keeps_its_shape() -> None:
    line = CommandResult(command="ls -l", status="success", exit_code=0)
    argv = CommandResult(command=["ls", "-l"], status="success", exit_code=0)
    assert line.command == "ls -l"
    assert argv.command == ["ls", "-l"]
    assert CommandResult.model_validate_json(argv.model_dump_json()) == argv


@pytest.mark.parametrize("status", list(ExecutionStatus))
def test_success_depends_on_the_status_alone(status: ExecutionStatus) -> None:
    result = ToolResult(tool_name="t", status=status, error="text on stderr", exit_code=0)
    assert result.success is (status == "success")
    assert result.status == status.value


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        ("success", Verdict.OK),
        ("error", Verdict.ERROR),
        ("timeout", Verdict.WALL_TIMEOUT),
        ("cancelled", Verdict.CANCELLED),
    ],
)
def test_a_verdict_follows_from_the_status_where_nobody_says_one(
    status: Any, verdict: Verdict
) -> None:
    assert ToolResult(tool_name="t", status=status).verdict is verdict
    told: Any = {"tool_name": "t", "status": status, "verdict": "oom"}
    assert ToolResult.model_validate(told).verdict is Verdict.OOM


def test_times_are_aware_and_in_utc() -> None:
    result = ToolResult(tool_name="t", status=ExecutionStatus.SUCCESS)
    assert result.timestamp.tzinfo is timezone.utc
    east = datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    local = datetime(2024, 1, 1, 12)
    for given in (east, local):
        told = ToolResult(tool_name="t", status=ExecutionStatus.SUCCESS, timestamp=given)
        assert told.timestamp == given.astimezone(timezone.utc)
        assert told.timestamp.utcoffset() == timedelta(0)


def test_old_tools_may_leave_the_time_out() -> None:
    told: Any = {"tool_name": "t", "status": "success", "execution_time": None}
    assert ToolResult.model_validate(told).execution_time == 0.0


def test_what_a_newer_server_adds_is_no_error() -> None:
    told: Any = {"tool_name": "t", "status": "success", "later": 1}
    assert ToolResult.model_validate(told).success


@pytest.mark.parametrize("told", [{}, {"tool_name": "t"}, {"tool_name": "t", "status": "odd"}, 5])
def test_what_is_no_result_is_refused(told: Any) -> None:
    with pytest.raises(ValueError, match="ToolResult"):
        ToolResult.model_validate(told)


def test_results_survive_json() -> None:
    result = ToolResult(
        tool_name="t",
        status=ExecutionStatus.ERROR,
        output={"a": [1]},
        usage=Usage(wall=1, peak_memory=5, source="rusage"),
        truncated={"stdout": 3},
        signal=9,
    )
    assert ToolResult.model_validate_json(result.model_dump_json()) == result


def test_two_results_share_nothing() -> None:
    first = ToolResult(tool_name="t", status=ExecutionStatus.SUCCESS)
    first.metadata["x"] = 1
    assert ToolResult(tool_name="t", status=ExecutionStatus.SUCCESS).metadata == {}


def test_a_sandbox_describes_itself() -> None:
    info = SandboxInfo(id="x", status="running", type="theirs")
    assert info.status == "running"
    assert info.created_at.tzinfo is timezone.utc


def test_a_request_takes_broken_seconds_and_refuses_nonsense() -> None:
    request = ToolExecutionRequest(sandbox_id="x", tool_name="t", timeout=12.5)
    assert request.timeout == 12.5
    for wrong in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            ToolExecutionRequest(sandbox_id="x", tool_name="t", timeout=wrong)
    with pytest.raises(ValueError, match="sandbox_id"):
        ToolExecutionRequest.model_validate({"tool_name": "t"})
