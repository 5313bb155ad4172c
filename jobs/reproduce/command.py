"""`fuxi reproduce`: the paper's systems and ablations on one data set, trained, measured, and set beside the paper."""

import datetime as dt
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fuxi_beta.evaluation.metrics import SERVED, metric_title
from fuxi_beta.presets import preset
from jobs.reproduce import runs
from jobs.reproduce.ceiling import synthetic_logs
from jobs.reproduce.groups import group_by_setting, named
from jobs.reproduce.paper import DATASETS, PAPER_METRICS, TABLES, Counts, PaperDataset, title_of
from jobs.reproduce.runs import Dataset, ExperimentRun
from jobs.reproduce.series import run_missing
from jobs.reproduce.settings import different_settings
from jobs.reproduce.single import RunTask
from jobs.reproduce.specs import RunSelection, RunSpec, specs
from jobs.reproduce.systems import CEILINGS, UNTRAINED
from jobs.runtime.console import log
from pipelines import storage
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest, read_manifest
from pipelines.schema import parse_ds
from pipelines.workspace import open_workspace

KNOWN: dict[str, PaperDataset] = {"ml-1m": "ML-1M", "ml-20m": "ML-20M"}
SETTINGS = (*KNOWN.values(), "daily", "demo")
FOLDER, TIMING_FILE = "reproduce", "reproduce-timing.json"
_SELECTING = (
    *("models", "table", "epochs", "layers", "conditions", "validation", "scaling", "protocol"),
    *("days", "overrides", "label", "served"),
)


@dataclass(frozen=True)
class DatasetSource:
    """The data set as the command line gives it: its workspace, day and title."""

    dataset: str  # ml-1m, ml-20m, or the workspace's folder
    workspace: str | None = None  # of ml-1m and ml-20m, by default ./ml-1m and ./ml-20m
    ds: dt.date | None = None  # default: the newest shards
    title: str | None = None
    preset: str | None = None  # of the model and its training; a published one sets the paper's column beside

    @property
    def folder(self) -> str:
        """The workspace's folder."""
        return self.workspace or (f"./{self.dataset}" if self.dataset in KNOWN else self.dataset)

    @property
    def setting(self) -> str:
        """The preset's name. Raises InputError if there is no such preset."""
        name = self.preset or KNOWN.get(self.dataset, "ML-1M")
        if name not in SETTINGS:
            raise InputError(f"--preset {name}: use one of {', '.join(SETTINGS)}")
        return name

    @property
    def paper(self) -> PaperDataset | Literal[""]:
        """The paper's data set whose numbers stand beside ours: the one named, or the one of the preset."""
        named = self.preset or KNOWN.get(self.dataset)
        return named if named in DATASETS else ""


def reproduce(
    source: DatasetSource, selection: RunSelection, *, workers: int, device: str, command: str
) -> tuple[list[ExperimentRun], dict[str, str]]:
    """Perform the selected runs that are missing. Returns the finished ones of the selection, and failures by run."""
    manifest = manifest_of(source)
    folder = runs_folder(source)
    Path(folder).mkdir(parents=True, exist_ok=True)
    dataset = describe(source, manifest)
    selected = selected_specs(selection, manifest)
    tasks = [RunTask(spec, selection.preset, dataset, manifest, folder, command, device) for spec in selected]
    _refuse_other_settings(tasks, folder)
    failed = run_missing(tasks, workers=workers)
    names = {spec.name for spec in selected}
    return [run for run in runs.read(folder) if run.name in names], failed


def selected_specs(selection: RunSelection, manifest: Manifest) -> list[RunSpec]:
    """The selected runs; under next_day with the ceiling of the logs where they are synthetic."""
    selected = specs(selection)
    if selection.protocol == "next_day" and synthetic_logs(manifest):
        ceiling = RunSpec(CEILINGS[0], 0, 0, protocol="next_day", days=selection.days)
        selected = [*(spec for spec in selected if spec != ceiling), ceiling]
    return selected


def _refuse_other_settings(tasks: Sequence[RunTask], folder: str) -> None:
    """InputError if a run of the name is finished that was trained otherwise, or on sequences of another ds."""
    before = {run.name: run for run in runs.read(folder)}
    for task in (task for task in tasks if task.spec.name in before):
        run, ds = before[task.spec.name], str(task.manifest.ds)
        if not run.ds:
            continue  # of an earlier release, which did not store them
        others = [f"ds is {run.ds}, not {ds}"] if run.ds != ds else different_settings(run.settings, task.settings)
        if task.spec.served and f"{SERVED}ndcg_30" not in run.metrics["all"]:
            others.append("without lists as served")
        if others:
            file = Path(folder, f"{run.name}.json")
            remedy = "remove the file" if run.system in UNTRAINED else "name these by --label, or remove the file"
            raise InputError(f"{file} was made otherwise ({others[0]}): {remedy}")


