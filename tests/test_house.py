"""The rules of the house: which way imports go, what an appliance loads, what is public, what the README promises."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ortkit import runtime
from ortkit import Bundle

ROOT = Path(__file__).parents[1]
FLOORS = ["runtime", "exporters", "toolkit"]
HEAVY = {"torch", "transformers", "optimum", "onnx", "onnx_ir", "onnxscript", "huggingface_hub", "yaml", "safetensors"}
# From top to bottom: a module imports only what stands below it.
ORDER = {
    "runtime": (
        "verification replay loading "
        "chat decoder stream steps prompt_lookup forward saved_cache footprint kv_cache generation_options "
        "sampler stops "
        "detokenizer chat_template template_sandbox messages "
        "reranker ranking pairs embedder closing results encoder batching vectors tokenizer "
        "safe_tokenizer "
        "pieces dense pooling open_sessions session providers onnxruntime_import cpu pages memory cores bundle_writer kinds bundle graph_io manifest records targets "
        "telemetry errors version"
    ),
    "exporters": (
        "export_stage conversion weights_format unfinished tasks encoder_task recipes decoder_task block_recipes "
        "certify_decoder layer_errors certify_reranker certify certificate published_embedder encoder jina_bert "
        "nomic_bert last_token pooled_classifier decoder plain_attention weightless_trace gguf_blocks block_weights "
        "float16_cache half_precision decoder_graph grouped_attention decoder_facts tokenizer_file "
        "rank_correlation pair_probe probe gguf quantize calibration graph_files decoder_calibration layerwise publisher published_model "
        "weightless pytorch_model kept_arrays first_token attention embedding_gather "
        "flatten graph nodes dense stored_tensors pair_facts choices generation stored_blocks "
        "block_rounding rounding fastest_recipe cross_encoder facts kind modules sources gguf_facts gguf_tokenizer "
        "gguf_header checkpoint "
        "hub.download hub.request hub.access hub.account hub.transport hub.token hub.failures hub.names hub.settings "
        "wheel catalog rope_parameters checkpoint_files unread headers architectures progress parts"
    ),
    "toolkit": (
        "__main__ cli commands.chat commands.generate commands.embed commands.rerank commands.export commands.hub "
        "commands.bundles commands.catalog bulk chat_session resumable job pipes streams answer_output word_wrap "
        "writers warnings_report searches "
        "prompts record_options chat_input texts options answer_options bundle_names help inputs masking interrupts "
        "leaving progress terminal"
    ),
}


def modules(package: str) -> dict[str, Path]:
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        name = ".".join(path.relative_to(ROOT / package).with_suffix("").parts)
        if not name.endswith("__init__"):
            found[name] = path
    return found


def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names that a file imports, those under TYPE_CHECKING left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING") or (
            top_level_only and isinstance(node, (ast.FunctionDef, ast.ClassDef))
        ):
            continue
        pending += list(ast.iter_child_nodes(node))
    return names


@pytest.mark.parametrize("package", FLOORS)
def test_every_module_has_its_place_in_the_order(package: str) -> None:
    assert set(modules(package)) == set(ORDER[package].split())


@pytest.mark.parametrize("package", FLOORS)
def test_imports_go_down(package: str) -> None:
    above = FLOORS[FLOORS.index(package) + 1 :]
    for name, path in modules(package).items():
        names = imported(path)
        assert not {found for found in names if found.split(".")[0] in above}, f"{package}.{name} imports upwards"
        place = ORDER[package].split().index(name)
        for other in ORDER[package].split()[: place + 1]:
            assert f"{package}.{other}" not in names, f"{package}.{name} imports {other}, which stands above it"


def test_the_runtime_never_names_what_is_heavy() -> None:
    for name, path in modules("runtime").items():
        assert not {found.split(".")[0] for found in imported(path)} & HEAVY, f"runtime.{name}"


def test_commands_import_their_stage_when_they_run() -> None:
    for name, path in modules("toolkit").items():
        at_start = {found.split(".")[0] for found in imported(path, top_level_only=True)}
        assert not at_start & (HEAVY | {"exporters", "numpy", "onnxruntime", "tokenizers"}), f"toolkit.{name}"


EMBED_AND_LIST = """
import json, sys
from runtime import Embedder
vectors = Embedder({bundle!r}).embed(["hello"])
assert vectors.shape == (1, 384)
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""


