"""Tables in whatever container they come: the same numbers, and rows like theirs again."""

import re

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import RFE, RFECV, SequentialFeatureSelector
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, Ridge, RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sklearn_gradhess._table import Table
from sklearn_gradhess.metrics import adversarial_accuracy, effective_coef, make_adversarial_scorer

X, Y = load_diabetes(return_X_y=True, scaled=False)
X, Y = X[:120, :4], Y[:120]
NAMES = ["age", "sex", "bmi", "bp"]
SCALE = dict(zip(NAMES, X.std(axis=0), strict=True))
TEXTS = np.array(["good day", "bad day", "fine night", "awful bad"] * 5)


def frame(library):
    """Floats, integers, booleans, texts and holes."""
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    table = pandas.DataFrame(X, columns=NAMES)
    table["whole"] = rng.integers(0, 9, len(X))
    table["flag"] = rng.random(len(X)) < 0.5
    table["group"] = rng.choice(list("uvw"), len(X))
    if library == "pandas":
        return table
    polars = pytest.importorskip("polars")
    pytest.importorskip("narwhals")
    table = polars.DataFrame({name: table[name].to_numpy() for name in table.columns})
    table = table.with_columns(polars.col("group").cast(polars.Categorical))
    if library == "polars":
        return table
    pytest.importorskip("pyarrow")
    return table.to_arrow()


LIBRARIES = ["pandas", "polars", "pyarrow"]
each_library = pytest.mark.parametrize("library", LIBRARIES)


@each_library
def test_every_library_has_the_same_numbers_kinds_and_codes(library):
    table = Table(frame(library))
    assert "".join(table.kinds) == "ffffibO"
    assert table.names == [*NAMES, "whole", "flag", "group"]
    numbers = table.numbers(slice(None))
    assert_array_equal(numbers[:, :4], X)
    assert np.isnan(numbers[:, 6]).all()
    assert table.epsilon == np.finfo(float).eps
    codes, first = table.codes([4, 6])
    pairs = list(zip(table.container.column(4), table.container.column(6), strict=True))
    assert [pairs[first[code]] for code in codes] == pairs
    assert len(set(pairs)) == len(first)


@each_library
def test_rows_are_rebuilt_in_their_library(library):
    original = frame(library)
    table = Table(original)
    movable = np.arange(7) < 4
    rows = table.rebuilt(np.ones((2, 7)), [5, 0], movable)
    assert type(rows) is type(original)
    again = Table(rows)
    assert_array_equal(again.numbers(slice(None))[:, :4], 1)
    assert_array_equal(again.numbers(slice(None))[:, 4], table.numbers([5, 0])[:, 4])
    lent = np.tile([[5], [0]], (1, 7))
    lent[:, 6] = [1, 2]
    mixed = Table(table.rebuilt(np.ones((2, 7)), lent, movable))
    assert mixed.container.column(4).tolist() == table.container.column(4)[[5, 0]].tolist()
    assert mixed.container.column(6).tolist() == table.container.column(6)[[1, 2]].tolist()
    native = table.native(np.array([3, 1]))
    assert type(native) is type(original)
    assert_array_equal(Table(native).numbers(slice(None))[:, :4], X[[3, 1]])


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_models_of_tables_are_scored_as_those_of_pandas(library):
    def scored(table):
        encoder = make_column_transformer(
            (OneHotEncoder(sparse_output=False), ["group"]), remainder=StandardScaler()
        )
        model = make_pipeline(encoder, Ridge()).fit(table, Y)
        budgets = SCALE | {"flag": 1.0}
        return [
            make_adversarial_scorer(0.5, feature_scale=budgets, **settings)(model, table, Y)
            for settings in (
                {},
                {"features": ["bmi", "bp"]},
                {"norm": "inf", "n_columns": 3, "bounds": ({"bmi": 0}, {"bmi": 100})},
                {"categories": ["group"]},
            )
        ] + list(effective_coef(model, table).coef)

    assert_allclose(scored(frame(library)), scored(frame("pandas")), rtol=1e-9, atol=1e-12)


