"""List rules: which songs of a recommender's ranking make a listener's list, and in which order.

| file | what |
| --- | --- |
| `facts`  | what rules know of songs, of listeners and of a request |
| `rule`   | the rules, one class each, and `list_rules`, which chooses them by the configuration |
| `greedy` | the walk down a ranking under rules that count, and the order of the songs listed |
| `lists`  | `ListRules`: the lists of a batch, exact under all rules |
| `explain` | which better-ranked songs are not in a list, and by which rule |

Serving, evaluation "as served", the MLflow pyfunc and `fuxi show` all make their lists with `ListRules.lists`, so a
rule that is added to `list_rules` holds in all of them. Every model version carries this folder.

Shapes here: `B` listeners, `V` songs and the padding row, `K` list length, `M` ranked songs.
"""

from jobs.serving.rules.facts import ListenerFacts, Listeners, Request, SongFacts, strangers
from jobs.serving.rules.lists import ListRules, MadeLists
from jobs.serving.rules.rule import ListRule, list_rules

__all__ = [
    "ListRule",
    "ListRules",
    "ListenerFacts",
    "Listeners",
    "MadeLists",
    "Request",
    "SongFacts",
    "list_rules",
    "strangers",
]
