"""The day as an Airflow 3 DAG: one task a stage, each the command that `fuxi daily` would run."""

import datetime as dt

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, chain

STAGES = ("sessionize", "hits", "train", "evaluate", "promote", "recommend", "report")
CONFIG = "/etc/fuxi/daily.yaml"

with DAG(
    dag_id="fuxi_daily",
    schedule="0 3 * * *",
    start_date=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": dt.timedelta(minutes=10)},
) as dag:
    # No stage waits for hits, so its failure stops none; the report shows what is there.
    # Promote decides for the champion when training or evaluation failed, so it runs whatever became of them.
    tasks = {
        stage: BashOperator(
            task_id=stage,
            bash_command=f"fuxi {stage} --ds '{{{{ ds }}}}' --config {CONFIG}",
            trigger_rule="all_done" if stage == "promote" else "all_success",
        )
        for stage in STAGES
    }
    chain(tasks["sessionize"], tasks["hits"])
    chain(*(task for stage, task in tasks.items() if stage != "hits"))
