"""A model that tries to break out when it is loaded. Each attack returns what it got.

It is copied into a bundle as `model.py`, with `targets.json` beside it; nothing of the tests can be
imported here. What it could do is printed as one line of JSON.
"""

import ctypes
import json
import mmap
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

TARGETS = json.loads((Path(__file__).parent / "targets.json").read_text())
LIBC = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
MOST_THREADS = 6000


class RefusedError(Exception):
    pass


def call(number, *arguments):
    LIBC.syscall.restype = ctypes.c_long
    result = LIBC.syscall(ctypes.c_long(number), *[
        ctypes.c_long(each) if isinstance(each, int) else each for each in arguments
    ])  # fmt: skip
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def read(path):
    return Path(path).read_bytes()[:40] or b"(empty)"


# ------------------------------------------------------------------------------ files


def read_passwd():
    return read("/etc/passwd")


def read_data_folder():
    return read(TARGETS["secret"])


def list_data_folder():
    return os.listdir(TARGETS["data"])


def read_other_bundle():
    return read(TARGETS["other_bundle"] + "/model.py")


def read_through_proc_root():
    return read("/proc/self/root" + TARGETS["secret"])


def read_through_a_link():
    os.symlink(TARGETS["secret"], "link")
    return read("link")


def hard_link_a_secret():
    os.link(TARGETS["secret"], "hard")
    return read("hard")


def read_supervisors_environment():
    return read(f"/proc/{TARGETS['supervisor']}/environ")


def read_neighbours_memory():
    return read(f"/proc/{TARGETS['neighbour']}/maps")


def look_into_home():
    return os.listdir(TARGETS["home"])


def look_into_tmp():
    return os.listdir("/tmp")


def write_outside():
    return (Path(TARGETS["outside"]) / "written").write_text("x")


def write_into_tmp():
    return Path(f"/tmp/wherry-hostile-{os.getpid()}").write_text("x")


def write_into_shared_memory():
    return Path(f"/dev/shm/wherry-hostile-{os.getpid()}").write_text("x")


def write_into_own_bundle():
    return (Path(__file__).parent / "model.py").write_text("x")


def write_into_packages():
    return (Path(json.__file__).parent / "hostile.py").write_text("x")


def empty_a_file_outside():
    os.truncate(TARGETS["victim"], 0)
    return "truncated" if os.stat(TARGETS["victim"]).st_size == 0 else None


def open_a_file_outside_to_all():
    mode = os.stat(TARGETS["victim"]).st_mode
    os.chmod(TARGETS["victim"], 0o777)
    return "changed" if os.stat(TARGETS["victim"]).st_mode != mode else None


def make_a_device():
    os.mknod("device", 0o20666, os.makedev(1, 1))
    return read("device")


def fill_the_disk_with_a_huge_file():
    with open("huge", "wb") as file:
        file.seek(3 << 30)
        file.write(b"x")
    return os.stat("huge").st_size


# ------------------------------------------------------------------------------ network


def connect(family, kind, address):
    with socket.socket(family, kind) as connected:
        connected.settimeout(2)
        connected.connect(address)
        return "connected"


def tcp():
    return connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", TARGETS["port"]))


def tcp_over_ipv6():
    return connect(socket.AF_INET6, socket.SOCK_STREAM, ("::1", TARGETS["port"]))


def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        return sender.sendto(b"x", ("127.0.0.1", TARGETS["port"]))


def udp_over_ipv6():
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        return sender.sendto(b"x", ("::1", TARGETS["port"]))


def listen_on_tcp():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        return listener.getsockname()


def netlink():
    return str(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))


def packets():
    return str(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))


def neighbours_socket():
    return connect(socket.AF_UNIX, socket.SOCK_STREAM, TARGETS["neighbour_socket"])


def a_socket_of_the_machine():
    return connect(socket.AF_UNIX, socket.SOCK_STREAM, TARGETS["socket"])


def an_abstract_socket():
    return connect(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + TARGETS["abstract"])


def a_datagram_from_a_pair():
    one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return one.sendto(b"x", TARGETS["datagram_socket"])


# ------------------------------------------------------------------------------ processes


def execute():
    # a new program would print this instead of what the test waits for
    os.execv("/bin/echo", ["echo", '{"executed": true}'])


def execute_python():
    os.execv(sys.executable, ["python", "-c", "print('executed')"])


def subprocess_run():
    return subprocess.run(["/bin/echo", "x"], check=True)


def shell():
    status = os.system("true")
    if status:
        raise RefusedError(f"status {status}")
    return "ran"


def spawn():
    return os.posix_spawn("/bin/true", ["true"], {})


def fork():
    pid = os.fork()
    if not pid:
        os._exit(0)
    return pid


def fork_by_number():
    pid = call(56 if X86 else 220, signal.SIGCHLD, 0, 0, 0, 0)
    if not pid:
        os._exit(0)
    return pid


