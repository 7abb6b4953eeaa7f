"""Decoding speed of layers of Mistral-7B's shape, beside llama.cpp on the same shape in Q4_0.

Both have seeded weights: their text means nothing, their speed is that of trained ones. A layer takes 120 MB in each
format; a few layers represent all 32, since each token reads every layer once.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import median

import gguf
import numpy as np
from gguf import GGMLQuantizationType, TokenType

from benchmarks.decoding import (
    DISTRIBUTIONS,
    MEBIBYTE,
    Contestant,
    bandwidths_note,
    compete,
    figures_of,
    missing_note,
    speed_rows,
    weights_bytes,
    workers_of,
)
from benchmarks.decoding_peers import installed_version
from benchmarks.decoding_worker import System
from benchmarks.peers import CACHE, PEERS, peers_python, written_whole
from benchmarks.processor import processor
from benchmarks.results import add_save, save
from benchmarks.table import print_table
from benchmarks.wide_decoder import (
    CONTEXT,
    HEAD_SIZE,
    HEADS,
    INNER,
    KV_HEADS,
    SEED,
    VOCABULARY,
    WIDTH,
    seeded_scales,
    write_wide_decoder,
)
from ortkit.exporters.decoder.recipe_search import COARSE

BLOCK, BLOCK_BYTES = 32, 18
"""Weights of a Q4_0 block, and its bytes: a float16 scale and 32 levels of 4 bits."""
TOKENS = (22, 900)


def write_wide_gguf(path: Path, *, layers: int) -> None:
    """Write a GGUF file of this shape, all matrices in Q4_0."""
    rng = np.random.default_rng(SEED)
    writer = gguf.GGUFWriter(str(path), "llama", use_temp_file=True)
    writer.add_block_count(layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("llama")
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", "<s>", "</s>"]
    tokens = [*special, *letters, *(f"word{place}" for place in range(VOCABULARY - len(special) - len(letters)))]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * len(letters)]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([*kinds, *[TokenType.NORMAL] * (VOCABULARY - len(kinds))])

    def matrix(name: str, outputs: int, inputs: int) -> None:
        blocks = np.empty((outputs, inputs // BLOCK, BLOCK_BYTES), np.uint8)
        blocks[..., 2:] = rng.integers(0, 256, (*blocks.shape[:2], BLOCK_BYTES - 2), np.uint8)
        scales = seeded_scales(rng, blocks.shape[:2], inputs).astype(np.float16)
        blocks[..., :2] = scales.view(np.uint8).reshape(*blocks.shape[:2], 2)
        writer.add_tensor(name, blocks.reshape(outputs, -1), raw_dtype=GGMLQuantizationType.Q4_0)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(WIDTH, np.float32))

    matrix("token_embd.weight", VOCABULARY, WIDTH)
    for layer in range(layers):
        prefix = f"blk.{layer}"
        norm(f"{prefix}.attn_norm.weight")
        matrix(f"{prefix}.attn_q.weight", HEADS * HEAD_SIZE, WIDTH)
        matrix(f"{prefix}.attn_k.weight", KV_HEADS * HEAD_SIZE, WIDTH)
        matrix(f"{prefix}.attn_v.weight", KV_HEADS * HEAD_SIZE, WIDTH)
        matrix(f"{prefix}.attn_output.weight", WIDTH, HEADS * HEAD_SIZE)
        norm(f"{prefix}.ffn_norm.weight")
        matrix(f"{prefix}.ffn_gate.weight", INNER, WIDTH)
        matrix(f"{prefix}.ffn_up.weight", INNER, WIDTH)
        matrix(f"{prefix}.ffn_down.weight", WIDTH, INNER)
    norm("output_norm.weight")
    matrix("output.weight", VOCABULARY, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def wide_gguf(layers: int) -> Path:
    """The file, written on first use."""
    folder = CACHE / f"wide-{layers}-q4_0"
    if not folder.exists():
        with written_whole(folder) as target:
            write_wide_gguf(target / "wide.gguf", layers=layers)
    return folder / "wide.gguf"


def wide_bundle(layers: int, block: int) -> Path:
    """The bundle, written on first use."""
    folder = CACHE / f"wide-{layers}-{block}-{COARSE.output_form.block_size}"
    return folder if folder.exists() else write_wide_decoder(folder, layers=layers, block=block).path


def bytes_read(contestant: Contestant, block: int) -> int:
    """Bytes of weights read per token: all but the embedding and rotary tables, of which one row is read."""
    table = VOCABULARY * WIDTH
    if contestant.system is System.LLAMA_CPP:
        return weights_bytes(contestant.model) - table * BLOCK_BYTES // BLOCK
    # A block of the embedding table has a scale of four bytes and a zero point of one; rotary angles are two float32
    # for half a head.
    return weights_bytes(contestant.model) - table // 2 - 5 * table // block - 4 * CONTEXT * HEAD_SIZE


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wide_decoding", description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--block", type=int, default=COARSE.block_size, help="group size of the bundle")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the virtual environment of the peers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contexts", type=int, nargs="+", default=TOKENS, metavar="N", help="tokens of the prompts")
    parser.add_argument("--new", type=int, default=16, help="tokens of each answer")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, after one warm-up")
    add_save(parser, "wide_decoding")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    layers, threads = options.layers, options.threads
    contestants = [
        Contestant(f"ortkit int4, blocks of {options.block}", System.ORTKIT, wide_bundle(layers, options.block))
    ]
    python = peers_python(options.peers)
    found = installed_version(python, DISTRIBUTIONS[System.LLAMA_CPP])
    if found is None:
        print(missing_note(System.LLAMA_CPP, options.peers))
    else:
        name = f"llama.cpp, llama-cpp-python {found} Q4_0"
        contestants.append(Contestant(name, System.LLAMA_CPP, wide_gguf(layers), python))
    rng = np.random.default_rng(SEED)
    prompts = [rng.integers(300, VOCABULARY, count).tolist() for count in sorted(options.contexts)]
    context = max(options.contexts) + options.new
    with workers_of(contestants, threads=threads, context=context) as workers:
        results = compete(workers, prompts, new=options.new, repeats=options.repeats, threads=threads, context=context)
    print(f"\n{processor()}")
    for prompt in prompts:
        title = (
            f"{layers} layers of Mistral-7B's shape, {options.new} new tokens after {len(prompt)}, {threads} threads"
        )
        print_table(title, *speed_rows(results, len(prompt)))
    header = ["system", "MB read per token", "of bandwidth", "peak MiB"]
    rows = []
    for result in results:
        size = bytes_read(result.contestant, options.block)
        shares = result.shares_of_bandwidth(len(prompts[0]), size)
        figures = [f"{size / 1e6:,.0f}", f"{median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"]
        rows.append([result.contestant.name, *figures, f"{result.peak_bytes / MEBIBYTE:,.0f}"])
    print_table(f"{threads} threads read {bandwidths_note(results)}", header, rows)
    saved = (replace(one, measure=f"{layers} layers, {one.measure}") for one in figures_of(results, {}))
    save(options, "wide_decoding", saved)


if __name__ == "__main__":
    main()
