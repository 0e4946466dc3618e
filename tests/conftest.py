import os

import hypothesis
import numpy as np
import pytest

# Deterministic and without deadlines: a slow machine is no failure
hypothesis.settings.register_profile(
    "repository", deadline=None, derandomize=True, max_examples=40, print_blob=True
)
hypothesis.settings.register_profile(
    "thorough", deadline=None, derandomize=False, max_examples=1000, print_blob=True
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repository"))


@pytest.fixture(autouse=True)
def global_seed():
    """What draws from NumPy's global state, random_state=None, draws the same in every run."""
    np.random.seed(20260118)  # noqa: NPY002


@pytest.fixture
def rng():
    return np.random.default_rng(20260118)
