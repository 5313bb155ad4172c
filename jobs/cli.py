"""The `fuxi` command: one verb a stage. Engines are imported by the verb that needs them."""

import datetime as dt
import functools
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click

from jobs.runtime import log_lines
from pipelines.errors import InputError

if TYPE_CHECKING:
    from jobs.config import Config
    from jobs.day import Day
    from jobs.runtime.supervisor import Ended

EXIT_BROKE_OFF = 1
EXIT_REFUSED = 2
EXIT_DEGRADED = 3
PLAN_INDENT = 21
LOG_FORMAT = "--log-format"

Command = Callable[..., None]
Decorator = Callable[[Command], Command]


def _config_options(command: Command) -> Command:
    """--config, --workspace and --set; the command gets `config`."""

    @click.option("--config", "config_file", metavar="FILE", help="YAML file; see `fuxi config` for every key.")
    @click.option("--workspace", metavar="URI", help="Local folder or s3://bucket/prefix. [default: ./workspace]")
    @click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="For example train.epochs=3.")
    @functools.wraps(command)
    def with_config(config_file: str | None, workspace: str | None, overrides: tuple[str, ...], **rest: object) -> None:
        from jobs.runtime import attempt

        log_lines.about(str(rest.get("ds")))
        config = _configuration(config_file, workspace, overrides)
        log_lines.choose(config.log_format)
        attempt.configure(config)
        command(config=config, **rest)

    return with_config


def _configuration(config_file: str | None, workspace: str | None, overrides: tuple[str, ...]) -> "Config":
    """Flags win, the last one given most of all; --workspace is short for --set workspace=..."""
    from jobs.config import load_config

    return load_config(config_file, overrides=overrides + ((f"workspace={workspace}",) if workspace else ()))


def _stage_options(command: Command) -> Command:
    """--ds and how to run; the command gets `day` and `dry_run`, and how to print."""

    @click.option(
        "--ds",
        metavar="DATE",
        help="Required. The day the lists are served, YYYY-MM-DD; or today, by the clock of sequences.timezone.",
    )
    @click.option("--dry-run", is_flag=True, help="Say what would run and stop.")
    @click.option("--force", is_flag=True, help="Run even where the output of this run record exists.")
    @click.option("--refresh-inputs", is_flag=True, help="Freeze the inputs anew: makes a new run record.")
    @click.option("--wait", is_flag=True, help="Wait for runs of this day and of days it builds on; else refused.")
    @_config_options
    @functools.wraps(command)
    def with_day(config: "Config", ds: str | None, dry_run: bool, wait: bool, **flags: Any) -> None:
        from jobs.day import open_day
        from jobs.runtime import scratch
        from jobs.runtime.console import waiting

        if steered := {name: value for name in _STEERING if (value := flags.pop(name, None))}:
            _steer(config, steered)
            return
        if ds is None:
            raise click.UsageError("Missing option '--ds'.")
        shown = {name: flags.pop(name) for name in ("as_json",) if name in flags}
        show = waiting if wait else None
        scratch.need()
        serving = _serving_day(config, ds)
        log_lines.about(str(serving))
        day = open_day(config, serving, create=not dry_run, wait=show, **flags)
        log_lines.follow(day)
        command(day=day, dry_run=dry_run, **shown)

    return with_day


def _serving_day(config: "Config", text: str) -> dt.date:
    """The day that --ds names. `today` is for schedulers whose clock is in another time zone than the service."""
    if text == "today":
        return dt.datetime.now(ZoneInfo(config.sequences.timezone)).date()
    return _date(text)


def _date(text: str) -> dt.date:
    """YYYY-MM-DD as a date. Imports Arrow only now: that starts threads, and the supervisor forks before it."""
    from pipelines.schema import parse_ds

    return parse_ds(text)


_accept_quality = click.option(
    "--accept-quality", is_flag=True, help="Take the day's input in spite of bounds that it breaks; it is noted."
)


_STEERING = ("pin", "unpin", "rollback")


def _steering(command: Command) -> Command:
    """What an operator decides in place of the gates; no day is run then."""
    command = click.option("--unpin", is_flag=True, help="Let the gates decide again.")(command)
    pin = click.option(
        "--pin", metavar="VERSION", help="Let this version serve every day that is promoted from now on."
    )
    rollback = click.option("--rollback", is_flag=True, help="Take the champion out of service for the one before it.")
    return rollback(pin(command))


