"""A small working server with the platform API: what SDK and CLI are tested against.

It keeps everything in memory and has no models: text generation says the question backwards, a
classifier looks for the word "lovely". Requests, answers and errors are those of
`wherry.client.schema`, so what passes here speaks the real language.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from wherry import errors
from wherry.client import schema

KEY = "wk-" + "t" * 40
STATUS = {
    "invalid_input": 400,
    "not_authenticated": 401,
    "not_permitted": 403,
    "not_found": 404,
    "model_not_found": 404,
    "conflict": 409,
    "rate_limit_exceeded": 429,
    "overloaded": 503,
    "not_ready": 503,
    "unavailable": 503,
    "upstream_failed": 502,
}
PAGE_ITEMS = 2
"""Small, so that lists of tests have several pages."""
CATALOG = [
    schema.CatalogEntry(
        name="smollm2",
        task="text-generation",
        source="pypi:some-package==1.0",
        licence="Apache-2.0",
        size_bytes=100_000_000,
        memory_mib=300,
        languages=["en"],
        good_at="short answers",
    ),
    schema.CatalogEntry(
        name="sentiment",
        task="text-classification",
        source="npm:some-package@1.0",
        licence="MIT",
        size_bytes=2_000_000,
        memory_mib=40,
    ),
    schema.CatalogEntry(
        name="huge",
        task="text-generation",
        source="hf:big/huge",
        licence="MIT",
        size_bytes=1 << 40,
        memory_mib=1 << 20,
        fits=False,
        fit_reason="needs 1048576 MiB, 4000 MiB are free",
    ),
]
RUNTIMES = [
    schema.RuntimeInfo(name="onnx", extra="onnx", place="server", packages={"onnxruntime": "1"}),
    schema.RuntimeInfo(name="tflite", extra="tflite", place="own environment", size_bytes=1 << 20),
    schema.RuntimeInfo(name="torch", extra="torch"),
]
SAMPLES: dict[str, dict[str, Any]] = {
    "text-classification": {"text": "what a lovely day"},
    "text-generation": {"messages": [{"role": "user", "content": "Hi"}]},
    "tabular-classification": {"features": {"length": 1.0, "width": 2.0}},
}


class Twin:
    """The server's memory; tests look at it and set its mood."""

    def __init__(self) -> None:
        self.url = ""
        self.reset()

    def reset(self) -> None:
        """Forget everything, for the next test."""
        self.models: dict[str, schema.Model] = {}
        self.versions: dict[str, list[schema.Version]] = {}
        self.deployments: dict[str, schema.Deployment] = {}
        self.jobs: dict[str, schema.Job] = {}
        self.uploads: dict[str, dict[str, bytes]] = {}
        self.keys: dict[str, schema.Key] = {}
        self.runtimes = {each.name: each for each in RUNTIMES}
        self.events: list[schema.Event] = []
        self.requests: list[tuple[str, str]] = []
        """Method and path of every request, in order."""
        self.wishes: list[schema.PullRequest | schema.ImportRequest] = []
        self.assumed: list[str] = []
        """What the next imports take for granted."""
        """What pulls and imports said of the model."""
        self.refused_chats: list[errors.WherryError] = []
        """Told to the next chats, one each."""
        self.refusals: list[errors.WherryError] = []
        """Told to the next requests, one each."""
        self.break_next: int = 0
        """Connections to cut, without an answer."""
        self.break_streams: int = 0
        """Streams to cut after their first event."""
        self.fail_jobs = ""
        """Cause that the next jobs fail with."""
        self._ids = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []

    # -------------------------------------------------------------------- what it knows

    def add_version(self, name: str, task: str, source: str = "") -> schema.Version:
        numbers = self.versions.setdefault(name, [])
        version = schema.Version(
            model=name,
            number=len(numbers) + 1,
            digest="sha256:" + f"{len(numbers) + 1:064x}",
            created_at=time.time(),
            card=schema.Card(
                task=task, runtime="twin", source=source, sample=SAMPLES.get(task, {})
            ),
        )
        numbers.append(version)
        old = self.models.get(name)
        self.models[name] = schema.Model(
            name=name,
            team="default",
            task=task,
            created_at=time.time(),
            versions=[each.number for each in numbers],
            aliases=old.aliases if old else {},
            latest=version,
        )
        return version

    def start_job(self, kind: Any, work: Callable[[], dict[str, Any]]) -> schema.Job:
        job = schema.Job(
            id=f"job_{next(self._ids)}", kind=kind, state="queued", created_at=time.time()
        )
        self.jobs[job.id] = job
        task = asyncio.get_running_loop().create_task(self._run_job(job, work))
        self._tasks.append(task)  # the loop itself keeps only weak references
        return job

    async def _run_job(self, job: schema.Job, work: Callable[[], dict[str, Any]]) -> None:
        job.state = "running"
        for done in (0, 50, 100):
            await asyncio.sleep(0.02)
            if job.state == "cancelled":
                return
            job.progress = schema.Progress(stage="download", done=done, total=100, unit="B")
        if self.fail_jobs:
            job.state, job.error, job.hint = "failed", self.fail_jobs, "check the network"
        else:
            job.result = work()
            job.state = "succeeded"
        job.finished_at = time.time()
        self.tell("jobs", job.id, job.state)

    def tell(self, topic: Any, subject: str, what: str) -> None:
        self.events.append(
            schema.Event(
                id=len(self.events) + 1, at=time.time(), topic=topic, subject=subject, what=what
            )
        )

    # -------------------------------------------------------------------- models

    async def list_models(self, request: Request) -> Any:
        return page(list(self.models.values()), request)

    async def get_model(self, request: Request) -> Any:
        return find(self.models, request.path_params["model"], "model")

    async def list_versions(self, request: Request) -> Any:
        return page(find(self.versions, request.path_params["model"], "model"), request)

    async def get_version(self, request: Request) -> Any:
        numbers = {
            each.number: each for each in find(self.versions, request.path_params["model"], "model")
        }
        return find(numbers, int(request.path_params["number"]), "version")

    async def remove_model(self, request: Request) -> Any:
        name = request.path_params["model"]
        model = find(self.models, name, "model")
        users = [each.name for each in self.deployments.values() if each.spec.model == name]
        if users:
            raise errors.Conflict(
                f"model {name!r} is deployed as {users[0]!r}", hint=f"wherry undeploy {users[0]}"
            )
        if request.query_params.get("dry_run") != "true":
            del self.models[name], self.versions[name]
        return model

    async def remove_version(self, request: Request) -> Any:
        version = await self.get_version(request)
        if request.query_params.get("dry_run") != "true":
            self.versions[version.model].remove(version)
            self.models[version.model].versions.remove(version.number)
        return self.models[version.model]

    async def set_alias(self, request: Request) -> Any:
        body = await read(request, schema.AliasRequest)
        model = find(self.models, request.path_params["model"], "model")
        find(dict.fromkeys(model.versions, 1), body.version, "version")
        aliases = {**model.aliases, request.path_params["alias"]: body.version}
        if not body.dry_run:
            model.aliases = aliases
        return msgspec.structs.replace(model, aliases=aliases)

    async def remove_alias(self, request: Request) -> Any:
        model = find(self.models, request.path_params["model"], "model")
        find(model.aliases, request.path_params["alias"], "alias")
        if request.query_params.get("dry_run") != "true":
            del model.aliases[request.path_params["alias"]]
        return model

    async def pull(self, request: Request) -> Any:
        body = await read(request, schema.PullRequest)
        self.wishes.append(body)
        entries = {entry.name: entry for entry in CATALOG}
        entry = find(entries, body.source, "catalogue entry")
        name = body.name or entry.name
        if body.dry_run:
            return schema.Job(id="", kind="pull", state="queued", created_at=time.time())

        def work() -> dict[str, Any]:
            version = self.add_version(name, entry.task, entry.source)
            return {"model": name, "version": version.number, "digest": version.digest}

        return self.start_job("pull", work)

    async def import_upload(self, request: Request) -> Any:
        body = await read(request, schema.ImportRequest)
        self.wishes.append(body)
        files = find(self.uploads, body.upload, "upload")

        def work() -> dict[str, Any]:
            version = self.add_version(body.name, body.task or "text-classification")
            version.card.size_bytes = sum(map(len, files.values()))
            version.card.labels = body.labels
            if body.alias:
                self.models[body.name].aliases[body.alias] = version.number
            made = {"model": body.name, "version": version.number, "digest": version.digest}
            return made | {"assumed": self.assumed}

        return self.start_job("import", work)

    async def train(self, request: Request) -> Any:
        body = await read(request, schema.TrainRequest)
        if body.recipe != "tabular":
            raise errors.NotFound(f"no recipe {body.recipe!r}", hint="known: tabular")
        if body.dry_run:
            return schema.Job(id="", kind="train", state="queued", created_at=time.time())

        def work() -> dict[str, Any]:
            version = self.add_version(body.name, "tabular-classification")
            return {"model": body.name, "version": version.number, **body.parameters}

        return self.start_job("train", work)

    # -------------------------------------------------------------------- uploads and jobs

    async def create_upload(self, request: Request) -> Any:
        upload = schema.Upload(id=f"up_{next(self._ids)}")
        self.uploads[upload.id] = {}
        return upload

    async def get_upload(self, request: Request) -> Any:
        files = find(self.uploads, request.path_params["id"], "upload")
        return schema.Upload(
            id=request.path_params["id"],
            files={name: len(content) for name, content in files.items()},
        )

    async def remove_upload(self, request: Request) -> Any:
        find(self.uploads, request.path_params["id"], "upload")
        del self.uploads[request.path_params["id"]]
        return {}

    async def put_file(self, request: Request) -> Any:
        files = find(self.uploads, request.path_params["id"], "upload")
        name, offset = request.path_params["path"], int(request.query_params["offset"])
        held = files.get(name, b"")
        if offset != len(held):
            raise errors.Conflict(f"{name!r} has {len(held)} bytes, not {offset}")
        files[name] = held + await request.body()
        return await self.get_upload(request)

    async def list_jobs(self, request: Request) -> Any:
        return page(list(self.jobs.values())[::-1], request)

    async def get_job(self, request: Request) -> Any:
        return find(self.jobs, request.path_params["id"], "job")

    async def cancel_job(self, request: Request) -> Any:
        job = find(self.jobs, request.path_params["id"], "job")
        job.state, job.finished_at = "cancelled", time.time()
        return job

    async def watch_job(self, request: Request) -> Any:
        job = find(self.jobs, request.path_params["id"], "job")

        async def events() -> AsyncIterator[bytes]:
            told = b""
            while True:
                state, now = job.state, msgspec.json.encode(job)
                if now != told:
                    told = now
                    yield b"data: " + now + b"\n\n"
                    self._maybe_cut_stream()
                if state in ("succeeded", "failed", "cancelled"):
                    return
                await asyncio.sleep(0.01)

        return StreamingResponse(events(), media_type="text/event-stream")

    def _maybe_cut_stream(self) -> None:
        if self.break_streams:
            self.break_streams -= 1
            raise ConnectionAbortedError("the test cuts this stream")

    # -------------------------------------------------------------------- deployments

    async def list_deployments(self, request: Request) -> Any:
        return page(list(self.deployments.values()), request)

    async def get_deployment(self, request: Request) -> Any:
        deployment = find(self.deployments, request.path_params["name"], "deployment")
        if deployment.state == "starting" and time.time() > deployment.updated_at + 0.1:
            deployment.state = "ready"
            deployment.replicas_ready = deployment.spec.replicas.min
        return deployment

    async def apply(self, request: Request) -> Any:
        body = await read(request, schema.ApplyRequest)
        changes = [self._change(spec) for spec in body.deployments]
        if not body.dry_run:
            for spec, change in zip(body.deployments, changes, strict=True):
                if change.action != "none":
                    self.deploy(spec)
        return schema.ApplyAnswer(changes=changes, dry_run=body.dry_run)

    def _change(self, spec: schema.DeploymentSpec) -> schema.Change:
        if not spec.steps:
            self._model_of(spec)
        old = self.deployments.get(spec.name)
        if old is None:
            return schema.Change(
                deployment=spec.name, action="create", fields={"model": [None, spec.model]}
            )
        before, after = msgspec.to_builtins(old.spec), msgspec.to_builtins(spec)
        fields = {key: [before[key], after[key]] for key in after if before[key] != after[key]}
        return schema.Change(
            deployment=spec.name, action="update" if fields else "none", fields=fields
        )

    def _model_of(self, spec: schema.DeploymentSpec) -> schema.Model:
        name = (spec.model or spec.targets[0].model).partition("@")[0]
        if name not in self.models:
            raise errors.ModelNotFound(f"no model {name!r}", hint=f"wherry pull {name}")
        return self.models[name]

    def deploy(self, spec: schema.DeploymentSpec) -> None:
        model = None if spec.steps else self._model_of(spec)
        self.deployments[spec.name] = schema.Deployment(
            name=spec.name,
            team="default",
            task=model.task if model else "pipeline",
            state="starting" if model else "ready",
            cause="its worker loads" if model else "",
            spec=spec,
            versions={f"{model.name}@{model.versions[-1]}": 100} if model else {},
            created_at=time.time(),
            updated_at=time.time(),
        )
        self.tell("deployments", spec.name, "created")

    async def remove_deployment(self, request: Request) -> Any:
        name = request.path_params["name"]
        find(self.deployments, name, "deployment")
        dry_run = request.query_params.get("dry_run") == "true"
        if not dry_run:
            del self.deployments[name]
        return schema.ApplyAnswer(
            changes=[schema.Change(deployment=name, action="delete")], dry_run=dry_run
        )

    async def scale(self, request: Request) -> Any:
        body = await read(request, schema.ScaleRequest)
        old = find(self.deployments, request.path_params["name"], "deployment")
        replicas = schema.Replicas(min=body.min, max=body.max or max(1, body.min))
        new = msgspec.structs.replace(
            old, spec=msgspec.structs.replace(old.spec, replicas=replicas)
        )
        if not body.dry_run:
            self.deployments[old.name] = new
        return new

    async def start(self, request: Request) -> Any:
        deployment = find(self.deployments, request.path_params["name"], "deployment")
        deployment.state, deployment.cause = "starting", "its worker loads"
        deployment.updated_at = time.time()
        return deployment

    async def stop(self, request: Request) -> Any:
        deployment = find(self.deployments, request.path_params["name"], "deployment")
        deployment.state, deployment.cause = "stopped", "you stopped it"
        deployment.remedy = f"wherry start {deployment.name}"
        return deployment

    async def roll_back(self, request: Request) -> Any:
        deployment = find(self.deployments, request.path_params["name"], "deployment")
        rollout = schema.RolloutInfo(phase="rolled_back", serving=["mood@1"], reason="by you")
        deployment.rollout, deployment.versions = rollout, {"mood@1": 100}
        return deployment

    async def promote(self, request: Request) -> Any:
        deployment = find(self.deployments, request.path_params["name"], "deployment")
        if deployment.rollout.phase == "steady":
            raise errors.Conflict("there is nothing to promote", hint="wherry ps")
        deployment.rollout = schema.RolloutInfo(serving=["mood@2"])
        return deployment

    async def logs(self, request: Request) -> Any:
        find(self.deployments, request.path_params["name"], "deployment")
        lines = [schema.LogLine(at=float(n), worker="w1", text=f"line {n}") for n in range(3)]
        if request.query_params.get("follow") != "true":
            return page(lines[-int(request.query_params["lines"]) :], request)

        async def events() -> AsyncIterator[bytes]:
            for line in lines:
                yield b"data: " + msgspec.json.encode(line) + b"\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    # -------------------------------------------------------------------- the rest

    async def overview(self, request: Request) -> Any:
        return schema.Overview(
            version="0.1.0",
            started_at=time.time() - 60,
            team="default",
            scopes=["admin"],
            problems=[],
            deployments=list(self.deployments.values()),
            memory_used_mib=100,
            memory_limit_mib=4000,
        )

    async def watch_events(self, request: Request) -> Any:
        seen = int(request.headers.get("last-event-id") or 0)
        topics = (request.query_params.get("topics") or "").split(",")

        async def events() -> AsyncIterator[bytes]:
            sent = seen
            yield b": hello\n\n"
            while True:
                for event in self.events[sent:]:
                    sent = event.id
                    if topics == [""] or event.topic in topics:
                        yield b"id: %d\ndata: %s\n\n" % (event.id, msgspec.json.encode(event))
                        self._maybe_cut_stream()
                await asyncio.sleep(0.01)

        return StreamingResponse(events(), media_type="text/event-stream")

    async def metrics(self, request: Request) -> Any:
        return {
            "deployment": request.query_params["deployment"],
            "points": [schema.Point(at=1.0, requests=2, latency_ms_p50=3.0)],
        }

    async def catalog(self, request: Request) -> Any:
        return page(CATALOG, request)

    async def workers(self, request: Request) -> Any:
        workers = [
            schema.WorkerInfo(
                id=f"w{n}", deployment=name, model=name, version=1, pid=1000 + n, state="ready"
            )
            for n, name in enumerate(self.deployments)
        ]
        return page(workers, request)

    async def list_keys(self, request: Request) -> Any:
        return page(list(self.keys.values()), request)

    async def create_key(self, request: Request) -> Any:
        body = await read(request, schema.KeyRequest)
        fields: dict[str, Any] = {
            "id": f"key_{next(self._ids)}",
            "name": body.name,
            "team": "default",
            "prefix": "wk-abc",
            "scopes": body.scopes,
            "deployments": list(body.deployments),
            "limits": body.limits,
            "expires_at": body.expires_at,
        }
        if body.dry_run:
            return schema.NewKey(**fields, secret="")
        self.keys[fields["id"]] = schema.Key(**fields)
        return schema.NewKey(**fields, secret="wk-abc-secret")

    async def revoke_key(self, request: Request) -> Any:
        key = find(self.keys, request.path_params["id"], "key")
        revoked = msgspec.structs.replace(key, revoked_at=time.time())
        if request.query_params.get("dry_run") != "true":
            self.keys[key.id] = revoked
        return revoked

    async def usage(self, request: Request) -> Any:
        by = request.query_params["by"].split(",")
        row = schema.UsageRow(requests=3, errors=1, input_tokens=10, output_tokens=20)
        values = {"day": "2026-01-02", "key": "ci", "model": "smollm2", "deployment": "smollm2"}
        return page([msgspec.structs.replace(row, **{name: values[name] for name in by})], request)

    async def list_runtimes(self, request: Request) -> Any:
        return page([self.runtimes[name] for name in sorted(self.runtimes)], request)

    async def install_runtime(self, request: Request) -> Any:
        runtime = find(self.runtimes, request.path_params["name"], "runtime")

        def work() -> dict[str, Any]:
            self.runtimes[runtime.name] = msgspec.structs.replace(
                runtime, place="own environment", packages={"torch": "2.13.0"}, size_bytes=1 << 30
            )
            return {"runtime": runtime.name, "place": "own environment"}

        return self.start_job("install", work)

    async def remove_runtime(self, request: Request) -> Any:
        runtime = find(self.runtimes, request.path_params["name"], "runtime")
        if runtime.place != "own environment":
            raise errors.NotFound(f"runtime {runtime.name!r} has no environment of its own")
        if request.query_params.get("dry_run") != "true":
            self.runtimes[runtime.name] = schema.RuntimeInfo(name=runtime.name)
        return runtime

    async def doctor(self, request: Request) -> Any:
        problems = [
            schema.Problem(
                severity="error" if each.state == "failing" else "warning",
                subject=each.name,
                what=f"it is {each.state}",
                cause=each.cause,
                remedy=each.remedy,
            )
            for each in self.deployments.values()
            if each.state in ("failing", "stopped")
        ]
        return page(problems, request)

    async def ready(self, request: Request) -> Any:
        return {"ready": True}

    # -------------------------------------------------------------------- inference

    def _serving(self, name: str) -> schema.Deployment:
        deployment = find(self.deployments, name, "deployment")
        if deployment.state == "stopped":
            raise errors.NotReady(f"{name!r} is stopped", hint=f"wherry start {name}")
        return deployment

    async def predict(self, request: Request) -> Any:
        self._serving(request.path_params["name"])
        body = msgspec.json.decode(await request.body())
        if "prompt" in body:
            return {"text": " and so on", "finish_reason": "length"}
        if "text" not in body:
            return {"echo": body}
        label = "positive" if "lovely" in body["text"] else "negative"
        return {"label": label, "score": 0.75}

    async def chat(self, request: Request) -> Any:
        body = msgspec.json.decode(await request.body())
        self._serving(body["model"])
        if self.refused_chats:
            raise self.refused_chats.pop(0)
        text = body["messages"][-1]["content"][::-1]
        head = {"id": "chatcmpl-1", "created": 0, "model": body["model"]}
        if not body.get("stream"):
            usage = {"prompt_tokens": 3, "completion_tokens": len(text)}
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return {**head, "choices": [choice], "usage": usage}

        async def events() -> AsyncIterator[bytes]:
            whole = b""
            for piece in text:
                choice = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
                whole += b"data: " + msgspec.json.encode({**head, "choices": [choice]}) + b"\n\n"
            if "crash" in text[::-1]:
                error = {"code": "worker_lost", "message": "the worker died"}
                yield whole + b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"
                return
            choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
            whole += b"data: " + msgspec.json.encode({**head, "choices": [choice]}) + b"\n\n"
            whole += b"data: [DONE]\n\n"
            for start in range(0, len(whole), 7):  # splits events, also inside characters
                yield whole[start : start + 7]
                if start == 7 * 10:
                    self._maybe_cut_stream()

        return StreamingResponse(events(), media_type="text/event-stream")

    async def embeddings(self, request: Request) -> Any:
        body = msgspec.json.decode(await request.body())
        self._serving(body["model"])
        data = [
            {"object": "embedding", "index": index, "embedding": [float(len(text)), 0.5]}
            for index, text in enumerate(body["input"])
        ]
        return {"object": "list", "data": data[::-1], "model": body["model"]}

    async def infer(self, request: Request) -> Any:
        """Echoes its inputs, in binary if they came so."""
        self._serving(request.path_params["name"])
        content = await request.body()
        head_bytes = int(request.headers.get("inference-header-content-length", len(content)))
        head = msgspec.json.decode(content[:head_bytes])
        outputs = [{**tensor, "name": "out_" + tensor["name"]} for tensor in head["inputs"]]
        answer = msgspec.json.encode({"model_name": "echo", "outputs": outputs})
        if "inference-header-content-length" not in request.headers:
            return Response(answer, media_type="application/json")
        return Response(
            answer + content[head_bytes:],
            media_type="application/octet-stream",
            headers={"Inference-Header-Content-Length": str(len(answer))},
        )

    # -------------------------------------------------------------------- the app

    def app(self) -> Starlette:
        platform = "/platform/v1"
        rows: list[tuple[str, str, Callable[[Request], Awaitable[Any]]]] = [
            ("GET", "/readyz", self.ready),
            ("GET", f"{platform}/overview", self.overview),
            ("GET", f"{platform}/events", self.watch_events),
            ("GET", f"{platform}/metrics", self.metrics),
            ("GET", f"{platform}/catalog", self.catalog),
            ("GET", f"{platform}/models", self.list_models),
            ("POST", f"{platform}/models:pull", self.pull),
            ("POST", f"{platform}/models:import", self.import_upload),
            ("POST", f"{platform}/models:train", self.train),
            ("GET", f"{platform}/models/{{model}}", self.get_model),
            ("DELETE", f"{platform}/models/{{model}}", self.remove_model),
            ("GET", f"{platform}/models/{{model}}/versions", self.list_versions),
            ("GET", f"{platform}/models/{{model}}/versions/{{number}}", self.get_version),
            ("DELETE", f"{platform}/models/{{model}}/versions/{{number}}", self.remove_version),
            ("PUT", f"{platform}/models/{{model}}/aliases/{{alias}}", self.set_alias),
            ("DELETE", f"{platform}/models/{{model}}/aliases/{{alias}}", self.remove_alias),
            ("POST", f"{platform}/uploads", self.create_upload),
            ("GET", f"{platform}/uploads/{{id}}", self.get_upload),
            ("DELETE", f"{platform}/uploads/{{id}}", self.remove_upload),
            ("PUT", f"{platform}/uploads/{{id}}/files/{{path:path}}", self.put_file),
            ("GET", f"{platform}/jobs", self.list_jobs),
            ("POST", f"{platform}/jobs/{{id}}:cancel", self.cancel_job),
            ("GET", f"{platform}/jobs/{{id}}", self.get_job),
            ("GET", f"{platform}/jobs/{{id}}/events", self.watch_job),
            ("GET", f"{platform}/deployments", self.list_deployments),
            ("POST", f"{platform}/deployments:apply", self.apply),
            ("POST", f"{platform}/deployments/{{name}}:scale", self.scale),
            ("POST", f"{platform}/deployments/{{name}}:start", self.start),
            ("POST", f"{platform}/deployments/{{name}}:stop", self.stop),
            ("POST", f"{platform}/deployments/{{name}}:rollback", self.roll_back),
            ("POST", f"{platform}/deployments/{{name}}:promote", self.promote),
            ("GET", f"{platform}/deployments/{{name}}/logs", self.logs),
            ("GET", f"{platform}/deployments/{{name}}", self.get_deployment),
            ("DELETE", f"{platform}/deployments/{{name}}", self.remove_deployment),
            ("GET", f"{platform}/workers", self.workers),
            ("GET", f"{platform}/keys", self.list_keys),
            ("POST", f"{platform}/keys", self.create_key),
            ("DELETE", f"{platform}/keys/{{id}}", self.revoke_key),
            ("GET", f"{platform}/usage", self.usage),
            ("GET", f"{platform}/doctor", self.doctor),
            ("GET", f"{platform}/runtimes", self.list_runtimes),
            ("POST", f"{platform}/runtimes/{{name}}:install", self.install_runtime),
            ("DELETE", f"{platform}/runtimes/{{name}}", self.remove_runtime),
            ("POST", "/predict/{name}", self.predict),
            ("POST", "/v1/chat/completions", self.chat),
            ("POST", "/v1/embeddings", self.embeddings),
            ("POST", "/v2/models/{name}/infer", self.infer),
            ("POST", "/v2/models/{name}/versions/{version}/infer", self.infer),
        ]
        return Starlette(
            routes=[Route(path, self._door(row), methods=[method]) for method, path, row in rows]
        )

    def _door(self, handler: Callable[[Request], Awaitable[Any]]) -> Any:
        async def answer(request: Request) -> Response:
            self.requests.append((request.method, request.url.path))
            if self.break_next:
                self.break_next -= 1
                await request.body()
                return StreamingResponse(break_off(), headers={"content-length": "100"})
            try:
                if self.refusals:
                    raise self.refusals.pop(0)
                if request.url.path != "/readyz":
                    check_key(request)
                found = await handler(request)
            except errors.WherryError as error:
                return error_answer(error)
            if isinstance(found, Response):
                return found
            return Response(msgspec.json.encode(found), media_type="application/json")

        return answer


