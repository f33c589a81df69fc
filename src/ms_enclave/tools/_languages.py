"""The programming languages that `multi_code_executor` runs: one table, one row a language. Pure.

A row says what the source file is called, which programs it takes (with alternatives, and the
package that has them), how it is compiled and run, and which environment its tools need in a
sandbox: no network, a small `/tmp`, a read-only `/usr`, a process limit.

In commands, `{name}` stands for a program of the row; `{dir}` for the folder that holds the code,
`{file}` for the code's file, `{main}` for the class to start, `{heap}` for the MiB of memory that
a virtual machine may manage. A word `*.ext` stands for every file given with that ending. A command
is split at its spaces before anything is put in, and no shell sees it.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ms_enclave.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

__all__ = [
    "LANGUAGES",
    "Language",
    "Plan",
    "Program",
    "Source",
    "Toolchain",
    "choose",
    "heap_mib",
    "make_plan",
    "missing",
    "validate_files",
    "wanted",
]


@dataclass(frozen=True)
class Program:
    """One thing that must be in the sandbox: the first of `names` that is there serves.

    A name with a slash in front is a file (a pattern), any other a program on the PATH.
    """

    names: tuple[str, ...]
    package: str
    """Who has it: the name of Debian's package, or where else it comes from."""


@dataclass(frozen=True)
class Toolchain:
    """One way to run a language."""

    programs: Mapping[str, Program] = field(default_factory=dict[str, Program])
    compile: Sequence[str] = ()
    run: str = ""
    launcher: str | None = None
    """Python source that runs it in the sandbox's own interpreter (`{code}`: the code itself)."""
    modules: Mapping[str, str] = field(default_factory=dict[str, str])
    """Python modules that the launcher imports, each with the package that has it."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    """Files that the tools want, where the caller gives none of that name."""
    folders: Sequence[str] = ()
    """Folders that the tools want beside the code."""

    @property
    def capability(self) -> str | None:
        """What the sandbox must be able to do."""
        return "python" if self.launcher is not None else None


@dataclass(frozen=True)
class Source:
    """What the code itself decides: what its file is called, what is started, what goes beside."""

    file: str
    main: str = ""
    files: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Language:
    """One row."""

    file: str
    toolchains: Sequence[Toolchain]
    source: Callable[[str], Source] | None = None


@dataclass(frozen=True)
class Plan:
    """All that is done for one run, decided."""

    files: Mapping[str, str]
    folders: Sequence[str]
    compile: Sequence[Sequence[str]]
    run: Sequence[str]
    launcher: str | None
    env: Mapping[str, str]


# --- what the code says about itself ---------------------------------------------------------

_STRINGS_AND_COMMENTS = re.compile(
    r'"""(?:.|\n)*?"""|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|//[^\n]*|/\*(?:.|\n)*?\*/'
)
_PACKAGE = re.compile(r"^\s*package\s+([\w.]+)", re.MULTILINE)
_TYPE = re.compile(r"(?P<public>public\s+)?(?:(?:abstract|final|sealed|static|strictfp)\s+)*"
                   r"(?:class|interface|enum|record|@interface)\s+(?P<name>\w+)")  # fmt: skip
_MAIN_METHOD = re.compile(r"\bstatic\s+(?:final\s+)?void\s+main\s*\(")
_SCALA_OBJECT = re.compile(r"\bobject\s+(?P<name>\w+)(?P<app>\s+extends\s+App\b)?")
_D_MAIN = re.compile(r"\b(?:void|int|auto)\s+main\s*\(")


def _bare(code: str) -> str:
    """The code without strings and comments, where a word may stand that means nothing."""
    return _STRINGS_AND_COMMENTS.sub(" ", code)


def _qualified(code: str, name: str) -> str:
    package = _PACKAGE.search(code)
    return f"{package[1]}.{name}" if package else name


def _outermost(bare: str, found: Iterable[re.Match[str]]) -> list[re.Match[str]]:
    """Those that stand in no braces."""
    return [
        match
        for match in found
        if bare.count("{", 0, match.start()) == bare.count("}", 0, match.start())
    ]


def _java(code: str) -> Source:
    """javac wants a public type in a file of its name; java wants the class that has `main`."""
    bare = _bare(code)
    types = _outermost(bare, _TYPE.finditer(bare))
    public = next((found["name"] for found in types if found["public"]), None)
    method = _MAIN_METHOD.search(bare)
    before = [found["name"] for found in types if method and found.start() < method.start()]
    owner = before[-1] if before else public or (types[0]["name"] if types else "Main")
    return Source(f"{public or owner}.java", _qualified(bare, owner))


def _scala(code: str) -> Source:
    """scala starts an object by name: one that is an `App`, else the one that has `main`."""
    bare = _bare(code)
    objects = _outermost(bare, _SCALA_OBJECT.finditer(bare))
    app = next((found["name"] for found in objects if found["app"]), None)
    method = bare.find("def main")
    before = [found["name"] for found in objects if found.start() < method]
    return Source("main.scala", _qualified(bare, app or (before[-1] if before else "Main")))


def _typescript(code: str) -> Source:
    """Declares what Node has, since the types of Node are seldom installed.

    A name that the code declares itself is left to it.
    """
    names = ["require", "process", "module", "exports", "Buffer", "global", "setImmediate",
             "__dirname", "__filename"]  # fmt: skip
    declared = "".join(
        f"declare var {name}: any;\n"
        for name in names
        if not re.search(
            rf"\b(?:var|let|const|function|class)\s+{name}\b|\bimport\s[^;\n]*\b{name}\b", code
        )
    )
    return Source("main.ts", files={"node-globals.d.ts": f'{declared}declare module "*";\n'})


def _d_unittest(code: str) -> Source:
    """A program needs a `main`: one that only has unit tests is given one."""
    empty_main = "" if _D_MAIN.search(_bare(code)) else "void main() {}\n"
    return Source("main.d", files={"start.d": f"module start;\n{empty_main}"})


# --- environments ------------------------------------------------------------------------------

_TMP = "/tmp"  # noqa: S108 - the sandbox's own, which nobody else sees

_UTF8 = {"LC_ALL": "C.UTF-8", "LANG": "C.UTF-8"}
"""For every language: output is text in UTF-8, whatever the image's locale."""

