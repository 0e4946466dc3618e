"""What an attack may do to a table, against every attack that it may do."""

import itertools
import re

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from sklearn_gradhess import GradientCovarianceEstimator
from sklearn_gradhess._attack import Attack
from sklearn_gradhess._mahalanobis import conditional_covariance
from sklearn_gradhess._table import Table
from sklearn_gradhess.metrics import dual_norm

N = 12
NAMES = ["u", "v", "count", "flag", "level", "h_a", "h_b"]


def attack(norm=2, scale=None, features=None, bounds=None, covariance=None, **kwargs):
    return Attack(norm, scale, features, bounds, covariance, **kwargs)


def mixed(seed=0):
    """Floats, integers, booleans, levels, and a one-hot group that drops its first level."""
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(seed)
    table = pandas.DataFrame(rng.normal(size=(N, 2)), columns=NAMES[:2])
    table["count"] = rng.integers(0, 4, N)
    table["flag"] = rng.random(N) < 0.5
    table["level"] = rng.choice(["p", "q", "r"], N)
    table[["h_a", "h_b"]] = np.eye(3)[:, 1:][np.arange(N) % 3]
    return table


def brute_force(table, radius, scale, bounds, k, coef, effects):
    """Greatest rise of each row by any choice of ends, whole steps, flips and levels."""
    best = np.zeros(len(table))
    one_hot = table[["h_a", "h_b"]].to_numpy()
    hot = np.where(one_hot.any(axis=1), 1 + one_hot.argmax(axis=1), 0)
    level = np.array(["pqr".index(value) for value in table["level"]])
    for i in range(len(table)):
        x = table.iloc[i]
        lows = [max(bounds[0] - x[c], -radius * s) for c, s in zip(NAMES[:3], scale, strict=True)]
        highs = [min(bounds[1] - x[c], radius * s) for c, s in zip(NAMES[:3], scale, strict=True)]
        whole = range(int(np.ceil(lows[2] - 1e-9)), int(np.floor(highs[2] + 1e-9)) + 1)
        choices = [
            [0.0, lows[0] * coef[0], highs[0] * coef[0]],
            [0.0, lows[1] * coef[1], highs[1] * coef[1]],
            [0.0, *(step * coef[2] for step in whole if step)],
            [0.0] + [coef[3] * (1 - 2 * x["flag"])] * (radius >= 1),
            [0.0, *(effects[0][j] - effects[0][level[i]] for j in range(3) if j != level[i])],
            [0.0, *(effects[1][j] - effects[1][hot[i]] for j in range(3) if j != hot[i])],
        ]
        for choice in itertools.product(*[range(len(c)) for c in choices]):
            if k is None or np.count_nonzero(choice) <= k:
                gain = sum(c[j] for c, j in zip(choices, choice, strict=True))
                best[i] = max(best[i], gain)
    return best


@pytest.mark.parametrize("k", [None, 1, 2, 4])
@pytest.mark.parametrize("radius", [0.4, 1.0, 2.5])
def test_boxes_steps_flips_and_levels_against_all_of_them(radius, k):
    table = mixed()
    rng = np.random.default_rng(1)
    coef = np.zeros((2, 7))
    coef[:, :4] = rng.normal(size=(2, 4))
    scale = {"u": 1.0, "v": 0.5, "count": 1.0, "flag": 1.0}
    spec = attack(
        "inf", scale, bounds=(-2.6, 5.0), n_columns=k, categories={"l": "level", "hot": "h"}
    )
    found = spec.on(Table(table))
    assert [group.name for group in found.groups] == ["l", "hot"]
    # codes are numbered by what is in X: find which is which
    order = [
        [table["level"].iloc[found.groups[0].sources].tolist().index(v) for v in "pqr"],
        [
            table[["h_a", "h_b"]].iloc[found.groups[1].sources].to_numpy().tolist().index(v)
            for v in ([0, 0], [1, 0], [0, 1])
        ],
    ]
    by_level = rng.normal(size=(2, 2, 3))  # category, output, level
    effects = [np.empty((2, 3)), np.empty((2, 3))]
    for g in (0, 1):
        effects[g][:, order[g]] = by_level[g]
    low, high = found.changes(coef, radius, slice(None), effects)
    for output in (0, 1):
        for sign, end in ((1, high), (-1, -low)):
            expected = brute_force(
                table,
                radius,
                [1.0, 0.5, 1.0],
                (-2.6, 5.0),
                k,
                sign * coef[output],
                sign * by_level[:, output],
            )
            assert_allclose(end[:, output], expected, rtol=1e-12, atol=1e-12)
            moves = found.moves(
                sign * coef[output], radius, slice(None), [sign * e[output] for e in effects]
            )
            assert_allclose(moves.gain, expected, rtol=1e-12, atol=1e-12)
            assert_allclose(
                sign * found.rise(coef, effects, slice(None), moves)[:, output],
                expected,
                atol=1e-12,
            )


