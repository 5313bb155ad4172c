"""docs/monitoring.md and the alerts of docs/operations.md: what they show is what the code writes and reads."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from jobs.monitoring import lineage
from jobs.stage_inputs import STAGE_INPUTS
from tests.log_lines import KEYS, lines

from ..lineage_events import read_events

ROOT = Path(__file__).parents[2]
PAGE, RUN_BOOK = ((ROOT / "docs" / name).read_text() for name in ("monitoring.md", "operations.md"))
SOURCE = (ROOT / "jobs" / "monitoring" / "prometheus.py").read_text()
EXPORTED = set(re.findall(r'"(fuxi_\w+)"', SOURCE))
ROWS = re.findall(r"^\| `(fuxi_.*?) \| (.+) \|$", PAGE, re.M)
ALERTS = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", RUN_BOOK, re.S)[0])["groups"][0]["rules"]


def example(kind: str, number: int = 0) -> str:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.S)[number]


def test_the_page_lists_every_metric_and_no_other() -> None:
    listed = [name for cells, _ in ROWS for name in re.findall(r"fuxi_\w+", cells)]
    assert sorted(listed) == sorted(EXPORTED) and len(EXPORTED) > 12


def test_the_example_of_a_scrape_is_one() -> None:
    families = list(text_string_to_metric_families(example("text")))
    assert len(families) > 8 and {family.name for family in families} <= EXPORTED


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_reads_metrics_that_there_are_and_has_an_entry_in_the_run_book(alert: dict) -> None:
    named = set(re.findall(r"fuxi_\w+", alert["expr"]))
    assert named and named <= EXPORTED
    assert alert.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert alert["expr"].count("(") == alert["expr"].count(")") and alert["annotations"]["summary"]
    assert re.fullmatch(r"\d+[hmd]", alert.get("for", "1h")) and alert["labels"]["severity"] in ("page", "ticket")
    assert re.search(rf"^\| `{alert['alert']}` \| .+ \| .+ \|$", RUN_BOOK, re.M)


def test_the_query_of_the_page_runs_on_the_lines_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = lines(example("json") + example("json", 1))
    (tmp_path / "day.log").write_text("".join(f"{json.dumps(line)}\n" for line in shown))
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(example("python"), {})
    assert "'sessionize': " in printed.getvalue() and printed.getvalue().endswith(" 2\n")
    keys = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE.partition("## Prometheus")[0], re.M)))
    assert set(KEYS) < set(keys)


def test_the_event_of_the_page_is_one_and_the_table_says_what_each_stage_reads_and_writes(tmp_path: Path) -> None:
    event = json.loads(example("json", 2))
    (tmp_path / "events").write_text(json.dumps(event))
    assert read_events(tmp_path / "events")[0].job.name in STAGE_INPUTS
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", PAGE.partition("## OpenLineage")[2], re.M)
    words = {"logs": "logs", "catalogue": "catalogue", "model": "model", "tables of rules": "song_lists"}
    for stage, reads, writes in rows:
        for cell, told in ((reads, lineage._READS[stage]), (writes, lineage._WRITES[stage])):
            named = [words.get(part, part.strip("`")) for part in cell.split(", ")]
            assert named == [data for data in told if data not in ("feedback", "listeners")]
    assert [stage for stage, *_ in rows] == list(STAGE_INPUTS)


def test_the_table_of_exit_codes_has_those_of_the_help() -> None:
    codes = re.findall(r"^\| (\d[\d, ]*) \|", RUN_BOOK, re.M)
    help_text = (ROOT / "jobs" / "cli.py").read_text().partition("def daily(")[2].partition('"""\n    from')[0]
    assert codes[:5] == ["0", "1", "2", "3", "129, 130, 143"]
    assert all(re.search(rf"\b{code}\b", help_text) for code in re.findall(r"\d+", " ".join(codes[:5])))