_GO_ENV = {
    "CGO_ENABLED": "0",
    "GO111MODULE": "on",
    "GOCACHE": f"{_TMP}/go-cache",
    "GOFLAGS": "-mod=mod -buildvcs=false",
    "GOPATH": f"{_TMP}/go",
    "GOPROXY": "off",
    "GOTELEMETRY": "off",
    "GOTOOLCHAIN": "local",
}
_DOTNET_ENV = {
    "DOTNET_CLI_HOME": _TMP,
    "DOTNET_CLI_TELEMETRY_OPTOUT": "1",
    "DOTNET_NOLOGO": "1",
    "DOTNET_SKIP_FIRST_TIME_EXPERIENCE": "1",
    "NUGET_PACKAGES": f"{_TMP}/nuget",
}
_DENO_ENV = {"DENO_DIR": f"{_TMP}/deno", "DENO_NO_UPDATE_CHECK": "1"}

# A virtual machine sees the host's memory and processors, not the sandbox's limits: it is told.
_JVM = "-XX:+UseSerialGC -XX:-UsePerfData -Xmx{heap}m"
_JVM_COMPILER = "-J-XX:+UseSerialGC -J-XX:-UsePerfData -J-XX:TieredStopAtLevel=1 -J-Xmx{heap}m"
_JAVA_OPTS = f"{_JVM} -Xss8m"

# --- files that tools want ---------------------------------------------------------------------

_GO_MOD = "module example\n\ngo 1.18\n"
_CSPROJ = """<Project Sdk="Microsoft.NET.Sdk">
  <PropertyGroup>
    <OutputType>Exe</OutputType>
    <TargetFramework>net$(BundledNETCoreAppTargetFrameworkVersion)</TargetFramework>
    <ImplicitUsings>enable</ImplicitUsings>
    <AssemblyName>main</AssemblyName>
  </PropertyGroup>
</Project>
"""
_TSCONFIG = """{
  "compilerOptions": {
    "target": "es2020",
    "module": "commonjs",
    "esModuleInterop": true,
    "skipLibCheck": true,
    "types": [],
    "rootDir": ".",
    "outDir": "out"
  },
  "files": ["node-globals.d.ts", "main.ts"]
}
"""
_PYTEST = """import sys

import pytest

sys.exit(pytest.main(sys.argv[1:]))
"""

# --- programs ----------------------------------------------------------------------------------

