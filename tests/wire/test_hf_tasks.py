"""Hugging Face's task API by its own client, on real models: a URL for each deployment."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, OverloadedError, ValidationError
from PIL import Image, ImageDraw, ImageFont
from tests.conftest import LiveServer, run_server
from tests.pictures import file_of, open_photo
from tests.real_models import photo, run_recipe
from tests.wire.test_fast_lane import lane_count, read_answer

from wherry import Client

BY_CATALOGUE = {"names": ("ner-en", "spacy", "spacy"), "reader": ("ocr", "cv2", "ocr")}
"""Deployment → name in the catalogue, the module that it needs, and the extra that brings it."""
BY_RECIPE = {
    "classes": "efficientnet-lite0",
    "things": "nanodet",
    "people": "selfie",
    "drawer": "digit-pictures",
}
OLD = "unknown/None; hf_hub/0.29.3; python/3.12.3; torch/2.13.0"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with a model for each kind of picture."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="pip install 'wherry[onnx,convert]'")
    folder = tmp_path_factory.mktemp("pictures")
    with run_server(folder) as server:
        with Client(server.url, server.key) as client:
            for name, recipe in BY_RECIPE.items():
                client.models.import_model(run_recipe(recipe, folder / name).folder, name=name)
                client.deployments.deploy(name)
        yield server


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that listens and speaks."""
    pytest.importorskip("faster_whisper", reason="pip install 'wherry[whisper]'")
    pytest.importorskip("hibari", reason="pip install 'wherry[tts]'")
    with run_server(tmp_path_factory.mktemp("speech")) as server:
        with Client(server.url, server.key) as client:
            for name in ("whisper-tiny-en", "hibari"):
                client.models.pull(name)
                client.deployments.deploy(name)
        yield server


def model(server: LiveServer, name: str, *, below: str = "/hf/{}", **options: Any) -> Any:
    """The client of one deployment, as users make it."""
    url = server.url + below.format(name)
    return InferenceClient(model=url, token=server.key, timeout=60, **options)


def post(server: LiveServer, path: str, body: Any, **headers: str) -> httpx.Response:
    return server.http.post(path, json=body, headers=headers)


@pytest.fixture(scope="module")
def named(live: LiveServer, request: pytest.FixtureRequest) -> str:
    """A deployment of the catalogue, or a skip that says what it needs."""
    name, module, extra = BY_CATALOGUE[request.param]
    pytest.importorskip(module, reason=f"pip install 'wherry[{extra}]'")
    with Client(live.url, live.key) as client:
        client.models.pull(name, name=request.param, wait=True)
        client.deployments.deploy(request.param)
    return request.param


# ------------------------------------------------------------------------------ texts


def test_a_text_is_classified(live: LiveServer) -> None:
    found = model(live, "topics").text_classification("A wonderful film, and well played.")
    assert len(found) > 1
    assert sum(each.score for each in found) == pytest.approx(1, abs=1e-5)
    assert found == sorted(found, key=lambda each: -each.score)
    (best,) = model(live, "topics").text_classification("A wonderful film.", top_k=1)
    assert best.label in {each.label for each in found}


def test_texts_become_vectors(live: LiveServer) -> None:
    client = model(live, "embeddings")
    one = client.feature_extraction("The cat sat on the mat.")
    many = client.feature_extraction(["The cat sat on the mat.", "Rates rose."], normalize=True)
    assert (one.shape, many.shape, many.dtype) == ((1, 384), (2, 384), np.float32)
    assert many[0] == pytest.approx(one[0] / np.linalg.norm(one[0]), abs=1e-5)
    assert np.linalg.norm(many, axis=1) == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize(
    "below",
    [
        "/hf/{}",
        "/hf/default/{}",
        "/models/{}",
        "/models/{}/pipeline/sentence-similarity",
        "/pipeline/sentence-similarity/{}",
    ],
)
def test_an_embedder_compares_sentences_wherever_it_is_asked(live: LiveServer, below: str) -> None:
    near, far = model(live, "embeddings", below=below).sentence_similarity(
        "Machine learning is easy.",
        other_sentences=["Deep learning is straightforward.", "I ate a sandwich."],
    )
    assert near > 0.5 > far


