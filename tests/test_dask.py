"""Dask collections: the estimators against themselves in memory, by any scheduler and chunking."""

import tracemalloc
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning

from sklearn_gradhess import (
    GradientCovarianceEstimator,
    PreconditionedSGDClassifier,
    PreconditionedSGDRegressor,
    _distributed,
    _sample,
)
from sklearn_gradhess._blocks import Encoding
from sklearn_gradhess._losses import make_loss

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
dd = pytest.importorskip("dask.dataframe")

N, D, CHUNK = 2000, 4, 300
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, D)) * [1, 10, 0.1, 5] + 2
LINEAR = X @ [1, 0.2, 3, 0.4]
Y = LINEAR + RNG.standard_normal(N)
LABELS = np.where(LINEAR + RNG.logistic(size=N) > np.median(LINEAR), "yes", "no")
COUNTS = RNG.poisson(np.exp(0.1 * LINEAR)).astype(float)
WEIGHT = RNG.integers(0, 4, N).astype(float)
NAMES = list("abcd")


@pytest.fixture(autouse=True)
def _one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def blocks(values, chunk=CHUNK):
    return da.from_array(values, chunks=(chunk, *values.shape[1:]))


XD, YD, LD = blocks(X), blocks(Y), blocks(LABELS)


def frame(**columns):
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame(X, columns=NAMES).assign(**columns)
    return dd.from_pandas(table, npartitions=5)


