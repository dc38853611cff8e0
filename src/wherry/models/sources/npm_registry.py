"""Finds releases in npm registries, as the npm client is configured to use them.

The client itself is asked only for its configuration, and only where it is installed; without it
`npm_config_…` in the environment and `~/.npmrc` count. What registries answer:
https://github.com/npm/registry/blob/main/docs/responses/package-metadata.md
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlparse

import msgspec

from wherry.errors import InvalidInput, MissingExtra, NotFound, Unavailable
from wherry.models.sources.download import Checksum
from wherry.models.sources.page import read_page
from wherry.settings import current_environment

if TYPE_CHECKING:
    import httpx

NPM_TIMEOUT_SECONDS = 30
MAX_CONFIG_BYTES = 1 << 20
ACCEPT = "application/vnd.npm.install-v1+json, application/json;q=0.8"
ENVIRONMENT = "npm_config_"
TOKEN = ":_authToken"  # noqa: S105 - the name of a setting
SHA512_BYTES = 64
MAX_SHOWN = 12
VARIABLE = re.compile(r"\$\{([^}]+)\}")


class NpmSettings(msgspec.Struct, frozen=True):
    """The part of npm's configuration that says where packages come from."""

    registry: str
    registry_by_scope: Mapping[str, str] = {}
    """`@scope` → its registry, where that is another one."""
    certificates: str = ""
    """PEM file; empty = the usual ones."""
    token_by_place: Mapping[str, str] = {}
    """`//host/path/` → the token that its registry wants."""

    def registry_of(self, package: str) -> str:
        """Where a package is looked for; ends with a slash."""
        scope = package.partition("/")[0]
        return self.registry_by_scope.get(scope, self.registry).rstrip("/") + "/"

    def authorise(self, request: httpx.Request) -> httpx.Request:
        """Add the token of the place that a request goes to, if there is one."""
        place = str(request.url).partition(":")[2]
        matching = [each for each in self.token_by_place if place.startswith(each)]
        if matching:
            token = self.token_by_place[max(matching, key=len)]
            request.headers["authorization"] = f"Bearer {token}"
        return request


class Release(msgspec.Struct, frozen=True):
    """One version of a package."""

    version: str
    url: str
    """Of its tarball."""
    checksum: Checksum


class Distribution(msgspec.Struct):
    """`dist` of a version."""

    tarball: str
    integrity: str = ""
    """https://www.w3.org/TR/sri/"""


class PackageVersion(msgspec.Struct):
    """A version in a registry's page."""

    dist: Distribution


class PackagePage(msgspec.Struct):
    """What is read of a registry's page of a package."""

    versions: dict[str, PackageVersion] = {}
    tags: dict[str, str] = msgspec.field(name="dist-tags", default_factory=dict[str, str])


decode_page = msgspec.json.Decoder(PackagePage).decode

# ------------------------------------------------------------------------------ configuration


def read_npm_settings() -> NpmSettings:
    """Ask npm, its files and the environment; takes a part of a second."""
    asked = _ask_npm()
    variables = current_environment()
    environment = parse_environment(variables)
    user_file = asked.get("userconfig") or environment.get("userconfig") or "~/.npmrc"
    values: dict[str, str] = {}
    for path in (asked.get("globalconfig", ""), user_file):
        values |= parse_npmrc(_read_config(path), variables)
    return choose_settings(values | environment | asked)


def choose_settings(values: Mapping[str, str]) -> NpmSettings:
    """Settings of npm's options; `MissingExtra` if none names a registry."""
    if not values.get("registry"):
        raise MissingExtra(
            "npm is not installed here, and no registry is configured for it",
            hint="set npm_config_registry, or write registry=https://… into ~/.npmrc",
        )
    return NpmSettings(
        registry=values["registry"],
        registry_by_scope={
            name.removesuffix(":registry"): value
            for name, value in values.items()
            if name.startswith("@") and name.endswith(":registry")
        },
        certificates=values.get("cafile", ""),
        token_by_place={
            name.removesuffix(TOKEN): value
            for name, value in values.items()
            if name.startswith("//") and name.endswith(TOKEN)
        },
    )


