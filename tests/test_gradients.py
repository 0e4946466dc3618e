import itertools
import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from sklearn_gradhess import _gradients
from sklearn_gradhess._gradients import (
    RowCoefficients,
    batch_index,
    batch_sums,
    choose_batch_size,
    derivatives,
    inherent_noise,
    row_coefficients,
)
from sklearn_gradhess._losses import make_loss

DTYPES = (np.float64, np.float32)


def strided(X):
    wide = np.full((len(X), 2 * X.shape[1]), np.nan, dtype=X.dtype)
    wide[:, ::2] = X
    return wide[:, ::2]


def spaced(X):
    tall = np.full((3 * len(X), X.shape[1]), np.nan, dtype=X.dtype)
    tall[::3] = X
    return tall[::3]


def noncanonical(X):
    """Columns in falling order, and each entry in two halves."""
    turned = sparse.csr_array(X[:, ::-1])
    columns = X.shape[1] - 1 - np.repeat(turned.indices, 2)
    return sparse.csr_array((np.repeat(turned.data / 2, 2), columns, 2 * turned.indptr), X.shape)


LAYOUTS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "every third row": spaced,
    "every other column": strided,
    "rows backwards": lambda X: np.ascontiguousarray(X[::-1])[::-1],
    "transposed view": lambda X: np.ascontiguousarray(X.T).T,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "non-canonical CSR": noncanonical,
}


@pytest.fixture(scope="module", params=[*LAYOUTS, "memmap C", "memmap F"])
def layout(request, tmp_path_factory):
    """A function that puts an array into one of the layouts."""
    kind, _, order = request.param.partition(" ")
    if kind != "memmap":
        return LAYOUTS[request.param]

    def on_disk(X):
        path = tmp_path_factory.mktemp("memmap") / "X"
        X.ravel(order=order).tofile(path)
        return np.memmap(path, dtype=X.dtype, mode="r", shape=X.shape, order=order)

    return on_disk


def naive_sums(X, coefficients, batch, *, has_intercept):
    X = np.asarray(X.toarray() if sparse.issparse(X) else X, dtype=np.float64)
    d, m = X.shape[1], coefficients.per_batch.shape[1]
    per_batch = np.zeros((max(batch) + 1, m, d + has_intercept))
    per_group = np.zeros((coefficients.n_groups, d + has_intercept))
    for i, b in enumerate(batch):
        z = np.append(1.0, X[i]) if has_intercept else X[i]
        for j in range(m):
            per_batch[b, j] += coefficients.per_batch[i, j] * z
        if coefficients.n_groups:
            per_group[b % coefficients.n_groups] += coefficients.per_group[i] * z
    return per_batch, per_group


def collect(X, coefficients, batch, **settings):
    """Put the runs together, and count them."""
    runs = list(batch_sums(X, coefficients, batch, **settings))
    starts = np.cumsum([0, *(len(run.per_batch) for run in runs)])
    assert [run.start for run in runs] == starts[:-1].tolist()
    per_batch = np.concatenate([run.per_batch for run in runs])
    return per_batch, sum(run.per_group for run in runs), len(runs)


