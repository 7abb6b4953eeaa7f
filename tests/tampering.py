"""Bundles that someone tampered with, their hashes recomputed: seeded changes, and what opening and using them ends in.

`python -m tests.tampering FOLDER FIRST COUNT` tries so many of them in this process, a line of JSON each.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import json
import random
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ortkit import Bundle, Chat, Decoder, Embedder, Kind, OrtkitError, Reranker
from ortkit.runtime.bundle.bundle import GRAPH, TOKENIZER
from ortkit.runtime.bundle.folder import MANIFEST
from ortkit.runtime.child_process import limit_memory
from ortkit.runtime.errors import TextError
from ortkit.runtime.replay import replay
from tests.tiny_bundles import (
    TEXTS,
    rehash,
    write_certified_decoder,
    write_embedder,
    write_reranker,
)

MEMORY = 3 << 30
USED = (*TEXTS, "a" * 300, "fox 🙂 <|im_end|> \ufffd")
SUBJECTS: dict[str, Callable[[Path], Bundle]] = {
    "embedder": write_embedder,
    "dense": lambda target: write_embedder(target, dense=True),
    "reranker": write_reranker,
    "decoder": write_certified_decoder,
}
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 63, 64, 65, 2**31 - 1, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.5, 1.5, 1e308,
    float("nan"), float("inf"), "", "a", "\x00", "\ud800", "x" * 5000, "../x", [], [0], [1, [2, [3]]], {}, {"a": 1},
    [None], "mean", "cls", "last_token",
    "embedder", "decoder", "reranker", "(a+)+$", "{{ 'a' * 10**10 }}", "<|im_end|>",
]  # fmt: skip
"""What is put in the place of a value of JSON."""


def use(folder: Path) -> None:
    """Open a bundle as what it is for and use all of it; raises AssertionError for a result that is none."""
    bundle = Bundle.open(folder)
    kind = bundle.manifest.kind
    if kind is Kind.RERANKER:
        reranker = Reranker(bundle)
        pairs = [("fox", text) for text in USED]
        scores = reranker.score(pairs)
        assert scores.shape[0] == len(pairs), scores.shape
        assert np.isfinite(scores).all()
        replay(reranker)
    elif kind is Kind.DECODER:
        decoder = Decoder(bundle, threads=1)
        answer = decoder.generate("The quick", max_tokens=8)
        assert all(0 <= id_ < decoder.facts.vocabulary for id_ in (token.id for token in answer.tokens)), answer
        answer.text.encode("utf-8")
        if decoder.facts.chat is not None:
            Chat(decoder).send("Hello", max_tokens=2).answer()
        replay(decoder)
    else:
        embedder = Embedder(bundle)
        vectors = embedder.embed(USED)
        assert vectors.shape == (len(USED), embedder.dimension), vectors.shape
        assert vectors.dtype == np.float32
        assert np.isfinite(vectors).all()
        embedder.embed_query("fox")
        embedder.embed(USED, long="mean")
        replay(embedder)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values within a value of JSON."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key in value:
            found += places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 8)):
            found += places(value[index], (*path, index))
    return found


def change_json(value: Any, draw: random.Random) -> None:
    """Change, remove or add one value."""
    *above, last = draw.choice(places(value))
    holder = value
    for step in above:
        holder = holder[step]
    action = draw.randrange(5)
    if action == 0:
        del holder[last]
    elif action == 1 and isinstance(holder, dict):
        holder[draw.choice(["extra", "__class__", "\x1b[2J"])] = copy.deepcopy(holder[last])
    elif action == 2 and isinstance(holder[last], (int, float)) and not isinstance(holder[last], bool):
        holder[last] = draw.choice([holder[last] + 1, holder[last] - 1, -holder[last], holder[last] * 1000])
    elif action == 3 and isinstance(holder[last], str):
        text = holder[last]
        place = draw.randrange(len(text) + 1)
        holder[last] = draw.choice([text[:place], text[:place] + "\x00" + text[place:], text * 3, text.upper()])
    else:
        holder[last] = copy.deepcopy(draw.choice(VALUES))


def change_manifest(folder: Path, draw: random.Random) -> None:
    rehash(folder, lambda manifest: change_json(manifest, draw))


def change_tokenizer(folder: Path, draw: random.Random) -> None:
    path = folder / TOKENIZER
    value = json.loads(path.read_text(encoding="utf-8"))
    # Its vocabulary has most of the values, and says least.
    part = draw.choice(["model", "all", "all", "other"])
    if part == "other":
        value[draw.choice(["post_processor", "normalizer", "pre_tokenizer", "decoder"])] = copy.deepcopy(
            draw.choice(PIECES)
        )
    elif part == "all":
        rest = {key: found for key, found in value.items() if key != "model"}
        change_json(rest, draw)
        value = rest | {"model": value["model"]}
    else:
        change_json(value["model"], draw)
    path.write_text(json.dumps(value), encoding="utf-8")
    rehash(folder)


PIECES: list[Any] = [
    None,
    {"type": "Sequence", "normalizers": [], "pretokenizers": [], "processors": [], "decoders": []},
    {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[NO]", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    },
    {"type": "BertProcessing", "sep": ["[SEP]", 9999999], "cls": ["[CLS]", 4294967295]},
    {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    {"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 1000},
    {"type": "Replace", "pattern": {"String": "o"}, "content": "o" * 10000},
    {"type": "Prepend", "prepend": "x" * 100000},
    {"type": "Metaspace", "replacement": "▁▁", "prepend_scheme": "always"},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Strip", "content": "x", "start": 10**9, "stop": 10**9},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False},
    {"type": "Fuse"},
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
]  # fmt: skip
"""Parts of tokenizers, some of which fit nowhere."""


def change_bytes(name: str) -> Callable[[Path, random.Random], None]:
    def change(folder: Path, draw: random.Random) -> None:
        path = folder / name
        content = bytearray(path.read_bytes())
        action = draw.randrange(4)
        if action == 0:
            del content[draw.randrange(len(content)) :]
        elif action == 1:
            place = draw.randrange(len(content))
            content[place:place] = draw.randbytes(draw.choice([1, 8, 100]))
        else:
            for _ in range(draw.choice([1, 3, 20])):
                content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        if name != MANIFEST:
            rehash(folder)

    return change


def change_dense(folder: Path, draw: random.Random) -> None:
    """Arrays of other shapes, types and numbers."""
    path = folder / "dense-0.npz"
    if not path.exists():
        change_manifest(folder, draw)
        return
    arrays: dict[str, Any] = dict(np.load(path))
    name = draw.choice(sorted(arrays))
    array = arrays[name]
    changes: list[Any] = [
        array[:-1], array.astype(np.float64), array * np.float32(np.nan), array[None], np.float32(1), array.T,
        np.zeros((0, 0), np.float32), array.astype(np.float16), np.array(["a"]), array * np.float32(1e38),
    ]  # fmt: skip
    arrays[name] = draw.choice(changes)
    if draw.random() < 0.2:
        del arrays[name]
    draw.choice([np.savez, np.savez_compressed])(path, **arrays)
    rehash(folder)


OPERATORS = [
    "Identity", "Neg", "Sqrt", "Shape", "Size", "Squeeze", "ReduceSum", "SequenceConstruct", "Cast", "Not", "Log",
    "Flatten", "NonZero", "Relu", "IsNaN", "OptionalHasElement", "Transpose", "TopK", "Nothing", "Unique",
    "ConstantOfShape",
]  # fmt: skip


def change_graph(folder: Path, draw: random.Random) -> None:
    """Another operator, attribute, constant, type or shape."""
    model = onnx.load(folder / GRAPH)
    draw.choice(GRAPH_CHANGES)(model.graph, draw)
    (folder / GRAPH).write_bytes(model.SerializeToString())
    rehash(folder)


def change_operator(made: onnx.GraphProto, draw: random.Random) -> None:
    draw.choice(made.node).op_type = draw.choice(OPERATORS)


def remove_node(made: onnx.GraphProto, draw: random.Random) -> None:
    made.node.remove(draw.choice(made.node))


def change_input(made: onnx.GraphProto, draw: random.Random) -> None:
    node = draw.choice(made.node)
    node.input[draw.randrange(len(node.input))] = draw.choice([*(found.name for found in made.initializer), ""])


def change_type(made: onnx.GraphProto, draw: random.Random) -> None:
    draw.choice([*made.input, *made.output]).type.tensor_type.elem_type = draw.choice([1, 2, 6, 7, 8, 9, 10, 11, 16])


def change_rank(made: onnx.GraphProto, draw: random.Random) -> None:
    del made.output[0].type.tensor_type.shape.dim[draw.randrange(3) :]


def change_dimension(made: onnx.GraphProto, draw: random.Random) -> None:
    shape = draw.choice([*made.input, *made.output]).type.tensor_type.shape
    draw.choice(shape.dim).dim_value = draw.choice([0, 1, 7, 2**31, -1])


def change_name(made: onnx.GraphProto, draw: random.Random) -> None:
    draw.choice([*made.input, *made.output]).name = draw.choice(["other", "", "input_ids", "logits"])


def change_attributes(made: onnx.GraphProto, draw: random.Random) -> None:
    for attribute in draw.choice([node for node in made.node if node.attribute]).attribute:
        if attribute.type == onnx.AttributeProto.INTS:
            attribute.ints[:] = [draw.choice([-9, -1, 0, 1, 5]) for _ in attribute.ints]
        else:
            attribute.i = draw.choice([-1, 0, 1, 3, 2**40])


def append_node(made: onnx.GraphProto, draw: random.Random) -> None:
    """Whatever the graph gives goes through one more operator, and what it is said to give goes unsaid."""
    operator = draw.choice(OPERATORS)
    output = made.output[0]
    before = f"{output.name}.before"
    for node in made.node:
        node.output[:] = [before if name == output.name else name for name in node.output]
    if draw.random() < 0.5:
        # Scalars, other ranks and other counts of rows.
        reduced = draw.choice(["ReduceMean", "Flatten", "Concat", "Slice"])
        axes = numpy_helper.from_array(np.array([0]), "axes")
        ones = numpy_helper.from_array(np.array([1]), "ones")
        made.initializer.extend([axes, ones])
        nodes = {
            "ReduceMean": helper.make_node("ReduceMean", [before], [output.name], keepdims=0),
            "Flatten": helper.make_node("Flatten", [before], [output.name]),
            "Concat": helper.make_node("Concat", [before, before], [output.name], axis=draw.randrange(2)),
            "Slice": helper.make_node("Slice", [before, "axes", "ones", draw.choice(["axes", "ones"])], [output.name]),
        }
        made.node.append(nodes[reduced])
    else:
        attributes = {"to": draw.choice([6, 7, 9, 10, 11, 16])} if operator == "Cast" else {}
        made.node.append(helper.make_node(operator, [before], [output.name], **attributes))
    kept = onnx.ValueInfoProto(name=output.name)
    if operator != "SequenceConstruct":
        kept.type.tensor_type.elem_type = TensorProto.FLOAT
    made.output[0].CopyFrom(kept)


def change_constant(made: onnx.GraphProto, draw: random.Random) -> None:
    tensor = draw.choice(made.initializer)
    array = numpy_helper.to_array(tensor).copy()
    changes: list[Any] = [array[:1], array.astype(np.float64), array[None], array.reshape(-1), array[:0]]
    if array.dtype == np.float32:
        changes += [array * np.float32(np.nan), array * np.float32(np.inf), array * np.float32(1e38)]
    else:
        changes += [array + 1, array - 5, array * 2**40]
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(draw.choice(changes)), tensor.name))


GRAPH_CHANGES: list[Callable[[onnx.GraphProto, random.Random], None]] = [
    append_node,
    append_node,
    change_attributes,
    change_constant,
    change_constant,
    change_dimension,
    change_input,
    change_name,
    change_operator,
    change_rank,
    change_type,
    remove_node,
]
CHANGES: list[Callable[[Path, random.Random], None]] = [
    change_manifest,
    change_manifest,
    change_tokenizer,
    change_tokenizer,
    change_graph,
    change_graph,
    change_dense,
    change_bytes(GRAPH),
    change_bytes(MANIFEST),
    change_bytes(TOKENIZER),
]


def write_subjects(folder: Path) -> None:
    """The bundles that are tampered with."""
    for name, write in SUBJECTS.items():
        write(folder / name)


def attempt(folder: Path, seed: int) -> str | None:
    """Tamper with one bundle and use it; what was wrong with how that ended, or None."""
    draw = random.Random(seed)
    name = draw.choice(sorted(SUBJECTS))
    target = folder / "tampered"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / name, target)
    for _ in range(draw.choice([1, 1, 1, 2])):
        # What is damaged already may be beyond another change.
        with contextlib.suppress(Exception), np.errstate(all="ignore"):
            draw.choice(CHANGES)(target, draw)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            use(target)
    except TextError as error:
        # A manifest may say that the model knows fewer tokens, and then has the texts refused that need the others.
        fewer = known_tokens(target) != known_tokens(folder / name)
        expected = fewer and "is not in the model's vocabulary" in error.message
        return None if expected else f"TextError: {error.message}"
    except OrtkitError as error:
        return None if error.exit_code in (7, 9) else f"{type(error).__name__}: {error.message[:300]}"
    except BaseException as error:  # noqa: BLE001 - panics too
        return described(error)
    return None


def known_tokens(folder: Path) -> object:
    return json.loads((folder / MANIFEST).read_bytes())["tokenizer"]["known_tokens"]


def described(error: BaseException) -> str:
    """An error, and where it came from."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
    return f"{type(error).__name__}: {str(error)[:200]} at {' '.join(places)}"


def main() -> None:
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    limit_memory(MEMORY)
    faulthandler.enable()
    for seed in range(first, first + count):
        print(json.dumps({"begin": seed}), flush=True)
        print(json.dumps({"seed": seed, "problem": attempt(folder, seed)}), flush=True)


if __name__ == "__main__":
    main()
