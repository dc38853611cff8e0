"""Recipes by import string: they live above this package and bring heavy frameworks.

`python -m wherry.jobs.recipes` checks parameters in a process of its own, so that a gateway can
refuse wrong ones at once without loading a framework for good.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import msgspec

from wherry.errors import InvalidInput, MissingExtra, WherryError, from_code
from wherry.jobs.work import Failed
from wherry.settings import current_environment

CHECK_SECONDS = 60
extra_of_package = {"onnx": "convert", "torch": "transformers", "transformers": "transformers"}
"""Packages of recipes that the extra `demo` does not have → the extra that has them."""


class Check(msgspec.Struct):
    """What the checking process reads."""

    recipe: str
    parameters: dict[str, Any]


def load_recipe(path: str) -> Any:
    """The recipe that `module:ATTRIBUTE` names; `MissingExtra` if its framework is not there."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the recipe needs the package {error.name!r}",
            hint=f"pip install 'wherry[{extra_of_package.get(error.name or '', 'demo')}]'",
        ) from error


def read_parameters(recipe: Any, values: Mapping[str, Any]) -> Any:
    """Parameters of a request, checked; `InvalidInput` names the wrong one."""
    try:
        return msgspec.convert(dict(values), recipe.parameters)
    except msgspec.ValidationError as error:
        known = ", ".join(field.name for field in msgspec.structs.fields(recipe.parameters))
        raise InvalidInput(
            f"parameters of recipe {recipe.name!r}: {error}", hint=f"known: {known or 'none'}"
        ) from error


def check_parameters(path: str, values: Mapping[str, Any]) -> None:
    """Check a request's parameters in another process; blocking, a second or two.

    Raises:
        InvalidInput: one is wrong.
        MissingExtra: the recipe's framework is not installed.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "wherry.jobs.recipes"],
            input=msgspec.json.encode(Check(path, dict(values))),
            capture_output=True,
            timeout=CHECK_SECONDS,
            env=current_environment(without_settings=True),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return  # a machine this busy will tell when the job runs
    if done.returncode == 2:
        failure = msgspec.json.decode(done.stdout, type=Failed)
        raise from_code(failure.code, failure.message, failure.hint)


def main() -> None:
    """The checking process."""
    check = msgspec.json.decode(sys.stdin.buffer.read(), type=Check)
    try:
        read_parameters(load_recipe(check.recipe), check.parameters)
    except WherryError as error:
        failure = Failed(error.code, error.message, error.hint)
        sys.stdout.buffer.write(msgspec.json.encode(failure))
        sys.exit(2)


if __name__ == "__main__":
    main()
