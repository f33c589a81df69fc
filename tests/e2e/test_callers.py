"""What a manager's own process is like says nothing about programs in its sandboxes."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.namespaces

LOOK = """
import signal
from ms_enclave import blocking
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
words = "grep -E 'Sig(Ign|Blk)' /proc/self/status"
print(blocking.run(command=words, sandbox_type="process").stdout)
"""


def test_signals_that_a_caller_ignores_or_holds_back_reach_programs() -> None:
    """As of `nohup`, and of whatever a script starts in the background."""
    ignoring = "trap '' HUP INT QUIT TERM; exec \"$@\""
    words = ["sh", "-c", ignoring, "sh", sys.executable, "-c", LOOK]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert {line.split()[1] for line in done.stdout.splitlines() if line} == {"0" * 16}