def runs_folder(source: DatasetSource) -> str:
    """The local folder of the data set's run files. Raises InputError if the workspace is on S3."""
    uri = storage.absolute(source.folder)
    if storage.is_s3(uri):
        raise InputError(f"{uri}: `fuxi reproduce` trains in local processes: copy the workspace to a local folder")
    return storage.join(uri, FOLDER)


def describe(source: DatasetSource, manifest: Manifest) -> Dataset:
    """The data set as run files describe it. It is titled MovieLens-1M or -20M only if its counts are theirs."""
    counts = Counts(manifest.rows, manifest.vocabulary_size, manifest.events)
    name = Path(storage.absolute(source.folder)).name
    title = source.title or title_of(counts) or name
    return Dataset(name, title, source.paper, counts.users, counts.items, counts.interactions)


def manifest_of(source: DatasetSource) -> Manifest:
    """The data set's sequences. Raises InputError if there are none."""
    folder, name = source.folder, source.dataset
    try:
        workspace = open_workspace(folder)
    except InputError:
        if name not in KNOWN:
            raise
        how = f"download {name} from grouplens.org, then `fuxi import movielens {name}/ --workspace {folder}`"
        raise InputError(f"{folder} is no workspace: {how}") from None
    days = workspace.days_with_sequences()
    if not days or (source.ds and source.ds not in days):
        newest = ", ".join(map(str, days[-3:])) or "none"
        wanted = f"ds {source.ds}" if source.ds else "any ds"
        raise InputError(f"{folder} has no sequences of {wanted} (there are: {newest}): import or sessionize them")
    return read_manifest(workspace.sequences(source.ds or days[-1]))


def main(options: dict[str, Any]) -> None:
    """The command. options: of `jobs.cli`. Prints a table of the selected runs; InputError if one failed."""
    ds = parse_ds(options["ds"]) if options["ds"] else None
    source = DatasetSource(options["dataset"], options["workspace"], ds, options["title"], options["preset"])
    selection = _selection(source, options)
    if options["dry_run"]:
        folder, manifest = runs_folder(source), manifest_of(source)
        for spec in selected_specs(selection, manifest):
            print(f"{spec.name:<44} {'finished' if runs.finished(folder, spec.name) else 'to do'}")
        return
    if options["timing"]:
        measure_timing(source, selection)
        return
    failed: dict[str, str] = {}
    selecting = ("models", "table", "scaling", "conditions", "seeds", "epochs")
    if not options["write"] or any(options[name] for name in selecting):
        # Several runs on a thread each use cores better than one run on all.
        workers = options["workers"] or max(1, min(4, len(os.sched_getaffinity(0))))
        device = _device(options["device"])
        finished, failed = reproduce(source, selection, workers=workers, device=device, command=_command())
        if selection.protocol == "next_day":
            show_days(source, finished, options["against"])
        else:
            show(finished)
            show_against(source, finished, options["against"])
    if options["write"]:
        write([source.folder, *options["also"]], options["write"], against=options["against"])
    if failed:
        name, reason = next(iter(failed.items()))
        raise InputError(f"{len(failed)} of the runs failed, {name} for one: {reason}")


def show(finished: Sequence[ExperimentRun]) -> None:
    """Print a table of runs on standard output, the best NDCG@10 first."""
    from rich.console import Console
    from rich.table import Column, Table

    columns = [*PAPER_METRICS, *runs.further_metrics(finished)]
    numbers = [Column(title, justify="right") for title in (*map(metric_title, columns), "epochs", "s/epoch")]
    title = finished[0].dataset.title if finished else "no run is finished"
    table = Table(Column("run", overflow="fold", min_width=22), *numbers, title=title, title_justify="left")
    for run in sorted(finished, key=lambda run: -run.metrics["all"]["ndcg_10"]):
        values = [f"{run.metrics['all'][name]:.4f}" for name in columns]
        epochs = [str(run.epochs), f"{run.epoch_seconds:.1f}"] if run.epoch_losses else ["", ""]
        table.add_row(run.name, *values, *epochs)
    Console(width=None if sys.stdout.isatty() else 120).print(table, highlight=False)


def show_against(source: DatasetSource, finished: Sequence[ExperimentRun], name: str | None) -> None:
    """Print how settings of one protocol differ from the one that is named, which may be any finished one."""
    from rich.console import Console
    from rich.table import Column, Table

    from jobs.reproduce import comparisons
    from jobs.reproduce.groups import ListenerMetrics, named

    if name is None or not finished:
        return
    folder = runs_folder(source)
    kept = group_by_setting([run for run in runs.read(folder) if run.protocol == finished[0].protocol])
    wanted = {run.name for run in (*finished, *named(kept, name).runs)}
    groups = [g for g in kept if any(run.name in wanted for run in g.runs)]
    header, rows = comparisons.against(groups, name, ListenerMetrics(runs.ranks_in([folder])))
    shown = Table(*(Column(title, overflow="fold") for title in header), title="paired", title_justify="left")
    for cells in rows:
        shown.add_row(*cells, style="bold" if "yes" in cells else None)
    Console(width=None if sys.stdout.isatty() else 160).print(shown, highlight=False)


