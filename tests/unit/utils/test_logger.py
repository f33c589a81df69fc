"""Logging, for programs that set up none."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from ms_enclave.utils import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    logger = logging.getLogger("ms_enclave")
    handlers, level = list(logger.handlers), logger.level
    yield
    for handler in set(logger.handlers) - set(handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(level)


def test_it_is_the_packages_own_logger() -> None:
    assert get_logger() is logging.getLogger("ms_enclave")
    assert get_logger().level == logging.INFO


def test_a_level_is_a_name_or_a_number() -> None:
    assert get_logger(log_level="debug").level == logging.DEBUG
    assert get_logger(log_level=logging.ERROR).level == logging.ERROR
    assert get_logger().level == logging.ERROR
    with pytest.raises(ValueError, match="LOUD"):
        get_logger(log_level="loud")


def test_a_file_gets_everything_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    get_logger(str(path), file_mode="a")
    logger = get_logger(str(path), file_mode="a")
    logger.info("grün")
    for handler in logger.handlers:
        handler.flush()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "before"
    assert len(lines) == 2
    assert lines[1].endswith("grün")
