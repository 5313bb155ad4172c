"""The systems that `fuxi reproduce` trains, and their names: in files ("fuxi-beta"), and in tables ("FuXi-β-Large")."""

from collections.abc import Iterable
from typing import Literal, get_args

BASE_LAYERS, LARGE_LAYERS = 2, 8
SanityBaseline = Literal["popularity", "recency", "markov", "item-knn", "ease"]
SANITY: tuple[SanityBaseline, ...] = get_args(SanityBaseline)
"""Baselines without training. The paper has none: a sequence model that ranks below one of them is faulty."""
CEILINGS = ("ceiling-history", "ceiling-state")
"""What the process of synthetic logs allows, under next_day."""
UNTRAINED = {*SANITY, *CEILINGS}
"""Systems without training, seeds and settings."""
NOT_TRAINED_BY_STEPS = {*UNTRAINED, "bprmf"}
WITHOUT_DEPTH = {*NOT_TRAINED_BY_STEPS, "gru4rec", "narm"}
LABELS = {
    "popularity": "popularity",
    "recency": "recency",
    "markov": "Markov",
    "item-knn": "item-kNN",
    "ease": "EASE",
    "bprmf": "BPRMF",
    "gru4rec": "GRU4Rec",
    "narm": "NARM",
    "flash": "FLASH",
    "retnet": "RetNet",
    "sasrec": "SASRec",
    "sasrec-gap": "SASRec with gaps",
    "llama": "LLaMa",
    "llama-gap": "LLaMa with gaps",
    "llama-beta": "LLaMa-β",
    "hstu": "HSTU",
    "hstu-beta": "HSTU-β",
    "fuxi-alpha": "FuXi-α",
    "fuxi-beta-frab": "FuXi-β-FRAB",
    "fuxi-beta-aftm": "FuXi-β-AFTM",
    "fuxi-beta-frab-no-position": "FuXi-β-FRAB without positions",
    "fuxi-beta-frab-no-time": "FuXi-β-FRAB without time",
    "fuxi-beta": "FuXi-β",
    "ceiling-history": "ceiling, knows the history",
    "ceiling-state": "ceiling, knows the state",
}
"""Name in files -> name in tables, in the order of rows. Systems that are not the paper's follow, by name."""


def label(system: str) -> str:
    """A system's name in tables."""
    return LABELS.get(system, system)


def in_order(systems: Iterable[str]) -> list[str]:
    """Each system once, in the order of rows."""
    names = set(systems)
    ours = [system for system in LABELS if system in names and system not in CEILINGS]
    return [*ours, *sorted(names - set(LABELS)), *(system for system in CEILINGS if system in names)]


def label_at_depth(system: str, layers: int) -> str:
    """A system's name in tables, with its depth: FuXi-β, FuXi-β-Large, FuXi-β (4 layers)."""
    base, separator, variant = label(system).partition(" with")
    depth = {BASE_LAYERS: "", LARGE_LAYERS: "-Large"}.get(layers, f" ({layers} layers)")
    return base + depth + separator + variant


def timing_key(system: str, layers: int) -> str:
    """The name under which times measured apart are stored: fuxi-beta; fuxi-beta-L8 for other depths than 2."""
    return system if system in WITHOUT_DEPTH or layers == BASE_LAYERS else f"{system}-L{layers}"


def of_function(function: str) -> str:
    """FuXi-beta with a function of elapsed time, named as `--model` takes it. pow is FuXi-beta's own."""
    return "fuxi-beta" if function == "pow" else f"fuxi-beta:{function}"
