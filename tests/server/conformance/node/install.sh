#!/bin/sh
# Installs the official client for Node, in the locked version, into the virtual environment's folder.
set -eu

cd "$(dirname "$0")"
target=$(cd ../../../.. && pwd)/${VENV:-.venv}/conformance-node
if ! command -v npm >/dev/null 2>&1; then
    echo "Not installed: npm; the tests of the client for Node will skip."
    exit 0
fi
cmp -s package-lock.json "$target/package-lock.json" && exit 0
echo "Installing the official client for Node ..."
mkdir -p "$target.new"
cp package.json package-lock.json "$target.new/"
(cd "$target.new" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
rm -rf "$target"
mv "$target.new" "$target"