def conditioned(n, p, condition, kind, seed=0):
    """Features of a Hessian of this condition number, about an offset, and targets."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((p, p)))[0]
    A = rng.standard_normal((n, p)) @ (Q * np.logspace(0, np.log10(condition) / 2, p)) @ Q.T + 3
    w = rng.standard_normal(p)
    eta = (A - A.mean(axis=0)) @ w
    eta /= eta.std()
    if kind == "log_loss":
        return A, (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(float)
    return A, rng.poisson(np.exp(0.5 * eta)).astype(float)


def gap(model, reference, A, y):
    """Distance of two fits in the Hessian of the second, in statistical errors."""
    name = reference.loss
    loss, f, r = (
        make_loss(name),
        *(A @ np.ravel(m.coef_) + np.ravel(m.intercept_)[0] for m in (model, reference)),
    )
    v = loss.curvature(y, r)
    dispersion = 1.0 if name == "log_loss" else np.mean(loss.gradient(y, r) ** 2) / v.mean()
    return np.mean(v * (f - r) ** 2) / (dispersion * (A.shape[1] + 1) / len(y))


# Least squares: one round

FORMS = {
    "float64": XD,
    "csr_matrix": XD.map_blocks(sparse.csr_matrix),
    "csr_array": XD.map_blocks(sparse.csr_array),
    "csc_matrix": XD.map_blocks(sparse.csc_matrix),
    "integers": (XD * 8).astype(int),
    "fortran": XD.map_blocks(np.asfortranarray),
}


@pytest.mark.parametrize("form", FORMS)
def test_least_squares_is_that_of_the_rows_in_one_round(form):
    model = PreconditionedSGDRegressor().fit(FORMS[form], YD)
    rows = (X * 8).astype(int) if form == "integers" else X
    expected = PreconditionedSGDRegressor().fit(rows, Y)
    assert_allclose(model.coef_, expected.coef_, rtol=1e-9)
    assert_allclose(model.intercept_, expected.intercept_, rtol=1e-9)
    assert model.coef_.dtype == np.float64
    assert (model.n_rounds_, model.converged_, model.n_features_in_) == (1, True, D)
    assert_allclose(model.history_[-1]["loss"], expected.history_[-1]["loss"], rtol=1e-9)
    assert_allclose(model.history_[-1]["floor"], expected.history_[-1]["floor"], rtol=1e-9)
    assert model.history_[-1]["rounds"] == 1


def test_float32_stays():
    model = PreconditionedSGDRegressor().fit(XD.astype(np.float32), YD)
    expected = PreconditionedSGDRegressor().fit(X.astype(np.float32), Y)
    assert model.coef_.dtype == np.float32
    assert_allclose(model.coef_, expected.coef_, rtol=1e-5)
    assert model.predict(XD.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize(
    "params",
    [
        {"alpha": 0.3},
        {"alpha": 0.3, "fit_intercept": False},
        {"alpha": 0.3, "penalty_units": "raw"},
        {"fit_intercept": False},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("preconditioner", ["auto", "sketch"])
def test_weights_and_penalties_mean_what_they_mean_in_memory(params, preconditioner):
    model = PreconditionedSGDRegressor(**params, preconditioner=preconditioner, random_state=0)
    expected = PreconditionedSGDRegressor(**params).fit(X, Y, WEIGHT)
    for weight in (WEIGHT, blocks(WEIGHT)):
        fitted = clone(model).fit(XD, YD, weight)
        loss, best = (m.history_[-1]["loss"] for m in (fitted, expected))
        error = 0.02 * expected.history_[-1]["floor"] if preconditioner == "sketch" else 1e-9
        assert_allclose(loss, best, rtol=1e-9, atol=50 * error)
        assert_allclose(fitted.coef_, expected.coef_, rtol=1e-9 if error < 1e-8 else 0.05)
        for name in ("coef_standard_error_", "df_"):
            theirs = getattr(expected, name)
            assert_allclose(getattr(fitted, name), theirs, rtol=1e-6 if error < 1e-8 else 0.5)


@pytest.mark.parametrize("kind", [PreconditionedSGDRegressor, PreconditionedSGDClassifier])
def test_a_stream_goes_on_from_the_fit(kind):
    targets = LABELS if kind is PreconditionedSGDClassifier else Y
    model = kind(alpha=0.1).fit(blocks(X[:1500]), blocks(targets[:1500]))
    model.partial_fit(X[1500:], targets[1500:])
    expected = kind(alpha=0.1).fit(X, targets)
    assert_allclose(model.coef_, expected.coef_, rtol=0.1)
    assert "n_rounds_" not in vars(model)


def test_several_targets():
    both = np.column_stack([Y, COUNTS])
    expected = PreconditionedSGDRegressor().fit(X, both)
    model = PreconditionedSGDRegressor().fit(XD, da.stack([YD, blocks(COUNTS)], axis=1))
    assert_allclose(model.coef_, expected.coef_, rtol=1e-9)
    score = model.score(XD, da.stack([YD, blocks(COUNTS)], axis=1))
    assert_allclose(score, expected.score(X, both), rtol=1e-9)


def test_unknown_chunk_sizes_and_empty_blocks():
    kept = blocks(np.arange(N) >= CHUNK)
    expected = PreconditionedSGDRegressor().fit(X[CHUNK:], Y[CHUNK:])
    model = PreconditionedSGDRegressor().fit(XD[kept], YD[kept])
    assert_allclose(model.coef_, expected.coef_, rtol=1e-9)
    prediction = model.predict(XD[kept])
    assert np.isnan(prediction.shape[0])
    assert_allclose(prediction.compute(), expected.predict(X[CHUNK:]), rtol=1e-9)
    memory = GradientCovarianceEstimator().fit(XD[kept])
    assert memory.n_samples_seen_ == N - CHUNK


def test_blocks_of_single_rows_and_groups_of_blocks_are_the_same_fit():
    expected = PreconditionedSGDRegressor().fit(X[:40], Y[:40])
    model = PreconditionedSGDRegressor().fit(blocks(X[:40], 1), blocks(Y[:40], 1))
    assert_allclose(model.coef_, expected.coef_, rtol=1e-9)


def test_data_frames():
    table = frame(y=Y, label=LABELS)
    model = PreconditionedSGDRegressor().fit(table[NAMES], table["y"])
    assert_allclose(model.coef_, PreconditionedSGDRegressor().fit(X, Y).coef_, rtol=1e-9)
    assert list(model.feature_names_in_) == NAMES
    assert_allclose(model.predict(table[NAMES]).compute(), model.predict(table[NAMES].compute()))
    assert_allclose(model.score(table[NAMES], table["y"]), 1 - np.var(Y - LINEAR) / Y.var(), 1e-2)
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(table[NAMES[::-1]])
    classifier = PreconditionedSGDClassifier().fit(table[NAMES], table["label"])
    assert classifier.classes_.tolist() == ["no", "yes"]
    assert 0.5 < classifier.score(table[NAMES], table["label"]) <= 1


def test_rows_of_two_data_frames_must_have_the_same_labels():
    """Shuffled targets would fit without a word."""
    table = frame(y=Y)
    pairs = table["y"].compute().sample(frac=1.0, random_state=0)
    shuffled = dd.from_pandas(pairs, npartitions=5, sort=False)
    message = r"Block \d of y has other row labels .* pass y\.to_dask_array\(\)"
    with pytest.raises(ValueError, match=message):
        PreconditionedSGDRegressor().fit(table[NAMES], shuffled)
    model = PreconditionedSGDRegressor().fit(table[NAMES], shuffled.to_dask_array())
    assert np.abs(model.coef_[0]) < 0.5
    model.fit(table[NAMES], table["y"])
    with pytest.raises(ValueError, match=message):
        model.score(table[NAMES], shuffled)
    with pytest.raises(ValueError, match=message.replace("of y", "of sample_weight")[:40]):
        model.score(table[NAMES], table["y"], abs(shuffled))
    with pytest.raises(ValueError, match=r"y has 3 partitions, X has 5 blocks.*to_dask_array"):
        model.fit(table[NAMES], table["y"].repartition(npartitions=3))
    with pytest.raises(ValueError, match="of 1 dimensions"):
        model.fit(table["a"], table["y"])


@pytest.mark.parametrize("kind", ["category", "object", "boolean", "Int64", "column"])
def test_labels_of_any_kind_of_column(kind):
    table = frame(label=LABELS)
    y = table["label"]
    if kind == "column":
        y = table[["label"]]
    elif kind in ("boolean", "Int64"):
        y = (y == "yes").astype(kind)
    else:
        y = y.astype(kind)
    model = PreconditionedSGDClassifier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(table[NAMES], y)
    assert [w.category for w in caught] == [DataConversionWarning] * (kind == "column")
    assert_allclose(model.coef_, PreconditionedSGDClassifier().fit(X, LABELS).coef_, rtol=0.05)
    if kind == "boolean":
        with pytest.raises(ValueError, match=r"Block \d of y .* a label is missing"):
            model.fit(table[NAMES], y.where(table["a"] > 1))


def test_one_weight_for_all_rows():
    model = PreconditionedSGDRegressor().fit(XD, YD, 2.0)
    assert_allclose(model.coef_, PreconditionedSGDRegressor().fit(X, Y).coef_, rtol=1e-9)


@pytest.mark.parametrize("known", [True, False])
def test_whitened_rows_come_as_lazy_data_frames_where_they_are_asked_for(known):
    table = frame()
    memory = GradientCovarianceEstimator(batch_size=1, random_state=0)
    expected = memory.fit_transform(X)
    memory.set_output(transform="pandas")
    A = table if known else XD[blocks(np.arange(N) >= 0)]
    for white in (memory.fit_transform(A), memory.transform(A)):
        assert isinstance(white, dd.DataFrame)
        assert list(white.columns) == list(memory.get_feature_names_out())
        assert_allclose(white.compute().to_numpy(), expected, rtol=1e-6, atol=1e-9)
    if known:
        assert white.divisions == table.divisions
        assert_array_equal(white.index.compute(), table.index.compute())
    memory.set_output(transform="polars")
    with pytest.raises(ValueError, match=r"not of polars: set_output\(transform='pandas'\)"):
        memory.transform(A)


def test_numbers_do_not_depend_on_the_scheduler():
    fits = []
    for scheduler in ("synchronous", "threads"):
        with dask.config.set(scheduler=scheduler, num_workers=4):
            model = PreconditionedSGDClassifier(preconditioner="sketch", random_state=0)
            fits.append(model.fit(XD, LD).coef_)
    assert_array_equal(*fits)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_offsets_of_features_cancel(offset):
    model = PreconditionedSGDRegressor().fit(XD + offset, YD)
    expected = PreconditionedSGDRegressor().fit(X, Y)
    assert_allclose(model.coef_, expected.coef_, rtol=1e-6)


def test_no_more_than_a_few_blocks_are_in_memory():
    """Data that are made, or read, when they are asked for go again when they have answered."""
    A = da.random.default_rng(0).standard_normal((1_000_000, 10), chunks=(20_000, 10))
    y = A.sum(axis=1)
    tracemalloc.start()
    try:
        model = PreconditionedSGDRegressor().fit(A, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert_allclose(model.coef_, 1, rtol=1e-9)
    assert peak < A.nbytes / 2


# Other losses: gradient and sketch in one answer


@pytest.mark.parametrize("preconditioner", ["exact", "sketch"])
@pytest.mark.parametrize("condition", [1, 1e4, 1e8, 1e12])
@pytest.mark.parametrize("loss", ["log_loss", "poisson"])
def test_seven_rounds_are_enough_at_any_condition(loss, condition, preconditioner):
    A, y = conditioned(12_000, 10, condition, loss)
    if loss == "log_loss":
        model = PreconditionedSGDClassifier()
    else:
        model = PreconditionedSGDRegressor(loss)
    expected = clone(model).set_params(tol=1e-6).fit(A, y)
    model.set_params(preconditioner=preconditioner, random_state=0)
    model.fit(blocks(A, 1500), blocks(y, 1500))
    assert model.converged_
    assert model.preconditioner_ == preconditioner
    assert model.n_rounds_ <= 7
    assert gap(model, expected, A, y) < 0.05
    assert model.history_[-1]["bytes"] < 16 * 11**2 * 8 * model.n_rounds_


def test_a_wide_least_squares_goes_by_sketches():
    A = np.random.default_rng(1).standard_normal((3000, 10)) * np.logspace(0, 4, 10) + 5
    y = A @ np.logspace(0, -4, 10) + np.random.default_rng(2).standard_normal(3000) + 100
    model = PreconditionedSGDRegressor(preconditioner="sketch", oversampling=20, random_state=0)
    model.fit(blocks(A), blocks(y))
    expected = PreconditionedSGDRegressor().fit(A, y)
    error = np.mean((model.predict(A) - expected.predict(A)) ** 2)
    assert error < 0.05 * expected.history_[-1]["floor"]
    assert model.converged_
    assert 3 <= model.n_rounds_ <= 10


@pytest.mark.parametrize("class_weight", [None, "balanced", {"yes": 3.0}])
def test_labels_and_their_weights(class_weight):
    model = PreconditionedSGDClassifier(class_weight=class_weight).fit(XD, LD, WEIGHT)
    expected = PreconditionedSGDClassifier(class_weight=class_weight, tol=1e-6)
    expected.fit(X, LABELS, WEIGHT)
    assert_array_equal(model.classes_, expected.classes_)
    assert_allclose(model.coef_, expected.coef_, rtol=0.02)
    assert_allclose(model.history_[-1]["floor"], expected.history_[-1]["floor"], rtol=0.02)


@pytest.mark.parametrize("preconditioner", ["exact", "sketch"])
def test_three_classes(preconditioner):
    labels = np.where(X[:, 1] + 10 * RNG.standard_normal(N) > 10, "maybe", LABELS)
    expected = PreconditionedSGDClassifier(tol=1e-6).fit(X, labels)
    model = PreconditionedSGDClassifier(preconditioner=preconditioner, random_state=0)
    model.fit(XD, blocks(labels))
    assert model.converged_
    assert model.coef_.shape == (3, D)
    assert_allclose(model.decision_function(X), expected.decision_function(X), atol=0.05)
    assert_allclose(model.score(XD, blocks(labels)), model.score(X, labels))


@pytest.mark.parametrize("outliers", [0.0, 0.1])
@pytest.mark.parametrize("params", [{}, {"alpha": 0.0, "preconditioner": "sketch"}], ids=str)
def test_huber_finds_the_scale_of_all_residuals(outliers, params):
    rng = np.random.default_rng(6)
    y = Y + 100 * rng.standard_normal(N) * (rng.random(N) < outliers)
    model = PreconditionedSGDRegressor("huber", random_state=0, **params).fit(XD, blocks(y), WEIGHT)
    exact = params | {"preconditioner": "auto", "tol": 1e-6}
    expected = PreconditionedSGDRegressor("huber", **exact).fit(X, y, WEIGHT)
    assert model.converged_
    # a tenth of the standard error of a scale, of WEIGHT's observations
    assert_allclose(model.scale_, expected.scale_, rtol=0.1 / np.sqrt(N / 2))
    error = np.mean(WEIGHT * (model.predict(X) - expected.predict(X)) ** 2)
    assert error < 0.05 * expected.scale_**2 * (D + 1) / (N / 2)
    assert model.n_rounds_ <= 16


def two_populations(rng, n):
    """The scale at the minimum for a scale follows that scale."""
    X = rng.standard_normal((n, 5))
    y = X @ np.ones(5) + rng.standard_normal(n)
    other = rng.random(n) < 0.4
    y[other] = -30 * X[other] @ np.ones(5)
    return X, y, None


def heavy_weights(rng, n):
    X = rng.standard_normal((n, 5))
    return X, X @ np.ones(5) + rng.standard_t(1.5, size=n), rng.exponential(size=n) ** 4


def large_offset(rng, n):
    """Seconds since 1970, and residuals of hundredths."""
    X = rng.standard_normal((n, 5))
    return X, X @ np.ones(5) + 0.01 * rng.standard_t(2, size=n) + 1.7e9, None


def one_outlier(rng, n):
    X = rng.standard_normal((n, 5))
    y = X @ np.ones(5) + rng.standard_normal(n)
    y[0] = 1e12
    return X, y, None


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", [two_populations, heavy_weights, large_offset, one_outlier])
def test_huber_moves_as_far_as_the_scale_is(kind, seed):
    rows, y, weight = kind(np.random.default_rng(seed), 4000)
    expected = PreconditionedSGDRegressor("huber", tol=1e-6).fit(rows, y, weight)
    cut = [
        None if a is None else da.from_array(a, chunks=(500, *a.shape[1:]))
        for a in (rows, y, weight)
    ]
    model = PreconditionedSGDRegressor("huber", tol=1e-4, random_state=0).fit(*cut)
    assert model.converged_
    assert_allclose(model.scale_, expected.scale_, rtol=2e-3)
    away = np.abs(model.coef_ - expected.coef_) / expected.coef_standard_error_
    assert away.max() < 0.1


def test_a_scale_that_does_not_settle_is_said(monkeypatch):
    rows, y, _ = two_populations(np.random.default_rng(0), 4000)
    monkeypatch.setattr(_distributed, "_SCALES", 1)
    model = PreconditionedSGDRegressor("huber", tol=1e-6, random_state=0)
    with pytest.warns(ConvergenceWarning, match=r"scale of the residuals .* after 1 solutions"):
        model.fit(da.from_array(rows, chunks=(500, 5)), da.from_array(y, chunks=500))
    assert not model.converged_


def test_huber_without_residuals_or_targets():
    model = PreconditionedSGDRegressor("huber", alpha=0.0, random_state=0)
    assert_allclose(model.fit(XD, blocks(LINEAR)).coef_, [1, 0.2, 3, 0.4], rtol=1e-5)
    assert model.scale_ < 1e-5
    assert_allclose(model.fit(XD, 0 * YD).coef_, 0, atol=1e-9)


@pytest.mark.parametrize("bad", ["NaN", "infinity"])
@pytest.mark.parametrize("params", [{}, {"alpha": 0.0}, {"class_weight": "balanced"}], ids=str)
@pytest.mark.parametrize("loss", ["log_loss", "squared_error", "poisson", "huber"])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_what_is_not_finite_is_named_with_its_block(loss, params, bad, form):
    rows = np.random.default_rng(0).standard_normal((2000, 3))
    y = (rows[:, 0] > 0).astype(int)
    rows[1234, 0] = float(bad.replace("infinity", "inf"))
    if loss == "log_loss":
        model = PreconditionedSGDClassifier(**params)
    else:
        model = PreconditionedSGDRegressor(loss, alpha=params.get("alpha", 1e-3))
    cut = da.from_array(rows, chunks=(500, 3)).map_blocks(form)
    with pytest.raises(ValueError, match=f"Block 2 of X contains {bad}. Drop such rows"):
        model.fit(cut, da.from_array(y, chunks=500))


@pytest.mark.parametrize("scale", [1e-300, 1e160, 1e300])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_weights_of_any_size(class_weight, scale):
    model = PreconditionedSGDClassifier(alpha=0.0, class_weight=class_weight, random_state=0)
    expected = clone(model).fit(X, LABELS, WEIGHT * scale)
    model.fit(XD, LD, blocks(WEIGHT * scale))
    away = np.abs(model.coef_ - expected.coef_)
    assert np.all(away < 0.3 * expected.coef_standard_error_ + 1e-6 * np.abs(expected.coef_))
    if scale < 1:  # weights of another scale than that of repetitions count by Kish's size
        assert_allclose(model.coef_standard_error_, expected.coef_standard_error_, rtol=0.2)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_weights_whose_sum_overflows_are_refused(class_weight):
    model = PreconditionedSGDClassifier(class_weight=class_weight)
    with pytest.raises(ValueError, match=r"The sum of sample_weight overflows float64.* divide"):
        model.fit(XD, LD, blocks(np.full(N, 1e307)))


@pytest.mark.parametrize("seed", range(5))
def test_standard_errors_are_those_of_the_end(seed):
    """The last step is long enough to change dispersion and curvature."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_t(3, size=(6000, 4))
    mean = np.exp(0.3 * rows @ rng.standard_normal(4))
    y = mean * rng.poisson(1.0, size=6000) * rng.gamma(1.0, size=6000)
    expected = PreconditionedSGDRegressor("tweedie", tol=1e-8).fit(rows, y)
    model = PreconditionedSGDRegressor("tweedie", random_state=seed)
    model.fit(da.from_array(rows, chunks=(1000, 4)), da.from_array(y, chunks=1000))
    assert_allclose(model.coef_standard_error_, expected.coef_standard_error_, rtol=0.15)


