import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import pinvh, sqrtm
from sklearn.decomposition import PCA

from sklearn_gradhess._preconditioner import factorize, whitening

EPS = np.finfo(np.float64).eps
METHODS = ("zca", "pca", "cholesky")
methods = pytest.mark.parametrize("method", METHODS)


def random_root(rng, d=5, condition=100.0, n_rows=None):
    """Root of a covariance whose eigenvalues fall geometrically from one."""
    left, right = (np.linalg.qr(rng.standard_normal((m, d)))[0] for m in (n_rows or d, d))
    return left * np.geomspace(1, condition**-0.5, d) @ right.T


def singular_root(rng):
    """Ten rows of six features: the fourth is twice the first, the sixth the sum of two others."""
    root = rng.standard_normal((10, 6))
    root[:, 3] = 2 * root[:, 0]
    root[:, 5] = root[:, 1] + root[:, 2]
    return root


# --- factorize


@pytest.mark.parametrize("n_rows", [5, 6, 40])
@pytest.mark.parametrize("damping", [0.0, 1e-3, 10.0])
def test_root_is_triangular_and_squares_to_the_damped_covariance(n_rows, damping, rng):
    factor = random_root(rng, n_rows=n_rows)
    made = factorize(factor, damping=damping)
    expected = factor.T @ factor + damping * np.eye(5)
    np.testing.assert_allclose(
        made.root.T @ made.root, expected, rtol=0, atol=1e-13 * (1 + damping)
    )
    assert not np.tril(made.root, -1).any()
    assert np.all(np.diag(made.root) > 0)
    assert (made.rank, made.n_clipped, made.damping) == (5, 0, damping)


def test_a_triangular_factor_is_taken_as_it_is(rng):
    factor = np.triu(rng.standard_normal((4, 4)))
    np.fill_diagonal(factor, np.abs(np.diag(factor)) + 1)
    np.testing.assert_array_equal(factorize(factor).root, factor)


def test_signs_of_a_triangular_factor_do_not_matter(rng):
    factor = np.triu(rng.standard_normal((4, 4))) + 2 * np.eye(4)
    made = factorize(np.array([1.0, -1.0, 1.0, -1.0])[:, None] * factor)
    np.testing.assert_allclose(made.root, factor, atol=1e-14)


def test_the_factor_is_not_changed(rng):
    factor = singular_root(rng)
    before = factor.copy()
    made = factorize(factor)
    for method in METHODS:
        made.whitening(method)
    made.solve(before)
    np.testing.assert_array_equal(factor, before)


@pytest.mark.parametrize("n_rows", [0, 1, 3])
def test_fewer_rows_than_columns_bound_the_rank(n_rows, rng):
    factor = rng.standard_normal((n_rows, 5))
    made = factorize(factor)
    assert (made.rank, made.n_clipped) == (n_rows, 5 - n_rows)
    np.testing.assert_allclose(
        made.inverse(), pinvh(factor.T @ factor, rtol=1e-10), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("n_rows", [1, 3])
def test_damping_fills_the_rank_that_the_rows_lack(n_rows, rng):
    factor = rng.standard_normal((n_rows, 5))
    made = factorize(factor, damping=0.5)
    assert made.n_clipped == 0
    expected = np.linalg.inv(factor.T @ factor + 0.5 * np.eye(5))
    np.testing.assert_allclose(made.inverse(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("damping", [-1e-3, np.nan])
def test_a_negative_damping_is_refused(damping):
    with pytest.raises(ValueError, match=rf"damping must be >= 0, got {damping:g}\."):
        factorize(np.eye(2), damping=damping)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_factor_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="covariance factor has NaN or infinite entries"):
        factorize(np.array([[1.0, value], [0.0, 1.0]]))


# --- solve and inverse


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_solve_and_inverse_are_those_of_dense_algebra(condition, damping, rng):
    factor = random_root(rng, condition=condition)
    sigma, g = factor.T @ factor + damping * np.eye(5), rng.standard_normal((3, 5))
    made = factorize(factor, damping=damping)
    tolerance = {"rtol": 0, "atol": 100 * EPS * condition**2}  # forward error: eps times condition
    np.testing.assert_allclose(made.solve(g), np.linalg.solve(sigma, g.T).T, **tolerance)
    np.testing.assert_allclose(made.solve(g[0]), np.linalg.solve(sigma, g[0]), **tolerance)
    np.testing.assert_allclose(made.inverse(), np.linalg.inv(sigma), **tolerance)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (0, 5), (7, 5)])
