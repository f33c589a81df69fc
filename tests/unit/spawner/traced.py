"""Cases for the tracer, run as a program of its own: ptrace belongs to one thread, and pytest has
several. `python -I -S traced.py CASE FOLDER` prints one JSON value."""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import sys
import time

sys.path.insert(0, sys.argv[3])

from ms_enclave.spawner import carrier, packing, seed, tracer

_MKDIR, _GETPPID, _GETPID, _EXIT, _POLL = 83, 110, 39, 60, 7


def parked() -> carrier.Carrier:
    """A carrier of a copy of this program that waits on a pipe."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    return carrier.Carrier.of_parked(pid)


def overwrite(victim: carrier.Carrier, code: bytes) -> None:
    """What a hostile process that shares the memory does to the page."""
    with open(f"/proc/{victim.pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(victim.page)
        memory.write(code)


def mkdir_code(path: str) -> bytes:
    """mkdir(path, 0o755) in the place of the ordered call, then back to a stop."""
    lea = b"\x48\x8d\x3d" + (19).to_bytes(4, "little")  # lea rdi, [rip + 19]
    code = lea + b"\xbe\xed\x01\x00\x00" + b"\xb8\x53\x00\x00\x00" + b"\x0f\x05\xcc"
    return code.ljust(26, b"\x90") + path.encode() + b"\0"


def ordered(_folder: str):
    one = parked()
    result, made = tracer.system_call(one.pid, one.state, one.page, _GETPID)
    return [result == one.pid, made]


def held_up(_folder: str):
    """The kernel takes longer than a process gets that could do as it likes."""
    one = parked()
    milliseconds = int(tracer.STOP_SECONDS * 1500)
    return tracer.system_call(one.pid, one.state, one.page, _POLL, 0, 0, milliseconds)


def copy(_folder: str):
    one = parked()
    twin = one.copy()
    again, _ = tracer.system_call(twin, one.state, one.page, _GETPPID)
    return [twin != one.pid, again == os.getpid()]


def contents(pid: int):
    """The address of everything, whether it can be written to, and what it holds."""
    found: dict[str, tuple[str, int]] = {}
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            span, rights, *_rest = line.split(maxsplit=5)
            if "[v" in line or rights[0] != "r":
                continue
            start, stop = (int(word, 16) for word in span.split("-"))
            for page in range(start, stop, 4096):
                found[f"{page:x}"] = rights[1], hash(os.pread(memory.fileno(), 4096, page))
    return found


def packed(_folder: str):
    """Its memory is the same after it, and it goes on; whether much of it is in large pages."""
    words, answers = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        kept = [bytes([number % 251]) * 4096 for number in range(1500)]
        os.read(words[0], 1)
        table = {number: str(number) for number in range(20000)}
        answer = sum(map(sum, kept)) == sum(4096 * (number % 251) for number in range(1500))
        os.write(answers[1], b"+" if answer and table[19999] == "19999" else b"-")
        os._exit(0)
    one = carrier.Carrier.of_parked(pid)
    before = contents(pid)
    done = packing.pack(one)
    same = contents(pid) == before
    with open(f"/proc/{pid}/smaps") as file:
        large = sum(int(line.split()[1]) for line in file if line.startswith("AnonHugePages"))
    twin = one.copy()
    for process in (twin, pid):
        tracer.load_state(process, one.state)
        tracer.detach(process)
    os.write(words[1], b"xx")
    heard = b"".join(os.read(answers[0], 1) for _ in range(2))
    return [done, same, heard.decode(), large > 0]


def packed_wiped(_folder: str):
    """What a copy is to find wiped is: libraries keep their random generators there."""
    answers, words = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        wiped = mmap.mmap(-1, 1 << 16, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        wiped.madvise(18)  # MADV_WIPEONFORK
        wiped[:] = b"x" * len(wiped)
        os.read(words[0], 1)
        os.write(answers[1], wiped[:1])
        os._exit(0)
    one = carrier.Carrier.of_parked(pid)
    packing.pack(one)
    twin = one.copy()
    tracer.load_state(twin, one.state)
    tracer.detach(twin)
    os.write(words[1], b"x")
    return os.read(answers[0], 1).hex()


def not_packed(_folder: str):
    """Where there is no room for it, nothing has changed and it goes on."""
    one = parked()
    before = contents(one.pid)
    resource.prlimit(one.pid, resource.RLIMIT_AS, (1 << 20, 1 << 20))
    done = packing.pack(one)
    result, _ = tracer.system_call(one.pid, one.state, one.page, _GETPID)
    return [done, contents(one.pid) == before, result == one.pid]


def hostile_page(folder: str):
    """A page that makes another call than the ordered one: refused before it is made."""
    one = parked()
    overwrite(one, mkdir_code(f"{folder}/pwned"))
    try:
        tracer.system_call(one.pid, one.state, one.page, _GETPID)
    except tracer.TraceError as error:
        return ["went for" in str(error), os.path.exists(f"{folder}/pwned")]
    return ["not refused", os.path.exists(f"{folder}/pwned")]


def positive_control(folder: str):
    """The same page resumed freely: the attack is real, and only the check stops it."""
    one = parked()
    overwrite(one, mkdir_code(f"{folder}/pwned"))
    registers = tracer.Registers.from_buffer_copy(one.state.registers)
    registers.rip, registers.orig_rax = one.page, 2**64 - 1
    tracer.run_page(one.pid, one.page, registers)
    return os.path.exists(f"{folder}/pwned")


def endless_page(_folder: str):
    one = parked()
    overwrite(one, b"\xeb\xfe")  # jmp .
    try:
        tracer.system_call(one.pid, one.state, one.page, _GETPID)
    except tracer.TraceError as error:
        return "did not stop" in str(error)
    return "not refused"


def old_abi_page(_folder: str):
    one = parked()
    overwrite(one, b"\xcd\x80\xcc")  # int 0x80: getpid of the 32-bit table is 20, not 39
    try:
        tracer.system_call(one.pid, one.state, one.page, _GETPID)
    except tracer.TraceError as error:
        return "went for" in str(error)
    return "not refused"


def broken_page(_folder: str):
    one = parked()
    overwrite(one, b"\x0f\x0b")  # ud2
    try:
        tracer.system_call(one.pid, one.state, one.page, _GETPID)
    except tracer.TraceError as error:
        return "instead of at a system call" in str(error)
    return "not refused"


def other_arguments(_folder: str):
    """The right call with another argument: xor edi, edi; inc edi; syscall."""
    one = parked()
    overwrite(one, b"\xff\xc7\x0f\x05\xcc")
    try:
        tracer.system_call(one.pid, one.state, one.page, _EXIT, 0)
    except tracer.TraceError as error:
        return "went for" in str(error)
    return "not refused"


def ends_instead(_folder: str):
    one = parked()
    os.kill(one.pid, signal.SIGKILL)
    try:
        tracer.system_call(one.pid, one.state, one.page, _GETPID)
    except tracer.TraceError:
        return True
    return "not refused"


def program(code: object) -> tuple[int, int, int]:
    """A process that runs something of a user's: its pid, where it says something, and where it is
    told to go on."""
    answers, words = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        code(answers[1], words[0])  # type: ignore[operator]
        os._exit(0)
    return pid, answers[0], words[1]


def held(_folder: str):
    """It is stopped in its call, and goes on as if nothing had been."""

    def wait(answer: int, word: int) -> None:
        os.write(answer, b"r")
        os.write(answer, os.read(word, 1))

    pid, answers, words = program(wait)
    os.read(answers, 1)
    state = tracer.hold(pid)
    with open(f"/proc/{pid}/stat") as file:
        stopped = file.read().rpartition(")")[2].split()[0]
    released = tracer.release(pid)
    os.write(words, b"w")
    return [state.in_call, state.registers.rax, stopped, released, os.read(answers, 1).decode()]


def held_with_a_signal(_folder: str):
    """A signal that comes while it is being held is its own."""

    def wait(answer: int, word: int) -> None:
        heard: list[int] = []
        signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
        os.write(answer, b"r")
        os.read(word, 1)
        os.write(answer, str(len(heard)).encode())

    pid, answers, words = program(wait)
    os.read(answers, 1)
    for _ in range(20):
        os.kill(pid, signal.SIGUSR1)
        tracer.hold(pid)
        tracer.release(pid)
    os.kill(pid, signal.SIGUSR1)
    time.sleep(0.05)  # it hears the last one before the word
    os.write(words, b"w")
    return int(os.read(answers, 9)) >= 1


def held_busy(_folder: str):
    """One that waits for nothing cannot be held, and goes on."""

    def spin(answer: int, _word: int) -> None:
        os.write(answer, b"r")
        until = time.monotonic() + 2 * tracer.STOP_SECONDS
        while time.monotonic() < until:
            pass
        os.write(answer, b"e")

    pid, answers, _ = program(spin)
    os.read(answers, 1)
    try:
        tracer.hold(pid)
    except tracer.TraceError as error:
        refused = "does not wait" in str(error)
        return [refused, error.lingers, os.read(answers, 1).decode()]
    return "held"


def memories(_folder: str):
    """A copy has memory of its own, and what shares memory is seen to."""
    one = parked()
    flags = 0x8000 | 17 | 0x900  # PARENT, SIGCHLD, VM and SIGHAND
    _, twin = tracer.system_call(one.pid, one.state, one.page, 56, flags)
    copy = one.copy()
    return [
        twin is not None and tracer.shares_memory(one.pid, twin),
        tracer.shares_memory(one.pid, copy),
    ]


def orders_are_not_the_programs(_folder: str):
    """A carrier made of somebody's copy does our calls with registers of ours, and goes on with
    theirs."""
    one = parked()
    theirs = tracer.save_state(one.pid)
    theirs.registers.eflags |= 0x100  # a trap after each instruction
    theirs.registers.rsp = 0
    made = carrier.Carrier.of_copy(one.copy(), one, theirs)
    result, _ = tracer.system_call(made.pid, made.orders, made.page, _GETPID)
    return [result == made.pid, made.orders is one.orders, made.state is theirs]


def walls(_folder: str) -> object:
    """This program has none: it must not pass for one that does."""
    try:
        carrier.check_walls(os.getpid())
    except tracer.TraceError as error:
        return "would have run with" in str(error)
    return "not refused"


def lost_seed(_folder: str) -> object:
    """How a seed ends that does something else than it was told to."""
    one = seed.Seed([], [])
    with open(f"/proc/{one.pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(one._page)  # pyright: ignore[reportPrivateUsage]
        memory.write(b"\x0f\x0b" * 32)  # ud2
    try:
        one.bear()
    except tracer.TraceError:
        _, status = os.waitpid(one.pid, tracer.WALL)
        return os.WTERMSIG(status), one.ended(one.pid)
    return "not refused"


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    print(json.dumps(globals()[sys.argv[1]](sys.argv[2])))


main()
