#!/usr/bin/env bash
# run.sh PYTHON CORPUS: fuzz each target for its share of FUZZ_SECONDS (default: 600); ends at the first that finds a bug.
#
# PYTHON has atheris. The input that led to a bug is left in CORPUS/TARGET.bugs/.
set -euo pipefail
python=$1 corpus=$2 seconds=${FUZZ_SECONDS:-600}
targets=$("$python" -c 'from tests.fuzz.targets import TARGETS; print(*TARGETS)')
share=$((seconds / $(wc -w <<<"$targets")))
for target in $targets; do
    echo "fuzzing $target for $share s"
    bugs=$corpus/$target.bugs log=$corpus/$target.log
    mkdir -p "$bugs"
    if ! "$python" -m tests.fuzz.fuzz "$target" "$corpus/$target" -max_total_time=$share -artifact_prefix="$bugs/" >"$log" 2>&1; then
        tail -50 "$log"
        echo "error: the fuzzer of \`$target\` failed; the input is in $bugs, all messages are in $log"
        exit 1
    fi
    grep -E '^Done|DONE' "$log"
done
