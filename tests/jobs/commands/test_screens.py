"""What every command prints: within the terminal, and whole."""

import datetime as dt
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from rich.cells import cell_len

from jobs.cli import cli
from jobs.commands import backfill, demo, forget, maintain, retain, stage_screen
from jobs.commands.backfill import BackfilledDay
from jobs.config import load_config
from jobs.daily import DayResult
from jobs.day import STAGES
from jobs.retention import Removed
from jobs.runtime import console as progress_bars
from jobs.runtime import log_lines
from jobs.runtime.screen import screen
from jobs.status import day_figures
from jobs.tables.maintenance import TableMaintenance
from pipelines import storage
from pipelines.schema import CATALOGUE_SCHEMA

from ..conftest import BUCKETS, DAY_ONE, DAY_TWO, Deployment
from ..stages.test_report import LISTS, PROMOTION, SEQUENCES, TRAINING, measured

WIDTHS = (80, 120)
REASON = "the challenger failed: near_champion, near_recent_best, above_floor and then some more words about the cause"
RESULTS: dict[str, dict[str, Any]] = {
    "sessionize": SEQUENCES,
    "hits": {
        "days": [
            {"ds": str(DAY_ONE), "lists": 1_234_567, "played": 412_345, "hits": 551, "skips": 94_000, "hr_30": 0.341093}
            | {"recall_30": 0.05735, "ndcg_30": 0.046418, "play_share": 0.05}
        ]
    },
    "train": TRAINING | {"kernels": "C++ (AVX512)"},
    "evaluate": measured(),
    "promote": PROMOTION | {"reason": REASON},
    "recommend": LISTS,
    "report": {"uri": "reports/ds=2026-03-03/report.html"},
}
COMMANDS = [
    "show 3 --ds 2026-03-03",
    "show 3 --ds 2026-03-03 --explain",
    "show 999999 --ds 2026-03-03",
    "status {w}",
    "status {w} --days 1",
    "diff 2026-03-02 2026-03-03",
    "verify {w}",
    "retain --dry-run",
    "maintain --dry-run",
    "forget 3 --dry-run",
    "doctor --workspace {w}",
    "inspect {logs}",
    "backfill --from 2026-03-02 --to 2026-03-05 --dry-run",
    "daily --ds 2026-03-02 --dry-run",
    "daily --ds 2026-03-04 --dry-run --set train.epochs=9 --set model.layers=3 --set rules.listed_days=3",
    *(f"{name} --ds 2026-03-03" for name in STAGES),
    "train --ds 2026-03-03 --dry-run --set train.epochs=9 --set model.layers=3 --set train.lr=0.5 --set train.ema=0.5",
    "promote --unpin",
]


def too_wide(text: str, width: int) -> list[str]:
    """Lines that are wider than the terminal; one long word, which a path is, may be."""
    lines = [line.rstrip() for line in text.splitlines()]
    return [line for line in lines if cell_len(line) > width and " " in line.strip().removeprefix("- ")]


