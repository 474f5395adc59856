#!/usr/bin/env bash
# On a cluster that runs already: its head takes the command as a job, and keeps its output.
#   docs/clusters/submit.sh http://10.0.0.10:8265
set -euo pipefail

dashboard=${1:?the address of the dashboard, such as http://10.0.0.10:8265}

# What is in this folder (configs, networks of your own) is sent along; the run folder is on a disk that all nodes share.
ray job submit --address "$dashboard" --no-wait --submission-id espalier-my --working-dir . -- \
    espalier search my.yaml --address auto --workers 64 --gpus-per-worker 0.25 \
    --storage postgresql://espalier@10.0.0.10/espalier --study my --out /shared/runs/my

# A job that is stopped is a driver that is killed: `espalier resume` in another job goes on.
ray job logs --address "$dashboard" --follow espalier-my