@each_library
def test_a_search_over_a_table(library):
    table = frame(library)
    encoder = make_column_transformer((StandardScaler(), NAMES))
    scorer = make_adversarial_scorer(0.5, feature_scale=SCALE)
    search = GridSearchCV(
        make_pipeline(encoder, Ridge()), {"ridge__alpha": [1, 100]}, scoring=scorer
    )
    assert np.all(np.isfinite(search.fit(table, Y).cv_results_["mean_test_score"]))


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_missing_values_of_every_kind(library):
    polars = pytest.importorskip("polars")
    table = polars.DataFrame(
        {"a": [1.0, None, float("nan"), 2.0], "b": [1, None, 3, 4], "c": ["x", None, "y", "x"]},
        schema_overrides={"a": polars.Float32},
    )
    found = Table(table if library == "polars" else table.to_arrow())
    assert "".join(found.kinds) == "fiO"
    assert found.epsilon == np.finfo(np.float32).eps
    assert_array_equal(np.isnan(found.numbers(slice(None))[:, 0]), [False, True, True, False])
    assert found.codes([1])[0].tolist() == [0, -1, 1, 2]
    assert found.codes([2])[0].tolist() == [0, -1, 1, 0]
    assert len(set(found.missing_patterns(np.array([True, True, False])))) == 3


def test_codes_of_every_kind_of_column():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(
        {"x": [2.0, np.nan, 2.0], "t": pandas.to_datetime(["2020", None, "2021"])}
    )
    table["n"] = pandas.array([1, None, 1], dtype="Int64")
    table["o"] = ["a", 1, None]
    found = Table(table)
    for j, same in ((0, True), (1, False), (2, True), (3, False)):
        codes, first = found.codes([j])
        missing = table.iloc[:, j].isna().to_numpy()
        assert_array_equal(codes < 0, missing)
        assert len(first) == len(set(codes[~missing]))
        assert (codes[0] == codes[2]) == same
    assert Table(np.array([[True, 1, 1.5, "a"]], dtype=object)).kinds.tolist() == list("bifO")


def test_sparse_rows_lend_frozen_columns():
    dense = np.arange(12.0).reshape(4, 3)
    for container in (sparse.csr_array, sparse.csc_matrix):
        table = Table(container(dense))
        movable = np.array([True, False, False])
        rows = table.rebuilt(np.full((2, 3), 7.0), [3, 1], movable).toarray()
        assert_array_equal(rows, [[7, 10, 11], [7, 4, 5]])
        lent = np.array([[0, 3, 2], [0, 1, 0]])
        rows = table.rebuilt(np.full((2, 3), 7.0), lent, movable).toarray()
        assert_array_equal(rows, [[7, 10, 8], [7, 4, 2]])


@pytest.mark.parametrize(
    "texts", [TEXTS, TEXTS.tolist(), TEXTS.astype(object), [{"good": 1}, {"bad": 1}] * 10]
)
def test_texts_get_told_to_score_the_steps_after_the_vectorizer(texts):
    labels = [1, 0, 1, 0] * 5
    vectorizer = DictVectorizer() if isinstance(texts[0], dict) else TfidfVectorizer()
    model = make_pipeline(vectorizer, LogisticRegression()).fit(texts, labels)
    message = r"no columns: an attack moves numbers. Score the steps after the vectorizer on its"
    with pytest.raises(ValueError, match=message):
        adversarial_accuracy(model, texts, labels, radius=0.1)
    scorer = make_adversarial_scorer(0.1, metric="accuracy")
    with pytest.raises(ValueError, match=message):
        scorer(model, texts, labels)
    # and that works
    assert 0 <= scorer(model[1:], model[:1].transform(texts), labels) <= 1


