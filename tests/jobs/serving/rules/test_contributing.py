"""CONTRIBUTING's list rule, added as it says."""

import re
import types
from pathlib import Path

import torch

from fuxi_beta.config import Mode
from jobs.config import RulesConfig
from jobs.serving.rules import ListRule, SongFacts, lists, rule
from tests.jobs.serving.rules.conftest import NOW, random_world

TEXT = (Path(__file__).parents[4] / "CONTRIBUTING.md").read_text()


def edited_module() -> types.ModuleType:
    """`jobs.serving.rules.rule` with both edits."""
    text = TEXT.partition("## Add a list rule")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (edit,) = re.findall(r"```diff\n(.*?)```", text, re.DOTALL)
    old = "".join(f"{line[1:]}\n" for line in edit.splitlines() if line[0] == "-")
    new = "".join(f"{line[1:]}\n" for line in edit.splitlines() if line[0] == "+")
    source = Path(str(rule.__file__)).read_text()
    assert source.count(old) == 1
    module = types.ModuleType("edited_rule")
    module.__dict__["__name__"] = rule.__name__  # dataclasses look their module up
    exec(source.replace("def list_rules", f"{code}\n\ndef list_rules").replace(old, new), vars(module))
    return module


def test_the_rule_of_contributing_holds_after_its_two_edits(monkeypatch) -> None:
    module = edited_module()

    def edited(config: RulesConfig, facts: SongFacts, *, mode: Mode, k: int) -> list[ListRule]:
        return module.list_rules(config, facts, mode=mode, k=k)

    monkeypatch.setattr(lists, "list_rules", edited)
    world = random_world(
        7, songs=200, listeners=6, segments={}, max_per_artist=0, one_version=False, space_artists=False
    )
    released = world.songs.released
    assert released is not None
    old = torch.arange(len(released)) % 2 == 0
    released[old] = NOW - 20 * 365 * 86_400
    made = world.rules(20).lists(world.recommender, world.contexts, 20)
    for row in range(6):
        songs = made.items[row][made.items[row] > 0]
        every = [song for song in world.expected(row, 200) if song]
        kept = [song for n, song in enumerate(every) if not old[song] or sum(map(bool, old[every[:n]])) < 5]
        assert songs.tolist() == kept[:20]
        assert int(old[songs].sum()) == 5
