#!/usr/bin/env bash
# kit.sh FOLDER EMBEDDER RERANKER: a kit of these bundles on other processors, emulated by qemu-user; needs setup.sh.
#
# Makes a signed kit for each kind of machine, installs it with the Python of the machine, and runs what was installed. On
# a processor without SSE4.2 the installer must refuse. Prints a line for each; fails where one is not as expected.
set -uo pipefail
FOLDER=$(cd "$1" && pwd) || exit 2
EMBEDDER=$(cd "$2" && pwd) RERANKER=$(cd "$3" && pwd) || exit 2
ORTKIT=${ORTKIT:-$PWD} HOST_PYTHON=$(command -v "${PYTHON:-python3}") LIMIT=${LIMIT:-900}
# ARM, and x86 without AVX2, without VNNI, and without SSE4.2.
CPUS=${CPUS:-aarch64:cortex-a76 x86_64:Nehalem x86_64:Haswell x86_64:core2duo}
TOO_OLD=" x86_64:core2duo "
KITS=$FOLDER/kits
failed=0

python_of() { # ARCH: the Python of the machine
    if [ "$1" = aarch64 ]; then
        echo "$FOLDER/arm64/usr/bin/python3.11"
    else
        "$FOLDER/venv/bin/python" -c 'import os, sys; print(os.path.realpath(sys._base_executable))'
    fi
}

report() { # RESULT CPU WHAT SECONDS TEXT
    printf '%-4s %-20s %-9s %4d s  %s\n' "$1" "$2" "$3" "$4" "${5:0:150}"
    [ "$1" = ok ] || failed=1
}

make_kit() { # ARCH: signed, with the wheels of the lock
    local version=3.11
    [ "$1" = aarch64 ] || version=$("$(python_of "$1")" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    [ -e "$KITS/key.pem" ] || "$HOST_PYTHON" -m ortkit keygen -o "$KITS/key.pem" || return 1
    "$HOST_PYTHON" -m ortkit wheelhouse --target "linux-$1" --python "$version" -o "$KITS/wheels-$1" >/dev/null 2>"$KITS/log" &&
        "$HOST_PYTHON" -m ortkit kit "$EMBEDDER" "$RERANKER" --target "linux-$1" --python "$version" --wheels "$KITS/wheels-$1" \
            --sign "$KITS/key.pem" --release 1 -o "$KITS/$1.kit" >/dev/null 2>>"$KITS/log" || { cat "$KITS/log" && return 1; }
}

on() { # ARCH CPU ARGUMENT...: a program of this machine, with nothing of ours in its environment
    local root=/
    [ "$1" != aarch64 ] || root=$FOLDER/arm64
    env -i HOME="$KITS/home" LC_ALL=C.UTF-8 timeout "$LIMIT" "$FOLDER/qemu-$1" -cpu "$2" -L "$root" "${@:3}" </dev/null 2>&1 |
        grep -v -e "TCG doesn't support" -e 'cpuid_info warning' -e '^$'
}

one() { # ARCH:CPU
    local arch=${1%%:*} cpu=${1#*:} prefix=$KITS/opt-$1 from=$SECONDS root=/ out status
    [ "$arch" != aarch64 ] || root=$FOLDER/arm64
    rm -rf "$prefix"
    local emulator="[\"$FOLDER/qemu-$arch\", \"-cpu\", \"$cpu\", \"-L\", \"$root\"]"
    # The header calls it as `python -I ZIP ARGUMENT...`.
    printf '#!/bin/sh\nshift\nexec %s -cpu %s -L %s %s -I %s "$@"\n' "$FOLDER/qemu-$arch" "$cpu" "$root" "$(python_of "$arch")" \
        "$ORTKIT/tests/cross/emulated_installer.py" >"$KITS/python-$1"
    chmod +x "$KITS/python-$1"
    out=$(env -i HOME="$KITS/home" EMULATOR="$emulator" ORTKIT_PYTHON="$KITS/python-$1" timeout "$LIMIT" \
        sh "$KITS/$arch.kit" install --trusted-key "$KITS/key.pub" --prefix "$prefix" 2>&1)
    status=$?
    out=$(grep -v -e "TCG doesn't support" -e 'cpuid_info warning' -e '^$' <<<"$out")
    if [[ $TOO_OLD == *" $1 "* ]]; then
        local wanted='error: this CPU has no sse4_1, sse4_2, popcnt, which numpy and onnxruntime need (x86-64-v2)'
        local result=FAIL
        [ $status != 1 ] || [ -e "$prefix" ] || ! grep -qF "$wanted" <<<"$out" || result=ok
        report $result "$1" install $((SECONDS - from)) "must fail: $(grep -m1 error: <<<"$out" || tail -1 <<<"$out")"
        return
    fi
    report "$([ $status = 0 ] && echo ok || echo FAIL)" "$1" install $((SECONDS - from)) "$(tail -1 <<<"$out")"
    [ $status = 0 ] || { echo "$out" && return; }
    from=$SECONDS
    local python=$prefix/current/python/bin/python bundles=$prefix/current/bundles
    out=$(on "$arch" "$cpu" "$python" -I -m ortkit embed "$bundles/$(basename "$EMBEDDER")" "the pump does not start")
    report "$(grep -q '"embedding": \[' <<<"$out" && echo ok || echo FAIL)" "$1" embed $((SECONDS - from)) "$out"
    from=$SECONDS
    out=$(on "$arch" "$cpu" "$python" -I -m ortkit rerank "$bundles/$(basename "$RERANKER")" --query pump "a pump" "a rope")
    report "$(grep -q '"score": ' <<<"$out" && echo ok || echo FAIL)" "$1" rerank $((SECONDS - from)) "$(head -1 <<<"$out")"
    rm -rf "$prefix"
}

mkdir -p "$KITS"
for arch in $(tr ' ' '\n' <<<"$CPUS" | cut -d: -f1 | sort -u); do make_kit "$arch" || exit 1; done
for cpu in $CPUS; do one "$cpu"; done
[ $failed = 0 ] && echo "kits: all as expected in $SECONDS s" || echo "kits: not all as expected"
exit $failed
