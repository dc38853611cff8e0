"""A package index on this machine, which can be told to misbehave."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

JSON_TYPE = "application/vnd.pypi.simple.v1+json"


class PackageIndex:
    """Release files by name, and how to serve them."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.style = "json"
        self.with_digests = True
        self.with_ranges = True
        self.status = 200
        self.cut_after: list[int] = []
        """For each coming answer with a file: bytes after which the connection breaks."""
        self.lie: dict[str, bytes] = {}
        """Other bytes than the index promised."""
        self.starts: list[int] = []
        """Offset at which each answer with a file began."""
        self.url = ""
        self.packages: dict[str, dict[str, str]] = {}
        """Of the npm registry: files of packages by version."""
        self.tags = {"latest": "1.0.0"}
        self.integrity = "sha1-AAAA sha512-{}"
        self.token = ""
        """What the npm registry wants to see."""

    def add_package(
        self, name: str, version: str, members: dict[str, bytes], folder: str = "package"
    ) -> str:
        """Publish a version in the npm registry; its file's name."""
        file_name = f"{name.rpartition('/')[2]}-{version}.tgz"
        self.files[file_name] = make_tar({f"{folder}/{path}": d for path, d in members.items()})
        self.packages.setdefault(name, {})[version] = file_name
        return file_name

    def npm_page(self, package: str) -> bytes:
        versions = {}
        for version, name in self.packages[package].items():
            digest = base64.b64encode(hashlib.sha512(self.files[name]).digest()).decode()
            dist = {
                "tarball": f"{self.url}/files/{name}",
                "integrity": self.integrity.format(digest),
            }
            versions[version] = {"name": package, "dist": dist}
        return json.dumps({"dist-tags": self.tags, "versions": versions}).encode()

    def add_wheel(self, name: str, members: dict[str, bytes], tags: str = "py3-none-any") -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)
        self.files[f"{name}-{tags}.whl"] = buffer.getvalue()

    def add_sdist(self, name: str, members: dict[str, bytes]) -> None:
        self.files[f"{name}.tar.gz"] = make_tar(members)

    def page(self) -> tuple[str, bytes]:
        digests = {
            name: hashlib.sha256(data).hexdigest() if self.with_digests else ""
            for name, data in self.files.items()
        }
        if self.style == "json":
            files = [
                {
                    "filename": name,
                    "url": f"../../files/{name}",
                    "hashes": {"sha256": digest} if digest else {},
                }
                for name, digest in digests.items()
            ]
            return JSON_TYPE, json.dumps({"files": files}).encode()
        links = [
            f'<a href="../../files/{name}{f"#sha256={digest}" if digest else ""}">{name}</a>'
            for name, digest in digests.items()
        ]
        return "text/html; charset=utf-8", f"<html>{''.join(links)}<a name=x>".encode()


def make_tar(members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    index: PackageIndex

    def do_GET(self) -> None:
        if self.index.status != 200:
            self.reply(self.index.status, "text/plain", b"")
        elif self.path == "/simple/demo-model/":
            self.reply(200, *self.index.page())
        elif self.index.token and self.headers.get("Authorization") != f"Bearer {self.index.token}":
            self.reply(401, "text/plain", b"")
        elif (package := unquote(self.path.removeprefix("/npm/"))) in self.index.packages:
            self.reply(200, "application/json", self.index.npm_page(package))
        elif (name := self.path.removeprefix("/files/")) in self.index.files:
            self.send_file(self.index.lie.get(name, self.index.files[name]))
        else:
            self.reply(404, "text/plain", b"")

    def send_file(self, data: bytes) -> None:
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").rstrip("-") or 0) if self.index.with_ranges else 0
        if start and start >= len(data):
            self.reply(416, "text/plain", b"")
            return
        self.index.starts.append(start)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cut = self.index.cut_after.pop(0) if self.index.cut_after else len(data)
        self.wfile.write(data[start : start + cut])

    def reply(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch):
    """An index and a registry that pip and npm, and so the sources, are set up to use."""
    index = PackageIndex()
    handler = type("IndexHandler", (Handler,), {"index": index})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    index.url = f"http://127.0.0.1:{server.server_port}"
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple")
    for name in [name for name in os.environ if name.lower().startswith("npm_config_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("npm_config_userconfig", os.devnull)
    monkeypatch.setenv("npm_config_registry", f"{index.url}/npm")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield index
    server.shutdown()
    server.server_close()
    thread.join()
