"""Every exception of ours.

    EnclaveError                            what all of them are
    ├── ConfigError (ValueError)            the caller's input is not valid
    ├── UnknownTypeError (ValueError)       nothing is registered under that name
    ├── SandboxNotFoundError (ValueError)   no sandbox has that id
    ├── ToolNotFoundError (ValueError)      the sandbox has no such tool
    ├── CommandNotFoundError (ValueError)   the sandbox has no command of that id
    ├── SandboxStateError (ValueError)      not in the state that the call needs
    ├── CapabilityError (NotImplementedError)   this kind of box cannot do it
    ├── IsolationUnavailableError (RuntimeError)    this machine cannot build the walls
    ├── SandboxStartError (RuntimeError)    a sandbox could not be started
    ├── SandboxLostError                    a sandbox ended by itself, or does not answer
    ├── EngineUnavailableError              the container engine is not there
    ├── PoolEmptyError (ValueError)         there is no pool to borrow from
    ├── PoolTimeoutError (TimeoutError)     no sandbox of the pool was free in time
    ├── QuotaExceededError                  more than the tenant may have
    ├── AuthenticationError                 the key is missing or wrong
    ├── NotAllowedError                     the server's policy does not allow what was asked for
    ├── ServerUnreachableError (ConnectionError)    the server does not answer
    ├── StoreUnavailableError               the server's database does not answer
    ├── PortRefusedError (ConnectionRefusedError)   nothing takes connections at that port inside
    ├── PortTimeoutError (TimeoutError)             what listens at that port takes none in time
    ├── ForkRefusedError                    something in the sandbox cannot be forked
    ├── SnapshotNotFoundError (ValueError)  there is no snapshot of that name
    └── SnapshotStoreError                  snapshots cannot be read or written: a full disk, say

What a program does wrong is never one of these: it is a result. `code` is how an error travels on
the wire and `http_status` what a server answers with; both belong to the class. `remedy` says what
exactly to do about it, and `str()` says it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "AuthenticationError",
    "CapabilityError",
    "CommandNotFoundError",
    "ConfigError",
    "EnclaveError",
    "EngineUnavailableError",
    "ForkRefusedError",
    "IsolationUnavailableError",
    "NotAllowedError",
    "PoolEmptyError",
    "PoolTimeoutError",
    "PortRefusedError",
    "PortTimeoutError",
    "QuotaExceededError",
    "SandboxLostError",
    "SandboxNotFoundError",
    "SandboxStartError",
    "SandboxStateError",
    "ServerUnreachableError",
    "SnapshotNotFoundError",
    "SnapshotStoreError",
    "StoreUnavailableError",
    "ToolNotFoundError",
    "UnknownTypeError",
]


class EnclaveError(Exception):
    """Something that is not the program's doing went wrong.

    Errors can be pickled and copied: they cross processes and threads.

    Args:
        message: what is wrong, without what to do about it.
        remedy: what exactly to do: a command, a setting, a package.
    """

    code: ClassVar[str] = "enclave_error"
    http_status: ClassVar[int] = 500

    message: str
    remedy: str | None

    def __init__(self, message: str = "", *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        if not self.remedy:
            return self.message
        if not self.message:
            return self.remedy
        return f"{self.message.rstrip('. ')}. What to do: {self.remedy}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Constructors differ and some make the message themselves: so the state travels, not the
        # arguments.
        return _rebuild, (type(self), self.args), self.__dict__.copy()


def _rebuild(kind: type[EnclaveError], args: tuple[Any, ...]) -> EnclaveError:
    error = kind.__new__(kind)
    error.args = args
    return error


class ConfigError(EnclaveError, ValueError):
    """What the caller gave is not valid."""

    code = "config"
    http_status = 400


class UnknownTypeError(EnclaveError, ValueError):
    """Nothing is registered under that name: no sandbox type, tool or manager."""

    code = "unknown_type"
    http_status = 400


class SandboxNotFoundError(EnclaveError, ValueError):
    """No sandbox has that id."""

    code = "sandbox_not_found"
    http_status = 404

    def __init__(self, sandbox_id: str, *, remedy: str | None = None) -> None:
        super().__init__(f"Sandbox {sandbox_id} not found", remedy=remedy)
        self.sandbox_id = sandbox_id


class ToolNotFoundError(EnclaveError, ValueError):
    """The sandbox has no tool of that name."""

    code = "tool_not_found"
    http_status = 404


class CommandNotFoundError(EnclaveError, ValueError):
    """The sandbox has no command of that id: it never had, or has forgotten it since its end."""

    code = "command_not_found"
    http_status = 404

    def __init__(self, command_id: str, *, remedy: str | None = None) -> None:
        super().__init__(f"Command {command_id} not found", remedy=remedy)
        self.command_id = command_id


class SandboxStateError(EnclaveError, ValueError):
    """The sandbox or the manager is not in the state that the call needs."""

    code = "sandbox_state"
    http_status = 409


class CapabilityError(EnclaveError, NotImplementedError):
    """This box cannot do what was asked for.

    Args:
        capability: the name of what it lacks.
        available_in: the types of sandbox that have it where the machine allows it.
    """

    code = "capability"
    http_status = 501

    def __init__(
        self,
        capability: str,
        *,
        available_in: Iterable[str] = (),
        message: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.capability = capability
        self.available_in = tuple(available_in)
        if remedy is None and self.available_in:
            remedy = f"use a sandbox of type {' or '.join(self.available_in)}"
        super().__init__(
            message or f"This sandbox lacks the capability {capability}", remedy=remedy
        )


class IsolationUnavailableError(EnclaveError, RuntimeError):
    """This machine cannot give the isolation that was asked for; nothing weaker is used instead.

    Args:
        missing: names of what it lacks.
    """

    code = "isolation_unavailable"
    http_status = 503

    def __init__(
        self, message: str = "", *, missing: Iterable[str] = (), remedy: str | None = None
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.missing = list(missing)


class SandboxStartError(EnclaveError, RuntimeError):
    """The sandbox could not be started. Nothing of it is left."""

    code = "sandbox_start"
    http_status = 500


class SandboxLostError(EnclaveError):
    """The sandbox ended by itself or does not answer any more: what it was doing is unknown."""

    code = "sandbox_lost"
    http_status = 502


class EngineUnavailableError(EnclaveError):
    """The container engine cannot be reached."""

    code = "engine_unavailable"
    http_status = 503


class PoolEmptyError(EnclaveError, ValueError):
    """There is no pool to borrow from."""

    code = "pool_empty"
    http_status = 409

    def __init__(
        self,
        message: str = "Sandbox pool is empty, call initialize_pool first",
        *,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)


class PoolTimeoutError(EnclaveError, TimeoutError):
    """No sandbox of the pool was free in time.

    Args:
        timeout: the seconds that the caller gave.
    """

    code = "pool_timeout"
    http_status = 408

    def __init__(self, timeout: float, *, remedy: str | None = None) -> None:
        super().__init__(
            f"Timeout waiting for available sandbox from pool after {timeout}s", remedy=remedy
        )
        self.timeout = timeout


class NotAllowedError(EnclaveError):
    """A server's policy does not allow what was asked for."""

    code = "not_allowed"
    http_status = 403


