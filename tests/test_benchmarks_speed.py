"""The speed studies run, at a tiny size: their tables are complete, bounds finite.

Nothing is asked of seconds here.
"""

import csv
import importlib
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks" / "speed"
# Contestants that reach something, and the columns that say what.
QUALITY = {
    "train": ("bound", {"skvae.VAE", "DataLoader, default Adam"}),
    "products": ("error", {"torch.bmm", "skvae"}),
    "lidvae": ("bound", {"skvae.VAE", "skvae.LIDVAE, anchored (default)"}),
    "ivae": ("log_likelihood", {"skvae.iFlow", "script, four weights as published"}),
    "replicas": ("log_likelihood", {"n_init=1", "n_init=8", "eight fits"}),
    "grid_search": (
        "log_likelihood",
        {"BatchedGridSearchCV(n_jobs=1)", "GridSearchCV(n_jobs=1)"},
    ),
    "batches": ("log_likelihood", {"the rule", "at most 30"}),
    "growth": ("bound_per_feature", {"1", "2", "1024", "2048"}),
    "step": ("bound", {"all of the epochs"}),
    "transform": ("difference", {"skvae.VAE.transform"}),
    "gpu": ("bound", {"skvae.VAE", "BatchedGridSearchCV"}),
}


@pytest.fixture
def script(monkeypatch):
    """Imports a script as scripts import their neighbours, and forgets it after."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    files = {str(path) for path in FOLDER.glob("*.py")}
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) in files:
            del sys.modules[name]


@pytest.fixture
def run(script, tmp_path):
    """Runs a study, tiny, and gives its rows and its page."""

    def rows_and_page(name, *arguments):
        path = tmp_path / f"speed_{name}.csv"
        arguments = ["--tiny", "--repetitions", "1", *arguments]
        with warnings.catch_warnings():
            # Scripts of other people's habits run in there.
            warnings.simplefilter("ignore")
            script(name).STUDY.main([*arguments, "--output", str(path)])
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return rows, path.with_suffix(".md").read_text()

    return rows_and_page


@pytest.mark.parametrize("name", QUALITY)
def test_a_study_fills_its_table(run, script, name):
    threads = torch.get_num_threads()
    rows, page = run(
        name, *(["--device", "cpu"] if name == "gpu" else ["--threads", "1"])
    )
    assert torch.get_num_threads() == threads
    column, contestants = QUALITY[name]
    wanted = {"question", "contestant", "repetition", "seconds", "threads", "load"}
    wanted |= {
        "torch",
        "scikit-learn",
        "machine",
        "command",
        *script(name).STUDY.columns,
    }
    assert wanted <= rows[0].keys()
    reached = {row["contestant"]: row[column] for row in rows if row[column]}
    assert contestants <= reached.keys()
    assert np.isfinite([float(value) for value in reached.values()]).all()
    for row in rows:
        # A race may end without a winner.
        assert row["seconds"] or row["spent"]
        assert row["contestant"] in page
    assert rows[0]["command"].startswith(f"python benchmarks/speed/{name}.py --tiny")


def test_a_configuration_in_a_process_of_its_own(script):
    study = script("replicas").STUDY
    options = study.parse(["--tiny", "--repetitions", "2"])
    rows = list(study.fresh({"question": "width 100"}, 1, options))
    assert [row["repetition"] for row in rows].count(1) == 3
    assert {row["threads"] for row in rows} == {1}


def row(contestant, repetition, seconds, spent=""):
    return {
        "question": "a race",
        "contestant": contestant,
        "threads": "1",
        "repetition": str(repetition),
        "seconds": str(seconds),
        "spent": str(spent),
        "load": "0.5",
        "command": "python race.py",
    }


def test_targets_are_ratios_within_repetitions(script):
    target = script("_measure").Target
    # The machine was twice as slow in the second repetition.
    rows = [row("ours", 0, 1.0), row("peer", 0, 3.0)]
    rows += [row("ours", 1, 2.0), row("peer", 1, 6.0)]
    faster = target("a race", "ours", "peer", at_least=2.5)
    np.testing.assert_allclose(faster.ratios(rows, "1"), 3.0)
    assert faster.verdict(3.0) == "met"
    assert faster.verdict(2.0) == "not met"
    slower = target("a race", "peer", "ours", at_most=2.5)
    np.testing.assert_allclose(slower.ratios(rows, "1"), 3.0)
    assert slower.verdict(3.0) == "not met"
    assert len(faster.ratios(rows, "2")) == 0


def test_a_race_without_a_winner(script):
    target = script("_measure").Target("a race", "ours", "peer", at_least=4.0)
    lost = [row("ours", 0, "", 5.0), row("peer", 0, "", 9.0)]
    won = [row("ours", 1, 2.0, 2.0), row("peer", 1, "", 9.0)]
    np.testing.assert_allclose(target.ratios(won, "1"), 4.5)
    np.testing.assert_allclose(sorted(target.ratios(lost + won, "1")), [0.0, 4.5])


def test_contestants_take_turns(script):
    calls = []

    def contestant(name):
        return lambda: calls.append(name)

    contestants = {name: contestant(name) for name in "abc"}
    found = list(script("_measure").interleaved(contestants, 3))
    assert "".join(calls) == "abc" + "abcbcacab"
    assert len(found) == 9


def test_targets_of_all_studies_in_one_table(script, tmp_path):
    train = script("train").STUDY
    path = tmp_path / train.path.name
    fields = [*row("", 0, 0)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=fields)
        writer.writeheader()
        for name, seconds in {"skvae.VAE": 1.0, "pythae": 1.5}.items():
            writer.writerow({**row(name, 0, seconds), "question": "batch 128"})
    page = script("all").page(tmp_path)
    line = next(line for line in page.splitlines() if "pythae" in line)
    assert "at least 2 times as fast | 1.50 (1.50 to 1.50) | not met" in line
    assert "0 met, 1 not met" in page
    for name in ("lidvae", "ivae", "replicas", "grid_search", "transform"):
        for target in script(name).STUDY.targets:
            assert f"| {target.question} | {target.contestant} |" in page


def test_the_bound_of_a_useless_model(script):
    X = script("_peers").images(50, 16)
    assert set(np.unique(X)) == {0.0, 1.0}

    def prior(rows):
        return np.zeros((len(rows), 3)), np.ones((len(rows), 3))

    def coin(z):
        return np.full((len(z), 16), 0.5)

    assert script("_peers").bound(prior, coin, X) == pytest.approx(-16 * np.log(2.0))


def test_durations_keep_one_unit(script):
    durations = script("_measure").durations
    assert durations([0.9, 0.5, 1.2]) == "900 ms (500 to 1200)"
    assert durations([2e-6]) == "2 us"
    assert durations([12.5, 1234.5, 1.0]) == "12.5 s (1 to 1234)"
    assert durations([]) == "never"


@pytest.mark.parametrize("depth", [1, 2])
def test_double_backward_is_the_same_map(script, depth):
    sizes = script("_peers").Sizes(n_features=20, width=12, n_latents=3)
    assert script("lidvae").difference(sizes, depth) < 1e-5


def test_the_clock_changes_nothing_and_misses_little(run):
    rows, _ = run("step", "--threads", "1")
    for question in {row["question"] for row in rows}:
        chosen = {r["contestant"]: r for r in rows if r["question"] == question}
        whole = chosen.pop("all of the epochs")
        assert whole["bound"] == chosen["all of the epochs, without the clock"]["bound"]
        parts = sum(
            float(r["seconds"])
            for r in chosen.values()
            if r["share"] and r is not whole
        )
        assert parts == pytest.approx(float(whole["seconds"]), rel=0.05)
        for part in ("encoder, forward", "decoder, forward", "backward", "Adam"):
            assert float(chosen[part]["seconds"]) > 0
