#!/usr/bin/env bash
# run.sh FOLDER ARGUMENT...: plan.py in the environment that setup.sh made in FOLDER, with the stubs for CUDA's libraries.
set -euo pipefail
folder=$(cd "$1" && pwd)
shift
exec env LD_LIBRARY_PATH="$folder/stubs" PYTHONPATH="$PWD" ORT_DISABLE_TELEMETRY=1 PYTHONNOUSERSITE=1 \
    "$folder/bin/python" -m tests.cuda_plan.plan "$@"
