#!/usr/bin/env bash
# Makes a worker ready: the code, Python with exact versions of packages, and a mounted bucket.
#
# PYTHON_VERSION   The version of the interpreter. uv installs it if the machine does not have it.
# BUCKET           The bucket to mount at ~/gcs/BUCKET; empty for none.
# GIT_URL GIT_REF  The repository and commit to clone. The code is code.tar.gz by default.
#
# It may run again. Then it replaces the code and does only what is still missing of the rest.
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

# Newer systems refuse pip without this, although --user leaves their own packages alone.
export PIP_BREAK_SYSTEM_PACKAGES=1 PATH="$HOME/.local/bin:$PATH"
python3 -m pip install --quiet --user "uv==$UV_VERSION"
if [ ! -x "$VENV/bin/python" ]; then
  uv venv --quiet --python="$PYTHON_VERSION" "$VENV"
fi
uv pip install --quiet --python="$VENV/bin/python" --constraint="$JOB/requirements.txt" \
  --editable="${CODE}[train,tpu]"

if [ -n "${BUCKET:-}" ]; then
  if ! command -v gcsfuse >/dev/null; then
    name="gcsfuse_${GCSFUSE_VERSION}_amd64.deb"
    curl --fail --silent --show-error --location --output="$JOB/$name" \
      "https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v$GCSFUSE_VERSION/$name"
    # A machine that has just started may still be installing updates.
    sudo apt-get --quiet --yes --option=DPkg::Lock::Timeout=300 install "$JOB/$name"
  fi
  mkdir -p "$HOME/gcs/$BUCKET"
  if ! mountpoint --quiet "$HOME/gcs/$BUCKET"; then
    # No metadata is cached, because other workers may change files. Folders can be renamed,
    # because a checkpoint's folder gets its name when it is whole. Without streaming, fsync puts a
    # file into the bucket; otherwise only close would.
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=100000 \
      --enable-streaming-writes=false "$BUCKET" "$HOME/gcs/$BUCKET"
  fi
fi
