"""The benchmarks' own machinery, without a look at real clocks; and themes on tiny data."""

import copy
import functools
import importlib.util
import inspect
import itertools
import json
import math
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.linear_model import LinearRegression, Ridge, SGDRegressor

import benchmarks
from benchmarks import (
    data,
    diagnosis,
    distributed,
    estimator,
    grid,
    measure,
    peers,
    rates,
    readme,
    real_data,
    report,
    risk,
    scaling,
    solver,
    streams,
    wide,
)
from benchmarks.__main__ import THEMES, main
from benchmarks.measure import best_times, log_slope, peak_memory, slope, time_ratios
from sklearn_gradhess import PreconditionedSGDClassifier, PreconditionedSGDRegressor

OLD = {
    "mode": "long",
    "environment": {"date": "2026-01-01", "cores": 64},
    "themes": {"fake_one": {"rows": [{"a": 1}]}, "fake_two": {"rows": [{"a": 2}]}},
}


class FakeClock:
    """A clock that only moves when a job takes its time."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def job(self, name, *seconds):
        spent = itertools.cycle(seconds)

        def run():
            self.log.append(name)
            self.now += next(spent)

        return run


def fake_theme(run, name, **words):
    run.__module__, run.__name__ = "benchmarks.fake", name
    run.__doc__ = run.__doc__ or "Nothing\n\nof note."
    return report.theme(f"Title of {name}", short={"n": 1}, long={"n": 2}, **words)(run)


# --- measure


def test_best_times_takes_turns_and_the_least():
    clock = FakeClock()
    jobs = {"a": clock.job("a", 3.0, 1.0, 2.0), "b": clock.job("b", 5.0)}
    assert best_times(jobs, repeat=3, clock=clock) == {"a": 1.0, "b": 5.0}
    assert clock.log == ["a", "b"] * 3


def test_a_slow_function_sits_out_once_its_budget_is_used():
    clock = FakeClock()
    jobs = {"fast": clock.job("fast", 1.0), "slow": clock.job("slow", 10.0)}
    assert best_times(jobs, repeat=3, budget=5.0, clock=clock) == {"fast": 1.0, "slow": 10.0}
    assert clock.log.count("slow") == 1
    assert clock.log.count("fast") == 3


def test_time_ratios_are_to_the_reference():
    clock = FakeClock()
    jobs = {"ours": clock.job("ours", 2.0), "peer": clock.job("peer", 9.0, 8.0)}
    assert time_ratios(jobs, "ours", repeat=2, clock=clock) == {"ours": 1.0, "peer": 4.0}


def test_slopes():
    points = np.array([10.0, 20.0, 40.0])
    assert log_slope(points, 3 * points**1.5) == 1.5
    assert slope(points, 7 - 2 * points) == -2.0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_peak_memory_of_a_known_allocation():
    size = 48 * 2**20
    # every page of the array is written; the kernel counts pages in lots, core by core
    peak = peak_memory(functools.partial, np.ones, size, np.uint8)
    assert abs(peak - size) <= 4 * 2**20


# --- report


def test_table_aligns_text_to_the_left_and_numbers_to_the_right():
    rows = [
        {"model": "ours", "rows": 200_000, "error": 0.5, "fast": True},
        {"model": "a peer", "rows": 7, "error": 12345.6, "note": "stopped"},
        {"model": "c", "error": 1.25e-9, "fast": False},
    ]
    assert report.table(rows).splitlines() == [
        "model      rows     error  fast  note",
        "------  -------  --------  ----  -------",
        "ours    200,000       0.5   yes",
        "a peer        7    12,346        stopped",
        "c                1.25e-09    no",
    ]


def test_plain_has_only_what_json_knows():
    found = report.plain(
        {"a": np.float64(math.pi), "b": (np.int64(3), np.inf), 4: np.nan, "c": 0.0}
    )
    assert found == {"a": 3.14159, "b": [3, "inf"], "4": None, "c": 0.0}
    json.dumps(found, allow_nan=False)


def test_an_entry_has_words_rows_and_summary():
    def run(n):
        """Measure\n\n    this."""
        return [{"n": np.int64(n)}]

    theme = fake_theme(run, "one", target="n is 2", summary=lambda rows: f"{len(rows)} row")
    entry = theme.measure("long")
    assert entry.pop("date")
    assert entry == {
        "title": "Title of one",
        "description": "Measure this.",
        "target": "n is 2",
        "mode": "long",
        "summary": "1 row",
        "rows": [{"n": 2}],
    }
    lines = ["Title of one [fake_one]", "Measure this.", "Target: n is 2.", "n", "-", "2", "1 row"]
    assert report.render(theme.name, entry).splitlines() == lines


def test_a_theme_that_cannot_be_measured_says_why():
    def run(n):
        raise report.LeftOut("art not installed")

    entry = fake_theme(run, "one").measure("short")
    assert entry["left_out"] == "art not installed"
    assert entry["rows"] == []
    assert report.render("fake_one", entry).endswith("\nleft out, art not installed")


def test_select_by_name_or_group_keeps_the_order():
    one, two = (fake_theme(lambda n: [], name) for name in ("one", "two"))
    assert report.select([one, two], None) == [one, two]
    assert report.select([one, two], ["fake"]) == [one, two]
    assert report.select([one, two], ["fake_two"]) == [two]
    with pytest.raises(ValueError, match="no theme or group is called three; --list"):
        report.select([one, two], ["fake_two", "three"])


def test_merge_keeps_other_themes_with_the_environment_they_were_measured_in():
    same = {"mode": "short", "environment": {"date": "2026-02-02", "cores": 64}}
    new = same | {"themes": {"fake_two": {"rows": []}}}
    merged = report.merge(OLD, new)
    assert merged == new | {"themes": {"fake_one": {"rows": [{"a": 1}]}, "fake_two": {"rows": []}}}
    merged = report.merge(OLD, new | {"environment": {"cores": 2}})
    assert merged["themes"]["fake_one"]["environment"] == OLD["environment"]
    assert "environment" not in merged["themes"]["fake_two"]
    assert "environment" not in OLD["themes"]["fake_one"]
    assert report.merge({}, new) == new


def test_environment_tells_versions_but_no_path():
    found = report.environment()
    assert found["numpy"] == np.__version__
    assert found["cores"] >= 1
    assert {"date", "python", "scipy", "sklearn", "sklearn_gradhess", "blas"} <= set(found)
    assert "/" not in json.dumps(found)


# --- the command


def test_main_prints_and_merges(tmp_path, capsys):
    path = tmp_path / "results.json"
    report.write(path, OLD)
    theme = fake_theme(lambda n: [{"n": n}], "two")
    main(["--short", "--only", "fake_two", "--json", str(path)], themes=[theme])
    results = report.read(path)
    assert results["themes"]["fake_one"]["rows"] == [{"a": 1}]
    assert results["themes"]["fake_one"]["environment"] == OLD["environment"]
    assert results["themes"]["fake_two"]["rows"] == [{"n": 1}]
    assert (results["mode"], results["themes"]["fake_two"]["mode"]) == ("short", "short")
    assert "Title of two [fake_two]\nNothing of note.\nn\n-\n1\n" in capsys.readouterr().out
    main(["--json", str(path)], themes=[theme])  # all themes: nothing old stays
    assert set(report.read(path)["themes"]) == {"fake_two"}
    assert report.read(path)["mode"] == "long"


def test_main_lists_without_measuring(tmp_path, capsys):
    path = tmp_path / "results.json"
    main(["--list", "--only", "solver", "--json", str(path)])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "solver_least_squares",
        "solver_logistic",
        "solver_online",
        "solver_seeds",
    ]
    assert not path.exists()


def test_main_refuses_unknown_themes(tmp_path):
    with pytest.raises(SystemExit, match="no theme or group is called speed"):
        main(["--only", "speed", "--json", str(tmp_path / "results.json")])


def test_an_unexpected_warning_stops_the_run(tmp_path):
    theme = fake_theme(lambda n: warnings.warn("unexpected", stacklevel=1), "one")
    with pytest.raises(UserWarning, match="unexpected"):
        main(["--json", str(tmp_path / "results.json")], themes=[theme])


def test_themes_have_their_own_names_and_the_settings_they_take():
    names = [theme.name for theme in THEMES]
    assert len(set(names)) == len(names) > 10
    for theme in THEMES:
        for settings in (theme.short, theme.long):
            inspect.signature(theme.run).bind(**settings)


# --- peers and data


def test_distances_to_the_optimum(rng):
    X, y = data.regression(400, 3, 1e4)
    assess = peers.LeastSquares(X, y)
    model = LinearRegression(tol=0.0).fit(X, y)
    assert assess(model)["excess, floors"] < 1e-15
    floor = np.mean((y - model.predict(X)) ** 2) * 3 / 400
    model.intercept_ += np.sqrt(2 * floor)
    assert assess(model)["excess, floors"] == pytest.approx(2.0)
    assert assess(model)["R2 gap"] == pytest.approx(2 * floor / np.var(y))


def test_distance_of_a_classifier_is_in_log_loss():
    X, y = data.classification(400, 3, 10.0)
    assess = peers.LogisticOptimum(X, y)
    model = PreconditionedSGDClassifier(alpha=0.0, tol=1e-8, random_state=0).fit(X, y)
    assert abs(assess(model)["gap, floors"]) < 1e-6
    model.coef_ = 0 * model.coef_
    model.intercept_ = np.zeros(1)
    expected = (np.log(2) - assess.best) / (3 / 800)
    assert assess(model)["gap, floors"] == pytest.approx(expected)


def test_notes_and_passes(rng):
    X, y = rng.standard_normal((200, 2)), rng.standard_normal(200)
    capped = peers.fit(SGDRegressor(max_iter=2, tol=None, random_state=0), X, y)
    assert (peers.passes(capped), peers.note(capped)) == (2.0, "stopped at max_iter=2")
    exact = peers.fit(LinearRegression(), X, y)
    assert (peers.passes(exact), peers.note(exact)) == (None, None)
    ours = peers.fit(PreconditionedSGDRegressor(random_state=0), X, y)
    assert (peers.passes(ours), peers.note(ours)) == (ours.n_passes_, None)
    ours.converged_ = False
    assert peers.note(ours) == "not converged"


@pytest.mark.parametrize("name", ["diamonds", "flights"])
def test_real_data_without_their_package_are_left_out(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(report.LeftOut, match="not installed"):
        data.real(name)


# --- themes, on tiny data


def check(rows, *columns):
    """Rows have these columns, and every number is finite."""
    assert rows
    for row in rows:
        assert set(columns) <= set(row)
        numbers = [v for v in row.values() if isinstance(v, int | float)]
        assert np.all(np.isfinite(numbers))
    return rows


def test_estimator_theme_finds_the_correction_worth_it():
    none, gaussian = check(estimator.single_noise.run(n_seeds=1), "error / floor")
    assert gaussian["error / floor"] < 2 < none["error / floor"]


def test_a_healthy_estimate_raises_no_word_and_each_failure_is_named():
    for row in diagnosis.words.run(n_seeds=4):
        assert row["named"] in (None, 1.0), row
        assert row["other words"] == 0.0, row


def test_estimator_peers_theme():
    rows = check(estimator.peers.run(shapes=[(600, 3)], n_seeds=2, repeat=1), "time / EC")
    of = {row["model"]: row["error / EC"] for row in rows}
    assert of["EmpiricalCovariance"] == 1.0
    assert of["ours"] == pytest.approx(1.0)  # batches of one row
    assert of["ours, batch_size=16"] > 1


def test_distributed_themes(monkeypatch):
    rows = check(distributed.holders_rounds.run((2000, 3), (1.0, 1e8), 2), "rounds", "floors")
    assert all(row["floors"] < 0.05 and row["rounds"] <= 12 for row in rows)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "dask", None)
        with pytest.raises(report.LeftOut, match="dask not installed"):
            distributed.dask_rounds.run([(2000, 3)], (1.0,), 500, 1, {})
    pytest.importorskip("dask")
    peers = {"solvers": ("newton",), "seconds": 60}
    rows = distributed.dask_rounds.run([(2000, 3)], (1.0, 1e8), 500, 1, peers)
    assert [row["model"] for row in rows[:3]] == ["ours", "exact Gram", "ours, in memory"]
    ours = [row for row in rows if row["model"].startswith("ours")]
    assert all(row["floors"] < 0.05 for row in ours)
    assert rows[0]["rounds"] == rows[1]["rounds"] == 1
    peer = rows[-1]
    assert peer["model"].startswith("dask-glm, ")
    assert peer["note"] == distributed.dask_peers.MISSING or peer["floors"] < 0.05


def test_dask_glm_is_asked_in_a_process_of_its_own(monkeypatch, tmp_path):
    """A stand-in for an interpreter that has it: it answers, fails, or takes too long."""
    fake = tmp_path / "python"
    fake.write_text(
        f"#!{sys.executable}\nimport sys, time\n"
        "if sys.argv[1] == '-c': sys.exit(0)\n"
        "if sys.argv[4] == 'admm': time.sleep(60)\n"
        "if sys.argv[4] == 'gradient_descent': sys.exit('no such thing')\n"
        'print(\'{"seconds": 2.0, "rounds": 3, "W": [0.0, 1.0]}\')\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv(distributed.dask_peers.INTERPRETER, str(fake))
    X, y = np.ones((4, 1)), np.ones(4)
    found = distributed.dask_peers.compare(X, y, 2, ("newton",), 1)
    assert found["newton"] == {"seconds": 2.0, "rounds": 3, "W": [0.0, 1.0]}
    assert found["gradient_descent"] == {"note": "no such thing"}
    assert found["admm"] == {"note": "stopped after 1 s of CPU"}


def test_prediction_theme_adds_up(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(distributed, "_seconds_of_a_task", lambda dask, n: 1e-3)
    (row,) = distributed.prediction.run((3,), 500, 1, 10, rows=10**6, workers=2)
    blocks = 10**6 / 500
    for name in ("ours", "Gram"):
        assert 2 <= row[f"{name}, rounds"] <= 10
        expected = row[f"{name}, rounds"] * row[f"{name}, s a block"] * blocks / 2
        assert row[f"{name}, s a fit"] == pytest.approx(expected)
    assert row["ours, s of scheduling"] == pytest.approx(row["ours, rounds"] * blocks * 1e-3)


def test_solver_themes():
    problems = [(1000, 4, 1e2)]
    rows = solver.least_squares.run(problems, threads=(1, 2), max_iter=3, repeat=1, budget=1.0)
    check(rows, "time / ours", "passes", "excess, floors", "note")
    assert [row["threads"] for row in rows].count(2) == len(solver.IN_BLAS)
    assert all(row["excess, floors"] < 0.05 for row in rows if row["model"] == "ours")
    assert rows[9]["note"].startswith("stopped at max_iter=3; tuning took ")
    solvers = ("lbfgs", "liblinear", "saga")
    rows = solver.logistic.run(problems, solvers, repeat=1, max_iter=2)
    check(rows, "time / ours", "gap, floors")
    assert rows[-1]["note"] == "stopped at max_iter=2"
    assert all(row["gap, floors"] < 0.05 for row in rows[:-1])
    check(solver.seeds.run(shape=(500, 3), n_seeds=2), "converged", "most passes")


class FakeWorkspace:
    """Predicts the mean of the targets that it learned from, all passes together."""

    def __init__(self, **settings):
        self.seen = []

    def parse(self, line):
        return float(line.split(" |")[0])

    def learn(self, target):
        self.seen.append(target)

    def predict(self, line):
        return float(np.mean(self.seen))

    def finish_example(self, row):
        pass

    finish = list


def test_rows_for_vowpal_wabbit_are_those_of_the_data(monkeypatch):
    fake = types.SimpleNamespace(Workspace=FakeWorkspace)
    monkeypatch.setitem(sys.modules, "vowpalwabbit", fake)
    X, y = np.arange(6.0).reshape(3, 2), np.array([1.0, 2.0, 6.0])
    model = peers.VowpalWabbit(passes=2).fit(X, y)
    assert model.predict(X).tolist() == [3.0] * 3
    with pytest.raises(ValueError, match=r"^3 rows were fitted, 2 are asked for$"):
        model.predict(X[:2])
    rows = check(solver.online.run((300, 3), (1, 1e6), (0.5, 1.0), 2), "passes", "excess, floors")
    assert [row["model"] for row in rows] == ["ours", "Vowpal Wabbit, rate 0.5"] * 2
    assert all(row["excess, floors"] < 0.05 < rows[1]["excess, floors"] for row in rows[::2])


def test_vowpal_wabbit_is_left_out_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "vowpalwabbit", None)
    with pytest.raises(report.LeftOut, match=r"^vowpalwabbit not installed$"):
        solver.online.run((300, 3), (1,), (0.5,), 1)


def test_glum_is_no_peer_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    assert peers.glum_classifier() == {}


@pytest.mark.parametrize("loss", grid.ALL_LOSSES)
def test_a_cell_of_the_grid_tells_distances_from_an_optimum(loss):
    row = grid.cell(loss, 400, 3, condition=1e6, repeat=1)
    check(grid.lines(row), "time / ours", "excess, floors")
    assert (row["rows"], row["features"], row["condition"], row["threads"]) == (400, 3, 1e6, 1)
    # mean losses of a few units differ by their rounding
    distances = {name: of["excess, floors"] for name, of in row["models"].items()}
    assert -1e-9 < distances.pop("ours") < grid.EXACT
    assert set(distances) == set(grid.peers(loss))
    exact = [distance < grid.EXACT for distance in distances.values()]
    assert (row["peer / ours"] is None) == (row["fastest exact peer"] is None) == (not any(exact))


@pytest.mark.parametrize("loss", grid.ALL_LOSSES)
def test_an_optimum_has_no_gradient_and_a_floor_is_what_a_fit_costs(loss):
    X, y, excess = grid.problem(loss, 2000, 4, 1e4, 0)
    model = grid.ours(loss, tol=1e-9).fit(X, y)
    assert abs(excess(model)) < 1e-6
    # one standard error in the intercept is one floor in p, and the rest of the series
    f = X @ model.coef_.ravel() + model.intercept_
    scale = grid.scale_of(f - y) if loss == "huber" else 1.0
    _, gradient, curvature = grid.derivatives(loss, y, f, scale)
    assert abs(gradient.mean()) < 1e-4
    model.intercept_ = model.intercept_ + np.sqrt(
        np.mean(gradient**2) / len(y) / curvature.mean() ** 2
    )
    assert excess(model) == pytest.approx(1 / 5, rel=0.1)


@pytest.mark.parametrize("loss", grid.ALL_LOSSES)
def test_an_optimum_is_found_where_rows_are_few(loss):
    _, _, excess = grid.problem(loss, 500, 100, 1, 0)
    zero = LinearRegression()
    zero.coef_, zero.intercept_ = np.zeros(100), 0.0
    assert 1 < excess(zero) < 100


@pytest.mark.parametrize("loss", grid.ALL_LOSSES)
def test_derivatives_of_the_grid_are_numeric_ones(loss, rng):
    y, f, h = (rng.random(50) < 0.5).astype(float), 2 * rng.standard_normal(50), 1e-5
    ahead, behind = grid.derivatives(loss, y, f + h), grid.derivatives(loss, y, f - h)
    _, gradient, curvature = grid.derivatives(loss, y, f)
    np.testing.assert_allclose((ahead[0] - behind[0]) / (2 * h), gradient, atol=1e-8)
    np.testing.assert_allclose((ahead[1] - behind[1]) / (2 * h), curvature, atol=1e-8)


def test_the_grid_names_the_fastest_of_the_exact_peers_only(monkeypatch):
    seconds = {"ours": 0.1, "LinearRegression": 0.05, "Ridge, cholesky": 0.2}
    offered = {
        "LinearRegression": LinearRegression(fit_intercept=False),
        "Ridge, cholesky": Ridge(0),
    }
    monkeypatch.setattr(grid, "peers", lambda loss: offered)

    def fake_times(jobs, **how):
        for job in jobs.values():
            job()
        return seconds

    monkeypatch.setattr(grid, "best_times", fake_times)
    monkeypatch.setattr(grid, "problem", shifted(grid.problem))
    row = grid.cell("squared_error", 300, 2)
    assert row["fastest exact peer"] == "Ridge, cholesky"
    assert (row["peer / ours"], row["within target"]) == (2.0, True)
    assert row["models"]["LinearRegression"] == {
        "time / ours": 0.5,
        "excess, floors": pytest.approx(300 * 100 / 3, rel=0.3),
    }
    seconds["Ridge, cholesky"] = 0.01
    assert not grid.cell("squared_error", 300, 2)["within target"]


def shifted(problem):
    """Data whose target has an offset that a model without an intercept cannot reach."""

    def make(*arguments):
        X, y, excess = problem(*arguments)
        return X, y + 10, lambda model: excess(moved(model))

    def moved(model):
        back = copy.copy(model)
        back.intercept_ = model.intercept_ - 10
        return back

    return make


def test_grid_themes_and_their_summary():
    rows = grid.cells.run(("squared_error",), ((200, 2), (300, 3)), (1,), (1, 2))
    check(rows, "model", "time / ours", "excess, floors")
    own = [row for row in rows if row["model"] == "ours"]
    assert [(row["rows"], row["threads"]) for row in own] == [
        (200, 1),
        (200, 2),
        (300, 1),
        (300, 2),
    ]
    check(grid.small.run(shape=(50, 2), repeat=1), "peer", "ours / peer")
    rows = grid.cross_validation.run(names=("breast cancer",), repeat=1)
    check(rows, "time / LogisticRegression")
    assert all(row["accuracy"] > 0.9 for row in rows)
    some = {"loss": "huber", "model": "ours", "within target": True, "peer / ours": 0.5}
    peer = {"loss": "huber", "model": "a peer"}
    none = {"loss": "poisson", "model": "ours", "within target": False, "peer / ours": None}
    assert grid.verdict(
        [some, peer, {**some, "within target": False, "peer / ours": 2.0}, none]
    ) == (
        "huber: within the target in 1 of 2 cells; fastest exact peer / ours from 0.50 to 2.00\n"
        "poisson: within the target in 0 of 1 cells"
    )


def test_a_search_without_end_for_an_optimum_ends(monkeypatch):
    monkeypatch.setattr(grid.np.linalg, "solve", lambda hessian, slope: 1e-6 * slope)
    X = np.random.default_rng(0).standard_normal((50, 2))
    with pytest.raises(RuntimeError, match="no optimum of squared_error was found in 100 steps"):
        grid.optimum("squared_error", X, X[:, 0])


def test_rates_of_everything_that_the_plan_counts_with(monkeypatch, capsys):
    clock = FakeClock()

    def slowly(jobs, *, repeat):
        return best_times({"run": clock.job("run", 0.5)}, repeat=repeat, clock=clock)

    monkeypatch.setattr(rates, "best_times", slowly)
    rows = check(rates.rates(2000, (4,), threads=(1, 2), repeat=2), "quantity", "size")
    assert [row["threads"] for row in rows] == [1] * 12 + [2] * 12
    of = {(row["quantity"], row["size"]): (row["rate"], row["unit"]) for row in rows}
    assert of["Gram (syrk)", "500 x 4"] == (pytest.approx(500 * 16 / 0.5 / 1e9), "Gflop/s")
    assert of["Cholesky", "4"] == (pytest.approx(64 / 3 / 0.5 / 1e9), "Gflop/s")
    assert of["pass, dense", "500 x 4"] == (pytest.approx(0.5e9 / 2000), "ns an entry")
    assert of["exp", "20"] == (pytest.approx(0.5e9 / 20), "ns a row")
    monkeypatch.setattr(rates, "rates", lambda *size: [{"rate": 1.0}])
    rates.main(["--short"])
    assert capsys.readouterr().out == "rate\n----\n   1\n"


def test_a_pass_is_a_product_and_its_adjoint(rng, monkeypatch):
    monkeypatch.setattr(rates, "CHUNK", 100)  # several chunks, the last one incomplete
    run, count = rates.dense_pass(rng, 10, 4)
    names = run.__code__.co_freevars
    X, w, out = (run.__closure__[names.index(name)].cell_contents for name in ("X", "w", "out"))
    run()
    assert count == 40
    np.testing.assert_allclose(out, X.T @ (X @ w))


def test_scaling_themes():
    check(scaling.rows.run(sizes=(300, 600), d=3, repeat=1), "300", "600", "slope")
    rows = scaling.condition.run(shape=(500, 3), condition_numbers=(1.0, 1e4))
    check(rows, "1e+00", "1e+04")
    ours = [row for row in rows if row["model"] == "PreconditionedSGDRegressor"]
    assert ours[0]["quantity"] == "passes"
    assert ours[0]["slope"] == 0.0  # affine equivariant


def test_wide_theme():
    small = {"text": (300, 1_500), "categories": (300, 1_500), "genes": (40, 1_200)}
    problems = {name: (name, shape) for name, shape in small.items()}
    problems["images"] = ("images", (100, 12), 1e-3)
    rows = wide.classes.run(problems=problems, repeat=1, most=20)
    used = {row["data"]: row["preconditioner"] for row in rows if row["preconditioner"]}
    assert used == {
        "text": "diagonal",
        "categories": "diagonal",
        "genes": "sample_space",
        "images": used["images"],
    }
    assert used["images"] in ("exact", "pooled")
    assert max(row["gap"] for row in rows if "tol" in row["model"]) < 1e-2
    assert all(row["gap"] >= 0 for row in rows)
    assert all(row["ended"] for row in rows if row["preconditioner"])
    assert {row["data"] for row in rows if "liblinear" in row["model"]} == small.keys()


def test_wide_themes_on_units_norms_and_text():
    rows = check(wide.wild_units.run(problems={"a": ("text", (300, 600))}, most=5), "log loss")
    assert rows[0]["mean change"] < 1e-3 < rows[1]["mean change"]
    rows = check(wide.least_norm.run(shapes=((20, 1_500),), repeat=1), "residual")
    assert all(row["residual"] < 1e-8 and row["difference"] < 1e-6 for row in rows)
    rows = wide.defaults_on_text.run(
        corpora={"two": ("sklearn.svm", "sklearn.tree")}, n=300, words=("tf-idf", "counts")
    )
    check(rows, "log loss", "accuracy")
    assert {row["words"] for row in rows} == {"tf-idf", "counts"}


@pytest.mark.parametrize(
    ("make", "shape", "n_classes"), [("scattered", (200, 300, 10), 2), ("normal", (300, 20, 5), 5)]
)
def test_wide_data_are_of_the_shape_that_is_asked(make, shape, n_classes):
    X, y = wide.MAKE[make](*shape)
    assert X.shape == shape[:2]
    assert_array_equal(np.unique(y), np.arange(n_classes))


def test_stream_themes():
    rows = check(streams.law.run(n=1500, d=2, chunks=(100,), n_seeds=1), "loss", "chunk")
    assert all(-0.01 < row["random"] < 1 and row["by the target"] < 30 for row in rows)
    check(streams.rows_one_by_one.run(d=3, n_rows={1: 5, 10: 50}), "time / SGD")
    rows = check(streams.by_diagonal.run(n=3000, dims=(4,), correlations=(0.0,)), "10 a call")
    assert rows[0]["10 a call"] < 1
    small = {"text": (1_500, 6_000), "categories": (1_500, 6_000)}
    losses = check(streams.hashed.run(problems=small, chunk=300), "log loss", "seconds")
    assert losses[1]["log loss"] < losses[4]["log loss"] + 0.05


def test_risk_theme_and_its_summary():
    rows = risk.intervals_coverage.run(
        reps=3, shapes=[(3, 40)], batch_sizes=[8], excess_risks=[1.0]
    )
    assert len(rows) == len(risk.LAWS)
    assert all(0 <= row["clean"] <= 1 for row in rows)
    summary = risk.extremes(
        [{"law": "a", "clean": 0.9, "observed": 1.0}, {"law": "b", "clean": 0.5}]
    )
    assert summary == "a: coverage 0.900 to 1.000\nb: coverage 0.500 to 0.500"


def test_the_attacks_are_left_out_without_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "art", None)
    monkeypatch.delitem(sys.modules, "benchmarks.toolbox", raising=False)
    monkeypatch.delattr(benchmarks, "toolbox", raising=False)
    with pytest.raises(report.LeftOut, match="adversarial-robustness-toolbox not installed"):
        risk.attacks.run(norms=(2,))


def test_real_data_themes_on_a_stand_in(monkeypatch):
    monkeypatch.setattr(real_data, "real", lambda name, n_rows: data.regression(n_rows, 3, 1e2))
    monkeypatch.setattr(real_data, "LATE", 0)
    rows = real_data.regression.run(n_rows=500, max_iter=5, repeat=1, budget=1.0)
    check(rows, "features are", "time / ours", "R2 gap")
    rows = real_data.classification.run(n_rows=500, solvers=("lbfgs",), repeat=1)
    check(rows, "features are", "gap, floors")
    check(real_data.seeds.run(n_rows=500, n_seeds=2), "converged")


def test_the_table_of_the_readme_is_that_of_the_measured_results():
    root = Path(benchmarks.__file__).parents[1]
    text = (root / "README.md").read_text("utf-8")
    results = json.loads((root / "docs" / "measured.json").read_text("utf-8"))
    assert results["mode"] == "long"
    between = text.partition(readme.START)[2].partition(readme.END)[0]
    assert between.strip() == readme.table(results)


def test_a_row_of_the_readme_has_to_be_the_only_one():
    results = {"themes": {"fake": {"rows": [{"a": 1, "b": 2}, {"a": 1, "b": 3}]}}}
    assert readme.row(results, "fake", b=3) == {"a": 1, "b": 3}
    with pytest.raises(LookupError, match=r"^2 rows of fake have \{'a': 1\}, one is needed$"):
        readme.row(results, "fake", a=1)


def test_the_readme_names_the_best_and_the_worst_cell_of_the_grid():
    cell = {"loss": "log_loss", "rows": 2_000, "features": 10, "condition": 1.0}
    cells = [
        cell | {"peer / ours": ratio, "fastest exact peer": "glum"} for ratio in (0.6, 3.25, None)
    ]
    (line,) = readme.grid({"themes": {"grid_cells": {"rows": cells}}})
    assert line == (
        "time of the fastest exact peer, 2 sizes and conditions",
        "1",
        "best for us 3.25 (log_loss, 2,000 x 10, condition 1e+00, glum)",
        "worst 0.60 (log_loss, 2,000 x 10, condition 1e+00, glum)",
    )
    assert not list(readme.grid({"themes": {}}))


def test_writing_the_readme_leaves_the_rest_as_it_was(tmp_path, monkeypatch):
    results, text = tmp_path / "results.json", tmp_path / "README.md"
    results.write_text("{}", "utf-8")
    text.write_text(f"before\n{readme.START}\n\nold\n\n{readme.END}\nafter\n", "utf-8")
    monkeypatch.setattr(readme, "table", lambda results: "| new |")
    for _ in range(2):
        readme.main(results, text)
        assert (
            text.read_text("utf-8") == f"before\n{readme.START}\n\n| new |\n\n{readme.END}\nafter\n"
        )


@pytest.mark.parametrize("text", ["", f"{readme.START} lost", f"{readme.END}{readme.START}"])
def test_a_readme_without_its_markers_is_left_alone(tmp_path, text):
    path = tmp_path / "README.md"
    path.write_text(text, "utf-8")
    with pytest.raises(
        ValueError, match=r"^README\.md lacks the lines <!-- measured.* in this order$"
    ):
        readme.main(tmp_path / "results.json", path)
    assert path.read_text("utf-8") == text


def test_peaks_of_memory_need_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "_PROCESS", tmp_path)
    with pytest.raises(report.LeftOut, match=r"^peaks of memory need Linux's /proc$"):
        peak_memory(list)
