"""Jupyter's messages and our frames: what is an answer, what is none, what nobody may believe."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ms_enclave.channel._connection import ProtocolError
from ms_enclave.channel.jupyter import Translator
from ms_enclave.guest import protocol


def request(number: int, **body: Any) -> bytes:
    body.setdefault("op", "execute")
    body.setdefault("code", "1")
    return protocol.encode(protocol.REQUEST, number, protocol.dump(body))


def asked(translator: Translator, number: int, **body: Any) -> dict[str, Any]:
    """The message for a request."""
    (message,) = translator.requests(request(number, **body))
    return json.loads(message)


def message(parent: str | None, kind: str, content: Any = None) -> str:
    return json.dumps(
        {
            "header": {"msg_id": "theirs", "msg_type": kind},
            "parent_header": {} if parent is None else {"msg_id": parent},
            "content": {} if content is None else content,
        }
    )


def frames(data: bytes) -> list[tuple[int, int, int, Any]]:
    """Kind, channel, number and what is in it."""
    decoder = protocol.Decoder()
    return [
        (kind, channel, number, payload if kind == protocol.DATA else json.loads(payload))
        for kind, channel, number, payload in decoder.feed(data)
    ]


@pytest.fixture
def begun() -> tuple[Translator, str]:
    """A translator whose first request is under way, and what answers name."""
    translator = Translator()
    return translator, asked(translator, 1)["header"]["msg_id"]


def test_a_kernel_greets_once() -> None:
    translator = Translator()
    hello = json.loads(translator.greeting())["header"]["msg_id"]
    content = {"implementation": "ipython", "language_info": {"version": "3.11"}}
    answer = message(hello, "kernel_info_reply", content)
    assert translator.take(message(hello, "status", {"execution_state": "busy"})) == b""
    ((kind, _, number, said),) = frames(translator.take(answer))
    assert (kind, number) == (protocol.HELLO, 0)
    assert (said["implementation"], said["python"]) == ("ipython", "3.11")
    assert translator.has_greeted
    assert translator.take(answer) == b""


def test_a_request_becomes_a_message() -> None:
    sent = asked(Translator(), 7, code="x = 1", silent=True, allow_stdin=True)
    assert sent["header"]["msg_type"] == "execute_request"
    assert sent["channel"] == "shell"
    assert sent["content"] == {
        "code": "x = 1", "silent": True, "store_history": True, "user_expressions": {},
        "allow_stdin": True, "stop_on_error": False,
    }  # fmt: skip
    asks = asked(Translator(), 1, op="complete", code="pri", cursor_pos=3)
    assert asks["header"]["msg_type"] == "complete_request"
    assert asks["content"] == {"code": "pri", "cursor_pos": 3}


def test_a_request_in_pieces_is_one_message() -> None:
    body = protocol.dump({"op": "execute", "code": "print(1)"})
    translator = Translator()
    first = protocol.encode(protocol.REQUEST, 1, body[:10], 1)
    assert translator.requests(first) == []
    (whole,) = translator.requests(protocol.encode(protocol.REQUEST, 1, body[10:]))
    assert json.loads(whole)["content"]["code"] == "print(1)"


def test_code_that_no_message_can_hold_is_answered_here() -> None:
    translator = Translator()
    assert translator.requests(request(3, code="'\ud800'")) == []
    event, result = frames(translator.take_refused())
    assert event[0::2] == (protocol.EVENT, 3)
    assert event[3]["content"]["ename"] == "UnicodeEncodeError"
    assert result[0::2] == (protocol.RESULT, 3)
    assert result[3]["status"] == "error"
    assert translator.take_refused() == b""


def test_output_and_displays_go_along(begun: tuple[Translator, str]) -> None:
    translator, mine = begun
    out = translator.take(message(mine, "stream", {"name": "stdout", "text": "é"}))
    assert frames(out) == [(protocol.DATA, protocol.STDOUT, 1, "é".encode())]
    err = translator.take(message(mine, "stream", {"name": "stderr", "text": "e"}))
    assert frames(err)[0][1] == protocol.STDERR
    shown = {"data": {"text/plain": "1"}, "metadata": {"a": 1, "ms-enclave-lost": 5}}
    ((kind, _, _, event),) = frames(translator.take(message(mine, "display_data", shown)))
    assert kind == protocol.EVENT
    assert event["content"] == {"data": {"text/plain": "1"}, "metadata": {"a": 1}, "lost": 5}


@pytest.mark.parametrize("idle_first", [True, False])
def test_a_cell_has_ended_when_it_is_answered_and_idle(
    begun: tuple[Translator, str], idle_first: bool
) -> None:
    translator, mine = begun
    both = [
        message(mine, "execute_reply", {"status": "ok"}),
        message(mine, "status", {"execution_state": "idle"}),
    ]
    first, second = reversed(both) if idle_first else both
    assert translator.take(first) == b""
    ((kind, _, number, said),) = frames(translator.take(second))
    assert (kind, number, said) == (protocol.RESULT, 1, {"status": "ok"})
    assert translator.take(message(mine, "error", {"ename": "late"})) == b""
    assert translator.take(second) == b""


def test_a_cell_that_an_interrupt_met_before_its_code_ends_as_interrupted(
    begun: tuple[Translator, str],
) -> None:
    """What ipykernel says of one whose interrupt came between `execute_input` and the code."""
    translator, mine = begun
    busy, idle = ({"execution_state": state} for state in ("busy", "idle"))
    assert translator.doubt() is None
    for kind, content in (("status", busy), ("execute_input", {"code": "1"}), ("status", idle)):
        assert not translator.is_in_doubt
        assert translator.take(message(mine, kind, content)) == b""
    assert translator.is_in_doubt
    question = json.loads(translator.doubt() or "")
    assert (question["header"]["msg_type"], question["channel"]) == ("kernel_info_request", "shell")
    assert translator.doubt() is None, "it was asked"
    doubt = question["header"]["msg_id"]
    assert translator.take(message(doubt, "status", busy)) == b""
    answered = message(doubt, "kernel_info_reply", {"status": "ok"})
    event, result = frames(translator.take(answered))
    assert (event[0], event[3]["content"]["ename"]) == (protocol.EVENT, "KeyboardInterrupt")
    assert (result[0], result[2], result[3]["status"]) == (protocol.RESULT, 1, "error")
    assert not translator.is_in_doubt
    assert translator.take(answered) == b""
    assert translator.take(message(mine, "execute_reply", {"status": "ok"})) == b""


def test_an_answer_that_comes_after_the_news_is_the_answer(begun: tuple[Translator, str]) -> None:
    translator, mine = begun
    translator.take(message(mine, "status", {"execution_state": "idle"}))
    doubt = json.loads(translator.doubt() or "")["header"]["msg_id"]
    reply = message(mine, "execute_reply", {"status": "ok"})
    assert frames(translator.take(reply))[0][3] == {"status": "ok"}
    assert translator.take(message(doubt, "kernel_info_reply")) == b""
    mine = asked(translator, 2)["header"]["msg_id"]
    translator.take(message(mine, "status", {"execution_state": "idle"}))
    assert translator.take(message(doubt, "kernel_info_reply")) == b"", "of another request"
    assert translator.is_in_doubt


def test_an_interrupted_doubt_is_asked_again(begun: tuple[Translator, str]) -> None:
    translator, mine = begun
    idle = {"execution_state": "idle"}
    translator.take(message(mine, "status", idle))
    doubt = json.loads(translator.doubt() or "")["header"]["msg_id"]
    translator.take(message(doubt, "status", idle))
    assert translator.is_in_doubt
    assert translator.doubt() is not None


def test_no_answer_to_a_doubt_ends_what_is_running(begun: tuple[Translator, str]) -> None:
    translator, _ = begun
    doubt = f"{translator.session}_doubt1"
    assert translator.take(message(doubt, "kernel_info_reply")) == b""
    assert not translator.is_in_doubt


def test_a_question_is_answered_on_its_own_channel(begun: tuple[Translator, str]) -> None:
    translator, mine = begun
    assert not translator.has_begun
    ask = message(mine, "input_request", {"prompt": "? "})
    assert frames(translator.take(ask))[0][3]["type"] == "input_request"
    assert translator.has_begun
    answer = protocol.encode(protocol.DATA, 1, b"yes")
    (sent,) = translator.requests(answer)
    assert json.loads(sent)["channel"] == "stdin"
    assert json.loads(sent)["content"] == {"value": "yes"}
    assert json.loads(sent)["parent_header"]["msg_id"] == "theirs"
    assert translator.requests(answer) == [], "nobody asks any more"


def test_completions_need_not_be_idle() -> None:
    translator = Translator()
    mine = asked(translator, 1, op="complete", code="pri")["header"]["msg_id"]
    ((kind, _, _, said),) = frames(translator.take(message(mine, "complete_reply", {"a": 1})))
    assert (kind, said) == (protocol.RESULT, {"a": 1})


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("execute_reply", {"status": "ok"}),
        ("status", {"execution_state": "idle"}),
        ("stream", {"name": "stdout", "text": "forged"}),
        ("display_data", {"data": {}}),
    ],
)
@pytest.mark.parametrize("parent", [None, "", "another_1", "1", "_1"])
def test_what_is_no_answer_to_us_says_nothing(
    begun: tuple[Translator, str], kind: str, content: dict[str, Any], parent: str | None
) -> None:
    translator, _ = begun
    assert translator.take(message(parent, kind, content)) == b""


@pytest.mark.parametrize("name", ["2", "0", "99999999999", "-1", "1x", "hello", "input"])
def test_a_reply_to_a_request_that_is_not_under_way_ends_nothing(
    begun: tuple[Translator, str], name: str
) -> None:
    translator, _ = begun
    parent = f"{translator.session}_{name}"
    assert translator.take(message(parent, "execute_reply", {"status": "ok"})) == b""
    assert translator.take(message(parent, "status", {"execution_state": "idle"})) == b""


@pytest.mark.parametrize("name", ["0", "000", "²", "-1", "4294967296", "9" * 11, "", "hello", "1 "])
def test_what_is_printed_for_a_request_that_cannot_be_is_nothing(
    begun: tuple[Translator, str], name: str
) -> None:
    translator, _ = begun
    said = message(f"{translator.session}_{name}", "stream", {"name": "stdout", "text": "x"})
    assert translator.take(said) == b""


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "null", "{}", '{"header": {}}', '{"header": 1, "parent_header": 2}',
     '{"header": {"msg_type": "x"}, "parent_header": [], "content": {}}', "[" * 100_000],
)  # fmt: skip
def test_what_is_no_message_breaks_the_protocol(text: str) -> None:
    with pytest.raises(ProtocolError):
        Translator().take(text)


@pytest.mark.parametrize("content", [7, None, [], "x"])
def test_a_message_of_another_shape_says_nothing(
    begun: tuple[Translator, str], content: Any
) -> None:
    translator, mine = begun
    body = json.loads(message(mine, "stream"))
    body["content"] = content
    assert translator.take(json.dumps(body)) == b""
    for wrong in ({"name": "stdout"}, {"name": "x", "text": "x"}, {"name": "stdout", "text": 7}):
        assert translator.take(message(mine, "stream", wrong)) == b""


def test_long_output_is_cut_into_frames_that_there_may_be(begun: tuple[Translator, str]) -> None:
    translator, mine = begun
    text = "x" * (2 * protocol.MAX_PAYLOAD + 1)
    pieces = frames(translator.take(message(mine, "stream", {"name": "stdout", "text": text})))
    assert [len(piece[3]) for piece in pieces] == [protocol.MAX_PAYLOAD, protocol.MAX_PAYLOAD, 1]


def test_a_traceback_without_end_is_cut(begun: tuple[Translator, str]) -> None:
    translator, mine = begun
    error = {"ename": "E", "evalue": "e" * 10**6, "traceback": ["x" * 10**6, 7, "y"]}
    decoder = protocol.Decoder()
    pieces = list(decoder.feed(translator.take(message(mine, "error", error))))
    said = json.loads(b"".join(payload for _, _, _, payload in pieces))["content"]
    assert len(said["evalue"]) == 1 << 18
    assert [len(line) for line in said["traceback"]] == [1 << 18, 0]
