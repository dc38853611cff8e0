# pyright: standard
"""Requests to a language model of transformers: its prompt as token ids, checked and bounded."""

from __future__ import annotations

from typing import Any

import jinja2
import msgspec

from wherry.errors import ContextLengthExceeded, FormatNotAllowed, InvalidInput
from wherry.models.tasks.generation import ChatInput, CompletionInput, GenerationInput
from wherry.worker.runtimes.chat_prompt import (
    Neutraliser,
    TemplateAbilities,
    forced_tools,
    render_messages,
    tools_in_text,
)
from wherry.worker.runtimes.chat_template import PLAIN_STOPS, no_template
from wherry.worker.runtimes.tool_calls import AnswerReader, CallFinder, TextReader

CHARACTERS_PER_TOKEN = 64
"""No usual text has longer tokens: what has more characters need not be tokenised to be refused."""
LONGEST_CONTROL_LOOKALIKE = 2


class Prompt(msgspec.Struct):
    """What the model reads, and how its answer is read."""

    tokens: list[int]
    max_tokens: int
    reader: AnswerReader
    charge: bool = True
    count_only: bool = False
    echo: str = ""
    stops: tuple[str, ...] = ()
    """Texts that end an answer beside the client's: those of the template."""


class PromptMaker:
    """Makes prompts with a tokenizer and its chat template; used by one thread.

    With `is_transcript` the template is `PLAIN_TEMPLATE`.

    transformers renders templates in Jinja's sandbox, in which they can change nothing.
    """

    def __init__(
        self,
        tokenizer: Any,
        context_tokens: int,
        vocabulary_size: int,
        template: str,
        *,
        is_transcript: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._context = context_tokens
        self._vocabulary_size = vocabulary_size
        self._template = template or tokenizer.chat_template
        if isinstance(self._template, dict):  # several, by their names
            self._template = self._template.get("default")
        self._is_transcript = is_transcript
        self._neutralise = Neutraliser(_control_tokens(tokenizer))
        self._abilities = TemplateAbilities(system_role=self._takes_system())

    def make(self, item: GenerationInput) -> Prompt:
        """The prompt of an item.

        Raises:
            ContextLengthExceeded: it does not fit.
            InvalidInput: the model cannot do what is asked.
        """
        self._check_tokens(item)
        if isinstance(item, ChatInput):
            prompt = self._make_chat(item)
        else:
            prompt = self._make_completion(item)
        room = self._context - len(prompt.tokens)
        if room < 1 and not prompt.count_only:
            raise _exceeded(len(prompt.tokens), self._context)
        prompt.max_tokens = min(item.sampling.max_tokens or room, room)
        prompt.charge = item.charge_prompt
        return prompt

    def _make_completion(self, item: CompletionInput) -> Prompt:
        if isinstance(item.prompt, str):
            self._refuse_overlong(len(item.prompt))
            tokens = self._tokenizer(item.prompt, verbose=False)["input_ids"]
            if not tokens:
                raise InvalidInput("the prompt is empty", param="prompt")
        else:
            tokens = list(item.prompt)
        echo = ""
        if item.echo:
            echo = item.prompt if isinstance(item.prompt, str) else self._tokenizer.decode(tokens)
        return Prompt(list(tokens), 0, TextReader(), echo=echo)

    def _make_chat(self, item: ChatInput) -> Prompt:
        if self._template is None:
            raise no_template()
        _refuse_schemas(item)
        reader: AnswerReader = TextReader()
        if tools := tools_in_text(item, self._abilities):
            names = {tool.name for tool in tools}
            reader = CallFinder(names, parallel=item.parallel_tool_calls)
        messages = render_messages(item, self._abilities, self._neutralise)
        self._refuse_overlong(sum(len(each["content"]) for each in messages))
        text = self._render(messages, continues=item.continue_last)
        # a template writes the beginning itself; a transcript is a text like others
        begins = self._is_transcript
        tokens = self._tokenizer(text, add_special_tokens=begins, verbose=False)["input_ids"]
        stops = PLAIN_STOPS if self._is_transcript else ()
        return Prompt(list(tokens), 0, reader, count_only=item.count_only, stops=stops)

    def _render(self, messages: list[dict[str, Any]], *, continues: bool) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=not continues,
                continue_final_message=continues,
            )
        except jinja2.TemplateSyntaxError as error:
            raise FormatNotAllowed(f"the chat template is damaged: {error.message}") from error
        except (jinja2.TemplateError, ValueError, TypeError, KeyError) as error:
            # templates refuse roles that they do not know, or that do not alternate
            raise InvalidInput(
                f"the model's chat template refuses the conversation: {str(error)[:200]}",
                param="messages",
            ) from error

    def _takes_system(self) -> bool:
        if self._template is None:
            return False
        user = {"role": "user", "content": "a"}
        self._render([user], continues=False)  # a template that is broken is told at load
        try:
            rendered = self._render(
                [{"role": "system", "content": "WHERRY"}, user], continues=False
            )
        except InvalidInput:
            return False
        return "WHERRY" in rendered

    def _check_tokens(self, item: GenerationInput) -> None:
        given = list(item.sampling.logit_bias)
        if isinstance(item, CompletionInput) and not isinstance(item.prompt, str):
            if len(item.prompt) >= self._context:
                raise _exceeded(len(item.prompt), self._context)
            given += item.prompt
        wrong = next((token for token in given if token >= self._vocabulary_size), None)
        if wrong is not None:
            raise InvalidInput(
                f"token id {wrong} is not in the model's vocabulary",
                hint=f"ids go from 0 to {self._vocabulary_size - 1}",
                param="prompt",
            )

    def _refuse_overlong(self, characters: int) -> None:
        least = characters // CHARACTERS_PER_TOKEN
        if least > self._context:
            raise _exceeded(least, self._context)


def _refuse_schemas(item: ChatInput) -> None:
    if item.json_format is not None or forced_tools(item):
        what = "response_format" if item.json_format is not None else "tool_choice"
        raise InvalidInput(
            f"this model cannot be held to a schema, so it does not take {what!r} here",
            hint="the runtime 'llama_cpp' can; or describe the form in words",
            param=what,
        )


def _control_tokens(tokenizer: Any) -> list[str]:
    """Texts that the tokenizer reads as control tokens, which clients must not forge."""
    special = set(tokenizer.all_special_tokens)
    special |= {added.content for added in tokenizer.added_tokens_decoder.values() if added.special}
    return sorted(each for each in special if len(each.strip()) > LONGEST_CONTROL_LOOKALIKE)


def _exceeded(tokens: int, limit: int) -> ContextLengthExceeded:
    return ContextLengthExceeded(
        f"This model's maximum context length is {limit} tokens. However, your prompt has "
        f"{tokens} tokens. Please reduce its length.",
        param="messages",
    )