def show_days(source: DatasetSource, finished: Sequence[ExperimentRun], against: str | None) -> None:
    """Print runs under next_day, the baselines and ceilings of the same days among them, with intervals."""
    from rich.console import Console
    from rich.table import Column, Table

    from jobs.reproduce.days import CaseMetrics, DayRuns, on_the_same_days
    from jobs.reproduce.groups import names_of

    folder, wanted = runs_folder(source), {run.name for run in finished}
    measured = {(run.ds, run.days) for run in finished}
    kept = [run for run in runs.read(folder) if run.protocol == "next_day" and (run.ds, run.days) in measured]
    wanted |= {run.name for run in kept if run.system in UNTRAINED}
    wanted |= {run.name for g in group_by_setting(kept) if against in names_of(g) for run in g.runs}
    groups = group_by_setting([run for run in kept if run.name in wanted])
    console = Console(width=None if sys.stdout.isatty() else 160)
    for (ds, days), of_days in on_the_same_days(groups).items():
        measured = DayRuns(of_days, CaseMetrics(runs.cases_in([folder])), against)
        first = of_days[0].first
        for prefix, how in (("", ""), (SERVED, ", as served")):
            header, rows = measured.table(prefix)
            if not rows:
                continue
            columns = [Column(header[0], overflow="fold"), *(Column(name, justify="right") for name in header[1:])]
            title = f"{first.dataset.title}: {first.listeners['all']:,} cases on {days} days to {ds}{how}"
            shown = Table(*columns, title=title, title_justify="left")
            for cells in rows:
                told_apart = "bold" if any("**" in cell for cell in cells) else None
                shown.add_row(*(cell.replace("**", "") for cell in cells), style=told_apart)
            console.print(shown, highlight=False)


def write(workspaces: Sequence[str], file: str, *, against: str | None = None) -> None:
    """Render every finished run of some workspaces as Markdown, with figures in `figures/` beside the file.

    against: as of `tables.render`.
    """
    from jobs.reproduce import figures, tables

    roots = [storage.absolute(workspace) for workspace in workspaces]
    folders = [storage.join(root, FOLDER) for root in roots]
    finished = [run for folder in folders for run in runs.read(folder)]
    if not finished:
        raise InputError(f"{', '.join(folders)}: no run is finished, so there is nothing to write")
    if against:
        named(group_by_setting(finished), against)
    files = {storage.name(root): storage.join(root, TIMING_FILE) for root in roots}
    timings = {name: storage.read_json(uri) for name, uri in files.items() if storage.exists(uri)}
    drawn = figures.draw(finished, Path(file).parent / "figures")
    cases_of = runs.cases_in(folders)
    ranks_of = runs.ranks_in(folders)
    text = tables.render(finished, timings, ranks_of, cases_of=cases_of, figures=drawn, against=against)
    storage.write_bytes(storage.absolute(file), text.encode())
    log("written", file=file, runs=len(finished), figures=len(drawn))


def measure_timing(source: DatasetSource, selection: RunSelection) -> None:
    """Time an epoch of each selected system, in turns. Print the medians and store them beside the runs."""
    from jobs.reproduce.timing import time_epochs

    seconds = time_epochs(manifest_of(source), selection)
    for name, value in sorted(seconds.items(), key=lambda item: item[1]):
        print(f"{name:<34} {value:8.2f} s an epoch")
    storage.write_json(storage.join(storage.absolute(source.folder), TIMING_FILE), seconds)


def _selection(source: DatasetSource, options: dict[str, Any]) -> RunSelection:
    if options["table"] not in {None, *TABLES}:
        raise InputError(f"--table {options['table']}: the paper's tables of public data are 3, 5, 6, 7 and 8")
    return RunSelection(
        preset=preset(source.setting),
        seeds=_seeds(options["seeds"]),
        on_gpu=options["device"].startswith("cuda"),
        **{name: options[name] for name in _SELECTING},
    )


def _seeds(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in (text or "").split(",") if number.strip())
    except ValueError:
        raise InputError(f"--seeds {text}: write numbers with commas between, for example 42,43,44") from None


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
    """The command as typed, without the options that only say where files are or how many workers there are."""
    kept, words = [], iter(sys.argv[1:])
    for word in words:
        if word in {"--workspace", "--workers", "--write", "--also", "--against"}:
            next(words, None)
        elif word != "--dry-run":
            kept.append(word)
    return shlex.join(["fuxi", *kept])
