# pyright: standard
"""Files of Hugging Face repositories: `hf:owner/name[@revision][!/file]`.

The library continues interrupted downloads and reads the operator's token (`HF_TOKEN`) itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wherry.errors import MissingExtra, NotFound, Unavailable, WherryError
from wherry.models.sources.hub import choose_files, fetch_all, parse_repository
from wherry.models.sources.source import Progress, Reference


class HuggingFaceSource:
    """Whole files of one commit, so that a push in between never mixes two states."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache / "hf"

    def fetch(
        self,
        reference: Reference,
        wanted_files: Sequence[str],
        target_folder: Path,
        progress: Progress,
    ) -> list[Path]:
        """See `Source.fetch`."""
        try:
            import huggingface_hub as hub
            from huggingface_hub import errors
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"sources 'hf:' need the package {error.name!r}", hint="pip install 'wherry[hf]'"
            ) from error
        repository = parse_repository(reference.place)
        progress(f"looking for {repository.name}", 0, 0)
        try:
            info = hub.HfApi().model_info(repository.name, revision=repository.revision)
            present = [each.rfilename for each in info.siblings or []]
            return fetch_all(
                choose_files(reference, wanted_files, present),
                lambda path: hub.hf_hub_download(
                    repository.name, path, revision=info.sha, cache_dir=self._cache
                ),
                target_folder,
                progress,
            )
        except WherryError:
            raise
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise NotFound(
                f"no repository or revision {reference.place!r} that this server may read",
                hint="private ones need the operator's HF_TOKEN in the server's environment",
            ) from error
        except Exception as error:  # an edge: which HTTP library fails beneath is its own affair
            raise Unavailable(
                f"Hugging Face did not give {reference.place!r}: {str(error)[:300]}",
                hint="check the network and try again: it continues where it stopped",
            ) from error
