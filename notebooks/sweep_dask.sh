#!/bin/bash
# A sweep as one SLURM job with dask inside: the first task is the scheduler, the second tells the progress, all others
# run points. It needs `pip install dask-jobqueue`. What follows is the sweep, without its --scheduler:
#   sbatch notebooks/sweep_dask.sh notebooks/01_train_two_mlps.ipynb --grid width=64,128 --grid seed=0:500
#SBATCH --job-name=sweep
#SBATCH --ntasks=202
#SBATCH --cpus-per-task=1
#SBATCH --mem-per-cpu=2G
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.out
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch, from the folder of the project}"

srun --kill-on-bad-exit=0 .venv/bin/python notebooks/sweep_dask.py "$@"
