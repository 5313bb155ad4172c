"""Work for Spark to hand out: one call of a function for each task, its result back on the driver."""

import functools
import gc
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pipelines.errors import InputError

T = TypeVar("T")

_settled = False


def run_tasks(spark: Any, body: Callable[[T], dict[str, Any]], tasks: Sequence[T]) -> list[dict[str, Any]]:
    """body(task) of every task, in order, with "task_seconds", the processor time it took.

    A task that is repeated counts once: the driver takes one result of each. An InputError raised in a task comes out
    as that one line.
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
    _settle()
    began = time.process_time()
    result = body(task)
    return {**result, "task_seconds": time.process_time() - began}


def _settle() -> None:
    """Take what a worker has imported out of the garbage collector's sight.

    PySpark collects garbage after every task, which looks at a few hundred thousand objects that will never be any:
    without this it takes a tenth of the processor time.
    """
    global _settled
    if not _settled:
        gc.collect()
        gc.freeze()
        _settled = True
