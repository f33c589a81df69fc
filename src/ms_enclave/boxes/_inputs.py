"""What callers give to a sandbox, checked before anything is done with it. Pure.

Whatever is wrong here is the caller's mistake and says so (`ConfigError`, a `ValueError`): it never
reaches a box.
"""

from __future__ import annotations

import io
import math
import posixpath
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, TypeVar, cast

from pydantic import BaseModel

from ms_enclave.errors import ConfigError
from ms_enclave.model import Limits, SandboxConfig
from ms_enclave.model.base import say_what_is_invalid

__all__ = [
    "ID_ALPHABET",
    "coerce_config",
    "coerce_limits",
    "command_argv",
    "fork_ids",
    "merge_environment",
    "new_sandbox_id",
    "normalise_stdin",
    "resolve_cwd",
    "validate_args",
    "validate_code",
    "validate_command",
    "validate_count",
    "validate_line",
    "validate_sandbox_id",
    "validate_shell_name",
    "validate_size",
    "validate_tag",
    "validate_timeout",
    "validate_user",
]

ID_ALPHABET = "23456789abcdefghijkmnopqrstuvwxyz"
"""Letters of a sandbox id: none that is easily read as another."""

_MOST_TAG = 200
_MOST_FORKS = 10_000
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


_Model = TypeVar("_Model", bound=BaseModel)


# --- the sandbox ---


def new_sandbox_id() -> str:
    """Eight letters that are read without mistakes."""
    return "".join(secrets.choice(ID_ALPHABET) for _ in range(8))


def validate_sandbox_id(sandbox_id: object) -> str:
    """An id as a caller may give one: letters, digits, `_` and `-`, at most 64.

    Raises:
        ConfigError: it is anything else.
    """
    if not isinstance(sandbox_id, str) or not _ID.match(sandbox_id):
        raise ConfigError(f"sandbox_id must be 1 to 64 letters, digits, _ or -: {sandbox_id!r}")
    return sandbox_id


def fork_ids(n: object, given: Sequence[str] | None) -> list[str]:
    """The ids of `n` forks.

    Raises:
        ConfigError: `n` is no whole number from 1 on, or more than there can ever be, or the given
            ids are not so many, or none.
    """
    number = validate_count("n", n, 1)
    if number > _MOST_FORKS:
        raise ConfigError(f"{_MOST_FORKS} forks are the most at once, not {number}")
    if given is None:
        return [new_sandbox_id() for _ in range(number)]
    ids = [validate_sandbox_id(one) for one in given]
    if len(set(ids)) != number or len(ids) != number:
        raise ConfigError(f"sandbox_ids must be {number} different ids, not {ids}")
    return ids


def validate_unforkable(value: object) -> str:
    """ "refuse" or "drop". Raises ConfigError for anything else."""
    if value not in ("refuse", "drop"):
        raise ConfigError(f'unforkable must be "refuse" or "drop", not {value!r}')
    return str(value)


def coerce_config(
    config_class: type[SandboxConfig], config: SandboxConfig | Mapping[str, Any] | None
) -> SandboxConfig:
    """A backend's own config from whatever a caller has.

    The backend's own class is passed on as the same object: callers go on changing it until the
    sandbox starts. A more general one is converted with the fields that were set.

    Raises:
        ConfigError: a field is unknown or has a value it cannot have.
    """
    if config is None:
        return config_class()
    if isinstance(config, config_class):
        return config
    if isinstance(config, SandboxConfig):
        config = config.said()
    if not isinstance(config, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"a config must be a config object or a dict, not {type(config).__name__}"
        )
    return _validated(config_class, config, "sandbox config")


def coerce_limits(limits: Limits | Mapping[str, Any] | None) -> Limits | None:
    """Limits of one call from whatever a caller has.

    Raises:
        ConfigError: a limit is unknown or has a value it cannot have.
    """
    if limits is None or isinstance(limits, Limits):
        return limits
    if not isinstance(limits, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"limits must be Limits or a dict, not {type(limits).__name__}")
    return _validated(Limits, limits, "limits")


def _validated(model: type[_Model], values: Mapping[str, Any], what: str) -> _Model:
    try:
        return model.model_validate(dict(values))
    except ConfigError:
        raise
    except ValueError as error:  # pydantic's ValidationError is one
        raise ConfigError(f"Invalid {what}: {say_what_is_invalid(error)}") from None


# --- one call ---


def validate_command(command: object) -> str | list[str]:
    """The caller's command, unchanged in shape: a shell line stays a string, an argv a list.

    Raises:
        ConfigError: it is empty, of a wrong type, or holds something no program can be given.
    """
    if isinstance(command, str):
        if not command.strip():
            raise ConfigError("No command provided")
        return _text("command", command)
    argv = _texts("command", command)
    if not argv or not argv[0]:
        raise ConfigError("No command provided")
    return argv


def validate_args(args: object) -> tuple[str, ...]:
    """What a program finds in its `sys.argv` after its own name.

    Raises:
        ConfigError: it is no list of strings.
    """
    return tuple(_texts("args", args))


def _texts(what: str, values: object) -> list[str]:
    if isinstance(values, (str, bytes, bytearray)) or not isinstance(values, Sequence):
        kind = type(values).__name__
        raise ConfigError(f"{what} must be a list of strings, not {kind}")
    return [_text(what, item) for item in cast("Sequence[object]", values)]


def command_argv(command: str | list[str], shell: str) -> tuple[str, ...]:
    """What is executed: a string under the sandbox's `shell`, a list as it is."""
    if isinstance(command, str):
        return (shell, "-c", command)
    return tuple(command)


def validate_code(code: object) -> str:
    """The Python source to run. An empty program is a program.

    Raises:
        ConfigError: it is not text.
    """
    if not isinstance(code, str):
        raise ConfigError(f"code must be a string, not {type(code).__name__}")
    _encodable("code", code)
    return code


