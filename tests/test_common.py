"""The estimator under scikit-learn's own checks, and as a citizen among its tools."""

import pickle
import unittest
import warnings

import joblib
import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.covariance import EmpiricalCovariance
from sklearn.exceptions import NotFittedError, UnsetMetadataPassedError
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks, get_tags
from sklearn.utils.estimator_checks import estimator_checks_generator

from sklearn_gradhess import CalibrationWarning, GradientCovarianceEstimator, gradient_covariance

# Not parametrize_with_checks: in scikit-learn 1.7 it hands pytest a generator, which is deprecated
CHECKS = list(estimator_checks_generator(GradientCovarianceEstimator()))
NAME = "GradientCovarianceEstimator"
OTHER_LOSSES = ("log_loss", "poisson", "gamma", "tweedie", "huber")
FITTED = ("covariance_", "precision_", "location_", "gradient_covariance_", "mean_gradient_")


@pytest.fixture
def data(rng):
    X = rng.standard_normal((120, 4)) @ rng.standard_normal((4, 4)) + [1, 2, 3, 4]
    return X, X @ [1.0, -1.0, 2.0, 0.5] + rng.standard_normal(120)


def assert_same_fit(a, b):
    for name in FITTED:
        assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.mark.parametrize(
    ("estimator", "check"), CHECKS, ids=[check.func.__name__ for _, check in CHECKS]
)
def test_scikit_learn_check(estimator, check):
    with warnings.catch_warnings():
        if "sample_weight_equivalence" in check.func.__name__:
            # Fits 27 rows of 30 features, of which the estimator rightly warns
            warnings.simplefilter("ignore", CalibrationWarning)
        check(estimator)


# The set_output checks fit frames and transform arrays, and the other way round
@pytest.mark.filterwarnings("ignore:X (has|does not have valid) feature names:UserWarning")
@pytest.mark.parametrize(
    "check",
    [
        "check_dataframe_column_names_consistency",
        "check_get_feature_names_out_error",
        "check_global_output_transform_pandas",
        "check_global_set_output_transform_polars",
        "check_param_validation",
        "check_set_output_transform",
        "check_set_output_transform_pandas",
        "check_set_output_transform_polars",
        "check_transformer_get_feature_names_out",
        "check_transformer_get_feature_names_out_pandas",
    ],
)
def test_check_that_check_estimator_does_not_run(check):
    try:
        getattr(estimator_checks, check)(NAME, GradientCovarianceEstimator())
    except unittest.SkipTest as reason:  # pandas or polars is not there
        pytest.skip(str(reason))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_global_set_output_gives_named_frames(data, library):
    frames = pytest.importorskip(library)
    with sklearn.config_context(transform_output=library):
        Z = GradientCovarianceEstimator(random_state=0).fit_transform(*data)
    assert isinstance(Z, frames.DataFrame)
    assert list(Z.columns) == [f"gradientcovarianceestimator{i}" for i in range(4)]


def test_frame_output_keeps_the_index(data):
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame(data[0], columns=list("abcd"), index=np.arange(120)[::-1])
    estimator = GradientCovarianceEstimator(random_state=0).set_output(transform="pandas")
    assert_array_equal(estimator.fit_transform(X).index, X.index)
    assert_array_equal(estimator.feature_names_in_, list("abcd"))


def test_whitening_leaves_least_squares_predictions_alone(data):
    X, y = data
    pipeline = make_pipeline(GradientCovarianceEstimator(random_state=0), LinearRegression())
    assert_allclose(pipeline.fit(X, y).predict(X), LinearRegression().fit(X, y).predict(X))


@pytest.mark.parametrize("dtype", ["str", "object"])
def test_string_labels_pass_through_a_pipeline(data, dtype):
    X, y = data
    labels = np.where(y > y.mean(), "high", "low").astype(dtype)
    pipeline = make_pipeline(GradientCovarianceEstimator(random_state=0), LogisticRegression())
    assert pipeline.fit(X, labels).score(X, labels) > 0.8
    assert_same_fit(pipeline[0], GradientCovarianceEstimator(random_state=0).fit(X))


