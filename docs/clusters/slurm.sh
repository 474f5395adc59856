#!/usr/bin/env bash
# sbatch docs/clusters/slurm.sh        eight nodes for four hours; submitted again, it goes on where the study stands
#SBATCH --job-name=espalier
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address="$head:6379"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token"

# One Ray on all nodes of the job, and the command on the first: 8 x 32 cores, one of them for the driver. The search
# takes two and a half hours of the job's four: before it the ladder is trained and a strength chosen, where a run has
# not done so, and after it the finalists are fine-tuned.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" -- \
    espalier search my.yaml --address "$address" --workers 255 --time-budget 150m \
    --storage postgresql://espalier@login-node/espalier --study my --out "$HOME/runs/my"
