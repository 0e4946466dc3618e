import copy
import itertools
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sklearn_gradhess._estimate import estimate as estimate_of
from sklearn_gradhess._estimate import kept_gradients, noise_ratio
from sklearn_gradhess._schemes import N_GROUPS, GradientMemory
from tests.oracles import weighted_covariance

NOISES = ("antithetic", "single", "none")
P = 3


def empty(
    noise="antithetic", *, noise_scale=1.0, has_intercept=True, keep=False, inherent_variance=0.0
):
    return GradientMemory.empty(
        P,
        noise=noise,
        noise_scale=noise_scale,
        has_intercept=has_intercept,
        keep=keep,
        inherent_variance=inherent_variance,
    )


def chunk(rng, batch, *, weights=None, noise="antithetic", n_redraws=1, clean=True):
    """Batch sums of random rows as `batch_sums` makes them, in one run."""
    Z = np.column_stack([np.ones(len(batch)), rng.standard_normal((len(batch), P - 1))])
    w = np.ones(len(batch)) if weights is None else weights
    eps = rng.standard_normal((len(batch), n_redraws)) * np.sqrt(w)[:, None]
    r = rng.standard_normal(len(batch)) * w
    in_batch = np.eye(max(batch) + 1)[batch]
    noisy = np.einsum("ib,ij,ip->bjp", in_batch, eps, Z)
    pure = np.einsum("ib,i,ip->bp", in_batch, r, Z)
    if noise == "antithetic":
        groups = np.zeros((N_GROUPS, P))
        for b, row in enumerate(pure):
            groups[b % N_GROUPS] += row
        return noisy, groups if clean else groups[:0]
    parts = [pure[:, None]] if noise == "none" else [noisy, pure[:, None]]
    return np.concatenate(parts, axis=1), np.zeros((0, P))


def add(memory, batch, sums, groups, *, weights=None, batch_size=4, cuts=()):
    edges = [0, *cuts, len(sums)]
    runs = [
        (a, sums[a:b].copy(), groups if a == 0 else np.zeros_like(groups))
        for a, b in itertools.pairwise(edges)
    ]
    return memory.add_sums(
        runs,
        np.asarray(batch, dtype=np.int32),
        weights,
        batch_size=batch_size,
    )


def assert_same(a, b):
    for name in ("clean_sums", "clean_weights", "n_batches", "n_samples"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-12, err_msg=name)
    assert a.moments.n_gradients == b.moments.n_gradients
    assert a.moments.weight == pytest.approx(b.moments.weight)
    np.testing.assert_allclose(a.squares, b.squares)
    np.testing.assert_allclose(a.moments.mean, b.moments.mean, atol=1e-12)
    np.testing.assert_allclose(a.moments.covariance(), b.moments.covariance(), atol=1e-12)
    assert a.offset == b.offset
    if a.pending:
        np.testing.assert_allclose(a.pending[0], b.pending[0], atol=1e-12)
        assert a.pending[1:] == pytest.approx(b.pending[1:])


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("noise_scale", [1.0, 3.0])
def test_gradients_are_sums_with_noise_calibrated_to_the_weight_of_the_batch(
    noise, noise_scale, rng
):
    batch, w = np.repeat(np.arange(9), 4), rng.uniform(0.5, 2, 36)
    sums, groups = chunk(rng, batch, weights=w, noise=noise, n_redraws=2)
    memory = add(
        empty(noise, noise_scale=noise_scale, inherent_variance=0.7), batch, sums, groups, weights=w
    )
    rows, weights = [], []
    for b in range(9):
        total = w[batch == b].sum()
        squares = (w[batch == b] ** 2).sum()
        # a row's own noise is one draw of weight w; antithetic noise cancels it
        inherent = 0.7 * squares / total if noise == "single" else 0.0
        amplitude = np.sqrt(noise_scale * total - inherent) / total
        clean = sums[b, -1] / total
        for j in range(1 if noise == "none" else 2):
            noisy = amplitude * sums[b, j]
            rows.append({"antithetic": noisy, "single": clean - noisy, "none": clean}[noise].copy())
            weights.append(total)
    covariance, mean = weighted_covariance(rows, weights, about_mean=noise != "antithetic")
    unbiased = 1.0 if noise == "antithetic" else len(rows) / (len(rows) - 1)
    np.testing.assert_allclose(memory.moments.covariance(), unbiased * covariance, atol=1e-13)
    np.testing.assert_allclose(memory.moments.mean, mean, atol=1e-13)
    assert memory.moments.n_gradients == len(rows)
    assert (memory.n_batches, memory.n_samples) == (9, 36)


