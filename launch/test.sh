#!/usr/bin/env bash
# Runs the tests: bash launch/test.sh [--python=PY] [--slow] [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup_env.sh
python=python3
args=()
for arg in "$@"; do
  case "$arg" in
    --python=*) python=${arg#--python=} ;;
    --slow) args+=(-m "slow or not slow") ;;
    -h | --help) sed -n '2s/^# //p' "$0"; exit 0 ;;
    *) args+=("$arg") ;;
  esac
done
setup_env "$python"
"$PY" -m ruff check .
"$PY" -m ruff format --check -q .
exec "$PY" -m pytest -q -n 2 --dist=loadfile --no-loadscope-reorder "${args[@]}"
