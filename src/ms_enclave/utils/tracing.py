"""Spans of OpenTelemetry, where the program has it; nothing, at no cost, where it has not.

Who wants traces has imported OpenTelemetry to set it up, so that is where it is looked for: none of
it is imported here.
"""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator, MutableMapping

__all__ = ["HEADER", "carry", "span"]

_NAME = "ms_enclave"
_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
HEADER = "traceparent"


@contextmanager
def span(
    name: str, kind: str = "INTERNAL", *, of: str | None = None, **attributes: Any
) -> Generator[Any, None, None]:
    """A span for the length of a block; gives it, or None. What fails in the block is noted in it.

    Args:
        kind: as OpenTelemetry names it.
        of: the header `traceparent` of a request; else it is a part of what is going on here.
        attributes: dots are written as two underscores.
    """
    trace = _set_up()
    if trace is None:
        yield None
        return
    found = {key.replace("__", "."): value for key, value in attributes.items()}
    with trace.get_tracer(_NAME).start_as_current_span(
        name, _context(trace, of), getattr(trace.SpanKind, kind), found
    ) as begun:
        yield begun


def carry(headers: MutableMapping[str, str]) -> None:
    """Say in headers of which trace a request is a part, as W3C has it."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return
    here = trace.get_current_span().get_span_context()
    if here.is_valid:
        headers[HEADER] = f"00-{here.trace_id:032x}-{here.span_id:016x}-{here.trace_flags:02x}"


def _set_up() -> Any:
    """OpenTelemetry, where the program has set it up; else None.

    Others import it without that, FastAPI for one, and what it then does for a span is nothing, at
    the price of a tenth of a call.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    return trace


def _context(trace: Any, said: str | None) -> Any:
    """Where a header says that a request comes from; None where it makes no sense."""
    found = None if said is None else _PARENT.fullmatch(said)
    if found is None:
        return None
    whole, part, flags = (int(text, 16) for text in found.groups())
    remote = trace.SpanContext(whole, part, is_remote=True, trace_flags=trace.TraceFlags(flags))
    return trace.set_span_in_context(trace.NonRecordingSpan(remote)) if remote.is_valid else None
