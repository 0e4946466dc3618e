"""Bad input: each error is read, and a call that fails leaves the estimator as it was."""

import copy
import re
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.exceptions import NotFittedError

from sklearn_gradhess import CalibrationWarning, GradientCovarianceEstimator, gradient_covariance

N, D, BATCH = 60, 4, 7  # 8 batches and 4 rows that wait
_RNG = np.random.default_rng(7)
X = _RNG.normal([0, 1, 2, 3], size=(N, D))
Y = _RNG.uniform(0, 1, N)  # in the range of every loss
GRADIENTS, ANTITHETIC = _RNG.standard_normal((2, 9, D + 1))
CONTAINERS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "float32": lambda array: array.astype(np.float32),
    "csr": sparse.csr_array,
    "csc": sparse.csc_matrix,
}
METHODS = ("fit", "partial_fit")
NOISES = ("antithetic", "single", "none")


def make(**settings):
    return GradientCovarianceEstimator(
        **{"batch_size": BATCH, "shuffle": False, "random_state": 0} | settings
    )


def seen(**settings):
    """Return an estimator that has seen data, some of which waits for more."""
    return make(**settings).partial_fit(X, Y)


def seen_gradients(**settings):
    antithetic = ANTITHETIC if settings.get("noise", "antithetic") == "antithetic" else None
    return make(**settings).partial_fit_gradients(
        GRADIENTS, antithetic, batch_size=BATCH, has_intercept=True
    )


def with_entry(array, value, place=-1):
    """Copy an array, with its entry at `place` in flat order replaced."""
    array = np.array(array, dtype=np.float64)
    array.flat[place] = value
    return array