def _steer(config: "Config", asked: dict[str, Any]) -> None:
    from jobs.commands import steer

    if len(asked) > 1:
        raise click.UsageError(f"give one of {', '.join(f'--{name}' for name in asked)}")
    click.echo(steer.run(config, **asked))


class _Command(click.Command):
    """A command with --log-format, which `main` has read before."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        help_text = "Log lines. [default: auto: text on a terminal, JSON elsewhere]"
        kind = click.Choice(log_lines.FORMATS)
        self.params.append(click.Option([LOG_FORMAT], type=kind, expose_value=False, help=help_text))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="fuxi-daily")
def cli() -> None:
    """A daily music recommender: play logs in, 30 songs for every listener out.

    \b
    On a laptop:          fuxi demo
    Own logs, at first:   fuxi inspect s3://my-logs/plays --write daily.yaml
    Public data sets:     fuxi import --help
    Every day:            fuxi daily --ds 2026-03-02 --config daily.yaml
    One stage at a time:  sessionize, hits, train, evaluate, promote, recommend, report (all take --ds)
    How the days stand:   fuxi status
    Look at a list:       fuxi show USER --ds 2026-03-02
    Forget a listener:    fuxi forget USER
    Several days:         fuxi backfill --from 2026-03-01 --to 2026-03-07
    Compare two days:     fuxi diff 2026-03-03 2026-03-04
    Tidy the tables:      fuxi maintain
    Delete what is old:   fuxi retain --dry-run
    Look for damage:      fuxi verify
    The paper's tables:   fuxi reproduce ml-1m

    Running anything again is safe: finished work of a ds is skipped, unfinished work resumes.
    """


cli.command_class = _Command


@cli.command()
@_stage_options
@_accept_quality
def daily(day: "Day", dry_run: bool) -> None:
    """Run all stages of one serving day, skipping what is done.

    Exit code 0: published. 1: broke off, run it again. 2: refused, or a store, disk or server is out of reach; nothing
    is published. 3: published, but by the champion, without a model or from older sequences. 129, 130 and 143: stopped
    by a signal. docs/operations.md says what to do about each.
    """
    from jobs.daily import OPTIONAL_STAGES, other_settings, plan, run_day
    from jobs.runtime import attempt
    from jobs.runtime.screen import screen
    from jobs.serving.baselines import POPULARITY
    from jobs.serving.serving_baseline import lists_of
    from jobs.status import backfill, out_of_date_before

    if dry_run:
        shown = screen()
        for stage in plan(day):
            shown.say(str(stage), indent=PLAN_INDENT)
        for note in [*backfill(day), *other_settings(day), *out_of_date_before(day)]:
            log_lines.say(note)
        return
    attempt.follow(day, OPTIONAL_STAGES)
    result = run_day(day)
    for note in result.notes:
        log_lines.say(note)
    for stage, message in result.failures.items():
        log_lines.say(f"{stage} failed, published without it: {message}", stage=stage)
    if result.without_model:
        lists = lists_of(result.stages["promote"].get("baseline") or POPULARITY)
        log_lines.say(f"published {lists} for everyone: {result.without_model}")
    if result.baseline_note:
        log_lines.say(result.baseline_note)
    page = result.stages["report"]["uri"]
    if result.degraded:
        end = {"kind": "degraded", "exit_code": EXIT_DEGRADED, "report": page}
        log_lines.result("", "published, but not as it should be", "warning", **end)
        sys.exit(EXIT_DEGRADED)
    log_lines.result(page, "published", exit_code=0, report=page)


def _stage_command(name: str, help_text: str, option: Decorator = lambda command: command) -> None:
    @cli.command(name, help=help_text)
    @_stage_options
    @click.option("--json", "as_json", is_flag=True, help="Print all that the stage returned, as one JSON object.")
    @option
    def run_one(day: "Day", dry_run: bool, as_json: bool) -> None:
        from jobs.commands import stage_screen
        from jobs.daily import other_settings, plan, stage_function, wait_for_earlier
        from jobs.day import run_stage
        from jobs.runtime import attempt
        from jobs.runtime.screen import screen

        if dry_run:
            screen().say(str(next(stage for stage in plan(day) if stage.name == name)), indent=PLAN_INDENT)
            return
        attempt.follow(day)
        wait_for_earlier(day)
        result = run_stage(day, name, stage_function(name))
        for note in other_settings(day):
            log_lines.say(note)
        values = {**result, "stage": name}
        if as_json:
            log_lines.show(json.dumps(result, indent=2, default=str))
        elif log_lines.are_json():
            log_lines.result("", f"result of {name}", **values)
        else:
            stage_screen.render(day, name, result)


_stage_command(
    "sessionize",
    "Logs to sequence shards: validate, quarantine, deduplicate, merge into the last (Spark).",
    _accept_quality,
)
_stage_command("hits", "Measure the lists of the day before by what listeners played of them.")
_stage_command("train", "Fit FuXi-beta on the shards and register it as challenger (Ray Train, TorchRec, MLflow).")
_stage_command("evaluate", "Measure challenger, champion and baselines on the same listeners.")
_stage_command(
    "promote",
    "Apply the gates and write the model version that serves this ds into the run record; or, without --ds, decide in "
    "their place: --rollback, --pin, --unpin. Published lists stay as they are.",
    _steering,
)
_stage_command(
    "recommend", "Score every active listener, audit the lists, publish them in one transaction (Ray, Delta)."
)
_stage_command("report", "Write the day's self-contained HTML page.")


@cli.command()
@click.argument("workspace", default="./workspace", metavar="[WORKSPACE]")
@click.option("--days", default=14, show_default=True, type=click.IntRange(0), help="The newest so many; 0: all.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list, a day an object: with the seconds of each stage.")
@click.option("--prometheus", "file", metavar="FILE", help="Write the metrics of the newest day to this file instead.")
def status(workspace: str, days: int, as_json: bool, file: str | None) -> None:
    """Say how the days of a workspace stand, and what they read, published and took. Writes nothing there.

    Below the table: stages that are stale or not run, days that are out of date, and who works on a day now.
    """
    from jobs.commands import status as status_job
    from jobs.config import load_config

    config = load_config(overrides=[f"workspace={workspace}"], environment={})
    if file:
        from jobs.monitoring import prometheus

        prometheus.export_status(config, file)
        return
    found = status_job.run(config, days=days)
    if as_json:
        click.echo(status_job.as_json(found))
    else:
        status_job.render(found)


@cli.command()
@click.option("--from", "first", required=True, metavar="DATE", help="The oldest day, YYYY-MM-DD.")
@click.option("--to", "last", required=True, metavar="DATE", help="The newest day, YYYY-MM-DD; or today.")
@click.option("--dry-run", is_flag=True, help="Say what would run and stop.")
@click.option("--keep-going", is_flag=True, help="Build the days after a refused one, too, without its plays.")
@click.option("--refresh-inputs", is_flag=True, help="Freeze the inputs of every day anew: makes all of them again.")
@click.option("--wait", is_flag=True, help="Wait for runs of the days and of days they build on; else refused.")
@_config_options
@click.pass_context
def backfill(
    context: click.Context, config: "Config", first: str, last: str, dry_run: bool, keep_going: bool, **flags: bool
) -> None:
    """Run `fuxi daily` for every day of a span, oldest first, skipping what is done.

    Run again, it goes on where it stopped. Exit code 0: all are published. 3: some without a model or a stage. 2: a day
    was refused; those before it are published. 1: a day broke off.
    """
    from jobs.commands import backfill as backfill_job
    from jobs.day import open_day

    days = backfill_job.span(_date(first), _serving_day(config, last))
    if dry_run:
        opened = functools.partial(open_day, config, create=False, refresh_inputs=flags["refresh_inputs"])
        backfill_job.render_plan(list(backfill_job.plans(days, opened)))
        return
    given = [f"--{name.replace('_', '-')}" for name, on in flags.items() if on]
    run_day = backfill_job.daily([*given, *_as_typed(context)])
    done: list[backfill_job.BackfilledDay] = []
    try:
        for day in backfill_job.run(days, functools.partial(open_day, config), run_day, keep_going=keep_going):
            done.append(day)
    finally:
        backfill_job.render(done, len(days))
    sys.exit(backfill_job.exit_code(done))


def _as_typed(context: click.Context) -> list[str]:
    """The options of `_config_options` of a command, to be handed on to another one."""
    file, workspace = context.params["config_file"], context.params["workspace"]
    named = (("--config", file), ("--workspace", workspace), *(("--set", text) for text in context.params["overrides"]))
    return [part for name, value in named if value for part in (name, value)]


@cli.command()
@click.argument("first", metavar="DAY")
@click.argument("second", metavar="DAY")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@_config_options
def diff(first: str, second: str, as_json: bool, config: "Config") -> None:
    """Say how the lists of two days differ, and what else does: plays, model, settings. Writes nothing.

    \b
    fuxi diff 2026-03-03 2026-03-04 --workspace ./workspace
    """
    from jobs.commands import diff as diff_job

    found = diff_job.run(config, _date(first), _date(second))
    if as_json:
        click.echo(found.as_json())
    else:
        diff_job.render(found)


@cli.command()
@click.option("--dry-run", is_flag=True, help="Say what would go, change nothing.")
@_config_options
def retain(dry_run: bool, config: "Config") -> None:
    """Delete what is older than the settings `retain` keep: scratch, shards, lists, models, runs (docs/workspace.md).

    Whatever a kept day names stays. `fuxi daily` does it where `retain.in_daily` is set.
    """
    from jobs.commands import retain as retain_job

    retain_job.render(retain_job.run(config, dry_run=dry_run), dry_run=dry_run)


@cli.command()
@click.argument("path")
@click.option("--rows", default=10_000, show_default=True, type=click.IntRange(1), help="Rows of each file.")
@click.option(
    "--files", default=20, show_default=True, type=click.IntRange(1), help="Files, of as many days as may be."
)
@click.option("--write", "target", metavar="FILE", help="Write the configuration, if it reads the sample.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--config", "config_file", metavar="FILE", help="YAML file whose settings are kept and not guessed.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="The same for single settings.")
def inspect(
    path: str,
    rows: int,
    files: int,
    target: str | None,
    force: bool,
    as_json: bool,
    config_file: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Look at play logs before a first run: columns, days, what would be rejected, and the configuration that fits.

    It reads a sample of a file, a folder or a Delta table at PATH, without Spark. Exit code 0: the configuration that
    it prints reads the sample. 2: it does not, and the line on standard error says column, value and setting.
    """
    from jobs.commands import inspect as inspect_job
    from jobs.commands import inspect_screen

    inspection = inspect_job.run(path, inspect_job.given_settings(config_file, overrides), rows=rows, files=files)
    if as_json:
        click.echo(inspect_screen.as_json(inspection))
    else:
        inspect_screen.render(inspection)
    if target:
        inspect_job.write(inspection, target, force=force)
    elif inspection.problem:
        raise InputError(inspection.problem)


