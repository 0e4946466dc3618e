"""Coefficients found by probing: exact for whatever is affine, and whatever is not is told."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import load_diabetes
from sklearn.decomposition import PCA
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import (
    BaggingRegressor,
    HistGradientBoostingRegressor,
    RandomForestRegressor,
    StackingRegressor,
    VotingRegressor,
)
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    HuberRegressor,
    Lasso,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
)
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    OneHotEncoder,
    PolynomialFeatures,
    SplineTransformer,
    StandardScaler,
)
from sklearn.svm import SVR, LinearSVR
from sklearn.tree import DecisionTreeRegressor

from sklearn_gradhess import _table
from sklearn_gradhess.metrics import EffectiveCoef, effective_coef

X, Y = load_diabetes(return_X_y=True, scaled=False)
N, D = X.shape
TWO = np.column_stack([Y, 3 * X[:, 2] - Y])
ROUNDING = 1e-12


def scaled(*steps):
    return make_pipeline(StandardScaler(), *steps)


def transformed(inverse, func=None):
    return TransformedTargetRegressor(
        LinearRegression(), func=func or np.copy, inverse_func=inverse, check_inverse=False
    )


def clip_at_zero(y):
    return np.clip(y, 0, None)


def clip_far_away(y):
    return np.clip(y, -3000, None)


AFFINE = {
    "ols": LinearRegression(),
    "scaler": scaled(Ridge()),
    "pca": scaled(PCA(4), LinearRegression()),
    "whitening": make_pipeline(PCA(whiten=True), LinearRegression()),
    "selection": make_pipeline(SelectKBest(k=3), LinearRegression()),
    "columns": make_pipeline(
        make_column_transformer((StandardScaler(), [0, 3]), ("drop", [1]), remainder="passthrough"),
        Ridge(),
    ),
    "pls": PLSRegression(3),
    "linear svr": scaled(LinearSVR(random_state=0)),
    "svr linear": scaled(SVR(kernel="linear")),
    "voting": VotingRegressor([("a", LinearRegression()), ("b", Ridge(10))]),
    "bagging": BaggingRegressor(Ridge(), max_features=0.5, random_state=0),
    "stacking": StackingRegressor(
        [("a", LinearRegression()), ("b", Lasso())], Ridge(), passthrough=True
    ),
    "target scaled": TransformedTargetRegressor(LinearRegression(), transformer=StandardScaler()),
    "search": GridSearchCV(scaled(Ridge()), {"ridge__alpha": [1, 10]}),
    "huber": scaled(HuberRegressor()),
    "imputer": make_pipeline(SimpleImputer(), Ridge()),
}
NON_AFFINE = {
    "polynomial": make_pipeline(PolynomialFeatures(2), LinearRegression()),
    "nearly linear": scaled(PolynomialFeatures(2), Ridge(1e5)),
    "tree": DecisionTreeRegressor(random_state=0),
    "stump": DecisionTreeRegressor(max_depth=1),
    "forest": RandomForestRegressor(10, random_state=0),
    "boosting": HistGradientBoostingRegressor(max_iter=5),
    "neighbours": KNeighborsRegressor(),
    "svr": SVR(),
    "flat svr": SVR(C=1e-3),
    "kernel": KernelRidge(kernel="rbf"),
    "clipped": transformed(clip_at_zero),
    "clipped far away": transformed(clip_far_away),
    "log target": transformed(np.exp, np.log),
    "poisson": scaled(PoissonRegressor()),
    "log features": make_pipeline(FunctionTransformer(np.log), LinearRegression()),
    "splines": make_pipeline(SplineTransformer(extrapolation="error"), Ridge()),
    "bins": make_pipeline(KBinsDiscretizer(strategy="uniform"), Ridge()),
}


def each(models):
    return pytest.mark.parametrize("model", models.values(), ids=models.keys())


def frame():
    """Every kind of column that a data frame may have."""
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    table = pandas.DataFrame(X[:, 1:5], columns=list("abcd"))
    table["level"] = pandas.Categorical(rng.choice(list("uvw"), N))
    table["word"] = rng.choice(["p", "q"], N)
    table["int"] = X[:, 0].astype(int)
    table["bool"] = rng.random(N) < 0.3
    table["object"] = pandas.Series(rng.integers(0, 9, N), dtype=object)
    table["nullable"] = pandas.array(rng.integers(0, 9, N), dtype="Int64")
    table["float32"] = X[:, 8].astype(np.float32)
    return table


def encoded(*steps):
    encoder = make_column_transformer(
        (OneHotEncoder(), ["level", "word"]), remainder="passthrough", sparse_threshold=0
    )
    return make_pipeline(encoder, *steps, Ridge())


@each(AFFINE)
def test_affine_predictors_are_found_to_rounding(model):
    model.fit(X, Y)
    result = effective_coef(model, X)
    assert isinstance(result, EffectiveCoef)
    assert result.residual < ROUNDING
    assert result.is_affine
    assert not result.is_constant
    assert not result.frozen.any()
    assert_allclose(X @ result.coef + result.intercept, model.predict(X), rtol=1e-10)


@each(NON_AFFINE)
def test_other_predictors_are_recognised(model):
    result = effective_coef(model.fit(X, Y), X)
    assert not result.is_affine
    assert not result.is_constant
    assert result.residual > 1e-3


def test_the_coefficients_are_those_of_the_model_in_raw_units():
    model = Ridge().fit(X, Y)
    assert_allclose(effective_coef(model, X).coef, model.coef_, rtol=1e-11)
    assert_allclose(effective_coef(model, X).intercept, model.intercept_, rtol=1e-11)
    pipeline = scaled(Ridge()).fit(X, Y)
    assert_allclose(
        effective_coef(pipeline, X).coef, pipeline[-1].coef_ / pipeline[0].scale_, rtol=1e-11
    )


def test_units_of_any_size():
    unit = 10.0 ** np.array([-6, 6, 0, -3, 3, -6, 6, 1, -1, 2])
    model = scaled(LinearRegression()).fit(X * unit, Y)
    result = effective_coef(model, X * unit)
    assert result.residual < ROUNDING
    assert_allclose(result.coef, model[-1].coef_ / model[0].scale_, rtol=1e-10)


def test_a_large_offset_is_no_curvature():
    shifted = X + np.where(np.arange(D) == 0, 1.6e9, 0)  # seconds since 1970
    result = effective_coef(LinearRegression().fit(shifted, Y), shifted)
    assert result.is_affine
    assert result.residual < 1e-7


def test_constant_columns_have_coefficients_too():
    model = Ridge().fit(X, Y)
    fixed = X.copy()
    fixed[:, 1], fixed[:, 2], fixed[:, 3] = 0.0, 1e6, 1 + 1e-16 * np.arange(N)
    result = effective_coef(model, fixed)
    assert result.residual < ROUNDING
    assert_allclose(result.coef, model.coef_, rtol=1e-8)
    assert_allclose(effective_coef(model, X[:1]).coef, model.coef_, rtol=1e-9)


@pytest.mark.parametrize("model", [DummyRegressor(), Lasso(1e6), scaled(Lasso(1e6))])
def test_constant_predictors_are_said_to_be_so(model):
    result = effective_coef(model.fit(X, Y), X)
    assert result.is_constant
    assert result.is_affine
    assert result.residual == 0
    assert_array_equal(result.coef, np.zeros(D))


def test_a_predictor_that_hardly_varies_is_affine():
    assert effective_coef(Ridge(1e15).fit(X, Y), X).is_affine


@pytest.mark.parametrize("depth", [1, None])
def test_a_tree_with_one_rare_leaf_is_not_constant(depth):
    rare = np.where(np.arange(N) == 7, 100.0, 0.0)
    result = effective_coef(DecisionTreeRegressor(max_depth=depth, random_state=0).fit(X, rare), X)
    assert not result.is_constant
    assert not result.is_affine


def test_a_spike_at_one_row_is_not_constant():
    spike = SimpleNamespace(predict=lambda rows: 1.0 * np.all(rows == X[7], axis=1))
    result = effective_coef(spike, X)
    assert result.residual == np.inf
    assert not result.is_constant
    assert not result.is_affine


@pytest.mark.parametrize(
    "model", [MultiOutputRegressor(Ridge()), LinearRegression(), PLSRegression(2)]
)
def test_several_outputs(model):
    model.fit(X, TWO)
    result = effective_coef(model, X)
    assert result.residual < ROUNDING
    assert result.coef.shape == (2, D)
    assert result.intercept.shape == (2,)
    assert_allclose(X @ result.coef.T + result.intercept, model.predict(X), rtol=1e-10)


@pytest.mark.parametrize("container", [sparse.csr_matrix, sparse.csc_array, sparse.coo_array])
def test_sparse_features(container):
    rng = np.random.default_rng(0)
    dense = sparse.csr_array(rng.random((200, 300)) * (rng.random((200, 300)) < 0.02))
    target = dense @ np.linspace(-1, 1, 300)
    model = make_pipeline(MaxAbsScaler(), Ridge()).fit(dense, target)
    result = effective_coef(model, container(dense))
    assert result.residual < ROUNDING
    assert_allclose(result.coef, model[-1].coef_ / model[0].scale_, atol=1e-12)
    some = effective_coef(model, container(dense), features=[3, 5])
    assert_allclose(some.coef[[3, 5]], result.coef[[3, 5]], atol=1e-12)
    assert np.flatnonzero(~some.frozen).tolist() == [3, 5]


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_narrow_types_are_probed_in_double_precision(dtype):
    narrow = X.astype(dtype)
    model = LinearRegression().fit(narrow, Y)
    result = effective_coef(model, narrow)
    assert result.is_affine
    assert result.residual < 1e-6
    assert_allclose(result.coef, model.coef_, rtol=1e-4 if dtype == np.float32 else 1e-10)


@pytest.mark.parametrize("add_indicator", [False, True])
def test_missing_values_stay_missing(add_indicator):
    holes = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)
    model = make_pipeline(SimpleImputer(add_indicator=add_indicator), Ridge()).fit(holes, Y)
    result = effective_coef(model, holes)
    assert result.residual < ROUNDING
    assert_allclose(result.coef, model[-1].coef_[:D], rtol=1e-9)


def test_data_frames_are_rebuilt_and_categories_frozen():
    table = frame()
    model = encoded(StandardScaler()).fit(table, Y)
    result = effective_coef(model, table)
    assert result.residual < ROUNDING
    assert table.columns[result.frozen].tolist() == ["level", "word"]
    assert_array_equal(result.coef[result.frozen], 0)
    expected = model[-1].coef_ / model[1].scale_
    assert_allclose(result.coef[~result.frozen], expected[5:], rtol=1e-9)


def test_a_frame_is_probed_with_its_columns_and_frozen_dtypes():
    table, seen = frame(), []

    class Watch(RegressorMixin, BaseEstimator):
        def predict(self, rows):
            seen.append(rows)
            return rows["a"].to_numpy(dtype=float)

    effective_coef(Watch(), table)
    assert seen[0].dtypes.equals(table.dtypes)
    for rows in seen:
        assert rows.columns.equals(table.columns)
        assert rows["level"].dtype == table["level"].dtype
        assert rows["word"].dtype == table["word"].dtype


def test_an_interaction_with_a_category_is_not_affine():
    table = frame()
    model = encoded(PolynomialFeatures(2, interaction_only=True)).fit(table, Y)
    assert not effective_coef(model, table).is_affine


def test_mixed_arrays_of_objects():
    table = frame()[["a", "word", "int", "bool"]]
    model = make_pipeline(
        make_column_transformer((OneHotEncoder(), [1]), remainder="passthrough"), Ridge()
    ).fit(table.to_numpy(), Y)
    for rows in (table.to_numpy(), table.to_numpy().tolist()):
        result = effective_coef(model, rows)
        assert result.residual < ROUNDING
        assert result.frozen.tolist() == [False, True, False, False]


def test_what_is_not_affine_may_stand_still():
    model = make_pipeline(
        make_column_transformer(
            (KBinsDiscretizer(strategy="uniform"), [2]), remainder="passthrough"
        ),
        Ridge(),
    ).fit(X, Y)
    assert not effective_coef(model, X).is_affine
    result = effective_coef(model, X, features=np.arange(D) != 2)
    assert result.residual < ROUNDING
    assert result.coef[2] == 0
    assert result.frozen[2]


def test_features_by_name_position_and_mask_agree():
    table = frame()
    model = encoded().fit(table, Y)
    by_name = effective_coef(model, table, features=["b", "int"])
    place = [table.columns.get_loc(name) for name in ("b", "int")]
    for features in (place, np.isin(table.columns, ["b", "int"]), np.array(place) - 11):
        again = effective_coef(model, table, features=features)
        assert_array_equal(again.coef, by_name.coef)
        assert_array_equal(np.flatnonzero(~again.frozen), place)


def test_a_slope_at_the_scale_of_the_features_where_it_is_not_affine():
    model = SimpleNamespace(predict=lambda rows: rows[:, 0] ** 2)
    line = np.linspace(0, 10, 101)[:, None]
    assert_allclose(effective_coef(model, line).coef, [10.0])  # between the deciles 1 and 9


def test_decision_functions():
    labels = np.digitize(Y, [100, 200])
    model = scaled(LogisticRegression()).fit(X, labels)
    result = effective_coef(model, X, response_method="decision_function")
    assert result.residual < ROUNDING
    assert_allclose(result.coef, model[-1].coef_ / model[0].scale_, rtol=1e-9)


def test_cost_and_memory(monkeypatch):
    sizes = []

    def predict(rows):
        sizes.append(rows.shape[0])
        return rows @ np.arange(rows.shape[1])

    wide = np.random.default_rng(0).standard_normal((500, 400))
    effective_coef(SimpleNamespace(predict=predict), wide)
    assert sum(sizes) <= 2 * 400 + 160
    assert len(sizes) <= 5
    sizes.clear()
    monkeypatch.setattr(_table, "BATCH_VALUES", 10_000)
    assert effective_coef(SimpleNamespace(predict=predict), wide).residual < ROUNDING
    assert max(sizes) <= 25


def fitted():
    return LinearRegression().fit(X, Y)


def constant(value):
    return SimpleNamespace(predict=lambda rows: np.full(len(rows), value))


CODES = make_pipeline(
    make_column_transformer((OneHotEncoder(), ["int"]), remainder="passthrough"), Ridge()
)


WHOLE_NUMBERS_ONLY = SimpleNamespace(
    predict=lambda rows: np.where(rows[:, 0] % 1 == 0, rows[:, 0], np.nan)
)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: effective_coef(Ridge(), X), NotFittedError, "Ridge instance is not fitted yet"),
        (lambda: effective_coef(fitted(), X[:, 1:]), ValueError, "X has 9 features, but"),
        (lambda: effective_coef(fitted(), X[0]), ValueError, "must have rows and columns, got sh"),
        (lambda: effective_coef(fitted(), X[:0]), ValueError, "must have rows and columns, got sh"),
        (lambda: effective_coef(object(), X), ValueError, "object has no predict"),
        (
            lambda: effective_coef(constant(np.nan), X),
            ValueError,
            "SimpleNamespace.predict returns NaN or infinity for 24 of 24 rows of X.*impute",
        ),
        (lambda: effective_coef(constant("a"), X), ValueError, "returns <U1 of shape .*not one nu"),
        (
            lambda: effective_coef(LogisticRegression().fit(X[:, :1], Y > 100), X[:, :1]),
            ValueError,
            "returns labels.*adversarial_accuracy",
        ),
        (
            lambda: effective_coef(fitted(), X, features=["a"]),
            ValueError,
            "features names ['a'], which are not columns of X. X is no data frame: pass positions",
        ),
        (
            lambda: effective_coef(fitted(), X, features=[3, 10]),
            ValueError,
            "features must be names, positions or a mask of the 10 columns",
        ),
        (
            lambda: effective_coef(fitted(), X, features=[True]),
            ValueError,
            "features must be names, positions or a mask of the 10 columns",
        ),
        (lambda: effective_coef(fitted(), X, features=[]), ValueError, "features must be names"),
        (
            lambda: effective_coef(fitted(), X, features=np.zeros(D, bool)),
            ValueError,
            "No column is left to move",
        ),
        (
            lambda: effective_coef(constant(1.0), np.array([["a", "b"]])),
            ValueError,
            "No column is left to move: X has no column of numbers",
        ),
        (
            lambda: effective_coef(encoded().fit(frame(), Y), frame(), features=["a", "word"]),
            ValueError,
            "features names 'word', which holds no numbers.*Leave it out",
        ),
        (
            lambda: effective_coef(encoded().fit(frame(), Y), frame(), features=["z"]),
            ValueError,
            "features names ['z'], which are not columns of X. Its columns are 'a', 'b'",
        ),
        (
            lambda: effective_coef(encoded().fit(frame(), Y), frame().rename(columns=str.upper)),
            ValueError,
            "columns are missing",
        ),
        (
            lambda: effective_coef(CODES.fit(frame()[["a", "int"]], Y), frame()[["a", "int"]]),
            ValueError,
            "Pipeline.predict takes rows of X as they are, but not with column 'int' moved within "
            "the range of the data (Found unknown categories.*category dtype.*features=",
        ),
        (
            lambda: effective_coef(WHOLE_NUMBERS_ONLY, np.arange(10.0)[:, None]),
            ValueError,
            "returns NaN or infinity where column 0.* moves within the range.*features=",
        ),
        (
            lambda: effective_coef(fitted(), SimpleNamespace(columns=["a"])),
            TypeError,
            "only data frames of pandas and, .* can be rebuilt. Pass X.to_pandas() or X.to_numpy()",
        ),
    ],
)
def test_bad_input(call, error, message):
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    with pytest.raises(error, match=f"(?s){pattern}"):
        call()
