"""`ms-enclave keys`: who may use a server that has a store."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ms_enclave.cli.report import EXIT_OURS, complain, plain
from ms_enclave.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqlalchemy import Connection

    from ms_enclave.server.store import Store
    from ms_enclave.server.store.people import KeyRow

__all__ = ["STORE_VARIABLE", "app", "read_json", "read_object"]

STORE_VARIABLE = "MS_ENCLAVE_STORE"
"""The environment's name for where the store is."""

_CALLED: dict[type[Any], str] = {dict: "an object", list: "a list"}
_DAY = 24 * 3600.0

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the keys of a server's store.")

StoreOption = Annotated[
    str,
    typer.Option(
        metavar="FILE|URL",
        envvar=STORE_VARIABLE,
        show_default=False,
        help="The server's store: a file, or postgresql://… In the environment nobody else on the "
        "machine sees a password in it.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print them for programs.")]


@app.command("make")
def make(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Whose it is; made if new.")],
    store: StoreOption,
    note: Annotated[str, typer.Option(help="What it is for, for who lists it.")] = "",
    days: Annotated[
        float | None, typer.Option(min=0.001, help="How long it is good for.", show_default=False)
    ] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="It may read the audit log of all tenants.")
    ] = False,
) -> None:
    """Make a key and print it: this once, since only its hash is kept."""
    with _opened(store) as opened:
        from ms_enclave.server.store import make_key
        from ms_enclave.server.store.people import add_key

        key = make_key()
        seconds = None if days is None else days * _DAY

        def work(connection: Connection) -> None:
            add_key(
                connection, key, tenant, now=time.time(), note=note, seconds=seconds, is_admin=admin
            )
            detail = {"id": key.id, "admin": True} if admin else {"id": key.id}
            _note(connection, tenant, "make_key", detail)

        opened.write(work)
    typer.echo(key.text)
    typer.echo(f"key {key.id} of tenant {tenant}; it is shown only now", err=True)


@app.command("list")
def list_all(
    store: StoreOption,
    tenant: Annotated[str | None, typer.Option(help="Only this one's.")] = None,
    as_json: Json = False,
) -> None:
    """List keys: their ids, never themselves."""
    from dataclasses import asdict

    with _opened(store) as opened:
        from ms_enclave.server.store.people import list_keys

        found = opened.read(lambda connection: list_keys(connection, tenant))
    if as_json:
        typer.echo(json.dumps([asdict(key) for key in found], indent=2))
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table("Key", "Tenant", "Made", "State", "Note", box=SIMPLE)
    for key in found:
        table.add_row(key.id, key.tenant, _day(key.made_at), _state(key), plain(key.note))
    Console().print(table)


@app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its id, as `list` has it.")],
    store: StoreOption,
) -> None:
    """Have a key refused from the next request on. Its tenant's sandboxes stay."""
    with _opened(store) as opened:
        from ms_enclave.server.store.people import find_key, revoke_key

        def work(connection: Connection) -> bool:
            found = find_key(connection, key)
            if found is not None:
                _note(connection, found.tenant, "revoke_key", {"id": key})
            return revoke_key(connection, key, time.time())

        known = opened.write(work)
    if not known:
        raise ConfigError(f"there is no key {plain(key)}", remedy="ms-enclave keys list")


@app.command("tenant")
def tenant(
    name: Annotated[str, typer.Argument(metavar="TENANT", help="Made if new.")],
    store: StoreOption,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="JSON: what it may ask for."),
    ] = None,
    quotas: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="JSON: how much it may have and do."),
    ] = None,
) -> None:
    """Give a tenant a policy or quotas in the place of the server's, from its next request on; `{}`
    is the default of each."""
    from ms_enclave.server import Policy, Quotas
    from ms_enclave.server.server import settled

    what: dict[str, Any] = {}
    for key, kind, file in (("policy", Policy, policy), ("quotas", Quotas, quotas)):
        said = read_object(file)
        if said is not None:
            settled(kind, said)
            what[key] = said
    with _opened(store) as opened:
        from ms_enclave.server.store.people import set_tenant

        def work(connection: Connection) -> None:
            set_tenant(connection, name, time.time(), **what)
            _note(connection, name, "set_tenant", {"what": sorted(what)})

        opened.write(work)


@app.command("tenants")
def tenants(store: StoreOption) -> None:
    """Print the tenants with what each is held to, as JSON."""
    from dataclasses import asdict

    with _opened(store) as opened:
        from ms_enclave.server.store.people import list_tenants

        found = opened.read(list_tenants)
    typer.echo(json.dumps([asdict(each) for each in found], indent=2))


def read_object(file: Path | None) -> dict[str, Any] | None:
    """The object in a file of JSON; None where there is no file. Raises ConfigError."""
    return None if file is None else read_json(file, dict)


def read_json(file: Path, kind: type[Any]) -> Any:
    """What a file of JSON holds. Raises ConfigError where it holds something else, or nothing."""
    try:
        found = json.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{file} is no JSON: {error}") from None
    if not isinstance(found, kind):
        raise ConfigError(f"{file} must hold {_CALLED[kind]}")
    return found


@app.command("audit")
def audit(
    store: StoreOption,
    tenant: Annotated[str | None, typer.Option(help="Only of this one.")] = None,
    sandbox: Annotated[str | None, typer.Option(help="Only about this one.")] = None,
    last: Annotated[int, typer.Option(min=1, help="So many of the last.")] = 1000,
) -> None:
    """Print who did what, when, to what, and what came of it: a line of JSON each, oldest first."""
    with _opened(store) as opened:
        from ms_enclave.server.store.entries import list_entries

        found = opened.read(
            lambda connection: list_entries(connection, tenant=tenant, sandbox=sandbox, most=last)
        )
    for entry in found:
        typer.echo(json.dumps(entry))


def _note(connection: Connection, tenant: str, action: str, detail: dict[str, Any]) -> None:
    from ms_enclave.server.audit import Ending, Entry
    from ms_enclave.server.store.entries import add_entry, end_entry

    entry = Entry(time.time(), tenant, None, action, detail=detail)
    end_entry(connection, Ending(add_entry(connection, entry), "ok", 0.0))


@contextmanager
def _opened(url: str) -> Generator[Store, None, None]:
    try:
        from ms_enclave.server.store import Store

        store = Store(url)
    except ModuleNotFoundError as error:
        if error.name not in {"sqlalchemy", "alembic", "psycopg"}:
            raise
        extra = "postgres" if error.name == "psycopg" else "server"
        complain(f"a store needs {error.name}", f"pip install 'ms-enclave[{extra}]'")
        raise typer.Exit(EXIT_OURS) from None
    try:
        yield store
    finally:
        store.close()


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))


def _state(key: KeyRow) -> str:
    if key.revoked_at is not None:
        return f"revoked {_day(key.revoked_at)}"
    if key.expires_at is None:
        return "good"
    over = key.expires_at <= time.time()
    return f"{'over since' if over else 'good until'} {_day(key.expires_at)}"
