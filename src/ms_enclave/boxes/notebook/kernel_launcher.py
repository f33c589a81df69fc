"""Starts ipykernel in the container: as it always is, but with bounds on what it sends at once.

`kernel_launcher.py CONNECTION_FILE FACTS`, where the second is JSON: `preload`, `seed`, `most`.
"""

# pyright: basic, reportAttributeAccessIssue=false

import asyncio
import contextlib
import functools
import importlib
import json
import os
import random
import signal
import sys
import traceback

_PIECE = 1 << 18
_MOST_OF_ERROR, _MOST_LINES = 1 << 18, 1000


def _preload(names):
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException:  # noqa: BLE001 - whatever the module does
            traceback.print_exc()
            sys.stderr.write("preload: the module %s cannot be imported\n" % name)
            sys.exit(1)


def _bound_streams():
    """Have what is printed sent in pieces, and not faster than it can be taken."""
    from ipykernel.iostream import OutStream

    write = OutStream.write

    def write_pieces(self, text):
        if isinstance(text, str) and len(text) > _PIECE:
            for start in range(0, len(text), _PIECE):
                write_pieces(self, text[start : start + _PIECE])
            return len(text)
        written = write(self, text)
        self._unsent = getattr(self, "_unsent", 0) + len(text)
        if self._unsent >= _PIECE:
            self._unsent = 0
            self.flush()
        return written

    OutStream.write = write_pieces


def _fit(data, most):
    """Leave out what is larger than may be shown, and say so."""
    lost = 0
    fitting = {}
    for kind in sorted(data, key=lambda kind: kind != "text/plain"):
        value = data[kind]
        size = (
            len(value) if isinstance(value, (str, bytes)) else len(json.dumps(value, default=str))
        )
        if size > most:
            lost += size
            if kind == "text/plain":
                fitting[kind] = value[:1000]
        else:
            fitting[kind] = value
    if lost:
        plain = fitting.get("text/plain", "")
        fitting["text/plain"] = "%s\n[%d bytes were too many to be shown]" % (plain, lost)
    return fitting, lost


def _bound_displays(most):
    from ipykernel.displayhook import ZMQShellDisplayHook
    from ipykernel.zmqshell import ZMQDisplayPublisher

    publish = ZMQDisplayPublisher.publish
    write = ZMQShellDisplayHook.write_format_data

    def publish_fitting(self, data, metadata=None, **rest):
        fitting, lost = _fit(data, most)
        if lost:
            metadata = {"ms-enclave-lost": lost}
        publish(self, fitting, metadata, **rest)

    def write_fitting(self, format_dict, md_dict=None):
        fitting, lost = _fit(format_dict, most)
        write(self, fitting, {"ms-enclave-lost": lost} if lost else md_dict)

    ZMQDisplayPublisher.publish = publish_fitting
    ZMQShellDisplayHook.write_format_data = write_fitting


def _bound_errors():
    """Have no more of an error sent than somebody could read."""
    from ipykernel.ipkernel import IPythonKernel
    from ipykernel.zmqshell import ZMQInteractiveShell

    show, execute = ZMQInteractiveShell._showtraceback, IPythonKernel.do_execute

    def show_fitting(self, etype, evalue, stb):
        text = str(evalue)
        if len(text) > _MOST_OF_ERROR:
            evalue = _Clipped(text[:_MOST_OF_ERROR])
        return show(self, etype, evalue, _fitting_lines(stb))

    async def execute_fitting(self, code, silent, *arguments, **options):
        if silent:  # nothing else tells that it can be interrupted from now on
            self.send_response(self.iopub_socket, "ms_enclave_begun", {})
        reply = await execute(self, code, silent, *arguments, **options)
        if "evalue" in reply:
            reply["evalue"] = reply["evalue"][:_MOST_OF_ERROR]
            reply["traceback"] = _fitting_lines(reply.get("traceback") or [])
        return reply

    ZMQInteractiveShell._showtraceback = show_fitting
    IPythonKernel.do_execute = functools.wraps(execute)(execute_fitting)


def _let_interrupts_end_an_await():
    """Have SIGINT cancel what a cell awaits: some ipykernels then wait on."""
    from ipykernel.ipkernel import IPythonKernel

    @contextlib.contextmanager
    def cancel_on_sigint(self, future):
        loop = asyncio.get_running_loop()
        saved = signal.signal(
            signal.SIGINT, lambda *_signal: loop.call_soon_threadsafe(future.cancel)
        )
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, saved)

    IPythonKernel._cancel_on_sigint = cancel_on_sigint


class _Clipped(Exception):
    """Stands for an error whose text is too long."""


def _fitting_lines(lines):
    fitting, room = [], _MOST_OF_ERROR
    for line in lines[:_MOST_LINES]:
        fitting.append(line[:room])
        room = max(0, room - len(line))
    return fitting


def _end_forks():
    """Have a fork of the kernel end with its cell: it is nobody's kernel."""

    def in_child():
        from IPython import get_ipython

        def end(*_result):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

        shell = get_ipython()
        if shell is not None:
            shell.events.register("post_run_cell", end)

    os.register_at_fork(after_in_child=in_child)


def _seed_first_cell(shell, seed):
    """Have random numbers start at the seed when the first cell does: before that some are drawn,
    and not always as many."""

    def begin():
        shell.events.unregister("pre_execute", begin)
        random.seed(seed)
        if "numpy" in sys.modules:  # which loads this when it is asked for
            importlib.import_module("numpy.random").seed(seed % 2**32)
        if "torch" in sys.modules:
            sys.modules["torch"].manual_seed(seed)

    shell.events.register("pre_execute", begin)


def main():
    connection_file, facts = sys.argv[1], json.loads(sys.argv[2])
    sys.path[0] = ""  # where this file is has nothing for cells
    _preload(facts["preload"])
    import zmq
    from ipykernel.kernelapp import IPKernelApp

    _bound_streams()
    _bound_displays(facts["most"])
    _bound_errors()
    _let_interrupts_end_an_await()
    _end_forks()

    class App(IPKernelApp):
        def init_iopub(self, context):
            context.setsockopt(zmq.SNDHWM, 0)  # else a flood would lose the end of its cell
            return super().init_iopub(context)

        def log_connection_info(self):
            """Nobody reads how to connect to it."""

        def start(self):
            if facts["seed"] is not None:
                _seed_first_cell(self.shell, facts["seed"])
            super().start()

    sys.argv = ["ipykernel", "-f", connection_file, "--log-level=ERROR"]
    # Every answer to who it is would hold a tip that is drawn with the cells' random numbers.
    sys.argv.append("--InteractiveShell.enable_tip=False")
    App.launch_instance()


if __name__ == "__main__":
    main()
