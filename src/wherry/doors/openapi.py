"""OpenAPI 3.1 from the rows of all doors: what is served is what is described."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from wherry import __version__
from wherry.doors.route import Row

PARAMETER = re.compile(r"\{([a-z_]+)(?::path)?\}")
ERROR_STATUSES = {
    "400": "The request is wrong; the message says how",
    "401": "No key, or an unknown one",
    "403": "The key may not do this",
    "404": "No such thing, or not one of yours",
    "429": "A limit of the key is reached; see Retry-After",
    "503": "Not now; see Retry-After",
}


def describe_rows(rows: list[Row]) -> dict[str, Any]:
    """The whole document; of a path that protocols share, what its owner serves."""
    rows = [row for row in rows if not row.with_header]
    types = {
        each
        for row in rows
        for each in (row.request, row.answer)
        if each is not None and each is not dict
    }
    ordered = sorted(types, key=lambda each: str(each))
    schemas, components = msgspec.json.schema_components(
        ordered, ref_template="#/components/schemas/{name}"
    )
    by_type = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        path = PARAMETER.sub(r"{\1}", row.path)
        paths.setdefault(path, {})[row.method.lower()] = _operation(row, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Wherry",
            "version": __version__,
            "description": "Models as a service. Send `Authorization: Bearer KEY`.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(row: Row, by_type: dict[Any, Any]) -> dict[str, Any]:
    words = re.sub(r"[^a-z0-9]+", "_", row.path.lower()).strip("_") or "root"
    operation: dict[str, Any] = {
        "operationId": f"{row.method.lower()}_{words}",
        "summary": row.summary,
        "tags": [row.tag or "platform"],
        "x-permission": row.permission,
        "responses": _responses(row, by_type),
    }
    names = PARAMETER.findall(row.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if row.permission != "open":
        operation["security"] = [{"key": []}]
    if row.request is not None:
        kind = "application/json"
        operation["requestBody"] = {
            "required": True,
            "content": {kind: {"schema": _schema(row.request, by_type)}},
        }
    return operation


def _responses(row: Row, by_type: dict[Any, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": row.summary}
    if row.answer is not None:
        answer["content"] = {"application/json": {"schema": _schema(row.answer, by_type)}}
    if row.streams:
        answer.setdefault("content", {})[row.stream_type] = {"schema": {"type": "string"}}
    responses = {str(row.status): answer}
    if row.permission != "open":
        responses |= {status: {"description": text} for status, text in ERROR_STATUSES.items()}
    return responses


def _schema(kind: Any, by_type: dict[Any, Any]) -> Any:
    return {"type": "object"} if kind is dict else by_type[kind]
