"""What is at a path: files, their formats, and the folders that say on which day they landed."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from pipelines import storage
from pipelines.errors import InputError
from pipelines.logs import files as logs
from pipelines.logs.formats import by_ending, delta, format_of
from pipelines.logs.formats.base import AUTO, LogFile, LogSpec, open_text
from pipelines.logs.formats.values import escaped
from pipelines.schema import DS

_DAY_KEYS = (DS, "dt", "date", "day", "landing_date", "landing_day", "event_date", "partition_date", "p_date")
"""Keys of folders that usually are the landing day, the likeliest first."""
_PARTS_OF_A_DATE = (("year", "month", "day"), ("y", "m", "d"), ("yyyy", "mm", "dd"), ("yr", "mon", "day"))
_DATE = re.compile(r"(20\d\d)[-_/]?(0[1-9]|1[0-2])[-_/]?(0[1-9]|[12]\d|3[01])(?!\d)")
_SNIFFED = 50  # files at most whose first bytes are read
_MOVE = "put each file into a folder ds=YYYY-MM-DD of the day on which it arrived"


@dataclass(frozen=True)
class Layout:
    """The files at a path, and the settings that find them."""

    path: str  # what logs.path has to be
    kind: str  # "days", "delta", "folder" (of files without days) or "file"
    files: tuple[LogFile, ...]  # landing_day is "" where no folder says one
    partition: tuple[str, ...] = (DS,)
    format: str = AUTO
    notes: tuple[str, ...] = ()
    problem: str = ""  # why these files cannot be read as logs, and what to do; "" if they can

    @property
    def landing_days(self) -> list[str]:
        """ISO dates, sorted."""
        return sorted({file.landing_day for file in self.files if file.landing_day})

    @property
    def formats(self) -> Counter[str]:
        """How many files there are of each format; "" where the ending names none."""
        if self.kind == "delta":
            return Counter({"delta": len(self.files)})
        return Counter(found.name if (found := by_ending(file.uri)) else "" for file in self.files)


def look(path: str, spec: LogSpec, *, partition_is_given: bool = False) -> Layout:
    """What is at a path. spec: settings that are known already; its path is not used.

    Raises InputError, one line: nothing is there, no file is below it, or a Delta table that cannot be opened.
    """
    uri = storage.absolute(path)
    [info] = storage.file_infos([uri])
    if info is None and not storage.is_s3(uri) and not storage.exists(uri):
        raise InputError(f"there is no file or folder {uri}: correct the path")
    if info is None and spec.format in (AUTO, delta.TABLE.name) and delta.TABLE.is_at(uri):
        return _delta(uri, spec, given=partition_is_given)
    root = _above_keys(uri)
    found = [info] if info else storage.list_files(uri)
    if not found:
        tables = _tables_below(uri)
        hint = f"give the path of one of its Delta tables, {tables[0]}" if tables else "correct the path"
        raise InputError(f"no files are below {uri}, those whose names begin with _ or a dot aside: {hint}")
    files = [LogFile(file.uri, file.size, file.etag, "") for file in found]
    layout = _folders(root or uri, files, spec, given=partition_is_given)
    if root:
        shown = "this file" if info else "this folder"
        layout = replace(layout, notes=(*layout.notes, f"only {shown} is looked at; logs.path is {root}"))
    elif info:
        folder = storage.parent(uri)
        move = f"logs are folders of landing days: move it to {folder}/ds=YYYY-MM-DD/ of the day on which it arrived"
        layout = replace(layout, path=folder, kind="file", problem=f"{uri} is a single file, and {move}")
    return _with_format(layout, spec)


def is_csv(spec: LogSpec, file: LogFile) -> bool:
    """Whether a file is read as CSV. InputError if its format is not known."""
    return format_of(spec, file.uri).name == "csv"


def choose(layout: Layout, most: int) -> list[LogFile]:
    """At most so many files, of as many landing days as possible, from the first to the last; empty ones left out."""
    by_day: dict[str, list[LogFile]] = defaultdict(list)
    for file in layout.files:
        if file.size and (file.landing_day or not layout.landing_days):
            by_day[file.landing_day].append(file)
    days = _spread(sorted(by_day), most)
    chosen = [by_day[day][0] for day in days]
    others = [file for day in days for file in by_day[day][1:]]
    return sorted([*chosen, *_spread(others, most - len(chosen))], key=lambda file: (file.landing_day, file.uri))


def _spread(values: Sequence[Any], most: int) -> list[Any]:
    """At most so many values, evenly from the first to the last."""
    if len(values) <= most:
        return list(values)
    if most < 2:
        return list(values[-1:])[:most]
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


def _above_keys(uri: str) -> str:
    """The folder above the first `key=value` of a path; "" if it has none."""
    found = re.search(r"/[^/=]+=[^/]*(?:/|$)", uri)
    return uri[: found.start()] if found else ""


def _tables_below(uri: str) -> list[str]:
    folders = [storage.join(uri, name) for name in storage.list_folders(uri)[:50]]
    return [folder for folder in folders if delta.TABLE.is_at(folder)]


def _delta(uri: str, spec: LogSpec, *, given: bool) -> Layout:
    """The live files of a Delta table, by the partition that is a date."""
    columns = delta.TABLE.partition_columns(uri)
    tried = [spec.partition] if given else _candidates(columns)
    for keys in tried:
        try:
            files = delta.TABLE.files(replace(spec, partition=keys), uri)
        except InputError as error:
            if "is not a date" in str(error) and not given:
                continue
            raise
        notes = _other_keys(columns, keys)
        return Layout(uri, "delta", tuple(files), keys, notes=notes)
    shown = f"by {', '.join(columns)}, none of them a date" if columns else "by nothing"
    raise InputError(
        f"{uri} is a Delta table partitioned {shown}: rewrite it partitioned by ds, the day on which rows arrive"
    )


def _candidates(keys: Sequence[str]) -> list[tuple[str, ...]]:
    """The keys, or groups of three of them, that may say a landing day; the likeliest first."""
    by_name = {key.lower(): key for key in keys}
    single = sorted(keys, key=lambda key: _DAY_KEYS.index(key.lower()) if key.lower() in _DAY_KEYS else len(_DAY_KEYS))
    parts = [tuple(by_name[part] for part in group) for group in _PARTS_OF_A_DATE if set(group) <= by_name.keys()]
    return [*parts, *((key,) for key in single)]


def _other_keys(keys: Sequence[str], chosen: Sequence[str]) -> tuple[str, ...]:
    others = [escaped(key) for key in keys if key not in chosen]
    return (f"the key{'s'[: len(others) > 1]} {', '.join(others)} of the folders is not used",) if others else ()


def _folders(root: str, files: list[LogFile], spec: LogSpec, *, given: bool) -> Layout:
    """The landing days of files by the names of their folders."""
    keys = list(dict.fromkeys(key for file in files for key in _keys(file.uri, root)))
    tried = [spec.partition] if given else _candidates(keys)
    fitting = []
    for candidate in tried:
        days, wrong = _days(files, root, replace(spec, partition=candidate))
        if sum(bool(day) for day in days) > len(files) // 2:
            fitting.append((candidate, days, wrong))
    if not fitting:
        return Layout(root, "folder", tuple(files), problem=_without_days(root, files, keys))
    partition, days, wrong = fitting[0]
    dated = tuple(replace(file, landing_day=day) for file, day in zip(files, days, strict=True))
    notes = list(_other_keys(keys, partition))
    notes += [f"{','.join(other)} would do as the landing day, too: set logs.partition" for other, _, _ in fitting[1:]]
    outside = [file.uri for file in dated if not file.landing_day]
    if outside and not wrong:
        notes.append(
            f"{len(outside):,} files in no folder {partition[0]}=... are passed over, for example {outside[0]}"
        )
    return Layout(root, "days", dated, partition, notes=tuple(notes), problem=wrong)


def _keys(uri: str, root: str) -> list[str]:
    return [part.split("=", 1)[0] for part in uri[len(root) + 1 :].split("/")[:-1] if "=" in part]


def _days(files: Sequence[LogFile], root: str, spec: LogSpec) -> tuple[list[str], str]:
    """The landing day of each file, "" where there is none, and what is wrong with the first that is no date."""
    days, wrong = [], ""
    for file in files:
        try:
            days.append(logs.landing_day(spec, file.uri, root))
        except InputError as error:
            days.append("")
            wrong = wrong or str(error)
    return days, wrong


def _without_days(root: str, files: Sequence[LogFile], keys: Sequence[str]) -> str:
    """Why files have no landing day, and what to do."""
    if keys:
        example = next(file.uri for file in files if _keys(file.uri, root))
        return (
            f"the folders of {root} have the keys {', '.join(map(escaped, keys))}, none of them a date (for example "
            f"{example}): {_MOVE}, or set logs.partition to the key that is one"
        )
    below = [unquote(file.uri[len(root) + 1 :]) for file in files]
    dated = [(path, found) for path in below if (found := _DATE.search(path))]
    if len(dated) * 2 > len(files):
        path, found = dated[0]
        where = "folders" if "/" in path[found.start() :] else "files"
        target = f"ds={found[1]}-{found[2]}-{found[3]}"
        return (
            f"the {where} in {root} have dates in their names but no key (for example {path}): move its files into a "
            f"folder {target}, and so for every day"
        )
    return (
        f"{len(files):,} files are in {root}, none of them in a folder of a day (for example {files[0].uri}): {_MOVE}"
    )


def _with_format(layout: Layout, spec: LogSpec) -> Layout:
    """With the format of files whose endings do not tell, by their first bytes, if it is that of all."""
    unknown = [file for file in layout.files if file.size and by_ending(file.uri) is None]
    if spec.format != AUTO or not unknown:
        return replace(layout, format=spec.format)
    sniffed = {file.uri: _sniff(file.uri) for file in unknown[:_SNIFFED]}
    found = {name for name in layout.formats if name} | set(sniffed.values())
    if len(found) == 1 and "" not in found:
        note = f"the names of {len(unknown):,} files do not say their format, their first bytes do"
        return replace(layout, format=found.pop(), notes=(*layout.notes, note))
    strange = next((uri for uri, name in sniffed.items() if not name), "")
    wrong = (
        f"{strange}: neither its name nor its first bytes say a format that is read here: move it out of the logs"
        if strange
        else f"{unknown[0].uri}: its name says no format, its first bytes {sniffed[unknown[0].uri]}, and there are "
        f"files of {' and '.join(sorted(found))}: give it an ending (.parquet, .csv, .json), or move it out of the logs"
    )
    return replace(layout, problem=layout.problem or wrong)


def _sniff(uri: str) -> str:
    """The format of a file by its first bytes; "" if they say none."""
    fs, path = storage.filesystem(uri)
    with fs.open_input_file(path) as source:
        if source.read(4) == b"PAR1":
            return "parquet"
    try:
        with open_text(uri) as text:
            head = text.read(4096)
    except (OSError, ValueError):
        return ""
    first = head.lstrip().splitlines()[:1]
    if not first or b"\0" in head:
        return ""
    if first[0][:1] in (b"{", b"["):
        return "json"
    return "csv" if any(mark in first[0] for mark in (b",", b"\t", b";", b"|")) else ""
