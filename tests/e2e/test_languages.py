"""Programs in every language whose tools the distribution has, compiled and run in a sandbox.

`scripts/toolchains.txt` names the packages. A language that no package has is tested for what it
says then: which program is missing, and who has it.
"""

from __future__ import annotations

import os
import shutil
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from ms_enclave.boxes import Sandbox, SandboxFactory
from ms_enclave.loop import call
from ms_enclave.model import ExecutionStatus, ToolResult, Verdict
from ms_enclave.tools._languages import LANGUAGES
from tests.support import subprocess_box

if TYPE_CHECKING:
    from collections.abc import Iterator

subprocess_box.install()

SANDBOX_TYPE = os.environ.get("MS_ENCLAVE_TEST_SANDBOX", "process")
"""Any type whose sandboxes see this machine's tools, or have their own."""

pytestmark = [pytest.mark.namespaces] if SANDBOX_TYPE == "process" else []


@dataclass(frozen=True)
class Case:
    """One language: a program that prints 42, and how others in it fail."""

    good: str
    """Prints 42."""
    bad: str = ""
    """Is no program in the language."""
    bad_stage: str = "run"
    """Who notices: "compile" or "run"."""
    fails: str = ""
    """Prints "before" and then fails, in a way that names `failure`."""
    failure: str = "exit code"
    doubles: str = ""
    """Reads a number from its input and prints its double."""
    uses: tuple[str, dict[str, str]] | None = None
    """A program that prints 42 with what is in files beside it."""
    prints: str = "42"
    """What `good` says; test runners say that they passed."""
    timeouts: dict[str, float] = field(default_factory=lambda: {"run_timeout": 60.0})


COMPILED = "compile"

