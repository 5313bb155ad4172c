"""The numbers that the paper prints (Tables 2, 3, 5, 6, 7 and 8), for MovieLens-1M and MovieLens-20M.

Copied as printed, misprints included: the MRR of SASRec-Large on MovieLens-1M (.0186) cannot be right beside its
NDCG@10. A time is a multiple of SASRec's at the same depth (Tables 3 and 8), of FuXi-alpha's (Table 5) or of
FuXi-beta-FRAB's (Table 7). Of Tables 6, 7 and 8 every model has 8 layers.
"""

from dataclasses import dataclass

BASE_LAYERS, LARGE_LAYERS = 2, 8
DATASETS = ("ML-1M", "ML-20M")
TITLES = {"ML-1M": "MovieLens-1M", "ML-20M": "MovieLens-20M"}
FIVE = ("ndcg_10", "ndcg_50", "hr_10", "hr_50", "mrr")


@dataclass(frozen=True)
class Published:
    """One row of a table for one data set. time: relative; None where the table has none."""

    metrics: dict[str, float]
    time: float | None = None


@dataclass(frozen=True)
class Counts:
    """A row of Table 2."""

    users: int
    items: int
    interactions: int


Table = dict[str, dict[tuple[str, bool], Published]]
"""Data set ("ML-1M") -> (system, whether it is the Large one) -> what is printed."""


def paper_counts(dataset: str) -> Counts:
    """What Table 2 counts in "ML-1M" or "ML-20M"."""
    return _COUNTS[dataset]


def _rows(text: str, metrics: tuple[str, ...], *, timed: bool) -> dict[str, dict[str, Published]]:
    """Data set -> name -> row, of lines that hold a name, then the numbers of the one data set and of the other."""
    found: dict[str, dict[str, Published]] = {dataset: {} for dataset in DATASETS}
    width = len(metrics) + timed
    for line in text.strip().splitlines():
        name, *cells = line.split()
        for n, dataset in enumerate(DATASETS):
            mine = cells[n * width : (n + 1) * width]
            time = float(mine[-1]) if timed and mine[-1] != "-" else None
            values = dict(zip(metrics, map(float, mine[: len(metrics)]), strict=True))
            found[dataset][name] = Published(values, time)
    return found


def _by_system(text: str, metrics: tuple[str, ...]) -> Table:
    rows = _rows(text, metrics, timed=True)
    return {
        dataset: {(name.removesuffix(":large"), name.endswith(":large")): row for name, row in named.items()}
        for dataset, named in rows.items()
    }


_COUNTS = {"ML-1M": Counts(6_041, 3_706, 1_000_209), "ML-20M": Counts(138_493, 26_744, 20_000_263)}

# The five metrics and the time, on MovieLens-1M and then on MovieLens-20M.
TABLE_3 = _by_system(
    """
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
sasrec:large     0.1186 0.1733 0.2183 0.4671 0.0186 1.000  0.0206 0.0379 0.0412 0.1209 0.0207 1.000
llama:large      0.1659 0.2257 0.2990 0.5692 0.1408 0.989  0.1842 0.2412 0.3202 0.5776 0.1576 1.022
hstu:large       0.1844 0.2437 0.3255 0.5929 0.1568 1.134  0.1995 0.2572 0.3407 0.6012 0.1714 1.187
fuxi-alpha:large 0.1934 0.2518 0.3359 0.5983 0.1651 1.230  0.2086 0.2658 0.3530 0.6113 0.1792 1.371
fuxi-beta:large  0.1947 0.2523 0.3428 0.6022 0.1645 1.068  0.2117 0.2677 0.3566 0.6095 0.1818 1.000
""",
    FIVE,
)

TABLE_5 = _by_system(
    """
fuxi-alpha           0.1835 0.2429 0.3254 0.5941 0.1557 1.000  0.1954 0.2533 0.3353 0.5969 0.1677 1.000
fuxi-beta-frab       0.1823 0.2407 0.3244 0.5876 0.1541 0.997  0.1963 0.2530 0.3355 0.5923 0.1685 0.962
fuxi-beta-aftm       0.1797 0.2382 0.3188 0.5819 0.1526 0.994  0.1956 0.2534 0.3352 0.5964 0.1679 0.959
fuxi-beta            0.1848 0.2432 0.3231 0.5866 0.1578 0.945  0.1944 0.2513 0.3325 0.5899 0.1671 0.894
fuxi-alpha:large     0.1934 0.2518 0.3359 0.5983 0.1651 1.000  0.2086 0.2658 0.3530 0.6113 0.1792 1.000
fuxi-beta-frab:large 0.1871 0.2454 0.3327 0.5944 0.1578 0.913  0.2097 0.2658 0.3532 0.6062 0.1803 0.867
fuxi-beta-aftm:large 0.1923 0.2507 0.3407 0.6030 0.1624 0.982  0.2107 0.2672 0.3550 0.6098 0.1811 0.858
fuxi-beta:large      0.1947 0.2523 0.3428 0.6022 0.1645 0.869  0.2117 0.2677 0.3566 0.6095 0.1818 0.730
""",
    FIVE,
)

# NDCG@50, HR@50 and MRR by function of elapsed time; no times are printed.
TABLE_6 = _rows(
    """
linear 0.2120 0.5345 0.1330  0.2488 0.5869 0.1646
log    0.2350 0.5817 0.1487  0.2617 0.6032 0.1761
exp    0.2500 0.5959 0.1635  0.2658 0.6057 0.1804
sin    0.2367 0.5771 0.1521  0.2526 0.5870 0.1690
mixed  0.2136 0.5378 0.1336  0.2498 0.5844 0.1665
nn     0.2411 0.5806 0.1565  0.2514 0.5819 0.1690
zero   0.2345 0.5776 0.1490  0.2434 0.5765 0.1605
bucket 0.2507 0.6030 0.1624  0.2672 0.6098 0.1811
pow    0.2523 0.6022 0.1645  0.2677 0.6095 0.1818
""",
    ("ndcg_50", "hr_50", "mrr"),
    timed=False,
)

# Attention maps taken out of FuXi-beta-FRAB; without the query-key map it is FuXi-beta.
TABLE_7 = _by_system(
    """
fuxi-beta-frab:large             0.1871 0.2454 0.3327 0.5944 0.1578 1.000  0.2097 0.2658 0.3532 0.6062 0.1803 1.000
fuxi-beta:large                  0.1947 0.2523 0.3428 0.6022 0.1645 0.951  0.2117 0.2677 0.3566 0.6095 0.1818 0.842
fuxi-beta-frab-no-position:large 0.1800 0.2393 0.3164 0.5833 0.1539 0.951  0.2093 0.2659 0.3527 0.6078 0.1801 0.946
fuxi-beta-frab-no-time:large     0.1741 0.2329 0.3096 0.5750 0.1480 0.990  0.1863 0.2418 0.3218 0.5730 0.1594 0.914
""",
    FIVE,
)

TABLE_8 = _by_system(
    """
llama:large      0.2257 0.5692 0.989  0.2412 0.5776 1.022
llama-beta:large 0.2354 0.5785 1.016  0.2560 0.6006 0.902
hstu:large       0.2437 0.5929 1.134  0.2572 0.6012 1.187
hstu-beta:large  0.2425 0.5828 0.959  0.2520 0.5940 0.851
fuxi-alpha:large 0.2518 0.5983 1.230  0.2658 0.6113 1.371
fuxi-beta:large  0.2523 0.6022 1.068  0.2677 0.6095 1.000
""",
    ("ndcg_50", "hr_50"),
)
