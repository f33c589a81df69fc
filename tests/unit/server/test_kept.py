"""A server keeps nothing of what has ended."""

from __future__ import annotations

import gc
import weakref

from ms_enclave import wire
from ms_enclave.manager import HttpSandboxManager
from tests.support.subprocess_box import install
from tests.unit.server.test_gate import ask, serving

install()

KERNEL = wire.dump({"name": "default", "ipython": False})


async def test_a_sandbox_that_is_deleted_is_forgotten_with_its_kernels() -> None:
    async with serving(policy={"sandbox_types": ["subprocess"]}) as server:
        body = wire.dump({"sandbox_type": "subprocess"})
        made = (await ask(server, "POST", "/v1/sandboxes", body)).data["sandbox_id"]
        path = f"/v1/sandboxes/{made}"
        opened = (await ask(server, "POST", f"{path}/kernels", KERNEL)).data
        found = await ask(server, "GET", f"{path}/kernels/{opened['info']['id']}")
        assert found.data["kernel"] == opened
        box = weakref.ref(await server.manager.get_sandbox(made))
        assert box() is not None
        assert (await ask(server, "DELETE", path)).status == 200
        gc.collect()
        assert box() is None


async def test_a_client_forgets_a_sandbox_with_its_last_handle() -> None:
    async with (
        serving(policy={"sandbox_types": ["subprocess"]}) as server,
        HttpSandboxManager(app=server.app) as manager,
    ):
        made = await manager.create_sandbox("subprocess")
        one, two = await manager.get_sandbox(made), await manager.get_sandbox(made)
        del one
        gc.collect()
        assert two is not None
        assert set(manager._link._handles) == {made}
        del two
        gc.collect()
        assert manager._link._handles == {}