def test_several_targets_pass_through_a_pipeline(data):
    X, y = data
    Y = np.column_stack([y, X[:, 0]])
    whiten = GradientCovarianceEstimator(random_state=0)
    assert make_pipeline(whiten, LinearRegression()).fit(X, Y).predict(X).shape == Y.shape
    assert_same_fit(whiten, GradientCovarianceEstimator(random_state=0).fit(X))


def test_a_pipeline_works_inside_multi_output(data):
    X, y = data
    Y = np.column_stack([y, -y])
    inner = make_pipeline(GradientCovarianceEstimator(random_state=0), LinearRegression())
    model = MultiOutputRegressor(inner).fit(X, Y)
    first, second = (fitted[0] for fitted in model.estimators_)
    assert_allclose(first.mean_gradient_, -second.mean_gradient_)


def test_grid_search_tunes_it_inside_a_pipeline(data):
    grid = {
        "gradientcovarianceestimator__batch_size": [1, 4, "auto"],
        "gradientcovarianceestimator__shrinkage": [None, 0.1, "oas"],
        "gradientcovarianceestimator__noise_scale": [1.0, 2.0],
    }
    pipeline = make_pipeline(GradientCovarianceEstimator(random_state=0), LinearRegression())
    search = GridSearchCV(pipeline, grid, cv=3, n_jobs=1, error_score="raise").fit(*data)
    assert_allclose(search.cv_results_["mean_test_score"], search.best_score_)
    assert search.best_score_ > 0.9


def test_grid_search_ranks_it_by_its_own_score(data):
    grid = {"shrinkage": [None, 0.99]}
    search = GridSearchCV(GradientCovarianceEstimator(random_state=0), grid, cv=3, n_jobs=1)
    assert search.fit(data[0]).best_params_ == {"shrinkage": None}


def test_cross_val_score_of_batches_of_one_is_that_of_empirical_covariance(data):
    scores = cross_val_score(GradientCovarianceEstimator(batch_size=1), data[0], cv=4)
    assert_allclose(scores, cross_val_score(EmpiricalCovariance(), data[0], cv=4))


def test_a_pipeline_routes_weights_and_coefficients_to_fit(data, rng):
    X, y = data
    metadata = {
        "sample_weight": rng.uniform(0.5, 2, len(X)),
        "coef": np.array([1.0, -1.0, 2.0, 0.0]),
        "intercept": 0.5,
    }
    with sklearn.config_context(enable_metadata_routing=True):
        whiten = GradientCovarianceEstimator(random_state=0).set_fit_request(
            sample_weight=True, coef=True, intercept=True
        )
        regressor = LinearRegression().set_fit_request(sample_weight=False)
        pipeline = make_pipeline(whiten, regressor).fit(X, y, **metadata)
    assert_same_fit(pipeline[0], GradientCovarianceEstimator(random_state=0).fit(X, y, **metadata))


def test_cross_val_score_routes_weights_to_fit(data, rng):
    X, weight = data[0], rng.uniform(0.5, 2, len(data[0]))
    with sklearn.config_context(enable_metadata_routing=True):
        estimator = GradientCovarianceEstimator(batch_size=1).set_fit_request(sample_weight=True)
        scores = cross_val_score(estimator, X, cv=2, params={"sample_weight": weight})
    last = GradientCovarianceEstimator(batch_size=1).fit(X[:60], sample_weight=weight[:60])
    assert_allclose(scores[1], last.score(X[60:]))


