"""The optimiser: exact where it should be, its state, its protocol, and what it refuses."""

import copy
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sklearn.datasets import load_digits  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from torch import nn  # noqa: E402

from sklearn_gradhess.torch import TargetNoiseKFAC  # noqa: E402


@pytest.fixture(autouse=True)
def seeded():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def closure_of(optimiser, net, loss, x, y):
    def closure():
        optimiser.zero_grad()
        value = loss(net(x), y)
        value.backward()
        return value

    return closure


def train(net, loss, x, y, n_epochs, batch_size=64, optimiser=None):
    optimiser = TargetNoiseKFAC(net, loss) if optimiser is None else optimiser
    for _ in range(n_epochs):
        for rows in torch.randperm(len(x)).split(batch_size):
            optimiser.step(closure_of(optimiser, net, loss, x[rows], y[rows]))
    return optimiser


def digits(n=512):
    X, y = load_digits(return_X_y=True)
    return torch.as_tensor(X[:n] / 16).float(), torch.as_tensor(y[:n])


def encoder():
    return nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 64))


# One linear layer and the squared loss


def linear_problem():
    x = torch.randn(256, 5, dtype=torch.float64) @ torch.diag(torch.logspace(0, -1, 5)).double()
    y = x.sum(1, keepdim=True) + 0.1 * torch.randn(256, 1, dtype=torch.float64)
    return nn.Linear(5, 1).double(), nn.MSELoss(), x, y


def test_factors_of_one_linear_layer_are_its_hessian():
    net, loss, x, y = linear_problem()
    optimiser = TargetNoiseKFAC(net, loss)
    for _ in range(3):
        optimiser.step(closure_of(optimiser, net, loss, x, y))
    (layer,) = optimiser.state["layers"]
    Z = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    torch.testing.assert_close(torch.kron(layer["G"], layer["A"]), 2 * Z.T @ Z / len(Z))
    root = math.sqrt(optimiser.state["run"]["damping"])
    assert root > 0


def test_a_step_along_one_linear_layer_is_the_damped_newton_step():
    net, loss, x, y = linear_problem()
    optimiser, start = TargetNoiseKFAC(net, loss), copy.deepcopy(net)
    optimiser.step(closure_of(optimiser, net, loss, x, y))
    (layer,), run = optimiser.state["layers"], optimiser.state["run"]
    Z = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    H = 2 * Z.T @ Z / len(Z)
    old = torch.cat([start.weight[0], start.bias]).detach()
    g = H @ old - 2 * Z.T @ y[:, 0] / len(Z)
    D = -(layer["G_inverse"] * (layer["A_inverse"] @ g))[0]
    # the step minimises the quadratic model, damped by what was before the first update
    direction = run["direction"]
    length = (direction @ D) / (D @ D)
    torch.testing.assert_close(direction, length * D)
    assert 0 < length <= -(g @ D) / (D @ H @ D) * (1 + 1e-9)


def test_least_squares_is_reached():
    net, loss, x, y = linear_problem()
    Z = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    exact = torch.linalg.lstsq(Z, y).solution
    train(net, loss, x, y, 60, batch_size=256)
    found = torch.cat([net.weight[0], net.bias]).detach()
    assert (found - exact[:, 0]).norm() < 1e-3


# Networks learn


@pytest.mark.parametrize("task", ["autoencoder", "classes", "convolutions", "sequence", "logits"])
def test_networks_learn(task):
    x, y = digits()
    loss = nn.CrossEntropyLoss(torch.linspace(0.5, 2, 10), label_smoothing=0.01)
    if task == "autoencoder":
        net, loss, y = encoder(), nn.MSELoss(), x
    elif task == "classes":
        net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    elif task == "convolutions":
        x = x.view(-1, 1, 8, 8)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=(1, 1), bias=False),
            nn.ReLU(),
            nn.Conv2d(4, 8, 2, dilation=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 10),
        )
    elif task == "sequence":  # a linear layer at every one of eight positions
        x = x.view(-1, 8, 8)
        net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Flatten(), nn.Linear(48, 10))
    else:
        net, loss = nn.Linear(64, 10), nn.BCEWithLogitsLoss(reduction="sum")
        y = nn.functional.one_hot(y, 10).float()
    before = loss(net(x), y).item()
    train(net, loss, x, y, 5)
    after = loss(net(x), y).item()
    bound = {"autoencoder": 0.25, "logits": 0.25}.get(task, 0.15)
    assert after < bound * before


class Squared(nn.Module):
    """MSELoss, of which no closed form is known."""

    def forward(self, f, y):
        return (f - y).square().mean()


