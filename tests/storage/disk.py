"""A disk that a test controls: what a process does to it, and what a power cut may leave of that.

`run_recorded` runs Python code under `disk_shim.c`, which writes down each call that changes files
below a folder. `Disk` plays the record back on a model of a disk that promises no more than POSIX:

* bytes are there after an fsync of their file; until then each write is kept, lost or torn by
  sectors, in any order;
* names are there after an fsync of their folder; until then each folder keeps any first part of
  what happened to it. A rename never loses both names.

Linux's file systems are kinder than that, so code that survives this model survives them.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

SECTOR_BYTES = 512
SOURCE = Path(__file__).with_name("disk_shim.c")
HEAD = struct.Struct("<BI")
PLACE = struct.Struct("<iq")

PRELUDE = """
import ctypes, os, sys
from pathlib import Path
_shim = ctypes.CDLL(None)
def note(text):
    data = text.encode()
    _shim.disk_note(data, ctypes.c_long(len(data)))
WRITE, SYNC, NAMES = 1, 2, 4
def fail(nth, error, how_many=1, kinds=WRITE | SYNC | NAMES):
    _shim.disk_fail(ctypes.c_long(nth), error, ctypes.c_long(how_many), kinds)
def failed():
    return _shim.disk_failed()
folder = Path(sys.argv[1])
"""


def build_shim(folder: Path) -> Path:
    """The shim, compiled; skips where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler: apt-get install gcc")
    shim = folder / "disk_shim.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", shim, SOURCE, "-ldl", "-lpthread"], check=True
    )
    return shim


def run_on_disk(
    shim: Path,
    code: str,
    root: Path,
    log: Path | None = None,
    arguments: tuple[str, ...] = (),
) -> str:
    """Run Python code whose calls below `root` are recorded, and may be made to fail."""
    root.mkdir(exist_ok=True)
    environment = {**os.environ, "LD_PRELOAD": str(shim), "DISK_ROOT": str(root.resolve())}
    if log is not None:
        environment["DISK_LOG"] = str(log)
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, str(root.resolve()), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


# ------------------------------------------------------------------------------ the model


@dataclass(eq=False)
class File:
    """Bytes that the disk has, and writes that it may have."""

    synced: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """Offset and bytes of a write; size and None of a cut."""

    def sync(self) -> None:
        self.synced = self.after(self.pending)
        self.pending = []

    def after(self, changes: list[tuple[int, bytes | None]]) -> bytes:
        content = bytearray(self.synced)
        for offset, data in changes:
            if data is None:
                content = content[:offset].ljust(offset, b"\0")
            else:
                content = content.ljust(offset + len(data), b"\0")
                content[offset : offset + len(data)] = data
        return bytes(content)

    def left(self, random: Random, mood: str) -> bytes:
        """What a power cut leaves."""
        if mood != "some":
            return self.after(self.pending if mood == "all" else [])
        kept: list[tuple[int, bytes | None]] = []
        for offset, data in self.pending:
            fate = random.random()
            if fate < 0.4:
                kept.append((offset, data))
            elif fate < 0.6 and data is not None:
                kept += [
                    (offset + at, data[at : at + SECTOR_BYTES])
                    for at in range(0, len(data), SECTOR_BYTES)
                    if random.random() < 0.5
                ]
        return self.after(kept)


@dataclass(eq=False)
class Change:
    """A change of one folder: a name gets a node, or loses it."""

    name: str
    node: File | Folder | None
    needs: Change | None = None
    """The other half of a rename: the old name goes only if the new one came."""


@dataclass(eq=False)
class Folder:
    """Names now, names that the disk has, and changes that it may have."""

    names: dict[str, File | Folder] = field(default_factory=dict)
    synced: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)

    def change(self, change: Change) -> Change:
        _apply(self.names, change)
        self.pending.append(change)
        return change

    def sync(self) -> None:
        self.synced = dict(self.names)
        self.pending = []


def _load(path: Path) -> Folder:
    """A folder that the disk has had for long."""
    names: dict[str, File | Folder] = {
        each.name: _load(each) if each.is_dir() else File(each.read_bytes())
        for each in path.iterdir()
    }
    return Folder(names, dict(names))


def _apply(names: dict[str, File | Folder], change: Change) -> None:
    if change.node is None:
        names.pop(change.name, None)
    else:
        names[change.name] = change.node


