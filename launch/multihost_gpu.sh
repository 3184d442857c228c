#!/usr/bin/env bash
# Trains on several hosts without a scheduler; the same line runs on every host, with its own --rank:
#
#   bash launch/multihost_gpu.sh --coordinator=HOST0:1234 --hosts=2 --rank=0 -- \
#     python -m jaxar.train --config=configs/ar_imagenet256.py --workdir=/shared/ar
#
# All hosts need the same checkout and a shared --workdir. A failed or preempted run is started again and resumes; see
# launch/rerun.sh, which also takes the options --restarts and --delay.
#   --coordinator=HOST:PORT   host of rank 0 and a free port there, reachable from all hosts
#   --hosts=N                 number of processes, one per host (JAX_NUM_PROCESSES)
#   --rank=I                  number of this process, 0 to N-1 (JAX_PROCESS_ID)
# One process takes all GPUs of its host. For one process per GPU start as many, each with its own rank, and set
# JAX_LOCAL_DEVICE_IDS to the GPU of each.
set -euo pipefail

coordinator='' hosts='' rank='' rerun=()
while (($#)); do
  case "$1" in
    --coordinator=*) coordinator=${1#*=} ;;
    --hosts=*) hosts=${1#*=} ;;
    --rank=*) rank=${1#*=} ;;
    --restarts=* | --delay=*) rerun+=("$1") ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    --) shift; break ;;
    *) echo "unknown option $1; see --help" >&2; exit 2 ;;
  esac
  shift
done
if [[ $coordinator != *:* || ! $hosts =~ ^[0-9]+$ || ! $rank =~ ^[0-9]+$ ]] || ((rank >= hosts)); then
  echo "--coordinator=$coordinator --hosts=$hosts --rank=$rank: need HOST:PORT, N >= 1 and 0 <= I < N; see --help" >&2
  exit 2
fi

export JAX_COORDINATOR_ADDRESS=$coordinator JAX_NUM_PROCESSES=$hosts JAX_PROCESS_ID=$rank
exec bash "$(dirname "$0")/rerun.sh" "${rerun[@]}" -- "$@"
