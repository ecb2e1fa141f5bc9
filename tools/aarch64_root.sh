#!/usr/bin/env bash
# Unpacks what the cross build for AArch64 links and runs with, and a Python, into a folder, and
# installs nothing: tools/aarch64_root.sh build/aarch64-root
set -euo pipefail
mkdir -p "$1/apt/lists/partial"
cd "$1"
apt=(apt-get -qq -oAPT::Architecture=arm64 -oAPT::Architectures=arm64 -oAPT::Sandbox::User=
  "-oDir::State::Lists=$PWD/apt/lists" "-oDir::Cache=$PWD/apt" -oDir::State::Status=/dev/null)
"${apt[@]}" update
"${apt[@]}" download libhwy1 libhwy-dev libgtest-dev \
  python3.11-minimal libpython3.11-minimal libpython3.11-stdlib \
  libexpat1 libffi8 libssl3 libuuid1 zlib1g
for package in *.deb; do
  dpkg -x "$package" .
  rm "$package"
done
rm -r apt
touch .complete
