"""The client for event loops has the calls of the blocking one and speaks to the same server."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import pytest
from tests.client.twin import KEY, Twin

from wherry import AsyncClient, Client, errors


def run(twin: Twin, story) -> None:
    async def main() -> None:
        async with AsyncClient(twin.url, KEY) as client:
            await story(client)

    asyncio.run(main())


def test_a_model_is_pulled_deployed_and_called(twin: Twin):
    async def story(client: AsyncClient) -> None:
        assert (await client.models.pull("smollm2")).state == "succeeded"
        await client.deployments.deploy("smollm2")
        answer = await client.chat("smollm2", "abc")
        assert answer.text == "cba"
        pieces = [piece async for piece in client.chat("smollm2", "你好", stream=True)]
        assert pieces == ["好", "你"]

    run(twin, story)


def test_calls_run_side_by_side(twin: Twin):
    async def story(client: AsyncClient) -> None:
        twin.add_version("sentiment", "text-classification")
        await client.deployments.deploy("sentiment")
        answers = await asyncio.gather(
            *(client.predict("sentiment", text=text) for text in ["lovely", "rain"] * 4)
        )
        assert [answer["label"] for answer in answers] == ["positive", "negative"] * 4

    run(twin, story)


def test_errors_and_repetitions_are_those_of_the_blocking_client(twin: Twin):
    async def story(client: AsyncClient) -> None:
        with pytest.raises(errors.NotFound):
            await client.models.get("nothing")
        twin.break_next = 1
        twin.refusals = [errors.Overloaded("full", retry_after_seconds=0.01)]
        assert await client.models.list() == []
        twin.break_next = 1
        with pytest.raises(errors.WherryError):
            await client.predict("sentiment", text="x")

    run(twin, story)


def test_a_folder_is_imported(twin: Twin, tmp_path: Path):
    (tmp_path / "wherry.toml").write_text('task = "tensor"\nruntime = "onnx"\n')

    async def story(client: AsyncClient) -> None:
        version = await client.models.import_model(tmp_path, name="mood")
        assert version.number == 1

    run(twin, story)


def test_leaving_a_stream_early_closes_it(twin: Twin):
    async def story(client: AsyncClient) -> None:
        twin.tell("jobs", "one", "made")
        events = client.events()
        assert (await anext(events)).subject == "one"
        await events.aclose()

    run(twin, story)


def test_both_clients_have_the_same_calls_with_the_same_parameters():
    blocking, waiting = Client("http://127.0.0.1:9"), AsyncClient("http://127.0.0.1:9")
    for part in ("", "models", "deployments", "jobs", "keys"):
        one = getattr(blocking, part) if part else blocking
        other = getattr(waiting, part) if part else waiting
        names = [name for name in dir(one) if not name.startswith("_")]
        assert names == [name for name in dir(other) if not name.startswith("_")]
        for name in names:
            if callable(getattr(one, name)):
                first = inspect.signature(getattr(one, name)).parameters
                assert first == inspect.signature(getattr(other, name)).parameters
                assert getattr(one, name).__doc__
