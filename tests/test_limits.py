"""What cannot be done is said with numbers: too wide, too large, too few; and NumPy's booleans."""

import inspect
import sys
import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from sklearn_gradhess import (
    GradientCovarianceEstimator,
    PreconditionedSGDClassifier,
    PreconditionedSGDRegressor,
    _memory,
    covariance,
    datasets,
    diagnostics,
    linear_model,
    metrics,
    noise,
    plotting,
)
from sklearn_gradhess._memory import refuse_wide

Classifier, Regressor = PreconditionedSGDClassifier, PreconditionedSGDRegressor
ESTIMATORS = (GradientCovarianceEstimator, Classifier, Regressor)
MODELS = (Classifier, Regressor)


@pytest.fixture
def data(rng):
    X = rng.standard_normal((60, 3)) + 1
    return X, X @ [1.0, -1.0, 0.5] + rng.standard_normal(60)


def learn(model, method, X, y):
    """Fit, or learn from one chunk; the classifier the sign of y."""
    if isinstance(model, Classifier):
        y = (y > 0).astype(int)
        if method == "partial_fit":
            return model.partial_fit(X, y, classes=[0, 1])
    return getattr(model, method)(X, y)


# --- booleans of NumPy, as grids have them

OF_FUNCTIONS = {"has_intercept", "relative"}


def booleans(cls):
    return [name for name, value in cls().get_params().items() if isinstance(value, bool)]


def state(value):
    """Fitted numbers of an estimator, without the times."""
    return {
        name: item
        for name, item in vars(value).items()
        if name.endswith("_") and isinstance(item, np.ndarray | float | int)
    }


@pytest.mark.filterwarnings("ignore:Not converged")  # plain steps come to rest at a distance
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize(
    ("cls", "name"), [(cls, name) for cls in ESTIMATORS for name in booleans(cls)]
)
def test_a_boolean_of_numpy_is_a_boolean(data, cls, name, value, method):
    X, y = data
    params = {"random_state": 0} | ({"alpha": 0.1} if cls is Classifier else {})
    value = value and (method, name) != ("partial_fit", "early_stopping")  # which streams refuse
    plain, numpy = (
        learn(cls(**params, **{name: kind(value)}), method, X, y) for kind in (bool, np.bool_)
    )
    assert state(plain).keys() == state(numpy).keys()
    for attribute, want in state(plain).items():
        assert_array_equal(state(numpy)[attribute], want, err_msg=attribute)
    for ask in ("predict", "transform", "mahalanobis"):
        if hasattr(cls, ask):
            assert_array_equal(getattr(numpy, ask)(X), getattr(plain, ask)(X))
    if cls is not GradientCovarianceEstimator and method == "fit" and name != "early_stopping":
        again = [learn(model, "partial_fit", X, y) for model in (plain, numpy)]
        assert_array_equal(again[1].coef_, again[0].coef_)


@pytest.mark.parametrize("value", [True, False])
def test_a_start_and_a_warm_start_take_an_intercept_of_numpy(data, value):
    models = []
    for kind in (bool, np.bool_):
        model = Regressor("huber", fit_intercept=kind(value), warm_start=True, random_state=0)
        model.fit(*data, coef_init=np.ones(3), intercept_init=1.0)
        models.append(model.fit(*data))
    assert_array_equal(models[1].coef_, models[0].coef_)
    assert len(models[1].history_) == len(models[0].history_)


@pytest.mark.parametrize("value", [True, False])
def test_gradients_and_displays_take_booleans_of_numpy(rng, value):
    pairs = rng.standard_normal((2, 40, 4))
    covariances, risks = [], []
    for kind in (bool, np.bool_):
        estimator = GradientCovarianceEstimator(random_state=0)
        estimator.partial_fit_gradients(*pairs, batch_size=4, has_intercept=kind(value))
        covariances.append(estimator.covariance_)
        given = {"coef": np.ones(4 - value), "batch_size": 4, "has_intercept": kind(value)}
        risks.append(metrics.gradient_adversarial_risk(*pairs, radius=0.1, **given).value)
        curve = plotting.AdversarialRiskDisplay.from_gradients(*pairs, **given)
        risks.append(np.ravel(curve.value))
        plotting.HessianSpectrumDisplay(eigenvalues=[[2.0, 1.0]], relative=kind(value)).plot()
    assert_array_equal(covariances[0], covariances[1])
    for plain, numpy in zip(risks[:2], risks[2:], strict=True):
        assert_array_equal(numpy, plain)