CASES: dict[str, Case] = {
    "python": Case(
        good="print(42)",
        bad="def (",
        fails="print('before', flush=True)\nraise ValueError('why')",
        failure="ValueError: why",
        doubles="print(int(input()) * 2)",
        uses=("from helper import x\nprint(x)", {"helper.py": "x = 42"}),
    ),
    "pytest": Case(
        good="def test_it():\n    assert 40 + 2 == 42",
        prints="1 passed",
        bad="def (",
        fails="def test_it():\n    print('before')\n    assert 41 == 42",
        failure="exit code 1",
        uses=(
            "from helper import x\ndef test_it():\n    print('42')\n    assert x == 42",
            {"helper.py": "x = 42", "pytest.ini": "[pytest]\naddopts = -s\n"},
        ),
    ),
    "cpp": Case(
        good="#include <iostream>\nint main() { std::cout << 42 << std::endl; }",
        bad="int main() { return x; }",
        bad_stage=COMPILED,
        fails='#include <cstdio>\nint main() { puts("before"); return 3; }',
        failure="exit code 3",
        doubles="#include <iostream>\nint main() { int x; std::cin >> x; std::cout << x * 2; }",
        uses=(
            '#include "helper.h"\n#include <cstdio>\nint main() { printf("%d", answer()); }',
            {"helper.h": "int answer();", "helper.cpp": "int answer() { return 42; }"},
        ),
    ),
    "csharp": Case(
        good="using System; class P { static void Main() { Console.WriteLine(40 + 2); } }",
        bad="class P { static void Main() { return x; } }",
        bad_stage=COMPILED,
        fails=(
            "using System; class P { static void Main() {"
            ' Console.WriteLine("before"); throw new ArgumentException("why"); } }'
        ),
        failure="ArgumentException: why",
        doubles=(
            "using System; class P { static void Main() {"
            " Console.WriteLine(int.Parse(Console.ReadLine()) * 2); } }"
        ),
        uses=(
            "using System; class P { static void Main() { Console.WriteLine(Helper.X); } }",
            {"Helper.cs": "public class Helper { public const int X = 42; }"},
        ),
    ),
    "go": Case(
        good='package main\nimport "fmt"\nfunc main() { fmt.Println(42) }',
        bad="package main\nfunc main() { return x }",
        bad_stage=COMPILED,
        fails='package main\nimport "fmt"\nfunc main() { fmt.Println("before"); panic("why") }',
        failure="panic: why",
        doubles=(
            'package main\nimport "fmt"\nfunc main() { var x int; fmt.Scan(&x); fmt.Println(x*2) }'
        ),
        uses=(
            'package main\nimport "fmt"\nfunc main() { fmt.Println(answer()) }',
            {"helper.go": "package main\nfunc answer() int { return 42 }"},
        ),
    ),
    "go_test": Case(
        good=(
            'package main\nimport "testing"\n'
            'func TestIt(t *testing.T) { if 40+2 != 42 { t.Fatal("no") } }'
        ),
        prints="--- PASS: TestIt",
        bad='package main\nimport "testing"\nfunc TestIt(t *testing.T) { x }',
        bad_stage=COMPILED,
        fails=(
            'package main\nimport ("fmt"; "testing")\n'
            'func TestIt(t *testing.T) { fmt.Println("before"); t.Fatal("why") }'
        ),
        failure="exit code 1",
    ),
    "java": Case(
        good=(
            "import java.util.*;\npublic class Answer { public static void main(String[] a) {"
            " System.out.println(List.of(40, 2).stream().mapToInt(x -> x).sum()); } }"
        ),
        bad="class Main { void f() { return x; } }",
        bad_stage=COMPILED,
        fails=(
            "class Main { public static void main(String[] a) {"
            ' System.out.println("before"); throw new IllegalStateException("why"); } }'
        ),
        failure="IllegalStateException: why",
        doubles=(
            "import java.util.Scanner; class Main { public static void main(String[] a) {"
            " System.out.println(new Scanner(System.in).nextInt() * 2); } }"
        ),
        uses=(
            "class Main { public static void main(String[] a) {"
            " System.out.println(tools.Helper.X); } }",
            {
                "tools/Helper.java": (
                    "package tools; public class Helper { public static int X = 42; }"
                ),
            },
        ),
    ),
    "junit": Case(
        good=(
            "import org.junit.jupiter.api.Test;\n"
            "import static org.junit.jupiter.api.Assertions.*;\n"
            "class MainTest { @Test void it() { assertEquals(42, 40 + 2); } }"
        ),
        prints="1 tests successful",
        bad="class MainTest { @Test void it() { } }",
        bad_stage=COMPILED,
        fails=(
            "import org.junit.Test;\nimport static org.junit.Assert.*;\npublic class OldTest {"
            ' @Test public void it() { System.out.println("before"); assertEquals(42, 41); } }'
        ),
        failure="exit code 1",
    ),
    "nodejs": Case(
        good="console.log(42)",
        bad="function (",
        fails="console.log('before'); throw new Error('why')",
        failure="Error: why",
        doubles="console.log(Number(require('fs').readFileSync(0)) * 2)",
        uses=("console.log(require('./helper').x)", {"helper.js": "exports.x = 42"}),
    ),
    "js": Case(good="console.log([40, 2].reduce((a, b) => a + b))"),
    "ts": Case(good="const x: number = 42; console.log(x)"),
    "typescript": Case(
        good="const add = (a: number, b: number): number => a + b; console.log(add(40, 2))",
        bad="const x: number = 'text'",
        bad_stage=COMPILED,
        fails="console.log('before'); throw new Error('why')",
        failure="Error: why",
        doubles="import * as fs from 'fs'; console.log(Number(fs.readFileSync(0)) * 2)",
        uses=(
            "import { x } from './helper'; console.log(x)",
            {"helper.ts": "export const x: number = 42"},
        ),
    ),
    "rust": Case(
        good='fn main() { println!("{}", 40 + 2); }',
        bad="fn main() { x }",
        bad_stage=COMPILED,
        fails='fn main() { println!("before"); panic!("why"); }',
        failure="why",
        doubles=(
            "use std::io; fn main() { let mut s = String::new();"
            " io::stdin().read_line(&mut s).unwrap();"
            ' println!("{}", s.trim().parse::<i32>().unwrap() * 2); }'
        ),
        uses=(
            'mod helper; fn main() { println!("{}", helper::X); }',
            {"helper.rs": "pub const X: i32 = 42;"},
        ),
    ),
    "php": Case(
        good="<?php echo 40 + 2, PHP_EOL;",
        bad="<?php function (",
        fails="<?php echo 'before'; throw new Exception('why');",
        failure="why",
        doubles="<?php echo intval(fgets(STDIN)) * 2;",
        uses=("<?php require 'helper.php'; echo X;", {"helper.php": "<?php const X = 42;"}),
    ),
    "bash": Case(
        good="x=(40 2); echo $((x[0] + x[1]))",
        bad="if",
        fails="echo before; exit 3",
        failure="exit code 3",
        doubles="read x; echo $((x * 2))",
        uses=(". ./helper.sh; echo $X", {"helper.sh": "X=42"}),
    ),
    "jest": Case(
        good="test('it', () => { expect(40 + 2).toBe(42) })",
        prints="",
        bad="test('it', (",
        fails="test('it', () => { process.stdout.write('before'); expect(41).toBe(42) })",
        failure="Expected: 42",
    ),
    "lua": Case(
        good="print(42)",
        bad="function (",
        fails="print('before'); error('why')",
        failure="why",
        doubles="print(math.tointeger(io.read('n') * 2))",
        uses=("print(require('helper').x)", {"helper.lua": "return { x = 42 }"}),
    ),
    "r": Case(
        good="cat(40 + 2, '\\n')",
        bad="function (",
        fails="cat('before'); stop('why')",
        failure="why",
        doubles="cat(as.integer(readLines(file('stdin'), 1)) * 2)",
        uses=("source('helper.R'); cat(x)", {"helper.R": "x <- 42"}),
    ),
    "perl": Case(
        good='print 40 + 2, "\\n";',
        bad="sub {",
        fails='print "before\\n"; die "why";',
        failure="why",
        doubles="print <STDIN> * 2;",
        uses=("require './helper.pl'; print x();", {"helper.pl": "sub x { 42 } 1;"}),
    ),
    "d_ut": Case(
        good="import std.stdio; unittest { assert(40 + 2 == 42); writeln(42); }",
        bad="unittest { x; }",
        bad_stage=COMPILED,
        fails='import std.stdio; unittest { writeln("before"); assert(false, "why"); }',
        failure="why",
        uses=(
            "import std.stdio; import helper; unittest { writeln(x); } void main() {}",
            {"helper.d": "module helper; int x = 42;"},
        ),
    ),
    "ruby": Case(
        good="puts 40 + 2",
        bad="def (",
        fails="puts 'before'; raise ArgumentError, 'why'",
        failure="ArgumentError",
        doubles="puts gets.to_i * 2",
        uses=("require_relative 'helper'; puts X", {"helper.rb": "X = 42"}),
    ),
    "scala": Case(
        good="object Answer { def main(args: Array[String]): Unit = println(List(40, 2).sum) }",
        bad="object Answer { def main(args: Array[String]): Unit = x }",
        bad_stage=COMPILED,
        fails='object Main extends App { println("before"); throw new Exception("why") }',
        failure="Exception: why",
    ),
    "kotlin_script": Case(
        good="println(listOf(40, 2).sum())",
        bad="fun (",
        fails='println("before"); throw Exception("why")',
        failure="why",
    ),
    "verilog": Case(
        good='module t; initial begin $display("%0d", 40 + 2); $finish; end endmodule',
        bad="module t; initial begin x = ; end endmodule",
        bad_stage=COMPILED,
        fails='module t; initial begin $display("before"); $fatal(1, "why"); end endmodule',
        failure="exit code 1",
        uses=(
            'module t; wire [7:0] x; helper h(x); initial begin #1 $display("%0d", x); end '
            "endmodule",
            {"helper.sv": "module helper(output logic [7:0] x); assign x = 42; endmodule"},
        ),
    ),
    "racket": Case(
        good="#lang racket\n(displayln (+ 40 2))",
        bad="#lang racket\n(",
        fails='#lang racket\n(displayln "before")\n(error "why")',
        failure="why",
        doubles="#lang racket\n(displayln (* 2 (read)))",
        uses=(
            '#lang racket\n(require "helper.rkt")\n(displayln x)',
            {"helper.rkt": "#lang racket\n(provide x)\n(define x 42)"},
        ),
    ),
    "julia": Case(good="println(42)", bad="function (", fails='println("before"); error("why")'),
    "lean": Case(good="#eval 42", bad="#eval (", fails=""),
    "swift": Case(good="print(42)", bad="let = ", bad_stage=COMPILED),
}

