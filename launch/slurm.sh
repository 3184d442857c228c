#!/usr/bin/env bash
# Trains on the nodes of a Slurm job; sbatch options on the command line override those below:
#
#   sbatch --nodes=4 launch/slurm.sh python -m jaxar.train --config=configs/ar_imagenet256.py --workdir=/shared/ar
#
# Submit from the checkout. The default is one process per GPU; --ntasks-per-node=1 gives one process all GPUs of its
# node. Before the time limit Slurm sends SIGTERM: training saves and exits with 75, and the job is queued again and
# resumes. Other failures queue it again too, at most RESTARTS times (environment, default 3); 0 and 2 end it. The first
# node's name must resolve on all nodes: JAX connects to it.
#SBATCH --job-name=jaxar
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -uo pipefail

case "${1:-}" in
  -h | --help) sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
  '') echo "no command; see --help" >&2; exit 2 ;;
esac
: "${SLURM_JOB_ID:?is not set; submit this script with sbatch, see --help}"

# JAX gives each Slurm task the one GPU of its number on the node; a lone task per node gets them all.
if [ "${SLURM_NTASKS_PER_NODE:-}" = 1 ] && [ "${SLURM_GPUS_ON_NODE:-1}" -gt 1 ]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi

# All processes save the same step and exit with 75 together; --wait ends those that hang after another was lost.
srun --kill-on-bad-exit=0 --wait=120 "$@"
code=$?
case "$code" in
  0 | 2) exit "$code" ;;
  75) ;;
  *) [ "${SLURM_RESTART_COUNT:-0}" -lt "${RESTARTS:-3}" ] || exit "$code" ;;
esac
echo "exit code $code; queueing job $SLURM_JOB_ID again" >&2
scontrol requeue "$SLURM_JOB_ID"
