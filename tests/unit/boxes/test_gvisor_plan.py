"""What `runsc` is asked for: its command line, bundle and limits, and what is refused first."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from ms_enclave.boxes import _process_plan as plans
from ms_enclave.boxes._gvisor_plan import GvisorTier
from ms_enclave.boxes._process_request import seeded
from ms_enclave.channel.process import SpawnRequest
from ms_enclave.errors import CapabilityError, ConfigError
from ms_enclave.model import ProcessSandboxConfig

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the process sandbox is for Linux")

TIER = GvisorTier("/opt/runsc", "release-1")
HOST = plans.Host(plans.Interpreter("/usr/bin/python3", "/usr", "/usr", (3, 11, 7)))
OWN_MEMORY, OWN_PROCESSES = 128 << 20, 256
BARE = {"nosuid", "nodev"}


def launched(**fields: Any) -> dict[str, Any]:
    config = ProcessSandboxConfig.model_validate({"isolation": "gvisor", **fields})
    plan = plans.compose(config, HOST, HOST.own)
    found = TIER.station_plan(plan, config)
    json.dumps(found)  # as the launcher reads it
    return found


def bundle(**fields: Any) -> dict[str, Any]:
    return launched(**fields)["bundle"]


def mounts(**fields: Any) -> dict[str, dict[str, Any]]:
    return {row["destination"]: row for row in bundle(**fields)["mounts"]}


def volume(source: object, target: str = "/data", mode: str = "ro") -> dict[str, dict[str, str]]:
    return {str(source): {"bind": target, "mode": mode}}


# --- the command line ---------------------------------------------------------------------------


def test_runsc_gets_no_network_and_its_state_where_nobody_else_is() -> None:
    words = launched()["runsc_words"]
    name, *options = words[: words.index("run")]
    assert name == "runsc"
    assert set(options) == {
        "--root=/run/enclave/gvisor/state", "--network=none", "--ignore-cgroups",
        "--file-access-mounts=exclusive",
    }  # fmt: skip
    assert words[words.index("run") :] == [
        "run", "--bundle=/run/enclave/gvisor/bundle", "sandbox"
    ]  # fmt: skip
    assert launched()["runsc"] == "/opt/runsc"
    assert launched()["launcher"] == "gvisor_launcher.py"


# --- the bundle ---------------------------------------------------------------------------------


def test_the_guest_is_an_ordinary_user_without_any_right() -> None:
    process = bundle()["process"]
    assert process["user"] == {"uid": 1000, "gid": 1000}
    assert process["noNewPrivileges"] is True
    assert process["terminal"] is False
    assert process["capabilities"] == {
        kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")
    }
    assert process["args"][0] == "/usr/bin/python3"
    assert launched()["user"] == [1000, 1000]


def test_every_namespace_is_its_own() -> None:
    assert sorted(row["type"] for row in bundle()["linux"]["namespaces"]) == [
        "ipc", "mount", "network", "pid", "uts"
    ]  # fmt: skip
    assert not any("path" in row for row in bundle()["linux"]["namespaces"])


def test_the_root_is_read_only_and_what_is_ours_in_it_is_hidden() -> None:
    assert bundle()["root"] == {"path": "/", "readonly": True}
    shown = mounts()
    assert set(shown) == {
        "/proc", "/run/enclave", "/sys", "/dev/shm", "/tmp", "/sandbox"
    }  # fmt: skip
    for place in ("/run/enclave", "/sys"):
        assert shown[place]["type"] == "tmpfs"
        assert {*BARE, "mode=0555"} <= set(shown[place]["options"])
    for place, source in (("/tmp", "tmp"), ("/sandbox", "work")):
        assert shown[place]["source"] == f"/run/enclave/gvisor/disk/{source}"
        assert {*BARE, "rw"} <= set(shown[place]["options"])


def test_a_root_file_system_of_its_own_is_the_root(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name in ("usr/bin/python3", "bin/sh"):
        (tmp_path / name).write_bytes(b"\x7fELF")
        (tmp_path / name).chmod(0o755)
    made = bundle(rootfs=str(tmp_path))
    assert made["root"] == {"path": "/run/enclave/image", "readonly": True}
    assert launched(rootfs=str(tmp_path))["image"] == str(tmp_path)
    # Nothing of ours is below that root, and a mount there would need a folder in it.
    assert set(mounts(rootfs=str(tmp_path))) == {"/proc", "/sys", "/dev/shm", "/tmp", "/sandbox"}


def test_a_work_folder_elsewhere_and_what_is_given_in_it_come_in_this_order(tmp_path: Path) -> None:
    rows = bundle(working_dir="/work", volumes=volume(tmp_path, "/work/data"))["mounts"]
    places = [row["destination"] for row in rows]
    assert places.index("/work") < places.index("/work/data")
    assert {*BARE, "ro"} <= set(rows[places.index("/work/data")]["options"])
    assert "/sandbox" not in places


def test_nothing_of_the_callers_environment_is_in_the_bundle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("A_SECRET_OF_THE_CALLER", "hush")
    assert "hush" not in json.dumps(launched())


# --- limits -------------------------------------------------------------------------------------


def test_its_own_kernel_has_room_beside_what_the_sandbox_may_have() -> None:
    limits = launched(memory_limit="64m", pids_limit=32, cpu_limit=0.5, disk_limit="8m")["limits"]
    assert limits["memory"] == (64 << 20) + OWN_MEMORY
    assert limits["pids"] == 2 * 32 + OWN_PROCESSES
    assert (limits["cpu"], limits["disk"]) == (0.5, 8 << 20)
    assert limits["inodes"] >= 1024
    assert launched(memory_limit=None)["limits"]["memory"] is None


# --- what it does not have ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "config"),
    [
        ("network", {"network_enabled": True}),
        ("keep", {"on_owner_death": "keep"}),
        ("preload", {"preload": ["json"]}),
    ],
)
def test_what_it_lacks_is_refused_before_anything_is_made(
    capability: str, config: dict[str, Any]
) -> None:
    with pytest.raises(CapabilityError) as caught:
        launched(**config)
    assert caught.value.capability == capability
    assert "isolation='namespace'" in (caught.value.remedy or "")


def test_a_writable_volume_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match=str(tmp_path)) as caught:
        launched(volumes=volume(tmp_path, mode="rw"))
    assert caught.value.capability == "volumes"
    assert "'ro'" in (caught.value.remedy or "")


@pytest.mark.parametrize("user", [None, "sandbox", 1000, "1000"])
def test_its_own_user_has_these_names(user: str | int | None) -> None:
    place = TIER.place(ProcessSandboxConfig(), {})
    assert TIER.user(user, {}, place) == (1000, 1000)


@pytest.mark.parametrize("user", ["root", 0, "0", "nobody", 1001, "", -1])
def test_there_is_no_other(user: str | int) -> None:
    place = TIER.place(ProcessSandboxConfig(), {})
    with pytest.raises((CapabilityError, ConfigError)):
        TIER.user(user, {}, place)


# --- the report ---------------------------------------------------------------------------------


def test_it_says_what_holds_it_and_what_does_not() -> None:
    place = TIER.place(ProcessSandboxConfig(), {})
    bare = TIER.report({"controllers": []}, place)
    held = TIER.report({"controllers": ["cpu", "memory", "pids"]}, place)
    assert (bare.tier, bare.versions["runsc"]) == ("gvisor", "release-1")
    groups = {"cgroup_memory", "cgroup_pids", "cgroup_cpu", "lock_limit"}
    assert {bare.guards[name] for name in groups} == {"off"}
    assert {held.guards[name] for name in groups} == {"on"}
    differing = {name for name in held.guards if held.guards[name] != bare.guards[name]}
    assert differing == groups
    assert {name for name, state in held.guards.items() if state == "off"} == {
        "own_ids", "hidden_guest", "outlives_bombs", "layers", "zygote"
    }  # fmt: skip
    assert held.guards["own_kernel"] == "on"


# --- seeds --------------------------------------------------------------------------------------


def run(request: SpawnRequest) -> dict[str, Any]:
    assert request.code is not None
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(request.code, "<string>", "exec"), names)
    return names


def test_a_seeded_program_is_the_same_program() -> None:
    code = "from __future__ import annotations\nimport random\nsaid = random.random(), __name__\n"
    request = SpawnRequest(None, code=code, args=("x",))
    one, other = (run(seeded(request, 2**70))["said"] for _ in range(2))
    assert one == other
    assert one[1] == "__main__"
    assert run(seeded(request, -1))["said"] != one
    assert seeded(request, 7).args == ("x",)
    with pytest.raises(ZeroDivisionError) as caught:
        run(seeded(SpawnRequest(None, code="'''\n'''\n1/0"), 7))
    assert caught.traceback[-1].lineno == 2  # from 0


def test_what_has_no_seed_or_is_no_python_is_left_alone() -> None:
    code, command = SpawnRequest(None, code="1"), SpawnRequest(("true",))
    assert seeded(code, None) is code
    assert seeded(command, 7) is command
