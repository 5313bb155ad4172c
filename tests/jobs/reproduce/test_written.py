"""Run files, and the report fabricated of them, on runs small enough to work out by hand."""

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from fuxi_beta.config import PaperTemporalName
from fuxi_beta.evaluation.metrics import rank_metrics
from jobs.reproduce import comparisons, figures, paper, runs, tables
from jobs.reproduce.groups import ListenerMetrics, group_by_setting
from jobs.reproduce.markdown import table
from jobs.reproduce.paper import TABLES
from jobs.reproduce.runs import Dataset, ExperimentRun, Ranks, TemporalCurves
from pipelines.errors import InputError

LISTENERS = 8
PART = Dataset("part", "the first 8 users of MovieLens-1M", "ML-1M", LISTENERS, 100, 800)
OWN = replace(PART, name="own", title="songs of our own", paper="")
SECONDS = np.geomspace(1, 3e7, 40).tolist()


class FabricatedRuns:
    """Runs whose NDCG, HR and (up to .0004 a miss) MRR are the share of listeners whose song ranks first."""

    def __init__(self) -> None:
        self.runs: list[ExperimentRun] = []
        self.ranks: dict[str, Ranks] = {}

    def add(self, system: Any, firsts: int, *, seed: int = 42, name: str = "", **changes: Any) -> ExperimentRun:
        """A run in which the songs of `firsts` listeners rank first, and those of the others beyond 50."""
        ranks = np.where(np.arange(LISTENERS) < firsts, 1.0, 2600.0)
        values = {name: float(v.mean()) for name, v in rank_metrics(ranks).items()}
        changed = "-".join(f"{v}" for v in changes.values() if isinstance(v, (str, int)))
        fields: dict[str, Any] = {
            **{"dataset": PART, "system": system, "layers": 2, "temporal": "pow", "seed": seed, "condition": "true"},
            **{"epochs": 101, "published_epochs": 101, "validation": False, "best_epoch": None},
            **{"protocol": "leave_one_out", "metrics": {"all": values, "later": values}, "curves": None},
            **{"listeners": {"all": LISTENERS, "later": 3}, "epoch_losses": [2.0, 1.0], "epoch_seconds": 5.0},
            **{"train_seconds": 505.0, "parameters": 1234, "uses_time": False, "machine": "a box", "kernels": "C++"},
            **{"date": "2026-11-23", "command": "fuxi reproduce --data part"},
        }
        run = ExperimentRun(name=name or f"{system}-{seed}-{changed}-{len(self.runs)}", **(fields | changes))
        self.runs.append(run)
        self.ranks[run.name] = Ranks(np.arange(LISTENERS), ranks)
        return run

    def report(self, timing: Any = None) -> str:
        return tables.render(self.runs, timing, lambda run: self.ranks[run.name])


@pytest.fixture
def fabricated() -> FabricatedRuns:
    return FabricatedRuns()


def section(text: str, title: str) -> str:
    """The text below a heading that begins with `title`, up to the next heading."""
    return re.split(r"^#+ ", text.split(f"# {title}", 1)[1], flags=re.M)[0]