class QuotaExceededError(EnclaveError):
    """The tenant has or does more than it may.

    Args:
        retry_after: seconds after which it may work; None where waiting does not help.
    """

    code = "quota_exceeded"
    http_status = 429

    def __init__(
        self, message: str = "", *, retry_after: float | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after = retry_after


class AuthenticationError(EnclaveError):
    """The key is missing or wrong."""

    code = "authentication"
    http_status = 401


class ServerUnreachableError(EnclaveError, ConnectionError):
    """The server does not answer."""

    code = "server_unreachable"
    http_status = 503


class StoreUnavailableError(EnclaveError):
    """The server's database does not answer, so nobody can be let in. Nothing was done."""

    code = "store_unavailable"
    http_status = 503


class PortRefusedError(EnclaveError, ConnectionRefusedError):
    """Nothing in the sandbox takes connections at that port.

    Args:
        port: the number of the port.
    """

    code = "port_refused"
    http_status = 409

    def __init__(self, port: int, *, remedy: str | None = None) -> None:
        super().__init__(f"Nothing listens on port {port} of the sandbox", remedy=remedy)
        self.port = port


class PortTimeoutError(EnclaveError, TimeoutError):
    """What listens at that port of the sandbox has not taken the connection in time.

    Args:
        port: the number of the port.
        timeout: the seconds that were waited.
    """

    code = "port_timeout"
    http_status = 408

    def __init__(self, port: int, timeout: float, *, remedy: str | None = None) -> None:
        super().__init__(
            f"Port {port} of the sandbox took no connection within {timeout:g} s", remedy=remedy
        )
        self.port = port
        self.timeout = timeout


class ForkRefusedError(EnclaveError):
    """Something in the sandbox cannot be forked.

    Args:
        blockers: what it is, one text each.
    """

    code = "fork_refused"
    http_status = 409

    def __init__(
        self, message: str = "", *, blockers: Iterable[str] = (), remedy: str | None = None
    ) -> None:
        self.blockers = list(blockers)
        text = message or f"The sandbox cannot be forked: {'; '.join(self.blockers)}"
        super().__init__(text, remedy=remedy)


class SnapshotNotFoundError(EnclaveError, ValueError):
    """There is no snapshot of that name."""

    code = "snapshot_not_found"
    http_status = 404

    def __init__(self, name: str, *, remedy: str | None = None) -> None:
        super().__init__(f"There is no snapshot {name!r}", remedy=remedy)
        self.name = name


class SnapshotStoreError(EnclaveError):
    """What snapshots are stored in cannot be read or written: its disk is full, say, or what is
    there is damaged. Nothing has changed."""

    code = "snapshot_store"
    http_status = 507
