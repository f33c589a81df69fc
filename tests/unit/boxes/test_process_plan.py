"""What a sandbox is shown of a host, for interpreters as they are found in the wild.

The layouts are made in temporary folders: the plan reads links and existence from the disk, and
everything else from the facts that it is given.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ms_enclave.boxes import _process_plan as plans
from ms_enclave.boxes._process_binds import Bind, below, covered, volume_binds, without_covered
from ms_enclave.boxes._process_plan import Host, Interpreter, RuntimePlan, compose
from ms_enclave.boxes._process_request import plan_key
from ms_enclave.errors import ConfigError
from ms_enclave.model import ProcessSandboxConfig

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the process sandbox is for Linux")

SYSTEM_LINKS = {"/bin": "usr/bin", "/lib": "usr/lib"}


def program(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x7fELF")
    path.chmod(0o755)
    return str(path)


def plan(own: Interpreter, chosen: Interpreter | None = None, **config: object) -> RuntimePlan:
    host = Host(own, SYSTEM_LINKS, ["/usr"], ["/etc/ld.so.cache", "/etc/ssl/certs"])
    return compose(ProcessSandboxConfig.model_validate(config), host, chosen or own)


def interpreter(executable: str, prefix: str | Path, base: str | Path | None = None) -> Interpreter:
    return Interpreter(executable, str(prefix), str(base or prefix), (3, 11, 7))


def shown(made: RuntimePlan) -> set[str]:
    return {bind.target for bind in made.binds}


def reachable(made: RuntimePlan, path: str) -> bool:
    """Whether a path leads to a file inside, by the binds and links of the plan alone."""
    links = dict(made.links)
    for _ in range(40):
        if path in links:
            path = os.path.normpath(os.path.join(os.path.dirname(path), links[path]))
        elif covered(path, made.binds):
            if not os.path.islink(path):
                return os.path.exists(path)
            path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
        else:
            return False
    return False


SYSTEM_PYTHON = interpreter("/usr/bin/python3", "/usr")


# --- interpreters -------------------------------------------------------------------------------


def test_the_distributions_python_needs_no_bind_of_its_own() -> None:
    made = plan(SYSTEM_PYTHON)
    assert shown(made) == {"/usr", "/etc/ld.so.cache", "/etc/ssl/certs"}
    assert made.python == ("/usr/bin/python3",)
    assert made.env["PATH"].startswith("/usr/bin:")
    assert set(SYSTEM_LINKS.items()) <= set(made.links)


def test_it_may_be_named_through_a_link_of_the_system() -> None:
    made = plan(interpreter("/bin/python3", "/usr"))
    assert "/bin/python3" not in dict(made.links)
    assert shown(made) == {"/usr", "/etc/ld.so.cache", "/etc/ssl/certs"}


def test_a_virtual_environment_brings_itself_and_its_base(tmp_path: Path) -> None:
    base, venv = tmp_path / "base", tmp_path / "project/.venv"
    real = program(base / "bin/python3.11")
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(real)
    (tmp_path / "project/secret").write_text("x")
    made = plan(interpreter(f"{venv}/bin/python", venv, base))
    assert {str(base), str(venv)} <= shown(made)
    assert reachable(made, f"{venv}/bin/python")
    assert not reachable(made, f"{tmp_path}/project/secret")
    assert made.host_python == real
    assert made.env["PATH"].split(":")[0] == f"{venv}/bin"


def test_a_virtual_environment_over_the_system(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").symlink_to("/usr/bin/python3")
    made = plan(interpreter(f"{tmp_path}/bin/python3", tmp_path, "/usr"))
    assert shown(made) - {"/usr", "/etc/ld.so.cache", "/etc/ssl/certs"} == {str(tmp_path)}


def test_pyenv(tmp_path: Path) -> None:
    """Version folders by alias: the base prefix is a link, and the library is at its end."""
    versions = tmp_path / ".pyenv/versions"
    real = program(versions / "3.11.7/bin/python3.11")
    (versions / "3.11").symlink_to("3.11.7")
    (versions / "3.11.7/bin/python").symlink_to("python3.11")
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(versions / "3.11/bin/python")
    made = plan(interpreter(f"{venv}/bin/python", venv, versions / "3.11"))
    assert {str(versions / "3.11"), str(versions / "3.11.7"), str(venv)} <= shown(made)
    assert not any(below(str(versions), target) for target in shown(made))
    assert made.host_python == real
    assert reachable(made, f"{venv}/bin/python")
    assert Bind(real, real) not in made.binds  # the file alone would not find its library


def test_conda(tmp_path: Path) -> None:
    root = tmp_path / "miniconda3"
    program(root / "envs/work/bin/python3.11")
    (root / "envs/work/bin/python").symlink_to("python3.11")
    made = plan(interpreter(f"{root}/envs/work/bin/python", root / "envs/work"))
    assert str(root / "envs/work") in shown(made)
    assert str(root) not in shown(made)
    assert reachable(made, f"{root}/envs/work/bin/python")


def test_links_to_an_interpreter_that_lie_outside_of_it(tmp_path: Path) -> None:
    program(tmp_path / "opt/python/bin/python3")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/py").symlink_to("../tools/py3")
    (tmp_path / "tools/py3").symlink_to(tmp_path / "opt/python/bin/python3")
    made = plan(interpreter(f"{tmp_path}/tools/py", tmp_path / "opt/python"))
    assert reachable(made, f"{tmp_path}/tools/py")
    assert not covered(f"{tmp_path}/tools", made.binds)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "python").symlink_to("python")
    plan(interpreter(f"{tmp_path}/python", tmp_path / "prefix"))


def test_another_interpreter_comes_beside_ours(tmp_path: Path) -> None:
    other = interpreter(program(tmp_path / "other/bin/python3"), tmp_path / "other")
    made = plan(SYSTEM_PYTHON, other)
    assert str(tmp_path / "other") in shown(made)
    assert made.python == (f"{tmp_path}/other/bin/python3",)
    assert made.host_python == os.path.realpath("/usr/bin/python3")


@pytest.mark.parametrize("prefix", ["/", "/home", "/opt", "/var", "~", "~/.local", "~/.."])
def test_a_prefix_that_holds_more_than_an_interpreter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    home = tmp_path / "people/me"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    wide = os.path.normpath(os.path.expanduser(prefix))
    with pytest.raises(ConfigError, match="would see all of it") as caught:
        plan(interpreter(f"{wide}/bin/python3", wide))
    assert "virtual environment" in str(caught.value.remedy)


def test_pypy_is_started_each_time(tmp_path: Path) -> None:
    other = Interpreter(f"{tmp_path}/bin/pypy3", str(tmp_path), str(tmp_path), (3, 10, 0), "pypy")
    assert plan(SYSTEM_PYTHON, other).cold_reason == "pypy cannot be copied"
    assert plan(SYSTEM_PYTHON).cold_reason is None


def test_a_program_without_an_interpreter_of_its_own_says_so() -> None:
    with pytest.raises(ConfigError, match="does not know which Python"):
        plan(interpreter("", "/usr"))


# --- what else is shown -------------------------------------------------------------------------


def test_users_and_hosts_are_made_up() -> None:
    made = plan(SYSTEM_PYTHON, working_dir="/work")
    assert {"/etc/passwd", "/etc/group", "/etc/hosts", "/etc/nsswitch.conf"} <= set(made.files)
    rows = [line.split(":") for line in made.files["/etc/passwd"].splitlines()]
    assert {row[0]: int(row[2]) for row in rows} == {"root": 0, "sandbox": 1000, "nobody": 65534}
    assert rows[1][5] == "/work"
    assert made.files["/etc/resolv.conf"] == ""
    assert set(made.env) == {"PATH", "LANG"}


def test_nothing_of_etc_but_the_list() -> None:
    made = plans.look()
    assert not {"/etc", "/etc/shadow", "/etc/passwd", "/etc/hosts", "/etc/ssl"} & set(made.etc)
    assert not {"/home", "/root", "/var", "/proc", "/sys", "/dev"} & set(made.system_folders)
    assert all(os.path.exists(path) for path in made.etc)


def test_a_dangling_time_zone_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = tmp_path / "localtime"
    zone.symlink_to(tmp_path / "zoneinfo/UTC")
    monkeypatch.setattr(plans, "_FROM_ETC", (str(zone),))
    assert plans.look().etc == []
    (tmp_path / "zoneinfo").mkdir()
    (tmp_path / "zoneinfo/UTC").touch()
    assert plans.look().etc == [str(zone)]


def test_a_plan_is_the_same_for_the_same_config() -> None:
    first, second = (plans.plan_runtime(ProcessSandboxConfig()).as_station() for _ in range(2))
    assert first == second
    assert json.loads(json.dumps(first)) == first
    other = plans.plan_runtime(ProcessSandboxConfig(working_dir="/work")).as_station()
    assert plan_key(first) == plan_key(second) != plan_key(other)


def test_the_plan_of_this_interpreter_is_complete() -> None:
    made = plans.plan_runtime(ProcessSandboxConfig())
    assert reachable(made, sys.executable)
    assert reachable(made, os.path.realpath(sys.executable))
    assert reachable(made, os.__file__)
    assert reachable(made, pytest.__file__)
    assert made.host_python == os.path.realpath(sys.executable)
    home = os.path.expanduser("~")
    assert not covered(home, made.binds)


# --- asking an interpreter ----------------------------------------------------------------------


def test_an_interpreter_says_what_it_is(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "v")], check=True)
    for path in (tmp_path / "v", tmp_path / "v/bin/python"):
        found = plans.inspect(str(path))
        assert found.prefix == str(tmp_path / "v")
        assert found.base_prefix == sys.base_prefix
        assert found.version == tuple(sys.version_info[:3])
        assert found.can_be_copied
        assert reachable(plan(SYSTEM_PYTHON, found), found.executable)


def test_an_interpreter_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python-of-mine").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert plans.inspect("python-of-mine").version == tuple(sys.version_info[:3])


WRONG = {
    "": "There is no Python",
    "#!/bin/sh\nexit 3\n": "does not run as a Python",
    "#!/bin/sh\necho hello\n": "does not run as a Python",
    "#!/bin/sh\necho '[1, 2]'\n": "does not run as a Python",
    "#!/nowhere\n": "does not run as a Python",
    """#!/bin/sh\necho '["/x", "/p", "/p", [3, 7, 1], "cpython"]'\n""": "older than 3.8",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_interpreter_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "python3"
    if text:
        path.write_text(text)
        path.chmod(0o755)
    with pytest.raises(ConfigError, match=WRONG[text]):
        plans.inspect(str(path))


