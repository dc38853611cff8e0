"""What recipes share that convert a published model: nothing is learnt, a file is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from wherry.learning.recipes.recipe import Parameters, Progress, write_manifest
from wherry.models.bundle import Manifest


class ConvertedRecipe(ABC):
    """One conversion, in one step."""

    parameters = Parameters

    def run(
        self,
        parameters: Parameters,
        sources: Mapping[str, Path],
        target: Path,
        progress: Progress,
    ) -> Manifest:
        """Convert, write the bundle."""
        progress("converting", 0, 1)
        self.convert(sources, target)
        manifest = write_manifest(target, self.describe())
        progress("done", 1, 1)
        return manifest

    @abstractmethod
    def convert(self, sources: Mapping[str, Path], target: Path) -> None:
        """Write the model's files into the bundle's folder."""

    @abstractmethod
    def describe(self) -> Manifest:
        """The manifest of the converted model."""
