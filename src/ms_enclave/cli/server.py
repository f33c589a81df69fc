"""`ms-enclave server`: the sandboxes of this machine, for others."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ms_enclave.cli.keys import STORE_VARIABLE, read_json, read_object
from ms_enclave.cli.lasting import stay
from ms_enclave.cli.report import EXIT_OURS, complain

if TYPE_CHECKING:
    from collections.abc import Generator

    from ms_enclave.server import SandboxServer

__all__ = ["server"]


_DESCRIPTORS = 1 << 16


class Log(str, Enum):
    """How calls are logged."""

    TEXT = "text"
    JSON = "json"
    NONE = "none"


def server(
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for one that is free.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="MS_ENCLAVE_API_KEY",
            help="The key that everybody needs: 20 characters or more. In the environment nobody "
            "else on the machine sees it.",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines in without a key.")
    ] = False,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|URL",
            envvar=STORE_VARIABLE,
            show_default=False,
            help="Let in who has a key of `ms-enclave keys`, each tenant apart: a file, or "
            "postgresql://…",
        ),
    ] = None,
    state_dir: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            show_default=False,
            help="Where sandboxes are kept for the next server: beside the store's file.",
        ),
    ] = None,
    quotas: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="JSON: what a tenant may have that has no quotas of its own.",
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="JSON: what may be asked for. Without it nothing of this machine."
        ),
    ] = None,
    webhooks: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON: a list of who is told what happens to sandboxes."),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Serve the figures of all tenants there, on this machine alone and without a key.",
        ),
    ] = None,
    log: Annotated[Log, typer.Option(help="What is written to stderr about each call.")] = Log.TEXT,
) -> int:
    """Serve sandboxes over HTTP, until a signal ends it."""
    from ms_enclave.server import create_server
    from ms_enclave.server.server import NEEDED

    try:
        from ms_enclave.server.logs import logging_to_stderr

        more: dict[str, Any] = {} if state_dir is None else {"state_dir": state_dir}
        made = create_server(
            api_key=api_key or None,
            store=store,
            quotas=read_object(quotas),
            policy=read_object(policy),
            webhooks=() if webhooks is None else read_json(webhooks, list),
            **more,
        )
        _have_descriptors()
        with ExitStack() as stack:
            if log is not Log.NONE:
                stack.enter_context(logging_to_stderr(as_json=log is Log.JSON))
            if metrics_port is not None:
                stack.enter_context(_metrics_served(made, metrics_port))
            made.run(host, port, insecure=insecure, on_ready=_say)
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        complain(f"the server needs {error.name}", "pip install 'ms-enclave[server]'")
        return EXIT_OURS
    except OSError as error:
        complain(f"{host}:{port} cannot be had: {error.strerror or error}")
        return EXIT_OURS
    return 0


@contextmanager
def _metrics_served(server: SandboxServer, port: int) -> Generator[None, None, None]:
    """Serve them from a thread of its own, so that they are there while calls are not."""
    from prometheus_client import start_http_server

    serving, thread = start_http_server(port, "127.0.0.1", server.registry)
    sys.stderr.write(f"figures at http://127.0.0.1:{serving.server_port}/metrics\n")
    try:
        yield
    finally:
        serving.shutdown()
        serving.server_close()
        thread.join()


def _have_descriptors() -> None:
    """As many as there may be: a connection takes one, and a thousand is what is usual."""
    try:
        import resource
    except ImportError:  # no POSIX: such a limit is not known there
        return
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, _DESCRIPTORS)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _say(address: str) -> None:
    stay()
    sys.stderr.write(f"ms-enclave serves at {address}\n")
    sys.stderr.flush()
