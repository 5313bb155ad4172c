"""The walk for many listeners at once against one that takes song after song."""

import pytest
import torch
from torch import Tensor

from jobs.serving.rules.greedy import Chosen, walk
from jobs.serving.rules.rule import Groups

LISTENERS, SONGS, RANKED, ROOM = 12, 40, 25, 14


def some_chosen(groups_of_song: list[Tensor]) -> Chosen:
    """Up to 4 songs of each listener, of which most are ranked as well."""
    chosen = Chosen.none(LISTENERS, ROOM, len(groups_of_song))
    for row in range(LISTENERS):
        for place, song in enumerate(torch.randperm(SONGS)[: int(torch.randint(5, ()))].tolist()):
            chosen.items[row, place], chosen.scores[row, place] = song + 1, 9 - place
            for mine, of_song in zip(chosen.groups, groups_of_song, strict=True):
                mine[row, place] = of_song[song + 1]
    return Chosen(chosen.items, chosen.scores, chosen.groups)


def one_by_one(
    before: list[int], ranked: list[int], of_song: list[list[int]], most: list[int], want: int
) -> tuple[list[int], int]:
    """The songs chosen, and how many ranked songs were looked at."""
    chosen = list(before)
    for place, song in enumerate(ranked):
        if len(chosen) >= want:
            return chosen, place
        groups = [group[song] for group in of_song]
        there = [sum(of_song[rule][other] == group for other in chosen) for rule, group in enumerate(groups)]
        fits = all(group == 0 or count < limit for group, count, limit in zip(groups, there, most, strict=True))
        if song and song not in chosen and fits:
            chosen.append(song)
    return chosen, len(ranked)


@pytest.mark.parametrize("rules", [0, 1, 3])
@pytest.mark.parametrize("seed", range(20))
def test_a_walk_is_the_plain_walk_song_by_song(seed: int, rules: int) -> None:
    torch.manual_seed(seed)
    of_song = [torch.randint(int(torch.randint(2, 15, ())), (SONGS + 1,)) for _ in range(rules)]
    most = [torch.randint(4, (LISTENERS,)) if rule % 2 else torch.tensor(1 + seed % 3) for rule in range(rules)]
    items = torch.stack([torch.randperm(SONGS)[:RANKED] + 1 for _ in range(LISTENERS)])
    items[torch.arange(RANKED) >= torch.randint(RANKED + 1, (LISTENERS, 1))] = 0
    scores = torch.rand(LISTENERS, RANKED).sort(descending=True).values.masked_fill(items == 0, -torch.inf)
    chosen = some_chosen(of_song) if seed % 2 else Chosen.none(LISTENERS, ROOM, rules)
    before, want = chosen.of(torch.arange(LISTENERS)), torch.randint(ROOM + 1, (LISTENERS,))
    limits = [limit if limit.dim() else int(limit) for limit in most]

    groups = [Groups(ids[items], limit) for ids, limit in zip(of_song, limits, strict=True)]
    reached = walk(chosen, items, scores, groups, want=want)

    for row in range(LISTENERS):
        old = before.items[row, : before.number[row]].tolist()
        expected, looked_at = one_by_one(
            old,
            items[row].tolist(),
            [ids.tolist() for ids in of_song],
            [int(limit.expand(LISTENERS)[row]) for limit in most],
            int(want[row]),
        )
        number = len(expected)
        assert chosen.items[row].tolist() == expected + [0] * (ROOM - number)
        assert int(chosen.number[row]) == number
        assert int(reached[row]) == looked_at
        score_of = dict(zip(items[row].tolist(), scores[row].tolist(), strict=True))
        new = [score_of[song] for song in expected[len(old) :]]
        assert chosen.scores[row].tolist() == [
            *before.scores[row, : len(old)].tolist(),
            *new,
            *[-torch.inf] * (ROOM - number),
        ]
        for mine, ids in zip(chosen.groups, of_song, strict=True):
            assert mine[row, :number].tolist() == ids[torch.tensor(expected, dtype=torch.int64)].tolist()
