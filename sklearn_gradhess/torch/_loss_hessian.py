"""The Hessian of a loss in the outputs of a network, by its root: what target noise is shaped by.

For outputs f of a batch and a loss L(f), ``xi = V^(1/2) z`` with ``V = d^2 L / d f^2`` and signs z
has the covariance V, so its vector-Jacobian product ``J' xi`` has ``J' V J`` (MATH section 9). V
has a block for each row; the root of a block is known for the usual losses:

one output, or outputs on their own
    the root of the second derivative.
softmax
    ``S = diag(sqrt p) - p sqrt(p)'``, since ``S S' = diag(p) - p p'``, times the root of the row's
    weight: the loss is linear in the log probabilities, and each of them has that Hessian.
any other
    the Hessian itself by differentiating twice, its eigenvectors times the roots of its
    eigenvalues; negative ones count as zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

__all__ = ["as_loss", "batch_loss", "gradient_scale", "hessian_root", "signs"]

Root = Callable[[Tensor], Tensor]

_AS_MODULE: dict[Any, type[nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.mse_loss: nn.MSELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
}


def as_loss(loss: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Check a loss; a function of `torch.nn.functional` becomes the module of the same name."""
    if isinstance(loss, type) or not callable(loss):
        raise TypeError(
            f"loss must be a module such as nn.CrossEntropyLoss() or a function of outputs and "
            f"targets, got {loss!r}."
        )
    return _AS_MODULE[loss]() if loss in _AS_MODULE else loss


def gradient_scale(loss: Any, batch_size: int) -> float:
    """Factor between gradients of `loss` and those of the mean half loss.

    Half: the squared loss of PyTorch has no half. Mean: over the rows, if it is a sum.
    """
    half = 2.0 if type(loss) is nn.MSELoss else 1.0
    return half * (batch_size if getattr(loss, "reduction", None) == "sum" else 1)


def batch_loss(loss: Any, outputs: Tensor, targets: Tensor) -> Tensor:
    """Value of the loss on a batch; its mean if it comes unreduced."""
    if type(loss) in _ELEMENTWISE and outputs.shape != targets.shape:
        raise ValueError(
            f"The module returns outputs of shape {tuple(outputs.shape)}, but the targets have "
            f"shape {tuple(targets.shape)}, and {type(loss).__name__} compares them one by one. "
            "Reshape the targets in the loader."
        )
    return loss(outputs, targets).mean()


