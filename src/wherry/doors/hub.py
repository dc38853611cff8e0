"""The Hugging Face Hub's download API over our own registry, for its clients with `HF_ENDPOINT`.

A model is the repository `team/model` (or `model`, for the key's own team); a version is a commit
whose hash is the beginning of its digest. `main` is the newest version, every alias is a branch,
every number a tag. All files are as those that the Hub keeps in LFS: named by their SHA-256.

https://huggingface.co/docs/hub/api
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlencode

import msgspec

from wherry import errors
from wherry.accounts.keys import Principal
from wherry.client import schema
from wherry.doors.errors import render_hub
from wherry.doors.file_answer import FileAnswers, FileToSend
from wherry.doors.route import Handler, Inquiry, Permission, Response, Row, json_response
from wherry.models.registry.registry import Registry, Snapshot
from wherry.models.trust.files import BundleFile
from wherry.storage.blobs import Blobs
from wherry.telemetry import get_logger

log = get_logger("hub")

NEWEST = "main"
COMMIT_CHARACTERS = 40
"""Of a hash of Git, which the Hub's clients look for."""
MAX_MODELS = 1000
DEFAULT_MODELS = 100
MAX_PATHS = 1000
BODY_BYTES = 1 << 20
TRUTHS = frozenset({"true", "True", "1"})


class PathsRequest(msgspec.Struct):
    """The body of `paths-info`."""

    paths: list[str] | str
    expand: bool = False


decode_paths = msgspec.json.Decoder(PathsRequest).decode


