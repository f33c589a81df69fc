"""Where a shell's line ends: its marks, however they come, and nothing else."""

from __future__ import annotations

import random

from ms_enclave.boxes._shell_session import Output, shell_argv

MARK, OTHER = b"0123456789abcdef", b"fedcba9876543210"


def fed(data: bytes, sizes: list[int], mark: bytes) -> Output:
    output = Output(1000)
    output.begin(mark)
    while data:
        size = sizes.pop(0) if sizes else len(data)
        output.feed(data[:size])
        data = data[size:]
    return output


def test_a_mark_ends_the_line_wherever_the_pieces_are_cut() -> None:
    chosen = random.Random(3)
    for _ in range(200):
        sizes = [chosen.randint(1, 12) for _ in range(60)]
        output = fed(b"before" + MARK + b"after", sizes, MARK)
        assert output.ended
        output.end()
        assert output.line.text() == ("before", 0)
        assert output.later.text() == ("after", 0)


def test_a_piece_of_a_mark_is_output() -> None:
    output = fed(b"a" + MARK[:-1], [1, 2, 3], MARK)
    assert not output.ended
    output.end()
    assert output.line.text() == ("a" + MARK[:-1].decode(), 0)


def test_what_came_after_a_line_is_shown_with_the_next() -> None:
    output = fed(b"one" + MARK + b"late", [], MARK)
    output.end()
    output.begin(OTHER)
    output.feed(b"two" + OTHER)
    output.end()
    assert output.line.text() == ("latetwo", 0)


def test_a_mark_that_comes_again_is_not_shown() -> None:
    """As after an interrupt, when a shell was asked more than once."""
    output = fed(b"one" + MARK + MARK, [], MARK)
    output.end()
    output.begin(OTHER)
    output.feed(b"x" + MARK + b"two" + MARK + OTHER)
    assert output.ended
    output.end()
    assert output.line.text() == ("xtwo", 0)


def test_a_line_without_its_mark_ends_with_all_that_came() -> None:
    output = fed(b"text", [], MARK)
    output.end()
    assert output.ended
    assert output.line.text() == ("text", 0)


def test_output_beyond_the_limit_is_counted() -> None:
    output = fed(b"x" * 5000 + MARK, [], MARK)
    output.end()
    assert output.line.text() == ("x" * 1000, 4000)


def test_nobodys_files_are_read_at_the_start() -> None:
    assert shell_argv("/bin/bash")[1:] == ("--noprofile", "--norc", "--noediting", "-i")
    assert shell_argv("/bin/sh") == ("/bin/sh", "-i")
