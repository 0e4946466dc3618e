"""Training with Kronecker factors of the Gauss-Newton matrix, from calibrated target noise.

A layer with inputs a and outputs W a has the gradient ``g a'``, g what comes back to its outputs.
Calibrated noise sent back makes ``E[g g' (x) a a']`` its block of the Gauss-Newton matrix, and the
approximation is ``E[a a'] (x) E[g g']`` (Martens and Grosse), exact for one linear layer and the
squared loss. There is no learning rate: step and momentum minimise the quadratic model that the
noise of the batch itself measures, and two rules choose the damping (MATH section 9):

* what the sampling noise of the gradient costs a step, ``mean(v_i' P^-1 v_i)/(2 n)`` with v_i the
  gradients of single rows and P the damped factors, is held at a share of the present loss;
* every few steps the loss is looked at again, with the same batch and the same random numbers, and
  damping is raised where the model promised too much.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import torch
from sklearn.utils import check_scalar
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from sklearn_gradhess.torch._loss_hessian import hessian_root, signs

__all__ = ["TargetNoiseKFAC"]

_EARLY = (1, 2, 3, 4, 6, 8, 10, 12, 15)  # steps whose factors are too young to be kept
_CLIP = 4.0  # largest change of the damping at once
_TINY = 1e-20


class TargetNoiseKFAC(torch.optim.Optimizer):
    r"""Optimiser with Kronecker factors from target noise and no learning rate. Experimental.

    Each step solves with the Kronecker factors of every layer, and takes step length and momentum
    from a quadratic model of the loss that the noise of the batch measures. It needs a fraction of
    the epochs of tuned first-order methods, and wins time where layers are narrow and the training
    loss is hard to lower, as in autoencoders; elsewhere it may lose, see Notes.

    Parameters
    ----------
    module : nn.Module
        The network. What requires gradients must be weights and biases of `nn.Linear` and of
        `nn.Conv2d` of one group, padded with zeros, each used once in a forward pass.
    loss : nn.Module
        The loss module that the closure calls, as for `noisy_gradients`. Bounded below by zero.
    share : float, default=0.3
        Share of the present loss that the sampling noise of a gradient may cost a step; sets the
        damping.
    factors_every : int, default=5
        Steps between updates of the factors, each with a second look at the loss.
    inverses_every : int, default=20
        Steps between inversions of the factors; more often in the first 15.
    average : float, default=0.95
        Weight that the factors keep at an update.
    generator : torch.Generator, default=None
        Source of the noise. None draws from PyTorch's global state.

    Attributes
    ----------
    state : dict
        Factors and their inverses, "layers", and what the rule remembers, "run"; in `state_dict`.

    Raises
    ------
    ValueError
        If a parameter that requires gradients belongs to another kind of layer, or to two, or a
        layer is used twice; an option is out of range; or the loss does not fit, as in
        `noisy_gradients`.
    TypeError
        If `loss` is no module, or an option no number.

    See Also
    --------
    noisy_gradients : The curvature itself, exact and for any module.

    Notes
    -----
    Standardise the inputs: with raw units it is lost. A last batch that is smaller moves the
    parameters in proportion to its rows. Learning rate schedulers have nothing to schedule.

    Measured against AdamW and SGD with momentum of tuned rates at equal processor time, on tasks
    that the rule was not chosen on: see the guide's page on networks for wins and losses.

    skorch passes parameters to an optimiser, and no module; so::

        class KFACMixin:
            def initialize_optimizer(self, *args, **kwargs):
                options = self.get_params_for("optimizer")
                self.optimizer_ = TargetNoiseKFAC(self.module_, self.criterion_, **options)
                return self

    before `NeuralNetClassifier` or `NeuralNetRegressor` in the bases of a class makes a net for
    pipelines and searches.

    References
    ----------
    MATH section 9. J. Martens, R. Grosse (2015). Optimizing neural networks with Kronecker-factored
    approximate curvature.

    Examples
    --------
    >>> import torch
    >>> from sklearn_gradhess.torch import TargetNoiseKFAC
    >>> _ = torch.manual_seed(0)
    >>> X = torch.randn(512, 4)
    >>> y = X @ torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    >>> net, loss = torch.nn.Linear(4, 1), torch.nn.MSELoss()
    >>> optimiser = TargetNoiseKFAC(net, loss)
    >>> def closure():
    ...     optimiser.zero_grad()
    ...     value = loss(net(X), y)
    ...     value.backward()
    ...     return value
    >>> for _ in range(20):
    ...     _ = optimiser.step(closure)
    >>> net.weight.detach().round()
    tensor([[1., 2., 3., 4.]])
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Any,
        *,
        share: float = 0.3,
        factors_every: int = 5,
        inverses_every: int = 20,
        average: float = 0.95,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(loss, nn.Module):
            raise TypeError(
                f"loss must be the module that the closure calls, such as nn.CrossEntropyLoss(), "
                f"got {loss!r}."
            )
        check_scalar(share, "share", Real, min_val=0, include_boundaries="neither")
        check_scalar(factors_every, "factors_every", Integral, min_val=1)
        check_scalar(inverses_every, "inverses_every", Integral, min_val=1)
        check_scalar(average, "average", Real, min_val=0, max_val=1, include_boundaries="left")
        self._module, self._loss, self._generator = module, loss, generator
        self._layers = _layers(module)
        options = {
            "share": share,
            "factors_every": factors_every,
            "inverses_every": inverses_every,
            "average": average,
        }
        super().__init__([p for layer in self._layers for p in layer.parameters], options)
        self.state["layers"] = [{} for _ in self._layers]
        self.state["run"] = {"step": 0, "updates": 0, "boost": 1.0}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:
        """Take a step; the closure may be called a second time, to look at the same batch again.

        Parameters
        ----------
        closure : callable
            Clears the gradients, computes the loss of one batch with the loss module that the
            optimiser was made with, goes backward, and returns the loss: as for
            `torch.optim.LBFGS`.

        Returns
        -------
        loss : Tensor
            What the closure returned before the step.

        Raises
        ------
        RuntimeError
            If the closure did not call the loss module, or did not go backward.
        ValueError
            If a layer was used twice, or not at all, or the loss has no curvature.
        """
        run, options = self.state["run"], self.param_groups[0]
        before = _random_state(self._device)
        seen = _Seen(self._loss, self._layers, self._generator)
        with torch.enable_grad(), seen:
            loss = closure()
        value, rows = _number(loss), seen.rows()
        if "damping" not in run:
            _refuse_flat(rows, self._loss)
        if not math.isfinite(value):
            self._go_back(run.get("kept", []))
            return loss
        run["loss"] = 0.9 * run.get("loss", value) + 0.1 * value
        check = run["step"] % options["factors_every"] == 0
        if check or run["step"] < 5:
            self._update_factors(rows)
        if "damping" not in run:
            run["damping"] = _first_damping(rows)
        if run["step"] % options["inverses_every"] == 0 or run["step"] in _EARLY:
            self._invert(rows, value)
        gain = self._minimise_model(rows, value)
        kept = [w.clone() for layer in self._layers for w in layer.parameters] if check else []
        self._move()
        if check:
            with _replayed(self._module, before), torch.enable_grad():
                after = _number(closure())
            self._judge(value, after, gain, kept)
        run["step"] += 1
        return loss

    @property
    def _device(self) -> torch.device:
        return self._layers[0].weight.device

    def _update_factors(self, rows: list[_Rows]) -> None:
        run, average = self.state["run"], self.param_groups[0]["average"]
        keep = min(1 - 1 / (run["updates"] + 1), average)
        run["updates"] += 1
        for state, r in zip(self.state["layers"], rows, strict=True):
            x, y = r.inputs.flatten(0, 1), r.noise.flatten(0, 1)
            for name, new in (("A", x.T @ x / len(r.inputs)), ("G", y.T @ y / len(y))):
                state[name] = torch.lerp(new, state[name], keep) if name in state else new

    def _invert(self, rows: list[_Rows], value: float) -> None:
        run, spread = self.state["run"], 0.0
        for state, r in zip(self.state["layers"], rows, strict=True):
            A, G = state["A"], state["G"]
            # Martens and Grosse: damping is split so that both factors feel it alike
            mean_a, mean_g = (max(float(M.trace()) / len(M), _TINY) for M in (A, G))
            balance = math.sqrt(mean_a / mean_g)
            # In single precision the inverse of a factor needs this much, whatever the loss
            root = math.sqrt(max(run["damping"] * run["boost"], 1e-8 * mean_a * mean_g))
            state["A_inverse"] = _inverse(A, balance * root)
            state["G_inverse"] = _inverse(G, root / balance)
            spread += r.mean_square(state["A_inverse"], state["G_inverse"])
        cost = spread / (2 * len(rows[0].inputs))
        share = self.param_groups[0]["share"] * max(abs(value), _TINY)
        run["damping"] = max(run["damping"] * min(max(cost / share, 1 / _CLIP), _CLIP), _TINY)

    def _minimise_model(self, rows: list[_Rows], value: float) -> float:
        """Set the step along the preconditioned gradient and the last step; return what it gains.

        The gain is that of the quadratic model without its damping, a negative number.
        """
        run, layers = self.state["run"], self.state["layers"]
        gradients = [layer.gradient() for layer in self._layers]
        natural = [
            -(s["G_inverse"] @ g @ s["A_inverse"]) for s, g in zip(layers, gradients, strict=True)
        ]
        D = _flat(natural)[None]
        if "direction" in run:
            D = torch.cat([D, run["direction"][None]])
        along = sum(r.along(d) for r, d in zip(rows, self._split(D), strict=True))
        model = (along @ along.T).double() / along.shape[1]
        damped = model + run["damping"] * run["boost"] * (D @ D.T)
        damped += torch.diag(1e-9 * damped.diagonal() + 1e-30)
        slope = (D @ _flat(gradients)).double()
        s = -torch.linalg.solve(damped, slope)
        # Every row moves the parameters alike: an incomplete batch, whose model is poor, less
        run["rows"] = max(run.get("rows", 0), along.shape[1])
        s *= along.shape[1] / run["rows"]
        # No step can gain more than the loss has: a batch whose few uncertain rows do not lie along
        # the step sees hardly any curvature there, and would promise more
        s *= min(1.0, abs(value) / max(-float(slope @ s + s @ model @ s / 2), _TINY))
        run["direction"] = s.to(D.dtype) @ D
        if not torch.isfinite(run["direction"]).all():  # nothing left to gain in this precision
            run.pop("direction")
            return 0.0
        return float(slope @ s + s @ model @ s / 2)

    def _split(self, D: Tensor) -> list[Tensor]:
        """Cut flat directions, one a row, into matrices of outputs by inputs."""
        parts = D.split([layer.shape[0] * layer.shape[1] for layer in self._layers], 1)
        return [d.view(-1, *layer.shape) for d, layer in zip(parts, self._layers, strict=True)]

    def _move(self) -> None:
        if "direction" not in self.state["run"]:
            return
        steps = self._split(self.state["run"]["direction"][None])
        for layer, d in zip(self._layers, steps, strict=True):
            layer.add(d[0])

    def _judge(self, before: float, after: float, gain: float, kept: list[Tensor]) -> None:
        run = self.state["run"]
        ratio = (after - before) / gain if gain < 0 else -1.0
        if not after <= before + abs(run["loss"]):  # or not finite
            self._go_back(kept)
            return
        run["kept"] = kept
        if ratio < 0.25:
            run["boost"] *= 1.5
        elif ratio > 0.75:
            run["boost"] = max(1.0, 0.77 * run["boost"])

    def _go_back(self, kept: list[Tensor]) -> None:
        """Undo what raised the loss, as far as is remembered, and damp more."""
        parameters = [w for layer in self._layers for w in layer.parameters]
        for w, old in zip(parameters, kept, strict=bool(kept)):
            w.copy_(old)
        self.state["run"].pop("direction", None)
        self.state["run"]["boost"] *= 4

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; nothing is shared with it afterwards.

        Parameters
        ----------
        state_dict : dict
            From `state_dict()` of an optimiser of a module of the same layers.

        Returns
        -------
        None
        """
        super().load_state_dict(copy.deepcopy(state_dict))


class _Layer:
    """A layer as one matrix, of outputs by inputs, a bias as the last column."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.weight = module, module.weight
        self.bias = module.bias if module.bias is not None and module.bias.requires_grad else None
        self.parameters = [self.weight] if self.bias is None else [self.weight, self.bias]
        width = self.weight[0].numel() + (self.bias is not None)
        self.shape = len(self.weight), width

    def gradient(self) -> Tensor:
        parts = [self.weight.grad.flatten(1)]
        if self.bias is not None:
            parts.append(self.bias.grad[:, None])
        return _as_float(torch.cat(parts, 1))

    def add(self, step: Tensor) -> None:
        if self.bias is not None:
            self.bias += step[:, -1].to(self.bias.dtype)
            step = step[:, :-1]
        self.weight += step.reshape(self.weight.shape).to(self.weight.dtype)

    def inputs(self, a: Tensor) -> Tensor:
        """Return inputs wherever the matrix is applied, of shape (n, positions, width)."""
        if isinstance(layer := self.module, nn.Conv2d):
            a = F.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT
        else:
            a = a.reshape(len(a), -1, a.shape[-1])
        a = _as_float(a)
        return a if self.bias is None else torch.cat([a, torch.ones_like(a[..., :1])], -1)

    def outputs(self, g: Tensor) -> Tensor:
        is_image = isinstance(self.module, nn.Conv2d)
        return _as_float(g.flatten(2).mT if is_image else g.reshape(len(g), -1, g.shape[-1]))


