"""`fuxi promote --pin | --unpin | --rollback`: which version serves, in place of the gates."""

from jobs.config import Config
from jobs.day import Day
from jobs.registry import steering
from pipelines.errors import InputError
from pipelines.workspace import open_workspace


def run(config: Config, *, pin: str | None = None, unpin: bool = False, rollback: bool = False) -> str:
    """Do one of them; what was done, in words. Days that are published stay as they are."""
    workspace = open_workspace(config.workspace)
    days = workspace.days("runs")
    if not days:
        raise InputError(f"{workspace.uri} has no days yet: run `fuxi daily` first")
    day = Day(config, days[-1], workspace)
    if pin:
        info = steering.pin(day, pin)
        return f"version {info.version}, trained for {info.ds}, serves every day that is promoted from now on"
    if unpin:
        before = steering.unpin(day)
        return f"version {before} is not pinned any more: the gates decide" if before else "no version was pinned"
    gone, serves = steering.roll_back(day)
    redo = f"`fuxi promote --ds {day.ds} --force`, then `fuxi daily --ds {day.ds}`"
    return (
        f"version {gone.version} is out of service, version {serves.version} of {serves.ds} is champion; lists that "
        f"are published stay: {redo}, makes those of the newest day with it"
    )