_CC = Program(("cc", "gcc", "clang"), "gcc")
_GO = Program(("go",), "golang-go")
_JAVA = Program(("java",), "default-jdk-headless")
_JAVAC = Program(("javac",), "default-jdk-headless")
_NODE = Program(("node", "nodejs"), "nodejs")
_PYTHON = Program(("python3", "python"), "python3")
_JARS = "/usr/share/java"

# --- the table ---------------------------------------------------------------------------------


def _script(file: str, program: Program, options: str = "") -> Language:
    """A language whose interpreter takes the file."""
    return Language(file, [Toolchain({"it": program}, run=f"{{it}} {options} {{dir}}/{{file}}")])


_javac_step = f"{{javac}} {_JVM_COMPILER} -encoding UTF-8 -d {{dir}}/classes"
_pytest_options = "-q -p no:cacheprovider --rootdir {dir} {dir}/{file}"

_nodejs = _script("main.js", _NODE)

_typescript_row = Language(
    "main.ts",
    [
        Toolchain(
            {"tsc": Program(("tsc",), "node-typescript"), "node": _NODE},
            compile=["{tsc} --project {dir}"],
            run="{node} {dir}/out/main.js",
            files={"tsconfig.json": _TSCONFIG},
        ),
        Toolchain({"tsx": Program(("tsx",), "tsx (npm)"), "node": _NODE}, run="{tsx} {dir}/{file}"),
        Toolchain(
            {"deno": Program(("deno",), "deno")},
            run="{deno} run --allow-all {dir}/{file}",
            env=_DENO_ENV,
        ),
    ],
    _typescript,
)

