"""Hugging Face's shapes of tasks that write a text anew."""

from __future__ import annotations

from typing import Any

import pytest
from tests.models.codecs.hf_asking import answer, decode

from wherry.errors import InvalidInput
from wherry.models.tasks.text_to_text import TextToTextOutput


def test_a_translation_is_a_list_of_one():
    parameters = {
        "src_lang": "en",
        "tgt_lang": "fr",
        "clean_up_tokenization_spaces": True,
        "generate_parameters": {"max_new_tokens": 9, "num_beams": 2, "do_sample": False},
    }
    decoded = decode("translation", {"inputs": "Hello", "parameters": parameters})
    (item,) = decoded.items
    assert (item.text, item.source_language, item.target_language) == ("Hello", "en", "fr")
    assert (item.decoding.max_tokens, item.decoding.num_beams) == (9, 2)
    found = answer("translation", decoded, [TextToTextOutput(text="Bonjour")])
    assert found == [{"translation_text": "Bonjour"}]


def test_each_of_many_texts_gets_its_summary():
    parameters = {"min_length": 2, "max_length": 8}
    decoded = decode("summarization", {"inputs": ["a b", "c d"], "parameters": parameters})
    assert [item.decoding.min_tokens for item in decoded.items] == [2, 2]
    outputs = [TextToTextOutput(text="a"), TextToTextOutput(text="c")]
    assert answer("summarization", decoded, outputs) == [
        {"summary_text": "a"},
        {"summary_text": "c"},
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"inputs": ""}, "inputs"),
        ({"inputs": {"text": "a"}}, "inputs"),
        ({"inputs": "a", "src_lang": 3}, "parameters.src_lang"),
        ({"inputs": "a", "src_lang": "?"}, "source_language"),
        ({"inputs": "a", "generate_parameters": []}, "parameters.generate_parameters"),
        ({"inputs": "a", "generate_parameters": {"num_beams": 0}}, "num_beams"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], param: str):
    with pytest.raises(InvalidInput) as refused:
        decode("translation", body)
    assert refused.value.param == param
