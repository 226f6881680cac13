"""What every task of sweep_dask.sh runs: one becomes the scheduler, one the sweep, the others workers."""

import subprocess
import sys

from dask_jobqueue.slurm import SLURMRunner

if __name__ == "__main__":
    # A Nanny starts its worker again when that is killed. One thread: one point at a time.
    with SLURMRunner(worker_class="distributed.Nanny", worker_options={"nthreads": 1}) as cluster:
        command = [sys.executable, "-m", "paramarket", "sweep", *sys.argv[1:]]
        code = subprocess.run([*command, "--scheduler", cluster.scheduler_address], check=False).returncode
    sys.exit(code)
