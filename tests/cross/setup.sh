#!/usr/bin/env bash
# setup.sh FOLDER: what run.sh needs, from nothing: qemu-user, an arm64 Python and the runtime's wheels for arm64.
#
# Needs x86-64, a Debian-like system with apt, dpkg and pip, and their registries; no root, and nothing is installed: apt
# works on lists and a state of its own inside FOLDER, packages are only unpacked. FOLDER can be cached: run again, it does
# again only what other versions are wanted of. `setup.sh --possible` says why a system cannot, and ends with 77 then.
set -euo pipefail
repository=${ORTKIT:-.}
python=${PYTHON:-python3}
suite=${SUITE:-bookworm}         # Debian's release for the arm64 root: its Python is what the arm64 wheels are for
qemu_suite=${QEMU_SUITE:-trixie} # 10.0 knows neoverse-v1 and emulates /proc/cpuinfo; `bookworm` has 7.2
key=/usr/share/keyrings/debian-archive-keyring.gpg
# Debian's packages from where this system has them.
mirror=${MIRROR:-$( (grep -hE '^(URIs:|deb )' /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2>/dev/null || true) |
    grep -oE 'https?://[^ ]+/debian/?( |$)' | head -1)}
arm_python=3.11
wanted=(onnxruntime numpy tokenizers click jinja2 markupsafe flatbuffers protobuf)

impossible() {
    local tool
    [ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || { echo "it needs Linux on x86-64, and this is $(uname -s) on $(uname -m)" && return; }
    for tool in apt-get dpkg taskset xargs; do
        command -v $tool >/dev/null || { echo "there is no $tool" && return; }
    done
    [ -n "$mirror" ] || { echo "/etc/apt names no mirror of Debian; MIRROR may" && return; }
    [ -e $key ] || echo "Debian's keys are not there: $key"
}

why=$(impossible)
[ -z "$why" ] || { echo "$why" && exit 77; }
[ "$1" != --possible ] || exit 0
folder=$(mkdir -p "$1" && cd "$1" && pwd)
started=$SECONDS
step() { printf '%4ds  %s\n' $((SECONDS - started)) "$*"; }

twice() { # COMMAND...: once more where it fails, since mirrors and registries do now and then
    "$@" || { step "failed, once more" && sleep 5 && "$@"; }
}

apt_in_folder() {
    local apt=$folder/apt
    mkdir -p "$apt"/etc/{sources.list.d,preferences.d,apt.conf.d,trusted.gpg.d} "$apt"/state/lists/partial "$apt"/cache/archives/partial
    : >"$apt/state/status"
    printf "deb [signed-by=$key arch=%s] $mirror %s main\n" arm64 "$suite" amd64 "$qemu_suite" >"$apt/etc/sources.list"
    cat >"$apt/apt.conf" <<EOF
Dir::Etc "$apt/etc";
Dir::State "$apt/state";
Dir::State::status "$apt/state/status";
Dir::Cache "$apt/cache";
APT::Architecture "amd64";
APT::Architectures { "amd64"; "arm64"; };
APT::Sandbox::User "$(id -un)";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::http::Timeout "60";
EOF
    export APT_CONFIG=$apt/apt.conf
    twice apt-get -q update >"$apt/update.log" 2>&1 || {
        cat "$apt/update.log" >&2
        echo "error: Debian's mirror $mirror gives no package lists; MIRROR names another" >&2
        exit 1
    }
}

download() { # FOLDER PACKAGE...: fetches packages
    mkdir -p "$1"
    (cd "$1" && shift && twice apt-get -q download "$@" >/dev/null)
}

pip_install() { # PYTHON ARGUMENT...: what is wanted, as constrained
    twice "$1" -m pip install -q --disable-pip-version-check --no-deps -c "$repository/constraints.txt" "${@:2}" "${wanted[@]}" \
        2> >(grep -v '^WARNING: Location' >&2)
}

emulators="$suite $qemu_suite $(sha256sum <"$0")"
if [ "$(cat "$folder/.emulators" 2>/dev/null)" != "$emulators" ]; then
    rm -rf "$folder"/{.emulators,apt,debs,qemu,arm64}
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
        binary=qemu/usr/bin/qemu-$arch
        [ -e "$folder/$binary" ] || binary+=-static
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
    # What was only needed to get here: a third of it all.
    rm -rf "$folder"/{apt,debs}
    echo "$emulators" >"$folder/.emulators"
fi

packages=$("$python" -c 'import sys; print(sys.version, sys.executable)' &&
    grep -iE "^($(IFS='|' && echo "${wanted[*]}"))==" "$repository/constraints.txt")
if [ "$(cat "$folder/.packages" 2>/dev/null)" != "$packages" ] || ! "$folder/venv/bin/python" -c 'import onnxruntime' 2>/dev/null; then
    rm -rf "$folder"/{.packages,site-arm64,venv,bytecode-*}
    step "wheels for arm64"
    pip_install "$python" --target "$folder/site-arm64" --only-binary=:all: --python-version $arm_python --implementation cp \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
        --platform manylinux2014_aarch64

    step "wheels for x86-64"
    "$python" -m venv "$folder/venv"
    pip_install "$folder/venv/bin/python"
    echo "$packages" >"$folder/.packages"
fi
step "ready in $folder, $(du -sh "$folder" | cut -f1): $("$folder/qemu-aarch64" --version | head -1)"