def test_a_loss_by_its_derivatives_alone_makes_the_steps_of_its_closed_form():
    x = torch.randn(256, 3, dtype=torch.float64)
    y = x.sum(1, keepdim=True) + torch.randn(256, 1, dtype=torch.float64)
    nets = [nn.Linear(3, 1).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for net, loss in zip(nets, (nn.MSELoss(), Squared()), strict=True):
        generator = torch.Generator().manual_seed(0)
        optimiser = TargetNoiseKFAC(net, loss, generator=generator)
        for _ in range(3):
            optimiser.step(closure_of(optimiser, net, loss, x, y))
        assert not loss._forward_hooks
    torch.testing.assert_close(nets[0].weight, nets[1].weight)
    torch.testing.assert_close(nets[0].bias, nets[1].bias)


@pytest.mark.parametrize("loss", [nn.HuberLoss(), nn.SmoothL1Loss(beta=2.0)], ids=str)
def test_robust_losses_are_learned(loss):
    x = torch.randn(512, 3)
    y = x.sum(1, keepdim=True) + 0.1 * torch.randn(512, 1)
    net = nn.Linear(3, 1)
    train(net, loss, x, y, 20)
    # The statistical error is 0.1/sqrt(512), under .005; mini-batches of 64 add some of their own
    torch.testing.assert_close(net.weight.detach(), torch.ones(1, 3), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("loss", "name"), [(nn.HuberLoss(), "delta"), (nn.SmoothL1Loss(beta=2.0), "beta")], ids=str
)
def test_targets_far_beyond_the_bend_are_refused(loss, name):
    net = nn.Linear(3, 1)
    optimiser = TargetNoiseKFAC(net, loss)
    y = 1e3 + torch.randn(8, 1)
    with pytest.raises(ValueError, match=f"farther from its target than {name}.* or raise {name}"):
        optimiser.step(closure_of(optimiser, net, loss, torch.randn(8, 3), y))


def test_a_loss_without_curvature_is_refused():
    net, loss = nn.Linear(3, 1), nn.L1Loss()
    optimiser = TargetNoiseKFAC(net, loss)
    with pytest.raises(ValueError, match=r"The curvature of L1Loss\(\) is zero in the first batch"):
        optimiser.step(closure_of(optimiser, net, loss, torch.randn(8, 3), torch.randn(8, 1)))
    assert not loss._forward_hooks


def test_the_scale_of_the_loss_does_not_matter():
    x, y = digits(256)
    found = []
    for reduction in ("mean", "sum"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
        loss = nn.CrossEntropyLoss(reduction=reduction)
        train(net, loss, x.double(), y, 2, batch_size=64)
        found.append(net[0].weight.detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


def test_activations_may_work_in_place():
    x, y = digits(256)
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(inplace=inplace), nn.Linear(16, 10))
        train(net, nn.CrossEntropyLoss(), x, y, 2)
        found.append(net[0].weight.detach())
    torch.testing.assert_close(found[0], found[1])


def test_a_loss_of_zero_is_no_accident():
    x = torch.randn(64, 3)
    net, loss = nn.Linear(3, 2), nn.CrossEntropyLoss()
    train(net, loss, 10 * x, (x[:, 0] > 0).long(), 80)
    assert loss(net(10 * x), (x[:, 0] > 0).long()) < 1e-3
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_a_smaller_last_batch_moves_in_proportion():
    net, loss, x, y = linear_problem()
    optimiser = train(net, loss, x, y, 1, batch_size=256)
    run, twin = optimiser.state["run"], copy.deepcopy(net)
    assert run["rows"] == 256
    small = TargetNoiseKFAC(twin, loss)
    small.load_state_dict(optimiser.state_dict())
    full = TargetNoiseKFAC(copy.deepcopy(net), loss)
    full.load_state_dict(optimiser.state_dict())
    full.state["run"]["rows"] = 4
    lengths = []
    for method in (small, full):
        torch.manual_seed(1)
        module = method._module
        method.step(closure_of(method, module, loss, x[:4], y[:4]))
        lengths.append(method.state["run"]["direction"])
    torch.testing.assert_close(64 * lengths[0], lengths[1])


# The protocol


def test_the_closure_is_called_twice_where_the_loss_is_looked_at_again():
    net, loss, x, y = linear_problem()
    optimiser, calls = TargetNoiseKFAC(net, loss, factors_every=3), []
    closure = closure_of(optimiser, net, loss, x, y)

    def counted():
        calls.append(optimiser.state["run"]["step"])
        return closure()

    values = [optimiser.step(counted).item() for _ in range(6)]
    assert calls == [0, 0, 1, 2, 3, 3, 4, 5]
    assert values[-1] < values[0]


def test_random_numbers_and_buffers_are_restored_for_the_second_look():
    seen = []
    net = nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Dropout(), nn.Linear(6, 1))
    net[1].register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    loss, x, y = nn.MSELoss(), torch.randn(32, 6), torch.randn(32, 1)
    optimiser = TargetNoiseKFAC(net, loss)
    optimiser.step(closure_of(optimiser, net, loss, x, y))
    first, second = seen
    assert torch.equal(first, second)  # the same mask
    assert net[0].num_batches_tracked == 1
    torch.testing.assert_close(net[0].running_mean, 0.1 * x.mean(0))


def test_state_goes_on_where_it_stopped():
    x, _ = digits(256)
    net, loss = encoder(), nn.MSELoss()
    optimiser = train(net, loss, x, x, 3)
    twin = copy.deepcopy(net)
    resumed = TargetNoiseKFAC(twin, loss)
    state = optimiser.state_dict()
    resumed.load_state_dict(state)
    saved = copy.deepcopy(state["state"]["run"])
    for method, module in ((optimiser, net), (resumed, twin)):
        torch.manual_seed(5)
        train(module, loss, x, x, 2, optimiser=method)
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert saved["step"] == 12
    assert optimiser.state["run"]["step"] == resumed.state["run"]["step"] == 20


def test_a_generator_draws_the_noise():
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        _, loss, x, _ = linear_problem()
        net, y = nn.Linear(5, 3).double(), x[:, :3]  # with one output signs would cancel
        state = torch.get_rng_state()
        optimiser = TargetNoiseKFAC(net, loss, generator=torch.Generator().manual_seed(seed))
        for _ in range(3):
            optimiser.step(closure_of(optimiser, net, loss, x, y))
        assert torch.equal(torch.get_rng_state(), state)
        found.append(net.weight.detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_hooks_are_gone_after_a_step_and_after_an_error():
    net, loss, x, y = linear_problem()
    optimiser = TargetNoiseKFAC(net, loss)
    optimiser.step(closure_of(optimiser, net, loss, x, y))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        optimiser.step(closure_of(optimiser, net, loss, x[:, :2], y))
    assert not net._forward_hooks
    assert not loss._forward_hooks


def test_bfloat16_has_factors_in_single_precision():
    x, _ = digits(256)
    x, net, loss = x.bfloat16(), encoder().bfloat16(), nn.MSELoss()
    before = loss(net(x), x).item()
    optimiser = train(net, loss, x, x, 5)
    assert {layer["A"].dtype for layer in optimiser.state["layers"]} == {torch.float32}
    assert net[0].weight.dtype == torch.bfloat16
    assert loss(net(x), x).item() < 0.5 * before
    again = TargetNoiseKFAC(net, loss)
    again.load_state_dict(optimiser.state_dict())
    assert again.state["layers"][0]["G_inverse"].dtype == torch.float32


# When things go wrong


def test_a_step_that_raises_the_loss_is_undone():
    net, loss, x, y = linear_problem()
    optimiser = TargetNoiseKFAC(net, loss)
    before = [p.detach().clone() for p in net.parameters()]
    values = iter([1.0, 100.0])

    def closure():  # the gradients are true, what it says is not
        closure_of(optimiser, net, loss, x, y)()
        return torch.tensor(next(values))

    optimiser.step(closure)
    for p, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(p, old)
    assert optimiser.state["run"]["boost"] == 4
    assert "direction" not in optimiser.state["run"]


def test_a_loss_that_is_not_finite_goes_back_to_what_was_kept():
    net, loss, x, y = linear_problem()
    optimiser = TargetNoiseKFAC(net, loss)
    optimiser.step(closure_of(optimiser, net, loss, x, y))
    kept = [p.clone() for p in optimiser.state["run"]["kept"]]
    with torch.no_grad():
        net.weight.fill_(math.nan)
    assert math.isnan(optimiser.step(closure_of(optimiser, net, loss, x, y)).item())
    for p, old in zip(net.parameters(), kept, strict=True):
        assert torch.equal(p, old)
    assert optimiser.state["run"]["boost"] == 4


def test_damping_rises_where_the_model_promised_too_much_and_falls_again():
    net, loss, _, _ = linear_problem()
    optimiser = TargetNoiseKFAC(net, loss)
    run = optimiser.state["run"]
    run["loss"] = 1.0
    for after, expected in ((0.95, 1.5), (0.0, 1.155), (0.5, 1.155), (0.0, 1.0), (0.0, 1.0)):
        optimiser._judge(1.0, after, -1.0, [])
        assert run["boost"] == pytest.approx(expected)


# What is refused


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight


REFUSED = {
    "norm": (
        nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)),
        "1.weight, 1.bias of LayerNorm req",
    ),
    "groups": (nn.Conv2d(4, 4, 3, groups=2), "weight, bias of Conv2d require gradients"),
    "padding": (nn.Conv2d(4, 4, 3, padding="same"), "weight, bias of Conv2d require gradients"),
    "mode": (nn.Conv2d(4, 4, 3, padding_mode="circular"), "of Conv2d require gradients"),
    "tied": (Tied(), "second.weight and first.weight are one parameter"),
    "none": (nn.ReLU(), "The module has no Linear or Conv2d layer that requires gradients"),
}