def test_an_embedder_chooses_labels(live: LiveServer) -> None:
    client = model(live, "embeddings")
    found = client.zero_shot_classification("The rocket reached orbit.", ["space", "cooking"])
    assert [each.label for each in found] == ["space", "cooking"]
    assert sum(each.score for each in found) == pytest.approx(1, abs=1e-5)


def test_old_clients_get_the_shape_that_they_read(live: LiveServer) -> None:
    body = {"inputs": "The rocket reached orbit.", "parameters": {"candidate_labels": ["a", "b"]}}
    old = post(live, "/hf/embeddings", body, **{"user-agent": OLD}).json()
    assert set(old) == {"sequence", "labels", "scores"}
    new = post(live, "/hf/embeddings", body).json()
    assert [(each["label"], each["score"]) for each in new] == list(
        zip(old["labels"], old["scores"], strict=True)
    )


def test_an_embedder_ranks_texts(live: LiveServer) -> None:
    inputs = {"query": "How do I bake bread?", "texts": ["Shares fell.", "Mix flour and yeast."]}
    found = post(live, "/pipeline/text-ranking/embeddings", {"inputs": inputs}).json()
    assert [each["index"] for each in found] == [1, 0]


@pytest.mark.parametrize("named", ["names"], indirect=True)
def test_names_are_found_with_their_places(live: LiveServer, named: str) -> None:
    text = "My name is Sarah and I live in London."
    found = model(live, named).token_classification(text, aggregation_strategy="simple")
    assert {"Sarah", "London"} <= {each.word for each in found}
    assert all(text[each.start : each.end] == each.word for each in found)


# ------------------------------------------------------------------------------ generation


def test_a_prompt_is_continued_and_equal_every_time(live: LiveServer) -> None:
    client = model(live, "chat")
    first, again = (client.text_generation("Once upon a time", max_new_tokens=8) for _ in range(2))
    assert first == again != ""
    whole = client.text_generation("Once upon a time", max_new_tokens=8, return_full_text=True)
    assert whole == "Once upon a time" + first


def test_details_tell_every_token(live: LiveServer) -> None:
    found = model(live, "chat").text_generation(
        "Once upon a time", max_new_tokens=6, details=True, seed=3, top_n_tokens=2
    )
    assert found.details.generated_tokens == len(found.details.tokens) == 6
    assert "".join(each.text for each in found.details.tokens) == found.generated_text
    assert all(each.id >= 0 and each.logprob <= 0 for each in found.details.tokens)
    assert (found.details.finish_reason, found.details.seed) == ("length", 3)
    for chosen, rivals in zip(found.details.tokens, found.details.top_tokens, strict=True):
        assert rivals[0]["logprob"] > rivals[1]["logprob"]
        assert rivals[0]["id"] == chosen.id  # nothing is left to chance


