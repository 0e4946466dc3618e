"""Worker processes that are killed while a fit goes on."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from numpy.testing import assert_array_equal

from sklearn_gradhess import PreconditionedSGDClassifier, _dask

distributed = pytest.importorskip("distributed")
da = pytest.importorskip("dask.array")
WAIT = "30s"


def start_worker(address, folder):
    root = str(Path(_dask.__file__).parents[1])
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny"]
    options = ["--nthreads", "1", "--no-dashboard", "--local-directory", str(folder)]
    return subprocess.Popen(
        [*command, *options, "--death-timeout", "60"],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.filterwarnings("ignore")  # of connections that break, which is what happens here
def test_a_worker_that_dies_changes_no_bit(tmp_path, monkeypatch):
    """Data it held are made again, and its questions are asked again."""
    workers = []
    cluster = distributed.LocalCluster(
        n_workers=0, dashboard_address=None, scheduler_port=0, host="127.0.0.1", silence_logs=50
    )
    with cluster, distributed.Client(cluster, set_as_default=True) as client:
        try:
            workers += [start_worker(cluster.scheduler_address, tmp_path) for _ in range(2)]
            client.wait_for_workers(2, timeout=WAIT)
            X = da.random.default_rng(0).standard_normal((40_000, 20), chunks=(4000, 20))
            noise = da.random.default_rng(1).logistic(size=40_000, chunks=4000)
            X, y = client.persist([X, X[:, 0] + noise > 0])
            model = PreconditionedSGDClassifier(preconditioner="sketch", random_state=0)
            expected = model.fit(X, y.astype(int)).coef_.copy()

            reduce, asked = _dask.Engine.reduce, []

            def kill_in_the_third_round(self, *args):
                asked.append(args)
                if len(asked) == 3:
                    kill = (workers[0].pid, signal.SIGKILL)
                    threading.Timer(0.02, os.kill, args=kill).start()
                return reduce(self, *args)

            monkeypatch.setattr(_dask.Engine, "reduce", kill_in_the_third_round)
            model.fit(X, y.astype(int))
            assert workers[0].wait(timeout=30) == -signal.SIGKILL
            assert len(asked) == model.n_rounds_ > 3
            assert_array_equal(model.coef_, expected)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
