#!/usr/bin/env bash
# run.sh PYTHON CORPUS: fuzz each target for its share of FUZZ_SECONDS (default: 600); ends at the first that finds a bug.
#
# PYTHON has atheris. The inputs that led to a bug are left in CORPUS/TARGET.bugs/.
set -euo pipefail
python=$1 corpus=$2 seconds=${FUZZ_SECONDS:-600}
targets=$("$python" -c 'from tests.fuzz.targets import TARGETS; print(*TARGETS)')
share=$((seconds / $(wc -w <<<"$targets")))
for target in $targets; do
    echo "fuzzing $target for $share s"
    mkdir -p "$corpus/$target.bugs"
    "$python" -m tests.fuzz.fuzz "$target" "$corpus/$target" -max_total_time=$share -artifact_prefix="$corpus/$target.bugs/" \
        -print_final_stats=1 2>&1 | grep -vE '^INFO: (Instrumenting|Loaded|seed corpus|found|Using)|REDUCE|^#[0-9]+\s+(NEW|RELOAD|pulse)' || true
    [ -z "$(ls -A "$corpus/$target.bugs")" ] || { echo "bugs: $(ls "$corpus/$target.bugs"/*)" && exit 1; }
done