def test_a_stream_brings_what_the_whole_answer_has(live: LiveServer) -> None:
    client = model(live, "chat")
    prompt = "Emoji: 😀😀😀 é 你好"
    whole = client.text_generation(prompt, max_new_tokens=12, details=True)
    events = list(client.text_generation(prompt, max_new_tokens=12, details=True, stream=True))
    assert [each.token.id for each in events] == [each.id for each in whole.details.tokens]
    assert "".join(each.token.text for each in events) == whole.generated_text
    assert events[-1].generated_text == whole.generated_text
    assert events[-1].details.generated_tokens == 12
    assert all(each.details is None and each.generated_text is None for each in events[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_the_answer(live: LiveServer, stream: bool) -> None:
    given: dict[str, Any] = {"max_new_tokens": 40, "stop": ["seven"], "details": True}
    client = model(live, "chat")
    found = client.text_generation("One, two, three, four,", stream=stream, **given)
    last = list(found)[-1] if stream else found
    assert last.generated_text.strip().startswith("five")
    assert "seven" not in last.generated_text
    assert last.details.finish_reason == "stop_sequence"


def test_a_wrong_parameter_is_the_exception_that_clients_know(live: LiveServer) -> None:
    client = model(live, "chat")
    with pytest.raises(ValidationError, match="max_new_tokens"):
        client.text_generation("x", max_new_tokens=-3)
    with pytest.raises(ValidationError, match="max_new_tokens"):
        list(client.text_generation("x", max_new_tokens=-3, stream=True))
    with pytest.raises(ValidationError, match="context"):
        client.text_generation("word " * 20_000, max_new_tokens=4)


@pytest.mark.parametrize("below", ["/hf/{}", "/hf/{}/v1", "/models/{}", "/hf/{}/chat/completions"])
def test_a_conversation_needs_no_name_of_a_model(live: LiveServer, below: str) -> None:
    client = model(live, "chat", below=below)
    asked = [{"role": "user", "content": "Say hello."}]
    whole = client.chat_completion(asked, max_tokens=8, temperature=0)
    assert whole.model == "chat"
    chunks = list(client.chat_completion(asked, max_tokens=8, temperature=0, stream=True))
    text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
    assert text == whole.choices[0].message.content != ""


@pytest.mark.parametrize("below", ["hf", "models"])
def test_a_text_is_completed_as_the_javascript_client_asks_for_it(
    live: LiveServer, below: str
) -> None:
    path = f"/{below}/chat/v1/completions"
    body = {"model": live.url, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    whole = post(live, path, body).json()
    assert whole["choices"][0]["text"]
    lines = post(live, path, {**body, "stream": True}).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    pieces = [choice["text"] for event in events for choice in event["choices"]]
    assert "".join(pieces) == whole["choices"][0]["text"]


def test_a_schema_binds_a_conversation(live: LiveServer) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    answer = model(live, "chat").chat_completion(
        [{"role": "user", "content": "Bob is 7"}],
        max_tokens=80,
        response_format=wanted,  # sent as {"type": "json_object", "value": schema}
    )
    assert set(json.loads(answer.choices[0].message.content)) == {"name", "age"}


# ------------------------------------------------------------------------------ tables, others


def test_the_rows_of_a_table_are_classified(live: LiveServer) -> None:
    table = {
        "sepal length": ["5.1", "6.0"],
        "sepal width": ["3.5", "2.2"],
        "petal length": ["1.4", "4.0"],
        "petal width": ["0.2", "1.0"],
    }
    found = model(live, "iris").tabular_classification(table)
    assert found == ["setosa", "versicolor"]
    plain = post(live, "/hf/iris", {"inputs": {"row": [5.1, 3.5, 1.4, 0.2]}})
    assert plain.json() == ["setosa"]


def test_other_tasks_take_their_plain_form(live: LiveServer) -> None:
    found = post(live, "/hf/echo", {"inputs": {"X": [1.5, 2.5]}})
    assert found.json() == {"X": [1.5, 2.5]}


# ------------------------------------------------------------------------------ pictures


def test_a_digit_is_classified_with_and_without_parameters(live: LiveServer) -> None:
    client = model(live, "digits")
    picture = Image.new("L", (28, 28), 0)
    ImageDraw.Draw(picture).line((14, 4, 14, 24), fill=255, width=3)
    best = client.image_classification(file_of(picture))[0]
    assert best.label == "1"
    assert client.image_classification(file_of(picture), top_k=1) == [best]


def test_a_photo_is_classified_into_five_labels(pictures: LiveServer) -> None:
    found = model(pictures, "classes").image_classification(photo("coffee"))
    assert len(found) == 5
    assert found[0].label == "espresso"


def test_objects_have_boxes_in_pixels_of_the_photo(pictures: LiveServer) -> None:
    path, size = photo("chelsea"), open_photo(photo("chelsea")).size
    found = model(pictures, "things").object_detection(path, threshold=0.4)
    cat = next(each for each in found if each.label == "cat")
    assert 0 <= cat.box.xmin < cat.box.xmax <= size[0]
    assert 0 <= cat.box.ymin < cat.box.ymax <= size[1]
    assert model(pictures, "things").object_detection(path, threshold=1.0) == []


def test_masks_have_the_size_of_the_photo(pictures: LiveServer) -> None:
    path = photo("astronaut")
    found = model(pictures, "people").image_segmentation(path)
    assert {each.mask.size for each in found} == {open_photo(path).size}
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_a_picture_is_made_of_the_size_that_was_asked_for(pictures: LiveServer) -> None:
    client = model(pictures, "drawer")
    one, again = (client.text_to_image("seven", width=64, height=48, seed=3) for _ in range(2))
    assert one.size == (64, 48)
    assert np.array_equal(np.asarray(one), np.asarray(again))


@pytest.mark.parametrize("named", ["reader"], indirect=True)
def test_the_text_of_a_picture_is_read(live: LiveServer, named: str) -> None:
    page = Image.new("RGB", (400, 120), "white")
    font = ImageFont.load_default(48)
    ImageDraw.Draw(page).text((20, 30), "HELLO WORLD", fill="black", font=font)
    found = model(live, named).image_to_text(file_of(page))
    assert found.generated_text.replace(" ", "") == "HELLOWORLD"
    headers = {"Authorization": f"Bearer {live.key}", "User-Agent": "@huggingface/inference/4.13.0"}
    asked = httpx.post(f"{live.url}/hf/{named}", content=file_of(page), headers=headers, timeout=60)
    assert asked.json() == {"generated_text": found.generated_text}


# ------------------------------------------------------------------------------ sound

SENTENCE = "The old boat crossed the river before sunrise."


def test_what_is_spoken_is_understood_word_for_word(speech: LiveServer) -> None:
    file = model(speech, "hibari").text_to_speech(SENTENCE)
    assert file[:4] == b"RIFF"
    client = model(speech, "whisper-tiny-en")
    assert client.automatic_speech_recognition(file).text == SENTENCE
    timed = client.automatic_speech_recognition(file, extra_body={"return_timestamps": True})
    assert timed.text == SENTENCE
    assert "".join(each.text for each in timed.chunks).strip() == SENTENCE
    assert all(0 <= start < end for start, end in (each.timestamp for each in timed.chunks))


def test_what_is_no_sound_is_refused(speech: LiveServer) -> None:
    with pytest.raises(HfHubHTTPError) as refused:
        model(speech, "whisper-tiny-en").automatic_speech_recognition(b"not a sound")
    assert refused.value.response.status_code == 400
    assert refused.value.response.json()["error_type"] == "validation"


# ------------------------------------------------------------------------------ errors, state


def test_errors_are_told_in_the_shape_and_by_the_headers(live: LiveServer) -> None:
    with pytest.raises(HfHubHTTPError) as refused:
        model(live, "nobody").text_classification("x")
    answer = refused.value.response
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "model_not_found")
    assert answer.json()["error"] in str(refused.value)
    with pytest.raises(HfHubHTTPError) as refused:
        InferenceClient(model=f"{live.url}/hf/topics", token="wrong").text_classification("x")
    assert refused.value.response.status_code == 401


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/hf/topics", b"", "JSON"),
        ("/hf/topics", b"[]", "object"),
        ("/hf/topics", b'{"inputs":' * 100_000, "JSON"),
        ("/hf/topics", b'{"inputs": null}', "inputs"),
        ("/hf/topics", b'{"inputs": "x", "parameters": {"top_k": -1}}', "top_k"),
        ("/hf/embeddings", b'{"inputs": {"sentences": ["a"]}}', "source_sentence"),
        ("/hf/chat", b'{"inputs": "x", "stream": "yes"}', "stream"),
        ("/hf/chat", b'{"inputs": "x", "stream": true, "parameters": {"top_p": 3}}', "top_p"),
        ("/hf/chat/v1/chat/completions", b'{"messages": []}', "messages"),
        ("/hf/digits", b"not an image", "picture"),
        ("/hf/digits", b'{"inputs": "?"}', "base64"),
        ("/pipeline/text-classification/embeddings", b'{"inputs": "x"}', "feature-extraction"),
        ("/pipeline/no-such-task/topics", b'{"inputs": "x"}', "no-such-task"),
    ],
)
def test_bad_input_is_refused_in_words(live: LiveServer, path: str, body: bytes, word: str) -> None:
    answer = live.http.post(path, content=body)
    assert answer.status_code == 400, answer.text
    assert word in answer.json()["error"]
    assert answer.json()["error_type"] == "validation"