def make(n, d, m, n_groups, seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    X = (rng.standard_normal((n, d)) * (rng.random((n, d)) < 0.7)).astype(dtype)
    values = rng.standard_normal((n, m + 1))
    group = values[:, m] if n_groups else None
    return X, RowCoefficients(values[:, :m], group, n_groups), rng


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("contiguous", [True, False])
@given(data=st.data())
def test_batch_sums_are_those_of_the_naive_loop(layout, dtype, contiguous, data):
    n = data.draw(st.integers(1, 40), "n")
    batch_size = data.draw(st.integers(1, 9), "batch_size")
    offset = data.draw(st.integers(0, batch_size - 1), "offset")
    has_intercept = data.draw(st.booleans(), "has_intercept")
    d, m = data.draw(st.integers(1, 11), "d"), data.draw(st.integers(1, 3), "m")
    n_groups = data.draw(st.sampled_from([0, 1, 3]), "n_groups")
    several = data.draw(st.booleans(), "several sweeps")
    X, coefficients, rng = make(n, d, m, n_groups, data.draw(st.integers(0, 9)), dtype)
    batch = batch_index(n, batch_size, offset, None if contiguous else rng)
    n_sums = m + (n_groups > 0)  # of each batch
    sweep = 2 * n_sums * (d + has_intercept) * (8 + X.itemsize)  # two batches
    with mock.patch.multiple(
        _gradients, _SHARE=0 if several else 1, _BYTES=sweep if several else 2**22
    ):
        per_batch, per_group, n_runs = collect(
            layout(X),
            coefficients,
            batch,
            batch_size=batch_size,
            contiguous=contiguous,
            has_intercept=has_intercept,
        )
    assert n_runs == (-(-(max(batch) + 1) // 2) if several else 1)
    expected = naive_sums(X, coefficients, batch, has_intercept=has_intercept)
    # n terms of a few units each
    atol = 8 * n * np.finfo(dtype).eps
    np.testing.assert_allclose(per_batch, expected[0], rtol=0, atol=atol)
    np.testing.assert_allclose(per_group, expected[1], rtol=0, atol=atol)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("n_groups", [0, 8])
@pytest.mark.parametrize("batch_size", [100, 5000])
def test_threads_do_not_change_the_sums(order, n_threads, n_groups, batch_size):
    X, coefficients, rng = make(4099, 65, 1, n_groups, 0)
    assert X.size > 2**18  # below, threads are not worth their start
    batch = batch_index(len(X), batch_size, 3, rng)
    per_batch, per_group, _ = collect(
        np.asarray(X, order=order),
        coefficients,
        batch,
        batch_size=batch_size,
        contiguous=False,
        has_intercept=True,
        n_threads=n_threads,
    )
    expected = naive_sums(X, coefficients, batch, has_intercept=True)
    np.testing.assert_allclose(per_batch, expected[0], atol=1e-11)
    np.testing.assert_allclose(per_group, np.reshape(expected[1], per_group.shape), atol=1e-11)


@given(seed=st.integers(0, 99))
@pytest.mark.parametrize("contiguous", [True, False])
def test_the_order_of_the_rows_within_a_batch_does_not_matter(seed, contiguous):
    X, (values, group, n_groups), rng = make(33, 4, 2, 3, seed)
    batch = batch_index(33, 5, 2, None)
    order = np.lexsort([rng.random(33), batch]) if contiguous else rng.permutation(33)
    settings = {"batch_size": 5, "has_intercept": True}
    before = collect(
        X, RowCoefficients(values, group, n_groups), batch, contiguous=True, **settings
    )
    after = collect(
        X[order],
        RowCoefficients(values[order], group[order], n_groups),
        batch[order],
        contiguous=contiguous,
        **settings,
    )
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("contiguous", [True, False])
def test_batch_sums_need_less_than_a_fifth_of_the_memory_of_x(order, contiguous):
    X = np.zeros((60_000, 128), order=order)
    coefficients = RowCoefficients(np.ones((len(X), 1)))
    batch = batch_index(len(X), 64, 0, None if contiguous else np.random.default_rng(0))
    tracemalloc.start()
    try:
        for _ in batch_sums(
            X, coefficients, batch, batch_size=64, contiguous=contiguous, has_intercept=True
        ):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.2 * X.nbytes


@given(
    n=st.integers(1, 2000),
    batch_size=st.integers(1, 20),
    offset=st.integers(0, 19),
    seed=st.none() | st.integers(0, 5),
    in_blocks=st.booleans(),
)
def test_every_batch_gets_exactly_batch_size_rows(n, batch_size, offset, seed, in_blocks):
    offset %= batch_size
    rng = None if seed is None else np.random.default_rng(seed)
    counts = np.bincount(batch_index(n, batch_size, offset, rng, in_blocks=in_blocks))
    counts[0] += offset
    assert np.all(counts[:-1] == batch_size)
    assert 1 <= counts[-1] <= batch_size
    assert counts.sum() == n + offset


@given(n=st.integers(1, 100), batch_size=st.integers(1, 9), seed=st.integers(0, 5))
def test_dealt_rows_are_a_permutation_of_rows_taken_in_order(n, batch_size, seed):
    dealt = batch_index(n, batch_size, 0, np.random.default_rng(seed))
    in_order = batch_index(n, batch_size, 0, None)
    assert np.array_equal(np.sort(dealt), in_order)
    assert np.array_equal(in_order, np.arange(n) // batch_size)


@pytest.mark.parametrize("in_blocks", [True, False])
def test_any_two_rows_share_a_batch_of_few_equally_often(in_blocks, rng):
    deals = np.array([batch_index(6, 2, 0, rng, in_blocks=in_blocks) for _ in range(3000)])
    # each of the other five rows is the partner with probability 1/5; 5 standard errors
    for i, j in itertools.combinations(range(6), 2):
        together = np.mean(deals[:, i] == deals[:, j])
        assert abs(together - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 3000)


def test_neighbours_never_share_a_batch_of_many_and_other_rows_do_equally_often(rng):
    n, batch_size, c = 128, 8, 2  # 16 batches: blocks of sqrt(16)/2 rows
    deals = np.array([batch_index(n, batch_size, 0, rng) for _ in range(4000)])
    together = np.mean(deals[:, :, None] == deals[:, None], axis=0)
    block = np.arange(n) // c
    same = block[:, None] == block
    assert np.array_equal(together[same], np.eye(n)[same])
    # a block has 7 others in its tile of 63, and one shift in c puts two rows together
    expected = 7 / 63 / c
    # 8,064 pairs: the largest of as many normal deviates is below 5
    assert np.abs(together[~same] - expected).max() < 6 * np.sqrt(expected / len(deals))
    assert expected == pytest.approx((batch_size - 1) / (n - 1), rel=0.01)  # the uniform deal


N_DEALT, DEALT_SIZE = 20_000, 25
SERIES = {
    "sorted": np.arange(N_DEALT) - (N_DEALT - 1) / 2,
    "a rare level, sorted": (np.arange(N_DEALT) < 200) - 0.01,
    **{
        f"period {period}": np.cos(2 * np.pi * np.arange(N_DEALT) / period)
        for period in (2, 5, 7, 14, DEALT_SIZE, 32, 800, 1000)
    },
}


@pytest.mark.parametrize("in_blocks", [True, False])
@pytest.mark.parametrize("series", SERIES)
def test_sorted_and_periodic_rows_are_dealt_as_fairly_as_at_random(series, in_blocks):
    x, rng, n_deals = SERIES[series], np.random.default_rng(0), 50
    k, c = N_DEALT // DEALT_SIZE, 14 if in_blocks else 1
    squares = []
    for deal in range(n_deals):
        offset = deal % DEALT_SIZE
        batch = batch_index(N_DEALT, DEALT_SIZE, offset, rng, in_blocks=in_blocks)
        complete = np.bincount(batch) == DEALT_SIZE
        squares.append(np.mean(np.bincount(batch, x)[complete] ** 2))
    # The sum of n of N rows, drawn without replacement, has the variance n s^2 (1 - n/N). Of that,
    # neighbours who never meet take at most (c - 1)/k, or give it where they differ.
    # 5 standard errors: the sums of c batches may be as good as one, their kurtosis is that of
    # sums of n independent rows at most.
    kurtosis = 3 + np.mean(x**4) / np.mean(x**2) ** 2 / DEALT_SIZE
    error = (c - 1) / k + 5 * np.sqrt((kurtosis - 1) / (k // c * n_deals))
    assert np.mean(squares) == pytest.approx(DEALT_SIZE * np.mean(x**2), rel=error)


def test_a_deal_is_that_of_its_seed():
    one, same, other = (batch_index(500, 3, 1, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_single_rows_need_no_dealing_and_draw_nothing(rng):
    before = rng.bit_generator.state
    assert np.array_equal(batch_index(7, 1, 0, rng), np.arange(7))
    assert rng.bit_generator.state == before


@pytest.mark.parametrize(
    ("batch_size", "n", "d", "noise", "expected"),
    [
        pytest.param(17, 5, 3, "antithetic", 17, id="a number is taken as it is"),
        pytest.param(17, 10**6, 500, "single", 17, id="a number is taken as it is, single"),
        pytest.param("auto", 1000, 10, "antithetic", 1, id="small data"),
        pytest.param("auto", 10**6, 10, "antithetic", 1, id="2 N d^2 at the limit"),
        pytest.param("auto", 10**6, 100, "antithetic", 7, id="ceil of d/16"),
        pytest.param("auto", 400_000, 256, "antithetic", 16, id="d/16"),
        pytest.param("auto", 10_000, 512, "antithetic", 4, id="four gradients a feature"),
        pytest.param("auto", 1500, 1000, "antithetic", 1, id="never below one"),
        pytest.param("auto", 11 * 25, 10, "single", 5, id="sqrt(N/(d + 1))"),
        pytest.param("auto", 11 * 25, 10, "none", 5, id="sqrt(N/(d + 1)), no noise"),
        pytest.param("auto", 3, 10, "single", 1, id="single, never below one"),
    ],
)
def test_choose_batch_size(batch_size, n, d, noise, expected):
    assert choose_batch_size(batch_size, n, d, noise=noise) == expected


def closed_form(name, y, f):
    if name == "squared_error":
        return f - y, np.ones_like(f)
    if name == "huber":
        return np.clip(f - y, -0.7, 0.7), (np.abs(f - y) <= 0.7) * 1.0
    mu = 1 / (1 + np.exp(-f)) if name == "log_loss" else np.exp(f)
    if name == "gamma":
        return 1 - y / mu, y / mu
    if name == "tweedie":
        return (mu - y) / np.sqrt(mu), 0.5 * (mu + y) / np.sqrt(mu)
    return mu - y, mu * (1 - mu) if name == "log_loss" else mu


@pytest.mark.parametrize(
    "name", ["squared_error", "log_loss", "poisson", "gamma", "tweedie", "huber"]
)
@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_array, sparse.csc_array])
@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives_are_the_closed_forms_at_the_raw_prediction(name, convert, dtype, rng):
    X, coef = rng.standard_normal((30, 3)).astype(dtype), rng.standard_normal(3)
    y = (rng.random(30) < 0.5) + 0.5 * (name == "gamma")
    gradient, curvature = derivatives(convert(X), y, make_loss(name, epsilon=0.7), coef, 0.3)
    expected = closed_form(name, y, 0.3 + X.astype(float) @ coef)
    rtol = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(gradient, expected[0], rtol=rtol, atol=rtol)
    if name == "squared_error":
        assert curvature is None  # stands for ones
    else:
        np.testing.assert_allclose(curvature, expected[1], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", ["gamma", "tweedie"])
def test_without_targets_other_losses_have_their_expected_curvature(name, rng):
    X, coef = rng.standard_normal((20, 3)), rng.standard_normal(3)
    gradient, curvature = derivatives(X, None, make_loss(name), coef, -0.2)
    f = X @ coef - 0.2
    assert gradient is None
    np.testing.assert_allclose(curvature, closed_form(name, np.exp(f), f)[1])


@pytest.mark.parametrize("name", ["log_loss", "poisson"])
def test_without_targets_canonical_losses_keep_their_curvature(name, rng):
    X, coef = rng.standard_normal((20, 3)), rng.standard_normal(3)
    gradient, curvature = derivatives(X, None, make_loss(name, epsilon=1), coef, -0.2)
    assert gradient is None
    np.testing.assert_allclose(curvature, closed_form(name, 0, X @ coef - 0.2)[1])


def test_without_targets_the_squared_loss_has_nothing_to_compute():
    assert derivatives(None, None, make_loss("squared_error", epsilon=1), None, 0.0) == (None, None)


def test_no_coefficients_are_zero_coefficients(rng):
    X, y = rng.standard_normal((9, 2)), rng.standard_normal(9)
    for coef in (None, np.zeros(2)):
        gradient, _ = derivatives(X, y, make_loss("squared_error", epsilon=1), coef, 0.5)
        np.testing.assert_array_equal(gradient, 0.5 - y)


GRADIENT, CURVATURE, WEIGHT = np.array([1.0, -3, 2]), np.array([1.0, 2, 6]), np.array([1.0, 0, 2])


@pytest.mark.parametrize(
    ("variance", "gradient", "curvature", "weight", "noise", "expected"),
    [
        pytest.param(7.0, GRADIENT, None, None, "antithetic", 0, id="cancels"),
        pytest.param("estimate", GRADIENT, None, None, "antithetic", 0, id="estimate cancels"),
        pytest.param(7.0, None, None, None, "single", 7, id="known"),
        pytest.param(7.0, GRADIENT, CURVATURE, None, "none", 7, id="known, no noise"),
        pytest.param("estimate", None, None, None, "single", 0, id="no residual, no noise"),
        pytest.param("estimate", GRADIENT, None, None, "single", 14 / 3, id="mean square"),
        pytest.param("estimate", GRADIENT, None, WEIGHT, "single", 9 / 3, id="weighted"),
        pytest.param("estimate", GRADIENT, CURVATURE, None, "single", 14 / 9, id="dispersion"),
        pytest.param("estimate", GRADIENT, CURVATURE, WEIGHT, "none", 9 / 13, id="both"),
    ],
)
def test_inherent_noise(variance, gradient, curvature, weight, noise, expected):
    assert inherent_noise(variance, gradient, curvature, weight, noise=noise) == pytest.approx(
        expected
    )


def coefficients_of(noise, gradient, curvature, weight, n_redraws=1):
    return row_coefficients(
        gradient,
        curvature,
        weight,
        n_samples=3,
        noise=noise,
        n_redraws=n_redraws,
        distribution="rademacher",
        n_groups=8,
        rng=np.random.default_rng(0),
    )


@pytest.mark.parametrize("noise", ["antithetic", "single"])
@pytest.mark.parametrize("curvature", [None, CURVATURE])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_noise_coefficients_have_the_variance_curvature_times_weight(noise, curvature, weight):
    per_batch = coefficients_of(noise, GRADIENT, curvature, weight, n_redraws=4).per_batch
    expected = (
        np.ones(3) * (1 if curvature is None else curvature) * (1 if weight is None else weight)
    )
    np.testing.assert_allclose(per_batch[:, :4] ** 2, np.repeat(expected[:, None], 4, axis=1))


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_clean_coefficients_are_weighted_gradients_whatever_the_scheme(weight):
    expected = GRADIENT if weight is None else WEIGHT * GRADIENT
    antithetic = coefficients_of("antithetic", GRADIENT, CURVATURE, weight)
    assert antithetic.n_groups == 8
    np.testing.assert_array_equal(antithetic.per_group, expected)
    for noise in ("single", "none"):
        clean = coefficients_of(noise, GRADIENT, CURVATURE, weight)
        np.testing.assert_array_equal(clean.per_batch[:, -1], expected)
        assert clean.per_group is None


def test_without_a_gradient_only_the_noise_is_summed():
    assert coefficients_of("antithetic", None, None, None).per_group is None
    for noise in ("single", "none"):
        assert not coefficients_of(noise, None, None, None).per_batch[:, -1].any()