@cli.command()
@click.argument("user")
@click.option("--ds", required=True, metavar="DATE", help="The day of the list, YYYY-MM-DD.")
@click.option("--explain", is_flag=True, help="Make the list again and say which songs the rules kept out of it.")
@_config_options
def show(user: str, ds: str, explain: bool, config: "Config") -> None:
    """Print one listener's recent plays and list, with titles and artists."""
    from jobs.commands import show as show_job

    show_job.render(show_job.show(config, user, _date(ds)))
    if explain:
        show_job.render_explanation(show_job.explain(config, user, _date(ds)))


@cli.command()
@click.argument("users", nargs=-1, metavar="[USER]...")
@click.option("--file", metavar="FILE", help="User ids, one a line; up to millions.")
@click.option("--dry-run", is_flag=True, help="Say what holds them, change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask; needed where there is no terminal.")
@_config_options
def forget(users: tuple[str, ...], file: str | None, dry_run: bool, yes: bool, config: "Config") -> None:
    """Remove listeners from everything the workspace keeps, and from every later day (docs/forget.md).

    There is no way back. The play logs are the service's and stay as they are; later days skip the listeners' rows.
    """
    from jobs.commands import forget as forget_job
    from pipelines.workspace import open_workspace

    workspace = open_workspace(config.workspace)
    ids = forget_job.read_ids(workspace, users, file)
    if not (yes or dry_run):
        if not sys.stdin.isatty():
            raise InputError("there is no terminal to ask on: give --yes, or --dry-run to see what holds them")
        click.confirm(f"Remove {len(ids):,} listener{'s'[: len(ids) > 1]} from {workspace.uri}, for ever?", abort=True)
    forget_job.render(forget_job.forget(config, ids, dry_run=dry_run))


