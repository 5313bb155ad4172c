"""Runs a function as Spark tasks: one call for each task, its result back on the driver."""

import functools
import gc
import re
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pipelines.errors import InputError
from pipelines.redact import redact

T = TypeVar("T")


def run_tasks(spark: Any, body: Callable[[T], dict[str, Any]], tasks: Sequence[T]) -> list[dict[str, Any]]:
    """body(task) of every task, in order, with "task_seconds", the processor time it took.

    A repeated task counts once: the driver takes one result of each. An InputError raised in a task is raised here
    with its one line.
    """
    work = spark.sparkContext.parallelize(list(tasks), max(len(tasks), 1)).map(functools.partial(_run, body))
    try:
        return work.collect()
    except Exception as error:
        found = re.search(rf"{InputError.__module__}\.InputError: (.+)", str(error))
        if found:
            raise InputError(found.group(1).strip()) from None
        raise


def _run(body: Callable[[T], dict[str, Any]], task: T) -> dict[str, Any]:
    _freeze_imports()
    began = time.process_time()
    try:
        result = body(task)
    except Exception as error:
        if (told := _without_secrets(error)) is not error:
            raise told from None  # executors write traces into logs of their own
        raise
    return {**result, "task_seconds": time.process_time() - began}


def _without_secrets(error: Exception) -> Exception:
    """The error, or what its trace says without secrets if there are any in it."""
    trace = "".join(traceback.format_exception(error))
    if redact(trace) == trace:
        return error
    return InputError(redact(str(error))) if isinstance(error, InputError) else RuntimeError(redact(trace))


@functools.cache
def _freeze_imports() -> None:
    """Exempt everything a worker has imported from garbage collection, once.

    PySpark collects garbage after every task and would visit those few hundred thousand permanent objects each time,
    a tenth of the processor time.
    """
    gc.collect()
    gc.freeze()
