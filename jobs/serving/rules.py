"""List rules: which songs of a recommender's ranking make a listener's list.

Serving, evaluation "as served" and the MLflow pyfunc all make their lists with `served_lists`, so a rule that is added
to `list_rules` holds in all three. Every model version carries this file, so it imports torch and `fuxi_beta` alone.

Shapes: `B` listeners, `K` list length, `M` >= `K` ranked songs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fuxi_beta.config import Mode
from fuxi_beta.data.batches import Batch
from fuxi_beta.recommender import Pairs, Recommender, heard_songs


class ListRule:
    """One rule. It excludes songs before they are ranked, or it filters the ranking before it is cut to K; or both."""

    def excluded(self, batch: Batch) -> Pairs | None:
        """Songs that must not be in the list of a listener, whatever else is."""
        return None

    def admitted(self, ranking: Tensor) -> Tensor:
        """Which songs of a ranking stay, given the better ones of the same listener. bool [B, M].

        ranking: items int64 [B, M], best first, 0 behind the last. A longer ranking must not change the answer for the
        songs of a shorter one.
        """
        return ranking > 0


class HeardSongs(ListRule):
    """No song that the listener has heard before."""

    def excluded(self, batch: Batch) -> Pairs:
        """The lifetime of each listener, skips included."""
        return heard_songs(batch)


def list_rules(mode: Mode) -> list[ListRule]:
    """The rules of this deployment, in the order in which they filter."""
    return [HeardSongs()] if mode == "exclusive" else []


def served_lists(recommender: Recommender, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
    """Lists as listeners get them, for a recommender of any kind; shapes as in `Recommender.rank`."""
    return apply_rules(recommender, batch, k, list_rules(recommender.mode))


def apply_rules(recommender: Recommender, batch: Batch, k: int, rules: Sequence[ListRule]) -> tuple[Tensor, Tensor]:
    """The first k songs of each whole ranking that every rule admits; fewer only where the catalogue has no more.

    Rules filter one after the other. The ranking is widened until each list is full or the ranking has ended.
    """
    parts = [pairs for rule in rules if (pairs := rule.excluded(batch)) is not None]
    excluded = (torch.cat([rows for rows, _ in parts]), torch.cat([songs for _, songs in parts])) if parts else None
    width = k
    while True:
        items, scores = recommender.rank(batch, width, excluded=excluded)
        ended = items[:, -1] == 0
        for rule in rules:
            items, scores = _only(rule.admitted(items), items, scores)
        if bool((ended | (items[:, k - 1] > 0)).all()):
            return items[:, :k], scores[:, :k]
        width *= 2


def _only(admitted: Tensor, items: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The admitted songs, moved up in their order; 0 and -inf behind them."""
    if torch.equal(admitted, items > 0):
        return items, scores
    order = (~admitted).to(torch.uint8).sort(dim=1, stable=True).indices
    gone = ~admitted.gather(1, order)
    return items.gather(1, order).masked_fill(gone, 0), scores.gather(1, order).masked_fill(gone, -torch.inf)