@cli.command()
@click.option("--dry-run", is_flag=True, help="Say what would go, change nothing.")
@_config_options
def maintain(dry_run: bool, config: "Config") -> None:
    """Compact the Delta tables, and delete files of versions older than `maintain.retention_hours` (docs/maintain.md).

    `fuxi daily` does it every `maintain.every_days` days.
    """
    from jobs.commands import maintain as maintain_job

    maintain_job.render(maintain_job.run(config, dry_run=dry_run), dry_run=dry_run)


@cli.command()
@click.argument("workspace", default="./workspace", metavar="[WORKSPACE]")
@click.option("--ds", metavar="DATE", help="Only this day, and the shards of earlier days that it reads.")
def verify(workspace: str, ds: str | None) -> None:
    """Compare every file of a workspace with its digest; says what is damaged and what rebuilds it.

    Exit code 0: all are as they were written. 2: something is damaged. Writes nothing.
    """
    from jobs.commands import verify as verify_job

    verified = verify_job.run(workspace, ds=str(_date(ds)) if ds else None)
    verify_job.render(verified)
    for line in verified.damaged:
        log_lines.say(line, "error")
    if verified.damaged:
        sys.exit(EXIT_REFUSED)


@cli.command()
@click.option("--out", default="./logs", show_default=True, metavar="URI", help="Folder the logs are written to.")
@click.option("--listeners", default=3000, show_default=True)
@click.option("--songs", default=5000, show_default=True, help="Released before the first day.")
@click.option("--artists", default=600, show_default=True, help="A multiple of 20, at most as many as songs.")
@click.option("--first-day", default="2026-01-05", show_default=True, metavar="DATE", help="First landing day.")
@click.option(
    "--days",
    type=click.IntRange(1),
    help="Landing days; run again with more to add days. [default: 57, of industrial presets 25]",
)
@click.option("--seed", default=1, show_default=True)
@click.option(
    "--elapsed-time",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="How much elapsed time matters for what is played next; 0: not at all.",
)
@click.option(
    "--preset",
    metavar="NAME",
    help="daily-recommendations (1.02 billion plays) or all-scenarios (1.31 billion): the paper's industrial sizes, "
    "exact over 25 days, three columns, no dirt; or frozen, the setting that nothing is tuned on.",
)
@click.option("--scale", type=float, help="With --preset: this share of its listeners and plays. [default: 1]")
@click.option("--interactions", type=click.IntRange(1), help="With --preset: this many plays in 25 days, instead.")
@click.option("--workers", type=click.IntRange(1), help="With --preset: processes. [default: the cores]")
@click.pass_context
def synth(context: click.Context, first_day: str, **options: Any) -> None:
    """Generate synthetic music logs with a catalogue, of any size, from a seed (docs/synthetic-logs.md).

    \b
    fuxi synth --listeners 3000 --days 57      all columns, dirt, a known ceiling
    fuxi synth --preset daily-recommendations --scale 0.1
                                               a tenth of the paper's plays

    Run again, it continues where it stopped.
    """
    from jobs.commands import stage_screen
    from jobs.commands import synth as synth_job

    typed = click.core.ParameterSource.COMMANDLINE
    written = {name for name in (*options, "first_day") if context.get_parameter_source(name) == typed}
    result = synth_job.main({**options, "first_day": _date(first_day)}, written)
    stage_screen.render_facts("Synthetic logs", result)


