#!/usr/bin/env bash
# Runs the job of this worker, copies its log into the workdir, and remembers how it ended.
#
# WORKDIR       of the run, seen from the code
# COPY_SECONDS  between two copies of the log
set -uo pipefail
readonly JOB="$HOME/effnetv2_jax_job"
cd "$HOME/effnetv2_jax" || exit 1

exec 9>"$JOB/lock"
# Others only look whether it is held, for a moment.
flock --timeout 10 9 || exit 1
echo "$WORKDIR" >"$JOB/workdir"
: >"$JOB/log"

# Every start has its own: no worker and no restart overwrites another's.
copy="$WORKDIR/logs/$(date --utc +%Y%m%dT%H%M%SZ)-$(hostname).log"
keep() {
  mkdir -p "$WORKDIR/logs" && cp "$JOB/log" "$copy"
  # TensorBoard's file stays open, and a mounted bucket has of it what was synced.
  for events in "$WORKDIR"/events.*; do
    if [ -e "$events" ]; then sync "$events"; fi
  done
}
(while sleep "${COPY_SECONDS:-60}" && kill -0 $$; do keep; done) 9>&- &
copier=$!

# What is compiled, and where records begin, is of use to all workers and to the next nodes.
cache=$(mkdir -p "$WORKDIR/cache" && cd "$WORKDIR/cache" && pwd)

status() { cat "$WORKDIR/status.json" 2>/dev/null; }
status_before=$(status)

# A machine that goes down tells every process: the job must hear it once, not again from here.
interrupted=
trap 'interrupted=1' TERM HUP INT
(
  export XDG_CACHE_HOME="${cache:-$HOME/.cache}" PYTHONUNBUFFERED=1
  # shellcheck source=/dev/null
  if [ -e "$JOB/environment" ]; then . "$JOB/environment"; fi
  exec "$@"
) >>"$JOB/log" 2>&1 9>&- &
job=$!
echo "$job" >"$JOB/job.pid"
# A signal ends the wait, not the job.
while :; do
  wait "$job"
  code=$?
  kill -0 "$job" 2>/dev/null || break
done

outcome="failed $code"
if [ -e "$JOB/stopping" ]; then
  outcome=stopped
elif [ -n "$interrupted" ]; then
  outcome=interrupted
elif [ "$code" = 0 ]; then
  # A maintenance notice, which no signal announces, ends a run well, but early.
  outcome="done"
  if [ "$(status)" != "$status_before" ] && status | grep --quiet '"state": "stopped"'; then
    outcome=interrupted
  fi
fi
kill "$copier"
keep
echo "$outcome" >"$JOB/outcome.new" && mv "$JOB/outcome.new" "$JOB/outcome"
