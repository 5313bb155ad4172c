"""`fuxi demo`: eight weeks of synthetic logs, two serving days, and a screen with their results."""

import datetime as dt
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from jobs.config import Config, as_yaml, load_config
from jobs.daily import OPTIONAL_STAGES, DayResult, run_day
from jobs.day import STAGES, open_day
from jobs.runtime import attempt
from jobs.runtime.resources import Usage
from jobs.runtime.screen import Screen, screen
from jobs.serving.baselines import LABELS
from jobs.tables.metrics import CHALLENGER, CHAMPION, REFERENCE
from pipelines import delta_tables, storage
from pipelines.errors import InputError
from pipelines.redact import redact
from pipelines.schema import DS, SOURCE, SOURCE_POPULAR, USER_ID
from pipelines.workspace import open_workspace

FIRST_LANDING_DAY = dt.date(2026, 1, 5)
HISTORY_DAYS = 56
SERVING_DAYS = tuple(FIRST_LANDING_DAY + dt.timedelta(HISTORY_DAYS + n) for n in range(2))
DAYS_AHEAD = 7
"""Days after the newest one that can be served: the logs that they are made from are there."""
CONFIG_FILE = "daily.yaml"
"""In the workspace: what the demo was run with, for the days after it."""
_HEAD = "# Written by `fuxi demo`, of which the next days are run with it. What is not here has its default.\n"
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
    """Generate the logs, run both days with one Spark session and one Ray instance, print their results.

    The configuration is left in the workspace, and logs for a week after its newest day.
    """
    config = demo_config(workspace, overrides)
    started = time.monotonic()
    with Usage() as usage:
        _write_logs(config, listeners, until=SERVING_DAYS[-1])
        synth_seconds = time.monotonic() - started
        results = [_run_day(config, ds) for ds in SERVING_DAYS]
    newest = open_workspace(config.workspace).days("runs")[-1]
    _write_logs(config, listeners, until=newest + dt.timedelta(DAYS_AHEAD))
    file = storage.join(config.workspace, CONFIG_FILE)
    storage.write_bytes(file, redact(_HEAD + as_yaml(config)).encode())
    root = workspace.rstrip("/")
    print_screen(config, results, synth_seconds, usage, root=root)
    command = [_program(), "daily", "--ds", str(newest + dt.timedelta(1)), "--config", f"{root}/{CONFIG_FILE}"]
    screen().say(f"Next day\n{shlex.join(command)}", style="bold")


def _run_day(config: Config, ds: dt.date) -> DayResult:
    day = open_day(config, ds)
    attempt.follow(day, OPTIONAL_STAGES)
    return run_day(day)


def _write_logs(config: Config, listeners: int, *, until: dt.date) -> None:
    """The logs that land before a day, as far as they are not there."""
    from jobs.commands.synth import synth
    from pipelines.synthetic import SyntheticConfig

    days = (until - FIRST_LANDING_DAY).days
    logs = SyntheticConfig(listeners=listeners, **CATALOGUE, first_day=FIRST_LANDING_DAY, days=days)
    synth(logs, f"{config.workspace}/logs")


def _program() -> str:
    """How `fuxi` can be called from where the user is."""
    if shutil.which("fuxi"):
        return "fuxi"
    beside = Path(sys.executable).with_name("fuxi")
    if not beside.exists():
        return f"{sys.executable} -m jobs.cli"
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)


def print_screen(config: Config, results: list[DayResult], synth_seconds: float, usage: Usage, *, root: str) -> None:
    """One listener's list, the metrics of both days, the seconds of every stage, and where things are.

    root: the workspace as the user called it.
    """
    from jobs.commands import show

    shown, last = screen(), results[-1]
    shown.say("")
    show.render(show.show(config, pick_listener(config, last.ds), last.ds), shown)
    shown.say("")
    _show_metrics(shown, results)
    shown.say("")
    if any(seconds for result in results for seconds in result.seconds.values()):
        _show_seconds(shown, results, synth_seconds, usage)
        shown.say("")
    report = last.stages["report"]["uri"].replace(config.workspace, root, 1)
    model = last.stages["promote"].get("chosen")
    lines = [
        f"Lists    {root}/recommendations (Delta, partition ds; `fuxi show USER --ds {last.ds} --workspace {root}`)",
        f"Model    {config.mlflow.model_name} version {model}, alias champion, in {root}/mlflow.db",
        f"Report   {report}",
        *(_hits_line(day) for result in results for day in result.stages.get("hits", {}).get("days", ())),
        *(f"{result.ds} {stage} failed: {why}" for result in results for stage, why in result.failures.items()),
    ]
    for line in lines:
        shown.say(line, indent=9)


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


def _show_metrics(shown: Screen, results: list[DayResult]) -> None:
    """Metrics of every recommender over all listeners, each day a block of rows."""
    rows: list[tuple[str, ...]] = []
    for result in results:
        measured = result.stages.get("evaluate", {}).get("metrics", {})
        for name in (name for name in NAMES if name in measured):
            values = measured[name]["all"]
            cells = (f"{values[key]:.3f}" for key in METRIC_COLUMNS)
            rows.append((str(result.ds) if name == CHALLENGER else "", NAMES[name], *cells))
    title = "New songs found, on the last day known of each (protocol next_day)"
    numbers = tuple(METRIC_COLUMNS.values())
    models = [number for number, row in enumerate(rows) if row[1] == NAMES[CHALLENGER]]
    shown.table(("Day", "Recommender", *numbers), rows, right=numbers, bold=models, title=title)


def _show_seconds(shown: Screen, results: list[DayResult], synth_seconds: float, usage: Usage) -> None:
    """Seconds of every stage, a column a day."""
    days = [str(result.ds) for result in results]
    rows = [("synth", f"{synth_seconds:.1f}", *[""] * (len(days) - 1))]
    rows += [(name, *(f"{result.seconds.get(name, 0.0):.1f}" for result in results)) for name in STAGES]
    shown.table(("Seconds", *days), rows, right=days)
    shown.say(f"{usage.seconds:.0f} s in all, {usage.gigabytes:.1f} GB at the peak")
