"""Builds the image of notebooks: one process at a time, and nothing is left of what failed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from ms_enclave.boxes import _notebook_image as images
from ms_enclave.errors import EnclaveError, SandboxStartError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ms_enclave.boxes._docker_engine import Engine
    from ms_enclave.model import DockerNotebookConfig

__all__ = ["build"]

logger = logging.getLogger(__name__)

_LOOK_AGAIN = 0.2
"""Seconds between two looks at what is another's to do."""
_UNDO_BOUND = 8.0
_KEPT_WORDS = 500


async def build(
    engine: Engine, config: DockerNotebookConfig, base: dict[str, Any]
) -> dict[str, Any]:
    """The image that the config names, built on a base unless another has just done that.

    Raises:
        ConfigError: the folder of wheels has none.
        SandboxStartError: it cannot be built; with the engine's words.
    """
    async with _alone():
        image = await engine.image(config.image)
        if image is not None and images.is_current(image, base):
            return image
        archive = await anyio.to_thread.run_sync(images.context, config.wheels)
        logger.info("building the image %s from %s", config.image, config.base_image)
        number = secrets.token_hex(8)
        arguments = {"BASE": config.base_image, "BUILD": number}
        try:
            await engine.build(
                archive, config.image, arguments, images.labels(base), _Progress(config)
            )
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_UNDO_BOUND):
                await _clear(engine, [images.label_of_build(number)])
            raise
        built = await engine.image(config.image)
        if built is None:
            raise SandboxStartError(f"The image {config.image} was built, but is not there")
        for name in await engine.images([images.BUILT_FROM], replaced=True):
            with contextlib.suppress(EnclaveError):  # a sandbox may have it still
                await engine.remove_image(name)
        return built


@asynccontextmanager
async def _alone() -> AsyncGenerator[None]:
    """Alone among all builds of this user's, whatever process or event loop they are in."""
    with socket.socket(socket.AF_UNIX) as mark:
        while not _is_taken(mark):  # noqa: ASYNC110 - another process tells nobody
            await asyncio.sleep(_LOOK_AGAIN)
        yield


def _is_taken(mark: socket.socket) -> bool:
    """Whether it has the name now, which the kernel gives to one socket, and which is no file."""
    try:
        mark.bind(f"\0ms-enclave-build-{os.getuid()}")
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


async def _clear(engine: Engine, labels: list[str]) -> None:
    """Remove the containers and images of a build, which may go on for a moment."""
    quiet = 0
    while quiet < 2:
        found = 0
        with contextlib.suppress(EnclaveError):
            for row in await engine.list(labels):
                found += 1
                await engine.remove(engine.container(str(row["Id"])))
            for name in await engine.images(labels):
                found += 1
                with contextlib.suppress(EnclaveError):  # its parent, or one that is used
                    await engine.remove_image(name)
        quiet = 0 if found else quiet + 1
        await asyncio.sleep(_LOOK_AGAIN)


class _Progress:
    """Logs how far the engine is."""

    def __init__(self, config: DockerNotebookConfig) -> None:
        self._config = config

    def __call__(self, news: dict[str, Any]) -> None:
        words = str(news.get("stream") or news.get("status") or "").strip()
        if words and self._config.pull_progress:
            logger.info("building %s: %s", self._config.image, words[:_KEPT_WORDS])