def parse_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Options of npm among environment variables; their names may have any case."""
    found: dict[str, str] = {}
    for name, value in environment.items():
        if name.lower().startswith(ENVIRONMENT) and value:
            option = name[len(ENVIRONMENT) :]
            is_place = option.startswith(("//", "@"))
            found[option if is_place else option.lower().replace("_", "-")] = value
    return found


def parse_npmrc(text: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Options of an `.npmrc`; `${NAME}` stands for a variable of the environment."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        name = name.strip()
        if equals and name and not name.startswith((";", "#")):
            value = value.strip().strip("\"'")
            found[name] = VARIABLE.sub(lambda each: environment.get(each[1], each[0]), value)
    return found


def _read_config(path: str) -> str:
    try:
        with Path(path).expanduser().open(encoding="utf-8", errors="replace") as file:
            return file.read(MAX_CONFIG_BYTES)
    except OSError:
        return ""


def _ask_npm() -> dict[str, str]:
    """What npm says of its options, without secrets, which it keeps to itself; {} if there is none."""
    program = shutil.which("npm")
    if program is None:
        return {}
    try:
        done = subprocess.run(
            [program, "config", "list", "--json"],
            capture_output=True,
            text=True,
            check=True,
            timeout=NPM_TIMEOUT_SECONDS,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
    except (subprocess.SubprocessError, OSError, ValueError):
        return {}  # a broken npm is as good as none
    kept = ("registry", "cafile", "userconfig", "globalconfig")
    return {
        name: value
        for name, value in answer.items()
        if isinstance(value, str) and (name in kept or name.endswith(":registry"))
    }


# ------------------------------------------------------------------------------ releases


def find_release(client: httpx.Client, settings: NpmSettings, name: str, wanted: str) -> Release:
    """The version that a number or a tag means.

    Raises:
        NotFound: the registry has no such package, version or tag.
        InvalidInput: it names no digest that could be trusted.
        Unavailable: it did not answer, or not with a package's page.
    """
    registry = settings.registry_of(name)
    page = read_page(
        client,
        registry + name.replace("/", "%2f"),
        package=name,
        headers={"Accept": ACCEPT},
        how_to_check="npm config get registry",
    )
    if page is None:
        raise NotFound(
            f"the npm registry has no package {name!r}, or does not give it to us",
            hint="check its name, the registry (`npm config get registry`), and its token in ~/.npmrc",
        )
    try:
        package = decode_page(page.data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        place = urlparse(registry).hostname  # the whole URL may hold the operator's password
        raise Unavailable(
            f"the registry {place!r} answered with a page that cannot be read"
        ) from error
    return choose_release(package, page.url, name, wanted)


def choose_release(package: PackagePage, base: str, name: str, wanted: str) -> Release:
    """The version of a page that a number or a tag means."""
    version = wanted if wanted in package.versions else package.tags.get(wanted, "")
    if version not in package.versions:
        known = [*package.tags, *reversed(package.versions)][:MAX_SHOWN]
        raise NotFound(
            f"{name!r} has no version or tag {wanted!r}", hint=f"it has: {', '.join(known)}"
        )
    dist = package.versions[version].dist
    return Release(version, urljoin(base, dist.tarball), read_integrity(dist.integrity, name))


def read_integrity(integrity: str, name: str) -> Checksum:
    """The SHA-512 of a subresource integrity string; weaker digests are not enough."""
    for entry in integrity.split():
        algorithm, _, value = entry.partition("?")[0].partition("-")
        if algorithm != "sha512":
            continue
        try:
            digest = base64.b64decode(value, validate=True)
        except binascii.Error:
            continue
        if len(digest) == SHA512_BYTES:
            return Checksum("sha512", digest.hex())
    raise InvalidInput(
        f"the registry names no sha512 for {name!r}",
        hint="use a registry that does, such as npm's default one",
    )
