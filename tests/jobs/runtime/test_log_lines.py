"""One format for every line: what libraries say, secrets, numbers that JSON has not, and who chooses the format."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from jobs.config import Config, load_config
from jobs.runtime import log_lines
from pipelines.errors import InputError
from tests.log_lines import lines, said

NOISE = """
import logging, os, sys, threading, warnings
import numpy as np
from jobs.runtime import console, log_lines
from pipelines import progress
log_lines.install(output=True)
log_lines.about("2026-03-02")
progress.begun("train")
print("printed\\nin two lines", end="")
print(" and more")
sys.stderr.write("\\r 10%|#  |\\r 20%|## |\\n\\n")
warnings.warn("slower than it should be")
logging.getLogger("library").error("it said %s", "so")
logging.getLogger("pipelines.leases").error("s3://ann:planted-secret@w cannot be renewed")
thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()
console.log("figures", loss=float("nan"), path=os, songs=np.int64(3), ds="2026-03-01", api_key="planted-secret")
log_lines.say("the bound (a: b) is broken: change it", "error", remedy=log_lines.remedy("x (a: b): change it"))
"""


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "MY_SECRET": "planted-secret", **environment}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=True)


def test_whatever_is_written_is_a_line_with_all_keys() -> None:
    done = run(NOISE)
    assert [line["message"] for line in lines(done.stdout)] == ["printed", "in two lines and more"]
    written = lines(done.stderr)
    found = {(line["logger"], line["level"], line["message"]) for line in written}
    assert {
        ("stderr", "warning", " 20%|## |"),
        ("py.warnings", "warning", "UserWarning: slower than it should be"),
        ("library", "error", "it said so"),
        ("pipelines.leases", "error", "s3://***@w cannot be renewed"),
        ("stderr", "warning", "ZeroDivisionError: division by zero"),
    } <= found
    assert {line["stage"] for line in written} == {"train"} and "planted-secret" not in done.stderr + done.stdout
    [figures] = [line for line in written if line["message"] == "figures"]
    assert (figures["loss"], figures["songs"], figures["ds"], figures["api_key"]) == (None, 3, "2026-03-01", "***")
    assert written[-1]["remedy"] == "change it" and written[-1]["ds"] == "2026-03-02"
    assert said(done.stderr)[-1] == "fuxi: the bound (a: b) is broken: change it"


def test_text_is_for_people_wherever_it_goes() -> None:
    done = run(NOISE.replace("log_lines.install", "log_lines.choose('text'); log_lines.install"))
    assert done.stdout == "printed\nin two lines and more\n"
    shown = done.stderr.splitlines()
    assert "fuxi: s3://***@w cannot be renewed" in shown and "it said so" in shown
    assert shown[-1] == "fuxi: the bound (a: b) is broken: change it" and "planted-secret" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ((), {}, False),
        (("--log-format=json",), {"FUXI_LOG_FORMAT": "text"}, False),
        (("--set", "log_format=text"), {}, True),
        (("--log-format", "json", "--set", "log_format=text"), {}, False),
    ],
)
def test_an_option_counts_more_than_the_configuration(
    arguments: tuple[str, ...], environment: dict[str, str], expected: bool, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "jobs.cli", "maintain", "--workspace", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    assert done.returncode == 2 and done.stderr.startswith("fuxi: ") == expected, done.stderr
    assert expected or said(done.stderr)


def test_the_setting_knows_the_formats_of_the_option() -> None:
    assert get_args(Config.model_fields["log_format"].annotation) == log_lines.FORMATS
    with pytest.raises(InputError, match="log_format"):
        load_config(environment={"FUXI_LOG_FORMAT": "xml"})
    assert load_config(overrides=["log_format=json"], environment={}).hash() == load_config(environment={}).hash()
