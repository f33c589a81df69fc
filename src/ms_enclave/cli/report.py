"""What the commands say to a person: one line on standard error."""

from __future__ import annotations

import sys

__all__ = ["EXIT_OURS", "complain", "plain"]

EXIT_OURS = 125
"""Exit code where the failure is ours, the machine's or the caller's; never the program's."""


_MOST = 200  # characters of what somebody else has named


def plain(text: str) -> str:
    """What somebody else has named, as it can be shown: on one line, without a command to the
    terminal, of bounded length."""
    shown = [c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:_MOST]]
    return "".join(shown) + ("…" if len(text) > _MOST else "")


def complain(message: str, remedy: str | None = None) -> None:
    """Say on one line what is wrong and what to do about it."""
    text = " ".join(message.split()).rstrip(".")
    if remedy:
        text = f"{text}; {' '.join(remedy.split())}"
    # Not `print`: a message may quote what the terminal's encoding cannot show.
    sys.stderr.buffer.write(f"ms-enclave: {text}\n".encode(errors="backslashreplace"))
    sys.stderr.flush()
