"""Measure the rates that the plan of a fit counts with: ``python -m benchmarks.rates``.

Flops are multiplications and additions: ``n p^2`` for a Gram matrix, of which BLAS forms one half
(syrk), ``2 n p q`` for a product, ``p^3 / 3`` for a Cholesky factor. A pass is what a gradient
takes, ``X @ w`` and ``X.T @ r`` over chunks of one megabyte, so that the second finds the chunk in
cache. Everything is the best of several repetitions, on one thread and on more.
"""

import argparse
from functools import partial

import numpy as np
from scipy import linalg, sparse
from scipy.special import expit, log_expit
from threadpoolctl import threadpool_limits

from benchmarks.measure import best_times
from benchmarks.report import table
from sklearn_gradhess._gradients import RowCoefficients, batch_index, batch_sums

CHUNK = 2**20  # bytes of X that a pass takes at a time


def gram(rng, n, p):
    """Return the Gram matrix of rows, to be timed, and its flops."""
    X = rng.standard_normal((n, p))
    return lambda: X.T @ X, n * p**2


def product(rng, n, p, q):
    """Return a product of rows with q columns, to be timed, and its flops."""
    X, W = rng.standard_normal((n, p)), rng.standard_normal((p, q))
    return lambda: X @ W, 2 * n * p * q


def cholesky(rng, p):
    """Return a Cholesky factorisation, to be timed, and its flops."""
    X = rng.standard_normal((2 * p, p))
    H = X.T @ X
    return lambda: linalg.cholesky(H, check_finite=False), p**3 / 3


def dense_pass(rng, n, p):
    """Return a pass over dense rows, to be timed, and its entries."""
    X, w, out = rng.standard_normal((n, p)), rng.standard_normal(p), np.zeros(p)
    chunk = max(CHUNK // (8 * p), 1)

    def run():
        for start in range(0, n, chunk):
            Z = X[start : start + chunk]
            np.add(out, Z.T @ (Z @ w), out=out)

    return run, n * p


def sparse_pass(rng, n, p, density):
    """Return a pass over CSR rows, to be timed, and its stored entries."""
    stored = max(round(density * p), 1)  # in each row
    index = np.sort(rng.integers(p, size=(n, stored)), axis=1).ravel()
    start = np.arange(0, n * stored + 1, stored)
    X = sparse.csr_array((rng.standard_normal(n * stored), index, start), shape=(n, p))
    w = rng.standard_normal(p)
    return lambda: X.T @ (X @ w), X.nnz


def read(rng, n, p):
    """Return a sum of all entries, to be timed, and their number."""
    X = rng.standard_normal((n, p))
    return X.sum, n * p


def sketch(rng, n, p, batch_size, n_threads):
    """Return the sums of dealt batches, to be timed, and the entries read."""
    X = rng.standard_normal((n, p))
    coefficients = RowCoefficients(rng.choice([-1.0, 1.0], (n, 1)))
    batch = batch_index(n, batch_size, 0, rng)
    how = {"batch_size": batch_size, "contiguous": False, "has_intercept": True}
    return (
        lambda: list(batch_sums(X, coefficients, batch, **how, n_threads=n_threads)),
        n * p,
    )


def elementwise(rng, n, function):
    """Return a function of raw predictions, to be timed, and their number."""
    f = rng.standard_normal(n)
    return partial(function, f), n


def jobs(n_entries, widths, threads, rng):
    """Yield (quantity, size, unit, make), make giving a function to be timed and its count."""
    for p in widths:
        n = max(n_entries // p, 2 * p)
        size = f"{n:,} x {p:,}"
        yield "Gram (syrk)", size, "Gflop/s", partial(gram, rng, n, p)
        yield "product with p columns (gemm)", size, "Gflop/s", partial(product, rng, n, p, p)
        yield "product with 16 columns", size, "Gflop/s", partial(product, rng, n, p, 16)
        yield "Cholesky", f"{p:,}", "Gflop/s", partial(cholesky, rng, p)
        yield "read (sum)", size, "ns an entry", partial(read, rng, n, p)
        yield "pass, dense", size, "ns an entry", partial(dense_pass, rng, n, p)
        batch_size = max(n // (4 * p), 2)
        made = partial(sketch, rng, n, p, batch_size, threads)
        yield "sketch of 4p batches", size, "ns an entry", made
    n = n_entries // 100
    for p, density in ((1000, 0.01), (100_000, 1e-4)):
        made = partial(sparse_pass, rng, n, p, density)
        yield "pass, sparse", f"{n:,} x {p:,}", "ns a stored entry", made
    for function in (np.exp, expit, log_expit):
        made = partial(elementwise, rng, n, function)
        yield function.__name__, f"{n:,}", "ns a row", made


def rates(n_entries=5 * 10**6, widths=(20, 100, 500), threads=(1, 2), repeat=5, seed=0):
    """Return a row for each quantity and number of threads: what was timed, and its rate."""
    rows = []
    for n_threads in threads:
        rng = np.random.default_rng(seed)
        with threadpool_limits(n_threads):
            for quantity, size, unit, make in jobs(n_entries, widths, n_threads, rng):
                run, count = make()
                run()  # what is only needed once
                seconds = best_times({"run": run}, repeat=repeat)["run"]
                rate = count / seconds / 1e9 if unit == "Gflop/s" else 1e9 * seconds / count
                rows.append(
                    {"quantity": quantity, "size": size, "threads": n_threads}
                    | {"rate": rate, "unit": unit}
                )
    return rows


def main(arguments=None):
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rates", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a tenth of the data")
    options = parser.parse_args(arguments)
    print(table(rates(5 * 10**5, (20, 100)) if options.short else rates()))


if __name__ == "__main__":
    main()