@pytest.mark.parametrize("p", [1, 1.5, 2, 7])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_few_columns_of_a_ball_are_the_best_subset(p, k):
    rng = np.random.default_rng(0)
    x, w, scale = rng.normal(size=(5, 4)), rng.normal(size=(2, 4)), rng.uniform(0.5, 2, 4)
    found = attack(p, scale, n_columns=k).on(Table(x))
    best = np.max(
        [
            dual_norm(w[:, list(s)], p, scale=scale[list(s)])
            for s in itertools.combinations(range(4), k)
        ],
        axis=0,
    )
    assert_allclose(found.dual(w), best, rtol=1e-12)
    assert_allclose(dual_norm(w, p, scale=scale, n_columns=k), best, rtol=1e-12)
    for output in (0, 1):
        moves = found.moves(w[output], 0.7, slice(None))
        assert_allclose(moves.gain, 0.7 * best[output], rtol=1e-12)
        assert np.all(np.count_nonzero(moves.delta, axis=1) <= k)
        length = np.linalg.norm(moves.delta / scale, ord=p, axis=1)
        assert_allclose(length, 0.7, rtol=1e-12)


@pytest.mark.parametrize("norm", [1, 1.5, 2, np.inf, "mahalanobis"])
@pytest.mark.parametrize("holes", [False, True])
def test_moves_attain_the_changes_and_stay_inside(norm, holes):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 4))
    w = rng.normal(size=(20, 4))  # another direction for every row
    covariance = None
    if norm == "mahalanobis":
        covariance = np.cov(rng.normal(size=(4, 9)))
    elif holes:
        x[rng.random(x.shape) < 0.3] = np.nan
    found = attack(norm, covariance=covariance).on(Table(x))
    moves = found.moves(w, 0.5, slice(None))
    high = [found.changes(w[i : i + 1], 0.5, [i])[1][0, 0] for i in range(20)]
    assert_allclose(moves.gain, high, rtol=1e-12)
    assert_allclose(np.sum(moves.delta * w, axis=1), high, rtol=1e-12)
    assert np.all(moves.delta[np.isnan(x)] == 0)
    if norm == "mahalanobis":
        square = np.einsum("ij,jk,ik->i", moves.delta, np.linalg.inv(covariance), moves.delta)
        assert_allclose(square, 0.25, rtol=1e-9)
    else:
        assert np.all(np.linalg.norm(moves.delta, ord=norm, axis=1) <= 0.5 * (1 + 1e-12))
    attacked = found.attacked(slice(None), moves)
    assert_allclose(attacked, x + moves.delta)


def test_attacked_rows_come_in_their_container_with_other_levels():
    table = mixed()
    found = attack("inf", categories=["level", "h"]).on(Table(table))
    effects = [np.arange(3.0), -np.arange(3.0)]
    moves = found.moves(np.ones(7), 1.0, slice(None), effects)
    rows = found.attacked(slice(None), moves)
    assert rows.columns.tolist() == NAMES
    assert_array_equal(rows["count"], table["count"] + 1)
    assert rows["flag"].all()
    best = table["level"].iloc[found.groups[0].sources[2]]
    assert rows["level"].tolist() == [best] * N
    first = table[["h_a", "h_b"]].iloc[found.groups[1].sources[0]].tolist()
    assert rows[["h_a", "h_b"]].to_numpy().tolist() == [first] * N


