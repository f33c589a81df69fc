#!/usr/bin/env python3
"""Write `ms_enclave/blocking.py` from the async source; `--check` fails where it is stale.

The blocking classes have the public methods of the async ones, with the same parameters and
docstrings, so that a type checker and an editor see them. There is no second implementation: each
method makes one call on the private loop.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import difflib
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, cast

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "ms_enclave"
TARGET = SOURCE / "blocking.py"

HEADER = '''"""The same manager, sandboxes and files for ordinary code, without `async` and `await`.

Every call runs on the one private event-loop thread and blocks until it has ended; Ctrl-C cancels
what it was doing and waits for the clean-up. Async iterators are iterators here, and async context
managers context managers. `run` is the whole of it in one line.

Written by scripts/generate_blocking.py from the async source: change that, not this.
"""
'''

RUN = '''
def run(
    code: str | None = None,
    *,
    command: str | Sequence[str] | None = None,
    sandbox_type: str = "auto",
    timeout: float = 30,
    stdin: bytes | str | None = None,
    files: Mapping[str, bytes | str] = MappingProxyType({}),
    config: SandboxConfig | Mapping[str, Any] | None = None,
) -> CommandResult:
    """Run Python source, or a command, in a fresh sandbox; nothing of it stays.

    A command that is a string is a shell line, a list is an argv. Who runs many programs makes a
    `LocalSandboxManager` once, which is much quicker.

    Args:
        timeout: seconds that the program may run.
        stdin: what the program reads.
        files: what is put beside the program: relative name to content.

    Raises:
        ConfigError: there is neither code nor a command, there are both, or one is not valid.
        IsolationUnavailableError: this machine cannot isolate; `remedy` says what to do.
        SandboxStartError: the sandbox cannot be made.
    """
    if (code is None) == (command is None):
        raise ConfigError("No code provided" if code is None else "code or command, not both")

    async def work() -> CommandResult:
        async with (
            _local_manager.LocalSandboxManager() as manager,
            manager.sandbox(sandbox_type, config) as sandbox,
        ):
            for name, content in files.items():
                await sandbox.files.write(name, content)
            if command is not None:
                return await sandbox.execute_command(command, timeout, stdin=stdin)
            return await sandbox.run_code(code or "", timeout=timeout, stdin=stdin)

    return call(work)
'''

HELPERS = '''
_END: Any = object()


def _feed(data: Any) -> Any:
    """An iterable of pieces as the async one that our loop reads; each step runs in a thread."""
    if isinstance(data, (bytes, bytearray, memoryview, str)) or not isinstance(data, Iterable):
        return cast("Any", data)
    return _pieces(cast("Iterable[bytes]", data))


async def _pieces(data: Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    steps = iter(data)
    while (piece := await anyio.to_thread.run_sync(next, steps, _END)) is not _END:
        yield piece
'''


Method: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef"


@dataclass(frozen=True)
class Spec:
    """One class to be written."""

    module: str
    name: str
    alias: str
    bases: tuple[str, ...] = ()
    attributes: dict[str, str] = field(default_factory=dict[str, str])
    """Instance attributes and their types: assigned in `__init__`, where no annotation says so."""
    constructor: bool = False
    """Whether callers make one, with the async class's own parameters."""
    skip: frozenset[str] = frozenset()
    """Public methods that make no sense here."""
    factory: bool = False
    """Whether it has class methods only."""


