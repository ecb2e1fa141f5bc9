#!/usr/bin/env bash
# What `make gpu-check` may lack on a machine with a GPU and no network, put into a folder (under 60
# MB) to be copied there: build/gpu-bundle of its checkout. Arguments: the folder, the version of Python
# there.
set -euo pipefail
bundle=$1 python=$2
rm -rf "$bundle" && mkdir -p "$bundle/debs" "$bundle/wheels"

echo "== Debian's Highway and GoogleTest"
(cd "$bundle/debs" && apt-get download -q libhwy-dev libhwy1 libgtest-dev)
for deb in "$bundle"/debs/*.deb; do dpkg -x "$deb" "$bundle"; done
rm -rf "$bundle/debs" "$bundle/usr/share/doc" "$bundle/usr/src"

echo "== Python $python's packages"
# numpy comes with PyTorch. Of other packages the checks use no more than this.
packages=$(grep -oE '^(typer|rich|pytest|hypothesis|matplotlib)==[^ ]+' requirements.txt)
# shellcheck disable=SC2086
.venv/bin/python -m pip download --disable-pip-version-check -q -d "$bundle/wheels" \
  --only-binary=:all: --implementation cp --python-version "$python" \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 $packages
rm -f "$bundle"/wheels/numpy-*
du -sh "$bundle"
