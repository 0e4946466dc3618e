"""The noise has the Hessian of the loss as covariance: checked against autograd, loss by loss."""

import math

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from sklearn_gradhess.torch._loss_hessian import (  # noqa: E402
    as_loss,
    batch_loss,
    gradient_scale,
    hessian_root,
    signs,
)

REDUCTIONS = ("mean", "sum", "none")
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
N, C = 6, 4


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


def normal(draw, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)


def dense_hessian(loss, f, y):
    """Hessian of the loss of a batch in its outputs, all rows together."""
    H = torch.autograd.functional.hessian(lambda f: loss(f, y).mean(), f)
    return H.reshape(f.numel(), f.numel())


def covariance(loss, f, y):
    """Covariance of the noise: the root, column by column, times its transpose."""
    root = hessian_root(loss, f, y)
    columns = [root(unit.view_as(f)).flatten() for unit in torch.eye(f.numel(), dtype=f.dtype)]
    R = torch.stack(columns, 1)
    return R @ R.T


def check(loss, f, y):
    torch.testing.assert_close(
        covariance(loss, f, y), dense_hessian(loss, f, y), rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("trailing", [(), (2,), (2, 3)])
@pytest.mark.parametrize("targets", ["classes", "ignored", "probabilities"])
def test_cross_entropy(draw, reduction, weight, label_smoothing, trailing, targets):
    loss = nn.CrossEntropyLoss(weight, reduction=reduction, label_smoothing=label_smoothing)
    f = 2 * normal(draw, N, C, *trailing)
    y = torch.randint(0, C, (N, *trailing), generator=draw)
    if targets == "ignored":
        y[::3] = loss.ignore_index
    elif targets == "probabilities":
        y = normal(draw, N, C, *trailing).softmax(1)
    check(loss, f, y)


@pytest.mark.parametrize("ignore_index", [1, -1])
def test_cross_entropy_ignores_any_index(draw, ignore_index):
    loss = nn.CrossEntropyLoss(WEIGHT, ignore_index=ignore_index)
    check(loss, normal(draw, N, C), torch.tensor([0, ignore_index, 2, 3, ignore_index, 0]))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, C), (N, 2, 3)])
def test_squared_error_and_poisson(draw, reduction, shape):
    f, y = normal(draw, *shape), normal(draw, *shape).exp()
    check(nn.MSELoss(reduction=reduction), f, y)
    check(nn.PoissonNLLLoss(reduction=reduction), f, y)
    check(nn.PoissonNLLLoss(reduction=reduction, full=True), f, y)
    check(nn.PoissonNLLLoss(log_input=False, reduction=reduction), f.exp(), y)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [None, WEIGHT, torch.rand(N, 1)])
@pytest.mark.parametrize("pos_weight", [None, 3 * WEIGHT, torch.tensor(2.0)])
def test_binary_cross_entropy(draw, reduction, weight, pos_weight):
    loss = nn.BCEWithLogitsLoss(weight, pos_weight=pos_weight, reduction=reduction)
    check(loss, normal(draw, N, C), torch.rand(N, C, generator=draw, dtype=torch.float64))


@pytest.mark.parametrize(
    "loss",
    [
        nn.HuberLoss(delta=0.7),
        nn.HuberLoss(delta=0.7, reduction="sum"),
        nn.SoftMarginLoss(reduction="none"),
        lambda f, y: (f - y).square().sum(1).sqrt().mean(),
        lambda f, y: torch.logsumexp(f - y, 1).sum(),
        lambda f, y: ((f - y) ** 4).sum((1, 2) if f.ndim == 3 else 1),
    ],
    ids=["huber", "huber sum", "soft margin", "distance", "log sum exp", "fourth power"],
)
@pytest.mark.parametrize("shape", [(N, C), (N, 2, 2)])
def test_any_other_loss(draw, loss, shape):
    f, y = normal(draw, *shape), normal(draw, *shape).sign()
    check(loss, f, y)