SPECS = (
    Spec("boxes/files.py", "Files", "_files"),
    Spec("boxes/ports.py", "PortStream", "_ports"),
    Spec("boxes/shells.py", "Shell", "_shells", attributes={"name": "str"}),
    Spec(
        "boxes/commands.py",
        "Command",
        "_commands",
        attributes={
            "id": "str",
            "pid": "int",
            "command": "str | list[str]",
            "tag": "str | None",
        },
    ),
    Spec(
        "boxes/kernels.py",
        "Kernel",
        "_kernels",
        attributes={"id": "str", "name": "str", "created_at": "datetime"},
        skip=frozenset({"request"}),
    ),
    Spec(
        "boxes/base.py",
        "Sandbox",
        "_base",
        attributes={
            "id": "str",
            "sandbox_type": "str",
            "config": "SandboxConfig",
            "metadata": "dict[str, Any]",
            "created_at": "datetime",
            "updated_at": "datetime",
            "files": "Files",
        },
        skip=frozenset(
            {
                "adopt",
                "leave_owner",
                "release_owner",
                "diagnose",
                "get_execution_context",
                "find_all",
                "remove_found",
                "clear_cache",
            }
        ),
    ),
    Spec(
        "boxes/factory.py",
        "SandboxFactory",
        "_factory",
        skip=frozenset({"register_sandbox", "get_class"}),
        factory=True,
    ),
    Spec(
        "manager/base.py",
        "SandboxManager",
        "_manager",
        attributes={"config": "SandboxManagerConfig"},
    ),
    Spec(
        "manager/local_manager.py",
        "LocalSandboxManager",
        "_local_manager",
        bases=("SandboxManager",),
        constructor=True,
    ),
    Spec(
        "manager/http_manager.py",
        "HttpSandboxManager",
        "_http_manager",
        bases=("SandboxManager",),
        constructor=True,
    ),
    Spec(
        "manager/base.py",
        "SandboxManagerFactory",
        "_manager",
        skip=frozenset({"register_manager"}),
        factory=True,
    ),
)
WRAPPED = {spec.name for spec in SPECS if not spec.factory}
EXTRA_IMPORTS = {
    "Any": "typing",
    "datetime": "datetime",
    "SandboxConfig": "ms_enclave.model",
    "SandboxManagerConfig": "ms_enclave.model",
    "CommandResult": "ms_enclave.model",
    "Mapping": "collections.abc",
    "Sequence": "collections.abc",
    "Iterable": "collections.abc",
    "Iterator": "collections.abc",
    "Generator": "collections.abc",
    "TracebackType": "types",
    "Self": "typing_extensions",
}
ALREADY_IMPORTED = ("Any", "Iterable", "cast")
ITERATORS = ("AsyncIterator", "AsyncGenerator")
CONTEXTS = ("AsyncContextManager", "AbstractAsyncContextManager")


class Module:
    """A parsed source file and where its names come from."""

    def __init__(self, path: str) -> None:
        self.tree = ast.parse((SOURCE / path).read_text(encoding="utf-8"))
        self.imports: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                self.imports |= {alias.asname or alias.name: node.module for alias in node.names}
            elif isinstance(node, ast.Import):
                self.imports |= {alias.name: "" for alias in node.names}

    def methods(self, node: ast.ClassDef) -> dict[str, tuple[Method, Module]]:
        """The methods of a class and of those it is built on, each with the file it stands in."""
        found: dict[str, tuple[Method, Module]] = {}
        for base in node.bases:
            name = ast.unparse(base).split("[")[0]
            origin = self.imports.get(name, "")
            if origin.startswith("ms_enclave.") and name not in WRAPPED:
                home = Module(origin.partition(".")[2].replace(".", "/") + ".py")
                found |= home.methods(home.find(name))
        for method in node.body:
            if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found[method.name] = (method, self)
        return found

    def constant(self, node: ast.expr | None) -> ast.expr | None:
        """A default, with the value of a constant of the module in place of its name."""
        for line in self.tree.body:
            is_assignment = isinstance(line, ast.Assign) and isinstance(node, ast.Name)
            if is_assignment and ast.unparse(line.targets[0]) == node.id:
                return line.value
        return node

    def find(self, name: str) -> ast.ClassDef:
        """The class of that name."""
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return node
        raise SystemExit(f"no class {name}: bring scripts/generate_blocking.py up to date")


