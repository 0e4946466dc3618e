"""Write the table of the README from the measured results.

python -m benchmarks.readme docs/measured.json README.md
"""

import json
import sys
from pathlib import Path

START, END = "<!-- measured: python -m benchmarks.readme -->", "<!-- end -->"


def row(results, theme, **where):
    """Return the only row of a theme with these values."""
    rows = [
        r for r in results["themes"][theme]["rows"] if all(r.get(k) == v for k, v in where.items())
    ]
    if len(rows) != 1:
        raise LookupError(f"{len(rows)} rows of {theme} have {where}, one is needed")
    return rows[0]


def accuracy(results):
    floors = [
        row(results, "estimator_accuracy", features=law)["error / floor"]
        for law in ("gaussian", "rademacher", "student_t")
    ]
    corrected, plain = (
        row(results, "estimator_single_noise", correction=c)["error / floor"]
        for c in ("gaussian", "none")
    )
    yield (
        "Hessian, antithetic noise, m² = 40, label noise",
        "{:.2f}, {:.2f}, {:.2f} floors (Gaussian, signs, t5)".format(*floors),
        "1 floor: Gaussian draws",
    )
    yield (
        "Hessian, single noise, n = 32, m² = 25",
        f"{corrected:.1f} floors, corrected",
        f"{plain:.0f} floors, uncorrected",
    )


def cost(results):
    speed = row(results, "estimator_speed", threads=1, batches="dealt", **{"fit of": "X"})
    share = row(results, "memory_peak", model="GradientCovarianceEstimator")["peak / X"]
    yield (
        "estimator, 200,000 x 512, batches of 64",
        f"{speed['reads of X']:.1f} reads of X; {share:.0%} of its memory",
        f"EmpiricalCovariance: {speed['EC / ours']:.1f} times as long, more accurate",
    )


def solver(results):
    conditions = row(
        results, "scaling_condition", quantity="passes", model="PreconditionedSGDRegressor"
    )
    passes = [conditions[c] for c in ("1e+00", "1e+12")]
    excess = row(
        results, "scaling_condition", quantity="excess", model="PreconditionedSGDRegressor"
    )["1e+12"]
    others = {
        model: row(results, "scaling_condition", quantity="excess", model=model)["1e+12"]
        for model in ("Ridge, cholesky", "Ridge, lsqr")
    }
    yield (
        "least squares, condition 1 and 1e12",
        "{:.1f} and {:.1f} passes".format(*passes) + f", excess {excess:.0e} floors",
        "excess at 1e12: " + ", ".join(f"{m} {e:,.0f} floors" for m, e in others.items()),
    )
    for threads in (1, 2):
        ratios = {
            model: [
                row(results, "solver_least_squares", threads=threads, features=d, model=model)[
                    "time / ours"
                ]
                for d in (100, 500)
            ]
            for model in ("LinearRegression", "Ridge, cholesky", "Ridge, lsqr")
        }
        yield (
            f"least squares, 200,000 x 100 and x 500, {threads} thread{'s' * (threads > 1)}",
            "1",
            "; ".join(
                "{} {:.1f} and {:.1f} times as long".format(m, *r) for m, r in ratios.items()
            ),
        )
    newton = "LogisticRegression, newton-cholesky"
    yield (
        "logistic, 200,000 x 100, condition 1e4",
        "1",
        f"newton-cholesky {row(results, 'solver_logistic', model=newton)['time / ours']:.1f} "
        "times as long",
    )


def real(results):
    flights = row(results, "real_data_seeds", data="flights")
    late = row(results, "real_data_seeds", data="flights, late")
    newton = row(
        results,
        "real_data_classification",
        model="LogisticRegression, newton-cholesky",
        **{"features are": "raw"},
    )
    yield (
        f"delays of {flights['rows']:,} flights, raw, {flights['seeds']} seeds",
        f"R² within {flights['worst R2 gap']:.0e}, {flights['most passes']:.1f} passes",
        "",
    )
    yield (
        f"late or not, raw, {late['seeds']} seeds",
        f"gap of {late['worst gap, floors']:.0e} floors at worst, {late['most passes']:.1f} passes",
        f"newton-cholesky {newton['time / ours']:.1f} times as long",
    )


def risk(results):
    summary = results["themes"]["risk_intervals_coverage"]["summary"].splitlines()
    low, high = summary[0].partition("coverage ")[2].split(" to ")
    yield (
        "95 % intervals of the risk, gradients alone",
        f"hold in {float(low):.0%} to {float(high):.0%}",
        "",
    )


def table(results):
    """Return the table in Markdown."""
    lines = ["| what | ours | peers |", "|---|---|---|"]
    for part in (accuracy, cost, solver, real, risk):
        lines += ["| " + " | ".join(cells) + " |" for cells in part(results)]
    return "\n".join(lines)


def main(results, readme):
    text = readme.read_text("utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    made = table(json.loads(results.read_text("utf-8")))
    readme.write_text(f"{before}{START}\n\n{made}\n\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
