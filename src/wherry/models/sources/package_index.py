"""Finds release files in Python package indexes, as pip is configured to use them.

Simple repository API: https://packaging.python.org/en/latest/specifications/simple-repository-api/
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urldefrag, urljoin, urlparse
from urllib.request import url2pathname

import msgspec
from packaging.tags import Tag, sys_tags
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

from wherry.errors import MissingExtra, NotFound, Unavailable
from wherry.models.sources.page import read_page

if TYPE_CHECKING:
    import httpx

PIP_TIMEOUT_SECONDS = 60
JSON_TYPE = "application/vnd.pypi.simple.v1+json"
ACCEPT = f"{JSON_TYPE}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01"
PIP_DEFAULT_INDEX = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
SHA256 = re.compile(r"sha256=([0-9a-f]{64})")
ARCHIVES = (".whl", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


class PipSettings(msgspec.Struct, frozen=True):
    """The part of pip's configuration that says where packages come from."""

    indexes: tuple[str, ...]
    """Simple indexes, `index-url` first."""
    links: tuple[str, ...] = ()
    """Folders or pages that list files of any package (`find-links`)."""
    certificates: str = ""
    """PEM file; empty = the usual ones."""


class IndexFile(msgspec.Struct, frozen=True):
    """A wheel or an sdist that an index names."""

    name: str
    url: str
    sha256: str = ""
    """Empty where the index names none."""


def read_pip_settings() -> PipSettings:
    """Ask pip; takes a part of a second."""
    values = parse_pip_config(_run_pip("-m", "pip", "config", "list"))
    indexes = [] if values.get("no-index") in ("1", "true", "True", "yes") else [_index(values)]
    if indexes:
        indexes += values.get("extra-index-url", "").split()
    return PipSettings(
        indexes=tuple(indexes),
        links=tuple(values.get("find-links", "").split()),
        certificates=values.get("cert", ""),
    )


def parse_pip_config(text: str) -> dict[str, str]:
    """Options of `pip config list`; `download` beats `global`, the environment beats both."""
    found: dict[str, dict[str, str]] = {"global": {}, "download": {}, ":env:": {}}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        section, dot, option = key.partition(".")
        if equals and dot and section in found:
            try:
                found[section][option] = str(ast.literal_eval(value))
            except (ValueError, SyntaxError):
                continue
    return {**found["global"], **found["download"], **found[":env:"]}


def find_files(
    client: httpx.Client, settings: PipSettings, name: str, version: Version
) -> list[IndexFile]:
    """The best wheel and the sdist of a release, as far as there are such.

    Raises:
        NotFound: no index has this version.
        Unavailable: an index that may have it did not answer.
    """
    failure: Unavailable | None = None
    places = [f"{index.rstrip('/')}/{name}/" for index in settings.indexes]
    for place in sorted([*places, *settings.links], key=lambda each: not _is_local(each)):
        try:
            files = list_files(client, place, name)
        except Unavailable as error:
            failure = failure or error
            continue
        if found := choose_files(files, name, version):
            return found
    if failure:
        raise failure
    raise NotFound(
        f"no package index has a file of {name}=={version}",
        hint="check name and version; `pip config list` shows which indexes are used",
    )


def list_files(client: httpx.Client, place: str, name: str) -> list[IndexFile]:
    """Files on a page of an index or in a folder; none if the index does not know the package."""
    if (folder := local_path(place)) is not None:
        if (page := folder / "index.html").is_file():
            return list(parse_html(page.read_text(encoding="utf-8"), page.absolute().as_uri()))
        if not folder.is_dir():
            return []
        return [IndexFile(path.name, path.as_uri()) for path in sorted(folder.absolute().iterdir())]
    page = read_page(
        client,
        place,
        package=name,
        headers={"Accept": ACCEPT},
        how_to_check="pip config list",
    )
    if page is None:
        return []
    text = page.data.decode("utf-8", "replace")
    if page.kind.partition(";")[0].strip() == JSON_TYPE:
        return list(parse_json(text, page.url))
    return list(parse_html(text, page.url))


def choose_files(files: Iterable[IndexFile], name: str, version: Version) -> list[IndexFile]:
    """Of this version, the best wheel (for any machine, else for this one), then the sdist."""
    supported: set[Tag] = set()
    wheels: list[tuple[int, str, IndexFile]] = []
    sdists: list[IndexFile] = []
    for file in files:
        release, tags = _parse_name(file.name)
        if release != (name, version):
            continue
        if tags is None:
            sdists.append(file)
            continue
        supported = supported or set(sys_tags())
        is_for_any = any(tag.abi == "none" and tag.platform == "any" for tag in tags)
        rank = 0 if is_for_any else 1 if tags & supported else 2
        wheels.append((rank, file.name, file))
    best = min(wheels, default=None, key=lambda wheel: wheel[:2])
    return [*([best[2]] if best else []), *sdists[:1]]


def parse_json(text: str, base: str) -> Iterator[IndexFile]:
    """Files of an index page in JSON (PEP 691)."""
    try:
        for each in json.loads(text)["files"]:
            digest = str((each.get("hashes") or {}).get("sha256", ""))
            yield IndexFile(str(each["filename"]), urljoin(base, str(each["url"])), digest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        place = urlparse(base).hostname  # the whole URL may hold the operator's password
        raise Unavailable(
            f"the index {place!r} answered with a page that cannot be read"
        ) from error


def parse_html(text: str, base: str) -> Iterator[IndexFile]:
    """Files of an index page in HTML (PEP 503)."""
    parser = _Anchors()
    parser.feed(text)
    for link in parser.links:
        url, fragment = urldefrag(urljoin(base, link))
        digest = SHA256.search(fragment)
        name = unquote(urlparse(url).path.rpartition("/")[2])
        yield IndexFile(name, url, digest[1] if digest else "")


def local_path(url: str) -> Path | None:
    """The path that a `file:` URL or a plain path means; None for other URLs."""
    parsed = urlparse(url)
    if parsed.scheme == "file":
        return Path(url2pathname(parsed.path))
    return Path(url).expanduser() if not parsed.netloc and not parsed.scheme else None


def _is_local(url: str) -> bool:
    return local_path(url) is not None


def _index(values: dict[str, str]) -> str:
    return values.get("index-url") or _run_pip("-c", PIP_DEFAULT_INDEX).strip()


def _run_pip(*arguments: str) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-P", *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=PIP_TIMEOUT_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        raise MissingExtra(
            f"pip cannot be asked where packages come from: {error.stderr.strip()[-300:]}",
            hint="python -m ensurepip",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable("pip did not answer where packages come from") from error
    return done.stdout


def _parse_name(file_name: str) -> tuple[tuple[str, Version] | None, frozenset[Tag] | None]:
    """Name and version of a release file, and its tags if it is a wheel."""
    if not file_name.endswith(ARCHIVES):
        return None, None
    try:
        if file_name.endswith(".whl"):
            name, version, _, tags = parse_wheel_filename(file_name)
            return (canonicalize_name(name), version), tags
        for suffix in (".tgz", ".tar.bz2", ".tar.xz"):
            if file_name.endswith(suffix):
                file_name = f"{file_name.removesuffix(suffix)}.tar.gz"
        name, version = parse_sdist_filename(file_name)
    except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
        return None, None
    return (canonicalize_name(name), version), None


class _Anchors(HTMLParser):
    """Collects the targets of links."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        link = dict(attrs).get("href")
        if tag == "a" and link:
            self.links.append(link)