def test_sparse_one_hot_groups_change_too():
    rows = sparse.csr_array(np.column_stack([np.arange(6.0), np.eye(3)[[0, 1, 2, 0, 1, 2]]]))
    found = attack(2, categories=[[1, 2, 3]]).on(Table(rows))
    level = found.groups[0].codes[2]
    effects = [np.eye(3)[level]]
    attacked = found.attacked(
        slice(None), found.moves(np.array([1.0, 0, 0, 0]), 2.0, slice(None), effects)
    )
    assert_allclose(attacked.toarray()[:, 0], np.arange(6.0) + 2)
    assert_allclose(attacked.toarray()[:, 1:], np.tile([0.0, 0.0, 1.0], (6, 1)))


def test_a_missing_level_stays_and_nobody_gets_it():
    table = mixed()
    table.loc[3, "level"] = None
    found = attack(2, categories=["level"]).on(Table(table))
    assert found.groups[0].codes[3] == -1
    assert len(found.groups[0].sources) == 3
    moves = found.moves(np.zeros(7), 1.0, slice(None), [np.array([0.0, 1.0, 2.0])])
    assert moves.gain[3] == 0
    rows = found.attacked(slice(None), moves)
    assert rows["level"].isna().tolist() == table["level"].isna().tolist()


def test_a_budget_by_name_makes_a_category_cost_one_step():
    table = mixed()
    spec = attack(2, {"u": 1.0, "colour": 0.5}, categories={"colour": "level"})
    found = spec.on(Table(table))
    effects = [np.array([[0.0, 1.0, 2.0]])]
    before = found.changes(np.zeros((1, 7)), 1.9, slice(None), effects)[1]
    after = found.changes(np.zeros((1, 7)), 2.0, slice(None), effects)[1]
    assert_array_equal(before, np.zeros((N, 1)))
    assert after.max() == 2.0
    assert_array_equal(found.mask, np.arange(7) == 0)
    free = attack(2, categories=["level"]).on(Table(table))
    assert free.changes(np.zeros((1, 7)), 0.0, slice(None), effects)[1].max() == 0
    assert free.changes(np.zeros((1, 7)), 1e-9, slice(None), effects)[1].max() == 2.0


def test_whole_steps_are_those_of_the_dtype_or_those_that_are_named():
    table = mixed()
    auto = attack(np.inf).on(Table(table))
    assert_array_equal(auto.whole, np.isin(NAMES, ["count", "flag"]))
    named = attack(np.inf, integer=["u"]).on(Table(table))
    assert_array_equal(named.whole, np.isin(NAMES, ["u"]))
    none = attack(np.inf, integer=None).on(Table(table))
    assert not none.whole.any()
    assert not attack(2).on(Table(table)).whole.any()
    w = np.eye(7)[[2]]
    assert_allclose(auto.changes(w, 1.7, [0])[1], 1.0)
    assert_allclose(none.changes(w, 1.7, [0])[1], 1.7)
    # 0.1 * 3 is three tenths of ten, whatever its last digit
    tenth = attack(np.inf, np.full(1, 0.1)).on(Table(np.arange(3)[:, None]))
    assert_allclose(tenth.changes(np.ones((1, 1)), 30.0, slice(None))[1], 3.0)


def named_covariance(kind):
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 4)) @ rng.normal(size=(4, 4))
    columns = list("abcd")
    truth = np.cov(x.T, bias=True)
    order = [2, 0, 3, 1]
    names = [columns[j] for j in order]
    frame = pandas.DataFrame(truth[np.ix_(order, order)], columns=names, index=names)
    if kind == "frame":
        return frame, truth
    if kind == "rows in another order":
        return frame.iloc[::-1], truth
    estimator = GradientCovarianceEstimator(random_state=0)
    estimator.fit(pandas.DataFrame(x[:, order], columns=names))
    inverse = np.argsort(order)
    return estimator, estimator.covariance_[np.ix_(inverse, inverse)]


