"""Names of recipes → where they are; listing them loads none."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from wherry.errors import InvalidInput
from wherry.learning.recipes.recipe import Recipe

BUILT_IN: dict[str, str] = {
    "iris": "wherry.learning.recipes.iris:IRIS",
    "penguins": "wherry.learning.recipes.penguins:PENGUINS",
    "cars": "wherry.learning.recipes.cars:CARS",
    "airline": "wherry.learning.recipes.airline:AIRLINE",
    "forecaster": "wherry.learning.recipes.forecaster:FORECASTER",
    "topics": "wherry.learning.recipes.topics:TOPICS",
    "movies": "wherry.learning.recipes.movies:MOVIES",
    "prompt-guard": "wherry.learning.recipes.prompt_guard:PROMPT_GUARD",
    "sentiment": "wherry.learning.recipes.sentiment:SENTIMENT",
    "smollm2-safetensors": "wherry.learning.recipes.smollm2_safetensors:SMOLLM2_SAFETENSORS",
    "digits": "wherry.learning.recipes.digits:DIGITS",
    "digit-pictures": "wherry.learning.recipes.digit_pictures:DIGIT_PICTURES",
    "efficientnet-lite0": "wherry.learning.recipes.efficientnet_lite:EFFICIENTNET_LITE0",
    "nanodet": "wherry.learning.recipes.nanodet:NANODET",
    "selfie": "wherry.learning.recipes.selfie:SELFIE",
}


def recipe_names() -> list[str]:
    """Every known recipe, built in or from a plugin (entry point group `wherry.recipes`)."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group="wherry.recipes"))})


def find_recipe(name: str) -> Recipe:
    """The recipe by its name; `InvalidInput` lists the known ones."""
    if name in BUILT_IN:
        module, attribute = BUILT_IN[name].split(":")
        return getattr(import_module(module), attribute)
    for point in entry_points(group="wherry.recipes", name=name):
        return point.load()
    raise InvalidInput(f"unknown recipe {name!r}", hint="known: " + ", ".join(recipe_names()))
