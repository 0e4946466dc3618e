"""Pairs from modules against dense Jacobians, the package's own Hessians, and what users do."""

import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scipy.special import expit  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from sklearn_gradhess import CalibrationWarning, GradientCovarianceEstimator  # noqa: E402
from sklearn_gradhess.diagnostics import calibration_report  # noqa: E402
from sklearn_gradhess.metrics import (  # noqa: E402
    adversarial_mean_squared_error,
    gradient_adversarial_risk,
)
from sklearn_gradhess.plotting import HessianSpectrumDisplay  # noqa: E402
from sklearn_gradhess.torch import noisy_gradients, top_eigenpairs  # noqa: E402

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
N, D, C = 12, 5, 3  # rows of a batch, features, outputs


@pytest.fixture
def seeded():
    """The source of everything in a test, so that PyTorch's own state decides nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield torch.Generator().manual_seed(1)
    torch.set_num_threads(threads)


def mlp(*sizes):
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*[m for layer in layers for m in (layer, nn.Tanh())][:-1]).double()


def batches(k, n=N, d=D, targets=None):
    made = []
    for _ in range(k):
        x = torch.randn(n, d, dtype=torch.float64)
        made.append((x, torch.randint(0, C, (n,)) if targets is None else targets(x)))
    return made


def regression(x):
    return x.sum(1, keepdim=True) + torch.randn(len(x), 1, dtype=x.dtype)


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors]).double().numpy()


def clean_gradient(module, loss, x, y, parameters=None):
    wanted = list(module.parameters()) if parameters is None else parameters
    return flat(torch.autograd.grad(loss(module(x), y).mean(), wanted, materialize_grads=True))


def gauss_newton(module, loss, data):
    """Mean over batches of J' V J, with the dense Jacobian and the dense Hessian of the loss."""
    names, total = [name for name, _ in module.named_parameters()], 0.0
    for x, y in data:

        def outputs(*values, x=x):
            return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

        jacobian = torch.autograd.functional.jacobian(outputs, tuple(module.parameters()))
        f = module(x).detach()
        J = torch.cat([j.reshape(f.numel(), -1) for j in jacobian], 1)
        V = torch.autograd.functional.hessian(lambda f, y=y: loss(f, y).mean(), f)
        total = total + J.T @ V.reshape(f.numel(), f.numel()) @ J
    return (total / len(data)).numpy()


def relative_error(estimate, truth):
    return np.linalg.norm(estimate - truth, 2) / np.linalg.norm(truth, 2)


def estimate(pairs, **layout):
    estimator = GradientCovarianceEstimator()
    return estimator.partial_fit_gradients(*pairs, batch_size=pairs.batch_size, **layout)


LINEAR = {"has_intercept": True, "intercept_position": "last"}


LOSSES = {
    "cross entropy": (nn.CrossEntropyLoss(), None),
    "weighted, smoothed": (
        nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]).double(), label_smoothing=0.1),
        None,
    ),
    "cross entropy, sum": (nn.CrossEntropyLoss(reduction="sum"), None),
    "squared error": (nn.MSELoss(), lambda x: x[:, :C]),
    "squared error, sum": (nn.MSELoss(reduction="sum"), lambda x: x[:, :C]),
    "squared error, none": (nn.MSELoss(reduction="none"), lambda x: x[:, :C]),
    "binary cross entropy": (nn.BCEWithLogitsLoss(), lambda x: (x[:, :C] > 0).double()),
    "poisson": (nn.PoissonNLLLoss(), lambda x: x[:, :C].exp().round()),
    "huber": (nn.HuberLoss(), lambda x: x[:, :C]),
    "a function": (lambda f, y: (f - y).square().sum(1).add(1).sqrt().mean(), lambda x: x[:, :C]),
}
each_loss = pytest.mark.parametrize(("loss", "targets"), LOSSES.values(), ids=LOSSES)


@each_loss
def test_second_moment_is_the_gauss_newton_matrix(seeded, loss, targets):
    module, data = mlp(D, 4, C), batches(4, targets=targets)
    pairs = noisy_gradients(module, data, loss, n_redraws=200, generator=seeded)
    truth = gauss_newton(module, loss, data) / pairs.gradient_scale
    H = pairs.noise_gradients
    error = relative_error(H.T @ H / len(H), truth)
    rank = np.trace(truth) / np.linalg.norm(truth, 2)
    assert error < 1.5 * (2 * math.sqrt(rank / len(H)) + rank / len(H))