class Writer:
    """Collects the text of the module, and the imports that it needs."""

    def __init__(self) -> None:
        self.imports: dict[str, set[str]] = {}
        self.modules: set[str] = set()
        self.lines: list[str] = []

    def _need(self, node: ast.AST, module: Module) -> None:
        """Note the names of an annotation or default."""
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                continue
            if isinstance(part, ast.Name):
                self.need_name(part.id, module)

    def need_name(self, name: str, module: Module) -> None:
        """Note one name."""
        if name in WRAPPED or name in vars(builtins) or name in ALREADY_IMPORTED:
            return
        origin = module.imports.get(name)
        if origin is None:
            origin = EXTRA_IMPORTS.get(name)
        if origin is None:
            raise SystemExit(f"where does {name} come from? Say so in scripts/generate_blocking.py")
        if origin:
            self.imports.setdefault(origin, set()).add(name)
        else:
            self.modules.add(name)

    def write_class(self, spec: Spec) -> None:
        """One class with all its public methods."""
        module = Module(spec.module)
        node = module.find(spec.name)
        origin = f"{spec.alias}.{spec.name}"
        bases = f"({', '.join(spec.bases)})" if spec.bases else ""
        self.lines += ["", "", f"class {spec.name}{bases}:"]
        self._docstring(node, "    ")
        if not spec.factory:
            self._constructor(spec, node, module, origin)
        for name, annotation in spec.attributes.items():
            self._attribute(name, annotation, module)
        methods = module.methods(node)
        for method, home in methods.values():
            if method.name not in spec.skip:
                self._write_method(method, spec, home)
        if not methods.keys().isdisjoint({"__aenter__", "aclose"}) and not spec.bases:
            self._with_block(module)

    def _docstring(self, node: ast.ClassDef | Method, indent: str) -> None:
        text = ast.get_docstring(node)
        if text is None:
            return
        for word in ("an async context manager", "async context manager"):
            text = text.replace(word, word.replace("an async", "a").replace("async ", ""))
        text = text.replace("`async with`", "`with`").replace("an async iterable", "an iterable")
        text = text.replace("async iterable", "iterable").replace("\\", "\\\\")
        self.lines += textwrap.indent(
            f'"""{text}' + ('\n"""' if "\n" in text else '"""'), indent
        ).splitlines()

    def _constructor(self, spec: Spec, node: ast.ClassDef, module: Module, origin: str) -> None:
        if not spec.constructor:
            if not spec.bases:
                self.lines += [
                    "",
                    f"    def __init__(self, target: {origin}) -> None:",
                    "        self._target = target",
                ]
            return
        init = next(m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__")
        self._need_signature(init, module)
        self.lines += [
            "",
            f"    def __init__(self, {ast.unparse(self._parameters(init, module))}) -> None:",
            f"        target = {origin}({', '.join(arguments(init))})",
            "        super().__init__(target)",
            "        self._target = target",
        ]

    def _attribute(self, name: str, annotation: str, module: Module) -> None:
        for part in ast.walk(ast.parse(annotation)):
            if isinstance(part, ast.Name):
                self.need_name(part.id, module)
        value = f"self._target.{name}"
        if annotation in WRAPPED:
            value = f"{annotation}({value})"
        self.lines += [
            "",
            "    @property",
            f"    def {name}(self) -> {annotation}:",
            '        """As the async one has it."""',
            f"        return {value}",
        ]

    def _need_signature(self, method: Method, module: Module) -> None:
        arguments_ = method.args
        every = [
            *arguments_.posonlyargs,
            *arguments_.args,
            *arguments_.kwonlyargs,
            *filter(None, [arguments_.vararg, arguments_.kwarg]),
        ]
        for argument in every:
            if argument.annotation is not None:
                self._need(blocking_type(argument.annotation), module)

    @staticmethod
    def _parameters(method: Method, module: Module) -> ast.arguments:
        """The parameters without `self` or `cls`, in blocking types."""
        copy = cast("ast.FunctionDef", ast.parse(ast.unparse(method)).body[0])
        copy.args.args = copy.args.args[1:]
        copy.args.defaults = [module.constant(node) or node for node in copy.args.defaults]
        copy.args.kw_defaults = [module.constant(node) for node in copy.args.kw_defaults]
        for argument in ast.walk(copy.args):
            if isinstance(argument, ast.arg) and argument.annotation is not None:
                argument.annotation = blocking_type(argument.annotation)
        return copy.args

    def _write_method(self, method: Method, spec: Spec, module: Module) -> None:
        if method.name.startswith("_") or _is_property_setter(method):
            return
        kinds = {ast.unparse(decorator).split("(")[0] for decorator in method.decorator_list}
        returns = method.returns or ast.Constant(None)
        how, result = self._kind_of(method, kinds, returns)
        given = self._parameters(method, module)
        self._need_signature(method, module)
        self._need(result, module)
        shown = ast.unparse(result)
        first = "cls" if "classmethod" in kinds else "self"
        head = ", ".join(filter(None, [first, ast.unparse(given)]))
        for kind in ("property", "classmethod"):
            if kind in kinds:
                self.lines += ["", f"    @{kind}"]
                break
        else:
            self.lines.append("")
        if how == "context":
            self.lines.append("    @contextmanager")
            shown = f"Generator[{shown}, None, None]"
        elif how == "iterate":
            shown = f"Iterator[{shown}]"
        self.lines.append(f"    def {method.name}({head}) -> {shown}:")
        self._docstring(method, "        ")
        owner = f"{spec.alias}.{spec.name}" if "classmethod" in kinds else "self._target"
        self._body(how, f"{owner}.{method.name}", arguments(method), result, "property" in kinds)

    @staticmethod
    def _kind_of(method: Method, kinds: set[str], returns: ast.expr) -> tuple[str, ast.expr]:
        """How the method is called, and what it gives."""
        name = ast.unparse(returns).split("[")[0]
        if isinstance(returns, ast.Subscript) and (
            "asynccontextmanager" in kinds or name in CONTEXTS
        ):
            return "context", _first_argument(returns)
        if isinstance(returns, ast.Subscript) and name in ITERATORS:
            return "iterate", _first_argument(returns)
        return ("call" if isinstance(method, ast.AsyncFunctionDef) else "plain"), returns

    def _body(
        self, how: str, target: str, given: list[str], result: ast.expr, is_property: bool
    ) -> None:
        shown = ast.unparse(result)
        wrapped = next((name for name in WRAPPED if shown in (name, f"{name} | None")), None)
        if how == "context":
            wrap = f"{wrapped}(value)" if wrapped else "value"
            self.lines += [
                f"        with enter({target}({', '.join(given)})) as value:",
                f"            yield {wrap}",
            ]
            return
        if how in ("call", "iterate"):
            expression = f"{how}({', '.join([target, *given])})"
        else:
            expression = target if is_property else f"{target}({', '.join(given)})"
        if wrapped and shown == wrapped:
            expression = f"{wrapped}({expression})"
        if wrapped and shown != wrapped:
            self.lines += [
                f"        value = {expression}",
                f"        return None if value is None else {wrapped}(value)",
            ]
        elif many := next((name for name in WRAPPED if shown == f"list[{name}]"), None):
            self.lines.append(f"        return [{many}(one) for one in {expression}]")
        elif shown == "None":
            self.lines.append(f"        {expression}")
        else:
            self.lines.append(f"        return {expression}")

    def _with_block(self, module: Module) -> None:
        for name in ("Self", "TracebackType"):
            self.need_name(name, module)
        self.lines += (
            textwrap.indent(
                textwrap.dedent(
                    """
                def __enter__(self) -> Self:
                    call(self._target.__aenter__)
                    return self

                def __exit__(
                    self,
                    exc_type: type[BaseException] | None,
                    exc: BaseException | None,
                    traceback: TracebackType | None,
                ) -> None:
                    call(self._target.__aexit__, exc_type, exc, traceback)
                """
                ),
                "    ",
            )
            .rstrip()
            .splitlines()
        )

    def text(self) -> str:
        """The whole module, before the formatter has seen it."""
        imports = [
            f"from {origin} import {', '.join(sorted(names))}"
            for origin, names in sorted(self.imports.items())
        ]
        names = sorted([*(spec.name for spec in SPECS), "run"])
        return "\n".join(
            [
                HEADER,
                "from __future__ import annotations",
                "",
                "from collections.abc import Iterable",
                "from contextlib import contextmanager",
                "from types import MappingProxyType",
                "from typing import TYPE_CHECKING, Any, cast",
                "import anyio.to_thread",
                "from ms_enclave.boxes import base as _base",
                "from ms_enclave.boxes import commands as _commands",
                "from ms_enclave.boxes import shells as _shells",
                "from ms_enclave.boxes import factory as _factory",
                "from ms_enclave.boxes import files as _files",
                "from ms_enclave.boxes import ports as _ports",
                "from ms_enclave.errors import ConfigError",
                "from ms_enclave.loop import call, enter, iterate",
                "from ms_enclave.manager import base as _manager",
                "from ms_enclave.manager import http_manager as _http_manager",
                "from ms_enclave.manager import local_manager as _local_manager",
                "if TYPE_CHECKING:",
                "    from collections.abc import AsyncGenerator",
                "    from ms_enclave.boxes import kernels as _kernels",
                *(f"    {line}" for line in imports),
                *(f"    import {name}" for name in sorted(self.modules)),
                "",
                f"__all__ = {names!r}",
                HELPERS,
                *self.lines,
                "",
                RUN,
            ]
        )


def _is_property_setter(method: Method) -> bool:
    return any(ast.unparse(decorator).endswith(".setter") for decorator in method.decorator_list)


def _first_argument(node: ast.Subscript) -> ast.expr:
    return node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice


class _Blocking(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.AST:
        names = {"AsyncIterable": "Iterable", "AsyncIterator": "Iterator"}
        return ast.Name(names.get(node.id, node.id), node.ctx)


def blocking_type(annotation: ast.expr) -> ast.expr:
    """An annotation with iterables for async iterables."""
    copy = ast.parse(ast.unparse(annotation), mode="eval").body
    return cast("ast.expr", _Blocking().visit(copy))


def arguments(method: Method) -> list[str]:
    """How a method's own parameters are passed on."""

    def passed(argument: ast.arg) -> str:
        annotation = "" if argument.annotation is None else ast.unparse(argument.annotation)
        return f"_feed({argument.arg})" if "AsyncIterable" in annotation else argument.arg

    given = [passed(argument) for argument in [*method.args.posonlyargs, *method.args.args][1:]]
    if method.args.vararg is not None:
        given.append(f"*{method.args.vararg.arg}")
    given += [f"{argument.arg}={passed(argument)}" for argument in method.args.kwonlyargs]
    if method.args.kwarg is not None:
        given.append(f"**{method.args.kwarg.arg}")
    return given


def generate() -> str:
    """The module as it should stand in the repository."""
    writer = Writer()
    for spec in SPECS:
        writer.write_class(spec)
    for name in ("Mapping", "Sequence", "Iterator", "Generator", "SandboxConfig", "CommandResult"):
        writer.need_name(name, Module("manager/base.py"))
    text = writer.text()
    for command in (
        ["check", "--fix", "--quiet", "--select", "I,F401,TC,UP"],
        ["format", "--quiet"],
    ):
        text = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(TARGET), "-"],
            input=text, capture_output=True, text=True, check=False, cwd=ROOT,
        ).stdout or text  # fmt: skip
    return text


def main() -> int:
    """Write the module, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 where it is stale")
    check = parser.parse_args().check
    text = generate()
    old = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
    if not check:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if text == old:
        return 0
    sys.stdout.writelines(
        difflib.unified_diff(
            old.splitlines(keepends=True), text.splitlines(keepends=True), "there", "wanted"
        )
    )
    print("src/ms_enclave/blocking.py is stale: run scripts/generate_blocking.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
