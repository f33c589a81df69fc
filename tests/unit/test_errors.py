"""The one tree of errors."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from typing import Any

import pytest

from ms_enclave import errors
from ms_enclave.errors import (
    CapabilityError,
    ConfigError,
    EnclaveError,
    ForkRefusedError,
    IsolationUnavailableError,
    PoolEmptyError,
    PoolTimeoutError,
    PortTimeoutError,
    QuotaExceededError,
    SandboxNotFoundError,
)

BUILTINS = {
    "ConfigError": ValueError,
    "UnknownTypeError": ValueError,
    "SandboxNotFoundError": ValueError,
    "ToolNotFoundError": ValueError,
    "SandboxStateError": ValueError,
    "CapabilityError": NotImplementedError,
    "IsolationUnavailableError": RuntimeError,
    "SandboxStartError": RuntimeError,
    "PoolEmptyError": ValueError,
    "PoolTimeoutError": TimeoutError,
    "PortTimeoutError": TimeoutError,
    "ServerUnreachableError": ConnectionError,
}

KINDS: list[type[EnclaveError]] = [getattr(errors, name) for name in errors.__all__]


def make(kind: type[EnclaveError]) -> EnclaveError:
    """One error of a kind, with all that it can carry."""
    made: dict[type[EnclaveError], Any] = {
        SandboxNotFoundError: lambda: SandboxNotFoundError("abc", remedy="do it"),
        CapabilityError: lambda: CapabilityError("fork", available_in=["process"]),
        IsolationUnavailableError: lambda: IsolationUnavailableError(
            "no walls", missing=["userns"], remedy="sysctl x=1"
        ),
        PoolEmptyError: lambda: PoolEmptyError(remedy="do it"),
        PoolTimeoutError: lambda: PoolTimeoutError(2.5, remedy="do it"),
        PortTimeoutError: lambda: PortTimeoutError(8000, 2.5, remedy="do it"),
        QuotaExceededError: lambda: QuotaExceededError("too much", retry_after=3.0),
        ForkRefusedError: lambda: ForkRefusedError(blockers=["a socket"], remedy="do it"),
    }
    return made.get(kind, lambda: kind("it broke", remedy="do it"))()


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickling_and_copying(kind: type[EnclaveError]) -> None:
    error = make(kind)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert str(again) == str(error)
        assert again.args == error.args
        assert vars(again) == vars(error)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_also_the_builtin_that_callers_catch(kind: type[EnclaveError]) -> None:
    assert issubclass(kind, EnclaveError)
    assert issubclass(kind, BUILTINS.get(kind.__name__, Exception))


def test_codes_are_unique_and_statuses_are_errors() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS)
    assert all(re.fullmatch(r"[a-z_]+", kind.code) for kind in KINDS)
    assert all(400 <= kind.http_status < 600 for kind in KINDS)


def test_the_text_says_what_is_wrong_and_what_to_do() -> None:
    error = EnclaveError("It broke.", remedy="mend it")
    assert str(error) == "It broke. What to do: mend it"
    assert error.message == "It broke."
    assert str(EnclaveError("It broke.")) == "It broke."
    assert str(EnclaveError(remedy="mend it")) == "mend it"
    assert "process" in str(CapabilityError("fork", available_in=["process"]))


def test_an_os_error_underneath_does_not_change_the_text() -> None:
    error = PoolTimeoutError(3)
    assert isinstance(error, OSError)
    assert str(error).endswith("after 3s")
    assert error.errno is None


def test_the_docstring_is_the_tree() -> None:
    said = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    assert sorted([*said, "EnclaveError"]) == sorted(errors.__all__)
    defined = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    ]
    assert sorted(defined) == sorted(errors.__all__)


def test_a_config_error_is_caught_as_what_it_used_to_be() -> None:
    with pytest.raises(ValueError, match="bad"):
        raise ConfigError("bad")
