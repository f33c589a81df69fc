"""What an engine knows of an image, read; and how far it is with fetching one."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ms_enclave.model import DockerSandboxConfig

__all__ = ["Progress", "config_of", "is_for", "platform_of"]

logger = logging.getLogger(__name__)


def platform_of(image: dict[str, Any]) -> str | None:
    """What an image is for, as a config would say it."""
    system, architecture = image.get("Os"), image.get("Architecture")
    return f"{system}/{architecture}" if system and architecture else None


def is_for(image: dict[str, Any], platform: str | None) -> bool:
    if platform is None:
        return True
    parts = [image.get("Os") or "", image.get("Architecture") or "", image.get("Variant") or ""]
    wanted = platform.split("/")
    return all(not part or part == want for part, want in zip(parts, wanted, strict=False))


def config_of(image: dict[str, Any]) -> dict[str, Any]:
    """What an image says about how it is to be run; some say nothing."""
    return image.get("Config") or {}


class Progress:
    """Logs how far the engine is with an image, as often as the config says."""

    def __init__(self, config: DockerSandboxConfig) -> None:
        self._image = config.image
        self._pause = config.pull_progress_interval if config.pull_progress else math.inf
        self._next = time.monotonic()

    def __call__(self, news: dict[str, Any]) -> None:
        now = time.monotonic()
        if now < self._next or self._pause == math.inf:
            return
        self._next = now + self._pause
        words = (news.get("id"), news.get("status"), news.get("progress"))
        logger.info("pulling %s: %s", self._image, " ".join(str(word) for word in words if word))
