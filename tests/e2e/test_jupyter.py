"""Real clients speak to kernels of sandboxes, and see what they see of ipykernel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from ms_enclave.cli.main import main
from tests.support.parts import descendants_of, wait_until_dead

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jupyter_client.blocking.client import BlockingKernelClient

pytestmark = [
    pytest.mark.namespaces,
    pytest.mark.leaves("jupyter_client keeps an event loop for each thread"),
    # Theirs: sockets that they leave to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

NAME = "enclave-test"
CELLS = [
    "x = 20\nx + 1",
    "print('one'); import sys; print('two', file=sys.stderr)",
    "def f(n):\n    return n / 0\n",
    "f(1)",
    "import pandas as pd\npd.DataFrame({'a': [1, 2], 'b': ['x', 'y']})",
    "from IPython.display import HTML, Markdown\ndisplay(HTML('<b>bold</b>'), Markdown('*m*'))",
    "handle = display('old', display_id='the-one')",
    "handle.update('new')",
    "from IPython.display import clear_output\nprint('gone'); clear_output(); print('stays')",
    "for i in range(3):\n    clear_output(wait=True); print(i)",
    "import asyncio\nawait asyncio.sleep(0.01)\n'awaited'",
    "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2, 3]); plt.title('t')",
    "fig, ax = plt.subplots(); ax.bar(['a'], [1]); plt.show()\nprint('after')",
    "!echo from a shell",
    "%%bash\necho from bash",
    "1 +",
    "undefined_name",
    "class P:\n    def _repr_pretty_(self, p, cycle): p.text('pretty!')\n"
    "    def _repr_latex_(self): return '$x$'\nP()",
    "[{'long': list(range(30))} for _ in range(3)]",
    "%who_ls int",
]


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    prefix = tmp_path_factory.mktemp("jupyter")
    options = ["--name", NAME, "--prefix", str(prefix), "--preload", "pandas"]
    assert main(["jupyter", "install", *options]) == 0
    old = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = str(prefix / "share" / "jupyter")
    os.environ["JUPYTER_RUNTIME_DIR"] = str(prefix / "run")
    try:
        yield prefix
    finally:
        del os.environ["JUPYTER_RUNTIME_DIR"]
        if old is None:
            del os.environ["JUPYTER_PATH"]
        else:
            os.environ["JUPYTER_PATH"] = old


@pytest.fixture
def client(specs: Path) -> Iterator[BlockingKernelClient]:
    manager = KernelManager(kernel_name=NAME, kernel_spec_manager=KernelSpecManager())
    manager.start_kernel()
    opened = manager.blocking_client()
    opened.start_channels()
    try:
        opened.wait_for_ready(timeout=60)
        opened.manager_of_test = manager
        yield opened
    finally:
        opened.stop_channels()
        manager.shutdown_kernel(now=False)
        manager.cleanup_resources()


def run(client: BlockingKernelClient, code: str, **more: Any) -> tuple[dict[str, Any], list[Any]]:
    seen: list[Any] = []
    reply = client.execute_interactive(
        code, timeout=60, output_hook=lambda message: seen.append(message), **more
    )
    return reply["content"], [(m["msg_type"], m["content"]) for m in seen]


def test_jupyter_lists_it(specs: Path) -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "jupyter_client.kernelspecapp", "list", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert NAME in json.loads(listed.stdout)["kernelspecs"]


def test_jupyter_client_runs_cells_in_a_sandbox(client: BlockingKernelClient) -> None:
    reply, seen = run(client, "import os\nprint('hi')\nos.getuid()")
    assert (reply["status"], reply["execution_count"]) == ("ok", 1)
    kinds = [kind for kind, _ in seen]
    assert kinds == ["status", "execute_input", "stream", "execute_result", "status"]
    assert seen[2][1] == {"name": "stdout", "text": "hi\n"}
    assert seen[3][1]["data"] == {"text/plain": "1000"}
    reply, _ = run(client, "y = 3", user_expressions={"twice": "2 * y"})
    assert reply["user_expressions"]["twice"]["data"] == {"text/plain": "6"}


def test_jupyter_client_completes_inspects_and_tells_whole_code(
    client: BlockingKernelClient,
) -> None:
    run(client, "wonderful = 1\ndef helper():\n    '''Helps.'''")
    reply = client.complete("wonder", reply=True, timeout=30)["content"]
    assert reply["matches"] == ["wonderful"]
    assert (
        "Helps."
        in client.inspect("helper", reply=True, timeout=30)["content"]["data"]["text/plain"]
    )
    client.is_complete("for i in x:")
    assert client.get_shell_msg(timeout=30)["content"]["status"] == "incomplete"
    assert client.history(reply=True, timeout=30)["content"]["history"] == []


def test_jupyter_client_answers_input(client: BlockingKernelClient) -> None:
    def answer(message: dict[str, Any]) -> None:
        client.input(message["content"]["prompt"] * 2)

    _, seen = run(client, "input('ab')", allow_stdin=True, stdin_hook=answer)
    assert ("execute_result", "'abab'") in [
        (kind, content.get("data", {}).get("text/plain")) for kind, content in seen
    ]


def test_comm_messages_of_a_front_end_lead_nowhere_and_break_nothing(
    client: BlockingKernelClient,
) -> None:
    for kind in ("comm_open", "comm_msg", "comm_close"):
        content = {"comm_id": "1", "target_name": "jupyter.widget", "data": {}}
        client.shell_channel.send(client.session.msg(kind, content))
    client.comm_info(reply=False)
    replies = [client.get_shell_msg(timeout=30)]
    while replies[-1]["msg_type"] == "kernel_info_reply":  # of what waited for it to be ready
        replies.append(client.get_shell_msg(timeout=30))
    assert replies[-1]["msg_type"] == "comm_info_reply"
    assert replies[-1]["content"] == {"status": "ok", "comms": {}}
    reply, seen = run(client, "1 + 1")
    assert reply["status"] == "ok"
    assert [c["data"] for k, c in seen if k == "execute_result"] == [{"text/plain": "2"}]


def test_jupyter_interrupts_and_restarts(client: BlockingKernelClient) -> None:
    manager = client.manager_of_test
    run(client, "x = 5")
    request = client.execute("print('begun')\nwhile True: pass")
    while True:
        message = client.get_iopub_msg(timeout=30)
        if message["msg_type"] == "stream" and message["parent_header"]["msg_id"] == request:
            break
    manager.interrupt_kernel()
    assert client.get_shell_msg(timeout=30)["content"]["ename"] == "KeyboardInterrupt"
    assert run(client, "x")[0]["status"] == "ok"
    manager.restart_kernel()
    client.wait_for_ready(timeout=60)
    assert run(client, "x")[0]["ename"] == "NameError"


def test_a_kernel_that_dies_is_dead_for_jupyter_too(specs: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import os; os._exit(1)")])
    with pytest.raises((DeadKernelError, CellExecutionError), match="died"):
        NotebookClient(notebook, kernel_name=NAME, timeout=60).execute()


def test_nothing_is_left_of_a_kernel_whose_jupyter_was_killed(specs: Path) -> None:
    code = (
        "import time\nfrom jupyter_client.manager import KernelManager\n"
        f"manager = KernelManager(kernel_name={NAME!r})\nmanager.start_kernel()\n"
        "client = manager.client(); client.start_channels(); client.wait_for_ready(timeout=60)\n"
        "print(manager.provisioner.pid, flush=True)\ntime.sleep(600)"
    )
    jupyter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert jupyter.stdout is not None
        bridge = int(jupyter.stdout.readline())
        below = descendants_of(bridge)
        assert below, "the bridge has no station"
    finally:
        jupyter.kill()
        jupyter.wait()
        jupyter.stdout.close()
    assert wait_until_dead({bridge, *below}, 20) == set()


def plain(value: Any) -> Any:
    """Outputs without what differs for a reason, which docs/kernels.md says."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, str):
        return value
    value = re.sub(r"\x1b\[[0-9;]*m", "", value).replace("\r\n", "\n")
    return re.sub(r"\((\d+\.py|<ipython-input-[^>]*>), line", "(CELL, line", value)


def executed(kernel: str) -> list[Any]:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    NotebookClient(notebook, kernel_name=kernel, timeout=60, allow_errors=True).execute()
    return [
        [*(plain(dict(output)) for output in cell.outputs), cell.execution_count]
        for cell in notebook.cells
    ]


def test_a_notebook_of_20_cells_has_the_outputs_that_ipykernel_gives(specs: Path) -> None:
    theirs, ours = executed("python3"), executed(NAME)
    assert len(ours) == 20
    assert sum(len(outputs) > 1 for outputs in ours) >= 18
    assert ours == theirs
