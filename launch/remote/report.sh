#!/usr/bin/env bash
# Prints one line on the job of this worker: its name, host, outcome, and how far the run is.
set -uo pipefail
readonly JOB="$HOME/effnetv2_jax_job"

# Without a lock there was no job. Without an outcome, it died together with its machine.
outcome=missing
if [ -e "$JOB/lock" ] && ! flock --shared --nonblock "$JOB/lock" true; then
  outcome=running
elif [ -e "$JOB/outcome" ]; then
  outcome=$(cat "$JOB/outcome")
fi
progress=
if [ -e "$JOB/workdir" ] && cd "$HOME/effnetv2_jax"; then
  progress=$(grep --extended-regexp --only-matching '"(state|step|total_steps)": [^,]+' \
    "$(cat "$JOB/workdir")/status.json" 2>/dev/null | tr --delete '"' | paste --serial --delimiters=,)
fi
printf 'effnetv2_jax_job\t%s\t%s\t%s\n' "$(hostname)" "$outcome" "$progress"