@pytest.fixture(autouse=True)
def people(monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands print is for people, as on a terminal."""
    monkeypatch.setattr(log_lines._state, "chosen", "text")
    monkeypatch.setattr(log_lines._state, "by_option", True)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Deployment:
    """Two published days with titles of many words and scripts, and figures as their stages return them."""
    root = tmp_path_factory.mktemp("screens")
    (root / "workspace").mkdir()
    shutil.copy(empty_registry, root / "workspace" / "mlflow.db")
    settings = [f"workspace={root}/workspace", f"sequences.buckets={BUCKETS}", f"logs.catalogue={root}/catalogue"]
    made = Deployment(load_config(overrides=settings, environment={}))
    long = ["A Very Long Title of Many Words " * 3, "夜の終わりに聞こえる遠い列車の音" * 3, "", "Cafe\u0301 " * 12]
    rows = [
        {"item_id": made.item_id(n), "title": long[n % 4], "artist_id": n % 7, "artist": long[(n + 1) % 4]}
        for n in range(1, made.songs + 1)
    ]
    storage.write_table(f"{root}/catalogue/songs.parquet", pa.Table.from_pylist(rows, schema=CATALOGUE_SCHEMA))
    for ds in (DAY_ONE, DAY_TWO):
        made.published(ds)
        for name, result in RESULTS.items():
            made.day(ds).finish(name, result, 12.3)
    plays = {"user_id": [1, None, 3], "item_id": [7, 8, 9], "timestamp": [1_772_400_000] * 3, "event_type": ["?"] * 3}
    storage.write_table(f"{root}/logs/ds=2026-03-01/plays.parquet", pa.table(plays))
    return made


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_screen_fits_the_terminal_and_cuts_nothing(house: Deployment, command: str, width: int) -> None:
    root = Path(house.config.workspace).parent
    words = shlex.split(command.format(w=house.config.workspace, logs=root / "logs"))
    if words[0] not in ("status", "verify", "doctor", "inspect"):
        words += ["--workspace", house.config.workspace, "--set", f"logs.catalogue={root}/catalogue"]
        words += ["--set", f"sequences.buckets={BUCKETS}"]
    done = CliRunner().invoke(cli, words, env={"COLUMNS": str(width)})
    assert done.stdout.strip() and (done.exception is None or words[0] in ("doctor", "inspect")), done.exception
    assert not too_wide(done.stdout, width)
    assert "…" not in done.stdout and "..." not in done.stdout.replace("ds=...", "")


@pytest.mark.parametrize("command", [name for name in cli.commands if name != "import"])
def test_every_help_fits_80_columns(command: str) -> None:
    done = CliRunner().invoke(cli, [command, "--help"], env={"COLUMNS": "80"}, terminal_width=80)
    assert done.exit_code == 0 and not too_wide(done.stdout, 80)


@pytest.mark.parametrize("width", WIDTHS)
def test_what_a_command_has_done_fits_the_terminal(
    house: Deployment, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    why = "sessionize: ds 2026-03-05: 7,573 plays a day, 0.41 of 18,603, the median of the last 3 published days; " * 3
    figures = day_figures(house.day(DAY_TWO))
    backfill.render([BackfilledDay(DAY_TWO, code, 12_345.6, figures, why) for code in (0, 3, 2, 139)], 9)
    note = "versions of the last days are kept, because a reader may have one of them open at this moment " * 2
    maintain.render([TableMaintenance("recommendations", 123_456, 18, True, 99, 10**12, 30, note)], dry_run=False)
    retain.render([Removed("checkpoints and exports", (DAY_ONE, DAY_TWO), 123_456, 10**13, note)], dry_run=False)
    forget.render(forget.ForgetResult(3, False, 1, 2, {"sequences": forget.Matches(12, 345)}))
    for name, result in RESULTS.items():
        day = house.day(DAY_TWO)
        day.timings[name] = 1234.5
        stage_screen.render(day, name, result)
    text = capsys.readouterr().out
    assert not too_wide(text, width) and "…" not in text
    for said in (" ".join(why.split()[-6:]), "HR@30", "recommendations", "above_floor", "beats popularity"):
        assert said.split()[-1] in text


@pytest.mark.parametrize("width", WIDTHS)
def test_the_screen_of_the_demo_fits_the_terminal(
    house: Deployment, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    seconds = dict.fromkeys(STAGES, 1234.5)
    usage = type("Usage", (), {"seconds": 1234.5, "gigabytes": 12.3})()
    found = measured()
    for slices in found["metrics"].values():
        slices["all"]["coverage_30"] = 0.5
    results = [DayResult(ds, RESULTS | {"evaluate": found}, {"hits": REASON}, seconds) for ds in (DAY_ONE, DAY_TWO)]
    demo.print_screen(house.config, results, 12.3, usage, root="./workspace")  # type: ignore[arg-type]
    text = capsys.readouterr().out
    assert not too_wide(text, width) and "…" not in text
    assert "FuXi-beta, new" in text and "Lists    ./workspace/recommendations" in text


def test_where_a_table_does_not_fit_its_rows_are_lists(capsys: pytest.CaptureFixture[str]) -> None:
    shown = screen(sys.stdout, width=30)
    shown.table(("Day", "Plays", "Lists"), [("2026-03-02", "1,234,567,890", "1,234,567")], right=("Plays", "Lists"))
    assert capsys.readouterr().out == "- Day: 2026-03-02\n  Plays: 1,234,567,890\n  Lists: 1,234,567\n"


def test_a_pipe_gets_each_text_as_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    screen(sys.stdout).say("word " * 50, indent=4)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_long_step_says_what_it_is_and_how_long_it_will_take(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a terminal of 80 columns: a spinner before the first step, then a bar with the time left."""
    from rich.console import Console

    monkeypatch.setattr(progress_bars, "interactive", lambda: True)
    terminal = Console(file=sys.stderr, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(progress_bars, "console", lambda: terminal)
    steps = iter([(0, 0), (0, 0), *((n, 12_345_678) for n in range(5_000_000, 9_000_000, 1_000_000))])
    last = [(0, 0)]

    def poll() -> tuple[int, int]:
        last[0] = next(steps, last[0])
        return last[0]

    monkeypatch.setattr(progress_bars, "POLL_S", 0.05)
    with progress_bars.polled_progress("train", poll, unit="steps", remaining=True, first="starting the workers"):
        progress_bars.time.sleep(0.6)
    drawn = capfd.readouterr().err.replace("\r", "\n").splitlines()
    assert any("starting the workers ..." in line for line in drawn)
    (bar,) = {line.split("steps")[0].split()[-1] for line in drawn if "8000000/" in line}
    assert bar == "8000000/12345678" and any(line.rstrip().endswith("left") for line in drawn)
    assert all(cell_len(line) <= 90 for line in drawn)  # some of them are the terminal's commands


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_ends_with_the_command_for_the_next_day_and_three_days_run_in_a_row(tmp_path: Path) -> None:
    """The demo's two days, then the command of its last line; run again, it names the day after the newest one."""
    settings = ["train.epochs=1", "train.min_steps=0", "train.min_listeners=2", "gates.margin=1", "model.dim=16"]
    flags = [part for text in settings for part in ("--set", text)]
    words = [sys.executable, "-m", "jobs.cli", "demo", "--workspace", "./w", "--listeners", "60", *flags]
    environment = os.environ | {"COLUMNS": "80", "PYTHONPATH": str(Path(__file__).parents[3])}

    def run(words: list[str]) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 3), done.stderr  # few listeners: a baseline may serve
        return done.stdout

    first = run(words)
    assert not too_wide(first, 80)
    command = first.splitlines()[-1]
    assert "daily --ds 2026-03-04 --config ./w/daily.yaml" in command
    run(shlex.split(command))
    assert "daily --ds 2026-03-05 --config ./w/daily.yaml" in run(words).splitlines()[-1]
    lists = {path.name for path in (tmp_path / "w" / "recommendations").glob("ds=*")}
    assert lists == {f"ds={dt.date(2026, 3, day)}" for day in (2, 3, 4)}