@pytest.mark.parametrize("noise", NOISES)
@given(cuts=st.sets(st.integers(1, 9)), seed=st.integers(0, 9))
def test_runs_add_up_however_the_sweeps_are_cut(noise, cuts, seed):
    batch = np.repeat(np.arange(10), 4)[:38]
    sums, groups = chunk(np.random.default_rng(seed), batch, noise=noise)
    whole = add(empty(noise), batch, sums, groups)
    assert whole.offset == 2
    assert_same(add(empty(noise), batch, sums, groups, cuts=sorted(cuts)), whole)


@pytest.mark.parametrize("noise", NOISES)
@given(cut=st.integers(1, 36), seed=st.integers(0, 9))
def test_two_chunks_remember_what_one_does(noise, cut, seed):
    rng = np.random.default_rng(seed)
    batch = np.repeat(np.arange(10), 4)[:37]
    # Sums over single rows, which add up to those of any batches
    w = rng.uniform(0.5, 2, 37)
    rows, _ = chunk(rng, np.arange(37), weights=w, noise=noise, n_redraws=2)
    r = rng.standard_normal((37, P))

    def sums_of(part, first):
        local = batch[part] - first
        sums = np.zeros((local[-1] + 1, *rows.shape[1:]))
        np.add.at(sums, local, rows[part])
        groups = np.zeros((N_GROUPS if noise == "antithetic" else 0, P))
        if len(groups):
            np.add.at(groups, local % N_GROUPS, r[part])
        return local, sums, groups

    memory = empty(noise)
    for part in (slice(0, cut), slice(cut, 37)):
        memory = add(memory, *sums_of(part, memory.n_batches), weights=w[part])
    assert_same(memory, add(empty(noise), *sums_of(slice(None), 0), weights=w))


