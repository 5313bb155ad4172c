"""`fuxi reproduce`: the paper's systems and ablations on one data set, trained, measured, and set beside the paper."""

import datetime as dt
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fuxi_beta.presets import preset
from jobs.reproduce import runs
from jobs.reproduce.counts import title_of
from jobs.reproduce.paper import Counts
from jobs.reproduce.runs import Dataset, Run
from jobs.reproduce.series import run_missing
from jobs.reproduce.settings import TABLES, Request, Spec, specs
from jobs.reproduce.single import Task
from jobs.runtime.console import log
from pipelines import storage
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest, read_manifest
from pipelines.schema import parse_ds
from pipelines.workspace import open_workspace

KNOWN: dict[str, Literal["ML-1M", "ML-20M"]] = {"ml-1m": "ML-1M", "ml-20m": "ML-20M"}
SETTINGS = (*KNOWN.values(), "daily", "demo")
FOLDER = "reproduce"


@dataclass(frozen=True)
class Data:
    """Where the data set is and what it is called."""

    dataset: str  # ml-1m, ml-20m, or the workspace's folder
    workspace: str | None = None  # of ml-1m and ml-20m, by default ./ml-1m and ./ml-20m
    ds: dt.date | None = None  # default: the newest shards
    title: str | None = None
    preset: str | None = None  # of the model and its training; a published one has its column of the paper beside

    @property
    def folder(self) -> str:
        """The workspace."""
        return self.workspace or (f"./{self.dataset}" if self.dataset in KNOWN else self.dataset)

    @property
    def setting(self) -> str:
        """Name of the preset."""
        name = self.preset or KNOWN.get(self.dataset, "ML-1M")
        if name not in SETTINGS:
            raise InputError(f"--preset {name}: use one of {', '.join(SETTINGS)}")
        return name

    @property
    def paper(self) -> Literal["ML-1M", "ML-20M", ""]:
        """The paper's data set to set beside: where one is asked for, by its name or its setting."""
        asked = self.preset or KNOWN.get(self.dataset)
        for name in KNOWN.values():
            if name == asked:
                return name
        return ""


def reproduce(
    data: Data, request: Request, *, workers: int, device: str, command: str
) -> tuple[list[Run], dict[str, str]]:
    """Perform the runs that are missing. Returns those of this request that are finished, and what failed."""
    manifest = _manifest(data)
    folder = runs_folder(data)
    Path(folder).mkdir(parents=True, exist_ok=True)
    dataset = describe(data, manifest)
    wanted = specs(request)
    tasks = [Task(spec, request.preset, dataset, manifest, folder, command, device) for spec in wanted]
    failed = run_missing(tasks, workers=workers)
    names = {spec.name for spec in wanted}
    return [run for run in runs.read(folder) if run.name in names], failed


def runs_folder(data: Data) -> str:
    """Where the files of this data set's runs are: local, because training is."""
    uri = storage.absolute(data.folder)
    if storage.is_s3(uri):
        raise InputError(f"{uri}: `fuxi reproduce` trains in local processes: copy the workspace to a local folder")
    return storage.join(uri, FOLDER)


def describe(data: Data, manifest: Manifest) -> Dataset:
    """What the runs will say they learned from. A set of MovieLens's name must have its counts to bear its title."""
    counts = Counts(manifest.rows, manifest.vocabulary_size, manifest.events)
    name = Path(storage.absolute(data.folder)).name
    return Dataset(
        name=name,
        title=data.title or title_of(counts) or name,
        paper=data.paper,
        listeners=manifest.rows,
        songs=manifest.vocabulary_size,
        events=manifest.events,
    )


def plan(data: Data, request: Request) -> list[tuple[Spec, bool]]:
    """The runs of a request, and whether each is finished."""
    folder = runs_folder(data)
    _manifest(data)
    return [(spec, runs.finished(folder, spec.name)) for spec in specs(request)]


def default_workers() -> int:
    """As many as cores, up to four: runs side by side on one thread each use cores better than one on all."""
    return max(1, min(4, len(os.sched_getaffinity(0))))


def _manifest(data: Data) -> Manifest:
    try:
        workspace = open_workspace(data.folder)
    except InputError:
        if data.dataset in KNOWN:
            raise InputError(
                f"{data.folder} is no workspace: download {data.dataset} from grouplens.org, then "
                f"`fuxi import movielens {data.dataset}/ --workspace {data.folder}`"
            ) from None
        raise
    days = workspace.days_with_sequences()
    if not days or (data.ds and data.ds not in days):
        there = ", ".join(map(str, days[-3:])) or "none"
        wanted = f"ds {data.ds}" if data.ds else "any ds"
        raise InputError(f"{data.folder} has no sequences of {wanted} (there are: {there}): import or sessionize them")
    return read_manifest(workspace.sequences(data.ds or days[-1]))


