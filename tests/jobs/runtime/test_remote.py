"""What runs in a worker of Ray leaves no secret in any file of Ray's session, however it is told."""

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from jobs.runtime.remote import redacting

PLANTED = ("planted-in-the-environment", "planted-in-a-url")
LEAKS = """
import logging, os, sys, traceback, warnings
from jobs.config import ClusterConfig
from jobs.runtime.engines import ray_session
from jobs.runtime.remote import redacting


@redacting
def leak(how):
    text = f"{os.environ['AWS_SECRET_ACCESS_KEY']} http://ann:{os.environ['OTHER']}@host/"
    if how == "print":
        print(text)
        print(text, file=sys.stderr)
        warnings.warn(text)
    elif how == "log":
        logging.getLogger("ray.train").error("%s", text)
        try:
            raise OSError(2, text, text)
        except OSError:
            logging.getLogger("other").exception("told by the way")
            traceback.print_exc()
    elif how == "raise":
        try:
            raise OSError(2, text, text)
        except OSError as error:
            error.add_note(text)
            raise ValueError([text], {"password": text}) from error
    elif how == "stubborn":
        class Stubborn(Exception):
            def __str__(self):
                return text
        raise Stubborn
    else:
        sys.exit(text)
    print(f"told by {how}", file=sys.stderr)


ray = ray_session(ClusterConfig())
for how in ("print", "log", "raise", "stubborn", "exit"):
    try:
        ray.get(ray.remote(max_retries=0)(leak).remote(how))
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_no_file_of_ray_holds_a_secret_that_a_worker_tells() -> None:
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # Ray's sockets need a short path
        environment = {**os.environ, "RAY_TMPDIR": folder, "AWS_SECRET_ACCESS_KEY": PLANTED[0], "OTHER": PLANTED[1]}
        command = [sys.executable, "-c", LEAKS]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
        files = {file: file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}
    assert done.returncode == 0, done.stderr
    assert any(b"told by log" in content for content in files.values()) and "ValueError" in done.stdout
    assert any(b"told by the way" in content for content in files.values())
    found = [(str(file), secret) for file, content in files.items() for secret in PLANTED if secret.encode() in content]
    assert not found, [line for content in files.values() for line in content.splitlines() if b"planted" in line][:3]
    assert not [secret for secret in PLANTED if secret in done.stdout + done.stderr]


def test_every_function_that_is_given_to_ray_is_redacting() -> None:
    from jobs.stages import recommend
    from jobs.training import worker

    given = {recommend._make_part, worker.train_worker}
    assert all(hasattr(function, "__wrapped__") for function in given)
    uses = subprocess.run(
        ["grep", "-rlE", r"ray\.remote\(|TorchTrainer\(", "jobs"], capture_output=True, text=True, check=True
    )
    assert set(uses.stdout.split()) == {"jobs/stages/recommend.py", "jobs/training/ray.py"}


def test_an_error_without_secrets_is_raised_as_it_is() -> None:
    error = KeyError("song")

    def fail() -> None:
        raise error

    with pytest.raises(KeyError) as raised:
        redacting(fail)()
    logging.setLogRecordFactory(logging.LogRecord)
    assert raised.value is error
