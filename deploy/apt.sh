#!/bin/sh
# Install Debian packages if this user may, else say which command does. Usage: apt.sh NAME…
set -eu
if [ "$(id -u)" = 0 ]; then as_root=""
elif sudo -n true 2>/dev/null; then as_root="sudo -n"
else
  echo "Missing: $*. Install it and try again:" >&2
  echo "    sudo apt-get install --no-install-recommends $*" >&2
  exit 1
fi
if ! command -v apt-get >/dev/null; then
  echo "Missing: $*. There is no apt-get here: install it by other means." >&2
  exit 1
fi
echo "Installing $* by apt-get"
export DEBIAN_FRONTEND=noninteractive
# Services that a package would start are not wanted: the tests start their own.
policy=/usr/sbin/policy-rc.d
made_policy=""
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' | $as_root tee $policy >/dev/null
  $as_root chmod +x $policy
  made_policy=1
fi
trap '[ -z "$made_policy" ] || $as_root rm -f $policy' EXIT
$as_root apt-get -qq update
$as_root apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@" >/dev/null