def test_quantiles_are_refused():
    with pytest.raises(ValueError, match=r"loss='quantile' is smoothed .* or fit X\.compute\(\)"):
        PreconditionedSGDRegressor("quantile").fit(XD, YD)


@pytest.mark.parametrize("form", ["float64", "csr_matrix"])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_a_sample_saves_rounds_and_changes_nothing(monkeypatch, form, weight):
    expected = PreconditionedSGDClassifier(tol=1e-6).fit(X, LABELS, weight)
    rounds = []
    for size in (lambda *args: 0, _sample.sample_size):
        monkeypatch.setattr(_distributed, "sample_size", size)
        model = PreconditionedSGDClassifier(random_state=0).fit(FORMS[form], LD, weight)
        assert gap(model, expected, X, (LABELS == "yes").astype(float)) < 0.05
        rounds.append(model.n_rounds_)
    assert rounds[1] < rounds[0]


def test_rows_sorted_by_class_are_sampled_evenly():
    order = np.argsort(LABELS)
    model = PreconditionedSGDClassifier(random_state=0).fit(blocks(X[order]), blocks(LABELS[order]))
    expected = PreconditionedSGDClassifier(tol=1e-6).fit(X, LABELS)
    assert gap(model, expected, X, (LABELS == "yes").astype(float)) < 0.05
    assert model.n_rounds_ <= 5


