"""What an executor writes into its own log of a task that fails; what tasks do is tested where they are."""

import traceback
from typing import Any

import pytest

from pipelines import spark
from pipelines.errors import InputError

SECRET = "planted-in-the-environment"


def trace_of(error: type[Exception], text: str) -> str:
    """The trace that PySpark sends to its executor."""

    def fail(task: None) -> dict[str, Any]:
        raise error(text) from OSError(f"the cause says {text}")

    try:
        spark._run(fail, None)
    except Exception as raised:
        return "".join(traceback.format_exception(raised))
    pytest.fail("nothing was raised")


@pytest.mark.parametrize("error", [OSError, KeyError, InputError])
def test_the_trace_of_a_task_is_without_secrets(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    trace = trace_of(error, f"cannot sign with {SECRET} for http://ann:hunter22@host/")
    assert SECRET not in trace and "hunter22" not in trace
    assert "cannot sign with *** for http://***@host/" in trace
    assert ("pipelines.errors.InputError: cannot sign" in trace) == (error is InputError)  # the driver looks for it


def test_an_error_without_secrets_is_raised_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    trace = trace_of(KeyError, "song")
    assert "KeyError: 'song'" in trace and "the cause says song" in trace
