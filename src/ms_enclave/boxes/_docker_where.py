"""Which engine is meant: what `docker` itself would use, or what listens at the usual places."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import aiodocker

from ms_enclave.boxes._docker_errors import explain, unreachable

if TYPE_CHECKING:
    import ssl

__all__ = ["find_engine", "is_local"]

_UNIX = "unix://"


def is_local(url: str) -> bool:
    """Whether an engine's socket is one of this machine, as it seems."""
    return url.startswith(_UNIX)


def find_engine() -> tuple[str, ssl.SSLContext | None]:
    """Where the engine is, and how it is to be greeted there. Reads files.

    Raises:
        EngineUnavailableError: none is named, and none listens at the usual places.
    """
    try:
        host, tls = _named()
    except aiodocker.DockerError as error:
        raise explain(error.status, str(error), "be found") from error
    if host is None:
        host = next((f"{_UNIX}{place}" for place in _usual_places() if place.is_socket()), None)
    if host is None:
        raise unreachable("there is none at the usual places")
    return host, tls


def _named() -> tuple[str | None, ssl.SSLContext | None]:
    """What the current context or the environment names, as `docker` itself understands them."""
    docker = aiodocker.Docker
    host, tls = os.environ.get("DOCKER_HOST") or None, None
    if host is None or "DOCKER_CONTEXT" in os.environ:
        endpoint = docker._get_docker_context_endpoint()  # pyright: ignore[reportPrivateUsage] - else it reads files on the loop
        if endpoint is not None:
            return endpoint.host, docker._create_context_ssl_context(endpoint)  # pyright: ignore[reportPrivateUsage] - the same
    if host is not None and os.environ.get("DOCKER_TLS_VERIFY", "0") == "1":
        tls = docker._docker_machine_ssl_context()  # pyright: ignore[reportPrivateUsage] - the same
    return host, tls


def _usual_places() -> list[Path]:
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    return [
        Path("/run/docker.sock"),
        Path("/var/run/docker.sock"),
        Path.home() / ".docker/run/docker.sock",
        runtime / "docker.sock",
        runtime / "podman/podman.sock",
        Path("/run/podman/podman.sock"),
    ]
