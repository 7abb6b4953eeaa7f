#!/usr/bin/env bash
# setup.sh FOLDER: Debian's skopeo and registry, unpacked into FOLDER, which can be cached.
#
# Needs a Debian-like system with apt and dpkg; no root, and nothing is installed: apt works on lists and a state of its own
# inside FOLDER. Ends with 77 and says why where a system cannot.
set -euo pipefail
wanted=(skopeo docker-registry libgpgme11 libassuan0 libgpg-error0 libdevmapper1.02.1 libselinux1 libudev1 libpcre2-8-0)
sources=$(grep -rhE '^(URIs:|deb )' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null || true)

impossible() {
    [ "$(uname -s)" = Linux ] || { echo "it needs Linux, and this is $(uname -s)" && return; }
    local tool
    for tool in apt-get dpkg; do
        command -v $tool >/dev/null || { echo "there is no $tool" && return; }
    done
    [ -n "$sources" ] || echo "/etc/apt names no sources"
}

why=$(impossible)
[ -z "$why" ] || { echo "$why" && exit 77; }
folder=$(mkdir -p "$1" && cd "$1" && pwd)
made="$(sha256sum <"$0")"
[ "$(cat "$folder/.made" 2>/dev/null)" != "$made" ] || exit 0

apt=$folder/apt
rm -rf "$folder"/{.made,apt,debs,root}
mkdir -p "$apt"/state/lists/partial "$apt"/cache/archives/partial "$folder"/{debs,root}
cat >"$apt/apt.conf" <<EOF
Dir::State "$apt/state";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
APT::Sandbox::User "$(id -un)";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "60";
EOF
: >"$apt/status"
export APT_CONFIG=$apt/apt.conf
apt-get -q update >"$apt/update.log" 2>&1 || { cat "$apt/update.log" >&2 && exit 1; }
(cd "$folder/debs" && apt-get -q download "${wanted[@]}" >/dev/null)
for deb in "$folder"/debs/*.deb; do dpkg -x "$deb" "$folder/root"; done
rm -rf "$folder"/{apt,debs}
echo "$made" >"$folder/.made"
