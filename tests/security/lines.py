"""Single lines of the tables and plans that walls are made of, to be deleted one at a time.

Where `switches.py` names walls, here nobody has chosen: `scripts/switches --lines 10` deletes ten
at random. What counts as a line: one whose absence still compiles, changes what the source means,
and takes away no name that the rest would miss at once.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["REGIONS", "Deletion", "Region", "deletions", "deletions_in"]

_POSTURE = "tests/security/test_posture.py"
_RLIMITS = f"{_POSTURE}::test_the_limits_of_a_program_are_these"
_LIMITS = "tests/security/test_limits.py"
_POLICY = "tests/unit/spawner/test_policy.py"
_NO_LAYERS = "tests/contract/test_sandbox.py::TestNoLayers::test_what_was_written_is_read"
_PLAN = "tests/unit/spawner/test_slot_plan.py"
_GROUPS = "tests/unit/spawner/test_cgroups.py"


@dataclass(frozen=True)
class Region:
    """A stretch of a file."""

    file: str
    """Below `src/ms_enclave`."""
    first: str
    """How its first line begins."""
    last: str
    """How the line after its last one begins."""
    tests: tuple[str, ...]
    """Of which one at least must fail without any line of it."""
    harmless: tuple[str, ...] = ()
    """Beginnings of lines that hold no wall: what each is for stands beside it."""


@dataclass(frozen=True)
class Deletion:
    """One line of a file, gone."""

    file: str
    number: int
    text: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.file}:{self.number}: {self.text.strip()}"

    def without(self, text: str) -> str | None:
        """The file without it; None where it stands there no more."""
        rows = text.splitlines(keepends=True)
        if self.number > len(rows) or rows[self.number - 1].rstrip("\n") != self.text:
            return None
        return "".join(rows[: self.number - 1] + rows[self.number :])


REGIONS = (
    Region("spawner/seccomp.py", "_SOCKETS = [", "def checked_calls", (_POLICY,)),
    Region("spawner/_call_numbers.py", "X86_64 = {", "# fmt: on", (_POLICY,)),
    Region("spawner/slot.py", "_SHARED_MEMORY", "class SlotError", (_PLAN,)),
    Region("spawner/slot.py", "def init_steps", "def _mount", (_PLAN, _POSTURE)),
    Region("spawner/slot.py", "def _cover_proc", "def _enter_root", (_PLAN, _POSTURE)),
    Region("spawner/slot.py", "def _give_up", "# --- what a sandbox", (_PLAN, _POSTURE)),
    Region(
        "spawner/root.py",
        "def open_trees",
        "def guest_folder",
        (_POSTURE, _NO_LAYERS),
        harmless=(
            "os.close(root)",  # the station's own, which no process of a sandbox inherits
            'os.chdir("/")',  # where pivot_root(".", ".") leads anyway
            '_write(f".{RESOLVER}',  # no wall: whom a sandbox with a network asks for names
        ),
    ),
    Region(
        "boxes/_process_request.py",
        "def box_limits",
        "def rlimits",
        (_LIMITS,),
        harmless=('"preload"',),  # no limit; the station waits for it
    ),
    Region("boxes/_process_request.py", "def rlimits", "def command_document", (_RLIMITS, _LIMITS)),
    Region("spawner/cgroups.py", "    def limit(self", "    @property", (_GROUPS, _LIMITS)),
)


def deletions(source: Path) -> list[Deletion]:
    """Every line that counts, of the package in the folder `source`."""
    return [found for region in REGIONS for found in deletions_in(source, region)]


def deletions_in(source: Path, region: Region) -> Iterator[Deletion]:
    """Every line that counts, of one region."""
    text = (source / region.file).read_text(encoding="utf-8")
    rows = text.splitlines()
    first = next(at for at, row in enumerate(rows) if row.startswith(region.first))
    last = next(at for at in range(first + 1, len(rows)) if rows[at].startswith(region.last))
    meant = ast.dump(_without_words(ast.parse(text)))
    names = _bound(ast.parse(text))
    for at in range(first, last):
        row = rows[at]
        if not row.strip() or row.strip().startswith(("#", *region.harmless)):
            continue
        found = Deletion(region.file, at + 1, row, region.tests)
        try:
            tree = ast.parse(found.without(text) or "")
        except SyntaxError:
            continue
        if ast.dump(_without_words(tree)) != meant and _bound(tree) == names:
            yield found


def _without_words(tree: ast.Module) -> ast.Module:
    """The same without docstrings."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [each for each in body if not _is_words(each)]
            node.body = kept or [ast.Pass()]  # pyright: ignore[reportAttributeAccessIssue]
    return tree


def _is_words(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _bound(tree: ast.Module) -> set[str]:
    """Names that are given a value somewhere."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and _stores(node)}
    kinds = (ast.FunctionDef, ast.ClassDef)
    return names | {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def _stores(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store)
