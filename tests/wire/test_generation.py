"""What everybody may ask of text generation, over every runtime that does it, by the OpenAI SDK.

`native` is a language model, `relayed` the same by way of a second deployment that asks the first
over HTTP, `script` a Python class. `eyes` is a class that looks at the pixels of pictures, and
`far-eyes` asks it over HTTP.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

pytest.importorskip("xllamacpp")

from tests.chat_pictures import chat_picture, png_bomb
from tests.conftest import LiveServer, run_server
from tests.real_models import smollm2_path

from wherry import Client
from wherry.client.schema import DeploymentSpec
from wherry.models.tasks.chat_pictures import picture_url

SCRIPT = '''
import random

TEXT = "Un café ☕, 你好, 👩‍👩‍👧, e\\u0301nd."

class Model:
    """Says letters of a text one by one, or dice of a seed, or what it was asked to say."""

    def stream(self, request):
        yield {"input_tokens": 3, "output_tokens": 0}
        messages = request.get("messages")
        said = messages[-1]["content"] if messages else request["prompt"]
        if said == "dice":
            dice = random.Random(request["sampling"].get("seed"))
            yield from (str(dice.randrange(10)) for _ in range(12))
        elif said.startswith("say "):
            yield from said.removeprefix("say ")
        else:
            yield from TEXT
'''
EYES = '''
import base64, io
from PIL import Image

class Model:
    """Tells the mean colour of every picture of a conversation."""

    def stream(self, request):
        said = [each["content"] for each in request["messages"]]
        parts = [part for each in said if isinstance(each, list) for part in each]
        colours = [self.look(part["url"]) for part in parts if part["type"] == "image_url"]
        yield {"text": f"{len(colours)} pictures:", "input_tokens": 7}
        for colour in colours:
            yield f" {colour}"

    def look(self, url):
        picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        return "#%02x%02x%02x" % picture.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
'''
QUESTION = [{"role": "user", "content": "Tell me about rivers."}]
COUNT = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["count"],
    "additionalProperties": False,
}
MODELS, LANGUAGE_MODELS, SEEING = (
    ("native", "relayed", "script"),
    ("native", "relayed"),
    ("eyes", "far-eyes"),
)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    pytest.importorskip("PIL", reason="pip install 'wherry[image]'")
    folder = tmp_path_factory.mktemp("generation")
    with (
        run_server(folder, "--allow-code") as server,
        Client(server.url, server.key) as client,
    ):
        key = client.keys.create("for relays").secret
        relay = (
            f'runtime = "upstream"\n[options]\nbase_url = "{server.url}/v1"\ntakes_top_k = true\n'
        )
        manifests = {
            "native": 'task = "text-generation"\nruntime = "llama_cpp"\nfiles = ["model.gguf"]\n'
            "[options]\nn_parallel = 4\ncontext_tokens = 512\n",
            "script": 'task = "text-generation"\nruntime = "python_stream"\nfiles = ["model.py"]\n'
            "[options]\nmax_concurrency = 4\n",
            "eyes": 'task = "image-text-to-text"\nruntime = "python_stream"\nfiles = ["model.py"]\n'
            "[options]\nmax_concurrency = 4\n",
            "relayed": f'task = "text-generation"\n{relay}model = "native"\n',
            "far-eyes": f'task = "image-text-to-text"\n{relay}model = "eyes"\n',
        }
        for name, manifest in manifests.items():
            bundle = folder / name
            bundle.mkdir()
            (bundle / "wherry.toml").write_text(manifest)
            if name == "native":
                shutil.copyfile(smollm2_path(), bundle / "model.gguf")
            elif "python_stream" in manifest:
                (bundle / "model.py").write_text({"script": SCRIPT, "eyes": EYES}[name])
            client.models.import_model(bundle, name=name)
            secrets = {"api_key": key} if "upstream" in manifest else {}
            client.deployments.apply([DeploymentSpec(name=name, model=name, secrets=secrets)])
            client.deployments.wait(name, timeout=120)
        yield server


def ask(sdk: openai.OpenAI, model: str, **fields: Any) -> Any:
    return sdk.chat.completions.create(
        model=model, **({"messages": QUESTION, "temperature": 0, "max_tokens": 24} | fields)
    )


def text_of(answer: Any) -> str:
    return answer.choices[0].message.content


def pieces_of(stream: Any) -> list[str]:
    return [each.choices[0].delta.content or "" for each in stream if each.choices]


# ------------------------------------------------------------------------------ text


@pytest.mark.parametrize("model", MODELS)
def test_a_stop_text_never_shows_not_even_in_part(sdk: openai.OpenAI, model: str) -> None:
    whole = text_of(ask(sdk, model, max_tokens=40))
    middle = len(whole) // 2
    stop = whole[middle : middle + 5]  # across the borders of tokens, as they come
    before = whole[: whole.index(stop)]
    cut = ask(sdk, model, max_tokens=40, stop=["never said", stop])
    assert (text_of(cut), cut.choices[0].finish_reason) == (before, "stop")
    pieces = pieces_of(ask(sdk, model, max_tokens=40, stop=["never said", stop], stream=True))
    assert "".join(pieces) == before


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_says_the_same_and_cuts_no_character(sdk: openai.OpenAI, model: str) -> None:
    messages = [{"role": "user", "content": "Réponds: 你好 ☕ 😀?"}]
    whole = text_of(ask(sdk, model, messages=messages))
    pieces = pieces_of(ask(sdk, model, messages=messages, stream=True))
    assert "".join(pieces) == whole
    assert "\ufffd" not in whole
    assert len(pieces) > 5


@pytest.mark.parametrize("model", MODELS)
def test_a_seed_gives_the_same_text_also_among_others(sdk: openai.OpenAI, model: str) -> None:
    dice = {"messages": [{"role": "user", "content": "dice"}], "temperature": 1.0, "max_tokens": 12}
    alone = text_of(ask(sdk, model, seed=5, **dice))
    with ThreadPoolExecutor(4) as threads:
        seeds = (5, 6, 7, 5)
        together = list(
            threads.map(lambda seed: text_of(ask(sdk, model, seed=seed, **dice)), seeds)
        )
    assert together[0] == together[3] == alone
    assert len(set(together)) == 3


@pytest.mark.parametrize("model", MODELS)
def test_several_answers_are_charged_one_prompt(sdk: openai.OpenAI, model: str) -> None:
    one = ask(sdk, model, max_tokens=5)
    three = ask(sdk, model, n=3, max_tokens=5)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens == 15
    indices = {
        each.choices[0].index
        for each in ask(sdk, model, n=3, max_tokens=5, stream=True)
        if each.choices
    }
    assert indices == {0, 1, 2}


@pytest.mark.parametrize("model", MODELS)
def test_the_best_of_several_is_not_chosen_for_anybody(sdk: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.completions.create(model=model, prompt="Once", best_of=3, max_tokens=2)
    assert refused.value.param == "best_of"


# ------------------------------------------------------------------------------ tokens


@pytest.mark.parametrize("model", LANGUAGE_MODELS)
def test_log_probabilities_name_every_token_and_its_rivals(sdk: openai.OpenAI, model: str) -> None:
    answer = ask(sdk, model, logprobs=True, top_logprobs=3, max_tokens=6)
    told = answer.choices[0].logprobs.content
    assert len(told) == 6
    assert b"".join(bytes(each.bytes) for each in told).decode() == text_of(answer)
    for each in told:
        likeliest = [rival.logprob for rival in each.top_logprobs]
        assert len(likeliest) == 3
        assert likeliest == sorted(likeliest, reverse=True)
        assert each.logprob <= likeliest[0] <= 0


def test_a_class_that_cannot_tell_log_probabilities_says_so(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(sdk, "script", logprobs=True)
    assert refused.value.param == "logprobs"


@pytest.mark.parametrize("model", LANGUAGE_MODELS)
def test_a_bias_makes_a_token_certain_or_impossible(sdk: openai.OpenAI, model: str) -> None:
    usual = text_of(ask(sdk, model, max_tokens=3))
    certain = text_of(ask(sdk, model, max_tokens=3, logit_bias={"1348": 100}))
    assert certain == "ThisThisThis"
    assert usual != certain


@pytest.mark.parametrize("model", LANGUAGE_MODELS)
def test_more_ways_to_choose_tokens_than_openais(sdk: openai.OpenAI, model: str) -> None:
    hot = {"temperature": 2.0, "seed": 3, "max_tokens": 12}
    likeliest = text_of(ask(sdk, model, max_tokens=12))
    assert text_of(ask(sdk, model, **hot)) != likeliest
    for one_left in ({"top_k": 1}, {"min_p": 1.0}):
        assert text_of(ask(sdk, model, **hot, extra_body=one_left)) == likeliest
    again = [{"role": "user", "content": "Repeat: river river river river river river river"}]
    free = text_of(ask(sdk, model, messages=again, max_tokens=30))
    held = text_of(
        ask(sdk, model, messages=again, max_tokens=30, extra_body={"repetition_penalty": 4.0})
    )
    assert free.lower().count("river") > held.lower().count("river")


@pytest.mark.parametrize(
    "field", [{"top_k": -2}, {"min_p": 1.5}, {"repetition_penalty": 0}, {"repetition_penalty": "x"}]
)
def test_a_wrong_way_is_named(sdk: openai.OpenAI, field: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(sdk, "native", extra_body=field)
    assert refused.value.param == next(iter(field))


# ------------------------------------------------------------------------------ forms


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "json_schema": {"name": "count", "strict": True, "schema": COUNT}},
        {"type": "json_object", "value": COUNT},
        {"type": "json_object", "schema": COUNT},
    ],
    ids=["OpenAI", "Hugging Face", "llama.cpp"],
)
@pytest.mark.parametrize("model", LANGUAGE_MODELS)
def test_a_schema_holds_however_it_is_written(sdk: openai.OpenAI, model: str, form: Any) -> None:
    for temperature in (0, 1.5):
        found = text_of(ask(sdk, model, response_format=form, temperature=temperature, seed=1))
        assert 0 <= json.loads(found)["count"] <= 99


def test_a_class_is_held_to_the_schema_it_was_given(sdk: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "count", "schema": COUNT}}

    def say(text: str) -> str:
        messages = [{"role": "user", "content": f"say {text}"}]
        return text_of(ask(sdk, "script", messages=messages, response_format=form, max_tokens=99))

    assert say('{"count": 7}') == '{"count": 7}'
    for wrong in ('{"count": 100}', "seven"):
        with pytest.raises(openai.InternalServerError, match="does not fit the schema"):
            say(wrong)


TOOL = {"type": "function", "function": {"name": "count_rivers", "parameters": COUNT}}


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "count_rivers"}}]
)
@pytest.mark.parametrize("model", LANGUAGE_MODELS)
def test_a_forced_tool_is_called(sdk: openai.OpenAI, model: str, choice: Any) -> None:
    answer = ask(sdk, model, tools=[TOOL], tool_choice=choice, max_tokens=60)
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "count_rivers"
    assert 0 <= json.loads(call.function.arguments)["count"] <= 99


def test_a_class_cannot_be_forced_to_call_a_tool(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(sdk, "script", tools=[TOOL], tool_choice="required")
    assert refused.value.param == "tool_choice"
    assert text_of(ask(sdk, "script", tools=[TOOL]))


# ------------------------------------------------------------------------------ pictures


def show(*colours: str, **fields: Any) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "Which colours?"}]
    for colour in colours:
        url = picture_url(chat_picture(colour))
        parts.append({"type": "image_url", "image_url": {"url": url, "detail": "low"} | fields})
    return [{"role": "user", "content": parts}]


@pytest.mark.parametrize("model", SEEING)
def test_pictures_are_seen_in_order(sdk: openai.OpenAI, model: str) -> None:
    answer = ask(sdk, model, messages=show("red", "blue"))
    assert text_of(answer) == "2 pictures: #ff0000 #0000ff"
    assert answer.usage.prompt_tokens == 7
    assert "".join(pieces_of(ask(sdk, model, messages=show("lime"), stream=True))) == (
        "1 pictures: #00ff00"
    )


@pytest.mark.parametrize("model", SEEING)
def test_pictures_of_many_do_not_mix(sdk: openai.OpenAI, model: str) -> None:
    colours = {"red": "#ff0000", "blue": "#0000ff", "white": "#ffffff", "black": "#000000"}
    with ThreadPoolExecutor(4) as threads:
        answers = threads.map(lambda each: text_of(ask(sdk, model, messages=show(each))), colours)
        assert list(answers) == [f"1 pictures: {seen}" for seen in colours.values()]


@pytest.mark.parametrize("model", SEEING)
def test_anthropics_clients_show_pictures_too(live: LiveServer, model: str) -> None:
    data = base64.b64encode(chat_picture("red", form="JPEG")).decode()
    source = {"type": "base64", "media_type": "image/jpeg", "data": data}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "Which?"}]
    body = {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
    answer = live.http.post("/v1/messages", json=body).json()
    assert answer["content"][0]["text"] == "1 pictures: #fe0000"


@pytest.mark.parametrize("model", SEEING)
def test_the_plain_form_takes_a_file_or_base64(live: LiveServer, model: str) -> None:
    file = chat_picture("blue")
    as_file = live.http.post(
        f"/predict/{model}", content=file, headers={"content-type": "image/png"}
    )
    as_text = live.http.post(
        f"/predict/{model}", json={"text": "Which?", "image": base64.b64encode(file).decode()}
    )
    assert as_file.json()["text"] == as_text.json()["text"] == "1 pictures: #0000ff"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://pictures.example/a.png", "the server fetches none"),
        ("file:///etc/passwd", "the server fetches none"),
        ("data:text/html;base64,aGk=", "no data: URL of a picture"),
        ("data:image/png;base64,!!!!", "not valid base64"),
        ("data:image/png;base64,aGVsbG8=", "cannot be read"),
        (picture_url(png_bomb(50_000)), "cannot be read"),
    ],
)
@pytest.mark.parametrize("model", SEEING)
def test_what_is_no_picture_is_refused(
    sdk: openai.OpenAI, model: str, url: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        ask(sdk, model, messages=show("red", url=url))
    assert refused.value.param == "messages"


@pytest.mark.parametrize("model", MODELS)
def test_models_that_read_refuse_pictures(sdk: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="reads text only"):
        ask(sdk, model, messages=show("red"))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "sound"),
        ({"type": "video_url", "video_url": {"url": "data:,"}}, "video"),
        ({"type": "file", "file": {"file_data": ""}}, "files"),
    ],
)
def test_what_is_neither_text_nor_picture_is_refused_in_words(
    live: LiveServer, part: dict[str, Any], words: str
) -> None:
    body = {"model": "eyes", "messages": [{"role": "user", "content": [part]}]}
    response = live.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "messages[0].content[0]"


def test_the_shell_shows_a_file_to_a_model_that_sees(live: LiveServer, tmp_path: Path) -> None:
    for colour in ("red", "blue"):
        (tmp_path / f"{colour}.png").write_bytes(chat_picture(colour))
    files = [str(tmp_path / name) for name in ("red.png", "blue.png")]
    assert live.run_cli("run", "eyes", *files).stdout == "2 pictures: #ff0000 #0000ff\n"
    told = live.run_cli("run", "eyes", "Which colour has", files[1], "?", "-o", "json").stdout
    assert json.loads(told)["text"] == "1 pictures: #0000ff"


# ------------------------------------------------------------------------------ other doors


@pytest.mark.parametrize("model", SEEING)
def test_ollamas_clients_show_pictures(live: LiveServer, model: str) -> None:
    picture = base64.b64encode(chat_picture("blue")).decode()
    told = live.http.post(
        "/api/chat",
        json={
            "model": model,
            "stream": False,
            "messages": [{"role": "user", "content": "What?", "images": [picture]}],
        },
    )
    assert told.json()["message"]["content"] == "1 pictures: #0000ff"
    again = live.http.post(
        "/api/generate",
        json={"model": model, "prompt": "What?", "images": [picture, picture], "stream": False},
    )
    assert again.json()["response"] == "2 pictures: #0000ff #0000ff"
    assert "vision" in live.http.post("/api/show", json={"model": model}).json()["capabilities"]


@pytest.mark.parametrize("model", SEEING)
def test_a_response_sees_pictures_and_a_later_turn_sees_them_again(
    sdk: openai.OpenAI, model: str
) -> None:
    first = sdk.responses.create(model=model, input=ask_of("lime"))
    assert first.output_text == "1 pictures: #00ff00"
    texts_only = sdk.responses.create(
        model=model, input="And what is it now?", previous_response_id=first.id
    )
    assert texts_only.output_text == "1 pictures: #00ff00"
    events = sdk.responses.create(
        model=model, input=ask_of("red"), previous_response_id=texts_only.id, stream=True
    )
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(texts) == "2 pictures: #00ff00 #ff0000"
    kept = sdk.responses.input_items.list(first.id).data[0]
    assert kept.content[1].image_url == ask_of("lime")[0]["content"][1]["image_url"]


def ask_of(colour: str) -> Any:
    """A turn with a picture, as Responses take it."""
    url = picture_url(chat_picture(colour))
    content = [{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": url}]
    return [{"role": "user", "content": content}]