@each_loss
def test_clean_gradients_are_those_of_the_loss(seeded, loss, targets):
    module, data = mlp(D, 4, C), batches(3, targets=targets)
    pairs = noisy_gradients(module, data, loss, generator=seeded)
    expected = [clean_gradient(module, loss, x, y) / pairs.gradient_scale for x, y in data]
    np.testing.assert_allclose(pairs.clean_gradients, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(pairs.mean_gradient, np.mean(expected, axis=0), atol=1e-15)


def test_a_pair_is_two_gradients_at_noisy_targets(seeded):
    module, loss = mlp(D, 4, 1), nn.MSELoss()
    data = batches(3, targets=regression)
    pairs = noisy_gradients(module, data, loss, generator=seeded)
    seeded.manual_seed(1)
    torch.randint(2**62, (), generator=seeded)  # drawn for whatever else is random
    for (x, y), plus, minus in zip(data, *pairs, strict=True):
        xi = math.sqrt(N) * (2.0 * torch.randint(0, 2, (N, 1), generator=seeded).double() - 1)
        for sign, gradient in ((1, plus), (-1, minus)):
            expected = clean_gradient(module, loss, x, y + sign * xi) / 2
            np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-12)


def test_redraws_share_the_clean_gradient(seeded):
    pairs = noisy_gradients(
        mlp(D, C), batches(2), nn.CrossEntropyLoss(), n_redraws=3, generator=seeded
    )
    plus, minus = pairs
    assert plus.shape == minus.shape == (6, 18)
    np.testing.assert_allclose((plus + minus) / 2, np.repeat(pairs.clean_gradients, 3, axis=0))
    assert len(np.unique(pairs.noise_gradients, axis=0)) == 6


# The estimator, on what a module gives


def linear(d=D):
    module = nn.Linear(d, 1).double()
    return module, module.weight.detach()[0].numpy(), module.bias.item()


GLMS = {
    "squared_error": (nn.MSELoss(), regression, lambda f: np.ones_like(f)),
    "log_loss": (
        nn.BCEWithLogitsLoss(),
        lambda x: (regression(x) > 0).double(),
        lambda f: expit(f) * expit(-f),
    ),
    "poisson": (nn.PoissonNLLLoss(), lambda x: x[:, :1].exp().round(), np.exp),
}


@pytest.mark.parametrize("loss", GLMS)
def test_a_linear_module_gives_the_hessian_of_the_package(seeded, loss):
    criterion, targets, curvature = GLMS[loss]
    module, coef, intercept = linear()
    data = batches(150, targets=targets)
    pairs = noisy_gradients(module, data, criterion, n_redraws=10, generator=seeded)
    ours = GradientCovarianceEstimator(loss=loss).partial_fit_gradients(
        *pairs, batch_size=N, **LINEAR
    )
    X, y = (np.concatenate([b[i].numpy() for b in data]) for i in (0, 1))
    exact = GradientCovarianceEstimator(batch_size=1, loss=loss)
    exact.fit(X, y.ravel(), coef=coef, intercept=intercept)
    expected = ours.expected_error_
    assert relative_error(ours.covariance_, exact.covariance_) < 1.5 * expected
    # the whole matrix, intercept included, in the closed form
    Z = np.column_stack([X, np.ones(len(X))])
    v = curvature(X @ coef + intercept)
    H = pairs.noise_gradients
    assert relative_error(H.T @ H / len(H), Z.T @ (v[:, None] * Z) / len(Z)) < 1.5 * expected
    np.testing.assert_allclose(ours.mean_gradient_, exact.mean_gradient_, rtol=1e-9, atol=1e-12)


def test_report_of_a_linear_module_finds_nothing(seeded):
    module, _, _ = linear()
    data = batches(400, targets=regression)
    pairs = noisy_gradients(module, data, nn.MSELoss(), generator=seeded)
    estimator = GradientCovarianceEstimator().partial_fit_gradients(*pairs, batch_size=N, **LINEAR)
    report = calibration_report(estimator)
    assert report.failures == ()
    assert abs(report.noise_ratio - 1) < 5 * math.sqrt(2 / 400)