@each_library
def test_a_column_of_texts_gets_told_the_same(library):
    column = frame(library)["group"]
    texts = column.to_pylist() if library == "pyarrow" else column
    with pytest.raises(ValueError, match="Score the steps after the vectorizer on its output"):
        effective_coef(Ridge(), texts)


def test_predictions_in_place_of_rows_are_told_from_rows():
    scorer = make_adversarial_scorer(0.1)
    with pytest.raises(ValueError, match=r"RidgeCV and RidgeClassifierCV hand a scorer their pred"):
        RidgeCV(scoring=scorer).fit(X, Y)
    chosen = RidgeCV([0.1, 1e4], scoring=scorer, cv=3).fit(X, Y)
    grid = GridSearchCV(Ridge(), {"alpha": [0.1, 1e4]}, scoring=scorer, cv=3).fit(X, Y)
    assert chosen.alpha_ == grid.best_params_["alpha"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_in_a_logistic_regression_that_chooses_its_own_penalty():
    labels, rows = np.median(Y) < Y, (X - X.mean(axis=0)) / X.std(axis=0)
    scorer = make_adversarial_scorer(0.1, metric="log_loss")
    model = LogisticRegressionCV(Cs=[1e-3, 1.0], scoring=scorer, cv=3).fit(rows, labels)
    grid = GridSearchCV(LogisticRegression(), {"C": [1e-3, 1.0]}, scoring=scorer, cv=3)
    assert np.ravel(model.C_)[0] == grid.fit(rows, labels).best_params_["C"]


def test_selection_of_features():
    table = frame("pandas")[NAMES]
    plain, by_name = make_adversarial_scorer(0.5), make_adversarial_scorer(0.5, feature_scale=SCALE)
    rows = (X - X.mean(axis=0)) / X.std(axis=0)
    for selector in (RFECV, SequentialFeatureSelector):
        assert selector(Ridge(), scoring=plain, cv=3).fit(rows, Y).support_.any()
    with pytest.raises(
        ValueError, match=r"RFECV and SequentialFeatureSelector .* n_features_to_sel"
    ):
        RFECV(Ridge(), scoring=by_name, cv=3).fit(table, Y)
    with pytest.raises(ValueError, match=r"feature_scale has shape \(4,\), but X has .*RFECV and"):
        RFECV(Ridge(), scoring=make_adversarial_scorer(0.5, feature_scale=X.std(axis=0)), cv=3).fit(
            table, Y
        )
    # as the message says
    search = GridSearchCV(
        make_pipeline(StandardScaler(), RFE(Ridge()), Ridge()),
        {"rfe__n_features_to_select": [1, 2, 4]},
        scoring=by_name,
        cv=3,
    ).fit(table, Y)
    assert np.all(np.isfinite(search.cv_results_["mean_test_score"]))


class Imaginary:
    """A frame that no library knows."""

    columns = ("a",)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (Imaginary(), TypeError, "X is a Imaginary, but only data frames of pandas and, through"),
        (np.ones(3), ValueError, "X must have rows and columns, got shape (3,). Reshape it."),
        (
            np.ones((0, 2)),
            ValueError,
            "X must have rows and columns, got shape (0, 2). Reshape it.",
        ),
        ([], ValueError, "X must have rows and columns, got shape (0,). Reshape it."),
        (np.ones((2, 2, 2)), ValueError, "X must have rows and columns, got shape (2, 2, 2)."),
        (np.array([["a"], ["b"]]), ValueError, "No column is left to move: X has no column of num"),
    ],
)
def test_what_is_no_table(rows, error, message):
    with pytest.raises(error, match=re.escape(message)):
        effective_coef(Ridge(), rows)


def test_lazy_frames_are_told_to_collect():
    polars = pytest.importorskip("polars")
    with pytest.raises(TypeError, match=r"X is a LazyFrame, .* Pass X.collect\(\)"):
        effective_coef(Ridge(), polars.LazyFrame({"a": [1.0]}))
