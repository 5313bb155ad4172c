"""Runs a function as Spark tasks: one call for each task, its result back on the driver."""

import functools
import gc
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pipelines.errors import InputError

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
    result = body(task)
    return {**result, "task_seconds": time.process_time() - began}


@functools.cache
def _freeze_imports() -> None:
    """Exempt everything a worker has imported from garbage collection, once.

    PySpark collects garbage after every task and would visit those few hundred thousand permanent objects each time,
    a tenth of the processor time.
    """
    gc.collect()
    gc.freeze()