async def break_off() -> AsyncIterator[bytes]:
    """An answer that ends before it should."""
    yield b"{"
    raise ConnectionAbortedError("the test cuts this connection")


def check_key(request: Request) -> None:
    if request.headers.get("authorization") != f"Bearer {KEY}":
        raise errors.NotAuthenticated("no such key", hint="send a key as `Bearer`")


def error_answer(error: errors.WherryError) -> Response:
    headers = {"x-request-id": "req_7"}
    if isinstance(error, errors.TryLater):
        headers["retry-after"] = f"{error.retry_after_seconds:g}"
    body = {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "request_id": "req_7",
    }
    return Response(
        msgspec.json.encode({"error": body}),
        status_code=STATUS.get(error.code, 500),
        headers=headers,
        media_type="application/json",
    )


async def read(request: Request, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except msgspec.ValidationError as error:
        raise errors.InvalidInput(str(error)) from error


def find(things: Any, name: Any, what: str) -> Any:
    if name not in things:
        raise errors.NotFound(f"no {what} {name!r}", hint=f"see the list of every {what}")
    return things[name]


def page(items: list[Any], request: Request) -> schema.Page:
    start = int(request.query_params.get("cursor") or 0)
    end = start + PAGE_ITEMS
    return schema.Page(items=items[start:end], next=str(end) if end < len(items) else None)


class _Server(uvicorn.Server):
    def install_signal_handlers(self) -> None:
        """Signals belong to the test runner."""


@contextlib.contextmanager
def run_twin() -> Iterator[Twin]:
    """A twin that listens on a port of its own, in a thread."""
    twin = Twin()
    listener = socket.create_server(("127.0.0.1", 0))
    twin.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        twin.app(), log_level="critical", lifespan="off", timeout_graceful_shutdown=1
    )
    server = _Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield twin
    finally:
        server.should_exit = True
        thread.join(5)
        listener.close()
