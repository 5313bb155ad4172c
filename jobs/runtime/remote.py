"""Functions that run in a worker of Ray: what they print, log and raise is without secrets.

Ray keeps a worker's output and the errors of its tasks in files of its own, in the session's folder of every node.
"""

import contextlib
import functools
import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from jobs.runtime.deaths import chain
from pipelines.redact import RedactingStream, redact, redacted

P = ParamSpec("P")
T = TypeVar("T")


def redacting(function: Callable[P, T]) -> Callable[P, T]:
    """The same function for a worker. Secrets are those that the worker's environment names, and those in URLs."""

    @functools.wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> T:
        _redact_output()
        try:
            return function(*arguments, **named)
        except BaseException as error:
            told = _without_secrets(error)
        raise told

    return run


def _redact_output() -> None:
    """Redact what this process prints and logs from now on; not what native code writes by itself."""
    if isinstance(sys.stderr, RedactingStream):
        return
    sys.stdout, sys.stderr = RedactingStream(sys.stdout), RedactingStream(sys.stderr)  # type: ignore[assignment]
    make = logging.getLogRecordFactory()

    def record(*arguments: Any, **named: Any) -> logging.LogRecord:
        made = make(*arguments, **named)  # handlers may hold the streams of before, or write files
        with contextlib.suppress(TypeError, ValueError):  # arguments that do not fit are the handler's to tell
            made.msg, made.args = redact(made.getMessage()), ()
        if made.exc_info and made.exc_info[1]:
            made.msg = f"{made.msg}\n{redact(_trace(made.exc_info[1]))}"
            made.exc_info = None
        return made

    logging.setLogRecordFactory(record)


def _without_secrets(error: BaseException) -> BaseException:
    """The error with every text in it and its causes redacted; one that does not let itself be changed: its trace."""
    if not _tells_secrets(error):
        return error
    for one in chain(error):
        one.args = tuple(redacted(list(one.args)))
        for name in (*vars(one), "strerror", "filename", "filename2", "code"):
            if isinstance(value := getattr(one, name, None), str | list | dict):
                with contextlib.suppress(AttributeError, TypeError):
                    setattr(one, name, redacted(value))
    return RuntimeError(redact(_trace(error))) if _tells_secrets(error) else error


def _tells_secrets(error: BaseException) -> bool:
    texts = [text for one in chain(error) for text in (str(one), *getattr(one, "__notes__", ()))]
    return any(redact(text) != text for text in texts)


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()
