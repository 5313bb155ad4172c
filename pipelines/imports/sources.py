"""Files that somebody has downloaded: folders, archives and compressed files, read as streams and never unpacked.

A name within an archive says what a member is, never where anything is written.
"""

import contextlib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from pipelines import storage
from pipelines.errors import InputError

_CODECS = {".gz": "gzip", ".tgz": "gzip", ".bz2": "bz2", ".tbz2": "bz2", ".zst": "zstd", ".zstd": "zstd"}
_XZ = (".xz", ".txz")
_TAR = (".tar", ".tgz", ".txz", ".tbz2")
DAMAGED = (OSError, EOFError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error, pa.ArrowException)
"""Errors of a file that is cut off or damaged."""


@dataclass(frozen=True)
class Download:
    """A file as it was downloaded. `key` changes when it is replaced."""

    path: str

    @property
    def key(self) -> str:
        """Name and size. Two dumps have two names; a copy of one is the same."""
        return f"{Path(self.path).name}:{Path(self.path).stat().st_size}"

    @property
    def size(self) -> int:
        """Bytes."""
        return Path(self.path).stat().st_size


@dataclass(frozen=True)
class Member:
    """A file in a folder or an archive: its name there, and a stream of it as long as the next is not asked for."""

    name: str
    stream: Any  # binary; `seekable()` where the archive is not compressed


def downloads(paths: list[str], wanted: Callable[[str], bool], *, expected: str) -> list[Download]:
    """The files of paths, and of folders those whose names are wanted, by name. InputError if there is none."""
    found: dict[str, None] = {}
    for given in paths:
        path = Path(storage.absolute(given))
        if storage.is_s3(given) or not path.exists():
            raise InputError(f"{given} is not there: give {expected}, on this machine")
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and wanted(file.name))
        if not files:
            raise InputError(f"{given} holds no file of the data set: give {expected}")
        found.update(dict.fromkeys(map(str, files)))
    return [Download(file) for file in found]


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Within it, errors of a damaged file become an InputError that names it."""
    try:
        yield
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is cut off or damaged ({reason}): download it again") from None


def is_archive(path: str) -> bool:
    """Whether a file has members: by its name."""
    name = path.lower()
    return name.endswith((".zip", *_TAR)) or ".tar." in name


def members(download: Download) -> Iterator[Member]:
    """The regular files of an archive, in its order; of any other file the file itself, decompressed.

    Raises InputError, in one line, if the file is cut off or damaged.
    """
    path = download.path
    with reading(path), contextlib.ExitStack() as stack:
        if path.lower().endswith(".zip"):
            archive = stack.enter_context(zipfile.ZipFile(path))
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as stream:
                        yield Member(info.filename, stream)
        elif is_archive(path):
            plain = path.lower().endswith(".tar")
            source = stack.enter_context(decompressed(path))
            archive = stack.enter_context(tarfile.open(fileobj=source, mode="r:" if plain else "r|"))
            for info in archive:
                if info.isreg() and (stream := archive.extractfile(info)):
                    yield Member(info.name, stream)
        else:
            yield Member(Path(path).name, stack.enter_context(decompressed(path)))


def decompressed(path: str) -> IO[bytes]:
    """A file as a stream of bytes, decompressed as its ending says."""
    ending = Path(path).suffix.lower()
    if ending in _XZ:
        return lzma.open(path)
    if ending in _CODECS:
        return pa.CompressedInputStream(pa.OSFile(path), _CODECS[ending])  # type: ignore[return-value]
    return open(path, "rb")
