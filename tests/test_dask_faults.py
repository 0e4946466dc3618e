"""Worker processes that are killed while a fit goes on."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from numpy.testing import assert_array_equal

from sklearn_gradhess import PreconditionedSGDClassifier, _dask

distributed = pytest.importorskip("distributed")
da = pytest.importorskip("dask.array")
# of connections that break, which is what happens here
pytestmark = pytest.mark.filterwarnings("ignore")


@contextmanager
def workers(n, folder):
    """A client of n worker processes without anybody who would start them again."""
    root = str(Path(_dask.__file__).parents[1])
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": root}
    started = []
    cluster = distributed.LocalCluster(
        n_workers=0, dashboard_address=None, scheduler_port=0, host="127.0.0.1", silence_logs=50
    )
    with cluster, distributed.Client(cluster, set_as_default=True) as client:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
        command += ["--no-nanny", "--no-dashboard", "--nthreads", "1", "--death-timeout", "60"]
        command += ["--local-directory", str(folder)]
        try:
            for _ in range(n):
                quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                started.append(subprocess.Popen(command, env=env, **quiet))
            client.wait_for_workers(n, timeout="30s")
            yield client, started
        finally:
            for worker in started:
                worker.kill()
                worker.wait()


def test_a_worker_that_dies_changes_no_bit(tmp_path, monkeypatch):
    """Data it held are made again, and its questions are asked again."""
    with workers(2, tmp_path) as (client, processes):
        X = da.random.default_rng(0).standard_normal((40_000, 20), chunks=(4000, 20))
        noise = da.random.default_rng(1).logistic(size=40_000, chunks=4000)
        X, y = client.persist([X, (X[:, 0] + noise > 0).astype(int)])
        model = PreconditionedSGDClassifier(preconditioner="sketch", random_state=0)
        expected = model.fit(X, y).coef_.copy()

        reduce, asked = _dask.Engine.reduce, []

        def kill_in_the_third_round(self, *args):
            asked.append(args)
            if len(asked) == 3:
                kill = (processes[0].pid, signal.SIGKILL)
                threading.Timer(0.02, os.kill, args=kill).start()
            return reduce(self, *args)

        monkeypatch.setattr(_dask.Engine, "reduce", kill_in_the_third_round)
        model.fit(X, y)
        assert processes[0].wait(timeout=30) == -signal.SIGKILL
        assert len(asked) == model.n_rounds_ > 3
        assert_array_equal(model.coef_, expected)