@pytest.mark.parametrize("noise", NOISES)
def test_a_pending_batch_settles_as_the_small_batch_that_it_is(noise, rng):
    batch = np.repeat(np.arange(3), 4)[:10]
    sums, groups = chunk(rng, batch, noise=noise)
    memory = add(empty(noise, keep=True), batch, sums, groups)
    assert (memory.n_batches, memory.n_samples, memory.offset) == (2, 10, 2)
    settled = memory.settled()
    assert (settled.n_batches, settled.n_samples, settled.offset) == (3, 10, 0)
    assert settled.moments.weight == 10
    # two rows: noise of variance two, weight two
    clean, noisy = sums[2, -1] / 2, sums[2, 0] / np.sqrt(2)
    last = {"antithetic": noisy, "single": clean - noisy, "none": clean}[noise]
    np.testing.assert_allclose(settled.kept[-1][0], last[None], atol=1e-14)
    assert settled.kept[-1][1] == [2]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("clean_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("noise", ["antithetic", "single"])
def test_the_effective_number_is_that_of_the_correlations(noise, clean_share, weighted, rng):
    batch = np.repeat(np.arange(4), 4)[:14]  # the last batch waits for two more rows
    w = rng.uniform(0.5, 2, 14) if weighted else None
    sums, groups = chunk(rng, batch, weights=w, noise=noise, n_redraws=3)
    memory = add(empty(noise), batch, sums, groups, weights=w).settled()
    w = np.ones(14) if w is None else w
    owner, weight = np.repeat(np.arange(4), 3), np.repeat(np.bincount(batch, w), 3)
    rows = np.bincount(batch, w**2) / np.bincount(batch, w) ** 2
    shared = clean_share**2 + (1 - clean_share**2) * rows[owner]
    correlation = np.where(owner == owner[:, None], shared, 0.0)
    np.fill_diagonal(correlation, 1.0)
    variance = weight @ correlation @ weight / weight.sum() ** 2  # of a weighted mean
    assert memory.n_effective(clean_share) == pytest.approx(1 / variance)
    if not weighted and not clean_share:
        n, full = 4, add(empty(noise), batch[:12], sums[:3], groups)
        assert full.n_effective() == pytest.approx(3 * n * 3 / (n + 3 - 1))


def test_without_redraws_and_weights_every_gradient_counts(rng):
    plus, minus = rng.standard_normal((2, 11, P))
    memory = empty().add_gradients(plus, minus, batch_size=3)
    assert memory.n_effective() == memory.n_effective(1.0) == pytest.approx(11)
    assert memory.n_given == 11
    assert memory.merge(memory).n_given == 22
    sketch = empty().with_factor(np.eye(P), n_batches=11, n_samples=90)
    assert sketch.n_effective() == sketch.n_effective(1.0) == pytest.approx(11)
    assert empty().n_effective() == 0


@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_weights_without_squares_are_counted(unit, rng):
    batch = np.repeat(np.arange(3), 4)
    w = np.full(12, unit)
    with np.errstate(all="ignore"):
        memory = add(empty(), batch, *chunk(rng, batch, weights=w), weights=w)
        assert memory.n_effective() == 3


@pytest.mark.parametrize("noise", NOISES)
def test_without_a_pending_batch_there_is_nothing_to_settle(noise, rng):
    batch = np.repeat(np.arange(3), 4)
    memory = add(empty(noise), batch, *chunk(rng, batch, noise=noise))
    assert memory.settled() is memory


def test_an_incomplete_batch_with_too_much_inherent_noise_gets_none_on_top(rng):
    batch = np.array([0, 0, 0, 0, 1])
    sums, groups = chunk(rng, batch, noise="single")
    memory = add(empty("single", keep=True, inherent_variance=3.0), batch, sums, groups)
    gradients, *_ = memory.settled().kept[-1]
    np.testing.assert_allclose(gradients[0], sums[1, 1])


@pytest.mark.parametrize("noise", NOISES)
def test_batches_without_weight_are_passed_over(noise, rng):
    batch = np.repeat(np.arange(3), 4)
    w = np.ones(12)
    w[4:8] = 0
    sums, groups = chunk(rng, batch, weights=w, noise=noise)
    memory = add(empty(noise), batch, sums, groups, weights=w)
    assert memory.moments.n_gradients == 2
    assert memory.moments.weight == 8
    assert np.isfinite(memory.moments.covariance()).all()


@pytest.mark.parametrize("noise", NOISES)
def test_a_memory_is_a_value_that_later_chunks_leave_alone(noise, rng):
    batch = np.repeat(np.arange(3), 4)[:10]
    memory = add(empty(noise, keep=True), batch, *chunk(rng, batch, noise=noise))
    before = copy.deepcopy(memory)
    pair = rng.standard_normal((2, 5, P))
    add(memory, [0, 0, 1], *chunk(rng, np.array([0, 0, 1]), noise=noise))
    memory.add_gradients(pair[0], pair[1] if noise == "antithetic" else None, batch_size=4)
    memory.settled().merge(memory.settled())
    estimate_of(memory, correct=True)
    assert_same(memory, before)
    for field in fields(memory):
        if isinstance(getattr(before, field.name), np.ndarray):
            np.testing.assert_array_equal(getattr(memory, field.name), getattr(before, field.name))


def test_antithetic_gradients_split_into_half_differences_and_half_sums(rng):
    plus, minus = rng.standard_normal((2, 11, P))
    memory = empty().add_gradients(plus, minus, batch_size=4)
    half, clean = (minus - plus) / 2, (minus + plus) / 2
    np.testing.assert_allclose(memory.moments.covariance(), half.T @ half / 11, atol=1e-14)
    for g in range(N_GROUPS):
        np.testing.assert_allclose(memory.clean_sums[g], 4 * clean[g::N_GROUPS].sum(axis=0))
        assert memory.clean_weights[g] == 4 * len(clean[g::N_GROUPS])
    assert (memory.n_batches, memory.n_samples) == (11, 44)


@given(cut=st.integers(0, 20), seed=st.integers(0, 9))
def test_gradients_fall_into_the_same_groups_however_they_are_cut(cut, seed):
    plus, minus = np.random.default_rng(seed).standard_normal((2, 20, P))
    memory = empty()
    for part in (slice(0, cut), slice(cut, None)):
        if len(plus[part]):
            memory = memory.add_gradients(plus[part], minus[part], batch_size=4)
    assert_same(memory, empty().add_gradients(plus, minus, batch_size=4))


@pytest.mark.parametrize("noise", NOISES)
def test_merging_remembers_the_gradients_of_both(noise, rng):
    g = rng.standard_normal((2, 19, P))
    one, two = slice(0, 8), slice(8, None)  # a multiple of N_GROUPS keeps the groups in step

    def seen(part):
        return empty(noise, keep=True).add_gradients(
            g[0, part], g[1, part] if noise == "antithetic" else None, batch_size=4
        )

    merged = seen(one).merge(seen(two))
    assert_same(merged, seen(slice(None)))
    np.testing.assert_array_equal(np.concatenate([rows for rows, *_ in merged.kept])[:8],
                                  seen(one).kept[0][0])  # fmt: skip


@pytest.mark.parametrize("noise_scale", [0.5, 1.0, 4.0])
def test_antithetic_hessian_is_the_second_moment_over_the_noise_scale(noise_scale, rng):
    plus, minus = rng.standard_normal((2, 30, P))
    memory = empty(noise_scale=noise_scale).add_gradients(plus, minus, batch_size=4)
    estimate = estimate_of(memory, correct=True)
    half = (minus - plus) / 2
    np.testing.assert_allclose(
        estimate.factor.T @ estimate.factor, half.T @ half / 30 / noise_scale, atol=1e-13
    )
    np.testing.assert_allclose(
        estimate.gradient_factor.T @ estimate.gradient_factor, half.T @ half / 30, atol=1e-13
    )
    np.testing.assert_allclose(estimate.mean_gradient, (plus + minus).mean(axis=0) / 2)
    assert estimate.correction == "none"


def test_antithetic_excess_risk_is_the_mean_product_of_different_groups(rng):
    plus, minus = rng.standard_normal((2, 40, P)) + 1.0
    memory = empty().add_gradients(plus, minus, batch_size=4)
    half, clean = (minus - plus) / 2, (minus + plus) / 2
    inverse = np.linalg.inv(half.T @ half / 40)
    product, pairs = 0.0, 0
    for a in range(40):
        for b in range(40):
            if a % N_GROUPS != b % N_GROUPS:
                product += clean[a] @ inverse @ clean[b]
                pairs += 1
    estimate = estimate_of(memory, correct=False)
    # E[S^-1] given the rows, of batches of four; leverages of N Gaussian rows, which S has too
    debias, n_rows = 1 - (P + 1) / 40 * (1 - 1 / 4), 160
    leverage = (n_rows - 1) * (n_rows + 2) / (n_rows * (n_rows - P))
    assert estimate.excess_risk == pytest.approx(debias * leverage * product / pairs)


@pytest.mark.parametrize("k", [1, P, P + 1])
def test_too_few_gradients_do_not_tell_the_excess_risk(k, rng):
    plus, minus = rng.standard_normal((2, k, P))
    memory = empty().add_gradients(plus, minus, batch_size=4)
    estimate = estimate_of(memory, correct=False)
    assert np.isnan(estimate.excess_risk)


@pytest.mark.parametrize(
    ("noise", "noise_scale", "inherent", "divisor"),
    [
        ("single", 1.0, 0.0, 1.0),
        ("single", 2.5, 1.0, 2.5),  # the inherent noise is part of the total already
        ("none", 1.0, 0.0, 1.0),  # uncalibrated
        ("none", 2.5, 6.0, 6.0 / 4),  # inherent noise over the batch size
    ],
)
def test_without_correction_the_covariance_is_divided_by_the_total_noise_over_n(
    noise, noise_scale, inherent, divisor, rng
):
    g = rng.standard_normal((50, P))
    memory = empty(noise, noise_scale=noise_scale, inherent_variance=inherent)
    memory = memory.add_gradients(g, None, batch_size=4)
    estimate = estimate_of(memory, correct=False)
    np.testing.assert_allclose(
        estimate.factor.T @ estimate.factor, np.cov(g.T) / divisor, atol=1e-13
    )
    np.testing.assert_allclose(
        estimate.gradient_factor.T @ estimate.gradient_factor, np.cov(g.T), atol=1e-13
    )
    assert estimate.correction == "none"


def test_the_correction_is_that_of_the_closed_form_for_many_gradients(rng):
    # MATH section 2.1, tau/n = 1; its small-sample terms are O(1/k)
    g, n, k = rng.standard_normal((200_000, P)) + np.array([1.0, 0.5, 0.0]), 16, 200_000
    memory = empty("single", has_intercept=False).add_gradients(g, None, batch_size=n)
    estimate = estimate_of(memory, correct=True)
    mean = g.mean(axis=0)
    M = np.cov(g.T) - np.outer(mean, mean) / n
    q = mean @ np.linalg.solve(M, mean)
    excess_risk = q / (1 - q / n)
    assert estimate.correction == "gaussian"
    assert estimate.excess_risk == pytest.approx(excess_risk, rel=50 / k)
    np.testing.assert_allclose(
        estimate.factor.T @ estimate.factor, M / (1 + excess_risk / n), atol=50 / k
    )


def test_a_mean_gradient_past_saturation_is_left_uncorrected(rng):
    g = rng.standard_normal((50, P)) + 100.0
    memory = empty("single", has_intercept=False).add_gradients(g, None, batch_size=4)
    estimate = estimate_of(memory, correct=True)
    assert estimate.correction == "none"
    assert np.isnan(estimate.excess_risk)
    np.testing.assert_allclose(estimate.factor.T @ estimate.factor, np.cov(g.T), atol=1e-12)


@pytest.mark.parametrize("noise_scale", [1.0, 2.0])
@pytest.mark.parametrize("drawn", [1.0, 3.0])
def test_the_intercept_shows_how_much_noise_there_was(noise_scale, drawn):
    # the intercept's half difference is the mean of the noise: plus or minus its deviation / n
    h = np.tile([[1.0], [-1.0]], (10, P)) * np.sqrt(drawn)
    memory = empty(noise_scale=noise_scale).add_gradients(-h, h, batch_size=4)
    assert noise_ratio(memory, 0.0) == pytest.approx(drawn / noise_scale)


def test_single_noise_is_told_apart_from_the_excess_risk(rng):
    g = rng.standard_normal((30, P)) + 1.0
    memory = empty("single", noise_scale=2.0).add_gradients(g, None, batch_size=4)
    # n Var(g_0) = tau + m^2 - mean(g_0)^2
    tau = 4 * np.var(g[:, 0], ddof=1) + g[:, 0].mean() ** 2 - 0.5
    assert noise_ratio(memory, 0.5) == pytest.approx(tau / (4 * 2.0))


@pytest.mark.parametrize(
    "memory",
    [empty(), empty(has_intercept=False), empty("none")],
    ids=["nothing seen", "no intercept", "no noise"],
)
def test_where_the_noise_does_not_show_its_ratio_is_nan(memory, rng):
    if memory.noise == "none" or not memory.has_intercept:
        pair = rng.standard_normal((2, 9, P))
        memory = memory.add_gradients(
            pair[0], pair[1] if memory.noise == "antithetic" else None, batch_size=4
        )
    assert np.isnan(noise_ratio(memory, 0.0))


@pytest.mark.parametrize("noise", ["antithetic", "single"])
def test_kept_gradients_are_those_of_the_centred_features(noise, rng):
    # h_b = eps_b (1, x_b): centred features have the gradients eps_b (x_b - location)
    X, eps, location = rng.standard_normal((10, P - 1)), rng.standard_normal(10), np.array([3.0, 7])
    g = eps[:, None] * np.column_stack([np.ones(10), X])
    memory = empty(noise, keep=True)
    for part in (slice(0, 4), slice(4, 10)):
        memory = (
            memory.add_gradients(-g[part], g[part], batch_size=2)
            if noise == "antithetic"
            else memory.add_gradients(g[part], None, batch_size=2)
        )
    expected = eps[:, None] * (X - location)
    if noise == "single":
        expected -= expected.mean(axis=0)
    np.testing.assert_allclose(kept_gradients(memory, location), expected, atol=1e-13)


def test_kept_gradients_of_unequal_weight_keep_their_second_moment(rng):
    batch = np.array([0] * 4 + [1] * 4 + [2])
    memory = empty(has_intercept=False, keep=True)
    memory = add(memory, batch, *chunk(rng, batch)).settled()
    rows = kept_gradients(memory, np.zeros(P))
    np.testing.assert_allclose(rows.T @ rows / 3, memory.moments.covariance(), atol=1e-13)


def test_gradients_are_kept_only_on_demand(rng):
    batch = np.repeat(np.arange(3), 4)
    assert add(empty(), batch, *chunk(rng, batch)).kept is None
