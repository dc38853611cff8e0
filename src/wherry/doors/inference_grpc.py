"""Open Inference Protocol v2 over gRPC: `inference.GRPCInferenceService`, with Triton's extensions.

Of a request for inference only name, version and id are read here: the message goes to the worker
as it came, and what the worker answers goes out as it is.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from wherry import errors
from wherry.doors.grpc_server import GrpcCall, Method, Trailers
from wherry.doors.inference_models import (
    Config,
    Duration,
    InferenceModels,
    InferenceStats,
    Metadata,
    ModelStats,
    RepositoryEntry,
    ServerMetadata,
    Tensor,
)
from wherry.doors.invoke import (
    MAX_TIMEOUT_SECONDS,
    MIN_TIMEOUT_SECONDS,
    answer_fields,
    read_sticky,
    read_timeout,
    read_wait,
)
from wherry.doors.route import Permission
from wherry.gateway.admit import Inbound
from wherry.gateway.exchange import Exchange
from wherry.gateway.predict import Gateway
from wherry.protobuf import (
    Budget,
    Message,
    Numbers,
    bytes_field,
    bytes_head,
    integer_field,
    message_of,
)
from wherry.telemetry import request_id

SERVICE = "/inference.GRPCInferenceService/"
EXTENSIONS = ["model_repository", "model_configuration", "statistics"]
QUESTION_BYTES = 64 << 10
"""Most bytes of a request that is not for inference."""
MAX_FIELDS = 4096
"""Of a message, those inside its parts not counted: inputs, outputs, raw data, parameters."""
MAX_TEXT_BYTES = 4096
"""Of a name or an id."""
MAX_AHEAD = 32
"""Requests of one stream that run, or whose answers wait for those before them."""
HTTP_ONLY = frozenset({b"content-type", b"content-length", b"x-content-type-options"})

DATA_TYPES = {
    "TYPE_BOOL": 1,
    "TYPE_UINT8": 2,
    "TYPE_UINT16": 3,
    "TYPE_UINT32": 4,
    "TYPE_UINT64": 5,
    "TYPE_INT8": 6,
    "TYPE_INT16": 7,
    "TYPE_INT32": 8,
    "TYPE_INT64": 9,
    "TYPE_FP16": 10,
    "TYPE_FP32": 11,
    "TYPE_FP64": 12,
    "TYPE_STRING": 13,
    "TYPE_BF16": 14,
}
"""Triton's enum `DataType`."""


class ModelInput(msgspec.Struct):
    """`ModelInput` and `ModelOutput` of Triton's configuration, whose numbers differ."""

    name: str
    data_type: int
    dims: list[int]


class ModelOutput(ModelInput):
    """See `ModelInput`."""


class ModelConfig(msgspec.Struct):
    """The part of Triton's `ModelConfig` that clients read."""

    name: str
    platform: str
    backend: str
    input: list[ModelInput]
    output: list[ModelOutput]


NUMBERS: Numbers = {
    ServerMetadata: {"name": 1, "version": 2, "extensions": 3},
    Metadata: {"name": 1, "versions": 2, "platform": 3, "inputs": 4, "outputs": 5},
    Tensor: {"name": 1, "datatype": 2, "shape": 3},
    ModelConfig: {"name": 1, "platform": 2, "input": 5, "output": 6, "backend": 17},
    ModelInput: {"name": 1, "data_type": 2, "dims": 4},
    ModelOutput: {"name": 1, "data_type": 2, "dims": 3},
    ModelStats: {
        "name": 1,
        "version": 2,
        "inference_count": 4,
        "execution_count": 5,
        "inference_stats": 6,
    },
    InferenceStats: {"success": 1, "fail": 2},
    Duration: {"count": 1, "ns": 2},
    RepositoryEntry: {"name": 1, "version": 2, "state": 3, "reason": 4},
}
"""Fields of the messages of Triton's `grpc_service.proto` and `model_config.proto`."""


