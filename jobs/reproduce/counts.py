"""Whether a data set is one of the paper's, by its counts (Table 2)."""

import dataclasses

from jobs.reproduce.paper import DATASETS, TITLES, Counts, paper_counts

# Table 2 counts 6,041 users in MovieLens-1M; the published file has 6,040.
_TRUE_USERS = {"ML-1M": 6_040}
_NEAR = 3.0  # a set with up to so many times more or fewer interactions is compared with the nearest of the paper's


def title_of(found: Counts) -> str | None:
    """The name of the paper's public data set that has these users and interactions, None for another set."""
    for name in DATASETS:
        paper = paper_counts(name)
        if (found.users, found.interactions) == (_TRUE_USERS.get(name, paper.users), paper.interactions):
            return TITLES[name]
    return None


def against_paper(found: Counts) -> str:
    """What differs from the nearest of the paper's public data sets, in a line; empty if none is near."""
    name = min(DATASETS, key=lambda name: _ratio(paper_counts(name).interactions, found.interactions))
    paper = paper_counts(name)
    if _ratio(paper.interactions, found.interactions) > _NEAR:
        return ""
    differences = [
        f"{ours:,} {field} where the paper's Table 2 says {theirs:,}"
        for field, ours in dataclasses.asdict(found).items()
        if ours != (theirs := getattr(paper, field))
    ]
    if not differences:
        return f"{TITLES[name]}, with the counts of the paper's Table 2"
    verdict = TITLES[name] if title_of(found) else f"not {TITLES[name]} as a whole"
    return f"{verdict}: {', '.join(differences)}"


def _ratio(one: int, other: int) -> float:
    return max(one, other) / max(min(one, other), 1)
