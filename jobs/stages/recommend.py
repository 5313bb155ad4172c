"""`fuxi recommend`: a list for every active listener, published in one Delta transaction.

The model, or the baseline that serves in its place, is the one in the run record. Ray tasks read a shard file each and
write a part of the table that readers do not see; the driver audits all parts together and commits them at once, or
publishes nothing.
"""

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from fuxi_beta.training.checkpoint import TrainedModel, load_export
from jobs.day import Day, digest
from jobs.registry import versions
from jobs.runtime.console import doing, progress
from jobs.runtime.engines import need, ray_session
from jobs.runtime.remote import redacting
from jobs.serving.baselines import POPULARITY, fit_baseline, known_songs
from jobs.serving.count_quality import songs_of_day
from jobs.serving.day_rules import day_rules, read_item_ids, recent_popularity
from jobs.serving.make_lists import BATCH_TOKENS, ListJob, default_part, make_part
from jobs.serving.serving_baseline import lists_of
from jobs.tables import recommendations as lists
from jobs.tables.audit import audit, audit_quality, summarize
from jobs.tables.list_quality import add_up, list_quality, write_list_quality
from jobs.tables.recommendations import ListPart
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest, ShardFile
from pipelines.schema import DS, MODEL_VERSION, SOURCE, SOURCE_MODEL, SOURCE_POPULAR

if TYPE_CHECKING:
    from ray import ObjectRef

    from fuxi_beta.recommender import Recommender

GPU_TOKENS = 1 << 19
"""Tokens in a batch on a GPU: enough to fill it; a few GB of memory."""

_jobs: dict[str, ListJob] = {}
"""In a Ray worker: the job it works on, by the reference it was fetched with."""


def run(day: Day) -> dict[str, Any]:
    """Publish the lists of `day.ds`, replacing exactly that day.

    Returns the counts, the audit, the quality of the lists, the Delta version, the model version and source (`model`,
    or the baseline that serves; `popular` where neither does). After a run that was killed behind its commit, that
    commit's result is returned and nothing is published twice. Raises InputError if the audit fails.
    """
    if day.marker("promote") is None:
        raise InputError(f"no model is chosen for {day.ds}: run `fuxi promote --ds {day.ds}` first")
    record = day.record
    made_from = digest(day.inputs("recommend"))
    instead = [record.chosen_baseline] if record.chosen_baseline else []
    key = lists.commit_key(record.run_id, record.chosen_model, made_from, str(day.sequences_ds), *instead)
    table = lists.open_lists(day.workspace)
    published = None if day.force else lists.published_result(table, day.ds, key)
    if published is None:
        published = _publish(day, table, key)
    if "quality" in published:  # a run that was killed behind its commit has not written them
        write_list_quality(day.workspace, day.ds, published["quality"])
    return published


def _publish(day: Day, table: "lists.DeltaTable", key: int) -> dict[str, Any]:
    """Make the lists, audit them and commit them on top of `table`."""
    with doing("loading the model and the rules of the lists"):
        record, job = day.record, list_job(day)
        parts = [default_part(job)]
    try:
        make_parts(day, job, parts)
        result = _audited_result(day, job, parts, lists.listeners_before(table, day.ds))
        metadata = {
            DS: str(day.ds),
            "run_id": record.run_id,
            "config_hash": day.config.hash(),
            MODEL_VERSION: job.model_version or "",
            "result": json.dumps(result),
        }
        lists.check_parts(job.table_uri, parts)
    except BaseException:
        lists.discard(job.table_uri, parts)
        raise
    return {**result, "delta_version": lists.commit(table, day.ds, parts, key=key, metadata=metadata)}


def _audited_result(
    day: Day, job: ListJob, parts: Sequence[ListPart], earlier: tuple[dt.date, int] | None
) -> dict[str, Any]:
    """The counts and the audit of the lists. InputError if a check fails."""
    eligible = (job.recommender or job.popularity).candidates
    counts = [part.counts for part in parts]
    summary = summarize(counts, eligible=int(eligible.sum()))
    songs = songs_of_day(job.rules, eligible, job.cut)
    quality = list_quality(add_up(part.quality for part in parts), songs)
    judged = job.recommender is not None and day.record.chosen_model is not None
    checks = audit(counts, summary, config=day.config.recommend, earlier=earlier, judged=judged)
    checks += audit_quality(quality, config=day.config.recommend, judged=judged)
    failed = [f"{check.check} ({check.detail})" for check in checks if not check.passed]
    if failed:
        raise InputError(
            f"the lists of {day.ds} failed the audit, nothing is published: {'; '.join(failed)}: "
            "find the cause, or change recommend.* in the configuration"
        )
    return {
        **asdict(summary),
        MODEL_VERSION: job.model_version,
        SOURCE: job.source,
        "undefined_segments": job.rules.listeners.undefined,
        "audit": [asdict(check) for check in checks],
        "quality": quality,
    }