def rows(text: str, title: str) -> dict[str, list[str]]:
    """First cell -> the others, of the first table below a heading."""
    lines = re.findall(r"(?:^\|.*\n)+", section(text, title), flags=re.M)[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def everything(fabricated: FabricatedRuns) -> None:
    """Something for every section."""
    for n, system in enumerate(("popularity", "markov")):
        fabricated.add(system, n, epochs=0, published_epochs=101, layers=0, epoch_seconds=0.0, seed=0)
    for n, system in enumerate(("sasrec", "llama", "hstu", "fuxi-alpha", "fuxi-beta")):
        for layers in (2, 8):
            fabricated.add(system, n + 2, layers=layers, uses_time=n > 1)
    for layers in (2, 8):
        fabricated.add("fuxi-beta-frab", 7, layers=layers)
        fabricated.add("fuxi-beta-frab-no-time", 3, layers=layers)
        fabricated.add("llama-beta", 4, layers=layers)
        fabricated.add("hstu-beta", 1, layers=layers)
    curves = TemporalCurves(SECONDS, [[2.0 / s for s in SECONDS], [-1.0] * len(SECONDS)])
    for n, name in enumerate(("exp", "linear", "zero")):
        fabricated.add("fuxi-beta", n, temporal=name, layers=8, curves=curves)
    fabricated.add("fuxi-beta", 3, condition="previous")
    fabricated.add("fuxi-beta", 4, layers=4, epochs=31)


def test_a_row_is_mean_and_spread_over_seeds_beside_the_printed_number(fabricated):
    for seed, firsts, seconds in ((1, 2, 8.0), (2, 4, 10.0), (3, 6, 30.0)):
        fabricated.add("fuxi-beta", firsts, seed=seed, epoch_seconds=seconds, uses_time=True)
    fabricated.add("sasrec", 4, seed=1, epoch_seconds=4.0)
    found = rows(fabricated.report(), "Table 3")
    # .25, .5 and .75 have mean .5 and standard deviation .25; a miss has the reciprocal rank 1/2501.
    assert found["model"][:3] == ["seeds", "NDCG@10", "paper (MovieLens-1M)"]
    assert found["FuXi-β †"][:3] == ["3", "**0.5000** ± 0.2500", "**0.1848**"]
    assert found["FuXi-β †"][9] == "**0.5002** ± 0.2499"
    assert found["FuXi-β †"][-2:] == ["2.500", "1.019"]  # the median, 10 s, of SASRec's 4 s
    assert found["SASRec"][:3] == ["1", "**0.5000**", "0.1594"]
    assert found["SASRec"][-2:] == ["1.000", "1.000"]


def test_every_row_of_every_table_has_as_many_cells_as_its_header(fabricated):
    everything(fabricated)
    for dataset in (PART, OWN):
        found = FabricatedRuns()
        found.ranks, found.runs = fabricated.ranks, [replace(run, dataset=dataset) for run in fabricated.runs]
        text = found.report({dataset.name: {"sasrec": 4.0, "fuxi-beta": 5.0, "fuxi-beta-L8": 9.0}})
        blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
        assert len(blocks) >= (12 if dataset is PART else 10)
        for block in blocks:
            assert len({line.count("|") for line in block.splitlines()}) == 1, block
        assert "nan" not in text and "None" not in text
    with pytest.raises(ValueError, match="2 cells in a table of 1"):
        table(["one"], [["one", "two"]])


def test_what_was_not_run_has_no_row_and_no_section(fabricated):
    fabricated.add("fuxi-beta", 4)
    text = fabricated.report()
    assert list(rows(text, "Table 3")) == ["model", "---", "FuXi-β"]
    assert re.findall(r"^### (.*)", text, flags=re.M) == ["Table 3: all systems", "By gap", "Seconds an epoch"]
    assert rows(text, "Table 3")["FuXi-β"][-2:] == ["–", "1.019"]  # no SASRec to measure by


def test_fewer_epochs_than_published_are_said_and_kept_apart(fabricated):
    fabricated.add("fuxi-beta", 4, epochs=31)
    fabricated.add("fuxi-beta", 2)
    fabricated.add("popularity", 1, epochs=0)
    fabricated.add("gru4rec", 3, hidden=50)
    fabricated.add("sasrec", 3, validation=True, best_epoch=66)
    found = rows(fabricated.report(), "Table 3")
    assert found["FuXi-β (31 of 101 epochs)"][1] == "**0.5000**"
    assert found["FuXi-β"][1] == "0.2500"
    assert {"popularity", "GRU4Rec (state of 50)", "SASRec (epoch picked on validation: 66)"} <= set(found)


def test_times_come_from_the_quiet_measurement_where_there_is_one(fabricated):
    for layers in (2, 8):
        fabricated.add("sasrec", 3, layers=layers)
        fabricated.add("fuxi-beta", 4, layers=layers, epoch_seconds=500.0)
    text = fabricated.report({"part": {"sasrec": 4.0, "fuxi-beta": 5.0, "sasrec-L8": 10.0, "fuxi-beta-L8": 9.0}})
    assert rows(text, "Table 3")["FuXi-β"][-2] == "1.250"
    assert rows(text, "Table 3")["FuXi-β-Large"][-2] == "0.900"
    assert rows(text, "Seconds an epoch")["FuXi-β-Large"] == ["8", "1,234", "9", "0.900"]
    assert "took turns on a quiet machine" in text
    assert "took turns" not in fabricated.report({"another": {"sasrec": 1.0}})


def test_times_of_two_machines_are_not_set_in_proportion(fabricated):
    fabricated.add("sasrec", 3, machine="another box")
    fabricated.add("fuxi-beta", 4)
    text = fabricated.report()
    assert rows(text, "Table 3")["FuXi-β"][-2] == "–"
    assert rows(text, "Seconds an epoch")["a box; C++"] == ["FuXi-β", "2", "1,234", "5", "–"]
    assert "others may have worked beside them" in text


def test_times_of_the_ablations_are_multiples_of_the_papers_baselines(fabricated):
    for n, system in enumerate(("fuxi-alpha", "fuxi-beta-frab", "fuxi-beta", "fuxi-beta-frab-no-time")):
        fabricated.add(system, 4, layers=8, epoch_seconds=10.0 - 2 * n)
    text = fabricated.report()
    assert [row[-2] for row in rows(text, "Table 5").values()][2:] == ["1.000", "0.800", "0.600"]
    found = rows(text, "Table 7")
    assert found["− query-key attention map (FuXi-β)"][-2:] == ["0.750", "0.951"]
    assert found["− temporal attention map"][-2:] == ["0.500", "0.990"]


def test_other_depths_than_the_papers_say_so_in_its_column(fabricated):
    for layers in (2, 8):
        fabricated.add("fuxi-beta", 4, layers=layers)
        fabricated.add("fuxi-beta", 2, layers=layers, temporal="zero")
    text = fabricated.report()
    shallow = rows(text, "Table 6: functions of elapsed time, FuXi-β with 2 layers")
    assert shallow["model"][2] == "paper (MovieLens-1M, 8 layers)"
    deep = rows(text, "Table 6: functions of elapsed time, FuXi-β with 8 layers")
    assert deep["model"][2] == "paper (MovieLens-1M)"
    assert deep["zero"][1:3] == ["0.2500", "0.2345"]
    assert [row[1] for row in rows(text, "Depth").values()] == ["parameters", "---:", "1,234"]  # FuXi-β's last


def test_the_papers_numbers_stand_beside_its_data_set_alone(fabricated):
    everything(fabricated)
    text = fabricated.report()
    assert "columns are of the whole MovieLens-1M** (6,041 users, 3,706 items and 1,000,209 interactions)" in text
    assert "## The first 8 users of MovieLens-1M" in text
    fabricated.runs = [replace(run, dataset=OWN) for run in fabricated.runs]
    assert "MovieLens" not in fabricated.report() and "Agreement" not in fabricated.report()
    whole = replace(PART, title="MovieLens-1M", listeners=6040, songs=3883, events=1_000_209)
    fabricated.runs = [replace(run, dataset=whole) for run in fabricated.runs]
    assert "only in order" not in fabricated.report() and "its items are the rated ones" in fabricated.report()


def test_the_header_says_where_when_and_how(fabricated):
    fabricated.add("fuxi-beta", 1, command="fuxi reproduce --table 3", date="2026-11-21")
    fabricated.add("fuxi-beta", 1, seed=43, command="fuxi reproduce --table 3")
    fabricated.add("sasrec", 1, command="fuxi reproduce --model sasrec")
    head = section(fabricated.report(), "The first 8 users")
    assert "- 8 listeners, 100 songs, 800 events; protocol `leave_one_out`" in head
    assert "- a box; kernels C++\n- 3 runs, 2026-11-21 to 2026-11-23" in head
    assert "fuxi reproduce --model sasrec  # 1 run\nfuxi reproduce --table 3       # 2 runs" in head


def test_what_knowing_the_time_is_worth_is_a_paired_difference(fabricated):
    for seed in (1, 2):
        fabricated.add("hstu", 8, seed=seed, uses_time=True)
        fabricated.add("hstu", 0, seed=seed, uses_time=True, condition="previous")
        fabricated.add("hstu", 3, seed=seed, uses_time=True, condition="permuted")
    fabricated.add("sasrec", 3)
    found = rows(fabricated.report(), "Time of the predicted event")
    assert list(found) == ["model", "---", "HSTU †"]
    assert found["HSTU †"][:5] == ["1.0000 ± 0.0000", "0.0000 ± 0.0000", "0.3750 ± 0.0000", "–", "+1.0000"]
    assert found["HSTU †"][5:] == ["+1.0000 to +1.0000", "< .001", "yes", "2, 2"]
    assert section(fabricated.report(), "Table 3").count("| HSTU †") == 1
    assert rows(fabricated.report(), "Table 3")["HSTU †"][1] == "**1.0000** ± 0.0000"  # the true condition alone


def test_conditions_of_one_system_with_two_labels_are_two_rows(fabricated):
    for label, firsts in (("", 4), ("content", 6)):
        fabricated.add("fuxi-beta", firsts, label=label, uses_time=True)
        fabricated.add("fuxi-beta", firsts - 2, label=label, uses_time=True, condition="fixed-hour")
    found = rows(fabricated.report(), "Time of the predicted event")
    assert [cells[3] for cells in found.values() if "0." in cells[3]] == ["0.2500", "0.5000"]


def test_differences_to_a_named_run_are_paired_under_any_condition(fabricated):
    """Its names are those of the tables of several days: system, system and label, or the run's own."""
    fabricated.add("sasrec", 3)
    fabricated.add("fuxi-beta", 5, label="content", uses_time=True, condition="fixed-hour")
    fabricated.add("fuxi-beta", 3, uses_time=True)
    groups, listeners = group_by_setting(fabricated.runs), ListenerMetrics(lambda run: fabricated.ranks[run.name])
    header, found = comparisons.against(groups, "sasrec", listeners)
    assert header[:3] == ["run", "metric", "less SASRec"] and len(found) == 4
    difference = {cells[0]: cells[2] for cells in found if cells[1] == "NDCG@10"}
    assert difference == {"FuXi-β †": "+0.0000", "FuXi-β † (content) (d) fixed hour": "+0.2500"}
    assert comparisons.against(groups, fabricated.runs[1].name, listeners)[0][2].endswith("(d) fixed hour")
    with pytest.raises(InputError, match="--against hstu: nothing is called so among those compared: there are sasrec"):
        comparisons.against(groups, "hstu", listeners)


def test_pairs_that_are_ordered_otherwise_than_in_the_paper_are_named(fabricated):
    for system, firsts in (("sasrec", 8), ("llama", 3), ("hstu", 4), ("fuxi-beta", 4), ("markov", 4)):
        fabricated.add(system, firsts, epochs=101 if system != "hstu" else 31)
    text = fabricated.report()
    # In the paper SASRec < LLaMa < HSTU < FuXi-β; here LLaMa < HSTU = FuXi-β < SASRec: 2 as there, 3 not, 1 equal.
    assert rows(text, "Agreement")["Table 3"] == ["NDCG@10", "−0.18", "4", "6", "3", "3"]
    listed = section(text, "Agreement").split("Pairs in the other order than in the paper:")[1]
    assert "LLaMa above SASRec | +0.0026 | −0.6250" in listed
    assert "HSTU (31 of 101 epochs) above SASRec" in listed
    assert "Below Markov in NDCG@10, which no sequence model should be: LLaMa." in text


def test_slices_have_their_own_values_and_counts(fabricated):
    run = fabricated.add("fuxi-beta", 4)
    fabricated.runs = [replace(run, metrics=run.metrics | {"later": dict.fromkeys(paper.PAPER_METRICS, 0.125)})]
    found = rows(fabricated.report(), "By gap")
    assert found["model"] == ["all (8)", "later (3)"]
    assert found["FuXi-β"] == ["0.5000", "0.1250"]


def test_the_same_setting_and_seed_twice_is_refused(fabricated):
    fabricated.add("fuxi-beta", 1, name="one")
    fabricated.add("fuxi-beta", 2, name="two")
    with pytest.raises(InputError, match="one and two are the same setting"):
        fabricated.report()
    fabricated.runs[1] = replace(fabricated.runs[1], seed=43, dataset=replace(PART, events=801))
    with pytest.raises(InputError, match="one and two describe data set 'part' differently"):
        fabricated.report()


def test_ranks_of_other_listeners_or_of_another_training_are_refused(fabricated):
    fabricated.add("fuxi-beta", 4, name="one")
    fabricated.add("sasrec", 4, name="two")
    fabricated.ranks["two"] = Ranks(np.arange(1, LISTENERS + 1), fabricated.ranks["two"].ranks)
    with pytest.raises(InputError, match="two and one are of different listeners"):
        fabricated.report()
    fabricated.ranks["two"] = Ranks(np.arange(LISTENERS), np.ones(LISTENERS))
    with pytest.raises(InputError, match=r"two: its ranks give ndcg_10 1\.0000, its file 0\.5000"):
        fabricated.report()


def test_runs_and_ranks_come_back_as_they_were_written(fabricated, tmp_path: Path):
    curves = TemporalCurves([1.0, 60.0], [[0.5, 0.1], [0.0, -0.25]])
    one = fabricated.add("fuxi-beta", 4, name="b", curves=curves, best_epoch=3, validation=True)
    two = fabricated.add("bprmf", 1, name="a")
    order = np.array([3, 0, 7, 1, 2, 6, 5, 4])
    for run in (one, two):
        runs.write_ranks(tmp_path / "runs", run.name, order, fabricated.ranks[run.name].ranks[order])
        assert not runs.finished(tmp_path / "runs", run.name)
        runs.write(tmp_path / "runs", run)
    assert runs.read(tmp_path / "runs") == [two, one]
    assert runs.finished(tmp_path / "runs", "a")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        *("a.json", "a.ranks.parquet", "b.json", "b.ranks.parquet")
    ]
    ranks_of = runs.ranks_in([tmp_path, tmp_path / "runs"])
    np.testing.assert_array_equal(ranks_of(one).users, np.arange(LISTENERS))
    np.testing.assert_array_equal(ranks_of(one).ranks, fabricated.ranks["b"].ranks)
    text = tables.render(runs.read(tmp_path / "runs"), None, ranks_of)
    assert "FuXi-β (epoch picked on validation: 3) against BPRMF" in text


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format": 2}, "format"),
        ({"system": ""}, "system"),
        ({"layers": "two"}, "layers"),
        ({"dataset": {"name": "x"}}, r"dataset\.title"),
        ({"metrics": {"later": {}}}, r"metrics\.all"),
        ({"metrics": {"all": {"ndcg_10": 0.5}}}, r"metrics\.all\.ndcg_50"),
        ({"metrics": {"all": dict.fromkeys(paper.PAPER_METRICS, 1.5)}}, r"metrics\.all\.ndcg_10"),
        ({"metrics": {"all": dict.fromkeys(paper.PAPER_METRICS, float("nan"))}}, r"metrics\.all\.ndcg_10"),
        ({"listeners": {"all": 8}}, r"listeners\.later"),
        ({"curves": {"seconds": [1, 2], "weights": [[1.0]]}}, r"curves\.weights"),
        ({"date": "yesterday"}, "date"),
        ({"name": "other"}, "name"),
        ({"loss": 1.0}, "loss"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_with_its_name_and_field(fabricated, tmp_path: Path, change, field):
    path = runs.write(tmp_path, fabricated.add("fuxi-beta", 4, name="one"))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=rf"one\.json is not the file of a run \({field}: "):
        runs.read(tmp_path)


