"""What every command shares: its registration with examples, and the options all have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import App, Group, Parameter

from wherry import __version__
from wherry.cli.help import HelpText

if TYPE_CHECKING:
    from wherry.client import Client

F = TypeVar("F", bound=Callable[..., Any])

SERVER = Group("Server", sort_key=1)
MODELS = Group("Models", sort_key=2)
DEPLOYMENTS = Group("Deployments", sort_key=3)
TALK = Group("Talk to models", sort_key=4)
ACCESS = Group("Access", sort_key=5)
COMMON = Group("Common options", sort_key=9)

app = App(
    name="wherry",
    help="Models as a service: pull or import a model, deploy it, call it.",
    help_format="plaintext",
    help_formatter=HelpText(),
    help_epilogue='Start here:\n\n  $ wherry run smollm2 "hi"\n\n  $ wherry serve --demo',
    version=__version__,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative=()),
)

examples_by_command: dict[str, Sequence[str]] = {}
"""`keys create` → its examples; a test runs through them."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command that talks to a server."""

    output: Annotated[
        Literal["table", "json"],
        Parameter(name=("--output", "-o"), group=COMMON, help="How to print the answer."),
    ] = "table"
    url: Annotated[
        str | None,
        Parameter(group=COMMON, help="The server; default: WHERRY_URL, else one of this machine."),
    ] = None
    api_key: Annotated[
        str | None,
        Parameter(group=COMMON, help="Default: WHERRY_API_KEY, else what a local server left."),
    ] = None
    debug: Annotated[bool, Parameter(group=COMMON, help="Show the traceback of an error.")] = False

    def connect(self) -> Client:
        """A client of the server that the options name."""
        from wherry.client import Client

        return Client(self.url, self.api_key)


DEFAULT = Common()
DryRun = Annotated[bool, Parameter(help="Only say what would happen.")]


def command(
    name: str, *, group: Group, examples: Sequence[str], parent: App = app
) -> Callable[[F], F]:
    """Register a function as a command; its help ends with the examples."""
    whole = name if parent is app else f"{parent.name[0]} {name}"
    examples_by_command[whole] = examples

    def register(function: F) -> F:
        epilogue = "Examples:\n\n" + "\n\n".join(f"  $ {example}" for example in examples)
        parent.command(function, name=name, group=group, help_epilogue=epilogue)
        return function

    return register
