"""What a hostile kernel says of requests that nobody has made."""

from __future__ import annotations

import json

import pytest

from ms_enclave.channel.jupyter import Translator
from ms_enclave.guest import protocol


def _said(session: str, number: str) -> str:
    return json.dumps(
        {
            "header": {"msg_type": "stream"},
            "parent_header": {"msg_id": f"{session}_{number}"},
            "content": {"name": "stdout", "text": "x"},
        }
    )


def _busy() -> Translator:
    translator = Translator()
    request = protocol.encode_request(7, {"op": "execute", "code": "1"})
    assert len(translator.requests(b"".join(request))) == 1
    return translator


@pytest.mark.parametrize(
    "number", ["0", "000", "²", "-1", "4294967296", "9" * 11, "", "hello", "7 "]
)
def test_a_number_that_no_request_has_is_nothing(number: str) -> None:
    translator = _busy()
    assert translator.take(_said(translator.session, number)) == b""


def test_what_is_said_of_the_request_is_handed_on() -> None:
    translator = _busy()
    frames = protocol.Decoder().feed(translator.take(_said(translator.session, "7")))
    assert [(kind, call) for kind, _, call, _ in frames] == [(protocol.DATA, 7)]