def test_sizes_of_samples():
    size = _sample.sample_size
    assert size(10**6, 100, 8, np.inf) == 6400
    assert size(10**6, 500, 8, np.inf) == 2**26 // 4000  # as many as memory allows
    assert size(10**6, 1000, 8, np.inf) == 0
    assert size(20_000, 100, 8, np.inf) == 0  # hardly less than all rows
    assert size(10**6, 100, 8, 10_000) == 0  # some 64 rows of the rare class, for 100 coefficients


def test_a_sample_without_weight_or_solution_is_no_start():
    A = np.random.default_rng(5).standard_normal((4000, 2))
    separable = (A[:, 0] > 0).astype(int)
    with pytest.warns(ConvergenceWarning, match="separable"):
        PreconditionedSGDClassifier(alpha=0.0).fit(blocks(A, 500), blocks(separable, 500))
    encoding = Encoding(make_loss("log_loss"), True, "float64")
    rows = {"rows": [(A[:5], separable[:5], np.zeros(5))]}
    assert _sample.solution_of_sample(rows, encoding, 0.0, 0)["start"] is None


@pytest.mark.parametrize("told", [(5.0, np.inf), (0.0, 1e-9)], ids=["worse", "unlike"])
def test_a_sample_that_misleads_is_left_for_the_null_model(monkeypatch, told):
    expected = PreconditionedSGDClassifier(tol=1e-6).fit(X, LABELS)
    start = np.full((D + 1, 1), told[0])

    def misled(said, **arguments):
        return {"start": start, "scale": None, "dispersion": told[1]}

    monkeypatch.setattr(_distributed, "solution_of_sample", misled)
    model = PreconditionedSGDClassifier(random_state=0).fit(XD, LD)
    assert gap(model, expected, X, (LABELS == "yes").astype(float)) < 0.05
    monkeypatch.setattr(_distributed, "sample_size", lambda *args: 0)
    alone = PreconditionedSGDClassifier(random_state=0).fit(XD, LD)
    assert model.n_rounds_ == alone.n_rounds_ + 2  # the sample, and a look at what it told


