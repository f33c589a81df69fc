"""What the C program is told to do, from what a sandbox and its station say of their mounts."""

from __future__ import annotations

from ms_enclave.bench.floor import parse, steps_of

STATION = """\
100 99 0:50 / / ro,nosuid,nodev - tmpfs none rw,size=8192k
101 100 254:0 /usr /usr ro,nosuid,nodev - ext4 /dev/vda rw
102 100 0:51 / /proc rw,nosuid,nodev,noexec - proc proc rw
"""
SANDBOX = """\
200 99 0:50 / / ro,nosuid,nodev - tmpfs none rw,size=8192k
201 200 254:0 /usr /usr ro,nosuid,nodev - ext4 /dev/vda rw
202 200 0:51 / /proc rw,nosuid,nodev,noexec - proc proc rw
203 202 0:60 / /proc rw,nosuid,nodev,noexec - proc proc rw,hidepid=invisible
204 203 0:50 /empty/file /proc/keys ro,nosuid,nodev - tmpfs none rw,size=8192k
205 203 0:60 /sys /proc/sys ro,nosuid,nodev,noexec - proc proc rw,hidepid=invisible
206 200 0:61 / /dev/shm rw,nosuid,nodev - tmpfs tmpfs rw,size=65536k,nr_inodes=1024,uid=7,inode64
207 200 0:62 / /tmp rw,nosuid,nodev - overlay none rw,lowerdir=x,upperdir=y,workdir=z
208 200 0:63 /work /work rw,nosuid,nodev - tmpfs none rw,size=4k
"""


def test_only_what_the_station_has_not_is_made_and_in_the_order_it_was() -> None:
    assert steps_of(parse(SANDBOX), parse(STATION)) == [
        "mount\tproc\t/proc\t14\thidepid=invisible",
        "bind\t/empty/file\t/proc/keys",
        "bind\t/proc/sys\t/proc/sys",
        "change\t/proc/sys\t15",
        "mount\ttmpfs\t/dev/shm\t6\tsize=65536k,nr_inodes=1024",
        "layer\ttmp\t/tmp",
        "folder\twork\t/work",
    ]


def test_a_sandbox_like_its_station_needs_nothing() -> None:
    assert steps_of(parse(STATION), parse(STATION)) == []