def run_python(code: str, *flags: str) -> str:
    finished = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_an_appliance_loads_nothing_heavy(int8_bundle: Bundle) -> None:
    loaded = set(json.loads(run_python(EMBED_AND_LIST.format(bundle=str(int8_bundle.path)))))

    assert not loaded & (HEAVY | {"exporters", "toolkit", "requests", "httpx", "scipy", "sklearn"})
    assert loaded >= {"runtime", "onnxruntime", "tokenizers", "numpy"}


def test_the_runtime_runs_where_the_heavy_things_cannot_be_imported(int8_bundle: Bundle) -> None:
    block = f"import sys\nfor name in {sorted(HEAVY)}: sys.modules[name] = None\n"
    code = block + EMBED_AND_LIST.format(bundle=str(int8_bundle.path)).replace("print(", "None and print(")

    run_python(code)


def test_public_names_are_those_that_are_imported_when_they_are_asked_for() -> None:
    """What type checkers read, what is listed and what is looked up are the same names."""
    tree = ast.parse((ROOT / "runtime" / "__init__.py").read_text(encoding="utf-8"))
    checked = {
        alias.name: f"{node.module}".removeprefix("runtime.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and f"{node.module}".startswith("runtime.")
        for alias in node.names
    }

    assert checked == runtime._HOMES
    assert list(runtime._HOMES) == runtime.__all__
    assert set(runtime.__all__) <= set(dir(runtime))
    for name, home in runtime._HOMES.items():
        assert getattr(runtime, name) is getattr(importlib.import_module(f"runtime.{home}"), name)
    with pytest.raises(AttributeError, match="module `runtime` has no attribute `Embeder`"):
        _ = runtime.Embeder


def test_a_decoder_waits_for_nothing_that_embeds() -> None:
    loaded = set(
        json.loads(run_python("import json, sys; from runtime import Decoder; print(json.dumps([*sys.modules]))"))
    )

    assert "runtime.decoder" in loaded
    assert not loaded & {
        "runtime.embedder",
        "runtime.reranker",
        "runtime.bundle_writer",
        "concurrent.futures",
        "jinja2",
    }


def test_help_needs_neither_numpy_nor_onnxruntime() -> None:
    code = (
        "import sys, json; import toolkit.cli; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    loaded = set(json.loads(run_python(code)))

    assert not loaded & (HEAVY | {"onnxruntime", "exporters", "numpy", "tokenizers"})


MISS_AND_LIST = """
import json, sys
from exporters import export
from runtime import NotFoundError
try:
    export("nothing")
except NotFoundError:
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def test_nobody_waits_for_torch_to_hear_of_a_wrong_name() -> None:
    assert not set(json.loads(run_python(MISS_AND_LIST))) & {"torch", "transformers", "optimum", "onnx", "onnxruntime"}


@pytest.mark.parametrize("package", ["runtime", "exporters"])
def test_what_is_public_is_there(package: str) -> None:
    module = importlib.import_module(package)

    assert len(module.__all__) == len(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert not set(module.__all__) & set(modules(package)), "a name would mean a module or what is in it by turns"
    with pytest.raises(AttributeError):
        module.nothing_of_this_name  # noqa: B018


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_snippet_runs(int8_bundle: Bundle, tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", readme(), re.DOTALL)
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "all-MiniLM-L6-v2-int8").symlink_to(int8_bundle.path)

    finished = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == ["(3, 384)", "The pump does not start"]


def test_the_readmes_table_is_the_catalog() -> None:
    from ortkit.exporters import load_catalog

    rows = re.findall(r"^\| `([\w.-]+)` \| (\w+) \| (\w+) \| ([\w.-]+) \| (\w+) \|", readme(), re.MULTILINE)

    assert rows == [
        (spec.name, spec.kind.value, spec.precision.value, spec.license, "gated" if spec.gated else "public")
        for spec in load_catalog().values()
    ]


def test_the_search_of_the_demo_finds_the_right_passages(int8_bundle: Bundle) -> None:
    examples = ROOT / "docs" / "examples"
    query = "the generator will not start on a cold morning"
    finished = subprocess.run(
        [sys.executable, examples / "search.py", int8_bundle.path, examples / "passages.jsonl", query],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )

    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    lines = finished.stdout.splitlines()
    assert lines[1] == query
    assert re.match(r"  0\.\d{3}  Starting a generator in the cold: ", lines[2])