def main(options: dict[str, Any]) -> None:
    """The command line. Prints the table of what was asked for; InputError if a run failed."""
    ds = parse_ds(options["ds"]) if options["ds"] else None
    data = Data(options["dataset"], options["workspace"], ds, options["title"], options["preset"])
    request = _request(data, options)
    if options["dry_run"]:
        for spec, done in plan(data, request):
            print(f"{spec.name:<44} {'finished' if done else 'to do'}")
        return
    if options["timing"]:
        measure_timing(data, request)
        return
    failed: dict[str, str] = {}
    if not options["write"] or _asks_for_runs(options):
        workers = options["workers"] or default_workers()
        device = _device(options["device"])
        finished, failed = reproduce(data, request, workers=workers, device=device, command=_command())
        show(finished)
    if options["write"]:
        write([data.folder, *options["also"]], options["write"])
    if failed:
        name, reason = next(iter(failed.items()))
        raise InputError(f"{len(failed)} of the runs failed, {name} for one: {reason}")


def show(finished: Sequence[Run]) -> None:
    """A table of runs on standard output, best NDCG@10 first."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=finished[0].dataset.title if finished else "no run is finished", title_justify="left")
    table.add_column("run", overflow="fold", min_width=22)
    columns = {"ndcg_10": "NDCG@10", "ndcg_50": "NDCG@50", "hr_10": "HR@10", "hr_50": "HR@50", "mrr": "MRR"}
    for title in (*columns.values(), "epochs", "s/epoch"):
        table.add_column(title, justify="right")
    for run in sorted(finished, key=lambda run: -run.metrics["all"]["ndcg_10"]):
        values = [f"{run.metrics['all'][name]:.4f}" for name in columns]
        epochs = [str(run.epochs), f"{run.epoch_seconds:.1f}"] if run.epoch_losses else ["", ""]
        table.add_row(run.name, *values, *epochs)
    Console(width=None if sys.stdout.isatty() else 120).print(table, highlight=False)


def write(workspaces: Sequence[str], file: str) -> None:
    """Render every finished run of some workspaces as Markdown, with figures in `figures/` beside the file."""
    from jobs.reproduce import figures, tables

    folders = [storage.join(storage.absolute(workspace), FOLDER) for workspace in workspaces]
    found = [run for folder in folders for run in runs.read(folder)]
    if not found:
        raise InputError(f"{', '.join(folders)}: no run is finished, so there is nothing to write")
    target = Path(file)
    drawn = figures.draw(found, target.parent / "figures")
    text = tables.render(found, _timings(workspaces), runs.ranks_in(folders), figures=drawn)
    storage.write_bytes(storage.absolute(file), text.encode())
    log("written", file=file, runs=len(found), figures=len(drawn))


def measure_timing(data: Data, request: Request) -> None:
    """Time an epoch of each system of a request, in turns, and keep the medians beside the runs."""
    from jobs.reproduce.timing import time_epochs

    seconds = time_epochs(_manifest(data), request)
    for name, value in sorted(seconds.items(), key=lambda item: item[1]):
        print(f"{name:<34} {value:8.2f} s an epoch")
    storage.write_json(_timing_file(data.folder), seconds)


def _timing_file(workspace: str) -> str:
    return storage.join(storage.absolute(workspace), "reproduce-timing.json")


def _timings(workspaces: Sequence[str]) -> dict[str, dict[str, float]]:
    """Data set's name -> system -> seconds an epoch, where they were measured."""
    files = {Path(storage.absolute(workspace)).name: _timing_file(workspace) for workspace in workspaces}
    return {name: storage.read_json(file) for name, file in files.items() if storage.exists(file)}


def _request(data: Data, options: dict[str, Any]) -> Request:
    if options["table"] not in {None, *TABLES}:
        raise InputError(f"--table {options['table']}: the paper's tables of public data are 3, 5, 6, 7 and 8")
    return Request(
        preset=preset(data.setting),
        models=options["models"],
        table=options["table"],
        epochs=options["epochs"],
        seeds=_seeds(options["seeds"]),
        layers=options["layers"],
        conditions=options["conditions"],
        validation=options["validation"],
        scaling=options["scaling"],
        protocol=options["protocol"],
        on_gpu=options["device"].startswith("cuda"),
    )


def _seeds(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in (text or "").split(",") if part.strip())
    except ValueError:
        raise InputError(f"--seeds {text}: write numbers with commas between, for example 42,43,44") from None


def _asks_for_runs(options: dict[str, Any]) -> bool:
    return any(options[name] for name in ("models", "table", "scaling", "conditions", "seeds", "epochs"))


def _device(name: str) -> str:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: torch sees no GPU here; `fuxi doctor` says why")
    return str(device)


def _command() -> str:
    """What was typed, without where it was found and what says only where files are."""
    kept, words = [], iter(sys.argv[1:])
    for word in words:
        if word in {"--workspace", "--workers", "--write", "--also"}:
            next(words, None)
        elif word != "--dry-run":
            kept.append(word)
    return shlex.join(["fuxi", *kept])