def test_every_boolean_parameter_of_the_public_interface_is_tested():
    members = {
        f"{module.__name__}.{name}.{member}": function
        for module in (covariance, datasets, diagnostics, linear_model, metrics, noise, plotting)
        for name in module.__all__
        for item in [getattr(module, name)]
        for member, function in ({**vars(item)} if inspect.isclass(item) else {"": item}).items()
        if member == "__init__" or not member.startswith("_")
    }
    found = {
        parameter.name
        for function in (getattr(member, "__func__", member) for member in members.values())
        if inspect.isfunction(function)
        for parameter in inspect.signature(function).parameters.values()
        if isinstance(parameter.default, bool)
    }
    assert found == {name for cls in ESTIMATORS for name in booleans(cls)} | OF_FUNCTIONS


# --- wide data


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("n_features", [1_000_000, 30_000_000])
@pytest.mark.parametrize("cls", ESTIMATORS)
def test_wide_data_are_refused_before_anything_is_allocated(cls, n_features, method):
    X = sparse.csr_array(
        (np.ones(40), (np.arange(40) % 20, np.arange(40) * 7)), shape=(20, n_features)
    )
    instead = (
        "Set n_components to" if cls is GradientCovarianceEstimator else "Use preconditioner='diag"
    )
    gib = 8 * n_features**2 / 2**30
    # Of itself `fit` would make no such matrix
    model = cls() if cls is GradientCovarianceEstimator else cls(preconditioner="exact")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"^X has n_features={n_features}, and") as caught:
            learn(model, method, X, np.arange(20.0) - 9.5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert f"takes {gib:.3g} GiB" in str(caught.value)
    assert instead in str(caught.value)
    assert peak < 2**25 + 128 * n_features  # nothing of the size of its square
    assert vars(model) == model.get_params()


def test_wide_fits_that_need_a_matrix_are_told_what_does_not():
    X = sparse.csr_array((4, 10_000_000))
    with pytest.raises(ValueError, match=r"TruncatedSVD or sklearn\.feature_selection\.$"):
        Classifier(preconditioner="sketch").fit(X, [0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"Use preconditioner='diagonal' and no setting"):
        Regressor(noise="single").fit(X, [0.0, 1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"no setting of mini-batch steps"):
        Regressor(batch_size=4).fit(X, [0.0, 1.0, 2.0, 3.0])


def test_what_is_allowed_is_the_least_of_the_limits(monkeypatch, tmp_path):
    monkeypatch.setattr(_memory, "_CGROUP_LIMITS", (tmp_path / "none", tmp_path / "limit"))
    (tmp_path / "limit").write_text("max\n")
    machine = min(_memory._limits())
    n_features = int(np.sqrt(machine / 8 / 14))
    refuse_wide(n_features, instead="")  # fits, barely
    with pytest.raises(ValueError, match=r"Rather not\.$"):
        refuse_wide(n_features, n_outputs=3, instead="Rather not.")
    (tmp_path / "limit").write_text(f"{2**30}\n")
    with pytest.raises(ValueError, match=r"but this process may have 1 GiB\. Rather not\.$"):
        refuse_wide(5000, instead="Rather not.")


def test_small_matrices_are_not_asked_about(monkeypatch, tmp_path):
    (tmp_path / "limit").write_text("1000\n")
    monkeypatch.setattr(_memory, "_CGROUP_LIMITS", (tmp_path / "limit",))
    refuse_wide(1000, instead="")  # 0.1 GiB
    with pytest.raises(ValueError, match=r"takes 0\.0466 GiB, and 0\.605 GiB are needed in all"):
        refuse_wide(2500, instead="")


def test_a_limit_of_the_address_space_counts(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**29, 2**30))
    with pytest.raises(ValueError, match=r"this process may have 0\.5 GiB"):
        refuse_wide(5000, instead="")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    refuse_wide(5000, instead="")


def test_a_platform_that_tells_no_limit_refuses_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(_memory, "_CGROUP_LIMITS", ())
    monkeypatch.delattr("os.sysconf")
    monkeypatch.setitem(sys.modules, "resource", None)
    refuse_wide(10**9, instead="")


@pytest.mark.parametrize("n_classes", [1, 3])
def test_the_memory_named_is_what_a_fit_takes(rng, n_classes):
    n, p = 700, 300
    X = rng.standard_normal((n, p))
    model = Classifier(alpha=0.1, random_state=0) if n_classes > 1 else Regressor(random_state=0)
    y = rng.integers(3, size=n) if n_classes > 1 else rng.standard_normal(n)
    tracemalloc.start()
    try:
        model.fit(X, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    said = 8 * p**2 * (_memory._MATRICES + n_classes * _memory._MATRICES_AN_OUTPUT)
    assert 0.5 * said < peak < 2 * said


# --- numbers too large


@pytest.mark.parametrize("container", [np.asarray, np.asfortranarray, sparse.csr_array])
@pytest.mark.parametrize("cls", MODELS)
def test_features_whose_sums_overflow_are_refused(data, cls, container):
    X = data[0] / np.abs(data[0]).max() * 1.5e308
    model = cls(alpha=0.0)
    with pytest.raises(ValueError, match=r"^Sums over the rows of X overflow float64") as caught:
        learn(model, "fit", container(X), data[1])
    assert "its largest entry is 1.5e+308 in size. Rescale X" in str(caught.value)
    assert vars(model) == model.get_params()


@pytest.mark.parametrize("unit", [1e300, 1e307, -1.5e308])
def test_targets_whose_sum_overflows_are_fitted(data, unit):
    X, y = data
    y = y / np.abs(y).max()
    model, plain = Regressor().fit(X, y * unit), Regressor().fit(X, y)
    assert_allclose(model.coef_ / unit, plain.coef_, rtol=1e-6)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("cls", MODELS)
def test_features_below_the_limit_are_fitted(data, cls, method):
    X, y = data
    unit = 1e150
    big, plain = (learn(cls(alpha=0.0, random_state=0), method, u * X, y) for u in (unit, 1.0))
    assert_allclose(big.coef_ * unit, plain.coef_, rtol=1e-6)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_coefficients_beyond_float32_are_refused(data, method):
    X, y = (data[0] * 1e-20).astype(np.float32), (data[1] * 1e25).astype(np.float32)
    model = Regressor(random_state=0)
    with pytest.raises(
        ValueError, match=r"^The coefficients overflow float32: the largest is 9"
    ) as e:
        getattr(model, method)(X, y)
    assert "for 3.4e+38 at most. Pass X as float64, or rescale X or y." in str(e.value)
    assert vars(model) == model.get_params()
    double = getattr(model, method)(X.astype(np.float64), y)
    assert np.isfinite(double.coef_).all()
    assert double.score(X.astype(np.float64), y) > 0.5


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_coefficients_that_vanish_in_float32_are_refused(data, method):
    X, y = (data[0] * 1e20).astype(np.float32), (data[1] * 1e-25).astype(np.float32)
    with pytest.raises(
        ValueError, match=r"^The coefficients vanish in float32: the largest is "
    ) as e:
        getattr(Regressor(random_state=0), method)(X, y)
    assert "for 1.18e-38 at least. Pass X as float64, or rescale X or y." in str(e.value)


def test_a_coefficient_of_zero_has_not_vanished(data):
    model = Regressor(random_state=0).fit(data[0].astype(np.float32), np.zeros(60, np.float32))
    assert_array_equal(model.coef_, 0)


# --- rows to hold out


def held_out(y, fraction=0.1, weight=None, cls=Classifier):
    X = np.arange(float(len(y)))[:, None] % 7
    return cls(early_stopping=True, validation_fraction=fraction, alpha=0.1).fit(X, y, weight)


ONE_ROW = np.r_[np.zeros(50), np.ones(49), 2]


@pytest.mark.parametrize(
    ("y", "fraction", "weight", "message"),
    [
        (ONE_ROW, 0.1, None, r"holds out 10 of 100 rows .* the classes \[2\.0\] have one row each"),
        (["a", "b"] * 20 + ["c", "d"], 0.2, None, r"the classes \['c', 'd'\] have one row each"),
        ([0, 0, 0, 1, 1, 1], 0.1, None, r"fewer than the 2 classes\. Increase .* to 0\.34 or more"),
        (np.arange(40) % 10, 0.2, None, r"fewer than the 10 classes\. Increase .* to 0\.25 or mo"),
        (np.arange(40) % 10, 0.9, None, r"leaves 4 to learn 10 classes from\. Decrease validation"),
        ([0] * 90 + [1, 1], 0.95, None, r"leaves no row of the classes \[1\] to learn from\. Decr"),
        # A row without weight is no row
        ([0, 1] * 20, 0.1, np.r_[1.0, 1, np.zeros(37), 1], r"classes \[0\] have one row each"),
    ],
)
def test_classes_too_rare_to_be_held_out_are_named(y, fraction, weight, message):
    with pytest.raises(ValueError, match=message) as caught:
        held_out(np.asarray(y), fraction, weight)
    assert str(caught.value).startswith("early_stopping=True ")
    assert "validation_fraction" in str(caught.value)


def test_rows_must_be_left_to_learn_from():
    with pytest.raises(
        ValueError, match=r"^early_stopping=True holds out 1 of 1 rows .* leaves none"
    ):
        held_out(np.arange(5.0), weight=np.r_[1.0, np.zeros(4)], cls=Regressor)


@pytest.mark.parametrize("fraction", [0.1, 0.34, 0.5])
def test_classes_of_two_rows_are_held_out_without_ado(fraction):
    model = held_out(np.r_[np.zeros(40), np.ones(40), 2, 2], fraction)
    assert_array_equal(model.classes_, [0, 1, 2])
