"""`fuxi demo`: eight weeks of synthetic logs, two serving days, and a screen with their results."""

import datetime as dt
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from jobs.config import Config, load_config
from jobs.daily import DayResult, run_day
from jobs.day import STAGES, open_day
from jobs.runtime.resources import Usage
from jobs.serving.baselines import LABELS
from jobs.tables.metrics import CHALLENGER, CHAMPION, REFERENCE
from pipelines import delta_tables, storage
from pipelines.errors import InputError
from pipelines.schema import DS, SOURCE, SOURCE_POPULAR, USER_ID

if TYPE_CHECKING:
    from rich.table import Table

FIRST_LANDING_DAY = dt.date(2026, 1, 5)
HISTORY_DAYS = 56
SERVING_DAYS = tuple(FIRST_LANDING_DAY + dt.timedelta(HISTORY_DAYS + n) for n in range(2))
CATALOGUE = {"songs": 2000, "artists": 240, "new_songs_per_day": 6}
"""Small enough to be learned in a minute of training."""
METRIC_COLUMNS = {"ndcg_30": "NDCG@30", "hr_30": "HR@30", "recall_30": "Recall@30", "coverage_30": "Coverage"}
NAMES = {
    CHALLENGER: "FuXi-beta, new",
    CHAMPION: "FuXi-beta, before",
    REFERENCE: "FuXi-beta, last full",
    **LABELS,
}


def demo_config(workspace: str, overrides: Sequence[str] = ()) -> Config:
    """The demo's configuration: its YAML file, the logs inside the workspace, then the caller's overrides."""
    root = storage.absolute(workspace)
    if storage.is_s3(root):
        raise InputError(f"--workspace {workspace}: the demo runs on one machine, give a local folder")
    where = (f"workspace={root}", f"logs.path={root}/logs/plays", f"logs.catalogue={root}/logs/catalogue")
    return load_config(str(files("jobs") / "templates" / "demo.yaml"), overrides=(*where, *overrides))


def run_demo(workspace: str, *, listeners: int, overrides: Sequence[str] = ()) -> None:
    """Generate the logs, run both days with one Spark session and one Ray instance, print their results."""
    from jobs.commands.synth import synth
    from pipelines.synthetic import SyntheticConfig

    config = demo_config(workspace, overrides)
    started = time.monotonic()
    with Usage() as usage:
        logs = SyntheticConfig(listeners=listeners, **CATALOGUE, first_day=FIRST_LANDING_DAY, days=HISTORY_DAYS + 1)
        synth(logs, f"{config.workspace}/logs")
        synth_seconds = time.monotonic() - started
        results = [run_day(open_day(config, ds)) for ds in SERVING_DAYS]
    print_screen(config, results, synth_seconds, usage, root=workspace.rstrip("/"))


def print_screen(config: Config, results: list[DayResult], synth_seconds: float, usage: Usage, *, root: str) -> None:
    """One listener's list, the metrics of both days, the seconds of every stage, and where things are.

    root: the workspace as the user called it.
    """
    from rich.console import Console

    from jobs.commands import show

    console, last = Console(), results[-1]
    console.print()
    show.render(show.show(config, pick_listener(config, last.ds), last.ds))
    console.print(metrics_table(results))
    console.print(seconds_table(results, synth_seconds, usage))
    report = last.stages["report"]["uri"].replace(config.workspace, root, 1)
    model = last.stages["promote"].get("chosen")
    console.print(
        f"Lists    {root}/recommendations (Delta, partition ds; `fuxi show USER --ds {last.ds} --workspace {root}`)\n"
        f"Model    {config.mlflow.model_name} version {model}, alias champion, in {root}/mlflow.db\n"
        f"Report   {report}",
        highlight=False,
        soft_wrap=True,
    )
    for measured in (day for result in results for day in result.stages.get("hits", {}).get("days", ())):
        console.print(_hits_line(measured), highlight=False, soft_wrap=True)
    for result in results:
        for stage, message in result.failures.items():
            console.print(f"[red]{result.ds} {stage} failed:[/red] {message}")


def _hits_line(measured: dict[str, float]) -> str:
    """What listeners did with the lists of a day, from the result of the stage hits."""
    hit_rate = next((value for name, value in measured.items() if name.startswith("hr_")), 0.0)
    return (
        f"Hits     {measured['ds']}: {hit_rate:.1%} of {measured['played']:,} listeners who played then "
        f"played a song of their list; {measured['skips']:,} listed songs were only skipped"
    )


def pick_listener(config: Config, ds: dt.date) -> str:
    """The listener in the middle of those with a list of their own, not of popular songs, by user id."""
    lists = f"{config.workspace}/recommendations"
    own = (pc.field(DS) == pa.scalar(ds, pa.date32())) & (pc.field(SOURCE) != SOURCE_POPULAR)
    rows = delta_tables.read(lists, own & pc.field(USER_ID).is_valid(), [USER_ID])
    if not rows:
        raise InputError(f"{lists} has no list but popular songs for {ds}: see the failures above")
    return str(sorted(rows[USER_ID].to_pylist())[rows.num_rows // 2])


def metrics_table(results: list[DayResult]) -> "Table":
    """Metrics of every recommender over all listeners, each day a block of rows."""
    from rich.table import Column, Table

    columns = [Column(label, justify="right", no_wrap=True) for label in METRIC_COLUMNS.values()]
    title = "New songs found, on the last day known of each (protocol next_day)"
    table = Table(Column("Day", no_wrap=True), Column(no_wrap=True), *columns, title=title, title_justify="left")
    for result in results:
        measured = result.stages.get("evaluate", {}).get("metrics", {})
        for name in (name for name in NAMES if name in measured):
            values = measured[name]["all"]
            cells = (f"{values[key]:.3f}" for key in METRIC_COLUMNS)
            first = name == CHALLENGER
            table.add_row(str(result.ds) if first else "", NAMES[name], *cells, style="bold" if first else None)
        table.add_section()
    return table


def seconds_table(results: list[DayResult], synth_seconds: float, usage: Usage) -> "Table":
    """Seconds of every stage, a column a day."""
    from rich.table import Column, Table

    days = [Column(str(result.ds), justify="right") for result in results]
    caption = f"{usage.seconds:.0f} s in all, {usage.gigabytes:.1f} GB at the peak"
    table = Table("Seconds", *days, caption=caption, caption_justify="left")
    table.add_row("synth", f"{synth_seconds:.1f}")
    for name in STAGES:
        table.add_row(name, *(f"{result.seconds.get(name, 0.0):.1f}" for result in results))
    return table