def content(value):
    """All there is in a value, down to arrays and random streams, in a form that == compares."""
    if isinstance(value, np.ndarray):
        return (
            value.dtype,
            value.shape,
            value.tolist() if value.dtype.hasobject else value.tobytes(),
        )
    if isinstance(value, np.random.Generator):
        return content(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return content(value.get_state(legacy=False))
    if isinstance(value, dict):
        return {name: content(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [content(item) for item in value]
    if hasattr(value, "__dict__"):
        return type(value), content(vars(value))
    return type(value), repr(value)  # unlike the number, the name of NaN equals itself


class refused:  # noqa: N801
    """Assert that the block raises this error, and leaves the estimators as they were."""

    def __init__(self, error, match, *estimators):
        self.raises = pytest.raises(error, match=match)
        self.estimators = estimators

    def __enter__(self):
        self.before = content([vars(e) for e in self.estimators])
        return self.raises.__enter__()

    def __exit__(self, *raised):
        swallowed = self.raises.__exit__(*raised)
        assert content([vars(e) for e in self.estimators]) == self.before
        return swallowed


def foreign(module, name):
    def never(*args, **kwargs):
        raise AssertionError("the collection was converted")

    body = {"__module__": module, "__array__": never, "__len__": never, "__iter__": never}
    return type(name, (), body | {"shape": (N, D), "ndim": 2, "dtype": np.dtype("float64")})()


def test_content_tells_apart_what_fits_tell_apart():
    estimator = seen()
    assert content(vars(estimator)) == content(vars(copy.deepcopy(estimator)))
    assert content(vars(estimator)) != content(vars(seen(random_state=1)))
    estimator._rng.random()
    assert content(vars(estimator)) != content(vars(seen()))


# X


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    ("value", "said"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")]
)
@pytest.mark.parametrize("place", [0, -1], ids=["first", "waiting"])
def test_non_finite_features_are_refused(noise, container, value, said, place):
    bad = CONTAINERS[container](with_entry(X, value, place))
    for estimator, method in [
        (make(noise=noise), "fit"),
        (make(noise=noise), "partial_fit"),
        (seen(noise=noise), "fit"),
        (seen(noise=noise), "partial_fit"),
    ]:
        with refused(ValueError, f"^Input X contains {said}", estimator):
            getattr(estimator, method)(bad, Y)


@pytest.mark.parametrize("settings", [{"shuffle": True}, {"batch_size": 1}, {"batch_size": "auto"}])
def test_non_finite_features_are_refused_in_any_batches(settings):
    estimator = seen(**settings)
    with refused(ValueError, r"^Input X contains NaN", estimator):
        estimator.partial_fit(with_entry(X, np.nan))


def test_non_finite_features_are_refused_in_a_row_of_weight_zero():
    with pytest.raises(ValueError, match=r"^Input X contains NaN"):
        make().fit(with_entry(X, np.nan), Y, with_entry(np.ones(N), 0))


ALIKE = {  # refused by fit and partial_fit: settings, changes, error, message
    "vector X": ({}, {"X": X[:, 0]}, ValueError, r"^Expected 2D array, got 1D array instead"),
    "cube X": ({}, {"X": X[None]}, ValueError, r"^Found array with dim 3, while dim <= 2 is"),
    "text X": ({}, {"X": np.full((N, D), "a")}, ValueError, r"could not convert string.*'a'"),
    "complex X": ({}, {"X": X * 1j}, ValueError, r"^Complex data not supported"),
    "no rows": ({}, {"X": X[:0], "y": None}, ValueError, r"0 sample\(s\) \(shape=\(0, 4\)\) while"),
    "no columns": ({}, {"X": X[:, :0]}, ValueError, r"0 feature\(s\) \(shape=\(60, 0\)\) while"),
    "short y": (
        {},
        {"y": Y[:5]},
        ValueError,
        r"^X and y have inconsistent numbers of samples: 60 rows against 5\.$",
    ),
    "NaN in y": ({}, {"y": with_entry(Y, np.nan)}, ValueError, r"^Input y contains NaN\.$"),
    "inf in y": ({}, {"y": with_entry(Y, np.inf)}, ValueError, r"^Input y contains infinity"),
    "several y": (
        {"noise": "single"},
        {"y": np.column_stack([Y, Y])},
        ValueError,
        r"^y must be a vector, got shape \(60, 2\)\. .* fit one estimator a column, or pass y=None "
        r"with noise='antithetic'\.$",
    ),
    "labels for y": (
        {"noise": "single"},
        {"y": np.full(N, "spam")},
        ValueError,
        r"could not convert string.*'spam'",
    ),
    "y below log_loss": (
        {"loss": "log_loss"},
        {"y": with_entry(Y, -1.5)},
        ValueError,
        r"^LogisticLoss needs 0 <= y <= 1, got min\(y\) = -1\.5 and max\(y\) = 0\.\d+\. Encode the "
        r"two classes as 0 and 1; for real-valued targets use loss='squared_error'\.$",
    ),
    "y above log_loss": (
        {"loss": "log_loss"},
        {"y": with_entry(Y, 2)},
        ValueError,
        r"^LogisticLoss needs 0 <= y <= 1, got .* max\(y\) = 2\.",
    ),
    "y below poisson": (
        {"loss": "poisson"},
        {"y": with_entry(Y, -1.5)},
        ValueError,
        r"^PoissonLoss needs y >= 0, got min\(y\) = -1\.5\. For real-valued targets use "
        r"loss='squared_error'\.$",
    ),
    "coef too short": (
        {},
        {"coef": [1.0, 2.0, 3.0]},
        ValueError,
        r"^coef has shape \(3,\), but X has 4 features: pass one coefficient a feature\.$",
    ),
    "coef a column": ({}, {"coef": np.ones((D, 1))}, ValueError, r"^coef has shape \(4, 1\), but"),
    "NaN in coef": (
        {},
        {"coef": [1, np.nan, 0, 0]},
        ValueError,
        r"^coef has NaN or infinite entries\. Did the optimiser diverge\?$",
    ),
    "inf in coef": ({}, {"coef": [1, np.inf, 0, 0]}, ValueError, r"^coef has NaN or infinite"),
    "NaN intercept": (
        {},
        {"intercept": np.nan},
        ValueError,
        r"^intercept must be one finite number, got nan\.$",
    ),
    "no intercept": ({}, {"intercept": None}, ValueError, r"^intercept must be one finite number"),
    "two intercepts": (
        {},
        {"intercept": [1.0, 2.0]},
        ValueError,
        r"^intercept must be one finite number, got \[1\. 2\.\]\.$",
    ),
    "text intercept": ({}, {"intercept": "one"}, ValueError, r"'one'"),
    "negative weight": (
        {},
        {"sample_weight": with_entry(np.ones(N), -0.5)},
        ValueError,
        r"^sample_weight must be >= 0, got a minimum of -0\.5\.$",
    ),
    "negative number for weights": (
        {},
        {"sample_weight": -2},
        ValueError,
        r"^sample_weight must be >= 0, got a minimum of -2\.$",
    ),
    "no weight": (
        {},
        {"sample_weight": np.zeros(N)},
        ValueError,
        r"^Sample weights must contain at least one non-zero|^sample_weight is zero for every row",
    ),
    "short weights": (
        {},
        {"sample_weight": np.ones(3)},
        ValueError,
        r"^sample_weight\.shape == \(3,\), expected \(60,\)",
    ),
    "NaN weight": (
        {},
        {"sample_weight": with_entry(np.ones(N), np.nan)},
        ValueError,
        r"^Input sample_weight contains NaN",
    ),
    "inherent estimate": (
        {"noise": "single", "inherent_variance": "estimate"},
        {"y": Y + 10},
        ValueError,
        r"^The inherent target noise has variance 1\d\d\.\d+, more than the calibrated total 7 = "
        r"noise_scale \* batch_size \* curvature: .* Increase batch_size or noise_scale; or use "
        r"noise='none', which divides inherent_variance out, or noise='antithetic', where inherent "
        r"noise cancels\.$",
    ),
    "huge targets": (
        {},
        {"y": Y * 1e308, "X": X * 100},
        ValueError,
        r"^The gradients overflow float64: they are sums of features, as large as \S+, times resid",
    ),
    "huge float32 targets": (
        {},
        {"y": Y * 1e38, "X": X.astype(np.float32)},
        ValueError,
        r"^The gradients overflow float32: they are sums of features, .* Rescale X or y, "
        r"or pass float64\.$",
    ),
    "huge float32 sums": (
        {},
        {"X": (X * 1e37).astype(np.float32)},
        ValueError,
        r"^The covariance overflows float32: the largest standard deviation of a feature is "
        r"[\d.]+e\+3[67]\. Rescale X or pass float64\.$",
    ),
    "huge X": (
        {},
        {"X": X * 1e200},
        ValueError,
        r"^The covariance overflows float64: the largest standard deviation of a feature is "
        r"[\d.]+e\+(199|200)\. Rescale X",
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("before", [make, seen], ids=["new", "seen"])
@pytest.mark.parametrize(
    ("settings", "changes", "error", "match"), ALIKE.values(), ids=ALIKE.keys()
)
def test_bad_data_are_refused(before, method, settings, changes, error, match):
    estimator = before(**settings)
    with refused(error, match, estimator):
        getattr(estimator, method)(**{"X": X, "y": Y} | changes)


@pytest.mark.parametrize("before", [make, seen], ids=["new", "seen"])
@pytest.mark.parametrize(
    ("rows", "batch_size", "match"),
    [
        (6, 7, r"^batch_size=7 exceeds n_samples=6: not one batch is complete\. Use a smaller "
               r"batch_size, or partial_fit, which waits for more rows\.$"),
        (1, 1, r"1 sample\(s\) \(shape=\(1, 4\)\) while a minimum of 2 is required"),
    ],
)  # fmt: skip
def test_fit_refuses_too_few_rows(before, rows, batch_size, match):
    estimator = before(batch_size=batch_size)
    with refused(ValueError, match, estimator):
        estimator.fit(X[:rows], Y[:rows])


def test_partial_fit_waits_for_rows_one_by_one():
    estimator, whole = make(), make().fit(X, Y)
    for i in range(N):
        estimator.partial_fit(X[i : i + 1], Y[i : i + 1])
    assert_allclose(estimator.covariance_, whole.covariance_, rtol=1e-10)


@pytest.mark.parametrize("noise", NOISES)
def test_one_feature_is_enough(noise):
    covariance, gradient = gradient_covariance(
        X[:, :1], Y, batch_size=1, noise=noise, random_state=0
    )
    assert covariance.shape == (1, 1)
    assert gradient.shape == (1,)
    assert covariance[0, 0] > 0


@pytest.mark.parametrize("method", ["partial_fit", "transform"])
def test_other_columns_are_refused(method):
    estimator = seen()
    with refused(ValueError, r"^X has 3 features, but \w+ is expecting 4 features", estimator):
        getattr(estimator, method)(X[:, :3])


@pytest.mark.parametrize("method", ["partial_fit", "transform"])
def test_columns_of_other_names_are_refused(method):
    pandas = pytest.importorskip("pandas")
    estimator = make().fit(pandas.DataFrame(X, columns=list("abcd")))
    with refused(ValueError, r"unseen at fit time:\n- z\n.*now missing:\n- a", estimator):
        getattr(estimator, method)(pandas.DataFrame(X, columns=list("zbcd")))


@pytest.mark.parametrize("method", ["transform", "inverse_transform"])
@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_non_finite_rows_are_not_transformed(method, value, said):
    with pytest.raises(ValueError, match=f"^Input X contains {said}"):
        getattr(seen(), method)(with_entry(X, value))


def test_inverse_transform_refuses_another_width():
    match = r"^X has 3 whitened features, but this estimator makes 4\.$"
    with pytest.raises(ValueError, match=match):
        seen().inverse_transform(X[:, :3])


# Targets that antithetic noise can do without


@pytest.mark.parametrize("y", [["a", "b"], [[1.0, 2.0], [3.0, 4.0]]], ids=["labels", "several"])
def test_targets_of_another_length_are_refused_even_where_they_are_not_used(y):
    estimator = make()
    with refused(ValueError, r"inconsistent numbers of samples", estimator):
        estimator.fit(X, y)


def test_numbers_in_an_object_array_are_targets_like_any_other():
    assert_array_equal(
        make().fit(X, Y.astype(object)).mean_gradient_, make().fit(X, Y).mean_gradient_
    )


# Collections that live elsewhere

FOREIGN = {
    ("dask.array.core", "Array"): "call .compute() on it, or pass its blocks to partial_fit one",
    ("dask.dataframe.dask_expr._collection", "DataFrame"): "call .compute() on it",
    ("torch", "Tensor"): "pass .detach().cpu().numpy()",
    ("jaxlib._jax", "ArrayImpl"): "pass numpy.asarray(...) of it",
    ("jax._src.interpreters.partial_eval", "DynamicJaxprTracer"): "pass numpy.asarray(...) of it",
    ("cupy", "ndarray"): "pass .get()",
}
each_foreign = pytest.mark.parametrize(
    ("collection", "way_out"), FOREIGN.items(), ids=[module for module, _ in FOREIGN]
)


def foreign_message(argument, collection, way_out):
    package = collection[0].partition(".")[0].removesuffix("lib")
    return (
        f"^{argument} is a {package} {collection[1]}, but NumPy arrays, SciPy sparse arrays and "
        rf"data frames are taken here\. Convert {argument} first: {re.escape(way_out)}"
    )


@each_foreign
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("argument", ["X", "y", "sample_weight", "coef", "intercept"])
def test_foreign_data_are_refused_by_name(method, argument, collection, way_out):
    if (method, argument, collection[0][:4]) == ("fit", "X", "dask"):
        return  # taken as it is
    estimator = make()
    with refused(TypeError, foreign_message(argument, collection, way_out), estimator):
        getattr(estimator, method)(**{"X": X, "y": Y} | {argument: foreign(*collection)})


@each_foreign
@pytest.mark.parametrize("argument", ["gradients", "antithetic", "loss_curvature"])
def test_foreign_gradients_are_refused_by_name(argument, collection, way_out):
    given = {"gradients": GRADIENTS, "antithetic": ANTITHETIC, argument: foreign(*collection)}
    estimator = make()
    with refused(TypeError, foreign_message(argument, collection, way_out), estimator):
        estimator.partial_fit_gradients(**given, batch_size=BATCH)


@each_foreign
@pytest.mark.parametrize("method", ["transform", "inverse_transform"])
def test_foreign_rows_are_not_transformed(method, collection, way_out):
    if (method, collection[0][:4]) == ("transform", "dask"):
        return  # by block
    with pytest.raises(TypeError, match=foreign_message("X", collection, way_out)):
        getattr(seen(), method)(foreign(*collection))


def test_a_real_tensor_is_refused():
    torch = pytest.importorskip("torch")
    estimator = make()
    message = foreign_message("X", ("torch", "Tensor"), "pass .detach().cpu().numpy()")
    with refused(TypeError, message, estimator):
        estimator.fit(torch.zeros((N, D)))


# Gradients alone

GOOD_GRADIENTS = {
    "gradients": GRADIENTS,
    "antithetic": ANTITHETIC,
    "batch_size": BATCH,
    "has_intercept": True,
}
SINGLE = {"noise": "single"}
BAD_GRADIENTS = {  # refused whether the estimator has seen some or not
    "NaN": (
        {},
        {"gradients": with_entry(GRADIENTS, np.nan)},
        ValueError,
        r"^Input gradients contains NaN",
    ),
    "inf": (
        {},
        {"gradients": with_entry(GRADIENTS, np.inf)},
        ValueError,
        r"^Input gradients contains infinity",
    ),
    "antithetic NaN": (
        {},
        {"antithetic": with_entry(ANTITHETIC, np.nan)},
        ValueError,
        r"^Input antithetic contains NaN",
    ),
    "vector": (
        SINGLE,
        {"gradients": GRADIENTS[0], "antithetic": None},
        ValueError,
        r"^Expected 2D array, got 1D array instead",
    ),
    "sparse": (
        SINGLE,
        {"gradients": sparse.csr_array(GRADIENTS), "antithetic": None},
        TypeError,
        r"^Sparse data was passed for gradients, but dense data is required",
    ),
    "none": (
        {},
        {"gradients": GRADIENTS[:0], "antithetic": ANTITHETIC[:0]},
        ValueError,
        r"0 sample\(s\) \(shape=\(0, 5\)\)",
    ),
    "intercept's column alone": (
        {},
        {"gradients": GRADIENTS[:, :1], "antithetic": ANTITHETIC[:, :1]},
        ValueError,
        r"^gradients has one column, the intercept's, and no feature\. Did you mean "
        r"has_intercept=False\?$",
    ),
    "antithetic missing": (
        {},
        {"antithetic": None},
        ValueError,
        r"^noise='antithetic' needs two gradients a batch: .* got only one set\. For one noisy "
        r"gradient a batch use noise='single'\.$",
    ),
    "antithetic for single": (
        SINGLE,
        {},
        ValueError,
        r"^antithetic gradients were passed, but noise='single' takes one gradient a batch\. Use "
        r"noise='antithetic'\.$",
    ),
    "antithetic for none": (
        {"noise": "none"},
        {},
        ValueError,
        r"^antithetic gradients were passed, but noise='none' takes one gradient a batch",
    ),
    "antithetic of fewer batches": (
        {},
        {"antithetic": ANTITHETIC[:3]},
        ValueError,
        r"^antithetic has shape \(3, 5\), gradients \(9, 5\): both must hold the gradients of the "
        r"same batches in the same order\.$",
    ),
    "antithetic of other width": (
        {},
        {"antithetic": ANTITHETIC[:, :2]},
        ValueError,
        r"^antithetic has shape \(9, 2\), gradients \(9, 5\)",
    ),
    "curvature without antithetic": (
        SINGLE,
        {"antithetic": None, "loss_curvature": 0.25},
        ValueError,
        r"^loss_curvature scales the noise alone, which only noise='antithetic' separates .* Draw "
        r"the noise with variance batch_size times the curvature instead\.$",
    ),
    "curvature negative": (
        {},
        {"loss_curvature": -0.25},
        ValueError,
        r"^loss_curvature must be one finite number >= 0 or one for each of the 9 batches, got "
        r"shape \(\) and a minimum of -0\.25\.$",
    ),
    "curvature NaN": ({}, {"loss_curvature": np.nan}, ValueError, r"minimum of nan\.$"),
    "curvature for other batches": (
        {},
        {"loss_curvature": [1.0, 2.0]},
        ValueError,
        r"^loss_curvature must be .* one for each of the 9 batches, got shape \(2,\)",
    ),
    "curvature empty": (
        {},
        {"loss_curvature": []},
        ValueError,
        r"^loss_curvature must be .* one for each of the 9 batches, got shape \(0,\)",
    ),
    "batch_size a float": (
        {},
        {"batch_size": 7.0},
        TypeError,
        r"^batch_size must be an instance of int, not float\.$",
    ),
    "batch_size a text": (
        {},
        {"batch_size": "7"},
        TypeError,
        r"^batch_size must be an instance of int, not str\.$",
    ),
    "batch_size zero": ({}, {"batch_size": 0}, ValueError, r"^batch_size == 0, must be >= 1\.$"),
    "huge": (
        {},
        {"gradients": GRADIENTS * 1e200, "antithetic": ANTITHETIC * 1e200},
        ValueError,
        r"^The covariance overflows float64: the largest standard deviation of a feature is "
        r"\d(\.\d+)?e\+(199|200)\b",
    ),
    "huge float32": (
        {},
        {"gradients": np.float32(GRADIENTS * 1e30), "antithetic": np.float32(ANTITHETIC * 1e30)},
        ValueError,
        r"^The covariance overflows float32: .* Rescale X or pass float64\.$",
    ),
}


@pytest.mark.parametrize("before", [make, seen_gradients], ids=["new", "seen"])
@pytest.mark.parametrize(
    ("settings", "changes", "error", "match"), BAD_GRADIENTS.values(), ids=BAD_GRADIENTS.keys()
)
def test_bad_gradients_are_refused(before, settings, changes, error, match):
    estimator = before(**settings)
    with refused(error, match, estimator):
        estimator.partial_fit_gradients(**GOOD_GRADIENTS | changes)


UNLIKE_GRADIENTS = {  # refused because of what was seen before
    "width": (
        {"gradients": GRADIENTS[:, :4], "antithetic": ANTITHETIC[:, :4]},
        r"^gradients has 4 columns with has_intercept=True, that is 3 features, but 4 were seen "
        r"before\. Did has_intercept change\?$",
    ),
    "intercept taken for a feature": (
        {"has_intercept": False},
        r"^gradients has 5 columns with has_intercept=False, that is 5 features, but 4 were seen",
    ),
    "no intercept": (
        {
            "gradients": GRADIENTS[:, 1:],
            "antithetic": ANTITHETIC[:, 1:],
            "has_intercept": False,
        },
        r"^The gradients seen before had the intercept's column, these do not\. Pass it in column "
        r"0 with has_intercept=True, or use assume_centered=True from the start\.$",
    ),
    "batch size": (
        {"batch_size": 8},
        r"^batch_size=8, but gradients of 7 rows were seen before\. Fit one estimator for each "
        r"batch size and compare, they cannot be mixed\.$",
    ),
}


@pytest.mark.parametrize("before", [seen, seen_gradients])
@pytest.mark.parametrize(
    ("changes", "match"), UNLIKE_GRADIENTS.values(), ids=UNLIKE_GRADIENTS.keys()
)
def test_gradients_unlike_those_before_are_refused(before, changes, match):
    estimator = before()
    with refused(ValueError, match, estimator):
        estimator.partial_fit_gradients(**GOOD_GRADIENTS | changes)


def test_an_intercept_that_was_not_seen_before_is_left_out():
    estimator = make().partial_fit_gradients(GRADIENTS[:, 1:], ANTITHETIC[:, 1:], batch_size=BATCH)
    twice = copy.deepcopy(estimator).partial_fit_gradients(**GOOD_GRADIENTS)
    assert_allclose(twice.covariance_, estimator.covariance_)


@pytest.mark.parametrize("method", ["fit", "partial_fit", "partial_fit_gradients"])
def test_inherent_noise_above_the_total_is_refused(method):
    estimator = make(noise="single", inherent_variance=9.5, noise_scale=0.5)
    match = (
        r"^The inherent target noise has variance 9\.5, more than the calibrated total 3\.5 = "
        r"noise_scale \* batch_size \* curvature: noise can be added, not taken away\. Increase "
        r"batch_size or noise_scale; or use noise='none', which divides inherent_variance out, "
        r"or noise='antithetic', where inherent noise cancels\.$"
    )
    with refused(ValueError, match, estimator):
        if method == "partial_fit_gradients":
            estimator.partial_fit_gradients(GRADIENTS, batch_size=BATCH)
        else:
            getattr(estimator, method)(X, Y)


@pytest.mark.parametrize("noise", ["single", "none"])
def test_inherent_noise_cannot_be_estimated_from_gradients(noise):
    estimator = make(noise=noise, inherent_variance="estimate")
    match = (
        r"^inherent_variance='estimate' needs residuals, and gradients alone have none\. Pass the "
        r"variance, or use noise='antithetic', where it cancels\.$"
    )
    with refused(ValueError, match, estimator):
        estimator.partial_fit_gradients(GRADIENTS, batch_size=BATCH)


# Merging

UNLIKE = {
    "batch_size_": ({"batch_size": 3}, "7 and batch_size_=3"),
    "noise": ({"noise": "single"}, "'antithetic' and noise='single'"),
    "noise_scale": ({"noise_scale": 2.0}, "1.0 and noise_scale=2.0"),
    "inherent_variance": ({"inherent_variance": 0.5}, "0.0 and inherent_variance=0.5"),
    "loss": ({"loss": "poisson"}, "'squared_error' and loss='poisson'"),
    "has_intercept": ({"assume_centered": True}, "True and has_intercept=False"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_estimators_of_unlike_settings_do_not_merge(name):
    settings, said = UNLIKE[name]
    mine, theirs = seen(), seen(**settings)
    match = (
        rf"^Cannot merge estimators with {name}={re.escape(said)}: their gradients have different "
        r"laws\. Fit both with the same settings, batch_size as a number\.$"
    )
    with refused(ValueError, match, mine, theirs):
        mine.merge(theirs)


def test_huber_losses_of_unlike_epsilon_do_not_merge():
    mine, theirs = seen(loss="huber"), seen(loss="huber", epsilon=2.0)
    with refused(ValueError, r"with epsilon=1\.35 and epsilon=2\.0", mine, theirs):
        mine.merge(theirs)


def test_tweedie_losses_of_unlike_power_do_not_merge():
    mine, theirs = (
        make(loss="tweedie", power=power).partial_fit(X, np.abs(Y)) for power in (1.2, 1.7)
    )
    with refused(ValueError, r"with power=1\.2 and power=1\.7", mine, theirs):
        mine.merge(theirs)


def test_estimators_of_other_features_do_not_merge():
    mine, theirs = seen(), make().partial_fit(X[:, :3])
    match = r"^Cannot merge estimators with n_features_in_=4 and n_features_in_=3"
    with refused(ValueError, match, mine, theirs):
        mine.merge(theirs)


def test_estimators_of_other_feature_names_do_not_merge():
    pandas = pytest.importorskip("pandas")
    mine, theirs = (make().fit(pandas.DataFrame(X, columns=list(c))) for c in ("abcd", "zbcd"))
    with refused(ValueError, r"^Cannot merge .* different feature_names_in_", mine, theirs):
        mine.merge(theirs)


@pytest.mark.parametrize(("mine", "theirs"), [(make(), seen()), (seen(), make())])
def test_an_estimator_that_has_seen_nothing_does_not_merge(mine, theirs):
    with refused(NotFittedError, r"instance is not fitted yet", mine, theirs):
        mine.merge(theirs)


@pytest.mark.parametrize("rule", ["oas", "ledoit_wolf"])
def test_a_shrinkage_rule_does_not_merge_with_gradients_that_were_not_kept(rule):
    mine, theirs = seen(shrinkage=rule), seen()
    for one, other, said in [(mine, theirs, "True .* False"), (theirs, mine, "False .* True")]:
        match = r"^Cannot merge .* kept gradients={} .* kept gradients={}".format(
            *said.split(" .* ")
        )
        with refused(ValueError, match, one, other):
            one.merge(other)


def test_a_merge_leaves_the_other_estimator_as_it_was():
    other = seen(random_state=1)
    before = content(vars(other))
    seen().merge(other)
    assert content(vars(other)) == before


# Settings changed half way


CHANGED = {
    "noise": (
        {"noise": "none"},
        r"^noise='none' with noise_scale=1, but the gradients seen before had noise='antithetic' "
        r"with noise_scale=1\. Use fit to start afresh\.$",
    ),
    "noise_scale": (
        {"noise_scale": 2.5},
        r"^noise='antithetic' with noise_scale=2\.5, but the gradients seen before had .* with "
        r"noise_scale=1\. Use fit to start afresh\.$",
    ),
    "shrinkage": (
        {"shrinkage": "oas"},
        r"^shrinkage='ledoit_wolf' and 'oas' need the gradients seen before, which were not kept\. "
        r"Set shrinkage before the first fit, or use fit to start afresh\.$",
    ),
}


@pytest.mark.parametrize(("settings", "match"), CHANGED.values(), ids=CHANGED.keys())
@pytest.mark.parametrize("before", [seen, seen_gradients])
def test_settings_that_memory_depends_on_cannot_change_half_way(before, settings, match):
    estimator = before().set_params(**settings)
    with refused(ValueError, match, estimator):
        estimator.partial_fit(X, Y)
    gradients = {"antithetic": None} if "noise" in settings else {}
    with refused(ValueError, match, estimator):
        estimator.partial_fit_gradients(**GOOD_GRADIENTS | gradients)


def test_fit_forgets_settings_and_data_of_before():
    estimator = seen().set_params(noise="single", batch_size=3, shrinkage="oas")
    fresh = make(noise="single", batch_size=3, shrinkage="oas").fit(X[:, :2], Y)
    assert_array_equal(estimator.fit(X[:, :2], Y).covariance_, fresh.covariance_)


# Failures that only warn


def warned(settings, X):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator = make(**settings).fit(X)
    assert [w.category for w in caught] == [CalibrationWarning]
    return estimator, str(caught[0].message)


@pytest.mark.parametrize(("batch_size", "k"), [(15, 4), (20, 3)])
def test_fewer_batches_than_features_are_warned_of(batch_size, k):
    assert warned({"batch_size": batch_size}, X)[1] == (
        f"Only {k} batch gradients for 4 features: the covariance has rank at most {k}. Use a "
        "smaller batch_size, more samples, or shrinkage='oas'."
    )


def test_shrinkage_is_a_way_out_of_too_few_batches():
    assert make(batch_size=20, shrinkage="oas").fit(X).fitted_.preconditioner.rank == D


SINGULAR = (
    r"^The covariance is singular, rank 3 of 4\. {}\. Singular directions are left out of "
    r"precision_ and come out of transform as zeros: drop such features, or use shrinkage\.$"
)
each_size = pytest.mark.parametrize(
    ("n_samples", "batch_size"), [(60, 1), (60, 4), (600, 1), (6000, 1), (6000, 4), (6000, 100)]
)


@each_size
@pytest.mark.parametrize("value", [0.0, 1.0, 3.0, 0.1, -1e6])
def test_a_constant_feature_is_warned_of_and_leaves_the_others_alone(value, n_samples, batch_size):
    features = np.random.default_rng(n_samples).normal(size=(n_samples, D))
    features[:, 1] = value
    estimator, message = warned({"batch_size": batch_size}, features)
    assert re.match(SINGULAR.format(r"Constant features: \[1\]"), message)
    others = make(batch_size=batch_size).fit(features[:, [0, 2, 3]])
    precision = np.delete(np.delete(estimator.precision_, 1, 0), 1, 1)
    assert_allclose(precision, others.precision_, rtol=1e-6, atol=1e-8)
    assert_allclose(estimator.transform(features)[:, 1], 0, atol=1e-6)


@pytest.mark.parametrize("n_features", [1, 2, 3])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e6])
def test_a_constant_feature_is_found_in_many_rows_of_few_features(value, n_features):
    features = np.random.default_rng(0).normal(size=(60_000, n_features))
    features[:, 0] = value
    estimator, message = warned({"batch_size": 1}, features)
    assert message.startswith(f"The covariance is singular, rank {n_features - 1} of {n_features}.")
    assert_allclose(estimator.precision_[0], 0, atol=1e-6)


@each_size
def test_a_duplicated_feature_is_warned_of(n_samples, batch_size):
    features = np.random.default_rng(n_samples).normal(size=(n_samples, D))
    features[:, 2] = -3 * features[:, 0] + 1
    estimator, message = warned({"batch_size": batch_size}, features)
    assert re.match(SINGULAR.format("Some features are linear combinations of others"), message)
    whitened = np.cov(estimator.transform(features), rowvar=False)
    assert np.linalg.matrix_rank(whitened, tol=1e-6) == D - 1


@pytest.mark.parametrize("before", [make, seen], ids=["new", "seen"])
def test_a_warning_that_is_an_error_leaves_the_estimator_as_it_was(before):
    estimator = before(batch_size=20)
    with refused(CalibrationWarning, "^Only 3 batch gradients for 4 features", estimator):
        estimator.fit(X, Y)


# Random streams


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stream", [np.random.RandomState, np.random.default_rng])
def test_a_failed_call_does_not_advance_the_stream_that_was_passed(method, stream):
    estimator = make(random_state=stream(0))
    with refused(ValueError, "^Input X contains NaN", estimator):
        getattr(estimator, method)(with_entry(X, np.nan))


@pytest.mark.parametrize("settings", [{}, {"shuffle": True}, {"noise": "single"}])
def test_a_stream_of_data_goes_on_after_a_failed_call_as_if_it_had_not_been(settings):
    estimator, never_failed = (make(**settings).partial_fit(X, Y) for _ in range(2))
    for bad in (X[:, :3], with_entry(X, np.nan), with_entry(X, np.inf)):
        with refused(ValueError, r"^X has 3 features|^Input X contains", estimator):
            estimator.partial_fit(bad, Y)
    estimator.partial_fit(X, Y)
    assert_array_equal(estimator.covariance_, never_failed.partial_fit(X, Y).covariance_)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"noise_scale": 3.0}, "noise_scale=3.*but the gradients seen before had"),
        ({"loss": "poisson"}, "loss='poisson'.*but the gradients seen before had"),
    ],
)
def test_parameters_that_changed_since_are_not_merged(rng, change, match):
    X = rng.standard_normal((64, 3))
    mine = GradientCovarianceEstimator(batch_size=4, random_state=0).fit(X)
    theirs = GradientCovarianceEstimator(batch_size=4, random_state=1).fit(X)
    for estimator in (mine, theirs):
        estimator.set_params(**change)
    with refused(ValueError, match, mine, theirs):
        mine.merge(theirs)