def test_a_step_that_is_too_long_is_shortened():
    """From far away the Poisson loss is anything but quadratic."""
    y = blocks(COUNTS)
    expected = PreconditionedSGDRegressor("poisson", tol=1e-6).fit(X, COUNTS)
    for start in (None, expected.coef_, np.full(D, -3.0)):
        model = PreconditionedSGDRegressor("poisson").fit(XD, y, coef_init=start)
        assert_allclose(model.coef_, expected.coef_, rtol=0.05)


def test_skewed_counts_need_the_line_search():
    rng = np.random.default_rng(3)
    A = np.exp(2 * rng.standard_normal((N, 2)))
    y = rng.poisson(np.minimum(A[:, 0], 1e4)).astype(float)
    model = PreconditionedSGDRegressor("poisson").fit(blocks(A), blocks(y))
    expected = PreconditionedSGDRegressor("poisson", tol=1e-6).fit(A, y)
    assert model.converged_
    assert gap(model, expected, A, y) < 0.05


def test_warm_start_goes_on():
    model = PreconditionedSGDClassifier(warm_start=True).fit(XD, LD)
    before = model.n_rounds_
    model.fit(XD, LD)
    assert model.n_rounds_ <= before
    assert "n_rounds_" not in vars(model.fit(X, LABELS))