def test_a_folder_and_a_file_without_a_python(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    for path in (tmp_path, tmp_path / "data", tmp_path / "none"):
        with pytest.raises(ConfigError, match="There is no Python") as caught:
            plans.inspect(str(path))
        assert "virtual environment" in str(caught.value.remedy)


# --- volumes ------------------------------------------------------------------------------------


def volume(source: object, target: str = "/data", mode: str = "ro") -> dict[str, dict[str, str]]:
    return {str(source): {"bind": target, "mode": mode}}


def test_volumes_are_read_or_written(tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    volumes = volume(tmp_path / "in", "/data/in/") | volume(tmp_path / "out", "/data/out", "rw")
    made = plan(SYSTEM_PYTHON, volumes=volumes)
    assert Bind(str(tmp_path / "in"), "/data/in") in made.binds
    assert made.volumes == (Bind(str(tmp_path / "out"), "/data/out", writable=True),)
    assert "/data/out" in made.folders


def test_what_lies_in_the_work_folder_is_put_over_it(tmp_path: Path) -> None:
    made = plan(SYSTEM_PYTHON, volumes=volume(tmp_path, "/sandbox/data"))
    assert made.late == (Bind("/sandbox/data", "/sandbox/data"),)


def test_the_end_of_a_link_is_what_is_checked_and_shown(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "trap").symlink_to("/proc")
    assert volume_binds(volume(tmp_path / "link"), [])[0].source == str(tmp_path / "real")
    with pytest.raises(ConfigError, match="never shown"):
        volume_binds(volume(tmp_path / "trap"), [])


SOURCES = ["/", "/proc", "/proc/self", "/sys", "/sys/fs/cgroup", "/dev", "/dev/null", "/run",
           "/var/run", "/usr/..", "/nowhere", "relative", "", "/tmp/\0"]  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_that_is_never_shown(source: str) -> None:
    with pytest.raises(ConfigError, match="volume"):
        volume_binds(volume(source), [])


TARGETS = ["", "data", "/", "//", "/a/../b", "/a//b", "/a/./b", "/proc/x", "/sys/x", "/dev/shm",
           "/etc", "/usr", "/usr/", "/tmp", "/run", "/run/enclave/code", "/.enclave/host",
           "/a\0b"]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_is_taken_or_not_plain(tmp_path: Path, target: str) -> None:
    with pytest.raises(ConfigError, match="volume"):
        volume_binds(volume(tmp_path, target), [])


@pytest.mark.parametrize("spec", [{"bind": "/x", "mode": "rwx"}, {"bind": "/x", "extra": "1"}, {}])
def test_the_shape_is_dockers(tmp_path: Path, spec: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="volume"):
        volume_binds({str(tmp_path): spec}, [])


def test_special_files_are_no_volumes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
        with pytest.raises(ConfigError, match="a socket would lead out"):
            volume_binds(volume(tmp_path / "socket"), [])
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        volume_binds(volume(tmp_path / "pipe"), [])


def test_two_volumes_cannot_be_the_same_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="two volumes"):
        volume_binds(volume(tmp_path / "a") | volume(tmp_path / "b", "/data/"), [])


def test_a_target_in_a_folder_that_is_only_read_must_be_there(tmp_path: Path) -> None:
    system = [Bind("/usr", "/usr")]
    with pytest.raises(ConfigError, match="only reads") as caught:
        volume_binds(volume(tmp_path, "/usr/no-such-folder"), system)
    assert "/mnt" in str(caught.value.remedy)
    assert volume_binds(volume(tmp_path, "/usr/share"), system)


def test_binds_come_in_order_and_once() -> None:
    binds = [Bind("/a/b", "/a/b"), Bind("/x", "/a/c"), Bind("/a", "/a"), Bind("/a", "/a")]
    assert without_covered(binds) == [Bind("/a", "/a"), Bind("/x", "/a/c")]
    assert below("/ab", "/a") is False
    assert covered("/a/x", [Bind("/a", "/a", writable=True)]) is False


# --- root file systems --------------------------------------------------------------------------


def test_a_root_file_system_with_python_uses_it(tmp_path: Path) -> None:
    program(tmp_path / "usr/bin/python3")
    program(tmp_path / "bin/sh")
    made = plan(SYSTEM_PYTHON, rootfs=str(tmp_path))
    assert made.python == ("/usr/bin/python3",)
    assert made.image == str(tmp_path)
    assert made.beside == ()
    assert made.shell == "/bin/sh"
    assert made.cold_reason is not None


def test_one_without_python_gets_the_hosts_beside_it(tmp_path: Path) -> None:
    program(tmp_path / "bin/bash")
    made = plan(plans.look().own, rootfs=str(tmp_path))
    assert made.beside == made.binds
    assert made.shell == "/bin/bash"
    place = f"/.enclave/host{os.path.realpath(sys.executable)}"
    assert made.python == (place,)
    assert made.starter is not None
    assert made.starter.words[-2:] == ("--argv0", place)
    assert bytes.fromhex(made.starter.row()["code"]).startswith(b"\x7fELF")


def test_volumes_show_in_a_root_file_system_too(tmp_path: Path) -> None:
    program(tmp_path / "root/usr/bin/python3")
    (tmp_path / "data").mkdir()
    volumes = volume(tmp_path / "data", "/sandbox/data")
    made = plan(SYSTEM_PYTHON, rootfs=str(tmp_path / "root"), volumes=volumes)
    assert made.image_binds == (Bind(str(tmp_path / "data"), "/sandbox/data"),)
    assert made.late == (Bind("/sandbox/data", "/sandbox/data"),)
