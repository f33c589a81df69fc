"""Traces: one from the client's call, through the server, to the call of the sandbox."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ms_enclave.loop import on_loop
from ms_enclave.utils.tracing import HEADER, carry, span
from tests.support.served import OnLoopback
from tests.support.subprocess_box import install

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan

install()


class Kind(OnLoopback):
    kept_open = 0


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What a program exports that has set traces up; for the length of a test."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    provider.shutdown()


def named(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    [found] = [each for each in exporter.get_finished_spans() if each.name == name]
    return found


def parent(of: ReadableSpan) -> int | None:
    return None if of.parent is None else of.parent.span_id


def own(of: ReadableSpan) -> int:
    assert of.context is not None
    return of.context.span_id


async def test_a_call_is_one_trace_from_the_client_to_the_sandbox(
    exported: InMemorySpanExporter,
) -> None:
    @on_loop
    async def go() -> None:
        async with Kind() as manager, manager.sandbox("subprocess") as box:
            exported.clear()
            await box.execute_command("true")
            client = named(exported, "POST request")
            server, inside = named(exported, "POST call"), named(exported, "sandbox.call")
            assert (parent(client), parent(server), parent(inside)) == (
                None, own(client), own(server),
            )  # fmt: skip
            assert {each.kind.name for each in (client, server)} == {"CLIENT", "SERVER"}
            assert server.attributes is not None
            route = "/v1/sandboxes/{sandbox_id}/commands/run"
            assert server.attributes["http.route"] == route
            assert server.attributes["http.response.status_code"] == 200
            assert (inside.attributes or {})["sandbox.id"] == box.id

    await go()


@pytest.mark.parametrize(
    "said", ["", "00-x", f"00-{0:032x}-{1:016x}-01", f"00-{1:032x}-{1:016x}-01-" + "x" * 9000]
)
def test_a_parent_that_makes_no_sense_is_none(exported: InMemorySpanExporter, said: str) -> None:
    with span("one", of=said):
        pass
    found = named(exported, "one")
    assert parent(found) in (None, 1)


def test_what_fails_is_noted_and_goes_on_failing(exported: InMemorySpanExporter) -> None:
    with pytest.raises(KeyError), span("one"):
        raise KeyError
    assert not named(exported, "one").status.is_ok


def test_without_opentelemetry_there_are_no_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    headers: dict[str, str] = {}
    with span("one", of="00-x") as begun:
        carry(headers)
    assert begun is None
    assert HEADER not in headers
