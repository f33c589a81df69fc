"""Kernels of the embedded sandbox: what takes its walls and its limits to see."""

from __future__ import annotations

import asyncio
import io
import sys
import zipfile
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.blocking import LocalSandboxManager
from ms_enclave.boxes import SandboxFactory
from ms_enclave.errors import ConfigError, SandboxStateError
from ms_enclave.model import Verdict

if TYPE_CHECKING:
    from ms_enclave.boxes import Sandbox

pytestmark = pytest.mark.namespaces

CONFIG = {"python": sys.prefix, "memory_limit": "512m"}


def sandbox(**more: object) -> Sandbox:
    return SandboxFactory.create_sandbox("process", {**CONFIG, **more})


async def test_a_kernel_that_is_out_of_memory_says_so_and_restarts() -> None:
    async with sandbox() as box:
        kernel, other = await box.kernel(), await box.kernel("other")
        await other.run("x = 1")
        done = await kernel.run("b = bytearray(1 << 30)")
        assert done.verdict is Verdict.OOM
        assert done.error is not None
        assert "out of memory" in done.error.value
        assert kernel.death is Verdict.OOM
        await kernel.restart()
        assert (await kernel.run("1 + 1")).result == {"text/plain": "2"}
        assert (await other.run("x")).result == {"text/plain": "1"}


async def test_preloaded_modules_are_there_before_the_first_cell() -> None:
    async with sandbox() as box:
        kernel = await box.kernel(preload=["numpy", "colorsys"])
        done = await kernel.run("import sys; [m in sys.modules for m in ('numpy', 'colorsys')]")
        assert done.result == {"text/plain": "[True, True]"}
        assert kernel.get_info().preload == ["numpy", "colorsys"]
        with pytest.raises(ConfigError, match="no_such_module"):
            await box.kernel("other", preload=["no_such_module"])


async def test_the_random_numbers_of_two_kernels_differ_unless_there_is_a_seed() -> None:
    for code in ("import random; random.random()", "import numpy; numpy.random.random(3).tolist()"):
        for seed, equal in ((None, False), (5, True)):
            async with sandbox(seed=seed, preload=["numpy"]) as box:
                drawn = [(await (await box.kernel(name)).run(code)).result for name in "ab"]
            assert (drawn[0] == drawn[1]) is equal


async def test_a_kernel_is_the_sandboxs_user_and_sees_nothing_of_the_host() -> None:
    async with sandbox() as box:
        kernel = await box.kernel()
        done = await kernel.run("import os; os.getuid(), os.getcwd()")
        assert done.result == {"text/plain": "(1000, '/sandbox')"}
        status = await kernel.run("print(open('/proc/self/status').read())")
        assert "CapEff:\t0000000000000000" in status.stdout
        assert "Seccomp:\t2" in status.stdout


async def test_a_kernel_is_told_its_folder_and_its_environment() -> None:
    async with sandbox() as box:
        await box.files.mkdir("there")
        kernel = await box.kernel(cwd="there", env={"COLOUR": "red"})
        done = await kernel.run("import os; os.getcwd(), os.environ['COLOUR']")
        assert done.result == {"text/plain": "('/sandbox/there', 'red')"}


async def test_a_stop_ends_the_cell_and_all_that_it_started() -> None:
    async with sandbox() as box:
        kernel = await box.kernel()
        await kernel.run("import subprocess; p = subprocess.Popen(['sleep', '1000'])")
        async with anyio.create_task_group() as group:

            async def run() -> None:
                with pytest.raises(SandboxStateError):
                    await kernel.run("while True: pass")

            group.start_soon(run)
            while kernel.status != "busy":
                await anyio.sleep(0.01)
            await box.stop()
        assert kernel.status == "dead"


