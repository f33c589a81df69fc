"""What keeps a carrier harmless whose memory somebody hostile shares: live-fork's attack table.

The positive control shows that the attack works where the check is left out, so that a check that
does nothing cannot pass.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import ms_enclave
from ms_enclave.spawner.blob import BLOB

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="carriers exist on x86-64 Linux only",
)

SOURCES = Path(ms_enclave.__file__).parent.parent


def run_case(name: str, folder: Path) -> object:
    program = str(Path(__file__).with_name("traced.py"))
    done = subprocess.run(
        [sys.executable, "-I", "-S", program, name, str(folder), str(SOURCES)],
        capture_output=True,
        timeout=30,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_ordered_call_is_made(tmp_path: Path) -> None:
    assert run_case("ordered", tmp_path) == [True, None]


def test_an_ordered_call_that_the_kernel_holds_up_is_waited_for(tmp_path: Path) -> None:
    assert run_case("held_up", tmp_path) == [0, None]


def test_a_copy_is_a_child_of_the_tracer(tmp_path: Path) -> None:
    assert run_case("copy", tmp_path) == [True, True]


def test_what_is_packed_holds_what_it_held(tmp_path: Path) -> None:
    packed, same, answers, large = run_case("packed", tmp_path)
    assert (packed, same, answers) == (True, True, "++")
    if "never" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().split("[")[1]:
        assert large


def test_what_is_wiped_in_a_copy_is_still_wiped_in_one_of_what_is_packed(tmp_path: Path) -> None:
    assert run_case("packed_wiped", tmp_path) == "00"


def test_what_cannot_be_packed_is_as_it_was(tmp_path: Path) -> None:
    assert run_case("not_packed", tmp_path) == [False, True, True]


def test_a_page_that_goes_for_another_call_is_refused_before_it_is_made(tmp_path: Path) -> None:
    assert run_case("hostile_page", tmp_path) == [True, False]


def test_positive_control_the_same_page_resumed_freely_does_it(tmp_path: Path) -> None:
    assert run_case("positive_control", tmp_path) is True


@pytest.mark.parametrize(
    "case", ["endless_page", "old_abi_page", "broken_page", "other_arguments", "ends_instead"]
)
def test_every_other_course_is_refused(case: str, tmp_path: Path) -> None:
    assert run_case(case, tmp_path) is True


def test_a_program_that_is_held_waits_and_goes_on(tmp_path: Path) -> None:
    in_call, number, stopped, released, said = run_case("held", tmp_path)
    assert (in_call, number, stopped, released, said) == (True, 0, "t", True, "w")


def test_a_program_that_is_held_loses_no_signal(tmp_path: Path) -> None:
    assert run_case("held_with_a_signal", tmp_path) is True


def test_a_program_that_waits_for_nothing_is_let_go(tmp_path: Path) -> None:
    assert run_case("held_busy", tmp_path) == [True, False, "e"]


def test_whose_memory_is_whose(tmp_path: Path) -> None:
    assert run_case("memories", tmp_path) == [True, False]


def test_what_a_program_has_in_its_registers_makes_none_of_our_calls(tmp_path: Path) -> None:
    assert run_case("orders_are_not_the_programs", tmp_path) == [True, True, True]


def test_a_process_with_anything_left_is_not_let_go(tmp_path: Path) -> None:
    assert run_case("walls", tmp_path) is True


def test_a_seed_that_goes_astray_is_ended_and_not_asked_again(tmp_path: Path) -> None:
    assert run_case("lost_seed", tmp_path) == [9, True]


def test_the_bytes_are_the_assembled_source(tmp_path: Path) -> None:
    source = SOURCES / "ms_enclave" / "spawner" / "blob.S"
    code, flat = tmp_path / "blob.o", tmp_path / "blob.bin"
    try:
        subprocess.run(["cc", "-c", "-o", code, source], check=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("no assembler (cc) here")
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", code, flat], check=True, timeout=30)
    assert flat.read_bytes() == BLOB