def fork_by_clone3():
    arguments = (ctypes.c_uint64 * 8)(0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    pid = call(435, ctypes.byref(arguments), 64)
    if not pid:
        os._exit(0)
    return pid


def kill_supervisor():
    os.kill(TARGETS["supervisor"], signal.SIGTERM)
    return "sent"


def kill_neighbour():
    os.kill(TARGETS["neighbour"], signal.SIGKILL)
    return "sent"


def kill_all():
    os.kill(-1, signal.SIGKILL)
    return "sent"


def kill_neighbours_thread():
    call(200 if X86 else 130, TARGETS["neighbour"], signal.SIGKILL)
    return "sent"


def kill_by_descriptor():
    return os.pidfd_open(TARGETS["neighbour"])


def trace_neighbour():
    return call(101 if X86 else 117, 16, TARGETS["neighbour"], 0, 0)


def read_neighbours_memory_by_call():
    vector = (ctypes.c_uint64 * 2)(0, 0)
    return call(310 if X86 else 270, TARGETS["neighbour"], ctypes.byref(vector), 1,
                ctypes.byref(vector), 1, 0)  # fmt: skip


def limit_neighbour():
    limits = (ctypes.c_uint64 * 2)(1, 1)
    return call(302 if X86 else 261, TARGETS["neighbour"], 7, ctypes.byref(limits), 0) or "limited"


def slow_neighbour_down():
    os.sched_setaffinity(TARGETS["neighbour"], {0})
    return "pinned"


def outlive_the_supervisor():
    if LIBC.prctl(1, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    return "set"


def become_root():
    os.setresuid(0, 0, 0)
    return os.getuid() == TARGETS["user"] or "root"


def fill_memory():
    hoard = []
    for _ in range(4096):
        hoard.append(bytearray(b"x") * (16 << 20))
    return len(hoard)


def map_shared_memory():
    return str(mmap.mmap(-1, 1 << 20))


def memory_file():
    return os.memfd_create("x")


def bomb_of_threads():
    stop = threading.Event()
    threads = []
    try:
        threading.stack_size(64 << 10)
        for _ in range(MOST_THREADS):
            thread = threading.Thread(target=stop.wait, daemon=True)
            thread.start()
            threads.append(thread)
        return len(threads)
    finally:
        stop.set()
        threading.stack_size(0)
        for thread in threads:
            thread.join()


# ------------------------------------------------------------------------------ the kernel


def io_uring():
    return call(425, 8, ctypes.create_string_buffer(128))


def bpf():
    return call(321 if X86 else 280, 0, ctypes.create_string_buffer(128), 128)


def perf_events():
    return call(298 if X86 else 241, ctypes.create_string_buffer(128), 0, -1, -1, 0)


def page_faults():
    return call(323 if X86 else 282, 1)


def own_namespace():
    return call(272 if X86 else 97, 0x1000_0000) or "unshared"


def mount():
    if LIBC.mount(b"none", os.fsencode(os.getcwd()), b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")
    return "mounted"


def keys():
    return call(250 if X86 else 219, 0, -3, 1)


def shared_segment():
    return call(29 if X86 else 194, 0, 4096, 0o1600) or "made"


def message_queue():
    return call(240 if X86 else 180, b"wherry", 0o102, 0o600, None)


def file_handles():
    return call(303 if X86 else 264, -100, b"/etc/passwd", ctypes.create_string_buffer(128),
                ctypes.create_string_buffer(8), 0) or "handle"  # fmt: skip


def old_numbers():
    return call(0x4000_0000 + 39)  # getpid of the x32 tables


def calls_of_tomorrow():
    return call(467, -100, b"/", 0, None, 0)


LAST = ("bomb_of_threads", "fill_memory")
NAMES = [
    name
    for name, each in list(globals().items())
    if callable(each) and getattr(each, "__module__", None) == __name__
    and not isinstance(each, type) and each.__code__.co_argcount == 0
]  # fmt: skip


def attack_all(last):
    results = {}
    # the last ones must not starve the others
    names = [*(each for each in NAMES if each not in last), *last]
    for name in TARGETS["attacks"] or names:
        try:
            got = globals()[name]()
        except (OSError, MemoryError, RuntimeError, ValueError, RefusedError,
                subprocess.SubprocessError, AttributeError) as error:  # fmt: skip
            results[name] = {"got": None, "how": f"{type(error).__name__}: {error}"}
        else:
            results[name] = {"got": None if got is None else str(got)[:200], "how": ""}
    return results


class Model:
    def load(self, folder):
        status = Path("/proc/self/status").read_text()
        print(
            json.dumps({"attacks": attack_all(LAST), "status": status, "user": os.getuid()}),
            flush=True,
        )

    def predict(self, batch):
        return batch
