"""What an operator decides about model versions in place of the gates: a pin, and a rollback.

Both are tags in MLflow, so they hold for every host, and days that were published before stay as they are. The tag
`pinned_version` of the registered model names the version that serves every day whose `promote` runs from now on. The
tag `withdrawn` of a version takes it out of service for good: it is no champion, no reference, starts no training.
"""

from jobs.day import Day
from jobs.registry import versions
from jobs.registry.versions import CHAMPION, ModelVersionInfo
from pipelines.errors import InputError

PINNED = "pinned_version"


def pin(day: Day, version: str) -> ModelVersionInfo:
    """Let a version serve from now on. InputError if there is none of that number, or it cannot serve here."""
    known = {info.version: info for info in versions.versions(day)}
    if version not in known:
        name, numbers = day.config.mlflow.model_name, ", ".join(list(known)[-10:]) or "none"
        raise InputError(f"{name} has no version {version}: pin a registered one (the newest: {numbers})")
    info = known[version]
    if info.withdrawn:
        raise InputError(f"version {version} was rolled back on {info.withdrawn}: pin another one")
    if info.protocol != day.config.train.protocol:
        wanted = day.config.train.protocol
        raise InputError(
            f"version {version} was trained for {info.protocol}, the configuration says {wanted}: pin another"
        )
    versions.set_model_tag(day, PINNED, info.version)
    return info


def unpin(day: Day) -> str | None:
    """Let the gates decide again; the version that was pinned, None if none was."""
    before = versions.model_tag(day, PINNED)
    if before:
        versions.set_model_tag(day, PINNED, None)
    return before


def pinned(day: Day) -> ModelVersionInfo | None:
    """The version that is pinned for a day; None also if it was trained on plays of the day or later.

    InputError if it is gone from the registry.
    """
    version = versions.model_tag(day, PINNED)
    if not version:
        return None
    try:
        info = versions.version_info(day, version)
    except InputError:
        name = day.config.mlflow.model_name
        raise InputError(
            f"version {version} of {name} is pinned and not registered any more: run `fuxi promote --unpin`"
        ) from None
    return info if info.data_end <= day.calendar.day_start(day.ds) else None


def roll_back(day: Day) -> tuple[ModelVersionInfo, ModelVersionInfo]:
    """Take the champion out of service; it and the version that is champion in its place.

    day: the newest one. InputError if there is no champion, or none before it, or a version is pinned.
    """
    if version := versions.model_tag(day, PINNED):
        raise InputError(f"version {version} is pinned: `fuxi promote --unpin` first, or --pin an earlier one")
    promoted = sorted(
        (info for info in versions.versions(day) if info.promoted_ds and not info.withdrawn), key=versions.promotion
    )
    if not promoted:
        raise InputError(f"no version of {day.config.mlflow.model_name} was promoted: there is nothing to roll back")
    *earlier, now = promoted
    if not earlier:
        raise InputError(f"version {now.version} is the only one that was promoted: nothing can serve in its place")
    versions.withdraw(day, now.version)
    versions.set_alias(day, CHAMPION, earlier[-1].version)
    return now, earlier[-1]