@cli.group(name="import")
def import_group() -> None:
    """Turn data sets that you have downloaded into play logs, or MovieLens into shards (docs/datasets.md)."""


def _import_options(command: Command) -> Command:
    """PATH, --out and --max-rejected-share; the command returns the data set."""

    @click.argument("paths", nargs=-1, required=True, metavar="PATH...")
    @click.option(
        "--out", required=True, metavar="FOLDER", help="A folder for this data set alone; run again to go on."
    )
    @click.option("--max-rejected-share", default=0.25, show_default=True, type=click.FloatRange(0, 1))
    @functools.wraps(command)
    def with_folder(
        paths: tuple[str, ...], out: str, max_rejected_share: float, previous: str | None = None, **rest: Any
    ) -> None:
        from jobs.commands import import_logs, stage_screen

        dataset: Any = command(**rest)
        result = import_logs.run(dataset, paths, out, max_rejected_share=max_rejected_share, previous=previous)
        stage_screen.render_facts(f"Import of {dataset.name}", result)

    return with_folder


@import_group.command()
@click.option("--previous", metavar="FOLDER", help="Import of an earlier full dump: whom to forget is written down.")
@_import_options
def listenbrainz() -> Any:
    """Import dumps of ListenBrainz: a full one, and incremental ones after it; as JSON or as Parquet."""
    from pipelines.imports.listenbrainz import ListenBrainz

    return ListenBrainz()


