#!/usr/bin/env bash
# Makes a worker ready: the code, a Python with packages of exact versions, a bucket as a folder.
#
# PYTHON_VERSION  of the interpreter, which uv brings where the machine has none
# BUCKET          to be mounted at ~/gcs/BUCKET; empty for none
# GIT_URL GIT_REF to be cloned, instead of code.tar.gz
#
# May run again, and then does what is missing; the code is always new.
set -euo pipefail
cd

readonly UV_VERSION=0.13.9 GCSFUSE_VERSION=3.4.0
readonly JOB="$HOME/effnetv2_jax_job" CODE="$HOME/effnetv2_jax" VENV="$HOME/effnetv2_jax_venv"

if [ -e "$JOB/lock" ] && ! flock --shared --nonblock "$JOB/lock" true; then
  echo "a job runs on $(hostname): its code is left alone" >&2
  exit 1
fi

rm -rf "$CODE.new"
if [ -n "${GIT_REF:-}" ]; then
  git clone --quiet "$GIT_URL" "$CODE.new"
  git -C "$CODE.new" checkout --quiet --detach "$GIT_REF"
else
  mkdir "$CODE.new"
  tar --extract --gzip --file="$JOB/code.tar.gz" --directory="$CODE.new"
fi
rm -rf "$CODE"
mv "$CODE.new" "$CODE"

# Newer systems want to be told that they are not meant.
export PIP_BREAK_SYSTEM_PACKAGES=1 PATH="$HOME/.local/bin:$PATH"
python3 -m pip install --quiet --user "uv==$UV_VERSION"
if [ ! -x "$VENV/bin/python" ]; then
  uv venv --quiet --python="$PYTHON_VERSION" "$VENV"
fi
uv pip install --quiet --python="$VENV/bin/python" --constraint="$JOB/requirements.txt" \
  --editable="${CODE}[tpu]"

if [ -n "${BUCKET:-}" ]; then
  if ! command -v gcsfuse >/dev/null; then
    name="gcsfuse_${GCSFUSE_VERSION}_amd64.deb"
    curl --fail --silent --show-error --location --output="$JOB/$name" \
      "https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v$GCSFUSE_VERSION/$name"
    # A machine that has just started may be updating itself.
    sudo apt-get --quiet --yes --option=DPkg::Lock::Timeout=300 install "$JOB/$name"
  fi
  mkdir -p "$HOME/gcs/$BUCKET"
  if ! mountpoint --quiet "$HOME/gcs/$BUCKET"; then
    # Nothing is remembered of files that other workers may have changed; a checkpoint's folder
    # gets its name when it is whole; and fsync puts a file into the bucket, not only close.
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=100000 \
      --enable-streaming-writes=false "$BUCKET" "$HOME/gcs/$BUCKET"
  fi
fi
