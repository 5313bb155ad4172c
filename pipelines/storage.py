"""Reading and writing files by URI: a local path or `s3://bucket/key`, the same functions for both.

A file is read whole and written whole; big ones are read in parts through PyArrow's filesystems. What holds for S3 is
in `pipelines.object_store`.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipelines import object_store
from pipelines.errors import InputError

JSON_DIGEST = "_sha256"
"""Last key of every JSON object that is written here: the SHA-256 of the object without it."""

_EMPTYING_S = 5.0
WHOLE_BYTES = 1 << 20
"""Objects up to this size are read by one request."""


@dataclass(frozen=True)
class FileInfo:
    """A file at the time of listing. `etag` changes when the content is replaced."""

    uri: str
    size: int
    etag: str


def is_s3(uri: str) -> bool:
    """Whether a URI names an object store rather than a local path."""
    return uri.startswith("s3://")


def join(uri: str, *parts: str) -> str:
    """Append path parts to a URI. Parts that would leave it ("..", absolute) are refused."""
    for part in parts:
        if part.startswith("/") or ".." in part.split("/"):
            raise InputError(f"path part {part!r} would leave {uri}")
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def name(uri: str) -> str:
    """The last part of a URI."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def parent(uri: str) -> str:
    """A URI without its last part."""
    return uri.rstrip("/").rsplit("/", 1)[0]


def absolute(uri: str) -> str:
    """A local path made absolute, with `file://` removed; an s3 URI unchanged."""
    if is_s3(uri):
        return uri.rstrip("/")
    if "://" in uri and not uri.startswith("file://"):
        raise InputError(f"{uri!r}: only local paths and s3:// URIs are supported")
    return str(Path(uri.removeprefix("file://")).expanduser().absolute())


def as_location(uri: str) -> str:
    """A URI for libraries that take a local path for a URL: a path with characters of URLs becomes a file:// URL."""
    return Path(uri).as_uri() if not is_s3(uri) and set(uri) & set("%?#") else uri


def check_for_delta(uri: str) -> None:
    """Refuse a path in which delta-rs takes a part for the code of a character and looks somewhere else."""
    if found := re.search(r"%[0-9A-Fa-f]{2}", uri):
        raise InputError(f"{uri}: Delta tables cannot be below a folder with {found.group()} in its name: rename it")


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of a URI and the path within it."""
    if not is_s3(uri):
        return pafs.LocalFileSystem(), absolute(uri)
    return object_store.filesystem(), uri.removeprefix("s3://").rstrip("/")


def delta_options(uri: str) -> dict[str, str]:
    """`storage_options` for delta-rs at a URI. Credentials are left to the environment."""
    return object_store.delta_options() if is_s3(uri) else {}


def exists(uri: str) -> bool:
    """Whether a file or folder exists."""
    fs, path = filesystem(uri)
    return fs.get_file_info(path).type != pafs.FileType.NotFound


def free_bytes(uri: str) -> int | None:
    """Free space of the disk of a local path, which need not exist yet; None on an object store."""
    if is_s3(uri):
        return None
    path = Path(absolute(uri))
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def in_words(size: float) -> str:
    """Bytes in a unit in which they can be read.

    >>> in_words(900), in_words(9000), in_words(1.25e9)
    ('900 bytes', '9.0 kB', '1.2 GB')
    """
    if size < 1000:
        return f"{size:.0f} bytes"
    unit = next(unit for unit in ("kB", "MB", "GB", "TB", "PB") if (size := size / 1000) < 1000 or unit == "PB")
    return f"{size:.1f} {unit}"


def make_folder(uri: str) -> None:
    """Create a local folder and those above it; object stores have no folders."""
    if not is_s3(uri):
        Path(absolute(uri)).mkdir(parents=True, exist_ok=True)


def make_parent(uri: str) -> None:
    """Create the parent folder of a local file; object stores have no folders."""
    if not is_s3(uri):
        Path(absolute(uri)).parent.mkdir(parents=True, exist_ok=True)


def read_bytes(uri: str) -> bytes:
    """The content of one version of a file, read whole. Raises FileNotFoundError."""
    return object_store.get(uri).content if is_s3(uri) else Path(absolute(uri)).read_bytes()


@contextlib.contextmanager
def writing(uri: str) -> Iterator[None]:
    """Note on an error of the system, which often does not say so, which file was being written."""
    try:
        yield
    except OSError as error:
        error.add_note(f"while writing {uri}")
        raise


def write_bytes(uri: str, content: bytes, *, fence: int = 0, new_folder: bool = True) -> None:
    """Write a file atomically: readers see the old content or the new, never a part of it.

    fence: the token of the lease that the file is published under (`leases.publish_json`). FencedError, and nothing is
    written, if the object is of a later token. Leases of the local disk need none. new_folder: whether a local folder
    that is not there is made; else FileNotFoundError.
    """
    if is_s3(uri):
        object_store.put_fenced(uri, content, fence) if fence else object_store.put(uri, content)
        return
    if new_folder:
        make_parent(uri)
    path = Path(absolute(uri))
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with writing(uri), open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk, too, what cannot be used goes
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Keep a rename through a loss of power; file systems that cannot are as safe as they are."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_json(uri: str) -> Any:
    """The object in a JSON file. InputError if it is not valid JSON, no object, or not what `write_json` wrote.

    A file without a digest, of an earlier release or of another program, is taken as it is.
    """
    try:
        content = json.loads(read_bytes(uri))
    except ValueError as error:  # not JSON, or not UTF-8
        raise InputError(f"{uri} is not valid JSON ({error}): restore it or remove it and run again") from None
    if not isinstance(content, dict):
        raise InputError(f"{uri} holds {_json_kind(content)}, not a JSON object: restore it or remove it and run again")
    if not _has_digest(content):
        return content
    key, digest = content.popitem()
    if (key, digest) != (JSON_DIGEST, _json_digest(content)):
        raise InputError(
            f"{uri} is damaged, its content does not match its {JSON_DIGEST}: restore it or remove it and run again; "
            f"after an edit by hand remove its line {JSON_DIGEST}"
        )
    return content


def _json_kind(content: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(content), "a number or truth value")


@contextlib.contextmanager
def reading(uri: str) -> Iterator[None]:
    """Around the use of what a JSON file holds: InputError that names it if a key is missing or wrong."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        lacks = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]
        raise InputError(f"{uri} is not as it was written ({lacks}): restore it or remove it and run again") from None


