"""The table of languages and the decisions over it: no sandbox needed."""

from __future__ import annotations

import pytest

from ms_enclave.errors import ConfigError
from ms_enclave.tools._languages import (
    LANGUAGES,
    Toolchain,
    choose,
    heap_mib,
    make_plan,
    missing,
    validate_files,
    wanted,
)

PROMISED = [
    "python",
    "pytest",
    "cpp",
    "csharp",
    "go",
    "go_test",
    "java",
    "junit",
    "nodejs",
    "js",
    "ts",
    "typescript",
    "rust",
    "php",
    "bash",
    "jest",
    "lua",
    "r",
    "perl",
    "d_ut",
    "ruby",
    "scala",
    "julia",
    "kotlin_script",
    "verilog",
    "lean",
    "swift",
    "racket",
]


def _everything(toolchain: Toolchain) -> dict[str, str]:
    return {
        name: f"/bin/{name}" for program in toolchain.programs.values() for name in program.names
    }


def test_the_table_has_every_language() -> None:
    assert sorted(LANGUAGES) == sorted(PROMISED)


@pytest.mark.parametrize("name", PROMISED)
def test_every_row_can_be_planned(name: str) -> None:
    language = LANGUAGES[name]
    for toolchain in language.toolchains:
        plan = make_plan(
            language,
            toolchain,
            code="some code",
            files={"data/notes.txt": "text"},
            folder="/sandbox/run with space",
            found=_everything(toolchain),
            heap=100,
        )
        assert "some code" in plan.files.values()
        assert plan.files["data/notes.txt"] == "text"
        assert plan.run or plan.launcher
        for command in [*plan.compile, *([plan.run] if plan.run else [])]:
            assert all(command), command
            assert not any("{" in word or "*." in word for word in command), command
        assert not any("{" in value for value in plan.env.values())
        assert all(program.package for program in toolchain.programs.values())


def test_the_first_alternative_that_is_there_is_used() -> None:
    cpp = LANGUAGES["cpp"]
    [toolchain] = cpp.toolchains
    plan = make_plan(
        cpp,
        toolchain,
        code="",
        files={"more/part.cpp": "", "part.h": ""},
        folder="/w",
        found={"c++": "/usr/bin/c++", "clang++": "/opt/clang++"},
        heap=100,
    )
    [compile_step] = plan.compile
    assert compile_step[0] == "/opt/clang++"
    assert compile_step[-2:] == ["/w/main.cpp", "/w/more/part.cpp"]
    assert plan.run == ["/w/main"]


def test_the_complete_tool_chain_is_chosen() -> None:
    csharp = LANGUAGES["csharp"]
    toolchain, lacking = choose(csharp, set(), {"mcs": "/m", "mono": "/n"}, set())
    assert lacking == {}
    assert set(toolchain.programs) == {"mcs", "mono"}


def test_what_lacks_least_is_asked_for() -> None:
    csharp = LANGUAGES["csharp"]
    _, lacking = choose(csharp, set(), {"mcs": "/m"}, set())
    assert [program.package for program in lacking.values()] == ["dotnet-sdk (Microsoft)"]
    junit = LANGUAGES["junit"]
    _, lacking = choose(junit, set(), {"java": "/j", "javac": "/c"}, set())
    assert [program.package for program in lacking.values()] == ["junit5", "junit4"]


def test_the_sandboxes_own_python_goes_first() -> None:
    python = LANGUAGES["python"]
    own, lacking = choose(python, {"python"}, {}, set())
    assert own.launcher is not None
    assert lacking == {}
    other, lacking = choose(python, set(), {"python3": "/usr/bin/python3"}, set())
    assert other.launcher is None
    assert lacking == {}


def test_pytest_is_a_module_of_the_sandboxes_python() -> None:
    pytest_row = LANGUAGES["pytest"]
    own, lacking = choose(pytest_row, {"python"}, {}, {"pytest"})
    assert lacking == {}
    assert own.launcher is not None
    assert "pytest.main" in own.launcher
    assert list(missing(own, {}, set())) == ["pytest"]