def test_report_of_a_network_names_too_few_batches(seeded):
    pairs = noisy_gradients(mlp(D, 4, C), batches(20), nn.CrossEntropyLoss(), generator=seeded)
    with pytest.warns(CalibrationWarning, match="Only 20 batch gradients"):
        estimator = estimate(pairs)
    (failure,) = calibration_report(estimator).failures
    assert failure.name == "too few batches for the dimension"
    assert "Only 20 batch gradients for 39 features" in failure.fact


def test_a_newton_step_of_a_network_is_the_gauss_newton_step(seeded):
    module, loss = mlp(3, 3, 1), nn.MSELoss()
    data = batches(200, d=3, targets=lambda x: torch.sin(x[:, :1]))
    pairs = noisy_gradients(module, data, loss, n_redraws=8, generator=seeded)
    estimator = estimate(pairs)
    step = estimator.newton_step(pairs.mean_gradient)
    exact = np.linalg.solve(estimator.covariance_, pairs.mean_gradient)
    np.testing.assert_allclose(step, exact, rtol=1e-6)
    model = gauss_newton(module, loss, data[:40]) / 2
    step = 0.01 * step  # the model is quadratic, the loss is not
    X, y = (torch.cat([b[i] for b in data]) for i in (0, 1))
    before = loss(module(X), y).item() / 2
    start = torch.nn.utils.parameters_to_vector(module.parameters())
    torch.nn.utils.vector_to_parameters(start - torch.as_tensor(step), module.parameters())
    after = loss(module(X), y).item() / 2
    predicted = pairs.mean_gradient @ step - step @ model @ step / 2
    assert before - after == pytest.approx(predicted, rel=0.1)


def test_excess_risk_of_a_network_is_the_newton_decrement(seeded):
    # far from the optimum and one long look, so that the clean gradient is known well
    module, loss = mlp(3, 3, 1), nn.MSELoss()
    data = batches(1000, d=3, targets=lambda x: x.sum(1, keepdim=True))
    pairs = noisy_gradients(module, data, loss, generator=seeded)
    curvature = gauss_newton(module, loss, data[:50]) / 2
    g = pairs.mean_gradient
    decrement = g @ np.linalg.solve(curvature, g)
    assert estimate(pairs).excess_risk_ == pytest.approx(decrement, rel=0.3)


def test_risk_under_attack_of_the_last_layer(seeded):
    module = mlp(D, 4, 1)
    data = batches(3000, n=8, targets=regression)
    layer = module[-1]
    pairs = noisy_gradients(module, data, nn.MSELoss(), parameters=layer, generator=seeded)
    assert pairs.parameter_names == ("2.weight", "2.bias")
    risk = gradient_adversarial_risk(
        *pairs,
        coef=layer.weight.detach()[0].numpy(),
        batch_size=8,
        radius=0.5,
        **LINEAR,
    )
    X, y = (torch.cat([b[i] for b in data]) for i in (0, 1))
    exact = adversarial_mean_squared_error(
        y.numpy(), module(X).detach().numpy(), radius=0.5, dual_norm=layer.weight.norm().item()
    )
    assert risk.value == pytest.approx(exact, rel=0.1)


def test_spectrum_of_a_network_is_displayed(seeded):
    module, loss, data = mlp(D, 4, C), nn.CrossEntropyLoss(), batches(10)
    pairs = noisy_gradients(module, data, loss, n_redraws=10, generator=seeded)
    with pytest.warns(CalibrationWarning, match="covariance is singular"):  # as softmax is
        estimator = estimate(pairs)
    display = HessianSpectrumDisplay.from_estimator(
        estimator, covariance=gauss_newton(module, loss, data)
    )
    assert len(display.lines_) == 2


# Which parameters