UNPACKAGED = {"jest", "julia", "lean", "swift"}
"""Languages whose tools Debian 12 lacks, or has only for its own Node."""


def _toolchain(name: str) -> pytest.ParameterSet:
    """A language, marked: in continuous integration it may not be skipped."""
    marks = [] if name in UNPACKAGED else [pytest.mark.toolchain(name)]
    return pytest.param(name, id=name, marks=marks)


def _those(attribute: str) -> list[Any]:
    return [_toolchain(name) for name, case in CASES.items() if getattr(case, attribute)]


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    stack = AsyncExitStack()
    config = {"tools_config": ["multi_code_executor"], "memory_limit": "2g", "timeout": 60}
    opened = SandboxFactory.create_sandbox(SANDBOX_TYPE, config)
    call(stack.enter_async_context, opened)
    call(opened.files.exists, "any")  # connects, which is nothing that the first test leaves
    try:
        yield opened
    finally:
        call(stack.aclose)


async def run(box: Sandbox, name: str, code: str, **more: Any) -> ToolResult:
    parameters = {"language": name, "code": code, **CASES[name].timeouts, **more}
    result = await box.execute_tool("multi_code_executor", parameters)
    if "missing" in result.metadata:
        _check_missing(result)
        pytest.skip(str(result.error))
    return result


