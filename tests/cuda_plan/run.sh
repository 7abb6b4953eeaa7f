#!/usr/bin/env bash
# run.sh FOLDER BUNDLE...: the kernel table and plan.py in the environment that setup.sh made in FOLDER, with the stubs in
# place of CUDA's libraries. WRITE=1 writes the table.
set -uo pipefail
folder=$(cd "$1" && pwd)
shift

python() { # STUBS ARGUMENT...
    env LD_LIBRARY_PATH="$1" PYTHONPATH="$PWD" ORT_DISABLE_TELEMETRY=1 PYTHONNOUSERSITE=1 "$folder/bin/python" "${@:2}"
}

status=0
python "$folder/stubs/cuda:$folder/stubs/tensorrt" -m tests.cuda_plan.kernels ${WRITE:+--write} || status=1
python "$folder/stubs/cuda" -m tests.cuda_plan.plan "$@" || status=1
exit $status
