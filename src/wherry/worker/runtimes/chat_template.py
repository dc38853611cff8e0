"""How a conversation becomes one text, for models whose files do not say."""

from __future__ import annotations

from wherry.errors import InvalidInput
from wherry.models.bundle import Bundle

MAX_TEMPLATE_BYTES = 256 * 1024
PLAIN = "plain"
PLAIN_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ message.content }}
{% else -%}
{{ 'User' if message.role == 'user' else 'Assistant' }}: {{ message.content }}
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}Assistant:{%- endif -%}
"""
"""A transcript, which any model that was trained on text has seen and can continue."""
PLAIN_STOPS = ("\nUser:",)
"""A transcript does not end with an answer: the model would go on and write the next question."""


def read_template(bundle: Bundle, option: str) -> str:
    """The template that the option `chat_template` means."""
    if option == PLAIN:
        return PLAIN_TEMPLATE
    if "{{" in option or "{%" in option:
        return _checked(option)
    file = bundle.path(option)
    if file.stat().st_size > MAX_TEMPLATE_BYTES:
        raise _too_long()
    return _checked(file.read_text(encoding="utf-8"))


def stops_of(option: str) -> tuple[str, ...]:
    """Texts that end an answer under the template that the option means."""
    return PLAIN_STOPS if option == PLAIN else ()


def no_template() -> InvalidInput:
    """The refusal of a conversation by a model that has no way to write one."""
    return InvalidInput(
        "this model has no chat template: it continues texts, and was not made to converse",
        hint="ask /v1/completions, or import it with the option chat_template (wherry import "
        "-p chat_template=plain): 'plain', a file of the bundle, or a template's text",
        param="messages",
    )


def _checked(template: str) -> str:
    if len(template.encode()) > MAX_TEMPLATE_BYTES:
        raise _too_long()
    return template


def _too_long() -> InvalidInput:
    return InvalidInput(f"the chat template is over {MAX_TEMPLATE_BYTES} bytes")
