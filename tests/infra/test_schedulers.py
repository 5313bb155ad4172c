"""What schedulers do with a day: the DAG run by Airflow itself, manifests against Kubernetes' published schemas."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
MANIFESTS = [INFRA / "k8s" / name for name in ("daily-cronjob.yaml", "service-account.yaml")]
RUN_DAG = """
import datetime as dt, json, sys
sys.path.insert(0, sys.argv[1])
import fuxi_daily
fuxi_daily.day.retry_delay = dt.timedelta(0)
run = fuxi_daily.dag.test(logical_date=dt.datetime.fromisoformat(sys.argv[2]), run_conf=json.loads(sys.argv[3]))
states = {task.task_id: str(task.state) for task in run.get_task_instances()}
print("STATES", json.dumps({"run": str(run.state), **states}))
"""
FUXI = """#!/bin/sh
echo "$@" >> "$CALLS"
exit "$EXIT_CODE"
"""


def cron_job() -> dict[str, Any]:
    return yaml.safe_load(MANIFESTS[0].read_text())


def pod() -> dict[str, Any]:
    return cron_job()["spec"]["jobTemplate"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def schedulers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with Airflow and the schemas; needs a package index."""
    folder = tmp_path_factory.mktemp("schedulers")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [folder / "bin" / "pip", "install", "--quiet", "-r", INFRA / "test-requirements.txt"]
    subprocess.run(install, check=True, timeout=540)
    return folder / "bin"


@pytest.fixture
def run_dag(schedulers: Path, tmp_path: Path) -> Callable[..., tuple[dict[str, str], list[str]]]:
    """Run the DAG with a `fuxi` that ends with the given code: the states of run and tasks, and `fuxi`'s arguments."""
    fuxi = tmp_path / "bin" / "fuxi"
    fuxi.parent.mkdir()
    fuxi.write_text(FUXI)
    fuxi.chmod(0o755)
    calls = tmp_path / "calls"
    own = {
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(INFRA / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PYTHONDONTWRITEBYTECODE": "1",
        "CALLS": str(calls),
    }
    path = f"{fuxi.parent}:{schedulers}:{os.environ['PATH']}"
    environment = {**os.environ, **own, "PATH": path, "FUXI_TIMEZONE": "Asia/Tokyo"}
    subprocess.run([schedulers / "airflow", "db", "migrate"], check=True, env=environment, capture_output=True)

    def run(exit_code: int, scheduled: str, conf: str = "{}") -> tuple[dict[str, str], list[str]]:
        calls.unlink(missing_ok=True)
        command = [schedulers / "python", "-c", RUN_DAG, INFRA / "airflow", scheduled, conf]
        variables = {**environment, "EXIT_CODE": str(exit_code)}
        done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
        states = [line for line in done.stdout.splitlines() if line.startswith("STATES ")]
        assert states, done.stdout[-2000:] + done.stderr[-2000:]
        return json.loads(states[0].removeprefix("STATES ")), calls.read_text().splitlines()

    return run


@pytest.mark.slow
def test_airflow_ends_a_day_as_it_ended_and_repeats_only_what_broke_off(run_dag: Callable[..., Any]) -> None:
    """03:00 in Tokyo is 18:00 UTC of the day before: the day is Tokyo's."""
    scheduled, command = "2026-03-01T18:00:00+00:00", "daily --ds 2026-03-02 --config /etc/fuxi/daily.yaml"
    expected = {
        0: ({"run": "success", "day": "success", "alert": "skipped"}, 1),
        1: ({"run": "failed", "day": "failed", "alert": "upstream_failed"}, 4),
        2: ({"run": "failed", "day": "failed", "alert": "upstream_failed"}, 1),
        3: ({"run": "failed", "day": "success", "alert": "failed"}, 1),
    }
    for exit_code, (states, times) in expected.items():
        assert run_dag(exit_code, scheduled) == (states, [command] * times), exit_code
    _, [called] = run_dag(0, "2026-03-05T18:00:00+00:00", '{"ds": "2026-02-27"}')
    assert called.startswith("daily --ds 2026-02-27 ")


@pytest.mark.slow
def test_kubernetes_takes_the_manifests(schedulers: Path) -> None:
    subprocess.run([schedulers / "kubernetes-validate", "--strict", *MANIFESTS], check=True)


def test_the_cron_job_names_what_is_there() -> None:
    account = yaml.safe_load(MANIFESTS[1].read_text())
    assert account["metadata"]["name"] == pod()["serviceAccountName"]
    kustomization = yaml.safe_load((INFRA / "k8s" / "kustomization.yaml").read_text())
    assert set(kustomization["resources"]) == {file.name for file in MANIFESTS}
    [configuration] = kustomization["configMapGenerator"]
    assert {"name": configuration["name"]} in [volume.get("configMap") for volume in pod()["volumes"]]
    [container] = pod()["containers"]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {f"{path}/{name}" for path in mounted for name in configuration["files"]} >= {container["args"][-1]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod()["volumes"]}


def test_the_cron_job_runs_no_ended_day_again_and_ends_before_the_date_changes() -> None:
    spec = cron_job()["spec"]
    job = spec["jobTemplate"]["spec"]
    rules = {rule["action"]: rule for rule in job["podFailurePolicy"]["rules"]}
    assert rules["FailJob"]["onExitCodes"]["values"] == [2, 3]
    assert rules["FailJob"]["onExitCodes"]["containerName"] == pod()["containers"][0]["name"]
    assert pod()["restartPolicy"] == "Never", "a pod failure policy needs it"
    minute, hour = (int(field) for field in spec["schedule"].split()[:2])
    latest = hour * 3600 + minute * 60 + spec["startingDeadlineSeconds"] + job["activeDeadlineSeconds"]
    assert latest < 24 * 3600, "a later try would run with the date of the next day"


def test_the_cron_job_s_command_is_one_of_the_command_line(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from jobs.cli import cli

    [container] = pod()["containers"]
    config = tmp_path / "daily.yaml"
    own = yaml.safe_load((INFRA / "k8s" / "daily.yaml").read_text())
    config.write_text(yaml.safe_dump({**own, "workspace": str(tmp_path / "workspace")}))
    arguments = [str(config) if word.endswith("/daily.yaml") else word for word in container["args"]]
    done = CliRunner().invoke(cli, [*arguments, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("sessionize")


def test_today_is_the_date_in_the_service_s_time_zone() -> None:
    """No two clocks 26 hours apart ever show one date."""
    from jobs.cli import _serving_day
    from jobs.config import load_config

    zones = ("Pacific/Kiritimati", "Etc/GMT+12")
    configs = [load_config(overrides=[f"sequences.timezone={zone}"], environment={}) for zone in zones]
    ahead, behind = (_serving_day(config, "today") for config in configs)
    assert 1 <= (ahead - behind).days <= 2


def test_a_pod_may_do_little() -> None:
    [container] = pod()["containers"]
    assert pod()["securityContext"]["runAsNonRoot"] and pod()["automountServiceAccountToken"] is False
    limits = container["securityContext"]
    assert limits["readOnlyRootFilesystem"] and not limits["allowPrivilegeEscalation"]
    assert limits["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"].keys() >= {"memory", "ephemeral-storage"}
    dockerfile = (INFRA / "docker" / "Dockerfile").read_text()
    assert f"--uid {pod()['securityContext']['runAsUser']} " in dockerfile
