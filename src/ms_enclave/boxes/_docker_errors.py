"""What a container engine says, as errors of ours: one table, which keeps the engine's words.

Callers search for those words and retry, so they always stand in the message. Pure.
"""

from __future__ import annotations

import re

from ms_enclave.errors import (
    ConfigError,
    EnclaveError,
    EngineUnavailableError,
    SandboxLostError,
    SandboxStartError,
)

__all__ = ["UNREACHABLE", "explain", "unreachable"]

UNREACHABLE = 900
"""The status that stands for an engine that could not even be asked."""

_START = "start the engine (systemctl start docker), or set DOCKER_HOST to where one listens"
_PERMISSION = (
    "join the group that may use the socket (sudo usermod -aG docker $USER, then log in again), "
    "or use a rootless engine"
)

_ROWS: tuple[tuple[str, type[EnclaveError], str], ...] = (
    (r"permission denied.*(docker|podman)|permission denied.*\.sock|Errno 13",
     EngineUnavailableError, _PERMISSION),
    (r"no space left on device|disk quota exceeded", SandboxStartError,
     "free space on the engine's disk (docker system df, docker system prune)"),
    (r"port is already allocated|address already in use", SandboxStartError,
     "choose another port of the host in `ports`, or none, and the engine chooses one"),
    (r"no such image|manifest unknown|manifest for .* not found|pull access denied"
     r"|repository .* not found", SandboxStartError,
     "check the name of the image; build or load it (docker build, docker load), or let it be "
     "pulled with pull='missing'"),
    (r"no matching manifest|does not match the specified platform|exec format error",
     SandboxStartError, "use an image for this machine's architecture, or set `platform`"),
    (r"bind source path does not exist|no such file or directory.*mount"
     r"|error while creating mount source path|invalid mount config|invalid volume specification",
     ConfigError, "check the folders of `volumes`: they must exist where the engine runs"),
    (r"executable file not found|exec: .*no such file or directory", SandboxStartError,
     "use an image that has it"),
    (r"unable to find user|no matching entries in (passwd|group) file", ConfigError,
     "name a user that the image has, or a number"),
    (r"unknown or invalid runtime|invalid runtime|unknown runtime", ConfigError,
     "install the runtime and name it in the engine's daemon.json, or leave `runtime` out"),
    (r"could not select device driver", ConfigError,
     "install the GPU's container toolkit, or leave `gpus` out"),
    (r"network .* not found|no such network|could not find (the )?network", ConfigError,
     "make the network first (docker network create), or name another one"),
    (r"already in use by container|name .* is already in use", SandboxStartError,
     "choose another sandbox_id, or remove the container that has the name"),
    (r"x509|tls|TLS handshake|registry|dial tcp|lookup .* no such host|i/o timeout|EOF",
     SandboxStartError,
     "the image could not be fetched: see that its registry can be reached, or load the image "
     "and use pull='never'"),
)  # fmt: skip
"""Words of an engine, what they are for a caller, and what to do. The first that fits counts."""

_TABLE = [(re.compile(words, re.IGNORECASE | re.DOTALL), kind, do) for words, kind, do in _ROWS]


def unreachable(words: str) -> EngineUnavailableError:
    """The error for an engine that does not answer."""
    remedy = _PERMISSION if re.search(r"permission denied", words, re.IGNORECASE) else _START
    return EngineUnavailableError(f"The container engine cannot be reached: {words}", remedy=remedy)


def explain(status: int, words: str, doing: str, *, running: bool = False) -> EnclaveError:
    """The error for what an engine answered.

    Args:
        status: of HTTP; `UNREACHABLE` where there was no answer.
        words: what it said.
        doing: what it was asked for, as `start the sandbox`.
        running: whether the sandbox was there already: what is then not there is lost.
    """
    words = words.strip() or f"status {status}"
    if status == UNREACHABLE:
        return unreachable(words)
    text = f"The container engine could not {doing}: {words}"
    if running and (status == 404 or re.search(r"is not running|is paused", words)):
        return SandboxLostError(text)
    for pattern, kind, remedy in _TABLE:
        if pattern.search(words):
            return kind(text, remedy=remedy)
    if status == 400:
        return ConfigError(text, remedy="look at what the sandbox's config asks of the engine")
    return SandboxLostError(text) if running else SandboxStartError(text)
