"""The paper's tables of public data (3, 5, 6, 7 and 8) and its Table 2: what each compares, and what it prints.

Numbers are copied as printed, misprints included: the MRR of SASRec-Large on MovieLens-1M (.0186) cannot be right
beside its NDCG@10. `specs` derives the runs of a table from its declaration here, `sections` the rows of the report.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Literal, get_args

from fuxi_beta.config import PaperTemporalName
from jobs.reproduce.systems import LARGE_LAYERS, SANITY, in_order, of_function

PaperDataset = Literal["ML-1M", "ML-20M"]
DATASETS: tuple[PaperDataset, ...] = get_args(PaperDataset)
TITLES = {"ML-1M": "MovieLens-1M", "ML-20M": "MovieLens-20M"}
PAPER_METRICS = ("ndcg_10", "ndcg_50", "hr_10", "hr_50", "mrr")
"""The paper's metrics."""
EVERY_OTHER = "*"


@dataclass(frozen=True)
class Published:
    """One row of a table for one data set. time: relative to the table's baseline; None where the table has none."""

    metrics: dict[str, float]
    time: float | None = None


@dataclass(frozen=True)
class Counts:
    """A row of Table 2."""

    users: int
    items: int
    interactions: int


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table of the paper. Systems are named as `--model` takes them, "-large" with 8 layers.

    systems: in the order in which they are trained. beside: further systems that have a row if they were run. printed:
    in the order of rows, lines of a system and its numbers on MovieLens-1M and on MovieLens-20M: the metrics, then the
    time if there is a baseline. metrics: the first one orders the systems. baseline: of relative times, "" without.
    pairs: systems of one depth whose difference the table is about, the supposedly better first; EVERY_OTHER stands for
    all other rows. own: systems that make it this table, at least `needs` of which must have been run at a depth.
    labels: where a row is not called by its system's name. one_depth: whether the paper's models all have 8 layers; the
    report then has a section for each depth. Other tables show 2 and 8 layers.
    """

    number: int
    title: str
    systems: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    metrics: tuple[str, ...]
    printed: str
    baseline: str = ""
    beside: tuple[str, ...] = ()
    own: frozenset[str] = frozenset()
    needs: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)
    one_depth: bool = False

    @cached_property
    def numbers(self) -> dict[str, dict[str, Published]]:
        """Data set -> system -> what is printed."""
        numbers: dict[str, dict[str, Published]] = {dataset: {} for dataset in DATASETS}
        timed = bool(self.baseline)
        for line in self.printed.strip().splitlines():
            system, *cells = line.split()
            half = len(cells) // 2
            for dataset, row in zip(DATASETS, (cells[:half], cells[half:]), strict=True):
                time = float(row[-1]) if timed and row[-1] != "-" else None
                values = map(float, row[:-1] if timed else row)
                numbers[dataset][system] = Published(dict(zip(self.metrics, values, strict=True)), time)
        return numbers

    @cached_property
    def rows(self) -> list[str]:
        """The systems of the rows in their order."""
        names = [name for name in self.numbers[DATASETS[0]] if not name.endswith("-large")]
        return in_order([*names, *self.beside]) if self.beside else names

    def published(self, dataset: str, system: str, *, layers: int) -> Published | None:
        """The paper's row for a system of a depth; None if it prints none, or for another data set than the paper's."""
        large = not self.one_depth and layers == LARGE_LAYERS
        return self.numbers.get(dataset, {}).get(f"{system}-large" if large else system)


COUNTS = {"ML-1M": Counts(6_041, 3_706, 1_000_209), "ML-20M": Counts(138_493, 26_744, 20_000_263)}
"""Table 2."""
# Table 2 counts 6,041 users in MovieLens-1M; the published file has 6,040.
_TRUE_USERS = {"ML-1M": 6_040}
_NEAR = 3.0  # a data set is compared with one of the paper's if their interactions differ by at most this factor

_TABLE_3 = PaperTable(
    number=3,
    title="all systems",
    systems=(
        *SANITY,
        *("fuxi-beta", "sasrec", "fuxi-alpha", "hstu", "llama", "retnet", "flash", "gru4rec", "narm", "bprmf"),
    ),
    beside=(*SANITY, "sasrec-gap", "llama-gap"),
    pairs=(("fuxi-beta", EVERY_OTHER),),
    metrics=PAPER_METRICS,
    baseline="sasrec",
    printed="""
