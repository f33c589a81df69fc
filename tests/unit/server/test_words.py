"""What callers call things is words: no line of a log ends there, no page or terminal obeys."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING
from urllib.parse import quote

from ms_enclave.server import logs
from tests.unit.server.test_gate import KEY, ask, serving

if TYPE_CHECKING:
    import pytest

HOSTILE = "x\r\n2026-01-01 forged\x1b[2J\x9b2J\u2028<script>alert(1)</script>"
FORMS: list[logging.Formatter] = [logs.Lines(), logs.JsonLines()]


async def test_whatever_a_call_names_its_lines_in_the_log_are_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    word, body = quote(HOSTILE), json.dumps({"sandbox_type": HOSTILE, "sandbox_id": HOSTILE})
    run = json.dumps({"code": HOSTILE, "sandbox_id": HOSTILE, "tool_name": HOSTILE})
    calls = [
        ("GET", f"/v1/sandboxes/{word}", None),
        ("DELETE", f"/sandbox/{word}", None),
        ("GET", f"/{word}", None),
        ("POST", f"/v1/sandboxes?{word}={word}", body),
        ("POST", f"/sandbox/create?sandbox_type={word}", "{}"),
        ("POST", "/v1/run", run),
        ("POST", f"/v1/sandboxes/{word}/tools/{word}", run),
    ]
    with caplog.at_level(logging.DEBUG, "ms_enclave"):
        async with serving(api_key=KEY, policy={"sandbox_types": ["subprocess"]}) as server:
            for method, path, content in calls:
                data = None if content is None else content.encode()
                said = await ask(
                    server, method, path, data, X_API_Key=KEY, X_Request_Id="x\x1b[2J<script>"
                )
                assert 400 <= said.status < 500, (path, said)
                assert said.headers["content-type"] == "application/json"
                assert all(value.isprintable() for value in said.headers.values()), said.headers
    records = [record for record in caplog.records if record.name.startswith("ms_enclave")]
    assert len(records) >= len(calls)
    for record in records:
        record.__dict__.setdefault("request_id", None)
        for form in FORMS:
            line = form.format(record)
            assert line.isprintable(), line
            assert KEY not in line