def test_a_key_without_allowance_is_told_when_to_come_again(live: LiveServer) -> None:
    limits = {"requests_per_minute": 1}
    made = live.http.post("/platform/v1/keys", json={"name": "slow", "limits": limits})
    assert made.status_code < 300, made.text
    client = InferenceClient(model=f"{live.url}/hf/chat", token=made.json()["secret"])
    client.text_generation("x", max_new_tokens=1)
    with pytest.raises(OverloadedError) as refused:
        client.text_generation("x", max_new_tokens=1)
    answer = refused.value.__cause__.response  # type: ignore[union-attr]
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0


def test_state_and_facts_of_a_deployment(live: LiveServer) -> None:
    client = model(live, "topics", provider="hf-inference")
    assert client.health_check() is True
    info = client.get_endpoint_info()
    assert (info["model_id"], info["model_pipeline_tag"]) == ("topics", "text-classification")
    assert live.http.get("/models/nobody/health").status_code == 404


# ------------------------------------------------------------------------------ the fast lane


def test_usual_requests_take_the_lane_and_those_for_streams_leave_it(live: LiveServer) -> None:
    headers = {"authorization": f"Bearer {live.key}"}
    with httpx.Client(base_url=live.url, headers=headers, timeout=60) as client:
        before = lane_count(live)
        for number in range(4):
            body = {"inputs": f"fine {number}"}
            assert client.post("/hf/topics", json=body).status_code == 200
        wait_for_lane(live, before + 4)
        # the same connection, and the same head but for its length
        body = {"inputs": "Once", "stream": True, "parameters": {"max_new_tokens": 3}}
        for _ in range(3):
            answer = client.post("/hf/chat", json=body)
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.content.count(b"data:") == 3
            assert client.post("/hf/chat", json={"inputs": "Once"}).json()[0]["generated_text"]


@pytest.mark.parametrize("pieces", [1, 3], ids=["at once", "in pieces"])
def test_requests_with_one_head_part_by_their_bodies(live: LiveServer, pieces: int) -> None:
    whole = b'{"inputs": "One, two, three, four,", "stop": ["six"], "nobody": true}'
    events = b'{"inputs": "One, two, three, four,", "stop": ["six"], "stream": true}'
    assert len(whole) == len(events)
    address = urlsplit(live.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        for body in (whole, events, whole, whole, events, events, whole):
            data = request_for(live.key, body)
            for at in range(pieces):
                cut = slice(at * len(data) // pieces, (at + 1) * len(data) // pieces)
                connection.sendall(data[cut])
                time.sleep(0.01)
            status, answer = read_answer(connection)
            assert status == 200, answer
            assert answer.startswith(b"data:" if body is events else b'[{"generated_text"'), answer


def request_for(key: str, body: bytes) -> bytes:
    head = (
        f"POST /hf/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def wait_for_lane(live: LiveServer, count: int) -> None:
    """A gateway reports twice a second."""
    deadline = time.monotonic() + 10
    while lane_count(live) < count:
        assert time.monotonic() < deadline, "the requests did not take the lane"
        time.sleep(0.1)
