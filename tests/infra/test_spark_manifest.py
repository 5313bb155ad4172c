"""The SparkApplication: what it asks for is what the command line and the image have, and its sizes add up."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from benchmarks.cluster_sizes import Measured, Wanted, size
from jobs.cli import cli

ROOT = Path(__file__).parents[2]
SPARK = ROOT / "infra" / "spark"


def manifest() -> dict[str, Any]:
    return yaml.safe_load((SPARK / "sessionize-sparkapplication.yaml").read_text())


def sizes() -> dict[str, dict[str, Any]]:
    return {file.stem.removeprefix("sizes-"): yaml.safe_load(file.read_text()) for file in SPARK.glob("sizes-*.yaml")}


def test_the_command_line_takes_its_arguments(tmp_path: Path) -> None:
    config = tmp_path / "daily.yaml"
    config.write_text(f"workspace: {tmp_path}/workspace\n")
    arguments = manifest()["spec"]["arguments"]
    [path] = [argument for argument in arguments if argument.endswith("/daily.yaml")]
    mounted = {f"{item['path']}/daily.yaml" for item in manifest()["spec"]["driver"]["configMaps"]}
    assert path in mounted
    given = [str(config) if argument == path else argument for argument in arguments]
    done = CliRunner().invoke(cli, ["sessionize", *given, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert done.output.split() == ["sessionize", "to", "run", "has", "not", "finished"]


def test_the_image_has_its_script_its_spark_and_its_user() -> None:
    spec, dockerfile = manifest()["spec"], (ROOT / "infra" / "docker" / "Dockerfile").read_text()
    script = spec["mainApplicationFile"].removeprefix("local:///opt/fuxi/")
    assert (ROOT / script).exists() and f"COPY {script} {script}" in dockerfile
    assert f'"pyspark=={spec["sparkVersion"]}"' in (ROOT / "pyproject.toml").read_text()
    for pod in (spec["driver"], spec["executor"]):
        assert f"--uid {pod['podSecurityContext']['runAsUser']} " in dockerfile


def test_nothing_secret_is_in_it_and_all_pods_have_the_cloud_s_identity() -> None:
    spec = manifest()["spec"]
    documents = yaml.safe_load_all((SPARK / "service-account.yaml").read_text())
    [account] = [document for document in documents if document["kind"] == "ServiceAccount"]
    assert {spec[pod]["serviceAccount"] for pod in ("driver", "executor")} == {account["metadata"]["name"]}
    text = "".join(file.read_text() for file in SPARK.glob("*.yaml")).lower()
    assert not any(word in text for word in ("access.key", "secret", "access_key", "password", "token:"))


def test_kustomize_finds_its_files_and_what_the_sizes_are_for() -> None:
    kustomization = yaml.safe_load((SPARK / "kustomization.yaml").read_text())
    files = [*kustomization["resources"], *(patch["path"] for patch in kustomization["patches"])]
    assert all((SPARK / file).exists() for file in files)
    for found in sizes().values():
        assert {key: found[key] for key in ("apiVersion", "kind", "metadata")} == {
            key: manifest()[key] for key in ("apiVersion", "kind", "metadata")
        }


def test_its_master_comes_from_the_submission() -> None:
    spec = manifest()["spec"]
    assert not any(key == "spark.master" for key in spec["sparkConf"])
    assert "spark_master" not in " ".join(spec["arguments"])


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """The files as the command in README.md writes them, and its arguments."""
    block = re.search(r"<!-- sizes: begin -->\n\n((?:    .*\n)+)", (SPARK / "README.md").read_text())
    assert block, "README.md has no command between its marks"
    words = shlex.split(block.group(1).replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "benchmarks.cluster_sizes"] and words[-2:] == ["--write", "infra/spark"]
    folder = tmp_path / "infra" / "spark"
    folder.mkdir(parents=True)
    shutil.copy(SPARK / "README.md", folder)
    environment = {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    arguments = " ".join(words[3:-2])
    return folder, dict(re.findall(r"--([a-z-]+) ([^-][^ ]*)", arguments))


def test_its_sizes_are_what_the_command_beside_them_makes(written: tuple[Path, dict[str, str]]) -> None:
    folder, _ = written
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["README.md", "sizes-1e10.yaml", "sizes-1e9.yaml"]
    for name in names:
        assert (folder / name).read_text() == (SPARK / name).read_text(), f"{name} is not what its command writes"


def test_a_pod_holds_a_task_on_every_core_and_the_cluster_is_done_in_time(written: tuple[Path, dict[str, str]]) -> None:
    _, given = written
    assert set(sizes()) == {"1e9", "1e10"}
    for name, found in sizes().items():
        executor, driver = found["spec"]["executor"], found["spec"]["driver"]
        overhead = int(executor["memoryOverhead"].removesuffix("m"))
        assert overhead >= executor["cores"] * int(given["task-mib"]) + 384
        assert int(driver["memoryOverhead"].removesuffix("m")) >= int(given["driver-mib"]) + 384
        assert executor["memory"] == driver["memory"] == f"{given['heap-mib']}m"
        cores = executor["instances"] * executor["cores"]
        needed = float(name) / 1e6 * float(given["cpu-s-per-million"])
        available = cores * float(given["busy"]) * float(given["minutes"]) * 60
        assert needed <= available
        spare = executor["cores"] * float(given["busy"]) * float(given["minutes"]) * 60
        assert needed > available - spare, "an executor less would do"
        assert found["spec"]["dynamicAllocation"]["maxExecutors"] == executor["instances"]
        assert found["spec"]["sparkConf"]["spark.default.parallelism"] == str(cores)


def test_a_size_worked_by_hand() -> None:
    measured = Measured(
        cpu_s_per_million=3.6,
        busy=0.5,
        task_mib=1000,
        partition_plays=8e6,
        log_bytes=10,
        temporary_bytes=6,
        shard_bytes=5,
        driver_mib=500,
        heap_mib=1024,
    )
    found = size(1e9, measured, Wanted(minutes=30, executor_cores=4))
    assert found.cpu_hours == 1  # of which an executor of 4 half-busy cores does 2 x 30 minutes
    assert (found.executors, found.minutes) == (1, 30)
    assert (found.executor_overhead_mib, found.driver_overhead_mib) == (4384, 884)
    assert (found.buckets, found.runs) == (128, 125)  # 125 partitions of 8 million, a power of two
    assert (found.log_gb, found.temporary_gb, found.shard_gb) == (10, 6, 5)
    assert found.executor_mb_s == (10 + 6 + 6 + 5) * 1000 / 1800
    assert size(1e10, measured, Wanted(minutes=30, executor_cores=4)).executors == 10
    with pytest.raises(SystemExit, match="131072 buckets"):
        size(1e12, measured, Wanted(minutes=30, executor_cores=4))
