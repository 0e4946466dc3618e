"""What needs an optional library is collected where that is installed."""

import importlib.util

if importlib.util.find_spec("torch") is None:
    collect_ignore = ["sklearn_gradhess/torch", "docs/user_guide/networks.rst"]
