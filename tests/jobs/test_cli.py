"""The command line as a user meets it: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.log_lines import lines, said


def fuxi(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    env = {key: value for key, value in os.environ.items() if not key.startswith("FUXI_")} | environment
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def refusal(*arguments: str, **environment: str) -> str:
    """The one line on standard error of a command that must refuse."""
    done = fuxi(*arguments, **environment)
    assert done.returncode == 2, done.stderr
    [line], [shown] = lines(done.stderr), said(done.stderr)
    assert (line["level"], line["kind"], line["exit_code"]) == ("error", "refused", 2)
    return shown


def test_help_names_every_verb_and_loads_no_engine() -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom jobs.cli import cli\n"
        "print(CliRunner().invoke(cli, ['--help']).output)\n"
        "print('loaded', [m for m in ('torch', 'ray', 'mlflow', 'pyspark', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for verb in (
        "daily",
        "sessionize",
        "train",
        "evaluate",
        "promote",
        "recommend",
        "report",
        "inspect",
        "show",
        "maintain",
        "synth",
        "import",
    ):
        assert f"  {verb} " in done.stdout
    assert "loaded []" in done.stdout


@pytest.mark.parametrize(
    "verb", ["daily", "train", "inspect", "show", "maintain", "synth", "import", "doctor", "demo", "config"]
)
def test_every_verb_explains_itself(verb: str) -> None:
    done = fuxi(verb, "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout


def test_a_mistyped_key_is_one_line_with_the_nearest_name(tmp_path: Path) -> None:
    line = refusal("daily", "--ds", "2026-03-02", "--workspace", str(tmp_path), "--set", "train.epoch=1")
    assert "did you mean train.epochs?" in line


@pytest.mark.parametrize(("hours", "reason"), [(24, "give 48 or more"), (1000, "give 720 or less")])
def test_a_retention_that_breaks_readers_is_one_line(tmp_path: Path, hours: int, reason: str) -> None:
    line = refusal("maintain", "--workspace", str(tmp_path), "--set", f"maintain.retention_hours={hours}")
    assert line.startswith("fuxi: maintain.retention_hours: ") and f"{reason} (found {hours})" in line


def test_maintenance_of_no_workspace_is_one_line(tmp_path: Path) -> None:
    assert "is not a workspace" in refusal("maintain", "--workspace", str(tmp_path))


def test_a_future_ds_is_one_line(tmp_path: Path) -> None:
    assert "in the future" in refusal("daily", "--ds", "2999-01-01", "--workspace", str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_a_malformed_ds_is_one_line(tmp_path: Path) -> None:
    assert "YYYY-MM-DD" in refusal("train", "--ds", "02.03.2026", "--workspace", str(tmp_path))


def test_a_workspace_of_another_schema_version_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "_workspace.json").write_text('{"schema_version": 7}')
    assert "schema_version is 7" in refusal("daily", "--ds", "2026-03-02", "--workspace", str(tmp_path))


def test_a_stage_before_its_input_is_one_line(tmp_path: Path) -> None:
    assert "run `fuxi sessionize` for this ds first" in refusal(
        "train", "--ds", "2026-03-02", "--workspace", str(tmp_path)
    )


def test_a_dry_run_says_what_would_run_and_changes_nothing(tmp_path: Path) -> None:
    done = fuxi("daily", "--ds", "2026-03-02", "--workspace", str(tmp_path), "--dry-run")
    assert done.returncode == 0
    assert "sessionize   to run" in done.stdout
    assert not list(tmp_path.iterdir())


def test_doctor_passes_here_and_says_what_to_install_without_java(tmp_path: Path) -> None:
    here = fuxi("doctor", "--workspace", str(tmp_path))
    assert here.returncode == 0, here.stdout
    without = fuxi("doctor", "--workspace", str(tmp_path), JAVA_HOME=str(tmp_path / "nowhere"))
    assert without.returncode == 1
    assert "install openjdk-17-jre-headless" in without.stdout


@pytest.mark.parametrize(("torch", "fits"), [("2.13.0", True), ("2.14.1", False)])
def test_doctor_tells_triples_that_work_together_from_mixed_ones(tmp_path: Path, torch: str, fits: bool) -> None:
    for name, version in {"torch": torch, "torchrec": "1.8.0", "fbgemm_gpu_cpu": "1.8.0"}.items():
        (tmp_path / f"{name}-{version}.dist-info").mkdir()
        (tmp_path / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    done = fuxi("doctor", "--workspace", str(tmp_path / "w"), PYTHONPATH=f"{tmp_path}:{Path.cwd()}")
    assert (done.returncode == 0) == fits
    assert ("or torch 2.14, torchrec 1.9" in " ".join(done.stdout.split())) != fits


def test_doctor_names_a_workspace_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = fuxi("doctor", "--workspace", str(tmp_path / "file" / "w"))
    assert done.returncode == 1
    assert "choose another place with --workspace" in done.stdout


def test_the_configuration_in_force_is_printed_and_can_be_read_back(tmp_path: Path) -> None:
    first = fuxi("config", "--set", "train.epochs=9").stdout
    (tmp_path / "c.yaml").write_text(first)
    assert fuxi("config", "--config", str(tmp_path / "c.yaml")).stdout == first
    assert "epochs: 9" in first