def test_negative_curvature_counts_as_zero(draw):
    def loss(f, y):
        return (1 - torch.exp(-((f - y) ** 2) / 2)).sum(1).mean()  # concave beyond one

    f, y = 2 * normal(draw, N, 2), torch.zeros(N, 2, dtype=torch.float64)
    curvature = ((1 - f**2) * torch.exp(-(f**2) / 2)).flatten() / N
    assert (curvature < 0).any()
    assert (curvature > 0).any()
    torch.testing.assert_close(covariance(loss, f, y), torch.diag(curvature.clamp_min(0)))


@pytest.mark.parametrize(
    ("function", "module"),
    [
        (F.cross_entropy, nn.CrossEntropyLoss),
        (F.mse_loss, nn.MSELoss),
        (F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss),
        (F.poisson_nll_loss, nn.PoissonNLLLoss),
    ],
)
def test_functions_are_their_modules(function, module):
    assert type(as_loss(function)) is module


@pytest.mark.parametrize("loss", ["mse", nn.MSELoss, None])
def test_what_is_no_loss_is_refused(loss):
    with pytest.raises(TypeError, match=r"loss must be a module such as nn\.CrossEntropyLoss\(\)"):
        as_loss(loss)


@pytest.mark.parametrize(
    ("loss", "scale"),
    [
        (nn.MSELoss(), 2),
        (nn.MSELoss(reduction="none"), 2),
        (nn.MSELoss(reduction="sum"), 20),
        (nn.CrossEntropyLoss(), 1),
        (nn.CrossEntropyLoss(reduction="sum"), 10),
        (nn.HuberLoss(), 1),
        (lambda f, y: f.sum(), 1),
    ],
)
def test_scale_of_gradients(loss, scale):
    assert gradient_scale(loss, 10) == scale


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.PoissonNLLLoss(), nn.BCEWithLogitsLoss()])
def test_targets_must_have_the_shape_of_the_outputs(loss):
    with pytest.raises(
        ValueError, match=r"outputs of shape \(6, 1\), but the targets have shape \(6,\)"
    ):
        batch_loss(loss, torch.zeros(6, 1), torch.zeros(6))


def test_cross_entropy_needs_a_dimension_of_classes():
    with pytest.raises(ValueError, match=r"outputs of shape \(4,\); CrossEntropyLoss needs rows"):
        hessian_root(nn.CrossEntropyLoss(), torch.zeros(4), torch.tensor(1))


def test_a_linear_loss_is_refused():
    def loss(f, y):
        return (f * y).sum()

    with pytest.raises(ValueError, match="does not change with the outputs: it has no curvature"):
        hessian_root(loss, torch.ones(3, 1), torch.zeros(3, 1))


def test_a_loss_that_couples_rows_is_refused(draw):
    def contrast(f, y):
        return torch.logsumexp(f.flatten(), 0) - f.mean()

    with pytest.raises(ValueError, match="contrast couples the rows of a batch"):
        hessian_root(contrast, normal(draw, N, 2), None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_low_precision_is_left_for_the_roots(draw, dtype):
    f, y = normal(draw, N, C, dtype=dtype), torch.randint(0, C, (N,), generator=draw)
    z = signs(f, draw)
    xi = hessian_root(nn.CrossEntropyLoss(), f, y)(z)
    assert z.dtype == xi.dtype == torch.promote_types(dtype, torch.float32)
    exact = hessian_root(nn.CrossEntropyLoss(), f.double(), y)(z.double())
    torch.testing.assert_close(xi.double(), exact, rtol=1e-5, atol=1e-6)


def test_signs_are_fair_and_repeatable():
    f = torch.zeros(20_000)
    z = signs(f, torch.Generator().manual_seed(1))
    assert z.abs().min() == 1
    assert abs(z.mean()) < 5 / math.sqrt(len(f))
    assert torch.equal(z, signs(f, torch.Generator().manual_seed(1)))
