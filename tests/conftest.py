import os

import hypothesis
import numpy as np
import pytest

from tests import jitter

# Deterministic and without deadlines: a slow machine is no failure
hypothesis.settings.register_profile(
    "repository", deadline=None, derandomize=True, max_examples=40, print_blob=True
)
hypothesis.settings.register_profile(
    "thorough", deadline=None, derandomize=False, max_examples=1000, print_blob=True
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repository"))


def pytest_addoption(parser):
    parser.addoption(
        "--jitter",
        type=int,
        metavar="SEED",
        help="data as another processor might have them: rows dealt anew, 1 + 1e-15 z times floats",
    )


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "unjittered(reason): --jitter leaves the test's data alone, since its subject is the order "
        "of rows, equality of bits, or another thing that the reason names",
    )


@pytest.fixture(autouse=True)
def jittered(request):
    """Under --jitter, other digits and another order of rows, but for tests that are exempt."""
    seed = request.config.getoption("jitter")
    exempt = request.node.get_closest_marker("unjittered")
    assert exempt is None or len(exempt.args) == 1, "unjittered needs its reason"
    # A patch of its own: a test's monkeypatch must not outlive the test's other fixtures
    with pytest.MonkeyPatch.context() as patch:
        if seed is not None and exempt is None:
            jitter.apply(patch, request.module, seed)
        yield


@pytest.fixture(autouse=True)
def global_seed():
    """What draws from NumPy's global state, random_state=None, draws the same in every run."""
    np.random.seed(20260118)  # noqa: NPY002


@pytest.fixture
def rng():
    return np.random.default_rng(20260118)
