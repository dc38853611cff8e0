"""What sources of packages have in common: an archive in the cache, and files taken out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.errors import InvalidInput
from wherry.models.sources.archive import extract, list_members
from wherry.models.sources.cache import trim_cache
from wherry.models.sources.download import Checksum, download
from wherry.models.sources.source import Progress, Reference, file_name, target_path

if TYPE_CHECKING:
    import httpx

MODEL_SUFFIXES = (".onnx", ".gguf", ".skops", ".safetensors", ".tflite", "tokenizer.json")
MAX_SHOWN = 12


def wanted_paths(reference: Reference, wanted_files: Sequence[str]) -> list[tuple[str, ...]]:
    """Which files of the archive are meant, each with the paths in the archives within it."""
    if reference.inner and wanted_files:
        raise InvalidInput("a source that names a file cannot be asked for others")
    return [reference.inner] if reference.inner else [(path,) for path in wanted_files]


def get_archive(
    cache: Path,
    name: str,
    url: str,
    checksum: Checksum,
    *,
    client: Callable[[], httpx.Client],
    progress: Progress,
) -> Path:
    """The archive of a URL, whole and verified; downloaded unless an earlier call has done it."""
    folder = cache / checksum.value
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = folder / name
    trim_cache(cache, keep=folder)
    download(url, target, checksum, client=client, progress=progress)
    folder.touch()
    return target


def place_files(
    archive: Path,
    paths: Sequence[tuple[str, ...]],
    reference: Reference,
    target_folder: Path,
    progress: Progress,
    within: Callable[[str], str] = str,
) -> list[Path]:
    """Take files out of an archive; a single named one keeps only its name.

    `within` gives the name in the archive of a path in the package, where the two differ.
    """
    names = [file_name(path[-1]) if reference.inner else path[-1] for path in paths]
    targets = [target_path(target_folder, name) for name in names]
    for number, ((first, *rest), target) in enumerate(zip(paths, targets, strict=True)):
        progress(f"taking {target.name} out of {archive.name}", number, len(targets))
        extract(archive, (within(first), *rest), target)
    return targets


def ask_for_file(
    reference: Reference, archive: Path, sizes: Mapping[str, int] | None = None
) -> InvalidInput:
    """The error for a reference that names no file, with the likely ones.

    `sizes` are bytes by path in the package, where the archive's own names are others.
    """
    if sizes is None:
        sizes = {member.name: member.size for member in list_members(archive)}
    likely = [name for name in sizes if name.endswith(MODEL_SUFFIXES)]
    largest = sorted(sizes, key=lambda name: -sizes[name])
    return InvalidInput(
        f"{reference.text!r} names no file in {archive.name!r}",
        hint=f"write {reference.text}!/FILE, with one of: "
        f"{', '.join((likely or largest)[:MAX_SHOWN])}",
    )