# What has no solution


def test_separable_classes_are_said():
    y = (X[:, 0] > 2).astype(int)
    for preconditioner in ("exact", "sketch"):
        model = PreconditionedSGDClassifier(
            alpha=0.0, preconditioner=preconditioner, random_state=0
        )
        with pytest.warns(ConvergenceWarning, match="separable"):
            model.fit(XD, blocks(y))
        assert model.score(XD, blocks(y)) == 1.0


def test_a_level_without_counts_is_said():
    A = np.column_stack([X, np.arange(N) % 50 == 0])
    y = np.where(A[:, -1] > 0, 0.0, COUNTS)
    with pytest.warns(ConvergenceWarning, match="no finite value"):
        PreconditionedSGDRegressor("poisson").fit(blocks(A), blocks(y))


@pytest.mark.parametrize("preconditioner", ["exact", "sketch"])
def test_collinear_features_are_counted(preconditioner):
    A = np.column_stack([X, X[:, :1]])
    model = PreconditionedSGDRegressor(preconditioner=preconditioner, random_state=0)
    model.fit(blocks(A), YD)
    assert model.rank_ == D
    assert_allclose(model.coef_[0], model.coef_[4])
    assert_allclose(model.predict(A), PreconditionedSGDRegressor().fit(X, Y).predict(X), atol=0.1)


def test_too_few_iterations_are_said():
    with pytest.warns(ConvergenceWarning, match="Increase max_iter"):
        PreconditionedSGDClassifier(max_iter=1).fit(XD[:900], LD[:900])