bprmf            0.0607 0.1027 0.1185 0.3127 0.0556 -      0.0629 0.1074 0.1241 0.3300 0.0572 -
gru4rec          0.1015 0.1460 0.1816 0.3864 0.0895 -      0.0768 0.1155 0.1394 0.3177 0.0689 -
narm             0.1350 0.1894 0.2445 0.4915 0.1165 -      0.1037 0.1552 0.1926 0.4281 0.0910 -
flash            0.1573 0.2144 0.2830 0.5426 0.1341 1.022  0.1496 0.2057 0.2682 0.5226 0.1285 1.210
retnet           0.1601 0.2184 0.2925 0.5557 0.1352 0.975  0.1687 0.2249 0.2979 0.5526 0.1442 1.034
sasrec           0.1594 0.2187 0.2824 0.5500 0.1375 1.000  0.1553 0.2119 0.2781 0.5353 0.1330 1.000
llama            0.1620 0.2207 0.2926 0.5591 0.1373 0.978  0.1640 0.2206 0.2915 0.5476 0.1402 1.006
hstu             0.1639 0.2238 0.2969 0.5672 0.1390 1.019  0.1642 0.2225 0.2909 0.5553 0.1410 1.072
fuxi-alpha       0.1835 0.2429 0.3254 0.5941 0.1557 1.078  0.1954 0.2533 0.3353 0.5969 0.1677 1.126
fuxi-beta        0.1848 0.2432 0.3231 0.5866 0.1578 1.019  0.1944 0.2513 0.3325 0.5899 0.1671 1.006
sasrec-large     0.1186 0.1733 0.2183 0.4671 0.0186 1.000  0.0206 0.0379 0.0412 0.1209 0.0207 1.000
llama-large      0.1659 0.2257 0.2990 0.5692 0.1408 0.989  0.1842 0.2412 0.3202 0.5776 0.1576 1.022
hstu-large       0.1844 0.2437 0.3255 0.5929 0.1568 1.134  0.1995 0.2572 0.3407 0.6012 0.1714 1.187
fuxi-alpha-large 0.1934 0.2518 0.3359 0.5983 0.1651 1.230  0.2086 0.2658 0.3530 0.6113 0.1792 1.371
fuxi-beta-large  0.1947 0.2523 0.3428 0.6022 0.1645 1.068  0.2117 0.2677 0.3566 0.6095 0.1818 1.000
""",
)

_TABLE_5 = PaperTable(
    number=5,
    title="from FuXi-α to FuXi-β",
    systems=("fuxi-alpha", "fuxi-beta-frab", "fuxi-beta-aftm", "fuxi-beta"),
    own=frozenset({"fuxi-beta-frab", "fuxi-beta-aftm"}),
    pairs=(("fuxi-beta-frab", "fuxi-alpha"), ("fuxi-beta-aftm", "fuxi-alpha")),
    metrics=PAPER_METRICS,
    baseline="fuxi-alpha",
    printed="""
fuxi-alpha           0.1835 0.2429 0.3254 0.5941 0.1557 1.000  0.1954 0.2533 0.3353 0.5969 0.1677 1.000
fuxi-beta-frab       0.1823 0.2407 0.3244 0.5876 0.1541 0.997  0.1963 0.2530 0.3355 0.5923 0.1685 0.962
fuxi-beta-aftm       0.1797 0.2382 0.3188 0.5819 0.1526 0.994  0.1956 0.2534 0.3352 0.5964 0.1679 0.959
fuxi-beta            0.1848 0.2432 0.3231 0.5866 0.1578 0.945  0.1944 0.2513 0.3325 0.5899 0.1671 0.894
fuxi-alpha-large     0.1934 0.2518 0.3359 0.5983 0.1651 1.000  0.2086 0.2658 0.3530 0.6113 0.1792 1.000
fuxi-beta-frab-large 0.1871 0.2454 0.3327 0.5944 0.1578 0.913  0.2097 0.2658 0.3532 0.6062 0.1803 0.867
fuxi-beta-aftm-large 0.1923 0.2507 0.3407 0.6030 0.1624 0.982  0.2107 0.2672 0.3550 0.6098 0.1811 0.858
fuxi-beta-large      0.1947 0.2523 0.3428 0.6022 0.1645 0.869  0.2117 0.2677 0.3566 0.6095 0.1818 0.730
""",
)

_FUNCTIONS = {of_function(name): name for name in get_args(PaperTemporalName)}
_TABLE_6 = PaperTable(
    number=6,
    title="functions of elapsed time, FuXi-β with {layers} layers",
    systems=tuple(_FUNCTIONS),
    own=frozenset(_FUNCTIONS),
    needs=2,
    pairs=(("fuxi-beta", EVERY_OTHER),),
    metrics=("ndcg_50", "hr_50", "mrr"),
    labels=_FUNCTIONS,
    one_depth=True,
    printed="""
