"""One system in a process of its own: `python -m benchmarks.decoding_worker SYSTEM MODEL THREADS CONTEXT`.

It takes a request a line on stdin, as JSON, and answers each with JSON on a line:

- `{"ids": [...], "new": N}` continues a prompt greedily by N tokens, past any end token: the seconds from the ids
  of the prompt to each token, and the tokens.
- `{"ids": [...], "logits": PATH}` writes the logits after each of the ids, (tokens, vocabulary), to a file of numpy.
- `{"peak": true}` asks for the peak memory so far, in bytes.

Imports nothing of a system that it does not run, so any environment with numpy will do.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
PROMPT_TOKENS = 512
"""Prefill batch of llama.cpp in tokens: its default, and ortkit's maximum."""
ALL_TOKENS = 2**31
"""More than any prompt has."""
OPENVINO_MODEL = "openvino_model.xml"
STATUS = Path("/proc/self/status")


class System(StrEnum):
    """What can be measured."""

    ORTKIT = "ortkit"
    GENAI = "onnxruntime-genai"
    LLAMA_CPP = "llama.cpp"
    OPENVINO = "openvino-genai"
    TORCH = "transformers"


class Generator(Protocol):
    """A loaded model."""

    def answer(self, ids: list[int], new: int) -> Iterator[int]:
        """Decode `new` tokens greedily."""

    def logits(self, ids: list[int]) -> Logits:
        """After each of the ids: (tokens, vocabulary)."""


class Ortkit:
    """ortkit's runtime."""

    def __init__(self, model: str, threads: int) -> None:
        from ortkit import Bundle, Decoder

        bundle = Bundle.open(model)
        # Measured with its 8-bit graph for prompts, also on the classes of CPU that do not use it by default.
        prefill = "auto" if bundle.manifest.prefill is None else "int8"
        self.decoder = Decoder(bundle, threads=threads, prefill=prefill)

    def answer(self, ids: list[int], new: int) -> Iterator[int]:
        from ortkit.runtime.decoder.generation import Steps
        from ortkit.runtime.decoder.token_choice import TokenChoice

        decoder = self.decoder
        choice = TokenChoice(decoder.facts.vocabulary, max_tokens=new)
        steps = Steps(decoder.runner(decoder.new_cache()), ids, choice, run_tokens=decoder.run_tokens)
        for step in steps:
            yield step.id

    def logits(self, ids: list[int]) -> Logits:
        from ortkit.runtime.decoder.model_runner import ModelRunner

        return ModelRunner(self.decoder.session, self.decoder.new_cache()).run(ids, len(ids))


class Genai:
    """onnxruntime-genai."""

    def __init__(self, model: str, threads: int) -> None:
        import onnxruntime_genai

        self.genai = onnxruntime_genai
        config = onnxruntime_genai.Config(model)
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model = onnxruntime_genai.Model(config)
        # The others load theirs with the model, or before they can take a prompt.
        self.tokenizer = onnxruntime_genai.Tokenizer(self.model)

    def generator(self, length: int) -> Any:
        params = self.genai.GeneratorParams(self.model)
        # Before `min_length` no token that ends an answer is chosen.
        params.set_search_options(do_sample=False, max_length=length, min_length=length)
        return self.genai.Generator(self.model, params)

    def answer(self, ids: list[int], new: int) -> Iterator[int]:
        generator = self.generator(len(ids) + new)
        generator.append_tokens(np.array([ids], np.int32))
        for _ in range(new):
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    def logits(self, ids: list[int]) -> Logits:
        generator = self.generator(len(ids) + 1)
        rows = []
        for id_ in ids:
            generator.append_tokens(np.array([[id_]], np.int32))
            rows.append(np.array(generator.get_logits(), np.float32).reshape(-1))
        return np.stack(rows)


