"""What every task of sweep_dask.sh runs: a scheduler, the sweep, or a worker."""

import subprocess
import sys

from dask_jobqueue.slurm import SLURMRunner

# A Nanny starts its worker again when that is killed. One thread: a point at a time.
WORKER = {"worker_class": "distributed.Nanny", "worker_options": {"nthreads": 1}}

if __name__ == "__main__":
    with SLURMRunner(**WORKER) as cluster:
        command = [sys.executable, "-m", "paramarket", "sweep", *sys.argv[1:]]
        command += ["--scheduler", cluster.scheduler_address]
        code = subprocess.run(command, check=False).returncode
    sys.exit(code)
