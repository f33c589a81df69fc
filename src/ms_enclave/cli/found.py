"""`ms-enclave ps` and `clean`: which sandboxes there are, and removing what nobody has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ms_enclave.model.diagnosis import FoundSandbox

__all__ = ["clean", "ps"]

_Type = Annotated[
    str | None, typer.Option("--type", metavar="TYPE", help="Only sandboxes of this type.")
]


def ps(
    sandbox_type: _Type = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """List the sandboxes of this machine, whoever made them, and whether their owner still lives.

    Of type process, other users' are shown to root only; what a dead owner has left without being
    asked to (a station that hangs, control groups) is a row, too.
    """
    found = _find(sandbox_type)
    if json:
        from json import dumps

        typer.echo(dumps([one.model_dump(mode="json") for one in found], indent=2))
        return
    if not found:
        typer.echo("There are none.")
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ms_enclave.cli.report import plain

    table = Table("Id", "Type", "State", "Created", "Owner", "Kept", box=SIMPLE)
    for one in found:
        kept = "yes" if one.kept else ""
        # Whoever may make a container may write our labels on it.
        row = (one.id, one.sandbox_type, one.state, one.created, one.owner, kept)
        table.add_row(*(Text(plain(text)) for text in row))
    Console().print(table)


def clean(
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Only these; with --force, whoever has them."),
    ] = None,
    sandbox_type: _Type = None,
    force: Annotated[
        bool, typer.Option("--force", help="Remove the named ones even from a living owner.")
    ] = False,
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Also what was to be kept, what another machine may have made, and what is there "
            "for later sandboxes.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed, and leave it.")
    ] = False,
) -> None:
    """Remove sandboxes whose owner has ended. What a living process has is not touched, unless it
    is named and --force is said."""
    from ms_enclave import loop
    from ms_enclave.cli.report import plain

    if force and not ids:
        raise typer.BadParameter("--force needs the ids of the sandboxes that it is meant for")
    found = _find(sandbox_type)
    unknown = sorted(set(ids or []) - {one.id for one in found})
    if unknown:
        raise typer.BadParameter(f"there is no sandbox {', '.join(unknown)}")
    wanted = [one for one in found if not ids or one.id in ids]
    if ids and not force:
        held = [one.id for one in wanted if one.owner == "alive"]
        if held:
            raise typer.BadParameter(f"its owner lives: {', '.join(held)} (--force removes it)")
    chosen = [one for one in wanted if force or _may_go(one, everything=everything or bool(ids))]
    if not dry_run:
        loop.call(_remove, chosen)
    cleared = loop.call(_clear, sandbox_type, dry_run) if everything and not ids else []
    for words in (*(f"{one.sandbox_type} {one.id}" for one in chosen), *cleared):
        typer.echo(f"{'would remove' if dry_run else 'removed'} {plain(words)}")
    if not chosen and not cleared:
        typer.echo("There is nothing to remove.")


def _may_go(one: FoundSandbox, *, everything: bool) -> bool:
    if one.owner == "alive":
        return False
    return everything or (one.owner == "gone" and not one.kept)


def _find(sandbox_type: str | None) -> list[FoundSandbox]:
    """All that can be seen of a type, or of every one; what does not answer is said."""
    from ms_enclave import loop

    found, silent = loop.call(_look, sandbox_type)
    for text in silent:
        typer.echo(text, err=True)
    return found


def _types(sandbox_type: str | None) -> list[str]:
    from ms_enclave.boxes.factory import SandboxFactory

    return SandboxFactory.get_available_types() if sandbox_type is None else [sandbox_type]


async def _look(sandbox_type: str | None) -> tuple[list[FoundSandbox], list[str]]:
    import anyio.to_thread

    from ms_enclave.boxes.factory import SandboxFactory
    from ms_enclave.errors import EngineUnavailableError

    found: list[FoundSandbox] = []
    silent: list[str] = []
    for name in _types(sandbox_type):
        kind = await anyio.to_thread.run_sync(SandboxFactory.get_class, name)
        try:
            found += await kind.find_all()
        except EngineUnavailableError as error:
            silent.append(f"{name}: {error.message}")
    return found, silent


async def _clear(sandbox_type: str | None, dry_run: bool) -> list[str]:
    """Remove what is no sandbox, and kept for later ones; gives a few words for each."""
    import anyio.to_thread

    from ms_enclave.boxes.factory import SandboxFactory
    from ms_enclave.errors import EngineUnavailableError

    cleared: dict[str, str] = {}
    for name in _types(sandbox_type):
        kind = await anyio.to_thread.run_sync(SandboxFactory.get_class, name)
        try:
            for words in await kind.clear_cache(dry_run=dry_run):
                cleared.setdefault(words, name)  # `docker` and `docker_notebook` share theirs
        except EngineUnavailableError:  # said already
            continue
    return [f"{name} {words}" for words, name in cleared.items()]


async def _remove(chosen: list[FoundSandbox]) -> None:
    from ms_enclave.boxes.factory import SandboxFactory

    for name in dict.fromkeys(one.sandbox_type for one in chosen):
        mine = [one for one in chosen if one.sandbox_type == name]
        await SandboxFactory.get_class(name).remove_found(mine)