class Disk:
    """Plays a record back, event by event, and says what a power cut would leave now."""

    def __init__(self, root: Path, log: Path, before: Path | None = None) -> None:
        self._root_path = str(root.resolve())
        self._data = log.read_bytes()
        self._root = Folder() if before is None else _load(before)
        self._open: dict[int, File | Folder] = {}
        self.notes: list[str] = []
        """What the process had acknowledged by now."""

    def play(self) -> Iterator[str]:
        """Play the next event; yields its kind."""
        position = 0
        while position < len(self._data):
            kind, length = HEAD.unpack_from(self._data, position)
            position += HEAD.size
            body = self._data[position : position + length]
            position += length
            self._play_one(chr(kind), body)
            yield chr(kind)

    def _play_one(self, kind: str, body: bytes) -> None:
        if kind == "n":
            self.notes.append(body.decode())
        elif kind == "o":
            self._play_open(body)
        elif kind == "c":
            self._open.pop(int.from_bytes(body, "little"), None)
        elif kind in "wt":
            number, offset = PLACE.unpack_from(body)
            file = self._open[number]
            assert isinstance(file, File)
            file.pending.append((offset, body[PLACE.size :] if kind == "w" else None))
        elif kind == "s":
            self._open[int.from_bytes(body, "little")].sync()
        else:
            self._play_names(kind, body)

    def _play_open(self, body: bytes) -> None:
        number, was_made, was_cut = struct.unpack_from("<i??", body)
        parent, name = self._parent(body[6:].decode())
        if was_made:
            parent.change(Change(name, File()))
        node = parent.names[name] if name else parent
        self._open[number] = node
        if was_cut:
            assert isinstance(node, File)
            node.pending.append((0, None))

    def _play_names(self, kind: str, body: bytes) -> None:
        first, _, second = body.decode().partition("\0")
        parent, name = self._parent(first)
        if kind == "m":
            parent.change(Change(name, Folder()))
        elif kind == "u":
            parent.change(Change(name, None))
        elif kind in "rl":
            new_parent, new_name = self._parent(second)
            added = new_parent.change(Change(new_name, parent.names[name]))
            if kind == "r":
                parent.change(Change(name, None, needs=added))
        else:
            raise AssertionError(f"the shim did not record {body!r}")

    def _parent(self, path: str) -> tuple[Folder, str]:
        parts = [part for part in path.removeprefix(self._root_path).split("/") if part]
        folder = self._root
        for part in parts[:-1]:
            child = folder.names[part]
            assert isinstance(child, Folder)
            folder = child
        return folder, parts[-1] if parts else ""

    def cut_power(self, target: Path, random: Random, mood: str) -> None:
        """Make `target` what a power cut leaves now.

        `mood`: of what was not synced, the disk has "none", "all", or "some" by chance.
        """
        kept: dict[int, bool] = {}
        seen: list[Folder] = [self._root]
        views: dict[int, dict[str, File | Folder]] = {}
        for folder in seen:  # grows: every folder that was ever reachable
            count = {"none": 0, "all": len(folder.pending)}.get(
                mood, random.randint(0, len(folder.pending))
            )
            for index, change in enumerate(folder.pending):
                kept[id(change)] = index < count
                if isinstance(change.node, Folder) and change.node not in seen:
                    seen.append(change.node)
            for child in (*folder.synced.values(), *folder.names.values()):
                if isinstance(child, Folder) and child not in seen:
                    seen.append(child)
        for folder in seen:
            view = dict(folder.synced)
            for change in folder.pending:
                if not kept[id(change)]:
                    continue
                if change.needs is not None and not kept.get(id(change.needs), True):
                    continue
                _apply(view, change)
            views[id(folder)] = view
        shutil.rmtree(target, ignore_errors=True)
        contents: dict[int, bytes] = {}  # a file of two names has the same bytes under both

        def write(folder: Folder, path: Path) -> None:
            path.mkdir(mode=0o700)
            for name, node in views[id(folder)].items():
                if isinstance(node, Folder):
                    write(node, path / name)
                    continue
                if id(node) not in contents:
                    contents[id(node)] = node.left(random, mood)
                (path / name).write_bytes(contents[id(node)])

        write(self._root, target)


def count_losses(
    disk: Disk,
    target: Path,
    check: Callable[[Path, list[str]], str],
    *,
    share: float = 1.0,
    seed: int = 7,
) -> tuple[int, list[str]]:
    """Cut the power after each event; tells how often, and what was wrong.

    After every acknowledgement nothing unsynced is kept, the hardest case; after a `share` of the
    other events one mood is tried. With a share of 1 all are, after each acknowledgement.
    """
    random = Random(seed)
    cuts, wrong = 0, list[str]()
    for number, kind in enumerate(disk.play()):
        if kind == "n":
            moods = ["none", "some", "all"] if share == 1 else ["none"]
        elif kind == "c" or random.random() >= share:
            continue
        else:
            moods = [random.choice(["none", "some", "all"])]
        for mood in moods:
            disk.cut_power(target, random, mood)
            cuts += 1
            fault = check(target, disk.notes)
            if fault:
                wrong.append(f"after event {number}, {mood} of the unsynced kept: {fault}")
    return cuts, wrong