def write_json(uri: str, value: Any, *, fence: int = 0) -> None:
    """Write indented JSON atomically. An object ends with the digest of the rest, which `read_json` checks.

    fence: of `write_bytes`.
    """
    write_bytes(uri, _json_content(value), fence=fence)


def _json_content(value: Any) -> bytes:
    if isinstance(value, dict):
        value = {**value, JSON_DIGEST: _json_digest(value)}
    return _json_text(value).encode()


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=2, default=str) + "\n"


def _json_digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(_json_text(value).encode()).hexdigest()


def _has_digest(content: dict[str, Any]) -> bool:
    """Whether `write_json` wrote it, even if a letter of the digest's key is damaged."""
    key = next(reversed(content), "")
    return len(key) == len(JSON_DIGEST) and sum(a != b for a, b in zip(key, JSON_DIGEST, strict=True)) <= 1


def create_json(uri: str, value: Any) -> bool:
    """Write a JSON file unless there is one; returns whether this call has made it."""
    content = _json_content(value)
    if is_s3(uri):
        try:
            object_store.put(uri, content, if_none_match=True)
        except object_store.ConflictError:
            return read_bytes(uri) == content  # our own request may have been repeated after its answer was lost
        return True
    if exists(uri):
        return False
    complete = f"{absolute(uri)}.{uuid.uuid4().hex}.tmp"
    write_bytes(complete, content)
    try:
        os.link(complete, absolute(uri))
    except FileExistsError:
        return False
    finally:
        Path(complete).unlink()
    return True


