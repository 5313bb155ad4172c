"""The industrial presets: exact counts, rows that depend on nothing but the configuration, runs that resume."""

import datetime as dt
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from jobs.commands.synth import main, synth_industrial
from jobs.runtime import console
from pipelines import storage
from pipelines.errors import InputError
from pipelines.schema import CATALOGUE_SCHEMA
from pipelines.synthetic import SyntheticConfig, generate
from pipelines.synthetic.industrial import config as industrial_config
from pipelines.synthetic.industrial import plan as industrial
from pipelines.synthetic.industrial import plays as industrial_plays
from pipelines.synthetic.industrial.config import BASE_DAYS, PRESETS
from pipelines.synthetic.industrial.plays import permute, plays_table
from tests.log_lines import said

DAY = 86_400
SMALL = industrial_config.industrial_config("daily-recommendations", interactions=400_003, seed=3)


def synthesize(out: Path, config: industrial_config.IndustrialConfig = SMALL, *, days: int, workers: int = 1) -> dict:
    return industrial.write(industrial.plan(config, str(out), days=days), workers=workers)


def digests(out: Path, below: str = "") -> dict[str, str]:
    files = sorted(path for path in (out / below).rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_plays(out: Path) -> pa.Table:
    """Every row, with the number of its landing day."""
    tables = []
    for file in storage.list_files(f"{out}/plays"):
        day = (dt.date.fromisoformat(file.uri.split("ds=")[1][:10]) - SMALL.first_day).days
        table = storage.read_table(file.uri)
        tables.append(table.append_column("landing", pa.array(np.full(table.num_rows, day))))
    return pa.concat_tables(tables)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 25 days of SMALL."""
    out = tmp_path_factory.mktemp("industrial")
    synthesize(out, days=BASE_DAYS)
    return out


@pytest.fixture
def several_parts(monkeypatch: pytest.MonkeyPatch) -> industrial_config.IndustrialConfig:
    """A configuration of three files a day. Only for runs in this process: others would not see the smaller parts."""
    monkeypatch.setattr(industrial_config, "PART_ROWS", 1500)
    return industrial_config.industrial_config("all-scenarios", interactions=90_001, seed=8)


def test_presets_have_the_papers_shapes() -> None:
    for name, shape in PRESETS.items():
        config = industrial_config.industrial_config(name)
        assert (config.listeners, config.songs, config.interactions) == shape
    assert PRESETS["daily-recommendations"] == (19_252_028, 234_488, 1_023_711_774)
    assert PRESETS["all-scenarios"] == (28_927_689, 476_544, 1_313_729_225)


def test_rows_of_a_preset_add_up_and_a_day_is_four_percent() -> None:
    config = industrial_config.industrial_config("daily-recommendations")
    days = [config.rows(day) for day in range(BASE_DAYS)]
    assert sum(days) == config.interactions
    assert max(days) - min(days) <= 1
    assert sum(config.rows(7, part) for part in range(config.parts)) == days[7]
    assert config.rows(BASE_DAYS + 3) == days[3]


def test_a_scale_shrinks_listeners_and_plays_alike_and_songs_as_the_root() -> None:
    tenth = industrial_config.industrial_config("daily-recommendations", scale=0.1)
    assert (tenth.listeners, tenth.songs, tenth.interactions) == (1_925_203, 74_152, 102_371_177)
    assert SMALL.interactions == 400_003
    assert industrial_config.industrial_config("daily-recommendations", interactions=16_000).songs == 1000


def test_every_count_is_exact(small: Path) -> None:
    plays = read_plays(small)
    assert plays.num_rows == 400_003
    listeners, songs = plays["user_id"].to_numpy(), plays["item_id"].to_numpy()
    assert len(np.unique(listeners)) == SMALL.listeners
    assert len(np.unique(songs)) == SMALL.songs
    landing = np.bincount(plays["landing"].to_numpy())
    assert landing.max() - landing.min() <= 1
    assert plays.select(["user_id", "item_id", "timestamp"]).group_by(plays.column_names[:3]).aggregate(
        []
    ).num_rows == (plays.num_rows)


def test_files_hold_three_int64_columns_by_time(small: Path) -> None:
    for file in storage.list_files(f"{small}/plays"):
        table = storage.read_table(file.uri)
        assert table.schema == pa.schema([(name, pa.int64()) for name in ("user_id", "item_id", "timestamp")])
        assert (np.diff(table["timestamp"].to_numpy()) >= 0).all()
        assert file.size < 6 * table.num_rows + 2000


def test_two_percent_land_one_to_three_days_late_and_nothing_before_the_first_day(small: Path) -> None:
    plays = read_plays(small)
    played = (plays["timestamp"].to_numpy() - SMALL.day_start(0)) // DAY
    late = plays["landing"].to_numpy() - played
    assert played.min() == 0
    assert set(np.unique(late)) == {0, 1, 2, 3}
    assert 0.015 < (late > 0).mean() < 0.025


def test_activity_and_popularity_have_heavy_tails(small: Path) -> None:
    plays = read_plays(small)
    each = np.sort(np.unique(plays["user_id"].to_numpy(), return_counts=True)[1])[::-1]
    assert each.mean() == pytest.approx(1_023_711_774 / 19_252_028, rel=1e-3)
    assert 0.08 < each[: len(each) // 100].sum() / each.sum() < 0.18
    assert np.median(each) < 0.7 * each.mean()
    song = np.sort(np.unique(plays["item_id"].to_numpy(), return_counts=True)[1])[::-1]
    assert 0.002 < song[0] / song.sum() < 0.03
    assert song[: len(song) // 10].sum() / song.sum() > 0.4


def test_a_listener_prefers_the_clusters_of_their_taste(small: Path) -> None:
    """Among a listener's plays two songs of a cluster meet more often than among everybody's."""
    plays = read_plays(small)
    order = permute(np.arange(SMALL.songs), SMALL.songs, industrial_plays._key(SMALL, industrial_plays._RANK_TO_SONG))
    cluster = np.empty(SMALL.songs, np.int64)
    cluster[order] = np.arange(SMALL.songs) % industrial_plays._clusters(SMALL)
    own = cluster[plays["item_id"].to_numpy() - 100_001]
    share = np.bincount(own) / len(own)
    pairs = np.unique(np.stack([plays["user_id"].to_numpy(), own]), axis=1, return_counts=True)[1]
    total = np.unique(plays["user_id"].to_numpy(), return_counts=True)[1]
    within = (pairs * (pairs - 1)).sum() / (total * (total - 1)).sum()
    assert within > 2 * (share**2).sum()


def test_plays_come_in_sessions_and_mostly_in_the_evening(small: Path) -> None:
    plays = read_plays(small).sort_by([("user_id", "ascending"), ("timestamp", "ascending")])
    same = np.diff(plays["user_id"].to_numpy()) == 0
    gap = np.diff(plays["timestamp"].to_numpy())[same]
    near = gap <= 1800
    assert 0.7 < near.mean() < 0.9  # sessions of 8 plays on average, and short first ones
    assert 150 < np.median(gap[near]) < 260
    hour = np.bincount(plays["timestamp"].to_numpy() % DAY // 3600, minlength=24)
    assert hour[18:22].sum() > 3 * hour[2:6].sum()


def test_the_catalogue_has_every_song_once(small: Path) -> None:
    catalogue = storage.read_table(f"{small}/catalogue/ds=2026-01-05/part-00000.parquet")
    assert catalogue.schema == CATALOGUE_SCHEMA
    assert set(catalogue["item_id"].to_pylist()) == set(read_plays(small)["item_id"].to_pylist())


@pytest.mark.parametrize("size", [1, 2, 3, 1000, 65_537])
def test_permute_is_a_bijection(size: int) -> None:
    moved = permute(np.arange(size), size, key=11)
    assert sorted(moved.tolist()) == list(range(size))
    assert size < 1000 or (moved != permute(np.arange(size), size, key=12)).any()


def test_parts_never_repeat_a_row_of_each_other(several_parts: industrial_config.IndustrialConfig) -> None:
    """Few listeners and songs, so that the same listener plays the same song in many parts of a day."""
    config = industrial_config.IndustrialConfig("dense", listeners=3, songs=2, interactions=60_000)
    assert config.parts == 2
    parts = [plays_table(config, day, part) for day in range(BASE_DAYS) for part in range(config.parts)]
    plays = pa.concat_tables(parts)
    assert plays.group_by(plays.column_names).aggregate([]).num_rows == plays.num_rows == 60_000


def test_counts_are_exact_over_several_parts(several_parts: industrial_config.IndustrialConfig, tmp_path: Path) -> None:
    config = several_parts
    result = synthesize(tmp_path, config, days=BASE_DAYS)
    assert len(storage.list_files(f"{tmp_path}/plays")) == 3 * BASE_DAYS
    plays = read_plays(tmp_path)
    assert plays.num_rows == result["rows"] == 90_001
    assert len(np.unique(plays["user_id"].to_numpy())) == config.listeners
    assert len(np.unique(plays["item_id"].to_numpy())) == config.songs


def test_two_processes_write_the_same_files_as_one(small: Path, tmp_path: Path) -> None:
    synthesize(tmp_path, days=BASE_DAYS, workers=2)
    assert digests(tmp_path) == digests(small)


def test_rows_are_pinned() -> None:
    """Raise INDUSTRIAL_VERSION when these change: folders of an older release must not be extended."""
    table = plays_table(SMALL, 4, 0)
    values = np.stack([column.to_numpy() for column in table.columns])
    assert hashlib.sha256(values.tobytes()).hexdigest()[:16] == "5482ee02a77c723e"


def test_an_extension_equals_a_longer_first_run(tmp_path: Path) -> None:
    synthesize(tmp_path / "grown", days=2)
    again = synthesize(tmp_path / "grown", days=27)
    synthesize(tmp_path / "whole", days=27)
    assert digests(tmp_path / "grown") == digests(tmp_path / "whole")
    assert again["rows_written"] == sum(SMALL.rows(day) for day in range(2, 27))
    assert storage.read_json(f"{tmp_path}/grown/_synthetic.json")["days_written"] == 27
    shorter = synthesize(tmp_path / "grown", days=3)
    assert shorter["rows_written"] == 0
    assert storage.read_json(f"{tmp_path}/grown/_synthetic.json")["days_written"] == 27


def test_an_interrupted_run_continues(several_parts: industrial_config.IndustrialConfig, tmp_path: Path) -> None:
    synthesize(tmp_path / "whole", several_parts, days=4)
    whole = digests(tmp_path / "whole")

    def stop_after_two_days(_: int) -> None:
        if (tmp_path / "cut/plays/ds=2026-01-07/part-00000.parquet").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        industrial.write(industrial.plan(several_parts, f"{tmp_path}/cut", days=4), on_progress=stop_after_two_days)
    assert storage.read_json(f"{tmp_path}/cut/_synthetic.json")["days_written"] == 2
    (tmp_path / "cut/plays/ds=2026-01-07/part-00001.parquet.0a.tmp").write_bytes(b"half a file")
    result = synthesize(tmp_path / "cut", several_parts, days=4)
    assert result["rows_written"] == several_parts.rows(2) + several_parts.rows(3) - several_parts.rows(2, 0)
    assert digests(tmp_path / "cut") == whole


def test_a_lost_day_is_written_again(several_parts: industrial_config.IndustrialConfig, tmp_path: Path) -> None:
    synthesize(tmp_path, several_parts, days=3)
    before = digests(tmp_path)
    shutil.rmtree(tmp_path / "plays/ds=2026-01-07")
    shutil.rmtree(tmp_path / "catalogue")
    synthesize(tmp_path, several_parts, days=3)
    assert digests(tmp_path) == before


def test_a_folder_of_another_configuration_is_refused(tmp_path: Path) -> None:
    synthesize(tmp_path / "log", days=1)
    other = industrial_config.industrial_config("daily-recommendations", interactions=400_003, seed=4)
    with pytest.raises(InputError, match="seed is 3 but 4 was asked for"):
        industrial.plan(other, f"{tmp_path}/log")
    generate(SyntheticConfig(listeners=10, songs=60, artists=20, days=1), f"{tmp_path}/demo")
    with pytest.raises(InputError, match=r"generator_version is 1, .* use another folder"):
        industrial.plan(SMALL, f"{tmp_path}/demo")
    with pytest.raises(InputError, match="generator_version is industrial-1"):
        generate(SyntheticConfig(), f"{tmp_path}/log")
    (tmp_path / "real/plays/ds=2026-01-05").mkdir(parents=True)
    with pytest.raises(InputError, match="not a synthetic log"):
        industrial.plan(SMALL, f"{tmp_path}/real")


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12, 10**9))
    whole = industrial_config.industrial_config("daily-recommendations")
    with pytest.raises(InputError, match=r"needs about 6\.\d\d GB and 1\.00 GB are free .*--scale"):
        synth_industrial(whole, f"{tmp_path}/log")
    assert not (tmp_path / "log").exists()
    assert industrial.plan(SMALL, f"{tmp_path}/log").bytes < 10**9


def test_too_few_plays_for_everybody_are_refused() -> None:
    with pytest.raises(InputError, match="ask for at least 1025"):
        industrial_config.industrial_config("daily-recommendations", interactions=1000)
    with pytest.raises(InputError, match="scale is 0"):
        industrial_config.industrial_config("daily-recommendations", scale=0)
    with pytest.raises(InputError, match="use one of daily-recommendations, all-scenarios"):
        industrial_config.industrial_config("daily")


def test_progress_off_a_terminal_estimates_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([100.0, 110.0, 110.0, 140.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("Generating plays", 400, unit="plays", remaining=True) as advance:
        advance(100)
    first, last = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["done"], first["seconds"], first["seconds_left"]) == (100, 10.0, 30)
    assert last["finished"]


def test_options_that_do_not_go_together_are_one_line(tmp_path: Path) -> None:
    options = {"out": str(tmp_path), "preset": "daily-recommendations", "listeners": 3000, "first_day": SMALL.first_day}
    with pytest.raises(InputError, match="--listeners does not go with --preset"):
        main(options, {"preset", "listeners"})
    with pytest.raises(InputError, match="--scale and --interactions both"):
        main({**options, "scale": 0.1, "interactions": 10**6}, {"scale", "interactions"})
    with pytest.raises(InputError, match="--workers goes with --preset only"):
        main({**options, "preset": None, "workers": 2}, {"workers"})


def test_the_command_line_writes_a_preset(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.cli", "synth"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(flag in shown for flag in ("--preset", "--scale", "--interactions", "--workers", "all-scenarios"))
    flags = ["--preset", "all-scenarios", "--interactions", "50000", "--days", "3", "--workers", "2"]
    done = subprocess.run([*command, *flags, "--out", str(tmp_path)], capture_output=True, text=True, check=True)
    assert {"  rows: 6,000", "  days: 3", "  last day: 2026-01-07"} <= set(done.stdout.splitlines())
    assert '"total": 6000, "unit": "plays"' in done.stderr
    refused = subprocess.run([*command, *flags, "--songs", "9"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert said(refused.stderr) == ["fuxi: --songs does not go with --preset, which sets it: leave one of the two out"]
    flags = ["--preset", "frozen", "--days", "1", "--first-day", "2026-01-05"]
    refused = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "--first-day does not go with --preset frozen" in refused.stderr


def test_a_killed_run_leaves_no_process_behind(tmp_path: Path) -> None:
    flags = ["--preset", "all-scenarios", "--interactions", "20000000", "--workers", "2", "--out", str(tmp_path)]
    run = psutil.Popen([sys.executable, "-m", "jobs.cli", "synth", *flags], stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("plays/*/*.parquet")):
        time.sleep(0.02)
    workers = run.children(recursive=True)
    run.kill()
    run.wait()
    assert len(workers) >= 2
    assert not psutil.wait_procs(workers, timeout=10)[1]
