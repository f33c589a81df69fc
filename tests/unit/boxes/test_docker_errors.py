"""What engines say, as errors that say what to do."""

from __future__ import annotations

import pytest

from ms_enclave.boxes._docker_errors import UNREACHABLE, explain
from ms_enclave.errors import (
    ConfigError,
    EnclaveError,
    EngineUnavailableError,
    SandboxLostError,
    SandboxStartError,
)


@pytest.mark.parametrize(
    ("status", "words", "kind", "remedy"),
    [
        (UNREACHABLE, "Cannot connect to Docker Engine via unix:///x [No such file]",
         EngineUnavailableError, "systemctl start docker"),
        (UNREACHABLE, "Cannot connect to unix:///var/run/docker.sock [Permission denied]",
         EngineUnavailableError, "usermod -aG docker"),
        (404, "No such image: nosuch:latest", SandboxStartError, "docker build"),
        (0, "manifest for nosuch:1 not found: manifest unknown", SandboxStartError, "name of"),
        (500, "write /var/lib/docker/x: no space left on device", SandboxStartError, "prune"),
        (500, "Bind for 127.0.0.1:80 failed: port is already allocated", SandboxStartError,
         "another port"),
        (500, "listen tcp4 127.0.0.1:80: bind: address already in use", SandboxStartError,
         "another port"),
        (400, "invalid mount config for type bind: bind source path does not exist: /x",
         ConfigError, "volumes"),
        (400, "unable to find user nobody7: no matching entries in passwd file", ConfigError,
         "a number"),
        (400, "unknown or invalid runtime name: runsc", ConfigError, "daemon.json"),
        (404, "network nosuch not found", ConfigError, "docker network create"),
        (409, "The container name /sandbox-a is already in use by container 5", SandboxStartError,
         "sandbox_id"),
        (400, "standard_init_linux.go: exec format error", SandboxStartError, "architecture"),
        (500, "something quite new", SandboxStartError, ""),
        (400, "something else", ConfigError, "config"),
    ],
)  # fmt: skip
def test_each_has_a_type_a_remedy_and_the_engines_words(
    status: int, words: str, kind: type[EnclaveError], remedy: str
) -> None:
    error = explain(status, words, "start the sandbox")
    assert type(error) is kind
    assert words in str(error)
    assert remedy in (error.remedy or "")


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "No such container: 5"), (409, "Container 5 is not running"), (500, "new")],
)
def test_what_was_there_and_is_not_any_more_is_lost(status: int, words: str) -> None:
    error = explain(status, words, "start a process in the sandbox", running=True)
    assert type(error) is SandboxLostError
    assert words in str(error)