class InferenceGrpcDoor:
    """Methods of the service.

    Args:
        gateway: the data plane.
        models: what is told of them.
    """

    def __init__(self, gateway: Gateway, models: InferenceModels) -> None:
        self._gateway = gateway
        self._models = models
        self._readers: set[asyncio.Task[None]] = set()
        """Of open streams."""

    def methods(self) -> list[Method]:
        """The table; whatever else Triton has (shared memory, tracing, logs) is UNIMPLEMENTED."""
        infer_bytes = self._gateway.settings.max_body_bytes
        table: list[tuple[str, Permission, Any, int]] = [
            ("ModelInfer", "invoke", self.infer, infer_bytes),
            ("ModelStreamInfer", "invoke", self.infer_stream, infer_bytes),
            ("ServerLive", "open", self.live, 0),
            ("ServerReady", "open", self.ready, 0),
            ("ServerMetadata", "any", self.server, 0),
            ("ModelReady", "any", self.model_ready, QUESTION_BYTES),
            ("ModelMetadata", "any", self.metadata, QUESTION_BYTES),
            ("ModelConfig", "any", self.config, QUESTION_BYTES),
            ("ModelStatistics", "any", self.stats, QUESTION_BYTES),
            ("RepositoryIndex", "any", self.index, QUESTION_BYTES),
            ("RepositoryModelLoad", "operate", self.load, QUESTION_BYTES),
            ("RepositoryModelUnload", "operate", self.unload, QUESTION_BYTES),
        ]
        return [
            Method(
                path=SERVICE + name,
                permission=permission,
                handler=handler,
                message_bytes=message_bytes,
                reads_many=handler == self.infer_stream,
            )
            for name, permission, handler, message_bytes in table
        ]

    def end_streams(self) -> None:
        """Read no more of them; what was read is answered."""
        for reader in self._readers:
            reader.cancel()

    # ------------------------------------------------------------------ the server

    async def live(self, call: GrpcCall) -> bytes:
        """The process answers."""
        return integer_field(1, True)

    async def ready(self, call: GrpcCall) -> bytes:
        """Executors make progress and outcomes can be recorded."""
        return integer_field(1, self._models.is_ready())

    async def server(self, call: GrpcCall) -> bytes:
        """Name, version, extensions."""
        return message_of(self._models.server(EXTENSIONS), NUMBERS)

    # ------------------------------------------------------------------ models

    async def model_ready(self, call: GrpcCall) -> bytes:
        """Whether a version of a model is loaded."""
        name, version = read_texts(call.message, 1, 2)
        return integer_field(1, self._models.is_model_ready(call.principal, name, version))

    async def metadata(self, call: GrpcCall) -> bytes:
        """Tensors of a model."""
        name, version = read_texts(call.message, 1, 2)
        return message_of(self._models.metadata(call.principal, name, version), NUMBERS)

    async def config(self, call: GrpcCall) -> bytes:
        """The part of Triton's model configuration that clients read."""
        name, version = read_texts(call.message, 1, 2)
        config = self._models.config(call.principal, name, version)
        return bytes_field(1, message_of(config_message(config), NUMBERS))

    async def stats(self, call: GrpcCall) -> bytes:
        """Counts of a model, or of all if none is named."""
        name, version = read_texts(call.message, 1, 2)
        found = self._models.stats(call.principal, name, version)
        return b"".join(bytes_field(1, message_of(each, NUMBERS)) for each in found)

    # ------------------------------------------------------------------ the repository

    async def index(self, call: GrpcCall) -> bytes:
        """Deployed models and their states."""
        message = Message(memoryview(call.message), 0, len(call.message), Budget(MAX_FIELDS))
        ready = [message.integer(field) for field in message.fields() if field.number == 2]
        found = self._models.index(call.principal, only_ready=bool(ready and ready[-1]))
        return b"".join(bytes_field(1, message_of(each, NUMBERS)) for each in found)

    async def load(self, call: GrpcCall) -> bytes:
        """Start a deployment and wait until it is ready."""
        (name,) = read_texts(call.message, 2)
        await self._models.load(call.principal, name)
        return b""

    async def unload(self, call: GrpcCall) -> bytes:
        """Stop a deployment."""
        (name,) = read_texts(call.message, 2)
        await self._models.unload(call.principal, name)
        return b""

    # ------------------------------------------------------------------ inference

    async def infer(self, call: GrpcCall) -> bytes:
        """Run a model on tensors."""
        name, version = read_texts(call.message, 1, 2)
        exchange = await self._run(call, call.id, name, version, call.message)
        call.trailers = trailers_of(exchange)
        return bytes(exchange.body)

    async def infer_stream(self, call: GrpcCall) -> None:
        """Run each request of a stream; they run together, and are answered in their order."""
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(MAX_AHEAD)
        tasks: set[asyncio.Task[bytes]] = set()
        reader = asyncio.create_task(self._read_ahead(call, answers, tasks))
        self._readers.add(reader)
        try:
            while (answer := await answers.get()) is not None:
                await call.write(await answer)
            await asyncio.wait([reader])
            if reader.cancelled():
                raise errors.Unavailable("the server is stopping", hint="open the stream again")
            reader.result()
        finally:
            self._readers.discard(reader)
            for task in (reader, *tasks):
                task.cancel()

    async def _read_ahead(
        self,
        call: GrpcCall,
        answers: asyncio.Queue[asyncio.Task[bytes] | None],
        tasks: set[asyncio.Task[bytes]],
    ) -> None:
        try:
            while (message := await call.read()) is not None:
                task = asyncio.create_task(self._answer(call, message))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                await answers.put(task)
        finally:
            await answers.put(None)

    async def _answer(self, call: GrpcCall, message: bytes) -> bytes:
        """A `ModelStreamInferResponse`: what is wrong with one request does not end the stream."""
        given_id = ""
        try:
            name, version, given_id = read_texts(message, 1, 2, 3)
            exchange = await self._run(call, request_id(), name, version, message)
        except errors.WherryError as error:
            told = bytes_field(1, error.text.encode())
            return told + bytes_field(2, bytes_field(3, given_id.encode()))
        return b"".join((bytes_head(2, len(exchange.body)), exchange.body))

    async def _run(
        self, call: GrpcCall, number: str, name: str, version: str, message: bytes
    ) -> Exchange:
        """One request through the gateway, to its answer."""
        metadata = call.metadata
        inbound = Inbound(
            door="grpc",
            request_id=number,
            principal=call.principal,
            deployment=name,
            version=version,
            codec="inference.grpc",
            body=message,
            timeout_seconds=timeout_of(call),
            sticky=read_sticky(metadata.get("x-wherry-sticky")),
            wait_seconds=read_wait(metadata.get("prefer")),
            is_direct=True,
        )
        exchange = self._gateway.predict(inbound)
        try:
            await exchange.answer()
        except asyncio.CancelledError:
            self._gateway.cancel(exchange)
            raise
        return exchange


