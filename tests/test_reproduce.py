"""Tables: every cell once, whatever happens in between, and honest summaries."""

import csv

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from skvae.cli import main
from skvae.reproductions import TABLES, Options, load_table
from skvae.reproductions._table import Cell, Table
from skvae.reproductions.mixtures import majority_accuracy
from skvae.reproductions.recovery import PROBLEMS


def toy(calls, stop_at=None):
    """A table whose measurements are known, and which may be interrupted."""

    def measure(method, seed):
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append((method, seed))
        return {"value": 10 * seed + len(method)}

    def cells(options):
        for seed in options.seed_range(3):
            for method in options.chosen(["a", "bb"], options.methods, "method"):
                yield Cell(
                    {"method": method, "seed": seed},
                    lambda m=method, s=seed: measure(m, s),
                )

    return Table(
        "Toy",
        "A protocol.",
        ("method", "seed"),
        {"value": "{:.1f}"},
        cells,
        published={("bb",): {"value": "12"}},
        source="Nowhere.",
    )


def silent(*arguments):
    """Report nothing."""


def test_interrupted_runs_continue_where_they_stopped(tmp_path):
    path, calls = tmp_path / "toy.csv", []
    with pytest.raises(KeyboardInterrupt):
        toy(calls, stop_at=4).run(path, Options(), silent)
    assert len(calls) == 4
    toy(calls).run(path, Options(), silent)
    assert sorted(calls) == [(m, s) for m in ("a", "bb") for s in range(3)]
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], int(row["seed"])) for row in rows] == calls
    assert all(float(row["seconds"]) >= 0 and row["torch"] for row in rows)
    toy(calls).run(path, Options(seeds=3), silent)
    assert len(calls) == 6


def test_rendered_medians_and_ranges(tmp_path):
    path = tmp_path / "toy.csv"
    toy([]).run(path, Options(command="a command"), silent)
    text = toy([]).render(path)
    assert "| a | 3 | 11.0 (1.0 to 21.0) |" in text
    assert "| bb | 3 | 12.0 (2.0 to 22.0); published 12 |" in text
    assert "- `a command`" in text


def test_chosen_seeds_and_methods(tmp_path):
    calls = []
    options = Options(seeds=2, first_seed=5, methods=["bb"])
    toy(calls).run(tmp_path / "toy.csv", options, silent)
    assert calls == [("bb", 5), ("bb", 6)]
    with pytest.raises(ValueError, match=r"Unknown method c\. This table has a, bb"):
        toy(calls).run(tmp_path / "toy.csv", Options(methods=["c"]), silent)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_names_its_cells_uniquely(name):
    table = load_table(name)
    cells = list(table.cells(Options(seeds=2)))
    keys = [tuple(cell.key[k] for k in table.keys) for cell in cells]
    assert len(set(keys)) == len(keys) > 1
    assert table.keys[-1] == "seed"
    known = {key[:-1] for key in keys}
    assert set(table.published) <= known
    assert all(set(value) <= set(table.columns) for value in table.published.values())


def test_unknown_table():
    with pytest.raises(ValueError, match="Unknown table 'nothing'"):
        load_table("nothing")


def test_problems_hold_out_rows_of_every_segment():
    data, held_out = PROBLEMS["n=2, d=4, uncentred"].draw(0)
    assert data.data.shape == (48_000, 4)
    assert set(np.bincount(data.u[held_out])) == {200}
    assert set(np.bincount(data.u[~held_out])) == {1000}
    again, _ = PROBLEMS["n=2, d=4, uncentred"].draw(0)
    np.testing.assert_array_equal(again.data, data.data)


def test_majority_accuracy():
    y = np.array([0, 0, 1, 1, 1, 2])
    assert majority_accuracy(np.zeros(6), y) == 0.5
    assert majority_accuracy(y[::-1], y[::-1]) == 1.0
    assert majority_accuracy(np.array([0, 0, 1, 1, 1, 1]), y) == pytest.approx(5 / 6)


def test_command_line(tmp_path, capsys, monkeypatch):
    assert main(["reproduce"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in TABLES)
    drawn = []
    monkeypatch.setattr(load_table("pinwheel"), "picture", lambda *a: drawn.append(a))
    command = ["reproduce", "pinwheel", "--seeds", "1", "-o", str(tmp_path)]
    command += ["--methods", "GaussianMixture on X"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "[1/1] GaussianMixture on X" in shown.err
    with (tmp_path / "pinwheel.csv").open() as file:
        (row,) = csv.DictReader(file)
    from sklearn.mixture import GaussianMixture

    from skvae.reproductions.pinwheel import problem

    X, X_held_out, arms = problem(0)
    labels = GaussianMixture(5, n_init=10, random_state=0).fit(X).predict(X_held_out)
    assert float(row["ari"]) == round(adjusted_rand_score(arms, labels), 4)
    assert str(tmp_path) not in row["command"]
    assert "DIRECTORY" in row["command"]
    assert (tmp_path / "pinwheel.md").read_text().strip() in shown.out
    assert len(drawn) == 1
    assert main(["reproduce", "pinwheel", "--methods", "x", "-o", str(tmp_path)]) == 2
    assert "Unknown method x" in capsys.readouterr().err


def test_interruption_is_told(tmp_path, capsys, monkeypatch):
    table = toy([], stop_at=1)
    monkeypatch.setattr("skvae.cli._reproduce.load_table", lambda name: table)
    assert main(["reproduce", "toy", "-o", str(tmp_path)]) == 130
    assert "keeps the rows so far" in capsys.readouterr().err
