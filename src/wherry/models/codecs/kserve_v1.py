"""KServe's (and TensorFlow Serving's) v1 protocol, for every task.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Decoded, Reply, decode_json
from wherry.models.codecs.scoring import read_columns, read_instances, write_predictions
from wherry.models.tasks.task import Task, TaskConfig


class PredictRequest(msgspec.Struct):
    """The body: `instances`, or (of TensorFlow Serving) whole columns as `inputs`."""

    instances: list[Any] | None = None
    inputs: list[Any] | dict[str, list[Any]] | None = None


_request_decoder = msgspec.json.Decoder(PredictRequest)


class KserveV1Codec:
    """See the module's docstring."""

    tasks: frozenset[str] = frozenset()

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """Items of the instances."""
        request: PredictRequest = decode_json(body, _request_decoder)
        if (request.instances is None) == (request.inputs is None):
            raise InvalidInput(
                "exactly one of 'instances' and 'inputs' is needed",
                hint='for example {"instances": [[5.1, 3.5, 1.4, 0.2]]}',
                param="instances",
            )
        if isinstance(request.inputs, dict):
            return Decoded(read_columns(request.inputs, task, config))
        return Decoded(read_instances(request.instances or request.inputs or [], task, config))

    def encode(
        self, decoded: Decoded, outputs: Sequence[Any], call: Call, task: Task, config: TaskConfig
    ) -> Reply:
        """`{"predictions": [...]}`."""
        return write_predictions(outputs, task, config)


KSERVE_V1 = KserveV1Codec()
