"""The codec alone: what goes in comes out, and what is no frame is refused at once."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_enclave.guest import protocol
from ms_enclave.guest.protocol import Decoder, FrameError, ReceiveWindow, SendWindow

DATA_FRAMES = st.tuples(
    st.just(protocol.DATA), st.integers(0, 2), st.integers(1, protocol.MAX_CALL), st.binary()
)


@given(st.lists(DATA_FRAMES, max_size=8), st.data())
def test_frames_come_out_as_they_went_in_wherever_the_bytes_are_cut(frames, data) -> None:
    stream = b"".join(protocol.encode(k, call, payload, ch) for k, ch, call, payload in frames)
    decoder, found, start = Decoder(), [], 0
    while start < len(stream):
        size = data.draw(st.integers(1, len(stream) - start))
        found += decoder.feed(stream[start : start + size])
        start += size
    assert found == frames


@given(st.binary(min_size=12, max_size=200))
def test_random_bytes_are_refused_or_wait_for_more_but_nothing_else(noise: bytes) -> None:
    decoder = Decoder()
    try:
        frames = decoder.feed(noise)
    except FrameError:
        return
    assert noise.startswith(b"mE")
    assert len(frames) * 12 <= len(noise)


@given(st.integers(0, 11), st.integers(0, 255), st.binary(max_size=40))
def test_a_changed_header_is_refused_or_another_valid_frame(
    position: int, value: int, payload: bytes
) -> None:
    frame = bytearray(protocol.encode(protocol.DATA, 7, payload, 1))
    frame[position] = value
    try:
        frames = Decoder().feed(bytes(frame))
    except FrameError:
        return
    for kind, channel, call, content in frames:
        assert protocol.HELLO <= kind <= protocol.CANCEL
        assert channel <= protocol.MAX_CHANNEL
        assert (call == 0) == (kind == protocol.HELLO)
        assert payload.startswith(content) or content.startswith(payload)


@pytest.mark.parametrize(
    "header",
    [
        b"XX\x06\x00\x00\x00\x00\x01\x00\x00\x00\x00",
        b"mE\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00",
        b"mE\x0a\x00\x00\x00\x00\x01\x00\x00\x00\x00",
        b"mE\x06\x04\x00\x00\x00\x01\x00\x00\x00\x00",
        b"mE\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        b"mE\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00",
        b"mE\x06\x00\x00\x00\x00\x01\x00\x01\x00\x01",
        b"mE\x07\x00\x00\x00\x00\x01\x00\x00\x00\x01",
        b"mE\x08\x00\x00\x00\x00\x01\x00\x00\x00\x03",
    ],
    ids=[
        "magic", "kind-0", "kind-10", "channel", "call-0", "hello-for-a-call", "too-long",
        "end-with-payload", "short-credit",
    ],
)  # fmt: skip
def test_a_header_that_is_none_is_refused_before_its_payload_comes(header: bytes) -> None:
    with pytest.raises(FrameError):
        Decoder().feed(header)


def test_the_decoder_holds_no_more_than_one_frame() -> None:
    decoder = Decoder()
    frame = protocol.encode(protocol.DATA, 1, bytes(protocol.MAX_PAYLOAD))
    for _ in range(100):
        assert len(decoder.feed(frame)) == 1
    assert len(decoder._buffer) == 0


def test_a_payload_that_is_too_long_is_not_encoded() -> None:
    with pytest.raises(FrameError):
        protocol.encode(protocol.DATA, 1, bytes(protocol.MAX_PAYLOAD + 1))


def test_a_long_request_is_cut_into_frames_and_a_longer_one_refused() -> None:
    frames = protocol.encode_request(9, {"code": "x" * 200_000})
    decoded = Decoder().feed(b"".join(frames))
    assert [channel for _, channel, _, _ in decoded] == [1, 1, 1, 0]
    assert json.loads(b"".join(payload for *_, payload in decoded))["code"] == "x" * 200_000
    with pytest.raises(FrameError):
        protocol.encode_request(9, {"code": "x" * protocol.MAX_BODY})


@given(st.dictionaries(st.text(), st.one_of(st.none(), st.integers(), st.text())))
def test_bodies_survive(body) -> None:
    assert protocol.load_body(protocol.dump(body)) == body


def test_a_name_that_is_no_text_survives() -> None:
    name = b"\xff\xfe".decode("utf-8", "surrogateescape")
    assert protocol.load(protocol.dump([name])) == [name]


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"\xff", "é".encode(), b"NaN", b'{"a": Infinity}', b"[" * 60_000, b"[1]", b"1"],
)
def test_a_body_that_is_none_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameError):
        protocol.load_body(payload)


@given(st.lists(st.integers(0, 2 * protocol.WINDOW)))
def test_a_sender_never_has_more_credit_than_a_window(amounts: list[int]) -> None:
    window = SendWindow()
    for amount in amounts:
        before = window.credit
        try:
            window.take(amount)
        except FrameError:
            assert amount > before
            assert window.credit == before
        try:
            window.grant(amount)
        except FrameError:
            assert amount == 0 or window.credit + amount > protocol.WINDOW
        assert 0 <= window.credit <= protocol.WINDOW


@given(st.lists(st.integers(1, protocol.MAX_PAYLOAD), max_size=60))
def test_two_windows_agree_and_never_run_dry(sizes: list[int]) -> None:
    sender, receiver = SendWindow(), ReceiveWindow()
    for size in sizes:
        assert sender.credit >= size  # everything was consumed, so a full frame always fits
        sender.take(size)
        receiver.receive(size)
        granted = receiver.consume(size)
        if granted:
            sender.grant(granted)


def test_more_than_was_granted_is_refused() -> None:
    window = ReceiveWindow()
    window.receive(protocol.WINDOW)
    with pytest.raises(FrameError):
        window.receive(1)


def test_nothing_comes_after_the_end() -> None:
    window = ReceiveWindow()
    window.end()
    with pytest.raises(FrameError):
        window.receive(0)
    with pytest.raises(FrameError):
        window.end()
    assert window.consume(protocol.WINDOW) == 0
