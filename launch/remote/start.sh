#!/usr/bin/env bash
# Starts the job of this worker in its own session, unless it runs: start.sh COMMAND…
#
# WORKDIR  The folder of the run, as seen from the code.
#
# It uses setsid instead of a terminal multiplexer: every machine has it, nobody types into the job,
# and its log and outcome are files.
set -euo pipefail
readonly JOB="$HOME/effnetv2_jax_job"
cd "$HOME/effnetv2_jax"

# supervise.sh holds the lock while it lives. A process number could belong to another process.
if ! flock --shared --nonblock "$JOB/lock" true; then
  echo "the job runs already on $(hostname)"
  exit 0
fi
rm -f "$JOB/outcome" "$JOB/stopping" "$JOB/job.pid"
setsid bash "$JOB/supervise.sh" "$@" </dev/null >"$JOB/supervisor.log" 2>&1 &
# Wait for the lock, so that the next question finds the job.
while flock --shared --nonblock "$JOB/lock" true && [ ! -e "$JOB/outcome" ]; do
  kill -0 $! || exit 1
  sleep 0.05
done