def test_parameters_by_layer_by_tensor_and_by_name(seeded):
    module, data, loss = mlp(D, 4, C), batches(2), nn.CrossEntropyLoss()
    every = noisy_gradients(module, data, loss, generator=seeded.manual_seed(1))
    assert every.parameter_names == ("0.weight", "0.bias", "2.weight", "2.bias")
    for chosen in (module[2], module[2].parameters(), "2", ["2.weight", "2.bias"]):
        pairs = noisy_gradients(
            module, data, loss, parameters=chosen, generator=seeded.manual_seed(1)
        )
        assert pairs.parameter_names == ("2.weight", "2.bias")
        np.testing.assert_allclose(pairs.noise_gradients, every.noise_gradients[:, -15:])
    for chosen in ("0.bias", module[0].bias, ["0.bias", module[0].bias]):
        pairs = noisy_gradients(
            module, data, loss, parameters=chosen, generator=seeded.manual_seed(1)
        )
        np.testing.assert_allclose(pairs.gradients, every.gradients[:, 20:24])


def test_frozen_parameters_are_left_out_unless_asked_for(seeded):
    module, data, loss = mlp(D, 4, C), batches(2), nn.CrossEntropyLoss()
    module[0].requires_grad_(False)
    pairs = noisy_gradients(module, data, loss, generator=seeded)
    assert pairs.parameter_names == ("2.weight", "2.bias")
    with pytest.raises(ValueError, match=r"frozen are \['0\.weight', '0\.bias'\]"):
        noisy_gradients(module, data, loss, parameters=module[0])
    module.requires_grad_(False)
    with pytest.raises(ValueError, match="Sequential has no parameter that requires gradients"):
        noisy_gradients(module, data, loss)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("1", "parameters has '1' that is none of the module's: 0.weight, 0.bias, 2.weight"),
        (nn.Linear(2, 2), "parameters has a Parameter that is none of the module's"),
        ([], "parameters must be one or more that require gradients; 0 were found"),
        ([3], "parameters has a int that is none of the module's"),
    ],
)
def test_unknown_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        noisy_gradients(mlp(D, 4, C), batches(1), nn.CrossEntropyLoss(), parameters=parameters)


# Which modules


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.head = nn.Linear(2, C)

    def forward(self, x):
        return self.head(self.norm(self.convolution(x)).tanh().mean((2, 3)))


