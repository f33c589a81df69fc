"""What travels between client and server comes back as it was, and nothing else comes of it."""

from __future__ import annotations

import errno

import pytest

from ms_enclave import errors, wire
from ms_enclave.errors import (
    CapabilityError,
    CommandNotFoundError,
    ConfigError,
    EnclaveError,
    ForkRefusedError,
    IsolationUnavailableError,
    PoolTimeoutError,
    PortRefusedError,
    PortTimeoutError,
    QuotaExceededError,
    SandboxNotFoundError,
)

WITH_MORE = [
    SandboxNotFoundError("box1"),
    CommandNotFoundError("cmd1"),
    CapabilityError("ports", available_in=["process", "docker"]),
    IsolationUnavailableError("no walls", missing=["userns"], remedy="allow them"),
    PoolTimeoutError(1.5),
    QuotaExceededError("too many", retry_after=2.5),
    PortRefusedError(80),
    PortTimeoutError(80, 3.0),
    ForkRefusedError(blockers=["a pipe"]),
]
PLAIN = [
    kind("words", remedy="do this")
    for kind in (getattr(errors, name) for name in errors.__all__)
    if kind not in {type(one) for one in WITH_MORE}
]


def travel(error: BaseException) -> Exception:
    return wire.decode_error(wire.load(wire.dump(wire.encode_error(error))))


@pytest.mark.parametrize("error", [*WITH_MORE, *PLAIN], ids=lambda error: type(error).__name__)
def test_an_error_of_ours_keeps_class_words_and_details(error: EnclaveError) -> None:
    came = travel(error)
    assert type(came) is type(error)
    assert str(came) == str(error)
    assert vars(came) == vars(error)


@pytest.mark.parametrize(
    "number", [errno.ENOENT, errno.EISDIR, errno.EACCES, errno.ENOSPC, errno.EPIPE, errno.EAGAIN]
)
def test_an_error_of_the_file_system_keeps_number_class_and_path(number: int) -> None:
    error = OSError(number, "words", "/a/path")
    came = travel(error)
    assert type(came) is type(error)
    assert isinstance(came, OSError)
    assert (came.errno, came.strerror, came.filename) == (number, "words", "/a/path")


def test_a_time_out_stays_one() -> None:
    assert type(travel(TimeoutError("late"))) is TimeoutError


def test_a_fault_tells_nothing_of_itself() -> None:
    came = travel(KeyError("/home/secret"))
    assert type(came) is EnclaveError
    assert "secret" not in str(came)


@pytest.mark.parametrize(
    "data",
    [
        None, [], "text", 5, {}, {"code": "os.system"}, {"code": ["config"]},
        {"code": "SystemExit"},
        {"code": "os_error", "errno": "E\n", "message": 5, "path": ["x"]},
        {"code": "os_error", "errno": 2},
        {"code": "pool_timeout", "timeout": "soon", "message": {}},
        {"code": "capability", "available_in": [5, "x"], "capability": None},
        {"code": "port_timeout", "port": 1e400, "timeout": True},
    ],
    ids=str,
)  # fmt: skip
def test_whatever_a_server_sends_becomes_one_of_our_errors(data: object) -> None:
    came = wire.decode_error(data)
    assert isinstance(came, (EnclaveError, OSError))
    assert str(came) is not None
    assert type(came).__module__ in {"ms_enclave.errors", "builtins"}


def test_a_name_that_is_none_of_ours_is_never_looked_up() -> None:
    came = wire.decode_error({"code": "os:system", "message": "words"})
    assert type(came) is EnclaveError
    assert came.args == ("words",)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_found_however_they_are_cut(size: int) -> None:
    text = (
        b": awake\n\n" + wire.encode_event({"a": 1}) + wire.encode_event({"b": "\n\nx"}, "error")
        + wire.encode_event({}, "end")
    )  # fmt: skip
    reader = wire.EventReader()
    found = [
        event for at in range(0, len(text), size) for event in reader.feed(text[at : at + size])
    ]
    assert [(name, wire.load(data)) for name, data in found] == [
        ("", {"a": 1}),
        ("error", {"b": "\n\nx"}),
        ("end", {}),
    ]


def test_an_event_without_an_end_is_refused() -> None:
    reader = wire.EventReader(100)
    with pytest.raises(EnclaveError, match="no end"):
        list(reader.feed(b"data: " + b"x" * 200))


@pytest.mark.parametrize("size", [1, 3, 5, 1000])
@pytest.mark.parametrize("error", [None, BrokenPipeError(errno.EPIPE, "broke")])
def test_frames_are_found_however_they_are_cut(size: int, error: OSError | None) -> None:
    text = wire.encode_frame(b"one") + wire.encode_frame(b"x" * 700)
    text += wire.encode_frame(None, error)
    reader = wire.FrameReader()
    found = [
        piece for at in range(0, len(text), size) for piece in reader.feed(text[at : at + size])
    ]
    assert found == [b"one", b"x" * 700]
    assert reader.ended
    assert repr(reader.error) == repr(error)


@pytest.mark.parametrize("text", ["", "soon", "-1", "0", "nan", "inf", "1e999"])
def test_a_deadline_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        wire.read_deadline(text)


def test_bytes_that_are_none_are_refused() -> None:
    assert wire.decode_bytes(wire.encode_bytes(b"\x00\xff")) == b"\x00\xff"
    with pytest.raises(ConfigError, match="base64"):
        wire.decode_bytes("not base64!")
