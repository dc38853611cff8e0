"""The filter's program, run by an interpreter of our own: also for processors that are not here."""

from __future__ import annotations

import errno
import struct

import pytest

from wherry.worker.sandbox import seccomp
from wherry.worker.sandbox.syscalls import AARCH64, COLUMN, LAST_KNOWN, NUMBERS, X86_64

PID = 4321
EPERM, ENOSYS = seccomp.FAIL | errno.EPERM, seccomp.FAIL | errno.ENOSYS
MACHINES = {"x86_64": X86_64, "aarch64": AARCH64}


def decide(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the kernel would do with a call."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *padded)
    at = value = 0
    while True:
        operation, when_true, when_false, operand = struct.unpack_from("=HBBI", program, at * 8)
        at += 1
        if operation == seccomp.RETURN:
            return operand
        if operation == seccomp.LOAD:
            (value,) = struct.unpack_from("=I", data, operand)
        elif operation == seccomp.JUMP:
            at += operand
        else:
            holds = {
                seccomp.JUMP_EQUAL: value == operand,
                seccomp.JUMP_NOT_BELOW: value >= operand,
                seccomp.JUMP_ANY_BIT: bool(value & operand),
            }[operation]
            at += when_true if holds else when_false


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return request.param


def make_program(
    monkeypatch: pytest.MonkeyPatch, machine: str, *, unix_sockets: bool, programs: bool = False
) -> bytes:
    made: list[bytes] = []
    assemble = seccomp.assemble
    monkeypatch.setattr(seccomp, "assemble", lambda rules: assemble(rules, machine))
    monkeypatch.setattr(seccomp, "install", lambda program, **_: made.append(program))
    seccomp.confine(PID, unix_sockets=unix_sockets, programs=programs)
    if programs:
        seccomp.refuse_programs()
    return made[-1] if programs else made[0]


def test_what_starts_programs_while_it_loads_starts_none_afterwards(
    monkeypatch: pytest.MonkeyPatch, machine: str
):
    sealed = make_program(monkeypatch, machine, unix_sockets=False, programs=True)
    column, architecture = COLUMN[machine]

    def answer(name: str, *arguments: int) -> int:
        return decide(sealed, architecture, NUMBERS[name][column], *arguments)

    assert answer("execve") == EPERM
    assert answer("clone", 17) == EPERM
    assert answer("clone", 0x3D0F00) == seccomp.ALLOW, "a thread as glibc makes it"
    for name in ("fork", "vfork"):
        if NUMBERS[name][column] >= 0:
            assert answer(name) == EPERM


@pytest.mark.parametrize("unix_sockets", [False, True])
def test_calls_are_decided_by_number_and_argument(
    monkeypatch: pytest.MonkeyPatch, machine: str, unix_sockets: bool
):
    program = make_program(monkeypatch, machine, unix_sockets=unix_sockets)
    architecture = MACHINES[machine]

    def answer(name: str, *arguments: int) -> int:
        return decide(program, architecture, NUMBERS[name][COLUMN[machine][0]], *arguments)

    local = seccomp.ALLOW if unix_sockets else EPERM
    assert answer("socket", 1, 1 | 0x80000, 0) == local
    assert answer("connect", 3) == local
    for family in (2, 10, 16, 17, 40):
        assert answer("socket", family, 1, 0) == EPERM
    assert answer("socket", 1, 2, 0) == EPERM
    assert answer("socketpair", 1, 1, 0) == seccomp.ALLOW
    assert answer("socketpair", 1, 2, 0) == EPERM
    assert answer("clone", 0x3D0F00) == seccomp.ALLOW, "a thread as glibc makes it"
    assert answer("clone", 17) == EPERM
    assert answer("clone3") == ENOSYS
    assert answer("execve") == seccomp.ALLOW, "once more: the worker itself"
    assert answer("execveat") == EPERM
    assert answer("kill", PID, 9) == seccomp.ALLOW
    assert answer("kill", 1, 9) == EPERM
    assert answer("kill", (1 << 32) - 1, 9) == EPERM
    assert answer("tgkill", PID + 1, PID + 1, 9) == EPERM
    assert answer("prlimit64", 0) == seccomp.ALLOW
    assert answer("prlimit64", 1) == EPERM
    assert answer("mmap", 0, 4096, 3, 0x22) == seccomp.ALLOW, "private memory"
    assert answer("mmap", 0, 4096, 3, 0x21) == EPERM, "shared memory"
    assert answer("mmap", 0, 4096, 1, 0x01) == seccomp.ALLOW, "a shared view of a file"
    assert answer("prctl", 15) == seccomp.ALLOW
    assert answer("prctl", 1) == EPERM
    assert answer("ptrace") == answer("bpf") == answer("mount") == EPERM
    assert answer("fchmod") == seccomp.FAIL, "done without effect"


def test_a_runtime_that_is_a_server_may_start_programs_and_talk_and_no_more(
    monkeypatch: pytest.MonkeyPatch, machine: str
):
    made: list[bytes] = []
    assemble = seccomp.assemble
    monkeypatch.setattr(seccomp, "assemble", lambda rules: assemble(rules, machine))
    monkeypatch.setattr(seccomp, "install", made.append)
    seccomp.confine_server()

    def answer(name: str, *arguments: int) -> int:
        return decide(made[0], MACHINES[machine], NUMBERS[name][COLUMN[machine][0]], *arguments)

    assert answer("clone", 17) == answer("execve") == answer("kill", 5, 9) == seccomp.ALLOW
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert answer("clone", flag | 17) == EPERM, f"a namespace: {flag:x}"
    assert answer("clone", 0x80 | 17) == EPERM, "a clock of its own"
    assert answer("clone3") == ENOSYS
    for family in (1, 2, 10, 16):
        assert answer("socket", family, 1, 0) == seccomp.ALLOW
    for family in (17, 38, 40):
        assert answer("socket", family, 1, 0) == EPERM
    assert answer("mmap", 0, 4096, 3, 0x21) == seccomp.ALLOW, "its processes share memory"
    for name in ("ptrace", "process_vm_readv", "mount", "unshare", "setns", "bpf", "keyctl"):
        assert answer(name) == EPERM
    assert answer("io_uring_setup") == ENOSYS
    assert answer("fchmod") == seccomp.FAIL, "done without effect"


def test_what_is_not_named_passes_and_what_nobody_knows_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, machine: str
):
    program = make_program(monkeypatch, machine, unix_sockets=False)
    column, architecture = COLUMN[machine]
    named = {numbers[column] for numbers in NUMBERS.values()}
    for number in range(600):
        decision = decide(program, architecture, number)
        if number in (453, 454, 455, 456, 462) or (number <= LAST_KNOWN and number not in named):
            assert decision == seccomp.ALLOW, number
        elif number > LAST_KNOWN:
            assert decision == ENOSYS, number
    assert decide(program, architecture, 0x4000_0000 + 59) == ENOSYS
    other = AARCH64 if architecture == X86_64 else X86_64
    assert decide(program, other, 0) == seccomp.KILL_PROCESS


def test_no_number_stands_twice_in_a_table():
    for column in (0, 1):
        numbers = [each[column] for each in NUMBERS.values() if each[column] >= 0]
        assert len(numbers) == len(set(numbers))


def test_a_machine_without_a_table_is_told():
    with pytest.raises(OSError, match="riscv64"):
        seccomp.assemble({}, "riscv64")
