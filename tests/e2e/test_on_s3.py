"""A day of which everything is on S3, by the command, with secrets in its configuration and environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.lib.fault_proxy import FaultProxy, Faults
from jobs.commands import show
from jobs.config import load_config
from pipelines import object_store, storage
from pipelines.schema import parse_ds
from pipelines.synthetic import SyntheticConfig, generate
from tests.log_lines import lines

DS = "2026-01-20"
PLANTED = ("planted-in-the-url", "planted-by-name-1", "planted-by-name-2")


@pytest.mark.slow  # six minutes on two busy cores: the pauses behind faults, more than the work
def test_a_day_on_s3_publishes_its_lists_and_none_of_its_secrets(s3: str, tmp_path: Path) -> None:
    logs = SyntheticConfig(
        listeners=60, songs=100, artists=20, plays_per_day=15, first_day=parse_ds("2026-01-05"), days=15, seed=5
    )
    generate(logs, str(tmp_path / "logs"))
    storage.upload_folder(str(tmp_path / "logs"), f"{s3}/logs")
    settings = {
        "workspace": f"{s3}/music",
        "logs": {"path": f"{s3}/logs/plays", "catalogue": f"{s3}/logs/catalogue"},
        "sequences": {"buckets": 2},
        "model": {"dim": 8, "layers": 1, "max_history": 20},
        "train": {"epochs": 2, "min_listeners": 2},
        "recommend": {"max_fallback_share": 1.0},
        "cluster": {
            "spark_master": "local[2]",
            "spark_options": {"spark.hadoop.fs.s3a.secret.key": PLANTED[1], "spark.proxy": f"http://a:{PLANTED[0]}@b/"},
        },
        "mlflow": {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }
    storage.write_bytes(f"{s3}/conf/daily.yaml", yaml.safe_dump(settings).encode())
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"], Faults(errors=0.01, resets=0.01), seed=2) as proxy:
        environment = {"AWS_ENDPOINT_URL": proxy.url, "MLFLOW_TRACKING_PASSWORD": PLANTED[2]}
        command = [sys.executable, "-m", "jobs.cli", "daily", "--ds", DS, "--config", f"{s3}/conf/daily.yaml"]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **environment}, check=False, timeout=400
        )
    assert done.returncode in (0, 3), done.stderr
    assert "Traceback" not in done.stderr
    said = lines(done.stdout + done.stderr)  # and nothing else
    assert {line["ds"] for line in said} == {DS} and len({line["run_id"] for line in said[5:]} - {None}) == 1
    assert {"sessionize", "train", "evaluate", "recommend", "report"} <= {line["stage"] for line in said}
    assert proxy.counts["errors"] and proxy.counts["resets"] + proxy.counts["late_resets"]
    config = load_config(f"{s3}/conf/daily.yaml", environment={})
    assert len(show.show(config, "1", parse_ds(DS))["items"]) == 30
    written = {file.uri: storage.read_bytes(file.uri) for file in storage.list_files(f"{s3}/music")}
    assert f"{s3}/music/reports/ds={DS}/report.html" in written
    written |= {"database": (tmp_path / "mlflow.db").read_bytes(), "output": (done.stdout + done.stderr).encode()}
    found = [(uri, secret) for uri, content in written.items() for secret in PLANTED if secret.encode() in content]
    assert not found
    uploads = object_store.client().list_multipart_uploads(Bucket="workspace-test").get("Uploads", [])
    assert not uploads
    assert storage.read_json(f"{s3}/music/runs/ds={DS}/daily.lock")["released"]
