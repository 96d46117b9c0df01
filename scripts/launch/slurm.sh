#!/usr/bin/env bash
#SBATCH --job-name=visd
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=B:USR1@900
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Train on the nodes of a SLURM job, from the root of the repository, with all arguments for scripts/train.py:
#
#   sbatch --nodes 2 --gpus-per-node 8 --time 24:00:00 scripts/launch/slurm.sh experiment=visd_qwen2_5_vl_7b ...
#
# One torchrun a node starts one process a GPU, for every parallel mode. The folder of the run must be seen by all nodes.
# 900 s before the time limit the run stops after its current step with a checkpoint, and the job is put into the queue
# again, where it goes on; so does a job that SLURM itself requeues. A longer step needs a longer `--signal=B:USR1@SECONDS`.
# PROCESSES (default: the GPUs of a node, or 1) is the number of processes of a node, MASTER_PORT (default: by the job's
# number) the port that they meet at, PYTHON the interpreter that has visd, the same on all nodes.
set -euo pipefail

if [ -z "${SLURM_JOB_ID:-}" ]; then
    sed -n '9,18s/^# \{0,1\}//p' "$0"
    exit 2
fi
if [ ! -f scripts/train.py ]; then
    echo "$PWD has no scripts/train.py: give sbatch this job in the root of the repository" >&2
    exit 2
fi
export PYTHON=${PYTHON:-python}
export PROCESSES=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export MASTER_ADDR
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
STOP=$PWD/slurm-$SLURM_JOB_ID.stop
rm -f "$STOP"

stopping=false
interrupted=false
trap 'stopping=true; interrupted=true; : >"$STOP"' USR1

# shellcheck disable=SC2016  # the number of the node is known where it runs
srun --nodes "$SLURM_NNODES" --ntasks "$SLURM_NNODES" --ntasks-per-node 1 --kill-on-bad-exit=1 \
    --cpus-per-task "${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" bash -c '
    exec "$PYTHON" -m torch.distributed.run --nnodes "$SLURM_NNODES" --node_rank "$SLURM_NODEID" \
        --nproc_per_node "$PROCESSES" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" scripts/train.py "$@"
' visd run.resume=auto "$@" run.stop_file="$STOP" &
STEP=$!
while :; do
    interrupted=false status=0
    wait "$STEP" || status=$?
    $interrupted || break # otherwise the signal ended the waiting, not the step
done

# The run takes the file away when it stops for it; one that was at its end leaves it.
if $stopping && [ "$status" -eq 0 ] && [ ! -e "$STOP" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
rm -f "$STOP"
exit "$status"
