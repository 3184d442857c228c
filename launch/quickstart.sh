#!/usr/bin/env bash
# Trains tokenizers, an AR, a next-scale model and a one-step student on real digits, samples and evaluates them: bash launch/quickstart.sh [--out=DIR]
# Everything is left in out/quickstart; running it again goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup_env.sh
setup_env
# Otherwise glibc gives the buffers of every training step back to the system, which clears them anew for the next one.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_ARENA_MAX=1
exec "$PY" launch/quickstart.py "$@"
