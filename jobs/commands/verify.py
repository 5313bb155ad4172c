"""`fuxi verify`: every file of a workspace compared with its digest; what is damaged is named with what rebuilds it."""

import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import unquote

from jobs.runtime.screen import screen
from pipelines import delta_tables, digests, storage
from pipelines.digests import FileDigest
from pipelines.errors import InputError
from pipelines.histories import vocabulary
from pipelines.histories.shards import Manifest, read_manifest
from pipelines.workspace import Workspace, open_workspace

_PASSED_OVER = re.compile(r"logs/.*|.*\.(lock|tmp)|runs/[^/]*/(staging/.*|train_progress\.json|side\.safetensors)")
"""Below a workspace: what is not its own, and what is rewritten while a day runs."""
_DAY = re.compile(r"ds=(\d{4}-\d\d-\d\d)")
_REMEDIES = (
    (r"_workspace\.json|vocabulary/|forgotten/", "restore it from a backup: nothing can build it again"),
    (
        r"sequences/",
        "restore it from a backup, or build its day and then each later one again: `fuxi sessionize --ds {ds} --force`",
    ),
    (r"runs/[^/]+/checkpoints/", "remove this checkpoint, then `fuxi train --ds {ds} --force`"),
    (r"runs/[^/]+/(export|parent)-", "`fuxi train --ds {ds} --force`"),
    (r"runs/[^/]+/run_record\.json", "restore it from a backup, or freeze the inputs anew: --refresh-inputs"),
    (r"runs/", "remove it and run `fuxi daily --ds {ds}`"),
    (
        r"(quality|metrics|list_hits|list_quality)/",
        "restore it from a backup, or remove the folder of this table: the history in reports is lost with it",
    ),
    (r"recommendations/_delta_log/", "restore it from a backup, or remove recommendations/ and all its lists"),
    (r"quarantine/", "restore it from a backup, or `fuxi sessionize --ds {ds} --force`"),
    (r"recommendations/", "restore it from a backup, or `fuxi recommend --ds {ds} --force`"),
    (r"reports/[^/]+$", "write the page of any day again: `fuxi report --ds DATE --force`"),
    (r"reports/", "`fuxi report --ds {ds} --force`"),
    (r"mlartifacts/|mlflow\.db", "restore it from a backup, or train another version: `fuxi train --ds {ds} --force`"),
    (r"catalogue/", "import the data set again"),
    (r"reproduce", "remove it and run `fuxi reproduce` again"),
    (r"", "restore it from a backup"),
)


@dataclass(frozen=True)
class Verified:
    """What was found: files compared, files that nothing has a digest of, and a line for each that is damaged."""

    files: int
    bytes: int
    unknown: dict[str, int]  # by the first part of their path
    damaged: tuple[str, ...]


def run(workspace: str, *, ds: str | None = None) -> Verified:
    """Compare every file below a workspace with what was noted when it was written; writes nothing.

    ds: only the files of this day, and the shards of earlier days that it reads.
    """
    found = _Walk(storage.absolute(workspace), ds)
    try:
        opened = open_workspace(workspace)
    except InputError as error:
        return Verified(0, 0, {}, (str(error),))
    found.take_manifests(opened)
    found.take_folders()
    found.take_json()
    return found.compare(opened)


