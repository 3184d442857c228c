#!/usr/bin/env bash
# Runs a command again until it has finished: bash launch/rerun.sh [--restarts=N] [--delay=SECONDS] -- COMMAND...
#
# Exit code 75 (saved but unfinished) always reruns the command, which resumes. Other failures, such as a lost peer, do
# so N times (default 3). 0 (finished) and 2 (a mistake in arguments or configuration) end it. SIGTERM and Ctrl-C reach
# the command as SIGTERM, so that it saves, and end the script with the command's exit code.
#   --restarts=N       reruns after failures other than 75 (default 3)
#   --delay=SECONDS    wait before a rerun (default 10): other hosts notice the end of this one
set -uo pipefail

restarts=3 delay=10
while (($#)); do
  case "$1" in
    --restarts=*) restarts=${1#*=} ;;
    --delay=*) delay=${1#*=} ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    --) shift; break ;;
    *) echo "unknown option $1; see --help" >&2; exit 2 ;;
  esac
  shift
done
(($#)) || { echo "no command; write it after --, see --help" >&2; exit 2; }

child='' stopping=false interrupted=false
stop() {
  stopping=true interrupted=true
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT

while true; do
  "$@" &
  child=$! interrupted=true
  while $interrupted; do # a trapped signal ends `wait` before the command has ended
    interrupted=false
    wait "$child"
    code=$?
  done
  child=''
  case "$code" in
    0 | 2) exit "$code" ;;
    75) ;;
    *) ((restarts-- > 0)) || exit "$code" ;;
  esac
  if ! $stopping; then
    echo "exit code $code; rerunning in $delay s" >&2
    sleep "$delay" &
    wait "$!"
  fi
  if $stopping; then exit "$code"; fi
done
