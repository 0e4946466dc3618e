"""Naive references: one loop a formula, no cleverness, no code of the package."""

import numpy as np


def batch_gradients(X, residual, batch, sample_weight=None, *, has_intercept=True):
    """Weighted mean gradient of each batch, and the weight of each batch, row by row."""
    X = np.asarray(X.toarray() if hasattr(X, "toarray") else X, dtype=np.float64)
    if has_intercept:
        X = np.column_stack([np.ones(len(X)), X])
    w = np.ones(len(X)) if sample_weight is None else sample_weight
    gradients, weights = [], []
    for b in range(max(batch) + 1):
        total, gradient = 0.0, np.zeros(X.shape[1])
        for i in np.flatnonzero(np.asarray(batch) == b):
            total += w[i]
            gradient += w[i] * residual[i] * X[i]
        if total > 0:
            gradients.append(gradient / total)
            weights.append(total)
    return np.array(gradients), np.array(weights)


def weighted_covariance(rows, weights=None, *, about_mean=True):
    """Maximum-likelihood covariance and mean, one outer product at a time."""
    rows = np.asarray(rows, dtype=np.float64)
    w = np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64)
    mean = sum(wi * row for wi, row in zip(w, rows, strict=True)) / w.sum()
    center = mean if about_mean else np.zeros_like(mean)
    covariance = sum(
        wi * np.outer(row - center, row - center) for wi, row in zip(w, rows, strict=True)
    )
    return covariance / w.sum(), mean


def relative_error(estimate, truth):
    """Operator-norm error over the norm of the truth."""
    return np.linalg.norm(estimate - truth, 2) / np.linalg.norm(truth, 2)