class _Walk:
    """The files below a workspace and what is known of each."""

    def __init__(self, root: str, ds: str | None):
        self.root, self.ds = root, ds
        fs, path = storage.filesystem(root)
        infos = fs.get_file_info(digests.FileSelector(path, recursive=True, allow_not_found=True))
        names = (info.path[len(path) :].strip("/") for info in infos if info.is_file)
        self.names = {name for name in names if not _PASSED_OVER.fullmatch(name)}
        self.wanted: dict[str, FileDigest] = {}  # by name
        self.damaged: dict[str, str] = {}  # name -> what is wrong
        self.json: set[str] = set()  # compared with the digest in themselves

    def take_manifests(self, workspace: Workspace) -> None:
        """The shards that the manifests list, and the vocabulary that they were built with."""
        songs = None
        for day in workspace.days_with_sequences():
            if self.ds not in (None, str(day)):
                continue
            try:
                manifest = read_manifest(workspace.sequences(day))
                self.wanted |= {self._name(uri): digest for uri, digest in _listed(manifest)}
            except InputError as error:
                self.damaged[f"sequences/ds={day}/_manifest.json"] = str(error)
                continue
            try:
                songs = songs or vocabulary.read(workspace.vocabulary, workspace.spec.item_id_type)
                songs.check(manifest.vocabulary_size, manifest.vocabulary_sha256, uri=workspace.vocabulary)
            except Exception as error:  # delta-rs has no common base for what a damaged log or file raises
                self.damaged["vocabulary/"] = f"{workspace.vocabulary} cannot be read ({error})"

    def take_folders(self) -> None:
        """The files of every folder that has their digests beside them."""
        for name in sorted(filter(digests.is_digests, self.names)):
            folder = name.rpartition("/")[0]
            try:
                listed = digests.read_listing(storage.join(self.root, name))
            except InputError as error:
                self.damaged[name] = str(error)
                continue
            named = {f"{folder}/{file}": digest for file, digest in listed.items() if self._of_day(f"{folder}/{file}")}
            if storage.name(name) == digests.NOTED_FILE and f"{folder}/_delta_log" in _folders(self.names):
                live = self._live(folder)
                named = {file: digest for file, digest in named.items() if file in self.names or file in live}
            self.wanted |= named

    def take_json(self) -> None:
        """JSON files, which end with their own digest, if nothing else has one of them."""
        for name in sorted(self.names - self.wanted.keys()):
            if not name.endswith(".json") or not self._of_day(name):
                continue
            try:
                storage.read_json(storage.join(self.root, name))
            except InputError as error:
                self.damaged.setdefault(name, str(error))
            if storage.JSON_DIGEST.encode() in storage.read_bytes(storage.join(self.root, name)):
                self.json.add(name)

    def compare(self, workspace: Workspace) -> Verified:
        """Read every file that has a digest, several at a time."""
        with ThreadPoolExecutor() as pool:
            uris = [storage.join(self.root, name) for name in self.wanted]
            for name, damage in zip(self.wanted, pool.map(digests.damage_of, uris, self.wanted.values()), strict=True):
                if damage:
                    self.damaged[name] = f"{storage.join(self.root, name)} {damage}"
        database = {"mlflow.db"} & self.names if self.ds is None else set()
        if database and (damage := _damage_of_database(storage.join(self.root, "mlflow.db"))):
            self.damaged["mlflow.db"] = f"{self.root}/mlflow.db {damage}"
        known = self.wanted.keys() | self.json | self.damaged.keys()
        unknown = Counter(name.split("/")[0] for name in self.names - known if self._of_day(name))
        lines = (f"{line}{_remedy(name, line)}" for name, line in sorted(self.damaged.items()))
        sizes = sum(digest.bytes for digest in self.wanted.values())
        return Verified(len(self.wanted) + len(self.json), sizes, dict(sorted(unknown.items())), tuple(lines))

    def _live(self, table: str) -> set[str]:
        """The files of a Delta table's newest version, by name."""
        try:
            opened = delta_tables.open_table(storage.join(self.root, table))
        except Exception as error:  # of delta-rs, which has no common base for a damaged log
            reason = " ".join(str(error).split())
            self.damaged[f"{table}/"] = f"{storage.join(self.root, table)} cannot be opened ({reason})"
            return set()
        files = () if opened is None else opened.get_add_actions(flatten=True)["path"].to_pylist()
        return {f"{table}/{unquote(file)}" for file in files}

    def _of_day(self, name: str) -> bool:
        return self.ds is None or f"ds={self.ds}/" in name

    def _name(self, uri: str) -> str:
        return uri.removeprefix(f"{self.root}/")


def _listed(manifest: Manifest) -> Iterator[tuple[str, FileDigest]]:
    """Every file that a manifest has a digest of."""
    for file in manifest.files:
        for layer in file.layers:
            yield manifest.uri_of(layer), FileDigest(layer.bytes, layer.sha256)
    for name, digest in manifest.digests.items():
        yield manifest.uri(name), digest


def _folders(names: Iterable[str]) -> set[str]:
    return {name.rpartition("/")[0] for name in names}


def _damage_of_database(path: str) -> str:
    """What sqlite finds wrong with a database. It has no digests: a changed letter of a value is not found."""
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            [first, *_] = database.execute("pragma integrity_check").fetchone()
    except sqlite3.DatabaseError as error:
        return f"is damaged ({error})"
    return "" if first == "ok" else f"is damaged ({' '.join(first.split())})"


def _remedy(name: str, line: str) -> str:
    """What to do about a damaged file; "" if the line says it."""
    if "restore" in line:
        return ""
    day = _DAY.search(name)
    remedy = next(text for pattern, text in _REMEDIES if re.match(pattern, name))
    return f": {remedy.format(ds=day[1] if day else 'DATE')}"


def render(verified: Verified) -> None:
    """Print what was compared, and which files have no digest."""
    shown = screen()
    shown.say(f"{verified.files:,} files compared, {verified.bytes / 1e6:,.1f} MB, {len(verified.damaged)} damaged")
    if verified.unknown:
        kinds = ", ".join(f"{count:,} in {place}" for place, count in verified.unknown.items())
        shown.say(f"without a digest: {kinds}", indent=2)