LANGUAGES: dict[str, Language] = {
    "python": Language(
        "main.py",
        [
            Toolchain(launcher="{code}", env={"PYTHONPATH": "{dir}"}),
            Toolchain({"python": _PYTHON}, run="{python} {dir}/{file}"),
        ],
    ),
    "pytest": Language(
        "test_main.py",
        [
            Toolchain(launcher=_PYTEST, modules={"pytest": "python3-pytest"}, run=_pytest_options),
            Toolchain(
                {"pytest": Program(("pytest", "pytest-3", "py.test"), "python3-pytest")},
                run=f"{{pytest}} {_pytest_options}",
            ),
        ],
    ),
    "cpp": Language(
        "main.cpp",
        [
            Toolchain(
                {"cxx": Program(("g++", "clang++", "c++"), "g++")},
                compile=["{cxx} -std=c++17 -O2 -pthread -I{dir} -o {dir}/main *.cpp *.cc"],
                run="{dir}/main",
            )
        ],
    ),
    "csharp": Language(
        "main.cs",
        [
            Toolchain(
                {"dotnet": Program(("dotnet",), "dotnet-sdk (Microsoft)")},
                compile=["{dotnet} build --nologo -v quiet -o {dir}/out {dir}/main.csproj"],
                run="{dotnet} {dir}/out/main.dll",
                env=_DOTNET_ENV,
                files={"main.csproj": _CSPROJ},
            ),
            Toolchain(
                {"mcs": Program(("mcs",), "mono-mcs"), "mono": Program(("mono",), "mono-runtime")},
                compile=["{mcs} -d:DEBUG -d:TRACE -out:{dir}/main.exe *.cs"],
                run="{mono} {dir}/main.exe",
            ),
        ],
    ),
    "go": Language(
        "main.go",
        [
            Toolchain(
                {"go": _GO},
                compile=["{go} build -o {dir}/main.out ."],
                run="{dir}/main.out",
                env=_GO_ENV,
                files={"go.mod": _GO_MOD},
            )
        ],
    ),
    "go_test": Language(
        "main_test.go",
        [
            Toolchain(
                {"go": _GO},
                compile=["{go} test -c -o {dir}/main.out ."],
                run="{dir}/main.out -test.v",
                env=_GO_ENV,
                files={"go.mod": _GO_MOD},
            )
        ],
    ),
    "java": Language(
        "Main.java",
        [
            Toolchain(
                {"javac": _JAVAC, "java": _JAVA},
                compile=[f"{_javac_step} *.java"],
                run=f"{{java}} {_JVM} -Xss64m -ea -cp {{dir}}/classes:{{dir}} {{main}}",
                folders=["classes"],
            )
        ],
        _java,
    ),
    "junit": Language(
        "MainTest.java",
        [
            Toolchain(
                {
                    "javac": _JAVAC,
                    "java": _JAVA,
                    "junit5": Program((f"{_JARS}/junit-platform-console.jar",), "junit5"),
                    "junit4": Program((f"{_JARS}/junit4.jar",), "junit4"),
                },
                compile=[f"{_javac_step} -cp {_JARS}/* *.java"],
                run=(
                    f"{{java}} {_JVM} -ea -cp {{dir}}/classes:{{dir}}:{_JARS}/* "
                    "org.junit.platform.console.ConsoleLauncher --disable-banner "
                    "--disable-ansi-colors --fail-if-no-tests --scan-classpath {dir}/classes"
                ),
                folders=["classes"],
            )
        ],
        _java,
    ),
    "nodejs": _nodejs,
    "js": _nodejs,
    "ts": _typescript_row,
    "typescript": _typescript_row,
    "rust": Language(
        "main.rs",
        [
            Toolchain(
                {"rustc": Program(("rustc",), "rustc"), "cc": _CC},
                compile=["{rustc} --edition 2021 -O -C linker={cc} -o {dir}/main {dir}/{file}"],
                run="{dir}/main",
                env={"RUST_BACKTRACE": "1"},
            )
        ],
    ),
    "php": _script(
        "main.php",
        Program(("php",), "php-cli"),
        "-d display_errors=stderr -d log_errors=0 -d zend.assertions=1",
    ),
    "bash": _script("main.sh", Program(("bash",), "bash")),
    "jest": Language(
        "main.test.js",
        [
            Toolchain(
                {"jest": Program(("jest",), "jest"), "node": _NODE},
                run=(
                    "{jest} --ci --runInBand --watchman=false --rootDir {dir} "
                    "--cacheDirectory {dir}/jest-cache --runTestsByPath {dir}/{file}"
                ),
                files={"package.json": "{}"},
            )
        ],
    ),
    "lua": _script("main.lua", Program(("lua", "lua5.4", "lua5.3", "luajit"), "lua5.4")),
    "r": _script("main.R", Program(("Rscript",), "r-base-core"), "--vanilla"),
    "perl": _script("main.pl", Program(("perl",), "perl")),
    "d_ut": Language(
        "main.d",
        [
            Toolchain(
                {"ldc": Program(("ldc2",), "ldc"), "cc": _CC},
                compile=["{ldc} -unittest -of={dir}/main -od={dir}/objects *.d"],
                run="{dir}/main",
            ),
            Toolchain(
                {"gdc": Program(("gdc",), "gdc")},
                compile=["{gdc} -funittest -o {dir}/main *.d"],
                run="{dir}/main",
            ),
            Toolchain(
                {"dmd": Program(("dmd",), "dmd (dlang.org)"), "cc": _CC},
                compile=["{dmd} -unittest -of={dir}/main -od={dir}/objects *.d"],
                run="{dir}/main",
            ),
        ],
        _d_unittest,
    ),
    "ruby": _script("main.rb", Program(("ruby",), "ruby")),
    "scala": Language(
        "main.scala",
        [
            Toolchain(
                {
                    "scalac": Program(("scalac",), "scala"),
                    "scala": Program(("scala",), "scala"),
                    "java": _JAVA,
                },
                compile=["{scalac} -d {dir}/classes *.scala"],
                run="{scala} -cp {dir}/classes {main}",
                env={"JAVA_OPTS": _JAVA_OPTS},
                folders=["classes"],
            )
        ],
        _scala,
    ),
    "julia": _script("main.jl", Program(("julia",), "julia"), "--startup-file=no"),
    "kotlin_script": Language(
        "main.kts",
        [
            Toolchain(
                {"kotlinc": Program(("kotlinc",), "kotlin"), "java": _JAVA},
                run="{kotlinc} -script {dir}/{file}",
                # Its start script sets an option that newer virtual machines warn about.
                env={"JAVA_OPTS": f"{_JAVA_OPTS} -XX:-PrintWarnings"},
            )
        ],
    ),
    "verilog": Language(
        "main.v",
        [
            Toolchain(
                {
                    "iverilog": Program(("iverilog",), "iverilog"),
                    "vvp": Program(("vvp",), "iverilog"),
                },
                compile=["{iverilog} -g2012 -Wall -o {dir}/main.vvp *.v *.sv"],
                run="{vvp} -n {dir}/main.vvp",
            )
        ],
    ),
    "lean": _script("main.lean", Program(("lean",), "lean (elan)")),
    "swift": Language(
        "main.swift",
        [
            Toolchain(
                {"swiftc": Program(("swiftc",), "swiftlang")},
                compile=["{swiftc} -O -module-cache-path {dir}/modules -o {dir}/main *.swift"],
                run="{dir}/main",
            )
        ],
    ),
    "racket": _script("main.rkt", Program(("racket",), "racket")),
}

