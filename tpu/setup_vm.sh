#!/usr/bin/env bash
# Make a fresh TPU VM ready: Python 3.12, this checkout with JAX for TPUs and, if BUCKET is set, gs://BUCKET at ~/bucket.
# Run on every worker by `launch.py sync`. A second run finds what is there and takes seconds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=$HOME/.local/bin:$PATH

# The images have Python 3.10, we need 3.11 or later. uv brings its own and needs no apt, which a fresh VM keeps locked.
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
[[ -x .venv/bin/python ]] || uv venv --python "${PYTHON:-3.12}" .venv
uv pip install --quiet --python .venv/bin/python --editable ".[${EXTRAS:-tpu,gcs}]"

if [[ -n ${BUCKET:-} ]] && ! mountpoint --quiet "$HOME/bucket"; then
  if ! command -v gcsfuse >/dev/null; then
    apt=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
    curl -fsSL $apt/doc/apt-key.gpg | sudo tee $key >/dev/null
    echo "deb [signed-by=$key] $apt gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get -o DPkg::Lock::Timeout=600 update --quiet
    sudo apt-get -o DPkg::Lock::Timeout=600 install --quiet --yes gcsfuse
  fi
  mkdir -p "$HOME/bucket"
  # Finished folders appear whole, by being renamed; gcsfuse renames none unless it may copy their files.
  gcsfuse --implicit-dirs --rename-dir-limit=100000 "$BUCKET" "$HOME/bucket"
fi

# Touches no chip: on a slice of several machines that would wait for all of them.
.venv/bin/python -c 'import jax, xdistil_jax; print("ready: jax", jax.__version__)'
