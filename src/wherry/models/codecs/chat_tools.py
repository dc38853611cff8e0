"""What the chat codecs check alike of tools, whatever their protocol calls them."""

from __future__ import annotations

from collections.abc import Sequence

from wherry.errors import InvalidInput
from wherry.models.tasks.generation import Tool, ToolChoice, check_json_size


def check_tools(tools: Sequence[Tool], schema_field: str) -> None:
    """Refuse two tools of one name, and schemas that are too large.

    Args:
        tools: in the order of the request's `tools`.
        schema_field: where the protocol keeps a tool's schema, for naming it.
    """
    names: set[str] = set()
    for index, tool in enumerate(tools):
        if tool.name in names:
            raise InvalidInput(f"two tools are named {tool.name!r}", param=f"tools[{index}]")
        names.add(tool.name)
        check_json_size(tool.parameters, f"tools[{index}].{schema_field}")


def check_tool_choice(choice: ToolChoice, tools: Sequence[Tool]) -> None:
    """Refuse to force a call where there is nothing to call."""
    if choice.mode == "required" and not tools:
        raise InvalidInput("a call is required, and there are no tools", param="tool_choice")
    if choice.mode == "named" and choice.name not in {tool.name for tool in tools}:
        raise InvalidInput(
            f"tool_choice names {choice.name!r}, which is not among the tools",
            param="tool_choice",
        )