# Lazy results

METHODS = ["predict", "decision_function", "predict_proba", "predict_log_proba"]


@pytest.mark.parametrize("method", METHODS)
def test_classifier_methods_are_lazy(method):
    model = PreconditionedSGDClassifier().fit(X, LABELS)
    lazy, expected = getattr(model, method)(XD), getattr(model, method)(X)
    assert isinstance(lazy, da.Array)
    assert (lazy.shape, lazy.dtype, lazy.chunks[0]) == (
        expected.shape,
        expected.dtype,
        XD.chunks[0],
    )
    model.coef_ = 0 * model.coef_  # what comes later changes nothing
    if expected.dtype.kind == "f":
        assert_allclose(lazy.compute(), expected, rtol=1e-9, atol=1e-12)
    else:
        assert_array_equal(lazy.compute(), expected)


@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
@pytest.mark.parametrize("form", ["float64", "csr_matrix"])
def test_regressor_predicts_lazily(loss, form):
    model = PreconditionedSGDRegressor(loss).fit(X, COUNTS)
    assert_allclose(model.predict(FORMS[form]).compute(), model.predict(X), rtol=1e-9)
    score = model.score(FORMS[form], blocks(COUNTS), blocks(WEIGHT))
    assert isinstance(score, float)
    assert_allclose(score, model.score(X, COUNTS, WEIGHT), rtol=1e-9)


def test_weights_of_blocks_have_one_unit():
    memory = GradientCovarianceEstimator(batch_size=1).fit(XD, YD, np.arange(N) + 1.0)
    expected = GradientCovarianceEstimator(batch_size=1).fit(X, Y, np.arange(N) + 1.0)
    assert_allclose(memory.covariance_, expected.covariance_, rtol=1e-9)
    assert_allclose(memory.mean_gradient_, expected.mean_gradient_, rtol=1e-9)


def test_methods_that_are_not_fitted_say_so():
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        PreconditionedSGDRegressor().predict(XD)
    with pytest.raises(NotFittedError):
        PreconditionedSGDRegressor().score(XD, YD)


# The Hessian


