"""Attacks that a sandbox has to withstand: the security tests and `doctor --attack` run them.

A case is a program that tries, from inside, what must not be possible, and tells what came of each
try. It opens what it must not reach and writes nothing to it. `docs/security.md` says which threat
each case stands for; the numbers are those of the threat model. A bomb is a case that uses up what
there is, in a sandbox with limits of its own; what comes of it is seen from outside.
"""

from __future__ import annotations

from ms_enclave.attack.bombs import BOMBS, unbounded
from ms_enclave.attack.cases import CASES, Case
from ms_enclave.attack.runner import Finding, run_case, run_cases

__all__ = ["BOMBS", "CASES", "Case", "Finding", "run_case", "run_cases", "unbounded"]
