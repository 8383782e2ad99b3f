#!/bin/sh
# Unpack the newest Pushpin, Debian sid's, with all its libraries, into var/pushpin; whoever
# has var/pushpin/bin first on PATH uses it. Needs mmdebstrap. Nothing is installed.
set -eu
cd "$(dirname "$0")/.."
target=$PWD/var/pushpin
[ ! -e "$target.made" ] || exit 0
rm -rf "$target"
mkdir -p "$target/bin" "$target/lib"
# A copy of the archive that lags behind is good enough for this.
mmdebstrap --quiet --variant=extract --include=pushpin \
  --aptopt='Acquire::Check-Valid-Until "false"' sid "$target/tree"
libraries=$(echo "$target"/tree/usr/lib/*-linux-gnu*)
loader=$(echo "$libraries"/ld-linux*)
for name in pushpin pushpin-connmgr pushpin-handler pushpin-proxy; do
  cat >"$target/bin/$name" <<END
#!/bin/sh
exec "$loader" --library-path "$libraries" "$target/tree/usr/bin/$name" "\$@"
END
  chmod +x "$target/bin/$name"
done
ln -s ../tree/usr/lib/pushpin "$target/lib/pushpin"
"$target/bin/pushpin" --version
touch "$target.made"
