"""Lines on standard error: for people on a terminal, JSON elsewhere (`log_format`), each with day, run and stage.

In JSON nothing else is written there: what libraries print, log or warn of becomes such a line, too, and so does what
a command of a day writes to standard output.
"""

import contextlib
import datetime as dt
import json
import logging
import math
import numbers
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from pipelines import progress
from pipelines.redact import HIDDEN, RedactingStream, is_secret_name, redact

if TYPE_CHECKING:
    from jobs.day import Day

FORMATS = ("auto", "text", "json")
CONTEXT = ("ds", "run_id", "stage")
_BASE = ("time", "level", "logger", "message")
_OURS = ("pipelines", "fuxi_beta", "jobs")
_BREAK = re.compile(r"[\r\n]+")


@dataclass
class _State:
    chosen: str = "auto"
    by_option: bool = False  # which no configuration changes
    ds: str = ""
    day: "Day | None" = None
    stage: str = ""
    error: TextIO | None = None  # standard error and output beneath what `install` has put over them
    output: TextIO | None = None


_state = _State()
_lock = threading.RLock()


def choose(chosen: str, *, by_option: bool = False) -> None:
    """Write in a format of FORMATS from now on, unless an option of the command line has said another one."""
    if by_option or not _state.by_option:
        _state.chosen, _state.by_option = chosen, by_option


def chosen() -> str:
    """The format as it was chosen."""
    return _state.chosen


def are_json() -> bool:
    """Whether lines are JSON: as chosen, else where standard error is no terminal."""
    return _state.chosen == "json" or (_state.chosen == "auto" and not _error().isatty())


def about(ds: str) -> None:
    """Lines are about this ds from now on, whose day is not opened yet."""
    with contextlib.suppress(ValueError):
        _state.ds, _state.day = str(dt.date.fromisoformat(ds)), None


def follow(day: "Day") -> None:
    """Lines are about this day, and its run record, from now on."""
    _state.ds, _state.day = str(day.ds), day


def context() -> dict[str, str | None]:
    """What a line is about: ds, id of the run record and stage, None where there is none (yet)."""
    run_id = _state.day.run_id if _state.day else ""
    return dict(zip(CONTEXT, (_state.ds or None, run_id or None, _state.stage or None), strict=True))


def write(level: str, logger: str, message: str, values: Mapping[str, Any], *, to: TextIO | None = None) -> None:
    """One JSON line, without secrets. values: further keys; `ds`, `run_id` and `stage` among them replace the context.

    to: a stream other than standard error.
    """
    time = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
    more = {key: value for key, value in values.items() if key not in _BASE}
    record = {"time": time, "level": level, "logger": logger, "message": message, **context(), **more}
    text, stream = json.dumps(_plain(record), allow_nan=False), to or _error()
    with _lock, contextlib.suppress(BrokenPipeError):
        stream.write(f"{text}\n")
        stream.flush()


def say(message: str, level: str = "warning", *, logger: str = "fuxi.command", **values: Any) -> None:
    """A line for whoever runs the command: "fuxi: ..." in text. values: further keys of the JSON line."""
    message = " ".join(message.split())
    if are_json():
        write(level, logger, message, values)
    else:
        print(redact(f"fuxi: {message}"), file=sys.stderr, flush=True)


def result(text: str, message: str, level: str = "info", **values: Any) -> None:
    """What a command of a day gives, on standard output: the text, or a JSON line with a message and further keys.

    Nothing is printed for an empty text.
    """
    if are_json():
        write(level, "fuxi.command", message, values, to=_state.output or sys.stdout)
    elif text:
        print(text, flush=True)


def show(text: str) -> None:
    """Something that the command was asked to print, on standard output as it is, without secrets."""
    print(redact(text), file=_state.output or sys.stdout, flush=True)


def remedy(message: str) -> str | None:
    """What to do about a refusal: what stands behind its last colon, as `InputError` wants it. None without one."""
    _, colon, what = message.rpartition(": ")
    return what if colon and what.count("(") == what.count(")") else None


def install(*, output: bool) -> None:
    """Put this process's streams, warnings and log records under this module's rules, once the work begins.

    output: standard output, too, of a command whose results are lines.
    """
    _state.error = sys.stderr
    sys.stderr = _Lines(sys.stderr, "stderr", "warning")  # type: ignore[assignment]
    if output:
        _state.output = sys.stdout
        sys.stdout = _Lines(sys.stdout, "stdout", "info")  # type: ignore[assignment]
    else:
        sys.stdout = RedactingStream(sys.stdout)  # type: ignore[assignment]
    warnings.showwarning = _show_warning
    logging.getLogger().addHandler(_Handler(logging.WARNING))


class _Lines(RedactingStream):
    """A standard stream: in JSON a log line for each line of text, else the text without secrets."""

    def __init__(self, stream: TextIO, logger: str, level: str) -> None:
        super().__init__(stream)
        self._logger, self._level, self._rest = logger, level, ""

    def write(self, text: str) -> int:
        if not are_json():
            return super().write(text)
        with _lock:
            *lines, self._rest = _BREAK.split(self._rest + text)
            for line in filter(str.strip, lines):
                write(self._level, self._logger, line, {}, to=self._stream)
        return len(text)


class _Handler(logging.Handler):
    """Records of libraries, and of `pipelines` and `fuxi_beta`, which know nothing of this module."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, with its trace if it has one."""
        trace = {"traceback": "".join(traceback.format_exception(*record.exc_info))} if record.exc_info else {}
        if are_json():
            write(record.levelname.lower(), record.name, record.getMessage(), trace)
        elif record.name.partition(".")[0] in _OURS:
            say(record.getMessage())
        else:
            print(record.getMessage(), *trace.values(), sep="\n", file=sys.stderr)


_show_in_text = warnings.showwarning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if file is None and are_json():
        write("warning", "py.warnings", f"{category.__name__}: {message}", {"where": f"{filename}:{lineno}"})
    else:
        _show_in_text(message, category, filename, lineno, file, line)


def _error() -> TextIO:
    return _state.error or sys.stderr


def _plain(value: Any, name: str = "") -> Any:
    """A value as JSON has it: without secrets, numbers that are not finite as null, what JSON does not know as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, numbers.Integral):  # of numpy
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return HIDDEN if is_secret_name(name) else redact(str(value))


def _on_progress(event: progress.Event, text: str) -> None:
    if event != "on":
        _state.stage = text if event == "begun" else ""


progress.listen(_on_progress)
