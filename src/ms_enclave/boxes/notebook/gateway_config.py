"""The configuration of the gateway: read by it, in the container, when it starts.

Kernels of the sandbox are started by the sandbox itself, so that it sees how each ends. For the
gateway such a kernel is a program that waits until it is told to end; the kernel is what answers
at the addresses that the gateway has chosen for it.
"""

# pyright: basic

import json
import os
import sys

from tornado.iostream import IOStream

folder = os.path.dirname(os.path.abspath(__file__))
c = get_config()  # type: ignore[name-defined]  # noqa: F821 - the gateway's own

c.KernelGatewayApp.auth_token = os.environ.pop("MS_ENCLAVE_TOKEN")
c.KernelGatewayApp.ip = os.environ.pop("MS_ENCLAVE_IP")
c.KernelGatewayApp.port = int(os.environ.pop("MS_ENCLAVE_PORT"))
c.KernelGatewayApp.port_retries = 0
c.JupyterWebsocketPersonality.list_kernels = True
c.KernelManager.autorestart = False
c.KernelManager.shutdown_wait_time = 0.2
for name in ("ZMQChannelsWebsocketConnection", "ZMQChannelsHandler"):
    c[name].limit_rate = False
    c[name].iopub_msg_rate_limit = 0
    c[name].iopub_data_rate_limit = 0

_WAIT = 'echo $$ > "$0.pid"; exec sleep 2147483647'


def _make_kernelspec():
    place = os.path.join(folder, "share", "kernels", "ms-enclave")
    os.makedirs(place, exist_ok=True)
    spec = {
        "argv": ["/bin/sh", "-c", _WAIT, "{connection_file}"],
        "display_name": "Python (ms-enclave)",
        "language": "python",
        "interrupt_mode": "message",
    }
    with open(os.path.join(place, "kernel.json"), "w") as file:
        json.dump(spec, file)
    with open(os.path.join(folder, "python"), "w") as file:
        file.write(sys.executable)


def _send_at_once():
    """Have messages sent as they come. The gateway's server leaves it to the system to join small
    ones, which holds each cell up until the other side has acknowledged the first: 40 ms."""
    set_nodelay = IOStream.set_nodelay

    def always(self, value):
        set_nodelay(self, True)

    IOStream.set_nodelay = always  # pyright: ignore[reportAttributeAccessIssue]


_make_kernelspec()
_send_at_once()