@pytest.mark.parametrize(("module", "message"), REFUSED.values(), ids=REFUSED)
def test_modules_that_are_refused(module, message):
    with pytest.raises(ValueError, match=message):
        TargetNoiseKFAC(module, nn.MSELoss())


def test_a_bias_alone_is_refused_and_a_weight_alone_is_stepped():
    layer, loss = nn.Linear(3, 1), nn.MSELoss()
    layer.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="but bias of Linear require gradients"):
        TargetNoiseKFAC(layer, loss)
    layer.weight.requires_grad_(True)
    layer.bias.requires_grad_(False)
    bias = layer.bias.clone()
    x = torch.randn(64, 3)
    y = x.sum(1, keepdim=True) + bias
    train(layer, loss, x, y, 30)
    assert torch.equal(layer.bias, bias)
    assert (layer.weight - 1).abs().max() < 0.01


def test_frozen_layers_stay():
    x, _ = digits(128)
    net = encoder()
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    train(net, nn.MSELoss(), x, x, 2)
    assert torch.equal(net[0].weight, before)


def test_a_layer_that_is_used_twice_is_refused():
    layer, loss, x = nn.Linear(4, 4), nn.MSELoss(), torch.randn(8, 4)
    optimiser = TargetNoiseKFAC(layer, loss)
    with pytest.raises(ValueError, match="is used twice in one forward pass"):
        optimiser.step(lambda: loss(layer(layer(x)), x))