@pytest.mark.parametrize("rank", [5, 3])
def test_solve_keeps_the_shape_of_the_gradients(shape, rank, rng):
    factor = rng.standard_normal((9, 5))
    factor[:, rank:] = 0
    assert factorize(factor).solve(np.ones(shape)).shape == shape


def test_inverse_is_exactly_symmetric(rng):
    for root in (random_root(rng), singular_root(rng)):
        inverse = factorize(root).inverse()
        np.testing.assert_array_equal(inverse, inverse.T)


def test_a_condition_number_that_a_gram_matrix_cannot_hold_is_solved(rng):
    factor = np.diag(np.geomspace(1, 1e-10, 5)) @ np.triu(np.ones((5, 5)))
    made = factorize(factor)
    assert made.rank == 5
    g = rng.standard_normal(5)
    w = made.solve(factor.T @ (factor @ g))
    # the product R'(R g) has the error eps |R|^2 |g|, which a solve with R' multiplies by 1e10
    np.testing.assert_allclose(factor @ w, factor @ g, rtol=0, atol=1e-5 * np.linalg.norm(g))


def test_singular_directions_get_the_pseudo_inverse(rng):
    factor = singular_root(rng)
    sigma, g = factor.T @ factor, rng.standard_normal((3, 6))
    made = factorize(factor)
    assert (made.rank, made.n_clipped) == (4, 2)
    np.testing.assert_allclose(made.root.T @ made.root, sigma, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(made.inverse(), pinvh(sigma, rtol=1e-10), rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(made.solve(g), g @ pinvh(sigma, rtol=1e-10), rtol=1e-10, atol=1e-11)


# --- whitening


@methods
@pytest.mark.parametrize("condition", [1.0, 1e4, 1e8])
def test_whitened_covariance_is_the_identity_and_unwhitening_goes_back(method, condition, rng):
    factor = random_root(rng, d=6, condition=condition)
    whiten, unwhiten = factorize(factor).whitening(method)
    half = factor @ whiten
    tolerance = {"rtol": 0, "atol": 100 * EPS * np.sqrt(condition)}
    np.testing.assert_allclose(half.T @ half, np.eye(6), **tolerance)
    np.testing.assert_allclose(whiten @ unwhiten, np.eye(6), **tolerance)
    np.testing.assert_allclose(unwhiten.T @ unwhiten, factor.T @ factor, rtol=0, atol=1e-13)


@methods
def test_whitening_of_a_singular_covariance_is_the_identity_then_zeros(method, rng):
    factor = singular_root(rng)
    whiten, unwhiten = factorize(factor).whitening(method)
    white = whiten.T @ factor.T @ factor @ whiten
    projector = pinvh(factor.T @ factor, rtol=1e-10) @ factor.T @ factor
    expected = projector if method == "zca" else np.diag([1.0] * 4 + [0.0] * 2)
    np.testing.assert_allclose(white, expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(whiten @ unwhiten, projector, rtol=0, atol=1e-11)
    np.testing.assert_allclose(factor @ whiten @ unwhiten, factor, rtol=0, atol=1e-11)
    assert whiten.shape == unwhiten.shape == (6, 6)


def test_zca_is_the_symmetric_root(rng):
    factor = random_root(rng)
    whiten, unwhiten = factorize(factor).whitening("zca")
    root = sqrtm(factor.T @ factor)
    np.testing.assert_allclose(unwhiten, root, rtol=0, atol=1e-13)
    np.testing.assert_allclose(whiten, np.linalg.inv(root), rtol=0, atol=1e-11)
    np.testing.assert_allclose(whiten, whiten.T, rtol=0, atol=1e-13)


def test_pca_gives_scaled_components_of_falling_variance_with_the_signs_of_scikit_learn(rng):
    X = rng.standard_normal((200, 5)) @ random_root(rng)
    X -= X.mean(axis=0)
    pca = PCA(whiten=True, svd_solver="full").fit(X)
    whiten, _ = factorize(X / np.sqrt(199)).whitening("pca")
    np.testing.assert_allclose(np.linalg.norm(whiten, axis=0), pca.explained_variance_**-0.5)
    np.testing.assert_allclose(np.abs(X @ whiten), np.abs(pca.transform(X)), rtol=0, atol=1e-10)
    largest = whiten[np.argmax(np.abs(whiten), axis=0), np.arange(5)]
    assert np.all(largest > 0)
    np.testing.assert_allclose(X @ whiten, pca.transform(X), rtol=0, atol=1e-10)


def test_cholesky_is_the_inverse_of_the_triangular_factor(rng):
    factor = random_root(rng)
    whiten, unwhiten = factorize(factor).whitening("cholesky")
    np.testing.assert_allclose(
        unwhiten, np.linalg.cholesky(factor.T @ factor).T, rtol=0, atol=1e-13
    )
    np.testing.assert_allclose(whiten, np.linalg.inv(unwhiten), rtol=0, atol=1e-12)
    assert not np.tril(whiten, -1).any()


def test_cholesky_is_the_default(rng):
    made = factorize(random_root(rng))
    np.testing.assert_array_equal(made.whitening()[0], made.whitening("cholesky")[0])


# --- rank


@pytest.mark.parametrize("units", [1e-12, 1e-6, 1e6, 1e12])
def test_units_of_the_features_do_not_change_rank_or_condition_number(units, rng):
    factor = random_root(rng, d=6, n_rows=20)
    unit = np.array([1.0, units, 1.0, units, 1 / units, 1.0])
    plain, scaled = factorize(factor), factorize(factor * unit)
    assert scaled.rank == plain.rank == 6
    assert not scaled.constant.any()
    assert scaled.condition_number == pytest.approx(plain.condition_number, rel=1e-9)
    np.testing.assert_allclose(
        scaled.inverse() * np.outer(unit, unit), plain.inverse(), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("units", [1e-12, 1.0, 1e12])
def test_a_copy_in_other_units_is_clipped(units, rng):
    factor = rng.standard_normal((30, 5))
    factor[:, 4] = units * factor[:, 1]
    made = factorize(factor)
    assert (made.rank, made.n_clipped) == (4, 1)
    assert not made.constant.any()


def test_constant_features_are_marked_and_left_out(rng):
    factor = rng.standard_normal((30, 5))
    factor[:, [1, 3]] = 0
    made = factorize(factor)
    np.testing.assert_array_equal(np.flatnonzero(made.constant), [1, 3])
    assert made.n_clipped == 2
    inverse = made.inverse()
    np.testing.assert_allclose(inverse[[1, 3]], 0, rtol=0, atol=1e-15)
    kept = np.ix_([0, 2, 4], [0, 2, 4])
    np.testing.assert_allclose(
        inverse[kept], np.linalg.inv((factor.T @ factor)[kept]), rtol=1e-10, atol=1e-14
    )


def test_variance_within_the_rounding_of_a_feature_is_none(rng):
    # what a large offset leaves of a constant: a column as long as its rounding error
    factor = rng.standard_normal((30, 4)) * [1.0, 1e-9, 1.0, 1.0]
    assert not factorize(factor).constant.any()
    made = factorize(factor, rounding=np.array([1e-16, 1e-8, 1e-16, 1e-16]))
    np.testing.assert_array_equal(made.constant, [False, True, False, False])
    assert made.rank == 3
    np.testing.assert_allclose(
        made.inverse()[np.ix_([0, 2, 3], [0, 2, 3])],
        factorize(factor[:, [0, 2, 3]]).inverse(),
        rtol=0,
        atol=1e-9,
    )


def test_a_direction_within_the_rounding_of_its_features_is_clipped(rng):
    factor = rng.standard_normal((30, 4))
    factor[:, 3] = factor[:, 0] + 1e-6 * rng.standard_normal(30)
    assert factorize(factor).rank == 4
    assert factorize(factor, rounding=np.full(4, 1e-9)).rank == 4
    made = factorize(factor, rounding=np.array([1e-4, 0.0, 0.0, 1e-4]))
    assert made.rank == 3
    assert not made.constant.any()


def test_a_coarse_rounding_clips_nothing_that_stands_out_of_it(rng):
    factor = random_root(rng, condition=100.0)
    made = factorize(factor, rounding=np.full(5, 2e-3))
    assert (made.rank, made.n_clipped) == (5, 0)


def test_rounding_of_one_feature_does_not_drown_a_direction_of_others(rng):
    factor = rng.standard_normal((30, 5))
    factor[:, 1] = factor[:, 0] + 1e-7 * rng.standard_normal(30)
    made = factorize(factor, rounding=np.array([0.0, 0.0, 0.0, 0.0, 0.05]))
    assert made.rank == 5


@methods
def test_a_covariance_of_zeros_has_rank_zero_and_maps_everything_to_zero(method):
    made = factorize(np.zeros((3, 3)))
    assert (made.rank, made.n_clipped, made.condition_number) == (0, 3, 1.0)
    assert made.constant.all()
    for matrix in (made.inverse(), *made.whitening(method)):
        np.testing.assert_array_equal(matrix, np.zeros((3, 3)))
    np.testing.assert_array_equal(made.solve(np.ones(3)), np.zeros(3))


def test_damping_makes_a_covariance_of_zeros_a_multiple_of_the_identity():
    made = factorize(np.zeros((3, 3)), damping=4.0)
    np.testing.assert_allclose(made.inverse(), np.eye(3) / 4, rtol=1e-15)
    assert made.rank == 3


# --- condition number and repr


@pytest.mark.parametrize("condition", [1.0, 1e4, 1e12])
def test_condition_number_is_that_of_the_correlation_matrix(condition, rng):
    factor = random_root(rng, condition=condition) * np.geomspace(1e-5, 1e5, 5)
    values = np.linalg.svd(factor / np.linalg.norm(factor, axis=0), compute_uv=False)
    assert factorize(factor).condition_number == pytest.approx(
        (values[0] / values[-1]) ** 2, rel=max(1e-9, 1000 * EPS * np.sqrt(condition))
    )


def test_condition_number_leaves_clipped_directions_out(rng):
    factor = rng.standard_normal((30, 3))
    values = np.linalg.svd(factor / np.linalg.norm(factor, axis=0), compute_uv=False)
    made = factorize(np.column_stack([factor, np.zeros(30)]))
    assert made.condition_number == pytest.approx((values[0] / values[-1]) ** 2, rel=1e-9)


@pytest.mark.parametrize(
    ("diagonal", "damping", "expected"),
    [
        ([1.0, 2.0, 3.0], 0.0, "Preconditioner(rank 3 of 3, condition number 1, damping 0)"),
        ([1.0, 0.0, 3.0], 0.0, "Preconditioner(rank 2 of 3, condition number 1, damping 0)"),
        ([1.0, 0.0, 3.0], 0.25, "Preconditioner(rank 3 of 3, condition number 1, damping 0.25)"),
    ],
)
def test_repr_tells_rank_condition_number_and_damping(diagonal, damping, expected):
    assert repr(factorize(np.diag(diagonal), damping=damping)) == expected


# --- equivariance


@given(
    seed=st.integers(0, 10**6), d=st.integers(1, 6), scale=st.floats(-6, 6).map(lambda e: 10.0**e)
)
def test_solve_is_linearly_equivariant(seed, d, scale):
    rng = np.random.default_rng(seed)
    factor, g = rng.standard_normal((3 * d, d)), rng.standard_normal(d)
    A = scale * (random_root(rng, d=d, condition=100.0))
    direct = factorize(factor).solve(g)
    mapped = A @ factorize(factor @ A).solve(A.T @ g)
    np.testing.assert_allclose(mapped, direct, rtol=0, atol=1e-8 * np.linalg.norm(direct))


@given(seed=st.integers(0, 10**6), scale=st.floats(-100, 100).map(lambda e: 10.0**e))
def test_the_scale_of_all_features_does_not_change_rank(seed, scale):
    factor = singular_root(np.random.default_rng(seed))
    assert factorize(scale * factor).rank == 4


# --- whitening of a factor with an intercept


def factor_of(X, *, intercept):
    """Triangular root of the second moment of rows, the intercept's ones before them."""
    Z = np.column_stack([np.ones(len(X)), X]) if intercept else X
    r = np.linalg.qr(Z / np.sqrt(len(X)), mode="r")
    return r * np.where(np.diag(r) < 0, -1.0, 1.0)[:, None]


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.3, np.array([0.1, 0.0, 2.0])])
def test_whitening_is_a_root_of_the_inverse_with_a_ridge_on_features_alone(alpha, intercept, rng):
    X = rng.standard_normal((50, 3)) * [1, 10, 100] + [3, 2, 1]
    factor = factor_of(X, intercept=intercept)
    T, clipped = (
        whitening(factor, has_intercept=intercept)
        if alpha is None
        else whitening(factor, has_intercept=intercept, alpha=alpha)
    )
    ridge = np.diag(np.r_[np.zeros(int(intercept)), np.ones(3) * (0.0 if alpha is None else alpha)])
    np.testing.assert_allclose(
        T.T @ (factor.T @ factor + ridge) @ T, np.eye(3 + intercept), atol=1e-9
    )
    assert not np.tril(T, -1).any()  # the triangular one, where nothing is clipped
    assert clipped == 0


@pytest.mark.parametrize("intercept", [True, False])
def test_whitening_of_a_singular_factor_is_that_of_the_components_left(intercept, rng):
    X = rng.standard_normal((50, 4))[:, [0, 1, 2, 2]] + 5 * intercept
    T, clipped = whitening(factor_of(X, intercept=intercept), has_intercept=intercept)
    C = (X - intercept * X.mean(axis=0)).T @ (X - intercept * X.mean(axis=0)) / 50
    inner = T[intercept:, intercept:]
    assert clipped == 1
    # The pseudo-inverse with every feature scaled to unit standard deviation
    sd = np.sqrt(np.diag(C))
    inverse = pinvh(C / sd / sd[:, None], rtol=1e-10) / sd / sd[:, None]
    np.testing.assert_allclose(inner @ inner.T, inverse, atol=1e-9)
    scaled = sd[:, None] * inner  # components are orthogonal, in the order of falling variance
    gram = scaled.T @ scaled
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-9)
    assert np.all(np.diff(np.diag(gram)[:3]) > 0)
    assert not T[:, -1].any()
    if intercept:  # whose own direction has the mean of a row's leverage
        np.testing.assert_allclose(T[0] @ T[0], 1 + X.mean(axis=0) @ inverse @ X.mean(axis=0))


@pytest.mark.parametrize("columns", [[0, 1, 2], [0, 1, 1]])
def test_an_intercept_without_weight_is_one_more_direction_left_out(columns, rng):
    X = rng.standard_normal((50, 3))[:, columns]
    factor = np.zeros((4, 4))
    factor[1:, 1:] = factor_of(X, intercept=False)
    T, clipped = whitening(factor, has_intercept=True)
    assert not T[0].any()
    assert not T[:, 0].any()
    assert clipped == 1 + 3 - len(set(columns))


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize(("left", "clipped"), [(300, 1), (2000, 0)])
def test_what_is_left_of_a_constant_beside_an_intercept_is_rounding(d, left, clipped):
    factor = np.eye(d + 1)
    factor[0, -1], factor[-1, -1] = 7.0, left * EPS * 7
    T, n_clipped = whitening(factor, has_intercept=True)
    assert n_clipped == clipped
    assert np.abs(T).max() < (10 if clipped else np.inf)
