"""Reading and writing files by URI: a local path or `s3://bucket/key`, the same functions for both.

Built on pyarrow filesystems. Credentials come from the environment or the cloud's identity; `AWS_ENDPOINT_URL` selects
another S3 server.
"""

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipelines.errors import InputError


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
    options: dict[str, str] = {}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        parsed = urlparse(endpoint)
        options = {"endpoint_override": parsed.netloc, "scheme": parsed.scheme}
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options["region"] = region
    return pafs.S3FileSystem(**options), uri.removeprefix("s3://").rstrip("/")


def delta_options(uri: str) -> dict[str, str]:
    """`storage_options` for delta-rs at a URI. Credentials are left to the environment."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if not is_s3(uri) or not endpoint:
        return {}
    return {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": str(endpoint.startswith("http://")).lower()}


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


def make_parent(uri: str) -> None:
    """Create the parent folder of a local file; object stores have no folders."""
    if not is_s3(uri):
        Path(absolute(uri)).parent.mkdir(parents=True, exist_ok=True)


def read_bytes(uri: str) -> bytes:
    """The content of a file. Raises FileNotFoundError."""
    fs, path = filesystem(uri)
    with fs.open_input_stream(path) as stream:
        return stream.read()


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file atomically: readers see the old content or the new, never a part of it."""
    fs, path = filesystem(uri)
    if is_s3(uri):
        with fs.open_output_stream(path) as stream:
            stream.write(content)
        return
    make_parent(uri)
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    with open(temporary, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    Path(temporary).replace(path)


def read_json(uri: str) -> Any:
    """The parsed content of a JSON file. InputError if it is not valid JSON."""
    try:
        return json.loads(read_bytes(uri))
    except json.JSONDecodeError as error:
        raise InputError(f"{uri} is not valid JSON ({error}): restore it or remove it and run again") from None


def write_json(uri: str, value: Any) -> None:
    """Write indented JSON atomically."""
    write_bytes(uri, (json.dumps(value, indent=2, default=str) + "\n").encode())


@contextlib.contextmanager
def open_parquet(uri: str, remedy: str = "replace or remove the file") -> Iterator[pq.ParquetFile]:
    """A Parquet file whose footer is read. InputError that names it, and the remedy, if it is missing or broken."""
    fs, path = filesystem(uri)
    try:
        with fs.open_input_file(path) as source:
            yield pq.ParquetFile(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{uri} cannot be read as Parquet ({' '.join(str(error).split())}): {remedy}") from None


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file as a table. InputError if it cannot be read."""
    with open_parquet(uri) as file:
        return file.read(columns=columns)


def write_table(uri: str, table: pa.Table) -> None:
    """Write one Parquet file (zstd) atomically."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_bytes(uri, sink.getvalue().to_pybytes())


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
    """Remove a folder, if it exists, and all below it."""
    fs, path = filesystem(uri)
    if exists(uri):
        fs.delete_dir(path)


def delete_files(uris: Iterable[str]) -> None:
    """Remove files, which must exist."""
    for uri in uris:
        fs, path = filesystem(uri)
        fs.delete_file(path)


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
