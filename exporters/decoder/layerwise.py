"""Run a decoder's PyTorch forward layer by layer, with the weights of one layer in memory at a time.

All texts go through a layer before the next layer is loaded, so a pass reads each weight once for any number of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..checkpoint.safetensors_reader import StoredTensor
from ..progress import Progress, WeightCounter
from .lazy_model import LINEAR_MODULES, LazyDecoder


class Observer:
    """Base class of observers of a forward pass; `text` is the number of a text. Does nothing itself."""

    def linear(self, text: int, matrix: StoredTensor, rows: NDArray[np.float32]) -> None:
        """Called with the input (tokens, width) of a linear layer."""

    def layer(self, text: int, layer: int, states: NDArray[np.float32]) -> None:
        """Called with the hidden states (tokens, width) after a decoder layer."""

    def wants_logits(self, text: int) -> bool:
        """Whether to compute the logits of a text."""
        del text
        return False

    def logits(self, text: int, logits: NDArray[np.float32]) -> None:
        """Called with the logits (tokens, vocabulary), which may be overwritten."""


class LayerwiseForward:
    """A forward pass of several texts, given as token ids, through a lazy decoder."""

    def __init__(self, decoder: LazyDecoder, texts: Sequence[Sequence[int]], *observers: Observer) -> None:
        self.decoder = decoder
        self.texts = texts
        self.observers = observers
        self._text = 0
        """The number of the current text."""
        self._states: list[Tensor] = []
        """The hidden states of each text."""
        self._arguments: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []
        """For each text, the other arguments of each layer after the first."""
        self._in_tuple = False
        """Whether layers return a tuple that starts with the hidden states."""

    def run(self, progress: Progress | None = None) -> None:
        """Run all texts; `progress` is updated matrix by matrix."""
        model, layers = self.decoder.model, self.decoder.layers
        embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
        known = {embeddings, output, *(inner for layer in layers for inner in layer.modules())}
        # Such as position embeddings, which a model adds to any input.
        others = [module for module, _, _ in self.decoder.lazy_weights_in(model) if module not in known]
        parts = [[embeddings, layers[0], *others], *([layer] for layer in layers[1:]), [output, *others]]
        stored = [
            [lazy.tensor for module in part for _, _, lazy in self.decoder.lazy_weights_in(module)] for part in parts
        ]
        counter = WeightCounter(progress, [tensor.nbytes for tensors in stored for tensor in tensors])
        with torch.inference_mode(), self._hooks():
            for number, (part, tensors) in enumerate(zip(parts, stored, strict=True)):
                with self.decoder.with_weights(*part):
                    if number == 0:
                        self._run_first()
                    elif number < len(layers):
                        self._run_next(number)
                    else:
                        self._run_last()
                for tensor in tensors:
                    counter.advance(tensor.nbytes)

    def _run_next(self, number: int) -> None:
        """Run each text through one more layer."""
        for text, states in enumerate(self._states):
            self._text = text
            args, options = self._arguments[self._text][number - 1]
            self._reached(number, self._states_of(self.decoder.layers[number](states, *args, **options)))

    def _reached(self, layer: int, states: Tensor) -> None:
        self._states[self._text : self._text + 1] = [states]
        for observer in self.observers:
            observer.layer(self._text, layer, states[0].numpy())

    def _run_first(self) -> None:
        """Run each text through the first layer, and record the arguments of the layers after it."""
        first, *others = self.decoder.layers
        own_forward = first.forward

        def forward(*args: Any, **options: Any) -> Any:
            output = own_forward(*args, **options)
            self._reached(0, self._states_of(output))
            return output

        def note(states: Tensor, *args: Any, **options: Any) -> Any:
            self._arguments[-1].append((args, options))
            return self._as_output(states)

        with _replaced_forward([first], forward), _replaced_forward(others, note):
            for text, ids in enumerate(self.texts):
                self._text = text
                self._arguments.append([])
                self.decoder.model.base_model(input_ids=torch.tensor([list(ids)]), use_cache=False)

    def _run_last(self) -> None:
        """Run each text from the last hidden states to the input of the LM head, or to logits where they are wanted."""
        model = self.decoder.model
        output = model.get_output_embeddings()
        with _replaced_forward(
            self.decoder.layers, lambda *_args, **_options: self._as_output(self._states[self._text])
        ):
            for text, states in enumerate(self._states):
                self._text = text
                readers = [observer for observer in self.observers if observer.wants_logits(text)]
                # The LM head costs as much as some layers.
                with _replaced_forward([] if readers else [output], lambda rows: rows[..., :0]):
                    logits = model(inputs_embeds=torch.zeros_like(states), use_cache=False).logits[0].numpy()
                for observer in readers:
                    observer.logits(text, logits)

    def _states_of(self, output: Any) -> Tensor:
        self._in_tuple = isinstance(output, tuple)
        states: Tensor = output[0] if self._in_tuple else output
        return states

    def _as_output(self, states: Tensor) -> Any:
        return (states,) if self._in_tuple else states

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        """Show the observers the inputs of linear layers."""
        with ExitStack() as stack:
            for module in self.decoder.model.modules():
                parameter = module.weight if isinstance(module, LINEAR_MODULES) else None
                if isinstance(parameter, nn.Parameter) and parameter in self.decoder.lazy_weights:

                    def show(
                        _module: nn.Module,
                        given: Any,
                        matrix: StoredTensor = self.decoder.lazy_weights[parameter].tensor,
                    ) -> None:
                        rows = given[0].reshape(-1, given[0].shape[-1]).numpy()
                        for observer in self.observers:
                            observer.linear(self._text, matrix, rows)

                    stack.callback(module.register_forward_pre_hook(show).remove)
            yield


@contextmanager
def _replaced_forward(modules: Sequence[nn.Module] | nn.ModuleList, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward of modules for a while."""
    for module in modules:
        module.forward = forward
    try:
        yield
    finally:
        for module in modules:
            del module.forward