def _layers(module: nn.Module) -> list[_Layer]:
    """Layers to be stepped; everything that requires gradients must belong to one, and once."""
    layers: list[_Layer] = []
    owners: dict[int, str] = {}
    for name, layer in module.named_modules():
        own = {n: p for n, p in layer.named_parameters(recurse=False) if p.requires_grad}
        if not own:
            continue
        full = [f"{name}.{n}".lstrip(".") for n in own]
        if not _is_supported(layer) or "weight" not in own:
            raise ValueError(
                f"TargetNoiseKFAC steps the weights and biases of Linear and of Conv2d (one group, "
                f"padding with zeros given by numbers), but {', '.join(full)} of "
                f"{type(layer).__name__} require gradients. Freeze them with "
                "requires_grad_(False), or use another optimiser."
            )
        for n, p in zip(full, own.values(), strict=True):
            if id(p) in owners:
                raise ValueError(
                    f"{n} and {owners[id(p)]} are one parameter: Kronecker factors do not add up "
                    "for shared weights. Untie them, or use another optimiser."
                )
            owners[id(p)] = n
        layers.append(_Layer(layer))
    if not layers:
        raise ValueError("The module has no Linear or Conv2d layer that requires gradients.")
    return layers


def _is_supported(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros"
        return plain and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


class _Rows:
    """Inputs, noise and gradients at the outputs of a layer, of shapes (n, positions, width)."""

    def __init__(self, layer: _Layer, inputs: Tensor, noise: Tensor, slope: Tensor) -> None:
        self.inputs, self.noise = layer.inputs(inputs), layer.outputs(noise)
        self.slope = layer.outputs(slope)  # of the loss of the batch

    def along(self, directions: Tensor) -> Tensor:
        """Noise gradient of each row times each direction, of shape (directions, n)."""
        x, y = self.inputs.flatten(0, 1), self.noise.flatten(0, 1)
        found = ((x @ directions.mT) * y).sum(2)
        return found.view(len(directions), len(self.inputs), -1).sum(2)

    def mean_square(self, A_inverse: Tensor, G_inverse: Tensor) -> float:
        """Mean over rows of v' P^-1 v, v the row's own gradient."""
        n, positions, _ = self.inputs.shape
        if positions == 1:
            a, e = self.inputs[:, 0], self.slope[:, 0]
            squares = ((a @ A_inverse) * a).sum(1) * ((e @ G_inverse) * e).sum(1)
        else:
            v = self.slope.mT @ self.inputs
            squares = ((G_inverse @ v @ A_inverse) * v).sum((1, 2))
        return float(squares.sum()) * n  # a row's gradient is n times its part in the mean


def _as_float(t: Tensor) -> Tensor:
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


class _Seen:
    """What the layers see while a closure runs: hooks that are gone afterwards."""

    def __init__(self, loss: Any, layers: list[_Layer], generator: torch.Generator | None) -> None:
        self._loss, self._layers, self._generator = loss, layers, generator
        self._inputs: dict[nn.Module, Tensor] = {}
        self._outputs: dict[nn.Module, Tensor] = {}
        self._noise: tuple[Tensor, ...] = ()
        self._slope: dict[nn.Module, Tensor] = {}

    def __enter__(self) -> None:
        self._hooks = [
            layer.module.register_forward_hook(self._see_layer) for layer in self._layers
        ]
        self._listen()

    def _listen(self) -> None:
        self._hooks.append(self._loss.register_forward_hook(self._see_loss))

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _see_layer(self, layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        if layer in self._inputs:
            raise ValueError(
                f"{layer} is used twice in one forward pass, or the closure runs the module twice: "
                "Kronecker factors do not add up for shared weights. Use another optimiser."
            )
        self._inputs[layer], self._outputs[layer] = inputs[0].detach(), outputs
        return outputs.clone()  # what follows may work in place, as ReLU(inplace=True) does

    def _see_loss(self, loss: nn.Module, inputs: tuple[Tensor, ...], value: Tensor) -> None:
        idle = [layer.module for layer in self._layers if layer.module not in self._outputs]
        if idle:
            raise ValueError(
                f"{idle[0]} requires gradients but was not used before the loss was computed. "
                "Freeze it with requires_grad_(False), or call the loss after the forward pass."
            )
        f, targets = inputs[:2]
        self._hooks.pop().remove()  # derivatives may be those of further calls of the loss
        xi = hessian_root(loss, f.detach(), targets)(signs(f, self._generator)) * math.sqrt(len(f))
        self._listen()
        outputs = [self._outputs[layer.module] for layer in self._layers]
        with torch.enable_grad():
            self._noise = torch.autograd.grad(f, outputs, xi.to(f.dtype), retain_graph=True)
        for layer, z in zip(self._layers, outputs, strict=True):
            z.register_hook(functools.partial(self._slope.__setitem__, layer.module))

    def rows(self) -> list[_Rows]:
        if not self._noise:
            raise RuntimeError(
                "The closure did not call the loss that the optimiser was made with. Pass the loss "
                "module itself and call that: TargetNoiseKFAC(module, loss), loss(module(x), y)."
            )
        if len(self._slope) < len(self._layers):
            raise RuntimeError(
                "The closure left no gradient: it must call backward on the loss before it returns."
            )
        return [
            _Rows(layer, self._inputs[layer.module], g, self._slope[layer.module])
            for layer, g in zip(self._layers, self._noise, strict=True)
        ]


def _refuse_flat(rows: list[_Rows], loss: nn.Module) -> None:
    if any(r.slope.any() for r in rows) and not any(r.noise.any() for r in rows):
        bend = {nn.HuberLoss: "delta", nn.SmoothL1Loss: "beta"}.get(type(loss))
        if bend:
            raise ValueError(
                f"The curvature of {loss} is zero in the first batch, though its gradient is not: "
                f"every output is farther from its target than {bend}. Standardise the targets, or "
                f"raise {bend} to the size of their deviation."
            )
        raise ValueError(
            f"The curvature of {loss} is zero in the first batch, though its gradient is not: it "
            "is linear in the outputs wherever they are (as L1Loss is), or its transition is too "
            "narrow. Use a twice differentiable loss, such as HuberLoss."
        )


def _first_damping(rows: list[_Rows]) -> float:
    """Return the mean curvature that the noise gradients of one batch see along themselves."""
    gram = sum(
        torch.einsum("nti,mti->nm", r.inputs, r.inputs)
        * torch.einsum("nto,mto->nm", r.noise, r.noise)
        for r in rows
    ) / len(rows[0].inputs)
    return max(float((gram**2).sum() / gram.trace().clamp_min(_TINY)), _TINY)


def _inverse(factor: Tensor, damping: float) -> Tensor:
    eye = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return torch.linalg.inv(factor + damping * eye)


def _flat(matrices: list[Tensor]) -> Tensor:
    return torch.cat([m.flatten() for m in matrices])


def _number(loss: Any) -> float:
    return float(torch.as_tensor(loss).detach())


def _random_state(device: torch.device) -> Any:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda, device


def _set_random_state(state: Any) -> None:
    here, cuda, device = state
    torch.set_rng_state(here)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)


@contextmanager
def _replayed(module: nn.Module, state: Any) -> Iterator[None]:
    """Give the random numbers and buffers (batch norm's) once more, and put all back."""
    now = _random_state(state[-1])
    buffers = [buffer.clone() for buffer in module.buffers()]
    _set_random_state(state)
    try:
        yield
    finally:
        _set_random_state(now)
        for buffer, old in zip(module.buffers(), buffers, strict=True):
            buffer.copy_(old)
