# pyright: basic
"""Files of ModelScope repositories: `ms:owner/name[@revision][!/file]`.

The library continues interrupted downloads and reads the operator's token itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wherry.errors import MissingExtra, Unavailable, WherryError
from wherry.models.sources.hub import choose_files, fetch_all, parse_repository
from wherry.models.sources.source import Progress, Reference


class ModelScopeSource:
    """Whole files of one revision."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache / "ms"

    def fetch(
        self,
        reference: Reference,
        wanted_files: Sequence[str],
        target_folder: Path,
        progress: Progress,
    ) -> list[Path]:
        """See `Source.fetch`."""
        try:
            from modelscope.hub.api import HubApi  # pyright: ignore[reportMissingImports]
            from modelscope.hub.file_download import (  # pyright: ignore[reportMissingImports]
                model_file_download,
            )
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"sources 'ms:' need the package {error.name!r}", hint="pip install 'wherry[ms]'"
            ) from error
        repository = parse_repository(reference.place)
        progress(f"looking for {repository.name}", 0, 0)
        try:
            listed = HubApi().get_model_files(
                repository.name, revision=repository.revision, recursive=True
            )
            present = [each["Path"] for each in listed if each.get("Type") != "tree"]
            return fetch_all(
                choose_files(reference, wanted_files, present),
                lambda path: model_file_download(
                    repository.name,
                    path,
                    revision=repository.revision,
                    cache_dir=str(self._cache),
                ),
                target_folder,
                progress,
            )
        except WherryError:
            raise
        except Exception as error:  # an edge: the library raises bare Exceptions
            raise Unavailable(
                f"ModelScope did not give {reference.place!r}: {str(error)[:300]}",
                hint="check the name and the network, then try again",
            ) from error
