"""
A stream of hashed text: every chunk once, no rate to tune
==========================================================

Which package does a piece of source code come from? Pieces of ten lines from the files of NumPy,
SciPy and scikit-learn go by in chunks of a thousand, as in scikit-learn's example of out-of-core
learning: words are hashed into :math:`2^{18}` features, every chunk is predicted first, which makes
its loss an honest one, and then learned from by `partial_fit`.
:class:`~sklearn_gradhess.PreconditionedSGDClassifier` keeps a diagonal model of the rows that are
gone, a few numbers a feature. :class:`~sklearn.linear_model.SGDClassifier` does as well as the rate
of its steps is tuned, which follows from its `alpha`.
"""

import importlib.util
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

from sklearn_gradhess import PreconditionedSGDClassifier

PACKAGES, N_CHUNKS, CHUNK = ("numpy", "scipy", "sklearn"), 60, 1000

texts, labels = [], []
for package in PACKAGES:
    folder = Path(importlib.util.find_spec(package).origin).parent
    for path in sorted(folder.rglob("*.py")):
        lines = path.read_text("utf-8", errors="ignore").replace(package, "").splitlines()
        pieces = ["\n".join(lines[i : i + 10]) for i in range(0, len(lines), 10)]
        texts += pieces
        labels += [package] * len(pieces)
shuffled = np.random.default_rng(0).permutation(len(texts))
order, held_out = np.split(shuffled[: (N_CHUNKS + 10) * CHUNK], [N_CHUNKS * CHUNK])
print(f"{len(texts):,} pieces of {len(PACKAGES)} packages, of which {len(order):,} go by")

# %%
# `alpha` of SGDClassifier says both how much is penalised and how long the steps are: the shorter,
# the larger it is. Ours is left alone, in the raw units that suit words.
vectorizer = HashingVectorizer(n_features=2**18, token_pattern=r"\w+", alternate_sign=False)
models = {
    "PreconditionedSGD": PreconditionedSGDClassifier(penalty_units="raw"),
    "SGD, default": SGDClassifier(loss="log_loss", random_state=0),
    "SGD, alpha=1e-5": SGDClassifier(loss="log_loss", alpha=1e-5, random_state=0),
    "SGD, alpha=1e-6": SGDClassifier(loss="log_loss", alpha=1e-6, random_state=0),
}
losses = {name: [] for name in models}
seconds = dict.fromkeys(["HashingVectorizer", *models], 0.0)
for i in range(N_CHUNKS):
    chunk = order[i * CHUNK : (i + 1) * CHUNK]
    start = time.perf_counter()
    X, y = vectorizer.transform([texts[j] for j in chunk]), [labels[j] for j in chunk]
    seconds["HashingVectorizer"] += time.perf_counter() - start
    for name, model in models.items():
        start = time.perf_counter()
        if i:
            losses[name].append(log_loss(y, model.predict_proba(X), labels=PACKAGES))
        model.partial_fit(X, y, classes=PACKAGES)
        seconds[name] += time.perf_counter() - start
print(f"HashingVectorizer {seconds.pop('HashingVectorizer'):.1f} s")
for name, spent in seconds.items():
    print(
        f"{name:<18} {spent:.1f} s, log loss of the last chunks {np.mean(losses[name][-10:]):.3f}"
    )

# %%
# One pass ends about where a fit of all rows at once does.
X, y = vectorizer.transform([texts[j] for j in held_out]), [labels[j] for j in held_out]
whole = PreconditionedSGDClassifier(penalty_units="raw").fit(
    vectorizer.transform([texts[j] for j in order]), [labels[j] for j in order]
)
for name, model in {"a fit of all rows": whole, **models}.items():
    print(f"Held out, {name:<18} {log_loss(y, model.predict_proba(X)):.3f}")

# %%
# The loss of each chunk before it was learned from.
figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
for name, values in losses.items():
    smooth = np.convolve(values, np.ones(5) / 5, mode="valid")
    axis.plot(CHUNK * (1 + np.arange(len(smooth)) + 4), smooth, label=name)
axis.set(xlabel="pieces seen", ylabel="log loss of the next ones", ylim=(0, 1.2))
axis.legend()
plt.show()
