"""Write the table of the README from the measured results.

`python -m benchmarks.readme` reads docs/measured.json, which `python -m benchmarks --json
docs/measured.json` writes.
"""

import json
from pathlib import Path

START, END = "<!-- measured: python -m benchmarks.readme -->", "<!-- end -->"
ROOT = Path(__file__).parents[1]


def matching(results, theme, **where):
    """Return the rows of a theme with these values."""
    rows = results["themes"][theme]["rows"]
    return [row for row in rows if all(row.get(k) == v for k, v in where.items())]


def row(results, theme, **where):
    """Return the only row of a theme with these values."""
    rows = matching(results, theme, **where)
    if len(rows) != 1:
        raise LookupError(f"{len(rows)} rows of {theme} have {where}, one is needed")
    return rows[0]


def times(results, theme, **where):
    """Return a function that says how much longer than ours a model takes."""

    def ratio(model, **more):
        return row(results, theme, model=model, **where, **more)["time / ours"]

    return ratio


def hessian(results):
    floors = [
        row(results, "estimator_accuracy", features=law)["error / floor"]
        for law in ("gaussian", "rademacher", "student_t")
    ]
    yield (
        "Hessian, antithetic noise, m² = 40, s² = 4",
        "{:.2f}, {:.2f}, {:.2f} floors (Gaussian features, signs, t5)".format(*floors),
        "1 floor: Gaussian draws",
        "with X in hand `EmpiricalCovariance` is more accurate",
    )
    corrected, plain = (
        row(results, "estimator_single_noise", correction=c) for c in ("gaussian", "none")
    )
    yield (
        f"Hessian, single noise, d = {plain['d']}, n = {plain['n']}, k = {plain['k']:,}, "
        f"m² = {plain['m^2']:.0f}",
        f"error {corrected['error']:.2f}, {corrected['error / floor']:.1f} floors",
        f"uncorrected {plain['error']:.2f}, {plain['error / floor']:.0f} floors",
        "Gaussian features",
    )


def cost(results):
    speed = row(results, "estimator_speed", threads=1, batches="dealt", **{"fit of": "X"})
    share = row(results, "memory_peak", model="GradientCovarianceEstimator")["peak / X"]
    peer = row(results, "memory_peak", model="EmpiricalCovariance")["peak / X"]
    yield (
        "its cost, 200,000 x 512, batches of 64",
        f"{speed['reads of X']:.1f} reads of X; {share:.0%} of its memory",
        f"EmpiricalCovariance: {speed['EC / ours']:.1f} times as long; {peer:.0%}",
        "few rows: batches of one, and no faster",
    )


def conditions(results):
    def cells(quantity, model):
        return row(results, "scaling_condition", quantity=quantity, model=model)

    ours = "PreconditionedSGDRegressor"
    passes = cells("passes", ours)
    excess = {
        model: cells("excess", model)
        for model in (ours, "LinearRegression", "Ridge, cholesky", "Ridge, lsqr")
    }
    cholesky = excess["Ridge, cholesky"]
    yield (
        "least squares, condition 1 and 1e12",
        f"{passes['1e+00']:.1f} and {passes['1e+12']:.1f} passes, "
        f"excess {excess[ours]['1e+12']:.0e} floors",
        f"excess at 1e12: LinearRegression {excess['LinearRegression']['1e+12']:.0e} floors; "
        f"Ridge, cholesky {cholesky['1e+12']:,.0f} ({cholesky['1e+08']:.0e} at 1e8); "
        f"Ridge, lsqr {excess['Ridge, lsqr']['1e+12']:,.0f}",
        "no penalty",
    )


