"""Commands under a user id without a name, with a home that cannot be written, a long TMPDIR, umask 077 and no UTF-8.

A namespace of the kernel gives a process such an id, with the rights to files that its user has: what a container does.
"""

import datetime as dt
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.runtime import account
from pipelines.synthetic import SyntheticConfig, generate

ROOT = Path(__file__).parents[3]
UID = 54321
IN_NAMESPACE = ("unshare", "--user", f"--map-user={UID}", f"--map-group={UID}")
DAY = dt.date(2026, 1, 12)


def can_be_nobody() -> bool:
    return bool(shutil.which("unshare")) and subprocess.run([*IN_NAMESPACE, "true"], check=False).returncode == 0


nobody = pytest.mark.skipif(not can_be_nobody(), reason="needs user namespaces (unshare --user)")


def as_nobody(root: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command as a container would run it: no name, home read-only, TMPDIR of more than 100 bytes, umask 077."""
    home, long = root / "home", root / ("tmp-" + "x" * 100)
    home.mkdir(mode=0o555, exist_ok=True)
    long.mkdir(exist_ok=True)
    clean = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(home), "TMPDIR": str(long), "LC_ALL": "C"}
    script = 'umask 077; exec "$@"'
    return subprocess.run(
        [*IN_NAMESPACE, "bash", "-c", script, "bash", *command],
        capture_output=True,
        text=True,
        env=clean | environment,
        check=False,
        cwd=root,
    )


def fuxi(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return as_nobody(root, sys.executable, "-m", "jobs.cli", *arguments, **environment)


def small_day(root: Path) -> Sequence[str]:
    """Logs below a root, and the flags of a day on them."""
    config = SyntheticConfig(
        listeners=60, songs=100, artists=20, plays_per_day=12, first_day=dt.date(2026, 1, 1), days=12
    )
    generate(config, f"{root}/logs")
    settings = ["sequences.buckets=2", "model.dim=16", "train.epochs=2", "train.batch_size=16", "train.min_listeners=2"]
    settings += ["gates.serve_baseline=false", "cluster.spark_master=local[2]", f"logs.path={root}/logs/plays"]
    return ["--ds", str(DAY), "--workspace", f"{root}/w", *(part for one in settings for part in ("--set", one))]


@nobody
def test_the_doctor_names_each_and_says_what_to_do(tmp_path: Path) -> None:
    done = fuxi(tmp_path, "doctor", "--workspace", str(tmp_path / "w"))
    assert done.returncode == 0, done.stderr
    found = {line.split()[1]: line for line in done.stdout.splitlines() if not line.startswith(" ")}
    assert found["user"].startswith(f"warn  user          {UID} has no name, called uid-{UID}, utf-8, umask 077")
    assert found["home"].startswith(
        f"warn  home          {tmp_path}/home cannot be written, caches in {tmp_path}/tmp-x"
    )
    assert found["temporary"].startswith("ok") and "used by the link /tmp/fuxi-" in found["temporary"]
    assert "/etc/passwd" in done.stdout and "XDG_CACHE_HOME" in done.stdout


@nobody
def test_plays_become_histories_all_the_same_and_nothing_is_left(tmp_path: Path) -> None:
    done = fuxi(tmp_path, "sessionize", *small_day(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "w" / "runs" / f"ds={DAY}" / "sessionize.json").exists()
    assert not list((tmp_path / "home").iterdir())
    assert {file.name for file in tmp_path.glob("tmp-*/*")} <= {f"fuxi-cache-{UID}"}


@nobody
@pytest.mark.slow
def test_a_whole_day_is_published_all_the_same(tmp_path: Path) -> None:
    flags = small_day(tmp_path)
    done = fuxi(tmp_path, "daily", *flags)
    assert done.returncode in (0, 3), done.stderr  # 3: a model of two epochs may be worse than popularity
    assert (tmp_path / "w" / "runs" / f"ds={DAY}" / "train.json").exists()
    shown = fuxi(tmp_path, "show", "7", *flags)
    assert f"30 songs for {DAY}" in shown.stdout, shown.stderr
    assert not list((tmp_path / "home").iterdir())


@nobody
def test_a_cache_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    """Libraries are loaded from it: whoever could write there would run as this user."""
    trap = tmp_path / f"fuxi-cache-{UID}"
    trap.mkdir(mode=0o777)
    trap.chmod(0o777)
    code = "from jobs.runtime import account; print(account.examine().caches)"
    done = as_nobody(tmp_path, sys.executable, "-c", code, TMPDIR=str(tmp_path))
    used = Path(done.stdout.strip())
    assert used.parent == tmp_path and used.name.startswith("fuxi-cache-") and used != trap, done.stderr


def test_what_is_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "name_of_user", lambda: "")
    monkeypatch.setattr(account, "_found", [])
    given = {"HOME": str(tmp_path), "USER": "ann", "MPLCONFIGDIR": "/m", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    settled = dict(given)
    account.settle(settled)
    assert settled.items() >= given.items() and "LOGNAME" not in settled


def test_a_missing_home_is_one_of_the_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "_found", [])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settled = {"HOME": str(tmp_path / "nowhere")}
    account.settle(settled)
    caches = str(tmp_path / f"fuxi-cache-{os.getuid()}")
    assert settled["HOME"] == settled["XDG_CACHE_HOME"] == caches and settled["MPLCONFIGDIR"] == f"{caches}/matplotlib"
    assert Path(caches).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("locale", ["C", "POSIX", "nowhere.ISO-8859-1"])
def test_every_locale_prints_and_names_files_in_utf8(tmp_path: Path, locale: str) -> None:
    name = tmp_path / "Größe"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LC_ALL": locale, "PYTHONIOENCODING": "latin-1"}
    if locale == "C":
        environment["PYTHONUTF8"] = "0"
    command = [sys.executable, "-m", "jobs.cli", "config", "--config", str(name)]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 2 and str(name) in json.loads(done.stderr)["message"], done.stderr
