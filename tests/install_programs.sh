#!/bin/sh
# Installs the programs that tests run, where that is possible: as root, by apt. Elsewhere those tests skip.
set -eu

missing=
for pair in redis-server:redis-server promtool:prometheus chromium:chromium chromedriver:chromium-driver \
    node:nodejs npm:npm; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "Not installed:$missing; the tests that need them will skip."
    exit 0
fi
echo "Installing$missing ..."
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 - several words on purpose
apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 || {
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
}