class LlamaCpp:
    """llama.cpp without its sampler: argmax runs in numpy, as in ortkit."""

    def __init__(self, model: str, threads: int, context: int) -> None:
        import llama_cpp

        self.llama_cpp = llama_cpp
        self.llama = llama_cpp.Llama(
            model,
            n_ctx=context,
            n_batch=PROMPT_TOKENS,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )

    def last_logits(self) -> Logits:
        """Logits after the last token (vocabulary,); overwritten by the next."""
        pointer = self.llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
        row: Logits = np.ctypeslib.as_array(pointer, shape=(self.llama.n_vocab(),))
        return row

    def answer(self, ids: list[int], new: int) -> Iterator[int]:
        self.llama.reset()
        self.llama.eval(ids)
        for place in range(new):
            token = int(self.last_logits().argmax())
            yield token
            if place < new - 1:
                self.llama.eval([token])

    def logits(self, ids: list[int]) -> Logits:
        self.llama.reset()
        rows = []
        for id_ in ids:
            self.llama.eval([id_])
            rows.append(self.last_logits().copy())
        return np.stack(rows)


class OpenvinoGenai:
    """OpenVINO GenAI, in the precision that it chooses for this CPU."""

    def __init__(self, model: str, threads: int) -> None:
        import openvino
        import openvino_genai

        self.openvino = openvino
        self.genai = openvino_genai
        self.model = model
        self.options = {"INFERENCE_NUM_THREADS": threads}
        scheduler = openvino_genai.SchedulerConfig()
        # One prefill, as in `LLMPipeline`, which would also keep the prompts of earlier rounds, and reports tokens only
        # in a callback.
        scheduler.max_num_batched_tokens = ALL_TOKENS
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", self.options)

    def answer(self, ids: list[int], new: int) -> Iterator[int]:
        config = self.genai.GenerationConfig(max_new_tokens=new, min_new_tokens=new, ignore_eos=True, do_sample=False)
        answer = self.pipeline.add_request(0, self.openvino.Tensor(np.array([ids], np.int64)), config)
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            if answer.can_read():
                for part in answer.read().values():
                    yield from part.generated_ids

    def logits(self, ids: list[int]) -> Logits:
        # GenAI returns none, so the same model is run without it.
        model = self.openvino.Core().compile_model(Path(self.model) / OPENVINO_MODEL, "CPU", self.options)
        inputs = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids))[np.newaxis],
            "beam_idx": np.zeros(1, np.int32),
        }
        logits: Logits = model(inputs)[0][0]
        return logits


class Torch:
    """transformers on PyTorch in float32."""

    def __init__(self, model: str, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch = torch
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            model, local_files_only=True, dtype=torch.float32
        ).eval()

    def answer(self, ids: list[int], new: int) -> Iterator[int]:
        read, past = ids, None
        with self.torch.inference_mode():
            for _ in range(new):
                outputs = self.model(self.torch.tensor([read]), past_key_values=past, use_cache=True, logits_to_keep=1)
                past = outputs.past_key_values
                read = [int(outputs.logits[0, -1].argmax())]
                yield read[0]

    def logits(self, ids: list[int]) -> Logits:
        with self.torch.inference_mode():
            logits: Logits = self.model(self.torch.tensor([ids]), use_cache=False).logits[0].numpy()
        return logits


def open_generator(system: System, model: str, *, threads: int, context: int) -> Generator:
    """Load a model with its tokenizer; `context` is the limit of prompt and answer in tokens."""
    if system is System.ORTKIT:
        return Ortkit(model, threads)
    if system is System.GENAI:
        return Genai(model, threads)
    if system is System.LLAMA_CPP:
        return LlamaCpp(model, threads, context)
    if system is System.OPENVINO:
        return OpenvinoGenai(model, threads)
    return Torch(model, threads)


def peak_bytes() -> int:
    """Peak resident memory so far."""
    # `ru_maxrss` would count what the parent held before this program began.
    if STATUS.exists():
        return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line[:6] == "VmHWM:") * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def answered(generator: Generator, request: dict[str, Any]) -> object:
    """Answer a request."""
    if "peak" in request:
        return peak_bytes()
    if "logits" in request:
        np.save(request["logits"], generator.logits(request["ids"]))
        return None
    seconds, tokens = [], []
    start = time.perf_counter()
    for token in generator.answer(request["ids"], request["new"]):
        seconds.append(time.perf_counter() - start)
        tokens.append(token)
    return {"seconds": seconds, "tokens": tokens}


def main(system: str, model: str, threads: str, context: str) -> None:
    generator = open_generator(System(system), model, threads=int(threads), context=int(context))
    for line in sys.stdin:
        print(json.dumps(answered(generator, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