def validate_timeout(timeout: object, name: str = "timeout") -> float | None:
    """A time in seconds, or None where there is none, as for the sandbox's own time-out.

    Raises:
        ConfigError: it is not a finite number above zero.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise ConfigError(f"{name} must be a number of seconds, not {type(timeout).__name__}")
    if not math.isfinite(timeout) or timeout <= 0:
        raise ConfigError(f"{name} must be a finite number of seconds above 0, not {timeout}")
    return float(timeout)


def validate_count(name: str, value: object, least: int = 0) -> int:
    """A whole number that is not below `least`.

    Raises:
        ConfigError: it is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number from {least} on, not {value!r}")
    return value


def validate_line(line: object) -> str:
    """A line for a shell, or several.

    Raises:
        ConfigError: it is no text, empty, or text that no shell could be given.
    """
    given = validate_command(line)
    if not isinstance(given, str):
        raise ConfigError(f"a line must be text, not {type(line).__name__}")
    return given


def validate_shell_name(name: object) -> str:
    """The name of a shell: as a sandbox id.

    Raises:
        ConfigError: it is anything else.
    """
    if not isinstance(name, str) or not _ID.match(name):
        raise ConfigError(f"The name of a shell is 1 to 64 letters, digits, _ or -: {name!r}")
    return name


def validate_size(size: object, name: str = "pty") -> tuple[int, int] | None:
    """Rows and columns of a terminal, or None for no terminal.

    Raises:
        ConfigError: it is anything else, or one of them is not 1 to 9999.
    """
    if size is None:
        return None
    pair = cast("tuple[Any, ...]", size) if isinstance(size, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and 0 < side < 10000 for side in pair):
        raise ConfigError(f"{name} must be rows and columns from 1 to 9999, not {size!r}")
    return int(pair[0]), int(pair[1])


def validate_tag(tag: object) -> str | None:
    """What a caller writes on something to know it by: one line, or None.

    Raises:
        ConfigError: it is anything else, or longer than 200 characters.
    """
    if tag is None:
        return None
    if not isinstance(tag, str) or not tag.isprintable() or not 0 < len(tag) <= _MOST_TAG:
        raise ConfigError(f"tag must be a line of 1 to {_MOST_TAG} characters, not {tag!r}")
    return tag


def validate_user(user: object) -> str | int | None:
    """A user inside the sandbox, by name or number.

    Raises:
        ConfigError: it is neither.
    """
    if user is None:
        return None
    if isinstance(user, bool) or not isinstance(user, (str, int)):
        raise ConfigError(f"user must be a name or a number, not {type(user).__name__}")
    if isinstance(user, int):
        if not 0 <= user < 1 << 32:
            raise ConfigError(f"user must be a number from 0 to 4294967295, not {user}")
        return user
    if not user:
        raise ConfigError("user must not be empty")
    return _text("user", user)


def resolve_cwd(cwd: object, working_dir: str) -> str:
    """The folder to start in; a relative one is relative to the sandbox's working folder.

    Raises:
        ConfigError: it is not a path.
    """
    if cwd is None:
        return working_dir
    if not isinstance(cwd, str) or not cwd:
        raise ConfigError("cwd must be a path inside the sandbox")
    return posixpath.join(working_dir, _text("cwd", cwd))


def merge_environment(*layers: Mapping[str, str] | None) -> dict[str, str]:
    """One environment of several layers, the later ones winning.

    Raises:
        ConfigError: a name or a value that no environment can hold.
    """
    merged: dict[str, str] = {}
    for layer in layers:
        if layer is None:
            continue
        _require_mapping(layer)
        for name, value in layer.items():
            if not _text("env name", name) or "=" in name:
                raise ConfigError(f"env holds a name that no environment can hold: {name!r}")
            merged[name] = _text(f"env value of {name}", value)
    return merged


def normalise_stdin(stdin: object) -> bytes | BinaryIO | None:
    """What the program reads; text is sent as UTF-8, None means an empty standard input.

    Raises:
        ConfigError: it is neither text nor bytes nor a binary file.
    """
    if stdin is None:
        return None
    if isinstance(stdin, str):
        return _encodable("stdin", stdin)
    if isinstance(stdin, (bytes, bytearray, memoryview)):
        return bytes(cast("bytes", stdin))
    if hasattr(stdin, "read") and not isinstance(stdin, io.TextIOBase):
        return cast("BinaryIO", stdin)
    kind = type(stdin).__name__
    raise ConfigError(f"stdin must be text, bytes or a binary file, not {kind}")


def _require_mapping(value: object) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"env must be a mapping of names to values, not {type(value).__name__}")


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{what} must be text, not {type(value).__name__}")
    if "\0" in value:
        raise ConfigError(f"{what} must not contain NUL bytes")
    _encodable(what, value)
    return value


def _encodable(what: str, value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} is not valid Unicode text: {error.reason}") from None


def validate_kernel_name(name: object) -> str:
    """The name of a kernel.

    Raises:
        ConfigError: it is no text of 1 to 200 characters.
    """
    if not isinstance(name, str) or not 0 < len(name) <= 200:
        raise ConfigError("The name of a kernel is a text of 1 to 200 characters")
    return _text("kernel name", name)


def validate_modules(modules: object) -> tuple[str, ...]:
    """Names of modules to be imported.

    Raises:
        ConfigError: one of them is no name that an import statement could have.
    """
    if isinstance(modules, str) or not isinstance(modules, Sequence):
        raise ConfigError("preload must be a list of module names")
    names = tuple(cast("Sequence[object]", modules))
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"preload: {name!r} is no name of a module")
    return cast("tuple[str, ...]", names)