def signs(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw plus or minus one for every entry: the noise of least fourth moment."""
    device = like.device if generator is None else generator.device
    bits = torch.randint(0, 2, like.shape, generator=generator, device=device)
    return (2 * bits - 1).to(like.device, _at_least_float(like.dtype))


def hessian_root(loss: Any, outputs: Tensor, targets: Tensor) -> Root:
    """Root of the Hessian of `batch_loss` in the outputs.

    Parameters
    ----------
    loss : callable
        Of outputs and targets, from `as_loss`.
    outputs : Tensor of shape (n, ...)
        Outputs of the network for the n rows of a batch.
    targets : Tensor
        Their targets.

    Returns
    -------
    root : callable
        Makes noise whose covariance is the Hessian from signs of the shape of the outputs; both in
        float32 at least.

    Raises
    ------
    ValueError
        If the loss is not twice differentiable, or couples the rows of a batch.
    """
    f = outputs.detach().to(_at_least_float(outputs.dtype))
    if type(loss) is nn.CrossEntropyLoss:
        return _softmax_root(loss, f, targets)
    if type(loss) in _ELEMENTWISE:
        curvature = _ELEMENTWISE[type(loss)](loss, f, targets.to(f.dtype))
        deviation = (curvature / (1 if loss.reduction == "sum" else f.numel())).sqrt()
        return lambda z: deviation * z
    return _eigen_root(loss, f, targets)


def _at_least_float(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _squared_error(loss: nn.MSELoss, f: Tensor, y: Tensor) -> Tensor:
    return torch.full_like(f, 2.0)


def _binary_cross_entropy(loss: nn.BCEWithLogitsLoss, f: Tensor, y: Tensor) -> Tensor:
    # w (pos y softplus(-f) + (1 - y) softplus(f)): both have the second derivative p (1 - p)
    weight = 1.0 if loss.weight is None else loss.weight
    positive = 1.0 if loss.pos_weight is None else loss.pos_weight
    return weight * (positive * y + (1 - y)) * f.sigmoid() * (-f).sigmoid()


def _poisson(loss: nn.PoissonNLLLoss, f: Tensor, y: Tensor) -> Tensor:
    return f.exp() if loss.log_input else y / (f + loss.eps) ** 2


_ELEMENTWISE: dict[type, Callable[[Any, Tensor, Tensor], Tensor]] = {
    nn.MSELoss: _squared_error,
    nn.BCEWithLogitsLoss: _binary_cross_entropy,
    nn.PoissonNLLLoss: _poisson,
}


def _softmax_root(loss: nn.CrossEntropyLoss, f: Tensor, targets: Tensor) -> Root:
    if f.ndim < 2:
        raise ValueError(
            f"The module returns outputs of shape {tuple(f.shape)}; CrossEntropyLoss needs rows in "
            "dimension 0 and classes in dimension 1."
        )
    p = f.softmax(1)
    s, weight = p.sqrt(), _row_weights(loss, f, targets).sqrt().unsqueeze(1)

    def root(z: Tensor) -> Tensor:
        sz = s * z
        return weight * (sz - p * sz.sum(1, keepdim=True))

    return root


def _row_weights(loss: nn.CrossEntropyLoss, f: Tensor, targets: Tensor) -> Tensor:
    """Total weight of the log probabilities of each row in the loss of the batch."""
    n_classes, smooth = f.shape[1], loss.label_smoothing
    w = f.new_ones(n_classes) if loss.weight is None else loss.weight.to(f.dtype)
    if targets.is_floating_point():
        shares = (1 - smooth) * targets.to(f.dtype) + smooth / n_classes
        total = torch.tensordot(shares, w, dims=([1], [0]))
        count: Any = total.numel()  # PyTorch divides by the rows here, weighted or not
    else:
        seen = targets != loss.ignore_index
        own = w[targets.where(seen, 0)] * seen
        total = (1 - smooth) * own + smooth * w.mean() * seen
        count = total.numel() if loss.reduction == "none" else own.sum()
    return total if loss.reduction == "sum" else total / count


def _eigen_root(loss: Any, f: Tensor, targets: Tensor) -> Root:
    name = getattr(loss, "__name__", type(loss).__name__)
    f = f.requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(batch_loss(loss, f, targets), f, create_graph=True)
    if not gradient.requires_grad:
        raise ValueError(
            f"The gradient of {name} does not change with the outputs: it has no curvature that "
            "noise could be calibrated to. Use a twice differentiable loss, such as HuberLoss."
        )

    def product(v: Tensor) -> Tensor:
        return torch.autograd.grad(gradient, f, v, retain_graph=True)[0].flatten(1)

    n, n_outputs = len(f), f[0].numel()
    # If no row's loss depends on another row, one product has a column of every row's block.
    V = f.new_zeros(n, n_outputs, n_outputs)
    for j in range(n_outputs):
        unit = f.new_zeros(n, n_outputs)
        unit[:, j] = 1
        V[:, :, j] = product(unit.view_as(f))
    z = signs(f, torch.Generator().manual_seed(0))
    seen, alone = product(z), torch.einsum("nij,nj->ni", V, z.flatten(1))
    if (seen - alone).norm() > 1e-3 * seen.norm():
        raise ValueError(
            f"{name} couples the rows of a batch: its Hessian in the outputs is not one block a "
            "row. Use a loss that is a sum or a mean over rows."
        )
    values, vectors = torch.linalg.eigh((V + V.mT) / 2)
    U = vectors * values.clamp_min(0).sqrt().unsqueeze(1)
    return lambda z: torch.einsum("nij,nj->ni", U, z.flatten(1)).view_as(z)
