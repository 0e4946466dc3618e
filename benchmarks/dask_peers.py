"""Fit dask-glm's solvers, which dask-ml's linear models call, in a process of their own.

Run as a script by an interpreter that has dask-glm; nothing else of this repository is needed.
Arguments: a file of X and y, as ``np.savez`` writes it; the rows of a block; a solver; the seconds
of CPU that it may take. Prints JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

INTERPRETER = "BENCHMARKS_DASK_GLM"
SOLVERS = ("lbfgs", "newton")
NARROW = ("gradient_descent", "admm")  # solvers that take their most rounds, and long
FEW = 50  # features up to which they are waited for
MISSING = f"dask-glm not installed: let {INTERPRETER} name an interpreter that has it"


def compare(X, y, block, solvers, seconds):
    """Return {solver: what it told}: CPU seconds, rounds and coefficients, or a note.

    Parameters
    ----------
    seconds : int
        CPU after which a solver is stopped; or ten times as long on the clock.
    """
    interpreter = os.environ.get(INTERPRETER, sys.executable)
    find = "import importlib.util as u, sys; sys.exit(u.find_spec('dask_glm') is None)"
    if subprocess.run([interpreter, "-c", find], check=False).returncode:
        return {"all": {"note": MISSING}}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "rows.npz")
        np.savez(path, X=X, y=y)
        for solver in (*solvers, *(NARROW if X.shape[1] <= FEW else ())):
            found[solver] = {"note": f"stopped after {seconds} s of CPU"}
            command = [interpreter, __file__, path, str(block), solver, str(seconds)]
            try:
                ran = subprocess.run(
                    command, capture_output=True, timeout=10 * seconds, check=False
                )
            except subprocess.TimeoutExpired:
                continue
            if ran.returncode > 0:  # below zero a signal stopped it
                found[solver] = {"note": (ran.stderr.decode().strip() or "failed").splitlines()[-1]}
            elif not ran.returncode:
                found[solver] = json.loads(ran.stdout)
    return found


def main(path, block, solver, seconds):
    """Fit, and print what it took."""
    import resource

    import dask
    import dask.array as da
    from dask.callbacks import Callback
    from dask_glm import algorithms

    stored = np.load(path)
    spent = int(time.process_time())  # on imports
    resource.setrlimit(resource.RLIMIT_CPU, (spent + int(seconds), spent + int(seconds)))
    X = np.column_stack([np.ones(len(stored["y"])), stored["X"]])
    Xd = da.from_array(X, chunks=(int(block), X.shape[1]))
    yd = da.from_array(stored["y"].astype(float), chunks=int(block))
    rounds = []
    # No penalty; all else as it comes
    settings = {"lamduh": 0.0} if solver in ("lbfgs", "admm") else {}
    if solver == "lbfgs":
        settings["regularizer"] = None
    with dask.config.set(scheduler="synchronous"), Callback(start=rounds.append):
        start = time.process_time()
        W = getattr(algorithms, solver)(Xd, yd, **settings)
        seconds = time.process_time() - start
    told = {"seconds": seconds, "rounds": len(rounds), "W": np.asarray(W).ravel().tolist()}
    print(json.dumps(told))


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose distributed.py is not dask's
    main(*sys.argv[1:])
