"""What a command wrote into a pipe: JSON lines and nothing else (docs/operations.md)."""

import datetime as dt
import json
from typing import Any

KEYS = ("time", "level", "logger", "message", "ds", "run_id", "stage")
FOR_PEOPLE = ("fuxi.command", "fuxi.supervisor", "pipelines.leases")
"""Loggers of lines that a terminal shows as "fuxi: ..."."""


def lines(written: str) -> list[dict[str, Any]]:
    """Every line, each with all keys; AssertionError for anything else."""
    found = []
    for text in written.splitlines():
        assert text.startswith("{"), text
        line = json.loads(text, parse_constant=lambda number: 1 / 0)  # NaN is no JSON
        assert tuple(line)[: len(KEYS)] == KEYS, text
        assert dt.datetime.fromisoformat(line["time"]).utcoffset() == dt.timedelta(0)
        assert line["level"] in ("info", "warning", "error") and line["message"].strip(), text
        found.append(line)
    return found


def said(written: str) -> list[str]:
    """The lines for people, as a terminal shows them."""
    return [f"fuxi: {line['message']}" for line in lines(written) if line["logger"] in FOR_PEOPLE]
