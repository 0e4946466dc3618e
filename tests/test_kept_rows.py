"""Rows that a stream keeps: what is thinned out stays right on the mean."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from sklearn_gradhess._kept_rows import KeptRows, join, joined_with, thinned


def rows(n, rng, d=3, weight=None):
    weight = np.ones(n) if weight is None else weight
    return KeptRows(rng.standard_normal((n, d)), rng.standard_normal((n, 1)), weight, np.ones(n))


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_runs_keep_all_rows_in_order_and_are_few(sizes):
    rng = np.random.default_rng(0)
    parts = [rows(n, rng) for n in sizes]
    waiting = ()
    for part in parts:
        waiting = joined_with(waiting, part)
        lengths = [len(run) for run in waiting]
        assert lengths == sorted(lengths, reverse=True)
    assert_array_equal(join(waiting).X, np.concatenate([part.X for part in parts]))
    assert_array_equal(join(waiting).Y, np.concatenate([part.Y for part in parts]))


def test_single_rows_make_a_logarithmic_number_of_runs(rng):
    waiting = ()
    for _ in range(1000):
        waiting = joined_with(waiting, rows(1, rng))
    assert len(waiting) <= 10


def test_dense_and_sparse_rows_join_to_sparse_ones(rng):
    dense, other = rows(4, rng), rows(5, rng)
    mixed = join([dense, replace(other, X=sparse.csr_array(other.X))])
    assert sparse.issparse(mixed.X)
    assert_array_equal(mixed.X.toarray(), np.concatenate([dense.X, other.X]))


def test_pieces_cover_the_rows_once(rng):
    data = rows(1000, rng, d=500)
    pieces = list(data.pieces())
    assert len(pieces) > 1
    assert_array_equal(
        np.concatenate([np.arange(1000)[piece] for piece in pieces]), np.arange(1000)
    )


def test_few_rows_are_not_thinned(rng):
    data = rows(20, rng)
    assert thinned(data, np.ones(20), 20, rng) is data


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_thinning_is_unbiased_and_of_fixed_size(spread):
    rng = np.random.default_rng(7)
    data = rows(200, rng, weight=rng.uniform(0.5, 2, 200))
    importance = np.exp(spread * rng.standard_normal(200))
    sums = []
    for _ in range(2000):
        kept = thinned(data, importance, 50, rng)
        assert abs(len(kept) - 50) <= 1
        sums.append(kept.total @ kept.X)
    error = np.mean(sums, axis=0) - data.weight @ data.X
    assert np.all(np.abs(error) < 5 * np.std(sums, axis=0) / np.sqrt(2000))


def test_rows_that_outweigh_the_others_stay_for_sure():
    rng = np.random.default_rng(3)
    data = rows(100, rng)
    importance = np.ones(100)
    importance[[3, 70]] = 1e6
    for _ in range(50):
        kept = thinned(data, importance, 10, rng)
        for index in (3, 70):
            (where,) = np.flatnonzero((data.X[index] == kept.X).all(axis=1))
            assert kept.share[where] == 1


def test_thinned_twice_a_row_stands_for_the_product(rng):
    data = rows(100, rng)
    once = thinned(data, np.ones(100), 50, rng)
    assert_allclose(once.total, 2)
    twice = thinned(once, once.total, 25, rng)
    assert_allclose(twice.total, 4)
    assert_allclose(twice.weight, 1)
