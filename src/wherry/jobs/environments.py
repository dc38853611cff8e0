"""Python environments for models that bring requirements: one virtual environment per set of them.

`environments/<digest>/` is a venv with the requirements and the worker's own few packages, and a
link to our package: nothing else of our site-packages can be imported in it. Virtual environments
cannot be moved, so it is built in place; a marker, written last, says that it is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from importlib import metadata, util
from pathlib import Path
from threading import Timer

import msgspec
from packaging.requirements import Requirement

import wherry
from wherry.errors import CodeNotAllowed, InvalidInput, TimedOut
from wherry.models.registry.manifest import parse_requirement
from wherry.settings import current_environment
from wherry.telemetry import get_logger

MARKER = "complete.json"
WORKER_PACKAGES = ("msgspec", "numpy", "uvloop", "setproctitle")
"""What the worker itself imports; the model's requirements win where both name one."""
BUILD_SECONDS = 1800
UNUSED_SECONDS = 86_400.0
MAX_LINE_CHARACTERS = 300

OnLine = Callable[[str], None]
"""Receives what is being done, line by line."""

log = get_logger("jobs.environments")


class Marker(msgspec.Struct):
    """What `complete.json` holds."""

    python: str
    requirements: list[str]


class Environments:
    """The environments of one data folder; processes may share it.

    Args:
        folder: `data/environments`.
        allow_code: whether the operator allows models to bring code.
    """

    def __init__(self, folder: Path, *, allow_code: bool) -> None:
        self._folder = folder
        self._allow_code = allow_code

    def ensure(self, requirements: Sequence[str], on_line: OnLine) -> str:
        """The digest of a whole environment with these requirements; "" for none.

        Raises:
            CodeNotAllowed: the operator does not allow models to bring code.
            InvalidInput: a requirement cannot be understood or installed.
        """
        if not requirements:
            return ""
        if not self._allow_code:
            raise CodeNotAllowed(
                "the model needs Python packages, and installing them runs their code",
                hint="the operator may set WHERRY_ALLOW_CODE=1",
            )
        parsed = normalise_requirements(requirements)
        digest = digest_of(parsed)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(self._folder / f"{digest}.lock", on_line):
            if not self.is_whole(digest):
                shutil.rmtree(self._folder / digest, ignore_errors=True)
                self._build(self._folder / digest, parsed, on_line)
            os.utime(self._folder / digest / MARKER)  # young again: see `remove_unused`
        return digest

    def is_whole(self, digest: str) -> bool:
        """Whether the environment is there and was finished."""
        return (self._folder / digest / MARKER).is_file()

    def prepare(self) -> None:
        """Remove unfinished ones, and let the others find our package. Call at start."""
        if not self._folder.is_dir():
            return
        for folder in [each for each in self._folder.iterdir() if each.is_dir()]:
            if not self.is_whole(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            try:
                link_package(folder)
            except (OSError, ValueError) as error:
                log.warning("an environment cannot be used", folder=folder.name, error=error)

    def remove_unused(
        self, used: Collection[str], older_than_seconds: float = UNUSED_SECONDS
    ) -> int:
        """Remove those that no version needs; how many. Young ones may belong to an import."""
        count = 0
        for marker in self._folder.glob(f"*/{MARKER}"):
            age_seconds = time.time() - marker.stat().st_mtime
            if marker.parent.name not in used and age_seconds >= older_than_seconds:
                marker.unlink()  # first, so that what is half removed is not taken for whole
                shutil.rmtree(marker.parent, ignore_errors=True)
                count += 1
        return count

    def _build(self, folder: Path, requirements: Sequence[str], on_line: OnLine) -> None:
        on_line("making a virtual environment")
        has_pip = util.find_spec("pip") is not None
        make = [sys.executable, "-P", "-m", "venv", *(["--without-pip"] if has_pip else [])]
        _run([*make, str(folder)], on_line)
        python = str(folder / "bin" / "python")
        pip = [sys.executable, "-P", "-m", "pip", "--python", python]
        if not has_pip:
            pip = [python, "-P", "-m", "pip"]
        options = ["--no-input", "--disable-pip-version-check", "--no-warn-script-location"]
        wanted = [*requirements, *_worker_requirements(requirements)]
        _run([*pip, "install", *options, "--", *wanted], on_line)
        link_package(folder)
        marker = Marker(sys.version.split()[0], list(requirements))
        (folder / MARKER).write_bytes(msgspec.json.encode(marker))


def normalise_requirements(lines: Sequence[str]) -> list[str]:
    """Requirements in one spelling and order; those whose marker does not hold here are left out.

    Raises:
        InvalidInput: a line is an option, a file or anything else that is no requirement.
    """
    parsed = [parse_requirement(line) for line in lines]
    return sorted(
        {_spell(each) for each in parsed if each.marker is None or each.marker.evaluate()}
    )


def digest_of(requirements: Sequence[str]) -> str:
    """Name of the environment: its requirements, this Python, this kind of machine."""
    parts = [*requirements, sys.implementation.cache_tag, os.uname().machine]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def link_package(folder: Path) -> None:
    """Let the environment import `wherry` from where this process has it.

    Raises:
        ValueError: the folder is no virtual environment.
    """
    (site_packages,) = (folder / "lib").glob("python*/site-packages")
    link = site_packages / "wherry"
    target = Path(wherry.__file__).resolve().parent
    if link.is_symlink() and link.readlink() == target:
        return
    temporary = site_packages / ".wherry"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def _spell(requirement: Requirement) -> str:
    requirement.marker = None  # evaluated already
    return str(requirement)


def _worker_requirements(requirements: Sequence[str]) -> list[str]:
    named = {Requirement(line).name.lower().replace("_", "-") for line in requirements}
    found: list[str] = []
    for name in WORKER_PACKAGES:
        if name in named:
            continue
        try:
            found.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue  # e.g. uvloop where it does not exist
    return found


def _run(command: Sequence[str], on_line: OnLine) -> None:
    """Run a command of pip's or venv's; its errors become ours."""
    environment = {
        **current_environment(without_settings=True),
        "PYTHONNOUSERSITE": "1",
        "PIP_NO_COLOR": "1",
    }
    environment.pop("PYTHONPATH", None)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        # workers may have users of their own; the data folder keeps all others out
        umask=0o022,
    )
    assert process.stdout is not None
    problems: list[str] = []
    killer = Timer(BUILD_SECONDS, process.kill)
    killer.start()
    begun = time.monotonic()
    try:
        with process:
            for line in process.stdout:
                text = line.strip()[:MAX_LINE_CHARACTERS]
                if text.startswith("ERROR:"):
                    problems.append(text.removeprefix("ERROR:").strip())
                elif text:
                    on_line(text)
    finally:
        killer.cancel()
    if time.monotonic() - begun >= BUILD_SECONDS:
        raise TimedOut(f"the requirements took over {BUILD_SECONDS} s to install")
    if process.returncode:
        reason = "; ".join(dict.fromkeys(problems[:3])) or f"status {process.returncode}"
        raise InvalidInput(
            f"the requirements cannot be installed: {reason}",
            hint="correct 'requirements' in wherry.toml, or requirements.txt",
        )


@contextmanager
def _locked(path: Path, on_line: OnLine) -> Generator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_line("waiting for another job that installs the same requirements")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