@import_group.command()
@click.option("--first-day", metavar="DATE", help="The day that time 0 becomes. [default: 2020-01-01]")
@_import_options
def yambda(first_day: str | None) -> Any:
    """Import Yambda, flat or sequential: listens.parquet or multi_event.parquet, with artist_item_mapping.parquet."""
    from pipelines.imports.yambda import FIRST_DAY, Yambda

    return Yambda(_date(first_day) if first_day else FIRST_DAY)


@import_group.command(name="lastfm-1k")
@_import_options
def lastfm_1k() -> Any:
    """Import Last.fm Dataset - 1K users: lastfm-dataset-1K.tar.gz or the table in it."""
    from pipelines.imports.lastfm_1k import LastFm1K

    return LastFm1K()


@import_group.command(name="lfm-2b")
@_import_options
def lfm_2b() -> Any:
    """Import LFM-2b: listening-events.tsv and tracks.tsv, also compressed."""
    from pipelines.imports.lfm_2b import Lfm2b

    return Lfm2b()


@import_group.command()
@click.option("--user", required=True, metavar="ID", help="What the person is called here.")
@_import_options
def spotify(user: str) -> Any:
    """Import a person's extended streaming history from Spotify; run again with another --user to add people."""
    from pipelines.imports.spotify import Spotify

    return Spotify(user)


@import_group.command()
@click.argument("path")
@click.option("--ds", metavar="DATE", help="Serving day of the import. [default: the day after the last rating]")
@click.option("--movies", metavar="FILE", help="Titles: movies.dat, movies.csv, u.item or Parquet.")
@_config_options
def movielens(path: str, ds: str | None, movies: str | None, config: "Config") -> None:
    """Import MovieLens ratings (ratings.dat, ratings.csv, u.data or Parquet) into a workspace.

    Then train and measure them with the paper's protocol:

    \b
    fuxi import movielens ml-1m/ratings.dat --workspace ./ml-1m
    fuxi reproduce ml-1m
    """
    from jobs.commands import import_movielens, stage_screen

    result = import_movielens.run(config, path, ds=_date(ds) if ds else None, movies=movies)
    stage_screen.render_facts("Import of MovieLens", result)


