"""Excess risk from batch gradients: estimates, their limits on both sides, and what is refused."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sklearn_gradhess._excess_risk import (
    _chi,
    _metric_extremes,
    _share,
    _signal_limits,
    _student,
    of_pairs,
    of_single_noise,
)
from sklearn_gradhess._gradient_risk import gradient_adversarial_risk
from sklearn_gradhess._risk import closed_form
from sklearn_gradhess.exceptions import CalibrationWarning
from tests.test_risk import draw_pairs, estimate


def shares(reps, n, signs, rng, d=3, k=200, m2=1.0):
    """Estimates of what clean gradients share with the noise, Gaussian rows, Omega = I."""
    found = []
    for _ in range(reps):
        x = rng.standard_normal((k, n, d))
        xi = np.sqrt(n) * (rng.choice([-1.0, 1.0], (k, n)) if signs else rng.normal(size=(k, n)))
        residual = np.sqrt(m2) * x[..., 0] + rng.standard_normal((k, n))
        c, h = (np.einsum("knd,kn->kd", x, r) / n for r in (residual, xi))
        mean = c.mean(axis=0)
        found.append(_share(c - mean, h, h * (h @ mean)[:, None] - mean))
    return np.array(found)


# --- point estimates


@pytest.mark.parametrize(
    ("n", "signs", "truth"), [(1, True, 1.0), (1, False, 1 / 3), (4, True, 1 / 4), (64, False, 0.0)]
)
def test_share_of_the_features_in_clean_gradients(n, signs, truth):
    # Gaussian rows: the covariance of x x'u with h h'u over the variance of the latter
    found = shares(40, n, signs, np.random.default_rng(n))
    error = found[:, 0].std() / np.sqrt(len(found))
    assert abs(found[:, 0].mean() - truth) < 4 * error + 0.05
    # stated: the scatter, to the accuracy of its model
    assert 0.4 < found[:, 1].mean() / found[:, 0].std() < 2.5


def test_antithetic_formula_as_written(rng):
    # MATH 5.1 with explicit inverses and loops over batches
    clean, noise = (g[0][:, 1:] for g in draw_pairs(rng, 1, 5, 40, 8, m2=3.0, s2=1.0))
    k, p, n = 40, 5, 8
    found = gradient_adversarial_risk(
        clean - noise, clean + noise, coef=np.ones(p), batch_size=n, radius=0.0
    )
    inverse, mean = np.linalg.inv(noise.T @ noise / k), clean.mean(axis=0)
    q = mean @ inverse @ mean
    slope = precision = 0.0
    unit = np.mean([(c - mean) @ inverse @ (c - mean) for c in clean]) / p
    for c, h in zip(clean - mean, noise, strict=True):
        own = h * (h @ inverse @ mean) - mean
        slope += (c @ inverse @ own + ((c @ inverse @ h) ** 2 - c @ inverse @ c) / 2) / unit
        size = h @ inverse @ h
        precision += own @ inverse @ own / unit + (size**2 - size) / 2
    free = slope / precision
    share = min(max((k * free + 20 / (n + 1)) / (k + 20), 0.0), 1.0)
    fluctuation = [h * (h @ inverse @ mean) - mean for h in noise]
    rest = [c - mean - share * own for c, own in zip(clean, fluctuation, strict=True)]
    trace = sum(w @ inverse @ w for w in rest) / (k - 1 - share * (p - 1))
    fourth = np.mean([own @ inverse @ own for own in fluctuation]) / q
    fourth = (k * fourth + 20 * (p + 1)) / (k + 20)
    inflation = 1 + (1 - share) ** 2 * fourth / (k - p - 1)
    assert found.excess_risk == pytest.approx((q - trace / k) / inflation, rel=1e-9)

    root = np.linalg.cholesky(inverse)
    basis = np.linalg.svd((mean @ root)[None])[2][1:].T
    x, h = (clean - mean) @ root @ basis, noise @ root @ basis
    d = p - 1
    fourth = np.mean(np.sum(h**2, axis=1) ** 2) / d
    fourth = (k * fourth + 20 * (d + 2)) / (k + 20) - 1
    v2 = n * np.sum(x**2) / (k - 1) / d / (1 + (1 - free) * fourth / (k - p))
    assert found.mean_squared_error == pytest.approx(v2, rel=1e-9)


@pytest.mark.parametrize(("n", "signs"), [(1, True), (1, False), (16, False)])
def test_estimates_are_nearly_unbiased(n, signs):
    # also where gradients and noise come of the same single rows, as 20 batches for 5 columns show
    rng, k, d, m2, s2 = np.random.default_rng(n), 40, 5, 2.0, 1.0
    found = []
    for _ in range(300):
        x = rng.standard_normal((k, n, d))
        xi = np.sqrt(n) * (rng.choice([-1.0, 1.0], (k, n)) if signs else rng.normal(size=(k, n)))
        residual = np.sqrt(m2) * x[..., 0] + np.sqrt(s2) * rng.standard_normal((k, n))
        c, h = (np.einsum("knd,kn->kd", x, r) / n for r in (residual, xi))
        excess, mse, _ = of_pairs(c - h, c + h, n, has_intercept=False, level=0.95)
        found.append([excess.limits[0] / m2, mse.limits[0] / (m2 + s2)])
    error = np.std(found, axis=0) / np.sqrt(len(found))
    # the Wishart factor alone is 15 % off; single rows with Gaussian noise keep a tenth
    assert np.all(np.abs(np.mean(found, axis=0) - 1) < 4 * error + 0.06 + 0.06 * (n == 1))


# --- limits, each on its own side


def test_limits_that_come_of_the_metric_are_those_of_chi_square():
    # no noise in the clean mean, n large: m^2 = q chi^2_{k-p+1} / k exactly
    rng = np.random.default_rng(0)
    k, p, level = 400, 3, 0.9
    h = rng.standard_normal((k, p))
    z = h[:, 0] ** 2
    low, high = 1 / _metric_extremes(z, np.zeros(3), k - p + 1, k / (k - p - 1), 1e9, level)
    variance = max(z.var(ddof=1), 2.0, (k * z.var(ddof=1) + 40) / (k + 20))
    nu = (k - p + 1) * 2 / variance
    law = stats.chi2(nu).ppf([0.05, 0.95]) / (nu - 2) * (k - p - 1) / k
    assert (low, high) == pytest.approx(law)
    # all shared: m^2 is the mean of z over chi-square; half shared: no first order
    low, high = 1 / _metric_extremes(z, np.ones(3), k, 1.0, 1e9, level)
    nu = k * 2 / max(z.var(ddof=1), (k * z.var(ddof=1) + 40) / (k + 20))
    assert (low, high) == pytest.approx(nu / stats.chi2(nu).ppf([0.95, 0.05]))
    low, high = 1 / _metric_extremes(z, np.full(3, 0.5), k, k / (k - 2), 1e9, level)
    assert high == pytest.approx(1.0, abs=2 / k)
    assert 1 - low < 4 / k
    np.testing.assert_allclose(_chi(7.0, level), stats.chi2(7).ppf([0.05, 0.95]) / 7)


def test_limits_that_come_of_noise_are_those_of_student():
    assert _student(7.0, 0.9) == pytest.approx(stats.t(7).ppf(0.95))
    # one coordinate of mean 3, its variance w: the square less w has the variance 4 w s + 2 w^2
    w, t = 0.25, 2.0
    low, high = _signal_limits(3.0**2 - w, 4 * w, 2 * w**2, t)
    root = np.sqrt(3.0**2 - w / 2)
    assert (low, high) == pytest.approx([(root + s * t * np.sqrt(w)) ** 2 - w / 2 for s in (-1, 1)])
    assert _signal_limits(0.1, 4 * w, 2 * w**2, t)[0] == 0.0


REPS = 300
# four binomial standard errors above one side of nominal 95 % and below 90 % of both
SIDE = 0.05 + 4 * np.sqrt(0.05 * 0.95 / REPS)
BOTH = 0.90 - 3 * np.sqrt(0.9 * 0.1 / REPS)


def one_sided_misses(intervals, truth):
    low, high = np.transpose(intervals)
    return np.mean(low > truth), np.mean(high < truth)


@pytest.mark.parametrize(
    ("d", "k", "n", "signs"),
    [(1, 5, 8, False), (1, 6, 1, True), (2, 6, 1, False), (2, 8, 16, False), (6, 10, 4, True)],
)
def test_intervals_cover_from_few_batches_on(d, k, n, signs):
    rng = np.random.default_rng([d, k, n])
    m2, s2 = 1.0, 0.5
    law = {"excess": [], "mse": [], "excess, intercept": [], "mse, intercept": []}
    for _ in range(REPS):
        z = np.insert(rng.standard_normal((k, n, d)), 0, 1.0, axis=-1)
        xi = np.sqrt(n) * (rng.choice([-1.0, 1.0], (k, n)) if signs else rng.normal(size=(k, n)))
        residual = z[..., 1] * np.sqrt(m2) + np.sqrt(s2) * rng.standard_normal((k, n))
        clean, noise = (np.einsum("knd,kn->kd", z, r) / n for r in (residual, xi))
        for intercept, name in ((False, ""), (True, ", intercept")):
            if k < d + intercept + 4:
                continue
            found = estimate(clean, noise, n, intercept=intercept, target="clean")
            law["excess" + name].append(found.excess_risk_interval)
            law["mse" + name].append(found.mean_squared_error_interval)
    for name, intervals in law.items():
        if intervals and not np.isnan(intervals).any():
            misses = one_sided_misses(intervals, m2 + s2 * name.startswith("mse"))
            assert sum(misses) <= 1 - BOTH, (name, misses)


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
def test_one_hot_columns_of_single_rows_are_covered(signs, intercept):
    rng = np.random.default_rng([signs, intercept])
    k, effects = 80, np.array([1.0, -1.0, 0.5, 2.0])
    intervals = []
    for _ in range(REPS):
        z = np.eye(4)[rng.integers(4, size=k)]
        xi = rng.choice([-1.0, 1.0], k) if signs else rng.standard_normal(k)
        residual = z @ effects + rng.standard_normal(k)
        z = np.column_stack([np.ones(k), z]) if intercept else z
        g = [z * (residual + s * xi)[:, None] for s in (-1, 1)]
        found = gradient_adversarial_risk(
            *g, coef=effects, batch_size=1, radius=0.0, target="clean", has_intercept=intercept
        )
        intervals.append(found.excess_risk_interval)
    assert sum(one_sided_misses(intervals, np.mean(effects**2))) <= 1 - BOTH


@pytest.mark.parametrize("m2", [0.5, 4.0])
@pytest.mark.parametrize("intercept", [False, True])
def test_each_limit_of_single_noise_has_its_own_tail(m2, intercept):
    rng = np.random.default_rng([int(m2), intercept])
    k, n = 40, 32
    law = {"m2": m2 / 2 if intercept else m2, "mean_residual": np.sqrt(m2 / 2) * intercept}
    intervals = []
    for c, h in zip(*draw_pairs(rng, REPS, 3, k, n, s2=0.0, **law), strict=True):
        g = (c - h) if intercept else (c - h)[:, 1:]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationWarning)
            # one side in twenty
            intervals.append(of_single_noise(g, n, intercept, 0.9)[0].limits[1:])
    below, above = one_sided_misses(intervals, m2)
    assert max(below, above) <= SIDE
    # limits that are too far would never miss
    assert below + above >= 0.02


@pytest.mark.parametrize(
    ("m2", "a", "radius", "n", "s2"),
    [(1.0, 1.5, 0.7, 16, 0.5), (9.0, 6.0, 20.0, 16, 0.5), (9.0, 6.0, 20.0, 16, 400.0)],
)
def test_errors_of_the_excess_risk_go_into_the_risk(m2, a, radius, n, s2):
    # target "clean" with a mean residual: the log of the risk has the variance of the influences
    # of m^2 and of a^2 through the closed form, here by differences
    rng = np.random.default_rng(1)
    k = 4000
    clean, noise = (g[0] for g in draw_pairs(rng, 1, 2, k, n, m2=m2, s2=s2, mean_residual=a))
    found = estimate(clean, noise, n, intercept=True, radius=radius, target="clean")
    inverse, mean = np.linalg.inv(noise.T @ noise / k), clean.mean(axis=0)
    a, m2 = mean[0], mean @ inverse @ mean
    of_m2 = 2 * clean @ inverse @ mean - (noise @ inverse @ mean) ** 2
    of_m2, of_a2 = of_m2 - of_m2.mean(), 2 * a * (clean[:, 0] - a)

    def risk(m2, a2):
        return closed_form(m2, radius * found.dual_norm, a2 / m2)

    step = 1e-5
    by_m2 = (risk(m2 + step, a**2) - risk(m2 - step, a**2)) / (2 * step)
    by_a2 = (risk(m2, a**2 + step) - risk(m2, a**2 - step)) / (2 * step)
    error = (by_m2 * of_m2 + by_a2 * of_a2).std(ddof=1) / np.sqrt(k)
    # the part that clean gradients share with the noise has an error of its own
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.04)


# --- what is hardly seen


def single_rows(rng, z):
    xi, residual = rng.standard_normal((2, len(z)))
    return [z * (residual + s * xi)[:, None] for s in (-1, 1)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_rare_levels_are_named(count, rng):
    z = rng.standard_normal((40, 4))
    z[:, 2] = np.arange(40) < count
    frames = [pd.DataFrame(g, columns=list("abcd")) for g in single_rows(rng, z)]
    kwargs = {"coef": np.ones(4), "batch_size": 1, "radius": 0.0, "target": "clean"}
    message = rf"vary in too few of the 40 batches.*: {{}} \(in {count}\); four.*rare level"
    with pytest.raises(ValueError, match=message.format("2")):
        gradient_adversarial_risk(*(f.to_numpy() for f in frames), **kwargs)
    with pytest.raises(ValueError, match=message.format("'c'")):
        gradient_adversarial_risk(*frames, **kwargs)
    with pytest.raises(ValueError, match=message.format("2")):
        gradient_adversarial_risk(frames[0].to_numpy(), **kwargs)


@pytest.mark.parametrize("position", ["first", "last"])
def test_a_level_that_nearly_all_rows_have_is_hardly_seen_too(position, rng):
    z = np.column_stack([np.ones(40), rng.standard_normal(40), np.arange(40) > 1])
    g = single_rows(rng, z if position == "first" else z[:, [1, 2, 0]])
    with pytest.raises(ValueError, match=rf": {2 - (position == 'last')} \(in 2\)"):
        gradient_adversarial_risk(
            *g, coef=np.ones(2), batch_size=1, radius=0.0, has_intercept=True,
            intercept_position=position,
        )  # fmt: skip


@pytest.mark.parametrize("position", ["first", "last"])
def test_a_combination_that_one_batch_alone_shows_is_named(position, rng):
    z = np.insert(rng.standard_normal((40, 4)), 0, 1.0, axis=1)
    z[:, 3] = 2 * z[:, 1]
    z[7, 3] += 1.0  # neither column is rare, their difference is
    g = single_rows(rng, z if position == "first" else np.roll(z, -1, axis=1))
    message = "Batch 7 alone tells of a combination of feature 0, feature 2, which in the other 39"
    with pytest.raises(ValueError, match=message):
        gradient_adversarial_risk(
            *g, coef=np.ones(4), batch_size=1, radius=0.0, has_intercept=True,
            intercept_position=position,
        )  # fmt: skip


def test_a_level_in_four_batches_and_one_in_none_are_no_failure(rng):
    z = np.column_stack([rng.standard_normal((60, 2)), np.arange(60) < 4, np.zeros(60)])
    found = gradient_adversarial_risk(
        *single_rows(rng, z), coef=np.ones(4), batch_size=1, radius=0.0, target="clean"
    )
    low, high = found.excess_risk_interval
    assert np.isfinite([found.excess_risk, low, high]).all()
    assert np.isnan(found.mean_squared_error)


def test_features_that_are_seen_not_to_be_gaussian_do_not_tell_the_error(rng):
    z = np.eye(3)[rng.integers(3, size=60)]
    g = single_rows(rng, z)
    with pytest.raises(ValueError, match=r"zero in some batches \(3 columns\), not Gaussian, do "):
        gradient_adversarial_risk(*g, coef=np.ones(3), batch_size=1, radius=0.0)
    known = gradient_adversarial_risk(
        *g, coef=np.ones(3), batch_size=1, radius=0.0, noise_variance=1.0
    )
    assert known.value == pytest.approx(1.0 + known.excess_risk)


# --- gradients from elsewhere


@pytest.mark.parametrize("single", [False, True])
def test_scale_and_position_of_foreign_gradients(single, rng):
    clean, noise = (g[0] for g in draw_pairs(rng, 1, 3, 60, 8, m2=1.0, s2=0.0))
    g = [clean - noise] if single else [clean - noise, clean + noise]
    kwargs = {"coef": np.ones(3), "batch_size": 8, "radius": [0.0, 0.3], "target": "clean"}
    plain = gradient_adversarial_risk(*g, has_intercept=True, **kwargs)
    foreign = gradient_adversarial_risk(
        *(16 * np.roll(a, -1, axis=1) for a in g), has_intercept=True, intercept_position="last",
        gradient_scale=16.0, **kwargs,
    )  # fmt: skip
    np.testing.assert_allclose(foreign.value, plain.value, rtol=1e-9)
    np.testing.assert_allclose(foreign.high, plain.high, rtol=1e-9)
    # without the intercept's gradient the position says nothing, and the scale is divided out
    features = [a[:, 1:] for a in g]
    found = [
        gradient_adversarial_risk(
            *(factor * a for a in features), intercept_position=position, gradient_scale=factor,
            **kwargs,
        ).value
        for factor, position in ((1.0, "first"), (2.0, "last"))
    ]  # fmt: skip
    np.testing.assert_allclose(*found, rtol=1e-9)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize(
    ("factor", "named"), [(2.0, "2"), (8.0, "8"), (16.0, "16"), (0.5, "0.5"), (1.7, None)]
)
def test_a_wrong_scale_is_an_error_that_names_the_likely_factor(factor, named, single):
    rng = np.random.default_rng(0)
    clean, noise = (g[0] for g in draw_pairs(rng, 1, 3, 400, 8, m2=0.1, s2=0.0))
    g = [clean - noise] if single else [clean - noise, clean + noise]
    way_out = rf"pass gradient_scale={named}\. gradient_scale is the" if named else (
        "counts towards it: see calibrated_variance" if single else "on the same batch, with the"
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"total target noise of .*{way_out}"):
        gradient_adversarial_risk(
            *(factor * a for a in g), coef=np.ones(3), batch_size=8, radius=0.1, target="clean",
            has_intercept=True,
        )  # fmt: skip


def test_an_intercept_at_the_other_end_is_named(rng):
    clean, noise = (g[0] for g in draw_pairs(rng, 1, 3, 400, 8, m2=0.1, s2=1.0))
    features = 3.0 * np.array([clean, noise])[..., 1:]
    clean, noise = np.concatenate([features, np.array([clean, noise])[..., :1]], axis=-1)
    with pytest.raises(ValueError, match="set intercept_position to the end where the intercept"):
        gradient_adversarial_risk(
            clean - noise, clean + noise, coef=np.ones(3), batch_size=8, radius=0.1,
            has_intercept=True,
        )  # fmt: skip


@pytest.mark.parametrize("single", [False, True])
def test_a_sound_scale_is_never_called_wrong(single):
    rng = np.random.default_rng(3)
    for k in (8, 40, 400):
        law = {"m2": 1.0, "s2": 0.0, "mean_residual": 0.5}
        for c, h in zip(*draw_pairs(rng, 40, 2, k, 4, **law), strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CalibrationWarning)
                estimate(c, h, 4, intercept=True, single=single, target="clean")


def test_signs_that_cancel_in_few_batches_are_no_wrong_scale(rng):
    # two rows a batch: the intercept's noise is zero in half of the batches, here in all
    k, n = 6, 2
    x, signs = rng.standard_normal((k, n)), np.tile([1.0, -1.0], (k, 1))
    z = np.stack([np.ones((k, n)), x], axis=-1)
    residual = x + rng.standard_normal((k, n))
    clean, noise = (np.einsum("knd,kn->kd", z, r) / n for r in (residual, np.sqrt(n) * signs))
    found = estimate(clean, noise, n, intercept=True, target="clean")
    assert np.isfinite(found.mean_squared_error)
    clean[:, 0] = 0.0  # nothing at all: no gradient of the intercept
    with pytest.raises(ValueError, match="shows a total target noise of 0, not the calibrated 2"):
        estimate(clean, noise, n, intercept=True, target="clean")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient_scale": 0.0}, r"gradient_scale must be finite and > 0, got 0\.0"),
        ({"gradient_scale": np.nan}, "gradient_scale must be finite and > 0, got nan"),
        ({"intercept_position": "end"}, "intercept_position must be 'first' or 'last', got 'end'"),
    ],
)
def test_arguments_of_foreign_gradients_are_checked(arguments, message, rng):
    g = rng.standard_normal((2, 12, 3))
    with pytest.raises(ValueError, match=message):
        gradient_adversarial_risk(*g, coef=np.ones(3), batch_size=4, radius=0.1, **arguments)
