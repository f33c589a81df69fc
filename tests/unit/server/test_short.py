"""The short way of the most frequent calls, which nobody can tell from the long one."""

from __future__ import annotations

import pytest

from ms_enclave.server.audit import AuditedRoute
from tests.support.subprocess_box import install
from tests.unit.server.test_gate import Said, ask, serving

install()

POLICY = {"sandbox_types": ["subprocess"]}
TOOL = "/v1/sandboxes/{box}/tools/execute"
RUN = "/v1/sandboxes/{box}/commands/run"
HOT = (TOOL, RUN, "/v1/sandboxes/{box}/kernels/{kernel}/run", "/v1/run", "/sandbox/tool/execute")
JSON = "application/json"

CALLS = [
    (RUN, b'{"command": "echo 1"}', JSON),
    (RUN, b'{"command": "echo 1"}', "application/json; charset=utf-8"),
    (RUN, b'{"command": "echo 1"}', "Application/JSON"),
    (RUN, b'{"command": "echo 1"}', "text/plain"),
    (RUN, b'{"command": "echo 1"}', ""),
    (RUN, b'{"command": "echo 1", "timeout": "30"}', JSON),
    (RUN, b'{"command": "echo \\ud800"}', JSON),
    (RUN, b'{"command": "echo 1", "timeout": NaN}', JSON),
    (RUN, b'{"command": "echo 1", "timeout": "x", "more": 1}', JSON),
    (RUN, b'{"command": "a", "command": "echo 2"}', JSON),
    (RUN, b'{"command": "ech', JSON),
    (RUN, b"\xff\xfe", JSON),
    (RUN, b"", JSON),
    (RUN, b"null", JSON),
    (RUN, b"[]", JSON),
    (RUN, b"{}", JSON),
    (RUN, b"[" * 100_000, JSON),
    (RUN.replace("{box}", "unknown1"), b'{"command": "true"}', JSON),
    (RUN.replace("{box}", "unknown1"), b"{}", JSON),
    (RUN.replace("{box}", "no%20id"), b'{"command": "true"}', JSON),
    (RUN.replace("{box}", "x" * 65), b'{"command": "true"}', JSON),
    (TOOL, b'{"tool_name": "unknown"}', JSON),
    ("/v1/sandboxes/{box}/ports/x/connect", b"{}", JSON),
    ("/v1/sandboxes/{box}/shells/none/run", b"{}", JSON),
    ("/sandbox/tool/execute", b'{"sandbox_id": "unknown1", "tool_name": "none"}', JSON),
    ("/sandbox/tool/execute", b'{"tool_name": 7}', JSON),
]


def shortened() -> dict[str, AuditedRoute]:
    from ms_enclave.server.app import _routes  # pyright: ignore[reportPrivateUsage]

    every = [route for route in _routes() if isinstance(route, AuditedRoute)]
    return {route.path: route for route in every if route.short is not None}


def test_the_most_frequent_calls_have_it() -> None:
    have = {path.replace("{sandbox_id}", "{box}").replace("_id}", "}") for path in shortened()}
    assert have >= set(HOT)


def alike(said: Said) -> tuple[int, object, dict[str, str]]:
    """Without what differs between any two answers."""
    headers = {name.lower(): value for name, value in said.headers.items()}
    del headers["x-request-id"]
    data = said.data
    if isinstance(data, dict) and "exit_code" in data:
        data = (data["stdout"], data["stderr"], data["exit_code"])
        del headers["content-length"]
    return said.status, data, headers


@pytest.mark.parametrize(("path", "body", "kind"), CALLS)
async def test_it_answers_as_the_long_way_does(
    path: str, body: bytes, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(policy=POLICY) as server:
        box = await server.manager.create_sandbox("subprocess")
        filled = path.replace("{box}", box)
        short = await ask(server, "POST", filled, body, content_type=kind)
        for route in shortened().values():
            monkeypatch.setattr(route, "short", None)
        long = await ask(server, "POST", filled, body, content_type=kind)
    assert alike(short) == alike(long)


async def test_it_is_taken_where_all_is_as_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(policy=POLICY) as server:
        box = await server.manager.create_sandbox("subprocess")
        for path, route in shortened().items():
            if path.endswith("/commands/run"):
                monkeypatch.setattr(route, "app", None)  # by which FastAPI would answer
        said = await ask(server, "POST", RUN.format(box=box), b'{"command": "echo 1"}')
    assert said.data["stdout"] == "1\n"