def solver(results):
    for threads in (1, 2):
        ratio = times(results, "solver_least_squares", threads=threads)
        peers = [
            f"{model} {ratio(model, features=100):.1f} and {ratio(model, features=500):.1f}"
            for model in ("LinearRegression", "Ridge, cholesky", "Ridge, lsqr")
        ]
        yield (
            f"time of least squares, 200,000 x 100 and x 500, {threads} thread{'s'[: threads - 1]}",
            "1",
            "; ".join(peers),
            "few rows or columns: see the diamonds",
        )
    ratio = times(results, "solver_logistic")
    yield (
        "time of logistic regression, 200,000 x 100",
        "1",
        f"newton-cholesky {ratio('LogisticRegression, newton-cholesky'):.1f}; "
        f"glum {ratio('glum'):.1f}; saga {ratio('LogisticRegression, saga'):.0f}",
        "some thousand rows: newton-cholesky is faster",
    )


def real(results):
    for name, what in (("flights", "delays of {:,} flights"), ("diamonds", "{:,} diamonds")):
        seeds = row(results, "real_data_seeds", data=name)
        ratio = times(results, "real_data_regression", data=name, **{"features are": "raw"})
        exact = "; ".join(f"{m} {ratio(m):.1f}" for m in ("LinearRegression", "Ridge, cholesky"))
        yield (
            what.format(seeds["rows"]) + f", raw, {seeds['seeds']} seeds",
            f"R² within {seeds['worst R2 gap']:.0e}, {seeds['most passes']:.1f} passes, time 1",
            f"time: {exact}",
            "Ridge, cholesky is exact",
        )
    seeds = row(results, "real_data_seeds", data="flights, late")
    ratio = times(results, "real_data_classification", **{"features are": "raw"})
    yield (
        f"late flights or not, raw, {seeds['seeds']} seeds",
        f"gap of {seeds['worst gap, floors']:.0e} floors at worst, "
        f"{seeds['most passes']:.1f} passes, time 1",
        f"time: newton-cholesky {ratio('LogisticRegression, newton-cholesky'):.1f}",
        "separable classes have no solution without a penalty",
    )


def risk(results):
    def coverage(law, *columns):
        rows = matching(results, "risk_intervals_coverage", law=law)
        found = [r[column] for r in rows for column in columns]
        return min(found), max(found)

    low, high = coverage("Gaussian", "clean", "observed", "intercept")
    tails = "Student's t5"
    yield (
        "95 % intervals of the risk, gradients alone",
        f"hold in {low:.0%} to {high:.0%}",
        "",
        "Gaussian features; with t5 {:.0%} to {:.0%} if the intercept's gradient is sent, "
        "without it down to {:.0%}, single noise down to {:.0%}".format(
            *coverage(tails, "intercept"),
            coverage(tails, "observed")[0],
            coverage(f"single noise, {tails}", "clean")[0],
        ),
    )


def grid(results):
    rows = results["themes"].get("grid_cells", {"rows": []})["rows"]
    ratios = [(r["peer / ours"], r) for r in rows if r.get("peer / ours") is not None]
    if not ratios:
        return

    def said(cell):
        ratio, row = cell
        return (
            f"{ratio:.2f} ({row['loss']}, {row['rows']:,} x {row['features']:,}, condition "
            f"{row['condition']:.0e}, {row['fastest exact peer']})"
        )

    def size(cell):
        return cell[0]

    yield (
        f"time of the fastest exact peer, {len(ratios)} sizes and conditions",
        "1",
        f"best for us {said(max(ratios, key=size))}",
        f"worst {said(min(ratios, key=size))}",
    )


def table(results):
    """Return the table in Markdown, under the version that was measured."""
    run = results["environment"]
    lines = [f"Run of {run['date']}, version {run['sklearn_gradhess']}.", ""]
    lines += ["| what | ours | peers | where it ends |", "|---|---|---|---|"]
    for part in (hessian, cost, conditions, solver, grid, real, risk):
        lines += ["| " + " | ".join(cells) + " |" for cells in part(results)]
    return "\n".join(lines)


def main(results=ROOT / "docs" / "measured.json", readme=ROOT / "README.md"):
    text = readme.read_text("utf-8")
    if text.count(START) != 1 or text.count(END) != 1 or text.index(END) < text.index(START):
        raise ValueError(f"{readme.name} lacks the lines {START} and {END}, once and in this order")
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2]
    made = table(json.loads(results.read_text("utf-8")))
    readme.write_text(f"{before}{START}\n\n{made}\n\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
