"""
Text: tens of thousands of words, no rate to tune
=================================================

Which package does a piece of documentation come from? The texts are the docstrings in the source
files of NumPy, SciPy and scikit-learn, cut into paragraphs: real text that is there
wherever this package is. Words and pairs of words make far more features than a matrix of their
square has room for; :class:`~sklearn_gradhess.PreconditionedSGDClassifier` then goes by the
diagonal of the Hessian, of which it tells in `preconditioner_`. Nothing is tuned for
anybody.
"""

import ast
import importlib.util
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from sklearn_gradhess import PreconditionedSGDClassifier

PACKAGES = ("numpy", "scipy", "sklearn")


def paragraphs(package):
    """Return the paragraphs of all docstrings of a package, each once."""
    folder = Path(importlib.util.find_spec(package).origin).parent
    found = set()
    for path in sorted(folder.rglob("*.py")):
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                found.update(part for part in text.split("\n\n") if len(part.split()) >= 5)
    return sorted(found)


texts, labels = [], []
for package in PACKAGES:
    mine = [text.replace(package, "") for text in paragraphs(package)]
    texts += mine
    labels += [package] * len(mine)
train, test, y, y_test = train_test_split(texts, labels, random_state=0, stratify=labels)
print(f"{len(texts):,} paragraphs of {len(PACKAGES)} packages")

# %%
# With tf-idf. A raw penalty is that of LogisticRegression, with the same minimum. The default
# chooses its penalties, one a word, by rows that it holds out; no unit of the columns matters.
vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)
X, X_test = vectorizer.fit_transform(train), vectorizer.transform(test)
models = {
    "PreconditionedSGD, raw": PreconditionedSGDClassifier(penalty_units="raw", random_state=0),
    "PreconditionedSGD": PreconditionedSGDClassifier(random_state=0),
    "LogisticRegression": LogisticRegression(max_iter=1000),
    "SGDClassifier": SGDClassifier(loss="log_loss", random_state=0),
}


def compare(X, X_test):
    """Fit all models; return accuracies and log losses on texts that were held out."""
    scores = {}
    for name, model in models.items():
        start = time.perf_counter()
        model.fit(X, y)
        seconds = time.perf_counter() - start
        probability = model.predict_proba(X_test)
        scores[name] = model.score(X_test, y_test), log_loss(y_test, probability)
        print(
            f"{name:<28} accuracy {scores[name][0]:.3f}, log loss {scores[name][1]:.3f}, "
            f"{seconds:.1f} s"
        )
    return scores


print(f"Words and pairs: {X.shape[1]:,} features, {X.nnz / X.shape[0]:.0f} of them a paragraph")
words = compare(X, X_test)
ours = models["PreconditionedSGD"]
print(
    f"By the {ours.preconditioner_}: {ours.n_passes_:.0f} passes over X, "
    f"{ours.df_:.0f} effective coefficients of {ours.coef_.size:,}"
)

# %%
# Which words speak for which package?
names = np.array(vectorizer.get_feature_names_out())
for package, coef in zip(ours.classes_, ours.coef_, strict=True):
    print(f"{package:<8}", ", ".join(names[np.argsort(-coef)[:6]]))

# %%
# With hashed features there is no vocabulary to keep.
hashing = HashingVectorizer(n_features=2**16, ngram_range=(1, 2))
print(f"Hashed: {2**16:,} features")
hashed = compare(hashing.transform(train), hashing.transform(test))

# %%
# Held out. With the raw penalty the two minima are one and the same.
figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
for axis, column, label in zip(axes, (0, 1), ("accuracy", "log loss"), strict=True):
    for offset, (kind, scores) in enumerate({"tf-idf": words, "hashed": hashed}.items()):
        values = [score[column] for score in scores.values()]
        axis.barh(np.arange(4) + 0.35 * offset, values, height=0.3, label=kind)
    axis.set(xlabel=f"{label}, held out", yticks=np.arange(4) + 0.17, yticklabels=list(words))
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
plt.show()
