#!/bin/sh
# tox on the Python of another Debian, in a chroot of its own. Needs root, and mmdebstrap.
# Usage: sh tests/other_debian.sh SUITE TOX-ENVIRONMENTS, such as trixie py313-django60-newest
set -eu
cd "$(dirname "$0")/.."
suite=$1
root=$PWD/var/$suite
packages=ca-certificates,faketime,iproute2,prometheus,python3,python3-venv
[ -e "$root.made" ] || {
  rm -rf "$root"
  mmdebstrap --quiet --variant=apt --include=$packages "$suite" "$root"
  touch "$root.made"
}
rm -rf "$root/source"
mkdir -p "$root/source"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$root/source"
# The network, and the packages' index, as this machine has them.
for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
  [ ! -e $file ] || cp --remove-destination $file "$root$file"
done
# Namespaces: its mounts and processes end with it.
exec unshare --mount --pid --fork --kill-child --mount-proc="$root/proc" sh -c '
  mount --rbind /dev "$0/dev"
  exec chroot "$0" sh -c "
    cd /source
    [ -x /tox/bin/tox ] || { python3 -m venv /tox && /tox/bin/pip install --quiet -c constraints.txt tox; }
    exec /tox/bin/tox run -e $1
  "' "$root" "$2"
