#!/usr/bin/env bash
# clang-22 and its neighbours, for `make test-rocm`: no ROCm, no GPU. Debian 12 has them in bookworm-security.
set -euo pipefail
packages=(clang-22 lld-22 llvm-22 clang-tools-22)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
  echo "missing: ${missing[*]}; as root: apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"
