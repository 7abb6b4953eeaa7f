#!/usr/bin/env bash
# setup.sh FOLDER: the environment of `make cuda-plan`: onnxruntime's GPU wheel, and stubs of the CUDA libraries in
# FOLDER/stubs. Needs Linux on x86-64, gcc, binutils and pip with its registry. Run again, it does nothing unless a
# version or a stub has changed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
folder=$1
for tool in gcc nm objdump; do
    command -v $tool >/dev/null || { echo "error: there is no $tool" >&2 && exit 1; }
done
made="$("$python" --version) $(cat "$here"/*.{txt,c,py,sh} "$here"/include/crt/* "$here"/../../constraints.txt | sha256sum)"
[ "$(cat "$folder/.made" 2>/dev/null)" != "$made" ] || exit 0

rm -rf "$folder"
"$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check install -q)
"${pip[@]}" -r "$here/requirements.txt"
# The headers alone are used, for the layout of CUDA's structures.
"${pip[@]}" --no-deps --target "$folder/headers" -r "$here/headers.txt"
capi=$(echo "$folder"/lib/python3*/site-packages/onnxruntime/capi)
# Those for TensorRT are for the table of kernels alone: asked for it, onnxruntime crashes where a provider does not load.
for provider in cuda tensorrt; do
    "$folder/bin/python" "$here/stubs.py" "$capi/libonnxruntime_providers_$provider.so" \
        "$folder/headers/nvidia/cu13/include" "$folder/stubs/$provider"
done
echo "$made" >"$folder/.made"