def test_a_cut_file_a_missing_field_and_a_missing_folder_are_refused(fabricated, tmp_path: Path):
    path = runs.write(tmp_path, fabricated.add("fuxi-beta", 4, name="one"))
    whole = json.loads(path.read_text())
    path.write_text(path.read_text()[:100])
    with pytest.raises(InputError, match=r"one\.json is not the file of a run \(Invalid JSON"):
        runs.read(tmp_path)
    path.write_text(json.dumps({key: value for key, value in whole.items() if key != "seed"}))
    with pytest.raises(InputError, match=r"one\.json.*\(seed: "):
        runs.read(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        runs.read(tmp_path / "none")


def test_ranks_that_are_missing_damaged_or_too_few_are_refused(fabricated, tmp_path: Path):
    run = fabricated.add("fuxi-beta", 4, name="one")
    with pytest.raises(InputError, match=r"one\.ranks\.parquet holds no ranks"):
        runs.read_ranks(tmp_path, run)
    path = runs.write_ranks(tmp_path, "one", np.arange(5), np.ones(5))
    with pytest.raises(InputError, match=r"holds 5 listeners, one\.json says 8"):
        runs.read_ranks(tmp_path, run)
    runs.write_ranks(tmp_path, "one", np.arange(8), np.array([1.0] * 7 + [np.nan]))
    with pytest.raises(InputError, match=r"\(rank: below 1 or no number\)"):
        runs.read_ranks(tmp_path, run)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="holds no ranks"):
        runs.read_ranks(tmp_path, run)
    runs.pq.write_table(runs.pa.table({"rank": [1.0] * 8}), path)
    with pytest.raises(InputError, match="holds no ranks"):
        runs.read_ranks(tmp_path, run)


