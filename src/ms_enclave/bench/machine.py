"""The facts of a machine and of our own state on it that figures depend on."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import ms_enclave
from ms_enclave.version import __version__

__all__ = ["Machine", "look"]


@dataclass(frozen=True)
class Machine:
    """What `--json` says under `machine`."""

    processor: str
    processors: int
    turbo: str
    """`on`, `off`, or `unknown`."""
    memory: int
    """Bytes."""
    kernel: str
    python: str
    interpreter: str
    load: float
    """Of the last minute, before anything was measured."""
    version: str
    compiled: bool
    """Whether our own sources are compiled: those that are not are read anew by every station."""

    def warnings(self) -> list[str]:
        """What makes these figures worth less than they could be."""
        found: list[str] = []
        if self.load > self.processors / 2:
            found.append(f"the machine is busy (load {self.load:.1f}): measure when it is not")
        if not self.compiled:
            found.append("ms-enclave is not compiled: run python -m compileall on it first")
        return found


def look() -> Machine:
    """Find out."""
    return Machine(
        processor=_processor(),
        processors=len(os.sched_getaffinity(0)),
        turbo=_turbo(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        python=platform.python_version(),
        interpreter=os.path.realpath(sys.executable),
        load=round(os.getloadavg()[0], 2),
        version=__version__,
        compiled=_compiled(),
    )


def _processor() -> str:
    text = _read("/proc/cpuinfo")
    found = re.search(r"^(?:model name|Hardware|CPU part)\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found.group(1) if found else platform.machine()


def _turbo() -> str:
    for path, off in (
        ("/sys/devices/system/cpu/intel_pstate/no_turbo", "1"),
        ("/sys/devices/system/cpu/cpufreq/boost", "0"),
    ):
        text = _read(path).strip()
        if text:
            return "off" if text == off else "on"
    return "unknown"


def _compiled() -> bool:
    source = Path(ms_enclave.__file__).parent / "spawner" / "station.py"
    try:
        header = Path(importlib.util.cache_from_source(str(source))).read_bytes()[:12]
    except OSError:
        return False
    by_time = header[4:8] == bytes(4)  # and not by what is in it
    written = int(source.stat().st_mtime) & 0xFFFFFFFF
    return not by_time or int.from_bytes(header[8:], "little") == written


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
