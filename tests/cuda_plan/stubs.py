"""Build stubs of the CUDA libraries that a provider of onnxruntime needs, from the symbols that it leaves undefined.

`python stubs.py PROVIDER HEADERS OUT`: the provider's shared object, the folder of CUDA's headers, and the folder for
the stubs. Needs gcc and binutils. A symbol that no C file beside this one defines does nothing: a function that creates
something gives a handle, one that names an error a text, and every other returns success.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
DRIVER = "libcuda.so.1"
CUDNN = "libcudnn.so.9"
TENSORRT = "libnvinfer.so.10"
"""Symbols have no versions, which name the libraries of others."""
CREATES, NAMES = re.compile(r"Create"), re.compile(r"Get(?:Error|Status)(?:Name|String)")


def undefined(provider: Path) -> dict[str, set[str]]:
    """The symbols of each library of NVIDIA's that a provider needs, by the library's name."""
    found: dict[str, set[str]] = defaultdict(set)
    listed = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", provider], capture_output=True, text=True, check=True
    )
    for line in listed.stdout.splitlines():
        kind, symbol = line.split()[-2:]
        name, _, version = symbol.partition("@")
        if version.startswith("libcu"):
            found[version].add(name)
        elif not version and kind == "U" and name != "Provider_GetHost":
            found[DRIVER if re.match(r"cu[A-Z]", name) else TENSORRT].add(name)
    # The driver's functions and cuDNN's are looked up by name.
    for name in re.findall(rb"\0(cu(?:dnn)?[A-Z]\w+)(?=\0)", provider.read_bytes()):
        found[CUDNN if name.startswith(b"cudnn") else DRIVER].add(name.decode())
    return found


def needed(provider: Path) -> set[str]:
    """The libraries of NVIDIA's that the loader wants, of some of which no symbol is used."""
    listed = subprocess.run(["objdump", "-p", provider], capture_output=True, text=True, check=True)
    return set(re.findall(r"NEEDED\s+(lib(?:cu|nv)\S+)", listed.stdout))


def stub(name: str) -> str:
    if NAMES.search(name):
        return f'const char *{name}(int code) {{ return "stub"; }}'
    if CREATES.search(name):
        return f"int {name}(void **created) {{ static long handle; *created = &handle; return 0; }}"
    return f"int {name}(void) {{ return 0; }}"


def build(library: str, symbols: set[str], headers: Path, out: Path) -> None:
    own = HERE / f"{library.partition('.')[0]}.c"
    written = own.read_text() if own.exists() else ""
    defined = set(re.findall(r"^\w[\w *]*?(\w+)\(", written, re.MULTILINE))
    source = out / f"{library}.c"
    source.write_text("\n".join([written, *(stub(name) for name in sorted(symbols - defined))]))
    command = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-I{HERE / 'include'}", f"-I{headers}"]
    if library not in {DRIVER, TENSORRT}:
        versions = out / f"{library}.map"
        versions.write_text(f"{library} {{ global: *; }};\n")
        command.append(f"-Wl,--version-script={versions}")
    subprocess.run([*command, f"-Wl,-soname,{library}", "-o", out / library, source], check=True)


def main(provider: Path, headers: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    symbols = undefined(provider)
    for library in sorted(needed(provider) | symbols.keys() | {DRIVER}):
        build(library, symbols[library], headers, out)
        print(f"{library}: {len(symbols[library])} symbols")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
