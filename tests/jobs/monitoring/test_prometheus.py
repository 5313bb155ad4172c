"""What Prometheus sees of a day however it ends: in the textfile collector's file, and at a push gateway."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from jobs.cli import cli
from tests.log_lines import lines, said

from ..runtime.test_supervisor import DS, KILLED, Command

Samples = dict[tuple[str, ...], float]
NAME = "fuxi_exit_code"


def samples(text: str) -> Samples:
    """(name, label values ...) -> value."""
    families = list(text_string_to_metric_families(text))
    assert all(family.type == "gauge" and family.documentation.endswith(".") for family in families)
    return {(sample.name, *sample.labels.values()): sample.value for one in families for sample in one.samples}


class Gateway(http.server.BaseHTTPRequestHandler):
    """Takes what is pushed."""

    pushed: list[tuple[str, str, Samples]]

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.pushed.append((self.command, self.path, samples(body)))
        self.send_response(202)
        self.end_headers()

    def do_POST(self) -> None:
        self.do_PUT()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def gateway() -> Iterator[tuple[str, list[tuple[str, str, Samples]]]]:
    pushed: list[tuple[str, str, Samples]] = []
    handler = type("Handler", (Gateway,), {"pushed": pushed})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", pushed
    server.shutdown()
    server.server_close()


def day(folder: Path, death: str = "", stage: str = "", *settings: str, times: int = 99) -> Command:
    file = f"metrics.prometheus_file={folder}/fuxi.prom"
    return Command(folder, death, stage=stage, times=times, settings=(file, "cluster.stage_retries=0", *settings))


def test_every_end_of_a_day_is_in_the_file(tmp_path: Path) -> None:
    file, before = tmp_path / "fuxi.prom", time.time()
    refusal = "from pipelines.errors import InputError; raise InputError('too few plays: correct the logs')"
    for death, stage, code, published in (
        (refusal, "recommend", 2, 0),
        (KILLED, "recommend", 1, 0),
        (refusal, "train", 3, 1),
        ("", "", 0, 1),
    ):
        assert day(tmp_path, death, stage).run("daily", "--force")[0] == code
        found = samples(file.read_text())
        assert found[NAME,] == code and found["fuxi_day_published",] == published
        assert found["fuxi_run_timestamp_seconds",] >= before
        assert (("fuxi_newest_list_timestamp_seconds",) in found) == bool(published)
        assert (("fuxi_stage_duration_seconds", "sessionize") in found) and not list(tmp_path.glob("fuxi.prom.*"))
    assert found["fuxi_newest_list_day_timestamp_seconds",] == found["fuxi_run_day_timestamp_seconds",] == 1772409600
    assert found["fuxi_served_info", "", "popularity"] == 1


def test_a_workspace_that_cannot_be_read_leaves_what_was_known_of_it_and_a_bad_file_changes_no_exit_code(
    tmp_path: Path,
) -> None:
    day(tmp_path).run()
    known = samples((tmp_path / "fuxi.prom").read_text())
    (tmp_path / "w" / "_workspace.json").write_text("{")
    command = day(tmp_path)
    assert command.run()[0] == 2
    now = samples((tmp_path / "fuxi.prom").read_text())
    assert now[NAME,] == 2 and known.keys() == now.keys()
    assert now["fuxi_newest_list_timestamp_seconds",] == known["fuxi_newest_list_timestamp_seconds",]
    (tmp_path / "2").mkdir()
    (tmp_path / "file").touch()
    code, shown = day(tmp_path / "2", "", "", f"metrics.prometheus_file={tmp_path}/file/x.prom").run()
    assert code == 0 and len(shown) == 1 and "x.prom was not written" in shown[0]


def test_a_push_gateway_takes_the_metrics_and_one_that_is_gone_is_one_warning(
    tmp_path: Path, gateway: tuple[str, list[tuple[str, str, Samples]]]
) -> None:
    url, pushed = gateway
    assert day(tmp_path, "", "", f"metrics.push_gateway={url}", "metrics.job=music").run()[0] == 0
    [(method, path, found)] = pushed
    assert (method, path) == ("PUT", "/metrics/job/music") and found[NAME,] == 0
    assert found == samples((tmp_path / "fuxi.prom").read_text())
    (tmp_path / "w" / "_workspace.json").write_text("{")
    assert day(tmp_path, "", "", f"metrics.push_gateway={url}").run()[0] == 2
    method, _, found = pushed[-1]  # nothing that the gateway knows of the workspace is removed
    assert method == "POST" and found[NAME,] == 2 and ("fuxi_day_published",) not in found
    (tmp_path / "w" / "_workspace.json").unlink()
    command = day(tmp_path, "", "", "metrics.push_gateway=http://ann:planted-secret@127.0.0.1:9")
    code, shown = command.run()
    assert code == 0 and len(shown) == 1 and "did not take the metrics" in shown[0]
    assert "planted-secret" not in json.dumps(command.written)


def test_status_writes_the_newest_day_and_keeps_the_last_run(tmp_path: Path) -> None:
    day(tmp_path, "", "").run()
    file = tmp_path / "fuxi.prom"
    at_end = samples(file.read_text())
    shown = CliRunner().invoke(cli, ["status", f"{tmp_path}/w", "--prometheus", str(file)], catch_exceptions=False)
    assert shown.output == "" and samples(file.read_text()) == at_end
    other = tmp_path / "new" / "x.prom"
    CliRunner().invoke(cli, ["status", f"{tmp_path}/w", "--prometheus", str(other)], catch_exceptions=False)
    assert samples(other.read_text()) == {
        key: value for key, value in at_end.items() if key[0] not in (NAME,) and not key[0].startswith("fuxi_run_")
    }


def test_a_file_that_the_collector_does_not_read_is_refused(tmp_path: Path) -> None:
    with Command(tmp_path, "", stage="", times=0, settings=("metrics.prometheus_file=x.txt",)).start() as process:
        _, written = process.communicate(timeout=60)
    assert process.returncode == 2 and "the textfile collector reads files that end in .prom" in said(written)[0]
    assert lines(written)[0]["ds"] == DS
