"""`fuxi synth`: write or extend synthetic music logs, with a progress bar."""

import time
from typing import Any

from jobs.console import progress
from pipelines.synthetic import SyntheticConfig, generate


def synth(config: SyntheticConfig, out: str) -> dict[str, Any]:
    """Generate the days that are missing under `out`; returns where they are, and the rows and days written.

    Raises InputError if `out` holds a log of another configuration.
    """
    started = time.monotonic()
    with progress("Generating plays", config.days, unit="days") as advance:
        result = generate(config, out, on_progress=advance)
    return {**result, "seconds": round(time.monotonic() - started, 2)}
