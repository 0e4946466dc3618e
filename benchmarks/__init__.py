"""Measured comparisons with peers, as ratios within one run: `python -m benchmarks --help`.

A theme is a function that returns the rows of one table. Themes are grouped by module: estimator,
memory, solver, scaling, distributed, real_data, risk. What they share: measure (clocks, peaks of
memory, errors, slopes), data, peers (scikit-learn's estimators next to ours) and report (tables and
JSON).
"""
