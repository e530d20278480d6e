#!/bin/sh
# Makes or refreshes the virtual environment; called by the Makefile.
#   setup.sh        install exactly requirements.lock
#   setup.sh lock   resolve requirements.txt into requirements.lock
set -eu
UV_VERSION=0.13.9
LOCK_HEADER="# The exact set that was tested, with hashes; written by \`make lock\` from requirements.txt. Do not edit."

if ! command -v "$PYTHON" >/dev/null 2>&1; then
    echo "setup: no $PYTHON here; install Python 3.11 or newer, or say which one: make setup PYTHON=/path/to/python3" >&2
    exit 1
fi
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup: $("$PYTHON" --version) is too old; Python 3.11 or newer is needed: make setup PYTHON=python3.12" >&2
    exit 1
fi
if [ ! -x "$VENV/bin/python" ] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    "$PYTHON" -m venv --clear "$VENV" || {
        echo "setup: the venv module is not complete; on Debian and Ubuntu: sudo apt-get install -y python3-venv" >&2
        exit 1
    }
fi
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"

if [ "${1:-}" = lock ]; then
    { echo "$LOCK_HEADER"
      printf 'torch==2.11.0\ntorchvision==0.26.0\n' > "$VENV/pair.txt"
      "$VENV/bin/uv" pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --no-annotate \
          --python-version 3.11 --constraint "$VENV/pair.txt" requirements.txt
    } > requirements.lock.new
    mv requirements.lock.new requirements.lock
fi

echo "setup: installing $(grep -c '==' requirements.lock) packages into $VENV (torch is about 3 GB with its libraries)"
"$VENV/bin/uv" pip install --quiet --compile-bytecode --python "$VENV/bin/python" --require-hashes -r requirements.lock
if ! "$VENV/bin/python" -c 'import cv2' 2>"$VENV/cv2.log"; then
    tail -n 1 "$VENV/cv2.log" >&2
    echo "setup: OpenCV needs two system libraries; on Debian and Ubuntu: sudo apt-get install -y libgl1 libglib2.0-0" >&2
    exit 1
fi
"$VENV/bin/python" -c 'import torch, torchvision; print("setup: ready, torch", torch.__version__, "on", "CUDA" if torch.cuda.is_available() else "CPU")'
touch "$VENV/.ready"
