#!/bin/bash
# A sweep as a plain SLURM array: each job runs every 50th point. What follows is the sweep, without its --workers:
#   sbatch notebooks/sweep_array.sh notebooks/01_train_two_mlps.ipynb --grid width=64,128 --grid seed=0:500
#SBATCH --job-name=sweep
#SBATCH --array=1-50
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=2G
#SBATCH --time=04:00:00
#SBATCH --output=%x-%A-%a.out
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch, from the folder of the project}"

.venv/bin/python -m paramarket sweep "$@" \
    --workers "$SLURM_CPUS_PER_TASK" --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