def list_job(day: Day) -> ListJob:
    """What the tasks of a day share: who makes the lists, the songs by popularity, the ids of the songs."""
    record, config = day.record, day.config
    manifest = day.manifest(day.sequences_ds)
    recommender = _recommender(day, manifest)
    by_model = isinstance(recommender, TrainedModel)
    train = recommender.train_config if isinstance(recommender, TrainedModel) else config.train
    on_gpu = config.cluster.recommend_gpus_per_task > 0
    item_ids, popular = read_item_ids(day, manifest), recent_popularity(day, manifest, train)
    rules = day_rules(day, day.ds, item_ids, popular)
    rules.check(recommender or popular, day.calendar.request_time(day.ds))
    source = SOURCE_MODEL if by_model else record.chosen_baseline
    return ListJob(
        ds=day.ds,
        calendar=day.calendar,
        table_uri=day.workspace.recommendations,
        manifest=manifest,
        item_ids=item_ids,
        popularity=popular,
        recommender=recommender,
        source=source if recommender and source else SOURCE_POPULAR,
        model_config=config.model,
        rules=rules,
        model_version=record.chosen_model if by_model else None,
        stale_days=day.stale_days,
        k=config.recommend.k,
        active_days=config.recommend.active_days,
        batch_tokens=GPU_TOKENS if on_gpu else BATCH_TOKENS,
        kernels=config.cluster.kernels,
        device="cuda" if on_gpu else "cpu",
        reasons=config.recommend.reasons,
    )


def _recommender(day: Day, manifest: Manifest) -> "Recommender | None":
    """Who makes the lists according to the run record; None: popular songs for everyone."""
    record, config = day.record, day.config
    if record.chosen_baseline == POPULARITY:
        return None
    if record.chosen_baseline:
        cut = day.calendar.day_start(day.ds)
        known = known_songs(manifest, before=cut)
        return fit_baseline(
            record.chosen_baseline, manifest, end=cut, train=config.train, config=config.evaluate, candidates=known
        )
    if record.chosen_model is None:
        return None
    return load_export(versions.download_model(day, record.chosen_model))


def make_parts(day: Day, job: ListJob, parts: list[ListPart]) -> None:
    """Make the lists of every shard file, a Ray task each; finished parts are appended in the order of the files.

    They are appended if a task fails, too, so that the caller can remove them.
    """
    ray = ray_session(day.config.cluster)
    gpus = day.config.cluster.recommend_gpus_per_task
    need(day.config.cluster, gpus, setting="recommend_gpus_per_task")
    shared = ray.put(job)
    task = ray.remote(num_cpus=1, num_gpus=gpus)(_make_part)
    tasks = {task.remote([shared], file): file for file in job.manifest.files}
    done: dict[str, ListPart] = {}
    try:
        with progress("lists", job.manifest.rows, unit="listeners") as advance:
            while len(done) < len(tasks):
                pending = [ref for ref, file in tasks.items() if file.path not in done]
                for ref in ray.wait(pending, num_returns=1)[0]:
                    done[tasks[ref].path] = ray.get(ref)
                    advance(tasks[ref].rows)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, InputError):
            raise InputError(str(cause)) from None
        if isinstance(cause, ValueError):
            who = f"model version {job.model_version}" if job.model_version else lists_of(job.source)
            raise InputError(f"{who} cannot make lists: {cause}") from None
        raise
    finally:
        parts += [done[file.path] for file in job.manifest.files if file.path in done]
        for ref, file in tasks.items():
            if file.path not in done:
                ray.cancel(ref)


@redacting
def _make_part(shared: "list[ObjectRef]", file: ShardFile) -> ListPart:
    """Runs in a Ray worker: fetch the job once per process, then make the part of the file."""
    import ray
    import torch

    from fuxi_beta import ops

    torch.set_num_threads(1)
    key = shared[0].hex()
    if key not in _jobs:
        _jobs.clear()
        job: ListJob = ray.get(shared[0])
        ops.use(job.kernels)
        if isinstance(job.recommender, TrainedModel):
            job = replace(job, recommender=job.recommender.to(job.device))
        _jobs[key] = job
    return make_part(_jobs[key], file)