# --- decisions ---------------------------------------------------------------------------------


def wanted(language: Language, capabilities: Collection[str]) -> list[str]:
    """Every program name that a probe of the sandbox should look for, once.

    None where the sandbox itself is all that the first way to run it takes.
    """
    usable = _usable(language, capabilities)
    if not usable[0].programs and not usable[0].modules:
        return []
    return list(
        dict.fromkeys(
            name
            for toolchain in usable
            for program in toolchain.programs.values()
            for name in program.names
        )
    )


def _usable(language: Language, capabilities: Collection[str]) -> list[Toolchain]:
    return [
        toolchain
        for toolchain in language.toolchains
        if toolchain.capability is None or toolchain.capability in capabilities
    ]


def choose(
    language: Language,
    capabilities: Collection[str],
    found: Mapping[str, str],
    modules: Collection[str],
) -> tuple[Toolchain, dict[str, Program]]:
    """The first tool chain that is complete; else the one that lacks least, and what it lacks.

    Args:
        found: where the sandbox has a program, by name.
        modules: the Python modules that the sandbox has.
    """
    usable = _usable(language, capabilities)
    lacking = [missing(toolchain, found, modules) for toolchain in usable]
    best = min(range(len(usable)), key=lambda number: len(lacking[number]))
    return usable[best], lacking[best]


def missing(
    toolchain: Toolchain, found: Mapping[str, str], modules: Collection[str]
) -> dict[str, Program]:
    """What a tool chain takes and the sandbox lacks, by the name it goes by."""
    programs = {
        program.names[0]: program
        for program in toolchain.programs.values()
        if not any(name in found for name in program.names)
    }
    return programs | {
        name: Program((name,), package)
        for name, package in toolchain.modules.items()
        if name not in modules
    }


def heap_mib(memory: int | None) -> int:
    """How much a virtual machine may manage of the sandbox's memory (bytes), in MiB.

    The rest is for what it needs besides: code, stacks, its compiler.
    """
    return 1024 if memory is None else max(64, memory * 5 // 8 >> 20)


def make_plan(
    language: Language,
    toolchain: Toolchain,
    *,
    code: str,
    files: Mapping[str, str],
    folder: str,
    found: Mapping[str, str],
    heap: int,
) -> Plan:
    """Decide every file and every command of a run.

    Raises:
        ConfigError: a file has an impossible name, or the code's.
    """
    source = language.source(code) if language.source else Source(language.file)
    validate_files(files, reserved=source.file)
    placed = {**toolchain.files, **source.files, **files, source.file: code}
    names = {
        key: next(found[name] for name in program.names if name in found)
        for key, program in toolchain.programs.items()
    }
    names |= {"dir": folder, "file": source.file, "main": source.main, "heap": str(heap)}

    def fill(command: str) -> list[str]:
        return [word for item in command.split() for word in _expand(item, names, placed)]

    launcher = toolchain.launcher
    return Plan(
        files=placed,
        folders=toolchain.folders,
        compile=[fill(step) for step in toolchain.compile],
        run=fill(toolchain.run),
        launcher=code if launcher == "{code}" else launcher,
        env=_UTF8 | {key: value.format_map(names) for key, value in toolchain.env.items()},
    )


def _expand(item: str, names: Mapping[str, str], placed: Mapping[str, str]) -> list[str]:
    if item.startswith("*."):
        return [f"{names['dir']}/{name}" for name in sorted(placed) if name.endswith(item[1:])]
    return [item.format_map(names)]


def validate_files(files: Mapping[str, str], *, reserved: str) -> None:
    """Check that every name is that of a file below the run's folder, and not the code's.

    Raises:
        ConfigError: one is not.
    """
    for name in files:
        normal = posixpath.normpath(name)
        if (
            normal != name
            or name.startswith(("/", "-", "../"))
            or name in {".", ".."}
            or "\0" in name
            or any(len(part.encode("utf-8", "replace")) > 255 for part in name.split("/"))
        ):
            raise ConfigError(f"files: {name!r} is no name of a file beside the code")
        if name == reserved:
            raise ConfigError(f"files: {name!r} is the name of the code's own file")
