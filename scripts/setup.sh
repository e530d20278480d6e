#!/bin/sh
# Creates or updates the virtual environment; the Makefile calls it.
#   setup.sh        install exactly requirements.lock
#   setup.sh lock   resolve requirements.txt into requirements.lock and requirements.headless.lock
#
# The script checks everything before the large download. If the system libraries of opencv-python are missing, it installs the headless
# build of the same version (requirements.headless.lock), because the project draws into files and opens no window.
set -eu
UV_VERSION=0.13.9
GIGABYTES=5.3   # of an environment on Linux with all packages; `make setup` on Debian 13, `du -sh .venv`
LOCK_HEADER="# The exact set that was tested, with hashes; written by \`make lock\` from requirements.txt. Do not edit."

fail() {
    echo "setup: $1" >&2
    exit 1
}

# ---- checks: Python, venv with ensurepip, the libraries of cv2, room on the disk --------------------------------------------
command -v "$PYTHON" >/dev/null 2>&1 ||
    fail "there is no $PYTHON; install Python 3.11 or newer, or name it: make setup PYTHON=/path/to/python3 (Debian, Ubuntu: apt-get install -y python3 python3-venv)"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$PYTHON" --version) is too old; Python 3.11 or newer is needed: make setup PYTHON=python3.12"

loads() {  # a shared library; on other systems than Linux opencv-python brings everything itself
    "$PYTHON" -c 'import ctypes, sys; sys.platform == "linux" and ctypes.CDLL(sys.argv[1])' "$1" >/dev/null 2>&1
}
libraries=""
loads libGL.so.1 || libraries="$libraries libgl1"
loads libgthread-2.0.so.0 || libraries="$libraries libglib2.0-0"

if [ ! -x "$VENV/bin/python" ] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    "$PYTHON" -c 'import venv, ensurepip' >/dev/null 2>&1 ||
        fail "Python's venv module is not complete; on Debian and Ubuntu install all that is missing with: apt-get install -y python3-venv$libraries"
    "$PYTHON" -c 'import shutil, sys; sys.exit(shutil.disk_usage(".").free < 1e9 * float(sys.argv[1]))' "$GIGABYTES" ||
        fail "the environment takes $GIGABYTES GB and this disk has less; make room, or clone to another disk"
    "$PYTHON" -m venv --clear "$VENV" || fail "Python's venv module failed, see above"
fi

# ---- the lock file --------------------------------------------------------------------------------------------------------
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
compile() {  # requirements on stdin
    "$VENV/bin/uv" pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --no-annotate \
        --python-version 3.11 "$@"
}
if [ "${1:-}" = lock ]; then
    printf 'torch==2.11.0\ntorchvision==0.26.0\n' > "$VENV/pair.txt"
    { echo "$LOCK_HEADER"; compile --constraint "$VENV/pair.txt" requirements.txt; } > requirements.lock.new
    mv requirements.lock.new requirements.lock
    { echo "$LOCK_HEADER"
      sed -n 's/^opencv-python==\([^ ;\\]*\).*/opencv-python-headless==\1/p' requirements.lock | compile --no-deps -
    } > requirements.headless.lock.new
    mv requirements.headless.lock.new requirements.headless.lock
fi

# ---- installation ---------------------------------------------------------------------------------------------------------
echo "setup: installing $(grep -c '^[a-z].*==' requirements.lock) packages into $VENV: $GIGABYTES GB on Linux, most of it torch's CUDA libraries"
echo "setup: (the registry's torch for Linux does not load without them, and a CPU-only torch cannot load its torchvision)"
packages=requirements.lock
if [ -n "$libraries" ]; then
    echo "setup: OpenCV's system libraries are missing (Debian's$libraries): installing opencv-python-headless of the same version instead"
    packages="$VENV/requirements.lock"
    # Without opencv-python: its line, and the lines of hashes that follow it.
    { awk '/^[a-z]/ { skip = /^opencv-python==/ } !skip' requirements.lock; cat requirements.headless.lock; } > "$packages"
    "$VENV/bin/uv" pip uninstall --quiet --python "$VENV/bin/python" opencv-python 2>/dev/null || true
else
    "$VENV/bin/uv" pip uninstall --quiet --python "$VENV/bin/python" opencv-python-headless 2>/dev/null || true
fi
"$VENV/bin/uv" pip install --no-deps --compile-bytecode --python "$VENV/bin/python" --require-hashes -r "$packages"
"$VENV/bin/python" -c 'import cv2' 2>"$VENV/cv2.log" ||
    fail "OpenCV does not load: $(tail -n 1 "$VENV/cv2.log"); on Debian and Ubuntu: apt-get install -y libgl1 libglib2.0-0, then make setup"
"$VENV/bin/python" -c 'import torch, torchvision; print("setup: ready, torch", torch.__version__, "on", "CUDA" if torch.cuda.is_available() else "CPU")'
touch "$VENV/.ready"