def test_a_probe_asks_for_each_name_once() -> None:
    assert wanted(LANGUAGES["scala"], set()) == ["scalac", "scala", "java"]
    names = wanted(LANGUAGES["d_ut"], set())
    assert len(names) == len(set(names))


def test_nothing_is_probed_for_what_the_sandbox_does_itself() -> None:
    assert wanted(LANGUAGES["python"], {"python"}) == []
    assert wanted(LANGUAGES["python"], set()) == ["python3", "python"]


@pytest.mark.parametrize(
    ("code", "file", "main"),
    [
        ("class A { public static void main(String[] a) {} }", "A.java", "A"),
        ("public class B { } class C { static void main(String[] a) {} }", "B.java", "C"),
        ("public final class D { public static void main(String[] a) {} }", "D.java", "D"),
        (
            "package a.b;\npublic class E { static class In {} "
            "public static void main(String[] x) {} }",
            "E.java",
            "a.b.E",
        ),
        ("// public class No {}\npublic record F() {}", "F.java", "F"),
        ('class G { String s = "class H {"; static void main(String[] a) {} }', "G.java", "G"),
        ("int x;", "Main.java", "Main"),
    ],
)
def test_java_is_named_after_its_class(code: str, file: str, main: str) -> None:
    source = LANGUAGES["java"].source
    assert source is not None
    assert (source(code).file, source(code).main) == (file, main)


@pytest.mark.parametrize(
    ("code", "main"),
    [
        ("object A { def main(a: Array[String]): Unit = () }", "A"),
        ("object Helper { }\nobject B extends App { }", "B"),
        ("package p\nobject Q { }\nobject C { def main(a: Array[String]) = () }", "p.C"),
        ("println(1)", "Main"),
    ],
)
def test_scala_starts_the_object_that_can_be_started(code: str, main: str) -> None:
    source = LANGUAGES["scala"].source
    assert source is not None
    assert source(code).main == main


def test_a_unit_test_in_d_is_given_a_main_only_where_it_has_none() -> None:
    source = LANGUAGES["d_ut"].source
    assert source is not None
    assert "main" in source("unittest { }").files["start.d"]
    assert "main" not in source("unittest { }\nvoid main() {}").files["start.d"]
    assert "main" in source("// void main()\nunittest { }").files["start.d"]


def test_typescript_is_told_of_node_but_for_what_the_code_declares() -> None:
    source = LANGUAGES["ts"].source
    assert source is not None
    told = source("declare const require: any;\nimport process from 'process';").files
    [declarations] = told.values()
    assert "var require" not in declarations
    assert "var process" not in declarations
    assert "var Buffer" in declarations


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", "-o", "a\0b",
     "x" * 256, "main.py"],
)  # fmt: skip
def test_a_file_name_that_leaves_the_folder_or_hides_the_code_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="files"):
        validate_files({name: ""}, reserved="main.py")


@pytest.mark.parametrize("name", ["a.txt", "a/b/c.txt", ".hidden", "ä ö.txt", "..a", "a/..b"])
def test_any_name_below_the_folder_will_do(name: str) -> None:
    validate_files({name: ""}, reserved="main.py")


def test_files_of_the_caller_go_before_those_of_the_row() -> None:
    go = LANGUAGES["go"]
    [toolchain] = go.toolchains
    plan = make_plan(
        go,
        toolchain,
        code="",
        files={"go.mod": "module mine\n"},
        folder="/w",
        found={"go": "/go"},
        heap=1,
    )
    assert plan.files["go.mod"] == "module mine\n"


def test_a_virtual_machine_leaves_room_for_itself() -> None:
    assert heap_mib(1 << 30) == 640
    assert heap_mib(None) == 1024
    assert heap_mib(1 << 20) == 64