class HubDoor:
    """Rows of the API."""

    def __init__(self, registry: Registry, blobs: Blobs) -> None:
        self._registry = registry
        self._blobs = blobs
        self._files = FileAnswers()

    def rows(self) -> list[Row]:
        """The table; each row of a model stands twice, with and without its team."""
        rows = [
            _row("GET", "/api/whoami-v2", "any", self.whoami, "Whose key this is"),
            _row("GET", "/api/models", "any", self.models, "Models of the team, by name"),
        ]
        of_model: list[tuple[str, str, Permission, Handler, str]] = [
            ("GET", "/refs", "any", self.refs, "Aliases and versions as branches and tags"),
            ("GET", "/revision/{revision}", "any", self.model, "A version and its files"),
            ("GET", "/tree/{revision}", "any", self.tree, "Files and folders of a version"),
            ("GET", "/tree/{revision}/{path:path}", "any", self.tree, "Of a folder"),
            ("POST", "/paths-info/{revision}", "any", self.paths_info, "Some files of a version"),
            ("GET", "", "any", self.model, "The newest version and its files"),
        ]
        for method, path, permission, handler, summary in of_model:
            for place in ("{team}/{model}", "{model}"):
                full = f"/api/models/{place}{path}"
                rows.append(_row(method, full, permission, handler, summary))
        for place in ("{team}/{model}", "{model}"):
            path = f"/{place}/resolve/{{revision}}/{{path:path}}"
            rows.append(_row("GET", path, "download", self.file, "A file of a version"))
        return rows

    # ------------------------------------------------------------------ looking

    async def whoami(self, inquiry: Inquiry) -> Response:
        """The key as the Hub's user, its team as the organisation."""
        principal = inquiry.principal
        role = "write" if "publish" in principal.scopes else "read"
        return json_response(
            {
                "type": "user",
                "id": principal.key_id,
                "name": principal.team,
                "fullname": principal.team,
                "isPro": False,
                "orgs": [{"type": "org", "id": principal.team_id, "name": principal.team}],
                "auth": {
                    "type": "access_token",
                    "accessToken": {"displayName": principal.key_id, "role": role},
                },
            }
        )

    async def models(self, inquiry: Inquiry) -> Response:
        """The team's models that have versions, by name; `Link` leads to the next page."""
        query = inquiry.query
        limit = _read_limit(query.get("limit", ""))
        found = await asyncio.to_thread(self._list, inquiry.principal, query, limit + 1)
        headers: dict[str, str] = {}
        if len(found) > limit:
            found = found[:limit]
            following = urlencode({**query, "cursor": found[-1].name})
            host = inquiry.headers.get("host", "")
            scheme = inquiry.scope.get("scheme", "http")
            headers["link"] = f'<{scheme}://{host}/api/models?{following}>; rel="next"'
        return json_response([_describe_model(model) for model in found], headers=headers)

    def _list(
        self, principal: Principal, query: Mapping[str, str], limit: int
    ) -> list[schema.Model]:
        if query.get("author", principal.team) != principal.team:
            return []
        found: list[schema.Model] = []
        task = query.get("pipeline_tag") or query.get("filter") or ""
        search = query.get("search", "").rpartition("/")[2].lower()
        for model in self._registry.each_model(principal.team_id, query.get("cursor", "")):
            if model.latest and search in model.name and task in ("", model.task):
                found.append(model)
                if len(found) == limit:
                    break
        return found

    async def model(self, inquiry: Inquiry) -> Response:
        """One version, with the paths of its files."""
        found = await self._find(inquiry)
        has_blobs = inquiry.query.get("blobs") in TRUTHS
        siblings = [_describe_sibling(file, has_blobs=has_blobs) for file in found.files]
        answer = _describe_version(found.team, found.version)
        return json_response(answer | {"siblings": siblings, "usedStorage": _size(found.files)})

    async def refs(self, inquiry: Inquiry) -> Response:
        """`main` and the aliases as branches, the numbers as tags."""
        principal, name = inquiry.principal, _model_of(inquiry)
        versions = await asyncio.to_thread(self._registry.versions, principal.team_id, name)
        branches = [(NEWEST, version) for version in versions[-1:]]
        branches += [(alias, version) for version in versions for alias in version.aliases]
        tags = [(str(version.number), version) for version in versions]
        return json_response(
            {
                "branches": [_describe_ref("heads", *each) for each in branches],
                "tags": [_describe_ref("tags", *each) for each in tags],
                "converts": [],
                "pullRequests": [],
            }
        )

    async def tree(self, inquiry: Inquiry) -> Response:
        """Entries of a folder, with `recursive` those below them, too."""
        found = await self._find(inquiry)
        folder = inquiry.params.get("path", "").strip("/")
        inside = [file for file in found.files if _is_inside(file.path, folder)]
        if folder and not inside:
            raise _no_entry(folder, found)
        query = inquiry.query
        commit = _describe_commit(found.version) if query.get("expand") in TRUTHS else None
        entries = _list_entries(inside, folder, is_deep=query.get("recursive") in TRUTHS)
        return json_response([entry | (commit or {}) for entry in entries])

    async def paths_info(self, inquiry: Inquiry) -> Response:
        """The named files and folders; those that do not exist are left out."""
        request = _read_paths(await inquiry.body(), inquiry.headers.get("content-type", ""))
        found = await self._find(inquiry)
        commit = _describe_commit(found.version) if request.expand else {}
        wanted = {path.strip("/") for path in request.paths}
        entries = _list_entries(found.files, "", is_deep=True)
        return json_response([entry | commit for entry in entries if entry["path"] in wanted])

    # ------------------------------------------------------------------ files

    async def file(self, inquiry: Inquiry) -> Response:
        """A file's bytes, or for HEAD what clients want to know of them first."""
        _refuse_restricted(inquiry.principal)
        found = await self._find(inquiry)
        path = inquiry.params["path"]
        file = next((each for each in found.files if each.path == path), None)
        if file is None:
            raise _no_entry(path, found)
        answer = self._files.answer(
            inquiry,
            FileToSend(
                open=partial(self._blobs.open, file.sha256),
                size=file.size,
                etag=file.sha256,
                headers={
                    "x-repo-commit": commit_of(found.version),
                    "x-linked-etag": f'"{file.sha256}"',
                    "x-linked-size": str(file.size),
                },
            ),
        )
        if inquiry.method == "GET" and answer.status in (200, 206):
            log.info(
                "model file read",
                request_id=inquiry.id,
                team=found.team,
                key=inquiry.principal.key_id,
                version=f"{found.version.model}@{found.version.number}",
                file=file.path,
                range=answer.headers.get("content-range", ""),
            )
        return answer

    async def _find(self, inquiry: Inquiry) -> Snapshot:
        """The version that a path means: only ever one of the key's team."""
        team_id, name = inquiry.principal.team_id, _model_of(inquiry)
        revision = inquiry.params.get("revision", NEWEST)
        revision = "" if revision == NEWEST else revision
        return await asyncio.to_thread(self._registry.snapshot, team_id, name, revision)


def commit_of(version: schema.Version) -> str:
    """The beginning of a version's digest, as long as a hash of Git."""
    return version.digest.removeprefix("sha256:")[:COMMIT_CHARACTERS]


# ------------------------------------------------------------------------------ requests


def _row(method: str, path: str, permission: Permission, handler: Handler, summary: str) -> Row:
    return Row(
        method=method,
        path=path,
        permission=permission,
        handler=handler,
        summary=summary,
        render=render_hub,
        request=PathsRequest if method == "POST" else None,
        answer=None if permission == "download" else dict,
        tag="hub",
        body_limit=BODY_BYTES,
        streams=permission == "download",
        stream_type="application/octet-stream",
    )


def _refuse_restricted(principal: Principal) -> None:
    """A key for some deployments must not read what all others are made of."""
    if principal.deployments is not None:
        raise errors.NotPermitted(
            "this key is for some deployments, and models' files are the whole team's",
            hint="ask an admin for a key with scope 'download' that names no deployments",
        )


def _model_of(inquiry: Inquiry) -> str:
    """The model's name, if it is one of the key's team."""
    team, name = inquiry.params.get("team"), inquiry.params["model"]
    if team is not None and team != inquiry.principal.team:
        raise errors.ModelNotFound(
            f"no model {f'{team}/{name}'[:160]!r}", hint="`wherry list` lists yours", param="model"
        )
    return name


