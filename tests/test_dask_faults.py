"""Real worker processes: killed while a fit goes on, or with less memory than there are data."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_gradhess import PreconditionedSGDClassifier, PreconditionedSGDRegressor, _dask

distributed = pytest.importorskip("distributed")
da = pytest.importorskip("dask.array")
# of connections that break, which is what happens here
pytestmark = pytest.mark.filterwarnings("ignore")


SECONDS = 60  # after which a test fails, instead of waiting


@contextmanager
def workers(n, folder, memory="auto"):
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
        command += ["--local-directory", str(folder), "--memory-limit", str(memory)]
        late = threading.Timer(SECONDS, client.close, kwargs={"timeout": 1})
        late.start()
        try:
            for _ in range(n):
                quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                quiet["start_new_session"] = True
                started.append(subprocess.Popen(command, env=env, **quiet))
            client.wait_for_workers(n, timeout="30s")
            yield client, started
        finally:
            late.cancel()
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


LIMIT = 500 * 2**20  # of which the interpreter and the packages take 230
SIZE = (50_000, 40)  # of a block on disk: 16 MB
BLOCKS = 132
WEIGHTS = np.linspace(-1, 1, SIZE[1])


def read_features(path, scale):
    return np.load(path)[:, 1:] * scale


def read_targets(path, scale):
    stored = np.load(path)
    return stored[:, 1:] @ WEIGHTS * scale + stored[:, 0]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks of memory from Linux")
def test_data_of_four_times_the_memory_of_a_worker(tmp_path):
    """Each block is read from disk where it is asked, and gone when it has answered."""
    n, d = SIZE
    stored = np.random.default_rng(0).standard_normal((n, d + 1))
    np.save(tmp_path / "rows.npy", stored)
    scales = 1 + np.arange(BLOCKS) / BLOCKS
    delayed = pytest.importorskip("dask").delayed

    def blocks(read, shape):
        read = delayed(read, pure=False)
        parts = [read(str(tmp_path / "rows.npy"), scale) for scale in scales]
        return da.concatenate([da.from_delayed(part, shape, float) for part in parts])

    X, y = blocks(read_features, SIZE), blocks(read_targets, (n,))
    assert X.nbytes >= 4 * LIMIT
    with workers(1, tmp_path, LIMIT) as (client, processes):
        client.register_plugin(distributed.UploadFile(__file__))
        model = PreconditionedSGDRegressor().fit(X, y)
        status = Path(f"/proc/{processes[0].pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak * 1024 < LIMIT
    assert model.n_rounds_ == 1
    # Normal equations of all blocks, from the moments of the one on disk
    noise, rows = stored[:, 0], np.column_stack([np.ones(n), stored[:, 1:]])
    size = np.column_stack([np.ones(BLOCKS), np.repeat(scales[:, None], d, axis=1)])
    gram = (rows.T @ rows) * (size.T @ size)
    step = np.linalg.solve(gram, (rows.T @ noise) * size.sum(axis=0))
    assert_allclose(model.coef_, WEIGHTS + step[1:], rtol=1e-9, atol=1e-9)
    assert_allclose(model.intercept_, step[0], rtol=1e-6, atol=1e-9)
