"""Small tools that know nothing of sandboxes."""

from __future__ import annotations

import logging
from pathlib import Path

__all__ = ["get_logger"]

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def get_logger(
    log_file: str | None = None, log_level: int | str | None = None, file_mode: str = "w"
) -> logging.Logger:
    """The logger `ms_enclave`, made to print, for programs that set up no logging themselves.

    Nothing is added where somebody has done so already. The package itself never calls this.

    Args:
        log_file: a file that gets everything too; one and the same is added once.
        log_level: a number or a name; None leaves the level as it is, and a new one at INFO.
        file_mode: how the file is opened.

    Raises:
        ValueError: there is no such level.
        OSError: the file cannot be opened.
    """
    logger = logging.getLogger("ms_enclave")
    if log_level is not None:
        logger.setLevel(log_level.upper() if isinstance(log_level, str) else log_level)
    elif logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.hasHandlers():
        _add(logger, logging.StreamHandler())
    if log_file is not None:
        _add_file(logger, Path(log_file).absolute(), file_mode)
    return logger


def _add_file(logger: logging.Logger, path: Path, mode: str) -> None:
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename) == path:
            return
    _add(logger, logging.FileHandler(path, mode, encoding="utf-8"))


def _add(logger: logging.Logger, handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger.addHandler(handler)