@cli.command()
@click.argument("dataset", default="ml-1m")
@click.option("--model", "models", multiple=True, metavar="NAME", help="SYSTEM, SYSTEM-large, fuxi-beta:FUNCTION.")
@click.option("--table", type=click.IntRange(3, 8), help="The runs of a table of the paper: 3, 5, 6, 7 or 8.")
@click.option("--scaling", is_flag=True, help="FuXi-beta of 2, 4, 8 and 16 layers, on a GPU of 32 too (figure 2).")
@click.option("--epochs", type=click.IntRange(1), help="[default: as published, 101]")
@click.option("--seeds", metavar="N,N,...", help="[default: the published one, 42]")
@click.option("--layers", type=click.IntRange(1), help="[default: 2; tables 6 to 8 have 8]")
@click.option(
    "--time-condition",
    "conditions",
    multiple=True,
    type=click.Choice(["true", "previous", "permuted", "fixed-hour"]),
    help="What models are told of t_{i+1}; several may be given. [default: true]",
)
@click.option(
    "--protocol",
    type=click.Choice(["leave_one_out", "temporal_split", "next_day"]),
    default="leave_one_out",
    show_default=True,
    help="The paper's; the first event after nine tenths of all; or the daily job's: new songs of the last day.",
)
@click.option(
    "--days", type=click.IntRange(1), default=1, show_default=True, help="next_day: measure the newest N days."
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Settings of model or train over the preset's, for example model.dim=128.",
)
@click.option("--label", metavar="NAME", help="Names the runs made with --set. [default: made of the settings]")
@click.option("--served", is_flag=True, help="next_day: measure lists under the default list rules, too.")
@click.option("--against", metavar="NAME", help="The run to compare with. [default: under next_day the best baseline]")
@click.option("--validation", is_flag=True, help="Pick the epoch on the second-newest event, test on the newest once.")
@click.option("--workspace", metavar="FOLDER", help="[default: ./ml-1m, ./ml-20m, or DATASET itself]")
@click.option("--ds", metavar="DATE", help="Whose sequences to use. [default: the newest]")
@click.option(
    "--preset",
    metavar="NAME",
    help="ML-1M or ML-20M: published settings, and whose numbers to set beside ours; daily or demo: those jobs' "
    "settings. [default: DATASET's, else ML-1M]",
)
@click.option("--title", metavar="TEXT", help="What tables call the data set. [default: its name]")
@click.option("--workers", type=click.IntRange(1), help="Runs side by side. [default: one a core, at most 4]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--timing", is_flag=True, help="Time an epoch of each system in turns on a quiet machine, and stop.")
@click.option("--write", metavar="FILE", help="Write every finished run of the data set as tables and figures.")
@click.option("--also", multiple=True, metavar="FOLDER", help="Another workspace whose runs --write shows too.")
@click.option("--dry-run", is_flag=True, help="List the runs, and which are finished.")
def reproduce(**options: Any) -> None:
    """Train and measure the paper's systems on DATASET, and set them beside the paper's numbers.

    DATASET is ml-1m or ml-20m (download it, then `fuxi import movielens FOLDER --workspace ./ml-1m`), or any workspace
    with sequences. Each finished run is one JSON file in WORKSPACE/reproduce; a series that was interrupted goes on
    with the runs that are missing.

    \b
    fuxi reproduce ml-1m                             Table 3 at 2 layers
    fuxi reproduce ml-1m --table 5 --seeds 42,43,44  an ablation, three seeds
    fuxi reproduce ml-1m --model fuxi-beta-large     one system of 8 layers
    fuxi reproduce ml-1m --model fuxi-beta:sin       a function of Table 6
    fuxi reproduce ml-1m --write results.md          what is finished, as tables
    """
    from jobs.reproduce import command

    command.main(options)


@cli.command()
@click.option("--workspace", default="./workspace", show_default=True, metavar="URI")
def doctor(workspace: str) -> None:
    """Check Python, Java, the torch/torchrec/fbgemm triple, GPU and workspace access."""
    from jobs.commands.doctor import examine, render

    if not render(examine(workspace)):
        sys.exit(1)


@cli.command()
@click.option(
    "--describe",
    metavar="[KEY]",
    is_flag=False,
    flag_value="",
    help="Say what each key means, its type, unit, bounds and default; only of keys that begin with KEY.",
)
@_config_options
def config(config: "Config", describe: str | None) -> None:
    """Print the configuration in force, every key with its value.

    \b
    fuxi config --describe                 every key, with what it means
    fuxi config --describe train.          those of a section
    """
    from jobs.commands import describe as descriptions
    from jobs.config import as_yaml

    if describe is None:
        click.echo(as_yaml(config, defaults=True), nl=False)
    else:
        descriptions.render(config, describe)


@cli.command()
@click.option("--workspace", default="./workspace", show_default=True, metavar="FOLDER")
@click.option("--listeners", default=3000, show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="For example train.epochs=3.")
def demo(workspace: str, listeners: int, overrides: tuple[str, ...]) -> None:
    """Generate eight weeks of logs and run two serving days; about three minutes on two cores.

    The workspace gets the configuration, daily.yaml, and logs of a week more: the last line says how to run the day
    after. Run again, it skips what is done.
    """
    from jobs.commands.demo import run_demo

    run_demo(workspace, listeners=listeners, overrides=overrides)


SUPERVISED = ("demo", "daily", "sessionize", "hits", "train", "evaluate", "promote", "recommend", "report")
"""Commands whose work has a process of its own, and is begun again when something in it dies."""