@contextlib.contextmanager
def open_parquet(
    uri: str, remedy: str = "replace or remove the file", *, size: int | None = None, sha256: str = ""
) -> Iterator[pq.ParquetFile]:
    """A Parquet file whose footer is read. InputError that names it, and the remedy, if it is missing or damaged.

    Its pages are compared with their checksums where it has any (files of earlier releases have none). size: its bytes,
    if they are known, of a file that nobody writes again. sha256: if given, the whole file is read and compared, once
    a process. An object store that does not answer raises OSError: the file is not to blame.
    """
    try:
        with _open(uri, size) as source:
            if size is not None:
                _check_size(source.size(), size)
            if sha256:
                check_digest(uri, sha256)
            yield pq.ParquetFile(source, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        if object_store.is_of_store(error):
            raise
        raise InputError(f"{uri} cannot be read as Parquet ({' '.join(str(error).split())}): {remedy}") from None


def _open(uri: str, size: int | None) -> pa.NativeFile:
    """A file for random reads. A small object is read whole, by a request that is repeated if it fails."""
    if is_s3(uri) and size is not None and size <= WHOLE_BYTES:
        return pa.BufferReader(_written_once(uri, size, os.getpid()))
    fs, path = filesystem(uri)
    source = fs.open_input_file(path)
    if not is_s3(uri) or source.size() > WHOLE_BYTES:
        return source
    source.close()
    return pa.BufferReader(object_store.get(uri).content)


@functools.lru_cache(16)
def _written_once(uri: str, size: int, _: int) -> bytes:
    """A small object that nobody writes again. Row groups of a bucket are read one after the other: one request."""
    content = object_store.get(uri).content
    _check_size(len(content), size)  # what is damaged is not kept, so that it is read again when it is repaired
    return content


def _check_size(found: int, wanted: int) -> None:
    if found != wanted:
        raise OSError(f"{found:,} bytes, not the {wanted:,} that were written")


@functools.lru_cache(4096)
def check_digest(uri: str, sha256: str) -> None:
    """OSError if a file is not as it was written, or not there; one that is is not read again by this process."""
    fs, path = filesystem(uri)
    found = hashlib.sha256()
    with fs.open_input_stream(path, compression=None) as stream:
        while content := stream.read(1 << 20):
            found.update(content)
    if found.hexdigest() != sha256:
        raise OSError("it does not match its SHA-256")


def forget_digests() -> None:
    """Read files again that this process has already read, or compared with their SHA-256."""
    _written_once.cache_clear()
    check_digest.cache_clear()


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file as a table. InputError if it cannot be read."""
    with open_parquet(uri) as file:
        return file.read(columns=columns)


def write_table(uri: str, table: pa.Table, *, new_folder: bool = True) -> None:
    """Write one Parquet file (zstd, page checksums) atomically. new_folder: of `write_bytes`."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    write_bytes(uri, sink.getvalue().to_pybytes(), new_folder=new_folder)


def file_info(uri: str) -> FileInfo:
    """One file as `list_files` describes it. Raises FileNotFoundError."""
    [info] = file_infos([uri])
    if info is None:
        raise FileNotFoundError(uri)
    return info


def file_infos(uris: Sequence[str]) -> list[FileInfo | None]:
    """Files of one file system as `list_files` describes them; None for each that is not there."""
    if not uris:
        return []
    fs, _ = filesystem(uris[0])
    infos = fs.get_file_info([filesystem(uri)[1] for uri in uris])
    return [_described(uri, info) for uri, info in zip(uris, infos, strict=True)]


def list_files(uri: str) -> list[FileInfo]:
    """Every file below a folder by URI, without hidden ones ("_" or "." first); none if there is no folder."""
    fs, path = filesystem(uri)
    files = []
    for info in fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True)):
        below = info.path[len(path) :].strip("/")
        file = _described(join(uri, below), info)
        if file and not any(part[0] in "._" for part in below.split("/")):
            files.append(file)
    return sorted(files, key=lambda file: file.uri)


def _described(uri: str, info: pafs.FileInfo) -> FileInfo | None:
    is_file = info.type == pafs.FileType.File
    return FileInfo(uri, info.size, f"{info.mtime_ns or 0:x}-{info.size:x}") if is_file else None


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly below a folder, sorted; none if there is no folder."""
    fs, path = filesystem(uri)
    entries = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(entry.base_name for entry in entries if entry.type == pafs.FileType.Directory)


def delete_folder(uri: str) -> None:
    """Remove a folder, if it exists, and all below it, also while a process puts a last file there."""
    fs, path = filesystem(uri)
    until = time.monotonic() + _EMPTYING_S
    while exists(uri):
        try:
            return fs.delete_dir(path)
        except OSError as error:  # a file came, or went, while the folder was emptied
            if is_s3(uri) and isinstance(error, FileNotFoundError):
                return
            passing = error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)
            if is_s3(uri) or not passing or time.monotonic() > until:
                raise
            time.sleep(0.01)


def delete_files(uris: Iterable[str], *, missing_ok: bool = False) -> None:
    """Remove files, which must exist unless `missing_ok`."""
    passed_over = (FileNotFoundError,) if missing_ok else ()
    for uri in uris:
        fs, path = filesystem(uri)
        with contextlib.suppress(*passed_over):
            fs.delete_file(path)


def check_reachable(uri: str) -> None:
    """InputError within seconds if an object store is not there; of a disk nothing is checked."""
    if is_s3(uri):
        object_store.check_reachable(uri)


def abort_uploads(uri: str, *, own: str) -> int:
    """Remove unfinished multipart uploads below a URI; see `object_store.abort_uploads`. None are on a disk."""
    return object_store.abort_uploads(uri, own=own) if is_s3(uri) else 0


def upload_folder(local: str, uri: str) -> None:
    """Copy a local folder to a URI, file by file."""
    for file in sorted(Path(local).rglob("*")):
        if file.is_file():
            write_bytes(join(uri, file.relative_to(local).as_posix()), file.read_bytes())


def download_folder(uri: str, local: str) -> str:
    """Copy every file below a URI to a local folder and return that folder."""
    for file in list_files(uri):
        write_bytes(join(local, file.uri.removeprefix(f"{join(uri)}/")), read_bytes(file.uri))
    return local
