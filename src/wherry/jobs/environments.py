"""Python environments apart from the server's: one virtual environment per set of requirements.

Of models that bring requirements, and of runtimes whose frameworks the server's own environment
does not have (`wherry.jobs.runtime_environments`).

`environments/<digest>/` is a venv with the requirements and the worker's own few packages, and a
link to our package: nothing else of our site-packages can be imported in it. Virtual environments
cannot be moved, so it is built in place; a marker, written last, says that it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
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
from wherry.worker.runtimes.extras import core_requirements

MARKER = "complete.json"
WORKER_PACKAGES = ("msgspec", "numpy", "uvloop", "setproctitle")
"""What the worker itself imports, as new as the server's; requirements win where both name one."""
FREE_PACKAGES = frozenset({"numpy"})
"""Of these, frameworks need other versions than the server has: any that Wherry works with will do."""
BUILD_SECONDS = 1800
UNUSED_SECONDS = 86_400.0
MAX_LINE_CHARACTERS = 300
MODEL_HINT = "correct 'requirements' in wherry.toml, or requirements.txt"

OnLine = Callable[[str], None]
"""Receives what is being done, line by line."""

log = get_logger("jobs.environments")


class Marker(msgspec.Struct):
    """What `complete.json` holds."""

    python: str
    requirements: list[str]
    packages: dict[str, str] = {}
    """Name → version of everything in it."""
    size_bytes: int = 0


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
        return self.build(normalise_requirements(requirements), on_line)

    def build(self, requirements: Sequence[str], on_line: OnLine, hint: str = MODEL_HINT) -> str:
        """The digest of a whole environment with requirements in their one spelling and order.

        Raises:
            InvalidInput: they cannot be installed; with this hint.
        """
        digest = digest_of(requirements)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(self._folder / f"{digest}.lock", on_line):
            if not self.is_whole(digest):
                shutil.rmtree(self._folder / digest, ignore_errors=True)
                self._build(self._folder / digest, requirements, on_line, hint)
            os.utime(self._folder / digest / MARKER)  # young again: see `remove_unused`
        return digest

    def is_whole(self, digest: str) -> bool:
        """Whether the environment is there and was finished."""
        return (self._folder / digest / MARKER).is_file()

    def describe(self, digest: str) -> Marker | None:
        """What is in a whole environment; None if there is none."""
        try:
            return msgspec.json.decode((self._folder / digest / MARKER).read_bytes(), type=Marker)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def prepare(self) -> None:
        """Remove unfinished ones, and let the others find our package. Call at start."""
        self.remove_unfinished()
        for marker in self._folder.glob(f"*/{MARKER}"):
            try:
                link_package(marker.parent)
            except (OSError, ValueError) as error:
                log.warning("an environment cannot be used", folder=marker.parent, error=error)

    def remove_unfinished(self) -> None:
        """Remove what an interrupted installation left; one that goes on holds its lock."""
        if not self._folder.is_dir():
            return
        for folder in [each for each in self._folder.iterdir() if each.is_dir()]:
            if self.is_whole(folder.name):
                continue
            with contextlib.suppress(BlockingIOError), _locked(folder.with_suffix(".lock")):
                if not self.is_whole(folder.name):
                    shutil.rmtree(folder, ignore_errors=True)

    def remove(self, digest: str) -> None:
        """Remove one that nothing needs."""
        # the marker first, so that what is half removed is not taken for whole
        (self._folder / digest / MARKER).unlink(missing_ok=True)
        shutil.rmtree(self._folder / digest, ignore_errors=True)

    def remove_unused(
        self, used: Collection[str], older_than_seconds: float = UNUSED_SECONDS
    ) -> int:
        """Remove those that no version needs; how many. Young ones may belong to an import."""
        count = 0
        for marker in self._folder.glob(f"*/{MARKER}"):
            age_seconds = time.time() - marker.stat().st_mtime
            if marker.parent.name not in used and age_seconds >= older_than_seconds:
                self.remove(marker.parent.name)
                count += 1
        return count

    def _build(self, folder: Path, requirements: Sequence[str], on_line: OnLine, hint: str) -> None:
        on_line("making a virtual environment")
        has_pip = util.find_spec("pip") is not None
        make = [sys.executable, "-P", "-m", "venv", *(["--without-pip"] if has_pip else [])]
        _run([*make, str(folder)], on_line, hint)
        python = str(folder / "bin" / "python")
        pip = [sys.executable, "-P", "-m", "pip", "--python", python]
        if not has_pip:
            pip = [python, "-P", "-m", "pip"]
        options = ["--no-input", "--disable-pip-version-check", "--no-warn-script-location"]
        wanted = [*requirements, *_worker_requirements(requirements)]
        _run([*pip, "install", *options, "--", *wanted], on_line, hint)
        packages = {each.name: each.version for each in distributions_in(folder)}
        link_package(folder)
        marker = Marker(sys.version.split()[0], list(requirements), packages, _size_of(folder))
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
    site_packages = _site_packages(folder)
    link = site_packages / "wherry"
    target = Path(wherry.__file__).resolve().parent
    if link.is_symlink() and link.readlink() == target:
        return
    temporary = site_packages / ".wherry"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def distributions_in(folder: Path) -> Iterable[metadata.Distribution]:
    """The packages that were installed into an environment."""
    return metadata.distributions(path=[str(_site_packages(folder))])


def _site_packages(folder: Path) -> Path:
    (found,) = (folder / "lib").glob("python*/site-packages")
    return found


def _size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_symlink())


def _spell(requirement: Requirement) -> str:
    requirement.marker = None  # evaluated already
    return str(requirement)


def _worker_requirements(requirements: Sequence[str]) -> list[str]:
    named = {Requirement(line).name.lower().replace("_", "-") for line in requirements}
    found: list[str] = []
    for name in WORKER_PACKAGES:
        if name in named:
            continue
        if name in FREE_PACKAGES:
            found += [each for each in core_requirements() if Requirement(each).name == name]
            continue
        try:
            found.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue  # e.g. uvloop where it does not exist
    return found


def _run(command: Sequence[str], on_line: OnLine, hint: str) -> None:
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
            hint=hint,
        )


@contextmanager
def _locked(path: Path, on_line: OnLine | None = None) -> Generator[None]:
    """Hold a lock; `BlockingIOError` if another has it and there is nobody to tell of a wait."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_line is None:
                raise
            on_line("waiting for another job that installs the same requirements")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