def main() -> None:
    """Entry point: refusals, and failures of disks, stores and servers, are one line on standard error and exit code 2.

    After SIGTERM, SIGINT or SIGHUP the code is 143, 130 or 129. No secret is printed.
    """
    from jobs.runtime import account, scratch, stop

    account.speak_utf8()
    account.settle()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    _choose_log_format(sys.argv)
    works = sys.argv[1:2] and not {"--dry-run", "-h", "--help"} & set(sys.argv)
    if works and sys.argv[1] in SUPERVISED:
        from jobs.runtime import supervisor

        supervisor.supervise(_tell_end)  # goes on in a child
    log_lines.install(output=bool(works) and sys.argv[1] in {*SUPERVISED, "backfill"} - {"demo"})  # that has a screen
    stop.install()
    scratch.enter()
    code = _exit_code_of_command()
    if "jobs.runtime.attempt" in sys.modules:
        from jobs.runtime import attempt

        attempt.ended(code)
    if stop.was_asked():
        stop.leave(code)
    sys.exit(code)


def _tell_end(ended: "Ended") -> None:
    """Tell the systems that watch how a command of a day has ended. Whatever goes wrong changes nothing else."""
    from jobs.monitoring import lineage, prometheus

    try:
        given = cli.commands[sys.argv[1]].make_context(sys.argv[1], sys.argv[2:]).params
        config = _configuration(given["config_file"], given["workspace"], given["overrides"])
        ds = _serving_day(config, ended.ds or given["ds"])
        daily_run = sys.argv[1] == "daily"
        broke_off = ended.code == EXIT_BROKE_OFF
        lineage.tell_deaths(config, ended.run, ended.died, daily=daily_run, broke_off=broke_off)
        if daily_run:
            prometheus.export_end(config, ds, ended.code)
    except Exception as error:
        log_lines.say(f"nobody was told how the command ended ({type(error).__name__}: {error})")


def _exit_code_of_command() -> int:
    from jobs.runtime import stop

    try:
        cli(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt) as error:
        asked = error if isinstance(error, KeyboardInterrupt) else error.__cause__
        if isinstance(asked, KeyboardInterrupt):
            _say_end(stop.describe(asked), kind="stopped", code=stop.exit_code())
            _end_engines()
        return stop.exit_code()
    except click.ClickException as error:
        if log_lines.are_json():
            _say_end(f"{error.format_message().rstrip('.')}: see --help", kind="usage", code=error.exit_code)
        else:
            error.show()
        return error.exit_code
    except SystemExit as leaving:
        return int(leaving.code or 0)
    except Exception as error:
        return _failed(error)
    return 0


def _failed(error: Exception) -> int:
    """One line for what the operator can change, else the trace."""
    from jobs.runtime import attempt, deaths, failures

    if not isinstance(error, InputError):
        attempt.end_if_died(error)
    if isinstance(error, InputError):
        line, kind, code = str(error), "refused", EXIT_REFUSED
    elif line := failures.explain(error):
        kind, code = "unavailable", EXIT_REFUSED
    elif line := deaths.what_died(error):
        kind, code = "died", EXIT_BROKE_OFF
    else:
        line, kind, code = f"{type(error).__name__}: {error}", "unknown", EXIT_BROKE_OFF
        if not log_lines.are_json():
            traceback.print_exception(error)
            return code
    trace = {"traceback": "".join(traceback.format_exception(error))} if kind == "unknown" else {}
    _say_end(line, kind=kind, code=code, **trace)
    return code


def _say_end(line: str, *, kind: str, code: int, **values: str) -> None:
    """The last line of a command that does not end well."""
    hint = {} if kind in ("stopped", "unknown") else {"remedy": log_lines.remedy(line)}
    log_lines.say(line, "error", kind=kind, exit_code=code, **hint, **values)


def _choose_log_format(arguments: list[str]) -> None:
    """As an option or the environment says: before the supervisor forks, and so before options are parsed."""
    given = dict(itertools.pairwise(arguments))
    given |= dict(argument.split("=", 1) for argument in arguments if argument.startswith(f"{LOG_FORMAT}="))
    by_option, by_environment = given.get(LOG_FORMAT, ""), os.environ.get("FUXI_LOG_FORMAT", "")
    for chosen in filter(log_lines.FORMATS.__contains__, (by_option, by_environment)):
        log_lines.choose(chosen, by_option=chosen == by_option)
        return


def _end_engines() -> None:
    """Where an engine was started; most commands start none, and need not load its module."""
    if "jobs.runtime.engines" in sys.modules:
        from jobs.runtime import engines

        engines.end()


if __name__ == "__main__":
    main()
