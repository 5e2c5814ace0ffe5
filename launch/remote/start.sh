#!/usr/bin/env bash
# Starts the job of this worker in a session of its own, unless it runs: start.sh COMMAND…
#
# WORKDIR  of the run, seen from the code
#
# setsid, and no terminal multiplexer: every machine has it, nobody types into the job, and its log
# and outcome are files.
set -euo pipefail
readonly JOB="$HOME/effnetv2_jax_job"
cd "$HOME/effnetv2_jax"

# Held by supervise.sh as long as it lives: unlike a process number, nobody else can have it.
if ! flock --shared --nonblock "$JOB/lock" true; then
  echo "the job runs already on $(hostname)"
  exit 0
fi
rm -f "$JOB/outcome" "$JOB/stopping" "$JOB/job.pid"
setsid bash "$JOB/supervise.sh" "$@" </dev/null >"$JOB/supervisor.log" 2>&1 &
# Whoever asks next must find it.
while flock --shared --nonblock "$JOB/lock" true && [ ! -e "$JOB/outcome" ]; do
  kill -0 $! || exit 1
  sleep 0.05
done
