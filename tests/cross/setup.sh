#!/usr/bin/env bash
# setup.sh FOLDER: what run.sh needs, from nothing: qemu-user, an arm64 Python and the runtime's wheels for arm64.
#
# Needs a Debian-like system with apt, dpkg and pip, and their registries; no root, and nothing is installed: apt works
# on lists and a state of its own inside FOLDER, packages are only unpacked. Run again, it does nothing.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
edgekit=${EDGEKIT:-.}
python=${PYTHON:-python3}
suite=${SUITE:-bookworm}         # Debian's release for the arm64 root: its Python is what the arm64 wheels are for
qemu_suite=${QEMU_SUITE:-trixie} # 10.0 knows neoverse-v1 and emulates /proc/cpuinfo; `bookworm` has 7.2
# Debian's packages from where this system has them.
mirror=${MIRROR:-$( (grep -hE '^(URIs:|deb )' /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2>/dev/null || true) |
    grep -oE 'https?://[^ ]+/debian/?( |$)' | head -1)}
[ -n "$mirror" ] || { echo "error: no mirror of Debian in /etc/apt: set MIRROR to its address" >&2; exit 2; }
arm_python=3.11
started=$SECONDS
step() { printf '%4ds  %s\n' $((SECONDS - started)) "$*"; }

apt_in_folder() {
    local apt=$folder/apt
    mkdir -p "$apt"/etc/{sources.list.d,preferences.d,apt.conf.d,trusted.gpg.d} "$apt"/state/lists/partial "$apt"/cache/archives/partial
    : >"$apt/state/status"
    local key=/usr/share/keyrings/debian-archive-keyring.gpg
    printf "deb [signed-by=$key arch=%s] $mirror %s main\n" arm64 "$suite" amd64 "$qemu_suite" >"$apt/etc/sources.list"
    cat >"$apt/apt.conf" <<EOF
Dir::Etc "$apt/etc";
Dir::State "$apt/state";
Dir::State::status "$apt/state/status";
Dir::Cache "$apt/cache";
APT::Architecture "amd64";
APT::Architectures { "amd64"; "arm64"; };
APT::Sandbox::User "$(id -un)";
Acquire::Languages "none";
EOF
    export APT_CONFIG=$apt/apt.conf
    apt-get -q update >"$apt/update.log" 2>&1 || { cat "$apt/update.log"; exit 1; }
}

download() { # FOLDER PACKAGE...: fetches packages
    mkdir -p "$1"
    (cd "$1" && shift && apt-get -q download "$@" >/dev/null)
}

if [ ! -e "$folder/.done" ]; then
    step "package lists"
    apt_in_folder

    step "qemu-user of $qemu_suite"
    package=qemu-user
    [ "$qemu_suite" != bookworm ] || package=qemu-user-static
    download "$folder/debs/qemu" "$package/$qemu_suite"
    mkdir -p "$folder/qemu"
    for deb in "$folder"/debs/qemu/*.deb; do
        # Two of the sixty emulators.
        dpkg --fsys-tarfile "$deb" | tar -x -C "$folder/qemu" --wildcards './usr/bin/qemu-aarch64*' './usr/bin/qemu-x86_64*'
    done
    for arch in aarch64 x86_64; do
        binary=$folder/qemu/usr/bin/qemu-$arch
        [ -e "$binary" ] || binary+=-static
        ln -sf "$binary" "$folder/qemu-$arch"
    done
    rm -f "$folder"/qemu/usr/bin/*_be*

    step "arm64 root of $suite"
    download "$folder/debs/arm64" $(printf '%s:arm64 ' python$arm_python-minimal libpython$arm_python-minimal \
        libpython$arm_python-stdlib libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libffi8 libssl3 libbz2-1.0 liblzma5)
    mkdir -p "$folder/arm64"
    for deb in "$folder"/debs/arm64/*.deb; do dpkg -x "$deb" "$folder/arm64"; done
    # What qemu before 8.2 would show of the host makes onnxruntime crash as it loads.
    mkdir -p "$folder/arm64/proc"
    printf 'processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd cpuid\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n' \
        >"$folder/arm64/proc/cpuinfo"

    wanted=(onnxruntime numpy tokenizers click jinja2 markupsafe flatbuffers protobuf)
    step "wheels for arm64"
    "$python" -m pip install -q --disable-pip-version-check --target "$folder/site-arm64" --no-deps --only-binary=:all: \
        --python-version $arm_python --implementation cp --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
        --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 -c "$edgekit/constraints.txt" "${wanted[@]}" \
        2> >(grep -v '^WARNING: Location' >&2)

    step "wheels for x86-64"
    "$python" -m venv "$folder/venv"
    "$folder/venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps -c "$edgekit/constraints.txt" \
        "${wanted[@]}" 2> >(grep -v '^WARNING: Location' >&2)
    # What was only needed to get here: two thirds of it all.
    rm -rf "$folder/apt" "$folder/debs"
    touch "$folder/.done"
fi
step "ready in $folder, $(du -sh "$folder" | cut -f1): $("$folder/qemu-aarch64" --version | head -1)"
