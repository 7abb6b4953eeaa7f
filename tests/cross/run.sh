#!/usr/bin/env bash
# run.sh FOLDER BUNDLE...: bundles on other processors, emulated by qemu-user; needs setup.sh.
#
# Runs `verify` and the command of each bundle's kind, and asks whether int8 products overflow, on each processor of CPUS.
# Prints a line for each run; fails where one did. LIMIT: seconds of a run.
set -uo pipefail
FOLDER=$(cd "$1" && pwd) || exit 2
shift
EDGEKIT=${EDGEKIT:-$PWD} LIMIT=${LIMIT:-900}
CORES=($(taskset -cp $$ | sed 's/.*: //' | tr ',' '\n' | awk -F- '{for (core = $1; core <= $NF; core++) print core}'))
# Each stands for a family: no dot product (Raspberry Pi 4), one (Pi 5), SVE and i8mm (Graviton 3); AVX2 without VNNI,
# and neither AVX2 nor AVX (Atom).
CPUS=${CPUS:-aarch64:cortex-a72 aarch64:cortex-a76 aarch64:neoverse-v1 x86_64:Haswell x86_64:Nehalem}
OVERFLOWING=" x86_64:Haswell "

emulated() { # ARCH:CPU ARGUMENT...: Python on this processor
    local arch=${1%%:*} cpu=${1#*:} root=/ python=$FOLDER/venv/bin/python path=$EDGEKIT
    shift
    if [ "$arch" = aarch64 ]; then
        root=$FOLDER/arm64 python=$FOLDER/arm64/usr/bin/python3.11 path=$FOLDER/site-arm64:$EDGEKIT
    fi
    # On one core, since a decoder's threads spin while they wait for each other; byte code goes beside the folder.
    env -u LD_LIBRARY_PATH -u PYTHONDONTWRITEBYTECODE -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE \
        ORT_DISABLE_TELEMETRY=1 PYTHONNOUSERSITE=1 PYTHONPYCACHEPREFIX="$FOLDER/bytecode-$arch" PYTHONPATH="$path" \
        taskset -c "${CORES[$LANE % ${#CORES[@]}]}" timeout "$LIMIT" \
        "$FOLDER/qemu-$arch" -cpu "$cpu" -L "$root" "$python" "$@" </dev/null
}

one() { # ARCH:CPU WHAT BUNDLE
    local what=$2 bundle=$3 out status from=$SECONDS TIMEFORMAT='cpu %U' wanted=exact
    local -a command
    case $what in
        verify) command=(-m tests.cross.verify "$bundle") ;;
        embedder) command=(-m toolkit embed "$bundle" "the pump does not start") ;;
        reranker) command=(-m toolkit rerank "$bundle" --query "the pump" "the pump does not start" "lakes of Berlin") ;;
        decoder) command=(-m toolkit generate "$bundle" "What is photosynthesis?" --max-tokens 8) ;;
        overflow) command=(-m tests.cross.overflow) ;;
    esac
    out=$({ time emulated "$1" "${command[@]}"; } 2>&1)
    status=$?
    if [ "$what" = overflow ]; then
        [[ $OVERFLOWING != *" $1 "* ]] || wanted=overflow
        grep -qx "$wanted" <<<"$out" || status=1
    fi
    local told
    told=$(grep -o 'error: .*' <<<"$out" || grep -v -e '^cpu ' -e "TCG doesn't support" -e 'cpuid_info warning' -e '^$' <<<"$out" | tail -1)
    printf '%-4s %-20s %-9s %-28s %4d s (%3.0f of a core)  %s\n' "$([ $status = 0 ] && echo ok || echo FAIL)" "$1" "$what" \
        "$(basename "$bundle")" $((SECONDS - from)) "$(sed -n 's/^cpu //p' <<<"$out")" "${told:0:140}"
    return $status
}
export -f one emulated
export FOLDER EDGEKIT LIMIT OVERFLOWING

jobs=$(
    for cpu in $CPUS; do
        echo "$cpu overflow -"
        for bundle in "$@"; do
            path=$(cd "$bundle" && pwd)
            kind=$(sed -n 's/.*"kind": *"\([a-z]*\)".*/\1/p' "$bundle/manifest.json" | head -1)
            echo "$cpu verify $path"
            echo "$cpu $kind $path"
        done
    done
)
xargs -P ${#CORES[@]} -L 1 --process-slot-var=LANE bash -c "CORES=(${CORES[*]}); one \"\$@\"" one <<<"$jobs"
status=$?
echo "$(wc -l <<<"$jobs") runs in $SECONDS s: $([ $status = 0 ] && echo all as certified || echo 'not all as certified')"
[ $status = 0 ]