def test_a_weight_nobody_requested_is_refused(data):
    X, y = data
    with sklearn.config_context(enable_metadata_routing=True):
        regressor = LinearRegression().set_fit_request(sample_weight=True)
        pipeline = make_pipeline(GradientCovarianceEstimator(), regressor)
        with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
            pipeline.fit(X, y, sample_weight=np.ones(len(X)))


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_metadata_is_requestable(method):
    with sklearn.config_context(enable_metadata_routing=True):
        estimator = getattr(GradientCovarianceEstimator(), f"set_{method}_request")(
            sample_weight=True, coef="beta", intercept=False
        )
        requests = getattr(estimator.get_metadata_routing(), method).requests
    assert requests == {"sample_weight": True, "coef": "beta", "intercept": False}


def test_every_parameter_is_constrained_and_stored_as_given():
    given = {name: object() for name in GradientCovarianceEstimator().get_params()}
    assert GradientCovarianceEstimator(**given).get_params() == given
    assert given.keys() == GradientCovarianceEstimator._parameter_constraints.keys()


def test_tags_say_that_sparse_and_both_floats_are_taken_as_they_are():
    tags = get_tags(GradientCovarianceEstimator())
    assert tags.input_tags.sparse
    assert tags.transformer_tags.preserves_dtype == ["float64", "float32"]
    assert not tags.target_tags.required


def test_clone_forgets_the_fit_and_keeps_the_parameters(data):
    estimator = GradientCovarianceEstimator(batch_size=2, shrinkage=0.1, random_state=3).fit(*data)
    copy = clone(estimator)
    assert copy.get_params() == estimator.get_params()
    assert vars(copy) == copy.get_params()


def test_set_params_is_the_same_as_init(data):
    settings = {"batch_size": 3, "whitening": "pca", "random_state": 1}
    assert_same_fit(
        GradientCovarianceEstimator().set_params(**settings).fit(*data),
        GradientCovarianceEstimator(**settings).fit(*data),
    )


def test_set_params_names_an_unknown_parameter():
    with pytest.raises(ValueError, match="Invalid parameter 'batchsize'"):
        GradientCovarianceEstimator().set_params(batchsize=3)


def test_repr_shows_the_changed_parameters_only():
    estimator = GradientCovarianceEstimator(batch_size=8, whitening="pca")
    assert repr(estimator) == f"{NAME}(batch_size=8, whitening='pca')"


@pytest.mark.parametrize("fitted", [False, True])
def test_html_repr_shows_name_and_state(data, fitted):
    estimator = GradientCovarianceEstimator(random_state=0)
    html = (estimator.fit(*data) if fitted else estimator)._repr_html_()
    assert NAME in html
    assert ("<span>Fitted</span>" in html) is fitted


@pytest.mark.parametrize("method", ["score", "mahalanobis"])
def test_density_methods_exist_for_the_squared_loss(method):
    assert hasattr(GradientCovarianceEstimator(), method)


@pytest.mark.parametrize("method", ["score", "mahalanobis"])
@pytest.mark.parametrize("loss", OTHER_LOSSES)
def test_density_methods_are_absent_for_other_losses(method, loss):
    estimator = GradientCovarianceEstimator(loss=loss)
    assert not hasattr(estimator, method)
    with pytest.raises(AttributeError, match=f"has no attribute '{method}'") as error:
        getattr(estimator, method)
    assert f"loss='{loss}'" in str(error.value.__cause__)
    assert "need loss='squared_error'" in str(error.value.__cause__)


@pytest.mark.parametrize(
    "dump",
    [
        lambda estimator, path: pickle.loads(pickle.dumps(estimator)),
        lambda estimator, path: joblib.load(joblib.dump(estimator, path)[0]),
    ],
    ids=["pickle", "joblib"],
)
def test_a_pickled_stream_goes_on_as_if_never_pickled(data, tmp_path, dump):
    X, y = data
    estimator = GradientCovarianceEstimator(batch_size=7, shrinkage="oas", random_state=0)
    copy = dump(estimator.partial_fit(X[:50], y[:50]), tmp_path / "estimator.joblib")
    assert_same_fit(estimator.partial_fit(X[50:], y[50:]), copy.partial_fit(X[50:], y[50:]))
    assert_array_equal(estimator.transform(X), copy.transform(X))