@pytest.mark.parametrize("kind", ["frame", "rows in another order", "estimator"])
@pytest.mark.parametrize("features", [None, ["a", "c"], ["d"]])
def test_a_covariance_with_names_is_matched_by_them(kind, features):
    pandas = pytest.importorskip("pandas")
    covariance, truth = named_covariance(kind)
    table = pandas.DataFrame(np.zeros((3, 4)), columns=list("abcd"))
    table["text"] = "x"
    found = attack("mahalanobis", features=features, covariance=covariance).on(Table(table))
    a = np.isin(list("abcd"), features or list("abcd"))
    precision = np.linalg.inv(truth)[np.ix_(a, a)]
    assert_allclose(found.covariance, np.linalg.inv(precision), rtol=1e-9)


def test_a_covariance_of_other_names_is_refused():
    pandas = pytest.importorskip("pandas")
    covariance, _ = named_covariance("frame")
    table = pandas.DataFrame(np.zeros((3, 4)), columns=list("abcz"))
    spec = attack("mahalanobis", covariance=covariance)
    with pytest.raises(ValueError, match=r"\['d'\] are not columns of X. \['z'\] are under attack"):
        spec.on(Table(table))


def test_conditioning_does_not_depend_on_units():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 5)) @ rng.normal(size=(5, 5))
    mask = np.array([True, True, False, False, False])
    table = Table(x)
    plain = conditional_covariance(np.cov(x.T), table, mask)
    unit = np.array([1.0, 1.0, 1e-9, 1e9, 1e3])
    again = conditional_covariance(np.cov((x * unit).T), table, mask)
    assert_allclose(again, plain, rtol=1e-9)


def test_a_column_that_the_frozen_ones_determine_does_not_move():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 3))
    x = np.column_stack([x, x @ [1.0, 2.0, 0.0]])
    covariance = np.cov(x.T)
    found = attack("mahalanobis", features=[2, 3], covariance=covariance).on(Table(x))
    assert_allclose(found.covariance[1], 0.0, atol=1e-12)
    assert_allclose(found.dual(np.array([0.0, 0.0, 0.0, 5.0])), 0.0, atol=1e-9)


@pytest.mark.parametrize(("scale", "features"), [(np.zeros(3), None), ([0.0, 1.0, 2.0], [0])])
def test_an_attack_that_can_move_nothing(scale, features):
    message = re.escape(
        "feature_scale is zero for every column under attack: nothing can move. Give one of them a "
        "positive scale, or attack others by features."
    )
    with pytest.raises(ValueError, match=message):
        attack(2, scale, features).on(Table(np.ones((2, 3))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_columns": 0}, "n_columns must be an integer >= 1 or None, got 0"),
        ({"n_columns": True}, "n_columns must be an integer >= 1 or None, got True"),
        (
            {"n_columns": 2, "norm": "mahalanobis", "covariance": np.eye(7)},
            "n_columns does not go with norm='mahalanobis'",
        ),
        ({"norm": None}, "norm must be >= 1, inf or 'mahalanobis', got None"),
        ({"integer": "all"}, "integer must be 'auto', None or a list of columns, got 'all'"),
        ({"integer": ["u"]}, "integer needs norm=inf, got norm=2. Leave it out"),
        ({"integer": ["z"], "norm": np.inf}, "integer names ['z'], which are not columns of X"),
        ({"categories": "level"}, "categories must be a list of columns or of one-hot groups"),
        ({"categories": 3}, "categories must be a list of columns or of one-hot groups"),
        ({"categories": []}, "categories names no column. Pass None"),
        ({"categories": ["colour"]}, "categories names ['colour'], which are not columns of X"),
        ({"categories": ["h", "h_a"]}, "categories names 'h_a' twice"),
        ({"categories": [["u", "v"]]}, "takes 'u', 'v' for a one-hot group, but row"),
    ],
)
def test_bad_attacks(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        attack(**settings).on(Table(mixed()))
