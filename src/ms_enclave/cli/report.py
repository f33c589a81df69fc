"""What the commands say to a person: one line on standard error."""

from __future__ import annotations

import sys

__all__ = ["EXIT_OURS", "complain"]

EXIT_OURS = 125
"""Exit code where the failure is ours, the machine's or the caller's; never the program's."""


def complain(message: str, remedy: str | None = None) -> None:
    """Say on one line what is wrong and what to do about it."""
    text = " ".join(message.split()).rstrip(".")
    if remedy:
        text = f"{text}; {' '.join(remedy.split())}"
    # Not `print`: a message may quote what the terminal's encoding cannot show.
    sys.stderr.buffer.write(f"ms-enclave: {text}\n".encode(errors="backslashreplace"))
    sys.stderr.flush()
