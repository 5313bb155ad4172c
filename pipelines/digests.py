"""SHA-256 digests of files: what `fuxi verify` compares, and what readers of a folder of files compare.

A folder that is read as a whole (a model, a checkpoint) has a file of digests beside its files, written last. Shards
have theirs in the manifest, JSON files in themselves (`storage.write_json`).
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from pyarrow.fs import FileSelector

from pipelines import storage
from pipelines.errors import InputError

DIGESTS_FILE = "digests.json"
NOTED_FILE = "_digests.json"
"""Hidden, in a folder whose other files are read by their ending or by a log."""
_REPLACED = {"_last_checkpoint"}
"""The one file of a Delta table that is replaced."""
_CHUNK = 1 << 20


@dataclass(frozen=True)
class FileDigest:
    """What a file had when it was written."""

    bytes: int
    sha256: str


def digest_of(uri: str) -> FileDigest:
    """Read a file once. Raises FileNotFoundError."""
    fs, path = storage.filesystem(uri)
    sha256, size = hashlib.sha256(), 0
    with fs.open_input_stream(path, compression=None) as stream:
        while content := stream.read(_CHUNK):
            sha256.update(content)
            size += len(content)
    return FileDigest(size, sha256.hexdigest())


def digests_of(uris: Iterable[str]) -> dict[str, FileDigest]:
    """The digest of each file by URI, several files at a time."""
    names = list(uris)
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(digest_of, names), strict=True))


def damage_of(uri: str, wanted: FileDigest) -> str:
    """What is wrong with a file, "" if it is as it was written."""
    try:
        found = digest_of(uri)
    except OSError as error:
        return "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
    if found.bytes != wanted.bytes:
        return f"has {found.bytes:,} bytes, not the {wanted.bytes:,} that were written"
    return "" if found.sha256 == wanted.sha256 else "does not match its SHA-256"


def write_digests(
    folder: str,
    *,
    name: str = DIGESTS_FILE,
    to: str = "",
    without: Collection[str] = (),
    files: Collection[str] | None = None,
) -> None:
    """Write the digests of every file below a folder into a file there, the last to be written, or below `to`.

    files: their URIs, where they are known; the list of an object store may lack what was written a moment ago.
    """
    below = [storage.join(folder, file) for file in _names_below(folder)] if files is None else files
    passed_over = {storage.join(folder, file) for file in without}
    found = digests_of(uri for uri in below if uri not in passed_over)
    prefix = f"{storage.join(folder)}/"
    write_listing(storage.join(to or folder, name), {uri.removeprefix(prefix): digest for uri, digest in found.items()})


def read_digests(folder: str) -> dict[str, FileDigest]:
    """The digests of a folder's files by URI, of all its files of digests; none in a folder of an earlier release."""
    fs, path = storage.filesystem(folder)
    found: dict[str, FileDigest] = {}
    for info in fs.get_file_info(FileSelector(path, allow_not_found=True)):
        if info.is_file and is_digests(info.base_name):
            table = read_listing(storage.join(folder, info.base_name))
            found |= {storage.join(folder, name): digest for name, digest in table.items()}
    return found


def check_folder(folder: str, *, remedy: str, only: Collection[str] = ()) -> None:
    """InputError that names a damaged or missing file of a folder and the remedy. Folders without digests pass.

    only: names of the files to compare; else all.
    """
    wanted, names = read_digests(folder), {storage.join(folder, name) for name in only}
    wanted = {uri: digest for uri, digest in wanted.items() if not names or uri in names}
    with ThreadPoolExecutor() as pool:
        for uri, damage in zip(wanted, pool.map(lambda item: damage_of(*item), wanted.items()), strict=True):
            if damage:
                raise InputError(f"{uri} {damage}: {remedy}")


def write_listing(uri: str, digests: Mapping[str, FileDigest]) -> None:
    """Write digests by name."""
    storage.write_json(uri, {name: asdict(digest) for name, digest in sorted(digests.items())})


def read_listing(uri: str) -> dict[str, FileDigest]:
    """Digests by name, as `write_listing` wrote them."""
    with storage.reading(uri):
        return {name: FileDigest(**content) for name, content in storage.read_json(uri).items()}


def note_digests(folder: str, known: Mapping[str, FileDigest] | None = None) -> None:
    """Add the digests of new files below a folder of files that are written once (a Delta table) to those noted there.

    known: digests of some by name, which saves reading them.
    """
    uri = storage.join(folder, NOTED_FILE)
    noted = (read_listing(uri) if storage.exists(uri) else {}) | dict(known or {})
    names = _names_below(folder)
    names += not_listed(folder, set(noted).difference(names))
    new = [name for name in names if name not in noted or storage.name(name) in _REPLACED]
    found = digests_of(storage.join(folder, name) for name in new)
    noted |= {name: found[storage.join(folder, name)] for name in new}
    write_listing(uri, {name: noted[name] for name in names})


def not_listed(folder: str, names: Collection[str]) -> list[str]:
    """Those files of an object store that are there and that its list lacks, because they are too new."""
    if not names or not storage.is_s3(folder):
        return []
    found = storage.file_infos([storage.join(folder, name) for name in names])
    return [name for name, info in zip(names, found, strict=True) if info]


def _names_below(folder: str) -> list[str]:
    """Every file below a folder but files of digests and unfinished ones; hidden files, too."""
    fs, path = storage.filesystem(folder)
    infos = fs.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
    names = (info.path[len(path) :].strip("/") for info in infos if info.is_file)
    return sorted(name for name in names if not is_digests(name) and not name.endswith(".tmp"))


def is_digests(uri: str) -> bool:
    """Whether a file has the digests of others."""
    name = storage.name(uri)
    return name.lstrip("_").startswith("digests") and name.endswith(".json")
