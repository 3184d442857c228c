#!/usr/bin/env bash
# Trains on all hosts of a TPU pod slice, from any machine with gcloud:
#
#   bash launch/tpu_pod.sh --name=MY_TPU --zone=us-central2-b --dir=jaxar -- \
#     .venv/bin/python -m jaxar.train --config=configs/ar_imagenet256.py --workdir=/shared/ar
#
# Every host must hold the checkout with its environment in --dir, and see the same --workdir. A failed or preempted run
# is started again on each host and resumes, see launch/rerun.sh; a slice that was taken away must be created again
# first, then this line too resumes.
#   --name=NAME        name of the TPU VM
#   --zone=ZONE        its zone
#   --project=PROJECT  its project (default: gcloud's)
#   --dir=DIR          the checkout on the hosts, relative to the home directory (default jaxar)
#   --restarts=N       reruns after a failure (default 3)
set -euo pipefail

name='' zone='' dir=jaxar project=() rerun=()
while (($#)); do
  case "$1" in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=("$1") ;;
    --dir=*) dir=${1#*=} ;;
    --restarts=*) rerun+=("$1") ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    --) shift; break ;;
    *) echo "unknown option $1; see --help" >&2; exit 2 ;;
  esac
  shift
done
if [ -z "$name" ] || [ -z "$zone" ] || [ $# -eq 0 ]; then
  echo "--name, --zone and a command after -- are needed; see --help" >&2
  exit 2
fi

printf -v remote '%q ' env JAXAR_CLUSTER=tpu bash launch/rerun.sh "${rerun[@]}" -- "$@"
printf -v dir '%q' "$dir"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" "${project[@]}" --worker=all --command="cd $dir && $remote"