def _no_entry(path: str, found: Snapshot) -> errors.NotFound:
    some = ", ".join(file.path for file in found.files[:12])
    return errors.NotFound(f"the version has no file {path[:160]!r}", hint=some, param="path")


def _read_limit(text: str) -> int:
    if not text:
        return DEFAULT_MODELS
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or int(text) == 0:
        raise errors.InvalidInput(f"limit={text[:80]!r} is not a number of models", param="limit")
    return min(int(text), MAX_MODELS)


def _read_paths(body: bytes, content_type: str) -> PathsRequest:
    """A form, as huggingface_hub sends it, or JSON."""
    try:
        if "json" in content_type:
            request = decode_paths(body)
        else:
            form = parse_qs(body.decode("ascii"), max_num_fields=MAX_PATHS + 1)
            is_expanded = form.get("expand", [""])[0] in TRUTHS
            request = PathsRequest(form.get("paths", []), is_expanded)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise errors.InvalidInput(
            f"the body is no list of paths: {error}", hint='send {"paths": […]}', param="paths"
        ) from error
    if isinstance(request.paths, str):
        request.paths = [request.paths]
    if len(request.paths) > MAX_PATHS:
        raise errors.InvalidInput(f"there are over {MAX_PATHS} paths", param="paths")
    return request


# ------------------------------------------------------------------------------ answers


def _describe_model(model: schema.Model) -> dict[str, Any]:
    assert model.latest is not None
    return _describe_version(model.team, model.latest)


def _describe_version(team: str, version: schema.Version) -> dict[str, Any]:
    card, name = version.card, f"{team}/{version.model}"
    licence = card.licence.lower()
    return {
        "_id": version.digest.removeprefix("sha256:")[:24],
        "id": name,
        "modelId": name,
        "author": team,
        "sha": commit_of(version),
        "private": True,
        "gated": False,
        "disabled": False,
        "createdAt": _moment(version.created_at),
        "lastModified": _moment(version.created_at),
        "pipeline_tag": card.task,
        "tags": [card.task, *([f"license:{licence}"] if licence else []), *card.languages],
        "cardData": {"license": licence} if licence else {},
    }


def _describe_sibling(file: BundleFile, *, has_blobs: bool) -> dict[str, Any]:
    if not has_blobs:
        return {"rfilename": file.path}
    entry = _describe_file(file)
    lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": entry["lfs"]["pointerSize"]}
    return {"rfilename": file.path, "size": file.size, "blobId": entry["oid"], "lfs": lfs}


def _describe_file(file: BundleFile) -> dict[str, Any]:
    pointer = _pointer(file)
    return {
        "type": "file",
        "path": file.path,
        "size": file.size,
        "oid": _git_hash("blob", pointer),
        "lfs": {"oid": file.sha256, "size": file.size, "pointerSize": len(pointer)},
    }


def _describe_folder(path: str, files: Sequence[BundleFile]) -> dict[str, Any]:
    listing = "".join(f"{file.path}\0{file.sha256}\n" for file in files)
    return {
        "type": "directory",
        "path": path,
        "size": 0,
        "oid": _git_hash("tree", listing.encode()),
    }


def _describe_commit(version: schema.Version) -> dict[str, Any]:
    commit = {
        "id": commit_of(version),
        "title": f"version {version.number}",
        "date": _moment(version.created_at),
    }
    return {"lastCommit": commit}


def _describe_ref(kind: str, name: str, version: schema.Version) -> dict[str, str]:
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit_of(version)}


def _list_entries(
    files: Sequence[BundleFile], folder: str, *, is_deep: bool
) -> list[dict[str, Any]]:
    """Files and folders in a folder, by path."""
    start = len(folder) + 1 if folder else 0
    entries: dict[str, dict[str, Any]] = {}
    inside: dict[str, list[BundleFile]] = {}
    for file in files:
        parts = file.path[start:].split("/")
        depth = len(parts) if is_deep else 2
        for count in range(1, min(depth, len(parts))):
            path = file.path[:start] + "/".join(parts[:count])
            inside.setdefault(path, []).append(file)
        if is_deep or len(parts) == 1:
            entries[file.path] = _describe_file(file)
    for path, below in inside.items():
        entries[path] = _describe_folder(path, below)
    return [entries[path] for path in sorted(entries)]


def _is_inside(path: str, folder: str) -> bool:
    return not folder or path.startswith(f"{folder}/")


def _pointer(file: BundleFile) -> bytes:
    """What Git would hold in place of the file: https://github.com/git-lfs/git-lfs."""
    text = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size}\n"
    )
    return text.encode()


def _git_hash(kind: str, data: bytes) -> str:
    head = f"{kind} {len(data)}\0".encode()
    return hashlib.sha1(head + data, usedforsecurity=False).hexdigest()


def _size(files: Sequence[BundleFile]) -> int:
    return sum(file.size for file in files)


def _moment(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")