def test_feature_union_joins_whitenings(data):
    X, y = data
    union = make_union(
        GradientCovarianceEstimator(random_state=0),
        GradientCovarianceEstimator(random_state=0, whitening="pca"),
    )
    Z = union.fit_transform(X, y)
    assert_allclose(np.cov(Z[:, :4].T, bias=True), np.eye(4), atol=1e-8)
    assert list(union.get_feature_names_out())[::4] == [
        "gradientcovarianceestimator-1__gradientcovarianceestimator0",
        "gradientcovarianceestimator-2__gradientcovarianceestimator0",
    ]


def test_column_transformer_whitens_the_named_columns_alone(data):
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame(data[0], columns=list("abcd"))
    whiten = GradientCovarianceEstimator(random_state=0)
    columns = ColumnTransformer([("w", whiten, ["a", "c"]), ("s", StandardScaler(), ["b"])])
    Z = columns.fit_transform(X, data[1])
    assert_allclose(Z[:, :2], whiten.fit(X[["a", "c"]]).transform(X[["a", "c"]]))
    assert list(columns.get_feature_names_out()) == [
        "w__gradientcovarianceestimator0",
        "w__gradientcovarianceestimator1",
        "s__b",
    ]


def test_column_transformer_takes_sparse_columns(data):
    from scipy import sparse

    whiten = GradientCovarianceEstimator(random_state=0)
    columns = make_column_transformer((whiten, [0, 1]), remainder="drop")
    Z = columns.fit_transform(sparse.csr_array(data[0]), data[1])
    assert_allclose(Z, whiten.fit(data[0][:, :2]).transform(data[0][:, :2]))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_read_only_memory_map_gives_the_fit_of_the_array(data, tmp_path, order, shuffle):
    X, y = np.asarray(data[0], order=order), data[1]
    mapped = joblib.load(joblib.dump((X, y), tmp_path / "data.joblib")[0], mmap_mode="r")
    assert isinstance(mapped[0], np.memmap)
    estimator = GradientCovarianceEstimator(batch_size=5, shuffle=shuffle, random_state=0)
    assert_same_fit(clone(estimator).fit(*mapped), estimator.fit(X, y))
    assert_array_equal(estimator.transform(mapped[0]), estimator.transform(X))


def test_parallel_workers_may_share_a_memory_map(data):
    settings = {"batch_size": 4, "random_state": 0}
    (shared,) = joblib.Parallel(n_jobs=1, max_nbytes=1)(
        joblib.delayed(gradient_covariance)(*data, **settings) for _ in range(1)
    )
    for a, b in zip(shared, gradient_covariance(*data, **settings), strict=True):
        assert_array_equal(a, b)


@pytest.mark.parametrize("noise", ["antithetic", "single", "none"])
def test_the_function_returns_what_the_estimator_stores(data, noise):
    settings = {"noise": noise, "batch_size": 4, "random_state": 0}
    point = {"coef": [1.0, -1.0, 2.0, 0.5], "intercept": 0.1}
    estimator = GradientCovarianceEstimator(**settings).fit(*data, **point)
    covariance, mean_gradient = gradient_covariance(*data, **point, **settings)
    assert_array_equal(covariance, estimator.covariance_)
    assert_array_equal(mean_gradient, estimator.mean_gradient_)


@pytest.mark.parametrize(
    "call",
    [
        lambda e: e.transform([[1.0]]),
        lambda e: e.inverse_transform([[1.0]]),
        lambda e: e.get_precision(),
        lambda e: e.get_feature_names_out(),
        lambda e: e.score([[1.0]]),
        lambda e: e.mahalanobis([[1.0]]),
        lambda e: e.effective_rank_,
        lambda e: e.expected_error_,
    ],
    ids=lambda call: call.__code__.co_names[0],
)
def test_use_before_fit_says_so(call):
    with pytest.raises(NotFittedError, match=f"This {NAME} instance is not fitted yet"):
        call(GradientCovarianceEstimator())
