#!/usr/bin/env bash
# Trains tokenizers, an AR and a next-scale model on real digits, samples and evaluates them: bash launch/quickstart.sh [--out=DIR]
# Everything is left in out/quickstart; running it again goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup_env.sh
setup_env
exec "$PY" launch/quickstart.py "$@"
