"""Recognise the paper's data sets by their counts (Table 2)."""

import dataclasses

from jobs.reproduce.paper import COUNTS, DATASETS, TITLES, Counts

# Table 2 counts 6,041 users in MovieLens-1M; the published file has 6,040.
_TRUE_USERS = {"ML-1M": 6_040}
_NEAR = 3.0  # a data set is compared with one of the paper's if their interactions differ by at most this factor


def title_of(counts: Counts) -> str | None:
    """The name of the paper's public data set that has these users and interactions; None for another data set."""
    for name in DATASETS:
        paper = COUNTS[name]
        if (counts.users, counts.interactions) == (_TRUE_USERS.get(name, paper.users), paper.interactions):
            return TITLES[name]
    return None


def against_paper(counts: Counts) -> str:
    """The differences from the nearest of the paper's public data sets, in a line; empty if none is near."""
    name = min(DATASETS, key=lambda name: _ratio(COUNTS[name].interactions, counts.interactions))
    paper = COUNTS[name]
    if _ratio(paper.interactions, counts.interactions) > _NEAR:
        return ""
    differences = [
        f"{ours:,} {field} where the paper's Table 2 says {theirs:,}"
        for field, ours in dataclasses.asdict(counts).items()
        if ours != (theirs := getattr(paper, field))
    ]
    if not differences:
        return f"{TITLES[name]}, with the counts of the paper's Table 2"
    verdict = TITLES[name] if title_of(counts) else f"not {TITLES[name]} as a whole"
    return f"{verdict}: {', '.join(differences)}"


def _ratio(one: int, other: int) -> float:
    return max(one, other) / max(min(one, other), 1)
