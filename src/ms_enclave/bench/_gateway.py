"""A gateway by hand: run in a container, it starts Jupyter Kernel Gateway and a kernel, has it run
a cell, and prints what the cell printed. That is what a `docker_notebook` sandbox stands beside.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from typing import Any

URL, TOKEN = "http://127.0.0.1:8888", "by-hand"
OPTIONS = ["--ip=127.0.0.1", "--port=8888", f"--KernelGatewayApp.auth_token={TOKEN}"]
LOOK_AGAIN = 0.02


def ask(path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(  # noqa: S310 - always http
        URL + path, data, {"Authorization": f"token {TOKEN}"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return json.load(answer)


def wait_for_answer() -> None:
    while True:
        try:
            ask("/api")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(LOOK_AGAIN)
        else:
            return


async def run_cell(kernel: str, code: str) -> str:
    websocket: Any = importlib.import_module("tornado.websocket")
    place = f"{URL.replace('http', 'ws')}/api/kernels/{kernel}/channels?token={TOKEN}"
    line = await websocket.websocket_connect(place)
    number = uuid.uuid4().hex
    header = {"msg_id": number, "msg_type": "execute_request", "username": "", "session": number,
              "date": "", "version": "5.3"}  # fmt: skip
    content: dict[str, Any] = {
        "code": code, "silent": False, "store_history": False, "user_expressions": {},
        "allow_stdin": False,
    }  # fmt: skip
    message: dict[str, Any] = {"header": header, "parent_header": {}, "metadata": {},
                               "content": content, "channel": "shell"}  # fmt: skip
    await line.write_message(json.dumps(message))
    while True:
        told = json.loads(await line.read_message())
        mine = told["parent_header"].get("msg_id") == number
        if mine and told["header"]["msg_type"] == "stream":
            return told["content"]["text"]


def main() -> None:
    gateway = subprocess.Popen(["jupyter-kernelgateway", *OPTIONS], stderr=subprocess.DEVNULL)  # noqa: S607
    try:
        wait_for_answer()
        kernel = ask("/api/kernels", {})["id"]
        print(asyncio.run(run_cell(kernel, "print(1)")), end="", flush=True)  # noqa: T201
    finally:
        gateway.kill()


if __name__ == "__main__":
    main()
