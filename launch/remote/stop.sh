#!/usr/bin/env bash
# Asks the job of this worker to save and stop, and waits until it has.
#
# STOP_SECONDS  The longest time to wait.
set -uo pipefail
readonly JOB="$HOME/effnetv2_jax_job"

if [ ! -e "$JOB/lock" ] || flock --shared --nonblock "$JOB/lock" true; then
  echo "no job runs on $(hostname)"
  exit 0
fi
touch "$JOB/stopping"
kill -TERM "$(cat "$JOB/job.pid")"
if ! flock --shared --timeout "${STOP_SECONDS:-300}" "$JOB/lock" true; then
  echo "the job on $(hostname) has not stopped after ${STOP_SECONDS:-300} s" >&2
  exit 1
fi
echo "the job on $(hostname) has stopped"