def _check_missing(result: ToolResult) -> None:
    assert result.status == ExecutionStatus.ERROR
    assert result.metadata["stage"] == "probe"
    for word in (*result.metadata["missing"], *result.metadata["packages"]):
        assert word in str(result.error)
    if SANDBOX_TYPE == "process":
        assert all(shutil.which(name) is None for name in result.metadata["missing"])


def test_every_language_has_a_case() -> None:
    assert sorted(CASES) == sorted(LANGUAGES)


@pytest.mark.parametrize("name", [_toolchain(name) for name in CASES])
async def test_a_program_runs(box: Sandbox, name: str) -> None:
    case = CASES[name]
    result = await run(box, name, case.good)
    assert result.status == ExecutionStatus.SUCCESS, result.error
    assert result.verdict == Verdict.OK
    assert result.exit_code == 0
    assert case.prints in str(result.output)
    assert result.metadata["stage"] == "run"


@pytest.mark.parametrize("name", _those("bad"))
async def test_what_is_no_program_is_refused_by_whoever_notices(box: Sandbox, name: str) -> None:
    case = CASES[name]
    result = await run(box, name, case.bad)
    assert result.status == ExecutionStatus.ERROR
    assert result.exit_code != 0
    assert result.metadata["stage"] == case.bad_stage
    assert f"exit code {result.exit_code}" in str(result.error)
    if case.bad_stage == COMPILED:
        assert str(result.error).startswith("Compilation failed")
        assert len(str(result.error).splitlines()) > 1, "the compiler's words are missing"
        assert result.metadata["compile"]["exit_code"] == result.exit_code


@pytest.mark.parametrize("name", _those("fails"))
async def test_a_program_that_fails_says_why_and_keeps_its_output(box: Sandbox, name: str) -> None:
    case = CASES[name]
    result = await run(box, name, case.fails)
    assert result.status == ExecutionStatus.ERROR
    assert result.metadata["stage"] == "run"
    assert "before" in str(result.output)
    assert case.failure in str(result.error)
    assert f"exit code {result.exit_code}" in str(result.error)


@pytest.mark.parametrize("name", _those("doubles"))
async def test_a_program_reads_its_input(box: Sandbox, name: str) -> None:
    result = await run(box, name, CASES[name].doubles, stdin="21\n")
    assert result.success, result.error
    assert str(result.output).strip() == "42"


@pytest.mark.parametrize("name", _those("uses"))
async def test_a_program_uses_the_files_beside_it(box: Sandbox, name: str) -> None:
    uses = CASES[name].uses
    assert uses is not None
    code, files = uses
    result = await run(box, name, code, files=files)
    assert result.success, result.error
    assert "42" in str(result.output)


async def test_a_compiler_that_takes_too_long_is_ended(box: Sandbox) -> None:
    result = await run(box, "java", CASES["java"].good, compile_timeout=0.01)
    assert result.status == ExecutionStatus.TIMEOUT
    assert result.metadata["stage"] == COMPILED
    assert "0.01 seconds" in str(result.error)


async def test_nothing_of_a_run_stays(box: Sandbox) -> None:
    before = [entry.name for entry in await box.files.list(".")]
    await run(box, "cpp", CASES["cpp"].good)
    await run(box, "cpp", CASES["cpp"].bad)
    assert [entry.name for entry in await box.files.list(".")] == before
