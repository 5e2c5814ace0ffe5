#!/usr/bin/env bash
# Runs the job of this worker, copies its log into the workdir, and remembers how it ended.
#
# WORKDIR       The folder of the run, as seen from the code.
# COPY_SECONDS  The time between two copies of the log.
set -uo pipefail
readonly JOB="$HOME/effnetv2_jax_job"
cd "$HOME/effnetv2_jax" || exit 1

exec 9>"$JOB/lock"
# Others hold the lock only for the moment in which they test it.
flock --timeout 10 9 || exit 1
echo "$WORKDIR" >"$JOB/workdir"
: >"$JOB/log"

# Each start has its own copy, so that no worker and no restart overwrites another one's.
copy="$WORKDIR/logs/$(date --utc +%Y%m%dT%H%M%SZ)-$(hostname).log"
keep() {
  mkdir -p "$WORKDIR/logs" && cp "$JOB/log" "$copy"
  # TensorBoard's file stays open, and a mounted bucket has only what was synced.
  for events in "$WORKDIR"/events.*; do
    if [ -e "$events" ]; then sync "$events"; fi
  done
}
(while sleep "${COPY_SECONDS:-60}" && kill -0 $$; do keep; done) 9>&- &
copier=$!

# Compiled programs and the places of records are useful to all workers and to later nodes.
cache=$(mkdir -p "$WORKDIR/cache" && cd "$WORKDIR/cache" && pwd)

status() { cat "$WORKDIR/status.json" 2>/dev/null; }
status_before=$(status)

# A machine that shuts down signals every process, so this script must not pass the signal on.
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
# A signal ends the wait but not the job.
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
  # A maintenance notice comes without a signal; it ends a run early, with exit code 0.
  outcome="done"
  if [ "$(status)" != "$status_before" ] && status | grep --quiet '"state": "stopped"'; then
    outcome=interrupted
  fi
fi
kill "$copier"
keep
echo "$outcome" >"$JOB/outcome.new" && mv "$JOB/outcome.new" "$JOB/outcome"
