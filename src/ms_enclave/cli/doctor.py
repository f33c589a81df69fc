"""`ms-enclave doctor`: which sandboxes work here, how strong they are and what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from ms_enclave.model.diagnosis import Diagnosis

__all__ = ["doctor"]

_EXIT_NOTHING_WORKS = 1


def doctor(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="TYPE", help="Look at these types only.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Print only the line that mends what stands in the way.")
    ] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="With --fix: run that line, too, and look again.")
    ] = False,
    attack: Annotated[
        bool,
        typer.Option("--attack", help="Attack what works, and say what it withstands."),
    ] = False,
    exhaust: Annotated[
        bool,
        typer.Option(
            "--exhaust", help="With --attack: use up memory, processes, disk and more, too."
        ),
    ] = False,
) -> None:
    """Say which sandbox types work here, which guards are active and what to do about the rest.

    Every type is tried for real. The exit code is 0 where at least one of them works, and, with
    --attack, withstands everything that it is to.
    """
    from ms_enclave import loop

    for wrong, text in (
        (apply and not fix, "--apply goes with --fix"),
        (attack and fix, "--attack does not go with --fix"),
        (exhaust and not attack, "--exhaust goes with --attack"),
    ):
        if wrong:
            raise typer.BadParameter(text)
    found = loop.call(_diagnose, names or [])
    if attack:
        raise typer.Exit(_attack(found, as_json=json, exhaust=exhaust))
    if fix:
        if _mend(found, apply=apply):
            found = loop.call(_diagnose, names or [])
            if not any(each.works for each in found):
                typer.echo("it still does not work: see ms-enclave doctor", err=True)
    elif json:
        from json import dumps

        typer.echo(dumps([each.model_dump(mode="json") for each in found], indent=2))
    else:
        from rich.console import Console

        _show(Console(), found)
    raise typer.Exit(0 if any(each.works for each in found) else _EXIT_NOTHING_WORKS)


def _attack(found: Sequence[Diagnosis], *, as_json: bool, exhaust: bool) -> int:
    from rich.console import Console

    from ms_enclave import loop
    from ms_enclave.cli import _attack as attacks

    scores = loop.call(attacks.attack, found, Console(stderr=True), exhaust=exhaust)
    if as_json:
        from json import dumps

        typer.echo(dumps(attacks.as_json(scores), indent=2))
    else:
        console = Console()
        _show(console, found)
        if scores:
            attacks.show(console, scores)
    return _EXIT_NOTHING_WORKS if not scores or attacks.is_open(scores) else 0


def _mend(found: Sequence[Diagnosis], *, apply: bool) -> bool:
    """Print the line that mends the first thing in the way, and run it if that is asked for;
    whether it was run."""
    import os
    import subprocess

    missing = [problem for each in found if not each.works for problem in each.problems]
    blocking = [problem for problem in missing if problem.blocks]
    if not blocking:
        typer.echo("nothing has to be mended", err=True)
        return False
    line = blocking[0].command
    if line is None:
        typer.echo(blocking[0].remedy)
        if apply:
            typer.echo("that is not for this program to do", err=True)
        return False
    if os.geteuid() == 0:
        line = line.replace("sudo ", "")
    typer.echo(line)
    if not apply:
        return False
    path = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"  # where such programs are
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PATH": path},
        check=False,
    )
    if done.returncode != 0:
        typer.echo(f"it ended with exit code {done.returncode}", err=True)
    return True


async def _diagnose(names: Sequence[str]) -> list[Diagnosis]:
    from ms_enclave.boxes.factory import SandboxFactory

    return [await _look(name) for name in names or sorted(SandboxFactory.get_available_types())]


async def _look(name: str) -> Diagnosis:
    from ms_enclave.boxes.factory import SandboxFactory
    from ms_enclave.errors import UnknownTypeError
    from ms_enclave.model.diagnosis import Diagnosis, Problem

    try:
        return await SandboxFactory.get_class(name).diagnose()
    except UnknownTypeError:
        raise
    except Exception as error:  # noqa: BLE001 - one type that is broken must not hide the others
        problem = Problem(what=f"{type(error).__name__}: {error}", remedy="report it to its makers")
        return Diagnosis(sandbox_type=name, works=False, problems=[problem])


def _show(console: Console, found: Sequence[Diagnosis]) -> None:
    for each in found:
        tier = f", tier [bold]{each.tier}[/]" if each.tier else ""
        state = f"[green]works[/]{tier}" if each.works else "[red]does not work here[/]"
        console.print(f"[bold]{each.sandbox_type}[/]: {state}")
        for name, guard in sorted(each.guards.items()):
            colour = {"on": "green", "off": "red"}.get(guard, "dim")
            console.print(f"  [{colour}]{guard:>3}[/]  {name}")
        for tier, guards in each.by_name.items():
            console.print(f"  tier [bold]{tier}[/] [green]works[/] when it is asked for by name")
            active = ", ".join(sorted(name for name, state in guards.items() if state == "on"))
            console.print(f"    on: {active}", highlight=False)
        for problem in each.problems:
            mark = "[red]x[/]" if problem.blocks else "[yellow]![/]"
            console.print(f"  {mark} {_plain(problem.what)}", highlight=False)
            console.print(
                f"    [bold]do:[/] {_plain(problem.remedy)}", highlight=False, soft_wrap=True
            )
    if not any(each.works for each in found):
        console.print("No sandbox type works here yet.")


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