def test_figures_are_small_pictures_that_the_report_shows(fabricated, tmp_path: Path):
    from PIL import Image

    everything(fabricated)
    drawn = figures.draw(fabricated.runs, tmp_path)
    assert [figure.kind for figure in drawn] == ["systems", "depth", "curves"]
    text = tables.render(fabricated.runs, None, lambda run: fabricated.ranks[run.name], figures=drawn)
    for figure in drawn:
        path = tmp_path / figure.file
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert path.stat().st_size < 100_000
        with Image.open(path) as image:
            image.load()
            assert image.width == 960
            assert len(image.getcolors() or []) > 5  # not blank
        assert f"](figures/{figure.file})" in text
    again = figures.draw(list(reversed(fabricated.runs)), tmp_path / "again")
    assert [(tmp_path / "again" / f.file).read_bytes() for f in again] == [
        (tmp_path / f.file).read_bytes() for f in drawn
    ]


def test_figures_without_numbers_are_not_drawn(fabricated, tmp_path: Path):
    fabricated.add("fuxi-beta", 4)
    assert [figure.kind for figure in figures.draw(fabricated.runs, tmp_path)] == ["systems"]
    assert figures.draw([], tmp_path) == []
    assert tables.render([], None, lambda run: fabricated.ranks[run.name]).startswith("# Results")