async def test_a_deleted_kernel_takes_its_programs_along() -> None:
    async with sandbox() as box:
        kernel = await box.kernel()
        done = await kernel.run(
            "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True).pid"
        )
        assert done.result is not None
        pid = done.result["text/plain"]
        # What was killed may wait for the sandbox's init to reap it; it no longer runs.
        runs = f"grep -q '^State:.[^ZX]' /proc/{pid}/status"
        assert (await box.execute_command(runs)).success
        await kernel.delete()
        assert not (await box.execute_command(runs)).success


async def test_a_kernel_may_be_used_from_one_loop_after_the_other() -> None:
    box = sandbox()

    def once(code: str) -> object:
        async def work() -> object:
            return (await (await box.kernel()).run(code)).result

        return asyncio.run(work())

    await box.start()
    try:
        await anyio.to_thread.run_sync(once, "x = 1")
        assert await anyio.to_thread.run_sync(once, "x") == {"text/plain": "1"}
    finally:
        await box.stop()


def test_ordinary_code_has_kernels_too() -> None:
    with LocalSandboxManager() as manager, manager.sandbox("process", CONFIG) as box:
        kernel = box.kernel()
        kernel.run("x = 1")
        assert kernel.run("x + 1").result == {"text/plain": "2"}
        assert [event.type for event in kernel.run_stream("3")][-1] == "execute_reply"
        assert kernel.run("input('? ')", on_input=lambda prompt: prompt * 2).result == {
            "text/plain": "'? ? '"
        }
        assert [info.name for info in box.list_kernels()] == ["default"]


async def test_a_kernel_may_do_without_ipython_and_shows_figures_all_the_same() -> None:
    async with sandbox() as box:
        kernel = await box.kernel(ipython=False, preload=["matplotlib.pyplot"])
        assert kernel.get_info().implementation == "python"
        done = await kernel.run("'IPython' in __import__('sys').modules")
        assert done.result == {"text/plain": "False"}
        done = await kernel.run(
            "import matplotlib.pyplot as plt\nplt.plot([1]); plt.show()\nprint('then')\n"
            "fig, ax = plt.subplots()\ndisplay(fig, include=['image/svg+xml'])\nplt.close()\n"
            "plt.plot([2]);"
        )
        assert [sorted(bundle) for bundle in done.displays] == [
            ["image/png", "text/plain"],
            ["image/png", "image/svg+xml", "text/plain"],
            ["image/png", "text/plain"],
        ]
        assert done.displays[0]["image/png"].startswith("iVBORw0KGgo")
        assert "<svg" in done.displays[1]["image/svg+xml"]
        done = await kernel.run("import pandas as pd; pd.DataFrame({'a': [1, 2]})")
        assert done.result is not None
        assert "<table" in done.result["text/html"]


# --- with IPython ---


async def test_magics_and_shell_lines_work() -> None:
    async with sandbox() as box:
        kernel = await box.kernel()
        assert (await kernel.run("!echo one; echo two >&2")).stdout == "one\ntwo\n"
        assert (await kernel.run("%%bash\necho $((1 + 1))")).stdout == "2\n"
        assert "loop" in (await kernel.run("%timeit -n1 -r1 1")).stdout
        assert "pip" in (await kernel.run("%pip --version")).stdout
        assert (await kernel.run("x = !echo out\nx[0]")).result == {"text/plain": "'out'"}
        done = await kernel.run("%cd /tmp\n%pwd")
        assert done.result == {"text/plain": "'/tmp'"}


async def test_figures_are_png_and_where_asked_svg() -> None:
    async with sandbox() as box:
        kernel = await box.kernel(preload=["matplotlib.pyplot"])
        plot = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3]);"
        done = await kernel.run(plot)
        assert [sorted(bundle) for bundle in done.displays] == [["image/png", "text/plain"]]
        assert done.displays[0]["image/png"].startswith("iVBORw0KGgo")
        await kernel.run("%config InlineBackend.figure_formats = ['svg']")
        done = await kernel.run(plot)
        assert "<svg" in done.displays[0]["image/svg+xml"]