fuxi-beta:linear 0.2120 0.5345 0.1330  0.2488 0.5869 0.1646
fuxi-beta:log    0.2350 0.5817 0.1487  0.2617 0.6032 0.1761
fuxi-beta:exp    0.2500 0.5959 0.1635  0.2658 0.6057 0.1804
fuxi-beta:sin    0.2367 0.5771 0.1521  0.2526 0.5870 0.1690
fuxi-beta:mixed  0.2136 0.5378 0.1336  0.2498 0.5844 0.1665
fuxi-beta:nn     0.2411 0.5806 0.1565  0.2514 0.5819 0.1690
fuxi-beta:zero   0.2345 0.5776 0.1490  0.2434 0.5765 0.1605
fuxi-beta:bucket 0.2507 0.6030 0.1624  0.2672 0.6098 0.1811
fuxi-beta        0.2523 0.6022 0.1645  0.2677 0.6095 0.1818
""",
)

_TABLE_7 = PaperTable(
    number=7,
    title="without one attention map, {layers} layers",
    systems=("fuxi-beta-frab", "fuxi-beta", "fuxi-beta-frab-no-position", "fuxi-beta-frab-no-time"),
    own=frozenset({"fuxi-beta-frab-no-position", "fuxi-beta-frab-no-time"}),
    pairs=((EVERY_OTHER, "fuxi-beta-frab"),),
    metrics=PAPER_METRICS,
    baseline="fuxi-beta-frab",
    labels={
        "fuxi-beta-frab": "FuXi-β-FRAB",
        "fuxi-beta": "− query-key attention map (FuXi-β)",
        "fuxi-beta-frab-no-position": "− positional attention map",
        "fuxi-beta-frab-no-time": "− temporal attention map",
    },
    one_depth=True,
    printed="""
fuxi-beta-frab             0.1871 0.2454 0.3327 0.5944 0.1578 1.000  0.2097 0.2658 0.3532 0.6062 0.1803 1.000
fuxi-beta                  0.1947 0.2523 0.3428 0.6022 0.1645 0.951  0.2117 0.2677 0.3566 0.6095 0.1818 0.842
fuxi-beta-frab-no-position 0.1800 0.2393 0.3164 0.5833 0.1539 0.951  0.2093 0.2659 0.3527 0.6078 0.1801 0.946
fuxi-beta-frab-no-time     0.1741 0.2329 0.3096 0.5750 0.1480 0.990  0.1863 0.2418 0.3218 0.5730 0.1594 0.914
""",
)

_TABLE_8 = PaperTable(
    number=8,
    title="the same framework in other models, {layers} layers",
    systems=("llama", "llama-beta", "hstu", "hstu-beta", "fuxi-alpha", "fuxi-beta"),
    own=frozenset({"llama-beta", "hstu-beta"}),
    pairs=(("llama-beta", "llama"), ("hstu-beta", "hstu")),
    metrics=("ndcg_50", "hr_50"),
    baseline="sasrec",
    one_depth=True,
    printed="""
llama      0.2257 0.5692 0.989  0.2412 0.5776 1.022
llama-beta 0.2354 0.5785 1.016  0.2560 0.6006 0.902
hstu       0.2437 0.5929 1.134  0.2572 0.6012 1.187
hstu-beta  0.2425 0.5828 0.959  0.2520 0.5940 0.851
fuxi-alpha 0.2518 0.5983 1.230  0.2658 0.6113 1.371
fuxi-beta  0.2523 0.6022 1.068  0.2677 0.6095 1.000
""",
)

TABLES = {table.number: table for table in (_TABLE_3, _TABLE_5, _TABLE_6, _TABLE_7, _TABLE_8)}


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
        for field, ours in asdict(counts).items()
        if ours != (theirs := getattr(paper, field))
    ]
    if not differences:
        return f"{TITLES[name]}, with the counts of the paper's Table 2"
    verdict = TITLES[name] if title_of(counts) else f"not {TITLES[name]} as a whole"
    return f"{verdict}: {', '.join(differences)}"


def _ratio(one: int, other: int) -> float:
    return max(one, other) / max(min(one, other), 1)