def timeout_of(call: GrpcCall) -> float | None:
    """Seconds that the client waits: until the call's deadline, or fewer if it says so."""
    wished, left = read_timeout(call.metadata.get("x-request-timeout-seconds")), call.seconds_left
    if left is None:
        return wished
    left = min(max(left, MIN_TIMEOUT_SECONDS), MAX_TIMEOUT_SECONDS)
    return left if wished is None else min(left, wished)


def trailers_of(exchange: Exchange) -> Trailers:
    """What the header fields of an answer over HTTP tell, but for what HTTP alone needs."""
    return [
        (name.decode(), value.decode("latin-1"))
        for name, value in answer_fields(exchange)
        if name not in HTTP_ONLY
    ]


def read_texts(body: bytes, *numbers: int) -> list[str]:
    """The texts in some of a message's fields, empty where there is none.

    Raises:
        InvalidInput: the message is damaged, or has too many fields.
    """
    message = Message(memoryview(body), 0, len(body), Budget(MAX_FIELDS))
    found = dict.fromkeys(numbers, "")
    for field in message.fields():
        if field.number in found:
            found[field.number] = message.text(field, MAX_TEXT_BYTES)
    return list(found.values())


def config_message(config: Config) -> ModelConfig:
    """The configuration in gRPC's form, in which datatypes are numbers."""
    return ModelConfig(
        config.name,
        config.platform,
        config.backend,
        [ModelInput(each.name, DATA_TYPES[each.data_type], each.dims) for each in config.input],
        [ModelOutput(each.name, DATA_TYPES[each.data_type], each.dims) for each in config.output],
    )