def test_covariance_of_single_rows_is_exact():
    memory = GradientCovarianceEstimator(batch_size=1, random_state=0).fit(XD, YD)
    expected = GradientCovarianceEstimator(batch_size=1, random_state=0).fit(X, Y)
    assert_allclose(memory.covariance_, expected.covariance_, rtol=1e-9)
    assert_allclose(memory.location_, expected.location_, rtol=1e-9)
    assert_allclose(memory.mean_gradient_, expected.mean_gradient_, rtol=1e-9)
    assert (memory.n_samples_seen_, memory.n_batches_, memory.batch_size_) == (N, N, 1)
    for test in (XD, FORMS["csr_matrix"]):
        assert_allclose(memory.score(test), expected.score(X), rtol=1e-9)
    assert_allclose(memory.mahalanobis(XD).compute(), expected.mahalanobis(X), rtol=1e-6)
    lazy = memory.transform(XD)
    assert lazy.shape == (N, D)
    assert_allclose(lazy.compute(), expected.transform(X), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("noise", ["antithetic", "single"])
def test_covariance_of_batches_has_the_error_that_theory_expects(noise):
    A = np.random.default_rng(4).standard_normal((6000, 3)) * [1, 10, 100]
    memory = GradientCovarianceEstimator(batch_size=4, noise=noise, random_state=0)
    memory.fit(blocks(A, 1000))
    whitened = memory.covariance_ / np.outer([1, 10, 100], [1, 10, 100])
    assert np.linalg.norm(whitened - np.eye(3), 2) < 4 * (2 * np.sqrt(3 / 1500) + 3 / 1500)
    again = clone(memory).fit(blocks(A, 1000))
    assert_array_equal(memory.covariance_, again.covariance_)


def test_shrinkage_keeps_the_gradients_of_all_blocks():
    memory = GradientCovarianceEstimator(batch_size=1, shrinkage="oas", random_state=0).fit(XD)
    expected = GradientCovarianceEstimator(batch_size=1, shrinkage="oas", random_state=0).fit(X)
    assert_allclose(memory.shrinkage_, expected.shrinkage_, rtol=1e-6)


# Refusals: each with the line to write

KEPT = blocks(np.arange(N) >= 10)
BAD = {
    "columns": (XD.rechunk({1: 2}), YD, r"Pass X\.rechunk\(\{1: -1\}\)"),
    "rows": (XD, YD.rechunk(500), r"y has 4 chunks, X has 7.*y\.rechunk\(\{0: X\.chunks\[0\]\}\)"),
    "lengths": (XD, YD.rechunk((200, *[300] * 6)), r"Pass y\.rechunk"),
    "unknown": (XD[KEPT], Y, r"chunk sizes of X are unknown.*X\.compute_chunk_sizes\(\)"),
    "hidden": (XD[KEPT], YD, r"Block 0 of X has 290 rows, that of y 300"),
    "short": (XD, Y[:-1], "X has 2000 rows, y has the shape"),
    "none": (XD, None, "requires y"),
    "vector": (YD, YD, "of 1 dimensions"),
    "unknown width": (XD[:, blocks(np.arange(D) > 0)], YD, "number of columns of X is unknown"),
    "complex": (XD.astype(complex), YD, "X has the dtype complex128"),
    "empty": (XD[blocks(np.zeros(N, bool))], YD[blocks(np.zeros(N, bool))], "X has no rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_chunks(case):
    A, y, message = BAD[case]
    model = PreconditionedSGDRegressor()
    with pytest.raises(ValueError, match=message):
        model.fit(A, y)
    assert not hasattr(model, "n_features_in_")


SETTINGS = {
    "early_stopping": True,
    "noise": "single",
    "batch_size": 10,
    "learning_rate": 0.1,
    "average": False,
    "variance_reduction": False,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_need_rows_at_hand_are_refused(name):
    with pytest.raises(ValueError, match=rf"^{name}=.*Set {name}=.*or fit X\.compute\(\)"):
        PreconditionedSGDRegressor(**{name: SETTINGS[name]}).fit(XD, YD)


@pytest.mark.parametrize("given", ["identity", GradientCovarianceEstimator()])
def test_preconditioners_of_others_are_refused(given):
    with pytest.raises(ValueError, match="Set preconditioner='auto'"):
        PreconditionedSGDRegressor(preconditioner=given).fit(XD, YD)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["X", "y", "sample_weight"])
@pytest.mark.parametrize("preconditioner", ["exact", "sketch"])
def test_what_is_not_finite_is_found_in_its_block(where, value, preconditioner):
    data = {"X": X.copy(), "y": Y.copy(), "sample_weight": WEIGHT.copy()}
    data[where][1000] = value
    data = {name: blocks(values) for name, values in data.items()}
    with pytest.raises(ValueError, match=rf"Block 3 of {where}\b.*(NaN|infinity)"):
        PreconditionedSGDRegressor(preconditioner=preconditioner).fit(**data)


def test_more_bad_values_name_their_block():
    with pytest.raises(ValueError, match=r"Block 0 of sample_weight .* minimum of -"):
        PreconditionedSGDRegressor().fit(XD, YD, -WEIGHT - 1)
    with pytest.raises(ValueError, match=r"sample_weight is zero for every row"):
        PreconditionedSGDRegressor().fit(XD, YD, 0 * WEIGHT)
    with pytest.raises(ValueError, match=r"Block 0 of y: PoissonLoss needs y >= 0"):
        PreconditionedSGDRegressor("poisson").fit(XD, blocks(-COUNTS - 1))
    with pytest.raises(ValueError, match=r"takes one target"):
        PreconditionedSGDRegressor("poisson").fit(XD, da.stack([YD, YD], axis=1))
    with pytest.raises(ValueError, match=r"block 0 of X overflow float64"):
        PreconditionedSGDRegressor(preconditioner="sketch").fit(XD * 1e306, YD)
    spoilt, counts = X.copy(), COUNTS.copy()
    spoilt[1000] = counts[1000] = np.nan
    with pytest.raises(ValueError, match="Block 3 of X: Input X contains NaN"):
        GradientCovarianceEstimator().fit(blocks(spoilt))
    with pytest.raises(ValueError, match=r"Block 0 of y: Unknown label type"):
        PreconditionedSGDClassifier().fit(XD, YD)
    with pytest.raises(ValueError, match=r"Block 3 of y contains NaN"):
        PreconditionedSGDClassifier().fit(XD, blocks(counts))
    with pytest.raises(ValueError, match=r"Block 0 of y has the shape \(300, 2\)"):
        PreconditionedSGDClassifier().fit(XD, da.stack([LD, LD], axis=1))
    with pytest.raises(ValueError, match="only one class"):
        PreconditionedSGDClassifier().fit(XD, da.zeros(N, chunks=CHUNK, dtype=int))
    with pytest.raises(ValueError, match=r"Columns \['label'\] of X hold no numbers"):
        PreconditionedSGDRegressor().fit(frame(label=LABELS), Y)
    with pytest.raises(ValueError, match="X has no rows"):
        GradientCovarianceEstimator().fit(XD).score(XD[blocks(np.zeros(N, bool))])
    with pytest.raises(ValueError, match="Found array with 0 sample"):
        GradientCovarianceEstimator().fit(XD[blocks(np.zeros(N, bool))])
    with pytest.raises(TypeError, match=r"y is a dask Array"):
        PreconditionedSGDRegressor().fit(X, Y).score(X, YD)
