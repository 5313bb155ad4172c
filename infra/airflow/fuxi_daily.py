"""The day as an Airflow 3 DAG: one task runs `fuxi daily`, which skips what is done and resumes where it stopped.

How a day can end, by the exit code of `fuxi daily` (docs/day.md):

    0  published                                     day: success                    alert: skipped
    3  published, but by an earlier model or input   day: success, not run again     alert: failed
    2  refused, nothing published                    day: failed, not run again      alert: not run
    1  broke off (a machine lost, a store away)      day: run again three times      alert: not run

So a failed DAG run is what somebody should look at, and its failed task says whether there are lists. Attach your own
`on_failure_callback`, or alert on failed DAG runs as for any other DAG.
"""

import contextlib
import datetime as dt
import os
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

from airflow.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import DAG, BaseOperator, Param, chain, task
from airflow.timetables.trigger import CronTriggerTimetable

CONFIG = os.environ.get("FUXI_CONFIG", "/etc/fuxi/daily.yaml")
TIMEZONE = ZoneInfo(os.environ.get("FUXI_TIMEZONE", "UTC"))
"""That of `sequences.timezone` in the configuration: in it the day is counted, whatever Airflow's own zone is."""

DAY = "{{ params.ds or (logical_date or dag_run.run_after).astimezone(dag.timezone).date().isoformat() }}"
"""The day of the scheduled time, so that a late run and a backfill make the lists of the day that they are for."""

PUBLISHED, REFUSED, DEGRADED = 0, 2, 3


class FuxiDay(BaseOperator):
    """`fuxi daily --ds ds`; returns its exit code if lists were published."""

    template_fields = ("ds",)

    def __init__(self, *, ds: str, config: str, **options: Any) -> None:
        super().__init__(**options)
        self.ds = ds
        self.config = config

    def execute(self, context: Any) -> int:
        """Run the command. Raises AirflowFailException (not run again) if the day was refused."""
        command = ["fuxi", "daily", "--ds", self.ds, "--config", self.config]
        done = self.hook.run_command(command, env=dict(os.environ))
        if done.exit_code in (PUBLISHED, DEGRADED):
            return done.exit_code
        if done.exit_code == REFUSED:
            raise AirflowFailException(f"{self.ds} was refused, nothing was published: {done.output}")
        raise AirflowException(f"fuxi daily --ds {self.ds} broke off with exit code {done.exit_code}: {done.output}")

    @cached_property
    def hook(self) -> SubprocessHook:
        """The process of the command."""
        return SubprocessHook()

    def on_kill(self) -> None:
        """Let the day finish what it is committing, and stop."""
        with contextlib.suppress(ProcessLookupError):
            self.hook.send_sigterm()


@task(retries=0)
def alert(exit_code: int) -> None:
    """Fail where a day was published by an earlier model or from earlier input: somebody should look at it."""
    if exit_code != DEGRADED:
        raise AirflowSkipException("the day was published by its own model and input")
    raise AirflowFailException("the day was published, but not by its own model or input: see its page and its log")


with DAG(
    dag_id="fuxi_daily",
    schedule=CronTriggerTimetable("0 3 * * *", timezone=str(TIMEZONE)),
    start_date=dt.datetime(2026, 1, 1, tzinfo=TIMEZONE),
    catchup=False,
    max_active_runs=1,
    params={"ds": Param(None, type=["null", "string"], format="date", description="Another day than the scheduled.")},
) as dag:
    day = FuxiDay(
        task_id="day",
        ds=DAY,
        config=CONFIG,
        retries=3,
        retry_delay=dt.timedelta(minutes=10),
        execution_timeout=dt.timedelta(hours=12),
    )
    chain(day, alert(day.output))
