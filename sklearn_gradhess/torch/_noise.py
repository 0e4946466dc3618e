"""Pairs of batch gradients of a module, under target noise calibrated to the loss."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils import check_scalar
from torch import Tensor, nn

from sklearn_gradhess.exceptions import CalibrationWarning
from sklearn_gradhess.torch._loss_hessian import (
    as_loss,
    batch_loss,
    gradient_scale,
    hessian_root,
    signs,
)

__all__ = ["NoisyGradients", "noisy_gradients"]

Array = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class NoisyGradients:
    """What `noisy_gradients` returns: unpacks into the two gradients of each pair.

    ``estimator.partial_fit_gradients(*pairs, batch_size=pairs.batch_size)`` takes them in.

    Attributes
    ----------
    noise_gradients : ndarray of shape (n_batches * n_redraws, n_parameters)
        Half differences of the pairs, whose second moment is the curvature: all redraws of a batch
        stand together.
    clean_gradients : ndarray of shape (n_batches, n_parameters)
        Half sums of the pairs: gradients of the loss without noise.
    batch_size : int
        Rows in each batch.
    gradient_scale : float
        Factor between gradients of the loss as it was passed (of its mean, if unreduced) and these:
        2 for `MSELoss()`, batch_size for a sum, the product for a sum of squares, else 1. Divide
        a gradient from elsewhere by it.
    parameter_names : tuple of str
        Parameters in the order of the columns, each flattened.
    """

    noise_gradients: Array
    clean_gradients: Array
    batch_size: int
    gradient_scale: float
    parameter_names: tuple[str, ...]

    @property
    def gradients(self) -> Array:
        """Gradients at noisy targets, of the shape of `noise_gradients`."""
        return self._clean - self.noise_gradients

    @property
    def antithetic(self) -> Array:
        """Gradients at targets with the opposite noise."""
        return self._clean + self.noise_gradients

    @property
    def mean_gradient(self) -> Array:
        """Mean of the clean gradients, of shape (n_parameters,), as `newton_step` takes it."""
        return self.clean_gradients.mean(axis=0)

    @property
    def _clean(self) -> Array:
        n_redraws = len(self.noise_gradients) // len(self.clean_gradients)
        return np.repeat(self.clean_gradients, n_redraws, axis=0)

    def __iter__(self) -> Iterator[Array]:
        return iter((self.gradients, self.antithetic))


def noisy_gradients(
    module: nn.Module,
    loader: Iterable[Any],
    loss: Any,
    *,
    parameters: Any = None,
    n_redraws: int = 1,
    generator: torch.Generator | None = None,
) -> NoisyGradients:
    r"""Pairs of batch gradients of a network whose half differences tell its curvature.

    For outputs f, a loss L of a batch with Hessian ``V = d^2 L/d f^2`` in the outputs and signs z,
    the noise ``xi = V^(1/2) z`` sent back through the network gives ``h = J' xi``, J the Jacobian
    of f in the parameters, with ``E h h' = J' V J``: the Gauss-Newton matrix of the batch, exactly,
    for any network. A pair is the clean gradient minus and plus h. It costs one forward pass and
    two backward ones, and one more for every redraw.

    Parameters
    ----------
    module : nn.Module
        The network, in the mode in which it is to be looked at. Dropout in training mode draws one
        mask for all gradients of a batch; batch normalisation must be in evaluation mode.
    loader : iterable of (inputs, targets)
        Batches, such as a `DataLoader`, of equal numbers of rows. Inputs that are a tuple or a dict
        of tensors are the module's arguments. Tensors are moved to the module's device.
    loss : nn.Module or callable
        Of outputs and targets. In closed form for `nn.CrossEntropyLoss` (class weights, label
        smoothing, ignored targets and class probabilities included), `nn.MSELoss`,
        `nn.BCEWithLogitsLoss` and `nn.PoissonNLLLoss`, and the functions of these names. Any other
        twice differentiable loss that couples no rows by its Hessian in the outputs, whose
        negative eigenvalues count as zero.
    parameters : nn.Module, iterable of Parameter, or (iterable of) str, default=None
        Whose gradients: a layer, its parameters, or their names or prefixes such as "0" or
        "0.weight". None is every parameter of the module that requires gradients.
    n_redraws : int, default=1
        Draws of noise for each batch, from one forward pass. More draws lower the error of the
        curvature that the noise adds; what is estimated from the clean gradients (`excess_risk_`,
        intervals of risk) takes pairs for independent and needs one draw.
    generator : torch.Generator, default=None
        Source of the noise, and of all else that is random in the call (dropout, the order of the
        loader): the call can be repeated, and PyTorch's global state is left as it was. None draws
        from the global state.

    Returns
    -------
    pairs : NoisyGradients
        NumPy arrays, float64 for a module in double precision and float32 otherwise.

    Raises
    ------
    ValueError
        If batches differ in rows (a smaller last one is left out, with a warning), a layer uses
        statistics of the batch, a parameter is unknown or frozen, outputs do not fit the targets or
        do not depend on the parameters, the loss has no curvature or couples rows, or a gradient is
        not finite.
    TypeError
        If the loss is not callable, the module does not return a tensor, or a batch is no pair.

    Warns
    -----
    CalibrationWarning
        If the last batch has fewer rows and is left out.

    Notes
    -----
    Which curvature comes out: the Gauss-Newton matrix of the mean half loss, which is what the
    package calls the Hessian: of half of `MSELoss` (no half is in PyTorch's), and of other losses
    as they are. A "mean" is taken as PyTorch takes it: over outputs too, or weighted. For
    reduction="sum" the sum over outputs, averaged over the rows; for "none" the mean over all that
    the loss returns. A function without a `reduction` counts as the mean that it should be.
    `gradient_scale` of the result has the factor that was divided out.

    For a linear module it is the Hessian of the generalised linear model. `nn.Linear(d, 1)` puts
    the intercept's gradient into the last column: ``intercept_position="last"``.

    References
    ----------
    MATH section 9. arXiv 2601.18546.

    Examples
    --------
    >>> import torch
    >>> from sklearn_gradhess import GradientCovarianceEstimator
    >>> from sklearn_gradhess.torch import noisy_gradients
    >>> generator = torch.Generator().manual_seed(0)
    >>> X = torch.randn(800, 2, generator=generator) * torch.tensor([1.0, 3.0])
    >>> y = torch.randint(0, 2, (800, 1), generator=generator).float()
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> _ = torch.nn.init.zeros_(net.weight)
    >>> batches = list(zip(X.split(8), y.split(8)))
    >>> pairs = noisy_gradients(net, batches, torch.nn.BCEWithLogitsLoss(), generator=generator)
    >>> estimator = GradientCovarianceEstimator()
    >>> _ = estimator.partial_fit_gradients(*pairs, batch_size=pairs.batch_size)
    >>> truth = [0.25, 2.25]  # p (1 - p) times the mean squares 1 and 9
    >>> (estimator.covariance_.diagonal() / truth).round()
    array([1., 1.])
    """
    loss = as_loss(loss)
    check_scalar(n_redraws, "n_redraws", int, min_val=1)
    chosen = _chosen(module, parameters)
    _refuse_batch_statistics(module)
    tensors = list(chosen.values())
    device = tensors[0].device
    clean: list[Array] = []
    noise: list[Array] = []
    with _randomness(generator, device), torch.enable_grad():
        for outputs, targets in _equal_batches(module, loader, device):
            batch_size = len(outputs)
            scale = gradient_scale(loss, batch_size)
            value = batch_loss(loss, outputs, targets)
            root = hessian_root(loss, outputs, targets)
            (slope,) = torch.autograd.grad(value, outputs, retain_graph=True)
            clean.append(_product(outputs, slope / scale, tensors))
            for _ in range(n_redraws):
                xi = root(signs(outputs, generator)) / np.sqrt(scale)
                noise.append(_product(outputs, xi.to(outputs.dtype), tensors))
            if not all(np.isfinite(g).all() for g in (clean[-1], *noise[-n_redraws:])):
                raise ValueError(
                    f"The gradients of batch {len(clean) - 1} are not finite, its loss is "
                    f"{float(value.detach()):g}. Look at this batch, at the module's parameters "
                    "and for overflow in low precision."
                )
    if not clean:
        raise ValueError("The loader has no batch. An iterator that was used up must be made anew.")
    if not any(gradient.any() for gradient in noise):
        raise ValueError(
            f"The curvature is zero in all {len(clean)} batches: the loss is linear in the outputs "
            "wherever they are (as L1Loss is), or no parameter that was asked for moves them."
        )
    return NoisyGradients(np.stack(noise), np.stack(clean), batch_size, scale, tuple(chosen))


def _product(outputs: Tensor, cotangent: Tensor, parameters: list[Tensor]) -> Array:
    """Vector-Jacobian product, flattened; the graph stays."""
    products = torch.autograd.grad(
        outputs, parameters, cotangent, retain_graph=True, materialize_grads=True
    )
    flat = torch.cat([product.flatten() for product in products])
    return flat.to(torch.promote_types(flat.dtype, torch.float32)).cpu().numpy()


def _chosen(module: nn.Module, parameters: Any) -> dict[str, Tensor]:
    """Parameters by name, in the order that was asked for."""
    named = dict(module.named_parameters())
    if parameters is None:
        chosen = {name: p for name, p in named.items() if p.requires_grad}
        if not chosen:
            raise ValueError(
                f"{type(module).__name__} has no parameter that requires gradients. Unfreeze some "
                "with requires_grad_()."
            )
        return chosen
    if isinstance(parameters, nn.Module):
        parameters = parameters.parameters()
    elif isinstance(parameters, str | Tensor):
        parameters = [parameters]
    names = {id(p): name for name, p in named.items()}
    chosen = {}
    for wanted in parameters:
        if isinstance(wanted, str):
            found = [name for name in named if name == wanted or name.startswith(f"{wanted}.")]
        else:
            found = [names[id(wanted)]] if id(wanted) in names else []
        if not found:
            what = repr(wanted) if isinstance(wanted, str) else f"a {type(wanted).__name__}"
            raise ValueError(
                f"parameters has {what} that is none of the module's: {', '.join(named)}."
            )
        chosen |= {name: named[name] for name in found}
    frozen = [name for name, p in chosen.items() if not p.requires_grad]
    if frozen or not chosen:
        raise ValueError(
            f"parameters must be one or more that require gradients; {len(chosen)} were found, "
            f"frozen are {frozen}. Unfreeze them with requires_grad_()."
        )
    return chosen


def _refuse_batch_statistics(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (
            layer.training or layer.running_mean is None
        ):
            raise ValueError(
                f"{type(layer).__name__} {name!r} would normalise with the statistics of each "
                "batch, and update its own: call eval() on it or on the module, or leave out "
                "track_running_stats=False."
            )


@contextmanager
def _randomness(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Let everything random depend on the generator, and PyTorch's own state stay as it is."""
    if generator is None:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _equal_batches(
    module: nn.Module, loader: Iterable[Any], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through outputs of the module and targets, of batches with equal numbers of rows."""
    size = short = 0
    for number, batch in enumerate(loader):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError(
                f"Batch {number} of the loader is a {type(batch).__name__}, not a pair of inputs "
                "and targets. Several inputs go into a tuple or a dict: ((a, b), targets)."
            )
        inputs, targets = (_moved(part, device) for part in batch)
        if isinstance(inputs, dict):
            outputs = module(**inputs)
        else:
            outputs = module(*inputs) if isinstance(inputs, tuple) else module(inputs)
        if not isinstance(outputs, Tensor):
            raise TypeError(
                f"The module returns a {type(outputs).__name__}, not a tensor. Wrap it so that it "
                "returns what the loss takes."
            )
        if not outputs.requires_grad:
            raise ValueError(
                "The module's outputs do not depend on its parameters by way of autograd. Does it "
                "detach them, or run under no_grad?"
            )
        rows = len(outputs)
        if short or rows > size > 0:
            raise ValueError(
                f"Batch {number} has {rows} rows, batches before it {short or size}: gradients of "
                "different batch sizes cannot be mixed. Make batches of equal size."
            )
        if rows < size:
            short = rows
            continue
        size = rows
        yield outputs, targets
    if short:
        warnings.warn(
            f"The last batch has {short} rows, the others {size}: it is left out. Use a batch size "
            "that divides the rows, or drop_last=True and shuffle=True in the DataLoader.",
            CalibrationWarning,
            stacklevel=3,
        )


def _moved(part: Any, device: torch.device) -> Any:
    if isinstance(part, dict):
        return {name: _moved(value, device) for name, value in part.items()}
    if isinstance(part, tuple | list):
        return tuple(_moved(value, device) for value in part)
    return torch.as_tensor(part, device=device)