class Shared(nn.Module):
    """One layer used twice."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(D, D), nn.Linear(D, C)

    def forward(self, x):
        return self.head(self.layer(self.layer(x).tanh()).tanh())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(2, 3, batch_first=True), nn.Linear(3, C)

    def forward(self, x):
        return self.head(self.gru(x)[0][:, -1])


@pytest.mark.parametrize(
    ("module", "shape"),
    [(Convolutions, (1, 6, 6)), (Shared, (D,)), (Recurrent, (4, 2))],
)
def test_any_architecture(seeded, module, shape):
    module = module().double().eval()
    data = [(torch.randn(N, *shape).double(), torch.randint(0, C, (N,))) for _ in range(2)]
    loss = nn.CrossEntropyLoss()
    pairs = noisy_gradients(module, data, loss, n_redraws=300, generator=seeded)
    truth = gauss_newton(module, loss, data)
    H = pairs.noise_gradients
    rank = np.trace(truth) / np.linalg.norm(truth, 2)
    expected = 2 * math.sqrt(rank / len(H)) + rank / len(H)
    assert relative_error(H.T @ H / len(H), truth) < 1.5 * expected


def test_dropout_draws_one_mask_a_batch(seeded):
    # The inputs are ones and the outputs the sum of what the mask keeps: it shows in both gradients
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(40, 1, bias=False)).double()
    data = [(torch.ones(1, 40).double(), torch.zeros(1, 1).double()) for _ in range(6)]
    pairs = noisy_gradients(module, data, nn.MSELoss(), n_redraws=2, generator=seeded)
    kept = pairs.clean_gradients != 0
    assert 0.3 < kept.mean() < 0.7
    np.testing.assert_array_equal(pairs.noise_gradients != 0, np.repeat(kept, 2, axis=0))
    assert len(np.unique(kept, axis=0)) == 6


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(D), nn.BatchNorm1d(D, track_running_stats=False)])
def test_statistics_of_the_batch_are_refused(layer):
    module = nn.Sequential(layer, nn.Linear(D, C)).double()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match="BatchNorm1d '0' would normalise with the statistics"):
        noisy_gradients(module, batches(1), nn.CrossEntropyLoss())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_several_inputs_and_their_names(seeded):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(D, C), nn.Linear(2, C)

        def forward(self, left, right):
            return self.left(left) + self.right(right)

    module, loss = Two(), nn.CrossEntropyLoss()
    left, right, y = torch.randn(8, D), torch.randn(8, 2), torch.randint(0, C, (8,))
    found = [
        noisy_gradients(module, [(inputs, y)], loss, generator=seeded.manual_seed(1))
        for inputs in ((left, right), {"left": left, "right": right}, [left.numpy(), right.numpy()])
    ]
    assert all(np.array_equal(found[0].gradients, other.gradients) for other in found[1:])


class Broken(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.layer = nn.Linear(D, C)
        self.after = forward

    def forward(self, x):
        return self.after(self.layer(x))


@pytest.mark.parametrize(
    ("after", "error", "message"),
    [
        (lambda f: (f, f), TypeError, "The module returns a tuple, not a tensor"),
        (lambda f: f.detach(), ValueError, "outputs do not depend on its parameters"),
        (lambda f: f * math.inf, ValueError, "The gradients of batch 0 are not finite"),
    ],
)
def test_modules_that_cannot_be_looked_at(after, error, message):
    with pytest.raises(error, match=message):
        noisy_gradients(Broken(after).double(), batches(1), nn.CrossEntropyLoss())


@pytest.mark.parametrize("parameters", [None, "idle"])
def test_a_parameter_that_moves_nothing(seeded, parameters):
    module = mlp(D, C)
    module.register_parameter("idle", nn.Parameter(torch.zeros(2).double()))
    if parameters is None:
        pairs = noisy_gradients(module, batches(2), nn.CrossEntropyLoss(), generator=seeded)
        assert pairs.parameter_names[0] == "idle"
        assert not pairs.gradients[:, :2].any()
        return
    with pytest.raises(ValueError, match="The curvature is zero in all 2 batches"):
        noisy_gradients(module, batches(2), nn.CrossEntropyLoss(), parameters=parameters)


def test_a_piecewise_linear_loss_is_refused(seeded):
    with pytest.raises(ValueError, match=r"The curvature is zero in all 2 batches: .*L1Loss"):
        noisy_gradients(mlp(D, 1), batches(2, targets=regression), nn.L1Loss())


# Loaders and randomness


def test_a_smaller_last_batch_is_left_out_with_a_warning(seeded):
    dataset = TensorDataset(torch.randn(20, D), torch.randint(0, C, (20,)))
    with pytest.warns(CalibrationWarning, match="The last batch has 4 rows, the others 8"):
        pairs = noisy_gradients(
            nn.Linear(D, C), DataLoader(dataset, 8), nn.CrossEntropyLoss(), generator=seeded
        )
    assert pairs.batch_size == 8
    assert len(pairs.gradients) == 2


@pytest.mark.parametrize(("sizes", "number"), [((4, 6), 1), ((4, 3, 4), 2), ((4, 4, 3, 3), 3)])
def test_batches_of_different_sizes_are_refused(sizes, number):
    data = [batches(1, n)[0] for n in sizes]
    with pytest.raises(ValueError, match=f"Batch {number} has {sizes[number]} rows, batches befo"):
        noisy_gradients(mlp(D, C), data, nn.CrossEntropyLoss())


def test_loaders_without_batches_or_without_pairs():
    module, loss = mlp(D, C), nn.CrossEntropyLoss()
    with pytest.raises(ValueError, match="The loader has no batch"):
        noisy_gradients(module, [], loss)
    with pytest.raises(TypeError, match="Batch 0 of the loader is a Tensor, not a pair of inputs"):
        noisy_gradients(module, [torch.zeros(3, D)], loss)
    with pytest.raises(ValueError, match="n_redraws == 0, must be >= 1"):
        noisy_gradients(module, batches(1), loss, n_redraws=0)


def noisy_loader():
    dataset = TensorDataset(torch.randn(32, D), torch.randint(0, C, (32,)))
    return DataLoader(dataset, 8, shuffle=True), nn.Sequential(nn.Dropout(), nn.Linear(D, C))


def test_a_generator_repeats_the_call_and_leaves_the_global_state(seeded):
    loader, module = noisy_loader()
    state = torch.get_rng_state()
    first, again, other = (
        noisy_gradients(
            module, loader, nn.CrossEntropyLoss(), generator=torch.Generator().manual_seed(seed)
        ).gradients
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_without_a_generator_the_global_state_decides(seeded):
    loader, module = noisy_loader()
    found = []
    for seed in (0, 0, None):  # None: goes on
        if seed is not None:
            torch.manual_seed(seed)
        found.append(noisy_gradients(module, loader, nn.CrossEntropyLoss()).gradients)
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_the_module_is_as_it_was(seeded):
    module, data = mlp(D, 4, C), batches(2)
    module[0].weight.grad = torch.ones_like(module[0].weight)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        noisy_gradients(module, data, nn.CrossEntropyLoss(), generator=seeded)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(module[0].weight.grad, torch.ones_like(module[0].weight))
    assert module[2].weight.grad is None
    assert module.training


@pytest.mark.parametrize(
    ("dtype", "expected", "tolerance"),
    [
        (torch.float64, np.float64, 1e-12),
        (torch.float32, np.float32, 1e-4),
        (torch.bfloat16, np.float32, 0.1),
    ],
)
def test_precision(seeded, dtype, expected, tolerance):
    module, data, loss = mlp(D, 4, C), batches(3), nn.CrossEntropyLoss()
    exact = noisy_gradients(module, data, loss, generator=seeded.manual_seed(1))
    low = [(x.to(dtype), y) for x, y in data]
    pairs = noisy_gradients(module.to(dtype), low, loss, generator=seeded.manual_seed(1))
    for name in ("noise_gradients", "clean_gradients"):
        found, wanted = getattr(pairs, name), getattr(exact, name)
        assert found.dtype == expected
        assert np.linalg.norm(found - wanted) < tolerance * np.linalg.norm(wanted)


@CUDA
def test_a_device_gives_what_the_processor_gives(seeded):
    module, data, loss = mlp(D, 4, C), batches(3), nn.CrossEntropyLoss()
    here = noisy_gradients(module, data, loss, generator=seeded.manual_seed(1))
    there = noisy_gradients(module.cuda(), data, loss, generator=seeded.manual_seed(1))
    np.testing.assert_allclose(there.gradients, here.gradients, rtol=1e-9, atol=1e-12)
    on_device = torch.Generator("cuda").manual_seed(1)
    noisy_gradients(module, data, loss, generator=on_device)


# Spectrum without the matrix


@pytest.mark.parametrize(("k", "p"), [(7, 30), (30, 7), (5, 40_000)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_eigenpairs_are_those_of_the_second_moment(rng, k, p, dtype):
    H = (rng.standard_normal((k, p)) * np.linspace(1, 3, k)[:, None]).astype(dtype)
    values, vectors = top_eigenpairs(H, n_components=5)
    _, s, Vt = np.linalg.svd(H.astype(np.float64) / math.sqrt(k), full_matrices=False)
    np.testing.assert_allclose(values, s[:5] ** 2, rtol=1e-9)
    assert vectors.dtype == dtype
    np.testing.assert_allclose(np.abs((vectors * Vt[:5]).sum(1)), 1.0, rtol=1e-5)


def test_eigenvalues_of_zero_have_no_direction(rng):
    H = np.outer(rng.standard_normal(4), rng.standard_normal(9))
    values, vectors = top_eigenpairs(H, n_components=4)
    assert values[0] == pytest.approx((H**2).sum() / 4)
    assert np.all(values[1:] < 1e-12 * values[0])
    assert not vectors[1:].any()
    assert not top_eigenpairs(np.zeros((2, 3)), n_components=1)[1].any()


def test_eigenpairs_refuse_what_is_not_there():
    with pytest.raises(ValueError, match="n_components == 5, must be <= 4"):
        top_eigenpairs(np.ones((4, 9)), n_components=5)
    with pytest.raises(ValueError, match="noise_gradients contains NaN"):
        top_eigenpairs(np.full((4, 9), np.nan))