def test_a_layer_that_is_not_used_is_refused():
    module, loss, x = (
        nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 2)]),
        nn.MSELoss(),
        torch.ones(8, 4),
    )
    optimiser = TargetNoiseKFAC(module, loss)
    with pytest.raises(
        ValueError, match=r"out_features=2, bias=True.* was not used before the loss"
    ):
        optimiser.step(lambda: loss(module[0](x), x))


def test_the_loss_must_be_the_one_that_is_called():
    with pytest.raises(TypeError, match="loss must be the module that the closure calls"):
        TargetNoiseKFAC(nn.Linear(2, 1), nn.functional.mse_loss)
    net, x = nn.Linear(2, 1), torch.randn(4, 2)
    optimiser = TargetNoiseKFAC(net, nn.MSELoss())
    with pytest.raises(RuntimeError, match="did not call the loss that the optimiser was made wit"):
        optimiser.step(lambda: net(x).square().mean())


def test_a_closure_must_go_backward():
    net, loss, x = nn.Linear(2, 1), nn.MSELoss(), torch.randn(4, 2)
    optimiser = TargetNoiseKFAC(net, loss)
    with pytest.raises(RuntimeError, match=r"The closure left no gradient: it must call backward"):
        optimiser.step(lambda: loss(net(x), x[:, :1]))


def test_options_out_of_range_are_refused():
    net, loss = nn.Linear(2, 1), nn.MSELoss()
    for name, value in (
        ("share", 0.0),
        ("factors_every", 0),
        ("inverses_every", 0),
        ("average", 1.0),
    ):
        with pytest.raises(ValueError, match=f"{name} == {value}, must be"):
            TargetNoiseKFAC(net, loss, **{name: value})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device():
    x, _ = digits()
    net, loss = encoder().cuda(), nn.MSELoss()
    before = loss(net(x.cuda()), x.cuda()).item()
    train(net, loss, x.cuda(), x.cuda(), 5)
    assert loss(net(x.cuda()), x.cuda()).item() < 0.5 * before


# In scikit-learn


def test_in_a_pipeline_and_a_search():
    skorch = pytest.importorskip("skorch")

    class KFACMixin:
        def initialize_optimizer(self, *args, **kwargs):
            options = self.get_params_for("optimizer")
            self.optimizer_ = TargetNoiseKFAC(self.module_, self.criterion_, **options)
            return self

    class Net(KFACMixin, skorch.NeuralNetClassifier):
        pass

    X, y = (a.numpy() for a in digits(400))
    net = Net(
        nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)),
        criterion=nn.CrossEntropyLoss,
        optimizer=TargetNoiseKFAC,
        max_epochs=5,
        batch_size=64,
        verbose=0,
        train_split=None,
    )
    model = make_pipeline(StandardScaler(), net)
    search = GridSearchCV(model, {"net__optimizer__share": [0.1, 0.3]}, cv=2)
    search.fit(X, y)
    assert search.best_score_ > 0.8
    best = search.best_estimator_[-1].optimizer_
    assert best.param_groups[0]["share"] == search.best_params_["net__optimizer__share"]
    assert np.mean(search.predict(X) == y) > 0.95
