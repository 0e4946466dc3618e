"""What an attack may do to a table; the metrics' and the scorer's tests do the rest."""

import re

import numpy as np
import pytest

from sklearn_gradhess._attack import Attack
from sklearn_gradhess._table import Table


@pytest.mark.parametrize(("scale", "features"), [(np.zeros(3), None), ([0.0, 1.0, 2.0], [0])])
def test_an_attack_that_can_move_nothing(scale, features):
    attack = Attack(2, scale, features, None, None)
    message = re.escape(
        "feature_scale is zero for every column under attack: nothing can move. Give one of them a "
        "positive scale, or attack others by features."
    )
    with pytest.raises(ValueError, match=message):
        attack.on(Table(np.ones((2, 3))))
