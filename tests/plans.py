"""Plans that tests force on a fit, whatever its size."""

from sklearn_gradhess._plan import Plan


def mini_batches(n, p, *, oversampling=None, **_):
    """Sketch, and steps on mini-batches: small data are taken for large."""
    return Plan("sketch", "steps", min(int(max((oversampling or 4) * p, p + 16)), n), 1)


def sketched(n, p, *, oversampling=None, **_):
    """Sketch, and Newton steps by conjugate gradients."""
    return Plan("sketch", "newton", min(int(max((oversampling or 40) * p, p + 16)), n), 1)


def exact(n, p, **_):
    """Hessian of all rows, and Newton steps."""
    return Plan("exact", "newton", n, 1)


def plan_for(monkeypatch, plan):
    """Have the estimators plan like this."""
    monkeypatch.setattr("sklearn_gradhess._sgd.plan", plan)
