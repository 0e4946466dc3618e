"""The study of optimisers, on budgets of a blink."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from benchmarks import networks
from benchmarks.report import LeftOut


def curve(*training, epochs=10.0):
    """Losses at even times of a budget of one second; the test loss is twice as large."""
    time = np.linspace(0, 1, len(training))
    return np.column_stack([time, epochs * time, training, 2 * np.array(training)])


def test_a_row_compares_with_the_best_rate_of_adamw():
    curves = {
        ("t", "ours", 0.0, 0, 1.0): curve(8.0, 2.0, 1.0, 1.0, 0.5),
        ("t", "AdamW", 0.1, 0, 1.0): curve(8.0, 4.0, 3.0, 2.0, 1.0, epochs=20.0),
        ("t", "AdamW", 0.2, 0, 1.0): curve(8.0, 8.0, 8.0, 8.0, np.nan),
        ("t", "SGD", 0.3, 0, 1.0): curve(8.0, 4.0, 3.0, 2.0, 1.5),
    }
    ours, best, diverged, sgd = networks.summarise(curves)
    assert ours["training"] == ours["worst seed"] == 0.5
    assert (ours["test"], ours["epochs"]) == (1.0, 10.0)
    assert ours["time to AdamW"] == 0.5
    assert ours["epochs to AdamW"] == 5 / 20
    assert best["time to AdamW"] == 1.0
    assert diverged["training"] == np.inf
    assert sgd["time to AdamW"] == np.inf
    assert networks.verdict([ours, best, diverged, sgd]) == (
        "t, training loss: won, 0.5 of that of AdamW at rate 0.1\n"
        "t, test loss: won, 0.5 of that of AdamW at rate 0.1"
    )
    ours["test"] = 3.0
    assert "t, test loss: lost, 1.5 of that" in networks.verdict([ours, best, diverged, sgd])


def test_seeds_are_averaged_and_a_seed_that_never_comes_counts():
    curves = {
        ("t", "ours", 0.0, seed, 1.0): curve(4.0, end, end) for seed, end in enumerate((1.0, 3.0))
    }
    curves["t", "AdamW", 0.1, 0, 1.0] = curve(4.0, 3.0, 2.0)
    ours, _ = networks.summarise(curves)
    assert (ours["training"], ours["worst seed"]) == (2.0, 3.0)
    assert ours["time to AdamW"] == np.inf


@pytest.mark.parametrize("task", ["autoencoder, digits", "classification, digits"])
@pytest.mark.parametrize("method", [("ours", 0.0), ("AdamW", 0.003), ("SGD", 0.1)])
def test_training_stays_within_its_budget(task, method):
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    with torch.random.fork_rng([]):
        found = networks.train(task, *method, 0, 0.05)
    torch.set_num_threads(threads)
    assert np.isfinite(found).all()
    assert np.all(np.diff(found[:, 0]) >= 0)
    assert found[0, 0] == found[0, 1] == 0
    assert found[-1, 0] >= 0.05


def test_networks_of_the_study_fit_their_data():
    torch = pytest.importorskip("torch")
    for data, build, loss, _ in networks.TASKS.values():
        try:
            X, y = data()
        except LeftOut:
            continue
        outputs = build()(torch.as_tensor(X[:3]).float())
        y = torch.as_tensor(y[:3])
        y = y.float() if y.is_floating_point() else y
        assert torch.isfinite(getattr(torch.nn, loss)()(outputs, y))


def test_without_torch_the_theme_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(LeftOut, match="torch not installed"):
        networks.training.run(tasks=(), adamw=(), sgd=(), budget=0.0)


def test_the_theme_runs(monkeypatch):
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    monkeypatch.setattr(networks, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    settings = {"tasks": ("autoencoder, digits",), "adamw": (0.003,), "sgd": (), "budget": 0.02}
    with torch.random.fork_rng([]):
        rows = networks.training.run(**settings)
    torch.set_num_threads(threads)
    assert [row["optimiser"] for row in rows] == ["ours", "AdamW"]
