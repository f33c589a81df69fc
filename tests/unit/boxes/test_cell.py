"""What a cell collects stays within bounds, whatever its kernel says and whoever reads it."""

from __future__ import annotations

from typing import Any

import pytest

from ms_enclave.boxes._cell import MOST_DISPLAYS, Cell, Ending
from ms_enclave.channel._connection import ProtocolError
from ms_enclave.channel.kernel import KernelDecoder, Message, Output, Result
from ms_enclave.guest import protocol
from ms_enclave.model import ExecutionStatus, ResolvedLimits, Verdict


def cell(output: int = 1000, *, streamed: bool = False) -> Cell:
    limits = ResolvedLimits(output=output)
    return Cell(7, "code", 1, limits, streamed=streamed, isolation=None)


def display(text: str, name: str | None = None, kind: str = "display_data") -> Message:
    transient = {} if name is None else {"display_id": name}
    content = {"data": {"text/plain": text}, "metadata": {}, "transient": transient}
    return Message(7, kind, content, len(text))


def events(of: Cell) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    while (event := of.next_event()) is not None:
        found.append((event.type, event.content))
    return found


def test_displays_are_bounded_by_bytes_and_by_number() -> None:
    few = cell(output=10)
    for _ in range(5):
        few.take(display("1234"))
    few.finish(Result(7, {"status": "ok"}))
    assert len(few.execution().displays) == 2
    assert few.execution().truncated == {"displays": 12}
    many = cell(output=1 << 20)
    for _ in range(MOST_DISPLAYS + 5):
        many.take(display("x"))
    many.finish(Result(7, {"status": "ok"}))
    assert len(many.execution().displays) == MOST_DISPLAYS
    assert many.execution().truncated == {"displays": 5}


def test_what_is_cleared_makes_room() -> None:
    one = cell(output=10)
    for _ in range(50):
        one.take(Message(7, "clear_output", {"wait": True}, 1))
        one.take(display("12345678"))
    one.finish(Result(7, {"status": "ok"}))
    assert len(one.execution().displays) == 1
    assert one.execution().truncated == {}


def test_an_update_takes_the_room_of_what_it_replaces() -> None:
    one = cell(output=10)
    one.take(display("old", "a"))
    for number in range(50):
        one.take(display(f"new {number}", "a", "update_display_data"))
    one.finish(Result(7, {"status": "ok"}))
    assert one.execution().displays == [{"text/plain": "new 49"}]


def test_text_of_a_stream_that_nobody_reads_is_kept_in_few_events() -> None:
    one = cell(output=1 << 20, streamed=True)
    for number in range(20_000):
        one.take(Output(7, ("stdout", "stderr")[number % 2], b"x"))
    assert len(one.events) < 3 * MOST_DISPLAYS
    one.finish(Result(7, {"status": "ok"}))
    text = {"stdout": "", "stderr": ""}
    for kind, content in events(one):
        if kind == "stream":
            text[content["name"]] += content["text"]
    assert text == {"stdout": "x" * 10_000, "stderr": "x" * 10_000}


def test_messages_that_nobody_reads_are_bounded() -> None:
    one = cell(output=1 << 20, streamed=True)
    for _ in range(100_000):
        one.take(Message(7, "error", {"ename": "E", "evalue": "", "traceback": []}, 50))
        one.take(Message(7, "input_request", {"prompt": "", "password": False}, 50))
    assert len(one.events) < 3 * MOST_DISPLAYS
    one.finish(Result(7, {"status": "error", "ename": "E"}))
    assert [kind for kind, _ in events(one)][-2:] == ["status", "execute_reply"]


def test_how_a_cell_ended_is_the_word_of_who_is_outside() -> None:
    one = cell()
    one.ending = Ending(ExecutionStatus.TIMEOUT, Verdict.WALL_TIMEOUT, "too long")
    one.finish(Result(7, {"status": "ok"}))
    assert one.execution().verdict is Verdict.WALL_TIMEOUT
    assert cell().reply == {}


@pytest.mark.parametrize(
    "body",
    [
        b'{"type":"stream","content":{}}',
        b'{"type":"error","content":[]}',
        b"[" * 100_000,
        b'{"type":"display_data","content":{"data":' + b'{"a":' * 200 + b"1" + b"}" * 202,
        b"\xff",
    ],
)
def test_what_is_no_message_breaks_the_protocol(body: bytes) -> None:
    frame = b"".join(
        protocol.encode(protocol.EVENT, 7, body[i : i + 65536], int(i + 65536 < len(body)))
        for i in range(0, len(body), 65536)
    )
    with pytest.raises(ProtocolError):
        list(KernelDecoder(1 << 20).feed(frame))


def test_a_message_is_what_its_type_has_whatever_a_kernel_put_there() -> None:
    body = (
        b'{"type":"execute_result","content":{"execution_count":-3,"data":"no","metadata":{"a":NaN},'
        b'"more":1}}'
    )
    said = list(KernelDecoder(1 << 20).feed(protocol.encode(protocol.EVENT, 7, body)))
    content = {"execution_count": 0, "data": {}, "metadata": {"a": None}}
    assert said == [Message(7, "execute_result", content, len(body))]


def test_a_message_that_is_too_long_is_only_counted() -> None:
    decoder = KernelDecoder(100_000)
    frames = [protocol.encode(protocol.EVENT, 7, b"x" * 60_000, 1) for _ in range(5)]
    said = list(decoder.feed(b"".join(frames) + protocol.encode(protocol.EVENT, 7, b"x")))
    assert said == [Message(7, "", {}, 300_001)]
    good = b'{"type":"clear_output","content":{}}'
    assert len(list(decoder.feed(protocol.encode(protocol.EVENT, 7, good)))) == 1
