#!/usr/bin/env bash
# run.sh FOLDER BUNDLE...: bundles on other processors, emulated by qemu-user; needs setup.sh.
#
# Runs `verify` and the command of each bundle's kind, and asks whether int8 products overflow, on each processor of CPUS.
# Two runs leave out what the runtime asks of onnxruntime for that processor, and must fail, which shows that `verify`
# can. Prints a line for each run; fails where one is not as expected. LIMIT: seconds of a run.
set -uo pipefail
FOLDER=$(cd "$1" && pwd) || exit 2
shift
ORTKIT=${ORTKIT:-$PWD} LIMIT=${LIMIT:-900}
CORES=($(taskset -cp $$ | sed 's/.*: //' | tr ',' '\n' | awk -F- '{for (core = $1; core <= $NF; core++) print core}'))
# Each stands for a family: no dot product (Raspberry Pi 4), one (Pi 5), SVE and i8mm (Graviton 3); AVX2 without VNNI,
# and neither AVX2 nor AVX (Atom). The slowest first, so that the cores end at about the same time.
CPUS=${CPUS:-aarch64:cortex-a72 x86_64:Nehalem x86_64:Haswell aarch64:neoverse-v1 aarch64:cortex-a76}
OVERFLOWING=" x86_64:Haswell "
# They have no kernels for 4 bits: onnxruntime unpacks all weights for each token, which takes 2 CPU seconds emulated, and
# multiplies in float32. Of the golden tokens, read one by one, so many are read; the divergence of 64 places takes one run.
SLOW=" aarch64:cortex-a72 x86_64:Nehalem "
TOKENS=24 SLOW_TOKENS=8
# What must fail: an int8 embedder where products overflow, and an LLM with symmetric blocks with KleidiAI's kernels.
PRECISION_MODE=x86_64:Haswell/session.x64quantprecision/embedder/int8
KLEIDIAI=aarch64:cortex-a76/mlas.disable_kleidiai/decoder/source

emulated() { # ARCH:CPU ARGUMENT...: Python on this processor
    local arch=${1%%:*} cpu=${1#*:} root=/ python=$FOLDER/venv/bin/python path=$ORTKIT
    shift
    if [ "$arch" = aarch64 ]; then
        root=$FOLDER/arm64 python=$FOLDER/arm64/usr/bin/python3.11 path=$FOLDER/site-arm64:$ORTKIT
    fi
    on_one_core "$arch" "$path" "$FOLDER/qemu-$arch" -cpu "$cpu" -L "$root" "$python" "$@"
}

on_one_core() { # ARCH PATH COMMAND...
    # On one core, since a decoder's threads spin while they wait for each other; byte code goes beside the folder.
    env -u LD_LIBRARY_PATH -u PYTHONDONTWRITEBYTECODE -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE \
        ORT_DISABLE_TELEMETRY=1 PYTHONNOUSERSITE=1 PYTHONPYCACHEPREFIX="$FOLDER/bytecode-$1" PYTHONPATH="$2" \
        taskset -c "${CORES[${LANE:-0} % ${#CORES[@]}]}" timeout "$LIMIT" "${@:3}" </dev/null
}

exact() { # BUNDLE: the file of what its float32 matmuls give
    echo "$FOLDER/exact/$(basename "$1").npy"
}

one() { # ARCH:CPU WHAT BUNDLE
    local cpu=$1 what=$2 bundle=$3 out status from=$SECONDS TIMEFORMAT='cpu %U' wanted=0 golden=$TOKENS new=8
    local -a command
    [[ $SLOW != *" $cpu "* ]] || golden=$SLOW_TOKENS new=2
    case $what in
        verify*) command=(-m tests.cross.verify "$bundle" --exact "$(exact "$bundle")" --tokens "$golden") ;;
        embedder) command=(-m ortkit embed "$bundle" "the pump does not start") ;;
        reranker) command=(-m ortkit rerank "$bundle" --query "the pump" "the pump does not start" "lakes of Berlin") ;;
        decoder) command=(-m ortkit generate "$bundle" "What is photosynthesis?" --max-tokens "$new") ;;
        overflow) command=(-m tests.cross.overflow) ;;
    esac
    # 7 is the exit code for other numbers than certified; a crash, an exception or a lack of time has another.
    [[ $what != verify-without-* ]] || { wanted=7 && command+=(--without "${what#verify-without-}"); }
    out=$({ time emulated "$cpu" "${command[@]}"; } 2>&1)
    status=$?
    if [ "$what" = overflow ]; then
        local answer=exact
        [[ $OVERFLOWING != *" $cpu "* ]] || answer=overflow
        grep -qx "$answer" <<<"$out" || status=1
    fi
    local told
    told=$(grep -o 'error: .*' <<<"$out" || grep -v -e '^cpu ' -e "TCG doesn't support" -e 'cpuid_info warning' -e '^$' <<<"$out" | tail -1)
    [ $wanted = 0 ] || told="must fail: $told"
    printf '%-4s %-20s %-9s %-28s %4d s, CPU %3.0f s  %s\n' "$([ $status = $wanted ] && echo ok || echo FAIL)" "$cpu" \
        "${what%%-*}" "$(basename "$bundle")" $((SECONDS - from)) "$(sed -n 's/^cpu //p' <<<"$out")" "${told:0:140}"
    [ $status = $wanted ]
}
export -f one emulated on_one_core exact
export FOLDER ORTKIT LIMIT OVERFLOWING SLOW TOKENS SLOW_TOKENS

field() { # BUNDLE NAME: a text of its manifest
    sed -n 's/^ *"'"$2"'": *"\([a-z0-9]*\)".*/\1/p' "$1/manifest.json" | head -1
}

mkdir -p "$FOLDER/exact"
for bundle in "$@"; do
    [ "$(field "$bundle" kind)" != decoder ] ||
        on_one_core x86_64 "$ORTKIT" "$FOLDER/venv/bin/python" -m tests.cross.exact "$bundle" "$(exact "$bundle")" || exit 1
done
jobs=$(
    for cpu in $CPUS; do
        for bundle in "$@"; do
            path=$(cd "$bundle" && pwd)
            kind=$(field "$bundle" kind)
            echo "$cpu verify $path"
            echo "$cpu $kind $path"
            for failing in $PRECISION_MODE $KLEIDIAI; do
                IFS=/ read -r on entry of precision <<<"$failing"
                [ "$cpu $kind $(field "$bundle" precision)" != "$on $of $precision" ] || echo "$cpu verify-without-$entry $path"
            done
        done
        echo "$cpu overflow -"
    done
)
xargs -P ${#CORES[@]} -L 1 --process-slot-var=LANE bash -c "CORES=(${CORES[*]}); one \"\$@\"" one <<<"$jobs" | tee "$FOLDER/run.log"
status=$?
cpu=$(awk 'match($0, /CPU +[0-9]+ s/) { cpu += substr($0, RSTART + 4) } END { print cpu }' "$FOLDER/run.log")
echo "$(wc -l <<<"$jobs") runs in $SECONDS s, CPU $cpu s: $([ $status = 0 ] && echo all as expected || echo 'not all as expected')"
[ $status = 0 ]
