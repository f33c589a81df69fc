"""Every code block of the README and the documentation runs, in order, and prints what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import unittest
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


class ConsoleParser(CodeBlockParser):
    """A session in a shell: lines after ``$`` are typed, the others must be printed."""

    language = "console"

    def evaluate(self, example: Example) -> str | None:
        for line, expected in _session(str(example.parsed)):
            printed = _type(line)
            if printed != expected:
                return f"$ {line}\nexpected {expected!r}\nprinted  {printed!r}"
        return None


def _session(text: str) -> list[tuple[str, str]]:
    """The typed lines, each with what it must print."""
    parts = re.split(r"^\$ (.*)$", text, flags=re.MULTILINE)
    return [
        (line, printed.lstrip("\n").rstrip("\n"))
        for line, printed in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _type(line: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", line],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return (done.stdout + done.stderr).rstrip("\n")


SYBIL = Sybil(parsers=[PythonCodeBlockParser(), ConsoleParser(), SkipParser()])


@pytest.mark.namespaces
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_code_of_a_document_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    skipped: list[str] = []
    for example in SYBIL.parse(path).examples():
        try:
            example.evaluate()
        except unittest.SkipTest as reason:
            skipped.append(str(reason))
    if skipped:
        pytest.skip("the other examples run: " + "; ".join(skipped))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_links_of_a_document_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    missing = [
        target
        for target in targets
        if not re.match(r"[a-z]+:", target) and not (path.parent / target).exists()
    ]
    assert missing == []