async def test_tables_are_html_and_text_and_pictures_png() -> None:
    async with sandbox() as box:
        kernel = await box.kernel()
        done = await kernel.run("import pandas as pd; pd.DataFrame({'a': [1, 2]})")
        assert done.result is not None
        assert "<table" in done.result["text/html"]
        assert done.result["text/plain"] == "   a\n0  1\n1  2"
        done = await kernel.run("from PIL import Image; Image.new('RGB', (2, 2))")
        assert done.result is not None
        assert done.result["image/png"].startswith("iVBORw0KGgo")


async def test_an_object_with_a_bundle_of_its_own_is_shown_as_it_says() -> None:
    # As plotly's figures do it.
    async with sandbox() as box:
        done = await (await box.kernel()).run(
            "class Figure:\n"
            "    def _repr_mimebundle_(self, include=None, exclude=None, **more):\n"
            "        return {'application/vnd.plotly.v1+json': {'data': []}, 'text/plain': 'F'}\n"
            "Figure()"
        )
        assert done.result == {
            "application/vnd.plotly.v1+json": {"data": []}, "text/plain": "F",
        }  # fmt: skip


@pytest.mark.parametrize("ipython", [True, False])
async def test_plotlys_figures_are_bundles_that_a_notebook_can_draw(ipython: bool) -> None:
    pytest.importorskip("plotly")
    async with sandbox() as box:
        kernel = await box.kernel(ipython=ipython)
        made = await kernel.run(
            "import plotly.graph_objects as go, plotly.io as pio\n"
            "pio.renderers.default = 'plotly_mimetype'\n"
            "figure = go.Figure(go.Bar(y=[2, 3, 1]))\nfigure"
        )
        shown = await kernel.run("figure")
        assert made.error is None
        for bundle in [*made.displays, made.result, *shown.displays, shown.result]:
            if bundle is not None and "application/vnd.plotly.v1+json" in bundle:
                drawn = bundle["application/vnd.plotly.v1+json"]
                assert drawn["data"][0]["type"] == "bar"
                break
        else:
            pytest.fail(f"no figure in {made} and {shown}")


def wheel() -> bytes:
    """The smallest package that pip takes."""
    content = io.BytesIO()
    facts = "brought_along-1.0.dist-info"
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("brought_along.py", "ANSWER = 42\n")
        head = "Metadata-Version: 2.1\nName: brought-along\nVersion: 1.0\n"
        archive.writestr(f"{facts}/METADATA", head)
        archive.writestr(f"{facts}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
            "Tag: py3-none-any\n")  # fmt: skip
        archive.writestr(f"{facts}/RECORD", "")
    return content.getvalue()


async def test_percent_pip_installs_a_wheel_that_the_sandbox_has() -> None:
    async with sandbox() as box:
        name = "brought_along-1.0-py3-none-any.whl"
        await box.files.write(name, wheel())
        kernel = await box.kernel()
        missing = await kernel.run("import brought_along")
        assert missing.error is not None
        assert missing.error.name == "ModuleNotFoundError"
        done = await kernel.run(f"%pip install --no-index ./{name}")
        assert "Successfully installed brought" in done.stdout, (done.stdout, done.stderr)
        assert (await kernel.run("import brought_along as b; b.ANSWER")).result == {
            "text/plain": "42"
        }
        await kernel.restart()
        assert (await kernel.run("import brought_along as b; b.ANSWER")).result == {
            "text/plain": "42"
        }
        elsewhere = await kernel.run(f"%pip install --no-index --target here ./{name}")
        assert "Successfully installed brought" in elsewhere.stdout
        assert await box.files.exists("here/brought_along.py")


async def test_widgets_have_nobody_to_talk_to_and_the_kernel_goes_on() -> None:
    async with sandbox() as box:
        kernel = await box.kernel()
        done = await kernel.run(
            "import comm\nc = comm.create_comm(target_name='jupyter.widget', data={'state': {}})\n"
            "c.send({'method': 'update'}); c.close(); c.comm_id != ''"
        )
        assert done.error is None
        assert done.result == {"text/plain": "True"}
        assert (await kernel.run("1 + 1")).result == {"text/plain": "2"}