def test_the_papers_tables_agree_where_they_repeat_each_other():
    for dataset in paper.DATASETS:
        whole, step, functions, channels, framework = (TABLES[n].numbers[dataset] for n in (3, 5, 6, 7, 8))
        of_eight_layers = {f"{system}-large": row for table in (channels, framework) for system, row in table.items()}
        for key, row in (step | of_eight_layers).items():
            if key in whole:
                assert row.metrics.items() <= whole[key].metrics.items(), key
        large, frab = whole["fuxi-beta-large"], step["fuxi-beta-frab-large"]
        assert functions["fuxi-beta"].metrics.items() <= large.metrics.items()
        assert channels["fuxi-beta-frab"].metrics == frab.metrics
        assert framework["fuxi-beta"].time == large.time
        # The sections' text: FuXi-β trains 5.5 % and 10.6 % faster than FuXi-α, the Large one 13.1 % and 27.0 %.
        for suffix in ("", "-large"):
            ours, theirs = whole[f"fuxi-beta{suffix}"].time, whole[f"fuxi-alpha{suffix}"].time
            assert ours and theirs
            assert step[f"fuxi-beta{suffix}"].time == pytest.approx(ours / theirs, abs=0.002)


def test_numbers_of_the_paper_as_printed():
    assert TABLES[3].numbers["ML-1M"]["sasrec-large"].metrics["mrr"] == 0.0186  # a misprint, kept
    assert TABLES[3].numbers["ML-20M"]["fuxi-beta-large"].metrics["ndcg_10"] == 0.2117
    assert TABLES[3].numbers["ML-20M"]["bprmf"].time is None
    assert TABLES[7].numbers["ML-20M"]["fuxi-beta-frab-no-time"].time == 0.914
    assert [len(TABLES[n].numbers["ML-20M"]) for n in (3, 5, 7, 8)] == [15, 8, 4, 6]
    assert {TABLES[6].labels[key] for key in TABLES[6].numbers["ML-1M"]} == set(get_args(PaperTemporalName))
    sums = {  # of all numbers of MovieLens-1M and of MovieLens-20M, added up from the paper's text
        3: (32.0458, 31.7399),
        5: (19.8249, 19.9321),
        6: (8.6796, 9.2023),
        7: (9.8784, 10.0426),
        8: (11.3713, 11.4671),
    }
    for number, expected in sums.items():
        rows = [TABLES[number].numbers[dataset].values() for dataset in paper.DATASETS]
        found = [sum(sum(row.metrics.values()) + (row.time or 0) for row in of_dataset) for of_dataset in rows]
        assert found == pytest.approx(expected, abs=1e-6)
    assert paper.COUNTS["ML-20M"].interactions == 20_000_263


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: str(table.number))
def test_a_table_shows_what_is_trained_for_it(table):
    assert set(table.systems) <= set(table.rows)
    assert {name for pair in table.pairs for name in pair} - {paper.EVERY_OTHER} <= set(table.rows)
    assert table.own <= set(table.rows) and set(table.labels) <= set(table.rows)
    for dataset in paper.DATASETS:
        assert {name.removesuffix("-large") for name in table.numbers[dataset]} <= set(table.systems)


def test_a_system_that_is_not_the_papers_comes_last_under_its_own_name(fabricated):
    for n, system in enumerate(("sasrec", "decayed-mean", "fuxi-beta")):
        fabricated.add(system, n + 2)
        fabricated.add(system, n + 3, layers=4)
    found = rows(fabricated.report(), "Table 3: all systems")
    assert list(found)[2:] == ["SASRec", "FuXi-β", "decayed-mean"]
    assert "decayed-mean (4 layers)" in fabricated.report()


def test_ranks_are_found_where_two_data_sets_have_runs_of_one_name(fabricated, tmp_path: Path):
    folders = [tmp_path / "one", tmp_path / "other"]
    written = []
    for n, folder in enumerate(folders):
        folder.mkdir()
        dataset = dataclasses.replace(PART, name=f"part-{n}")
        run = fabricated.add("sasrec", n + 2, name="sasrec-L2-e101-s42", dataset=dataset)
        ranks = fabricated.ranks[run.name]
        runs.write_ranks(folder, run.name, ranks.users, ranks.ranks)
        runs.write(folder, run)
        written.append((run, ranks))
    find = runs.ranks_in(folders)
    for run, ranks in written:
        assert find(run).ranks.tolist() == ranks.ranks.tolist()
