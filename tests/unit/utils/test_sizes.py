"""Amounts as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_enclave.utils.sizes import parse_size

FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (512, 512),
        ("512", 512),
        ("1k", 1024),
        ("64K", 65536),
        ("512m", 512 << 20),
        ("4G", 4 << 30),
        ("1t", 1 << 40),
        ("4gb", 4 << 30),
        ("4GiB", 4 << 30),
        (" 2m ", 2 << 20),
    ],
)
def test_sizes_are_read(text: Any, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "m", "1.5g", "-1", "+1", "1 m", "1x", "0x10", "1e3", "\u0661m", "1m\n2"),
        *("9" * 19 + "k", "9" * 40, -1, 1 << 63, True, None, 1.0, b"1m", [1]),
    ],
)
def test_what_is_no_size_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="Invalid disk limit format"):
        parse_size(value, "disk limit")


@given(number=st.integers(0, 1 << 22), unit=st.sampled_from("kKmMgGtT") | st.just(""))
def test_text_and_number_say_the_same(number: int, unit: str) -> None:
    size = parse_size(f"{number}{unit}")
    assert size == number * FACTORS[unit.lower()]
    assert parse_size(size) == size
    assert parse_size(str(size)) == size


@given(st.text())
def test_any_text_is_a_size_or_refused_in_the_known_words(text: str) -> None:
    try:
        size = parse_size(text)
    except ValueError as error:
        said = str(error)
    else:
        said = f"Invalid size format: {size}"
        assert size >= 0
    assert said.startswith("Invalid size format")
