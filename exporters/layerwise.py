"""PyTorch's own forward of a decoder, layer by layer, with the weights of one layer in memory at a time.

All texts go through a layer before the next one is read, so a pass reads each weight once, however many texts there
are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporters.headers import StoredTensor
from exporters.progress import Progress, WeightCounter
from exporters.weightless import PRODUCTS, WeightlessDecoder


class Observer:
    """Is shown what happens to each text, told by its number; to be inherited from, and does nothing itself."""

    def product(self, text: int, matrix: StoredTensor, rows: NDArray[np.float32]) -> None:
        """The rows (tokens, width) that go into a product."""

    def layer(self, text: int, layer: int, states: NDArray[np.float32]) -> None:
        """The hidden states (tokens, width) after a layer."""

    def reads_logits(self, text: int) -> bool:
        """Whether the logits of a text are to be computed for it."""
        del text
        return False

    def logits(self, text: int, logits: NDArray[np.float32]) -> None:
        """The logits (tokens, vocabulary), which may be written over."""


class Layerwise:
    """A pass of several texts, given as token ids, through a decoder."""

    def __init__(self, decoder: WeightlessDecoder, texts: Sequence[Sequence[int]], *observers: Observer) -> None:
        self.decoder = decoder
        self.texts = texts
        self.observers = observers
        self.text = 0
        """The one that is being read."""
        self.states: list[Tensor] = []
        """The hidden states of each text."""
        self.asked: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []
        """What each text's layers after the first are given beside them."""
        self.in_tuple = False
        """Whether layers return their states as the first of several things."""

    def run(self, told: Progress | None = None) -> None:
        """Read all texts; `told` is told of the matrices that are done with."""
        model, layers = self.decoder.model, self.decoder.layers
        vectors, output = model.get_input_embeddings(), model.get_output_embeddings()
        known = {vectors, output, *(inner for layer in layers for inner in layer.modules())}
        # Such as vectors for positions, which a model adds whatever it is given.
        others = [module for module, _, _ in self.decoder.held_in(model) if module not in known]
        parts = [[vectors, layers[0], *others], *([layer] for layer in layers[1:]), [output, *others]]
        held = [[held.tensor for module in part for _, _, held in self.decoder.held_in(module)] for part in parts]
        tally = WeightCounter(told, [tensor.nbytes for tensors in held for tensor in tensors])
        with torch.inference_mode(), self.hooks():
            for number, (part, tensors) in enumerate(zip(parts, held, strict=True)):
                with self.decoder.with_weights(*part):
                    if number == 0:
                        self.read_first()
                    elif number < len(layers):
                        self.read_next(number)
                    else:
                        self.read_last()
                for tensor in tensors:
                    tally.advance(tensor.nbytes)

    def read_next(self, number: int) -> None:
        """Take each text through one more layer."""
        for text, states in enumerate(self.states):
            self.text = text
            args, options = self.asked[self.text][number - 1]
            self.reached(number, self.taken(self.decoder.layers[number](states, *args, **options)))

    def reached(self, layer: int, states: Tensor) -> None:
        self.states[self.text : self.text + 1] = [states]
        for observer in self.observers:
            observer.layer(self.text, layer, states[0].numpy())

    def read_first(self) -> None:
        """Take each text through the first layer, and note what the model gives to those after it."""
        first, *others = self.decoder.layers
        own_forward = first.forward

        def forward(*args: Any, **options: Any) -> Any:
            output = own_forward(*args, **options)
            self.reached(0, self.taken(output))
            return output

        def note(states: Tensor, *args: Any, **options: Any) -> Any:
            self.asked[-1].append((args, options))
            return self.given(states)

        with replaced([first], forward), replaced(others, note):
            for text, ids in enumerate(self.texts):
                self.text = text
                self.asked.append([])
                self.decoder.model.base_model(input_ids=torch.tensor([list(ids)]), use_cache=False)

    def read_last(self) -> None:
        """Take each text from the states after the last layer to what goes into its logits, or to these."""
        model = self.decoder.model
        output = model.get_output_embeddings()
        with replaced(self.decoder.layers, lambda *_args, **_options: self.given(self.states[self.text])):
            for text, states in enumerate(self.states):
                self.text = text
                readers = [observer for observer in self.observers if observer.reads_logits(text)]
                # A vocabulary makes this product as much work as some layers are.
                with replaced([] if readers else [output], lambda rows: rows[..., :0]):
                    logits = model(inputs_embeds=torch.zeros_like(states), use_cache=False).logits[0].numpy()
                for observer in readers:
                    observer.logits(text, logits)

    def taken(self, output: Any) -> Tensor:
        self.in_tuple = isinstance(output, tuple)
        states: Tensor = output[0] if self.in_tuple else output
        return states

    def given(self, states: Tensor) -> Any:
        return (states,) if self.in_tuple else states

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Show the observer what goes into products."""
        with ExitStack() as stack:
            for module in self.decoder.model.modules():
                parameter = module.weight if isinstance(module, PRODUCTS) else None
                if isinstance(parameter, nn.Parameter) and parameter in self.decoder.held:

                    def show(
                        _module: nn.Module, given: Any, matrix: StoredTensor = self.decoder.held[parameter].tensor
                    ) -> None:
                        rows = given[0].reshape(-1, given[0].shape[-1]).numpy()
                        for observer in self.observers:
                            observer.product(self.text, matrix, rows)

                    stack.callback(module.register_forward_pre_hook(show).remove)
            yield


@contextmanager
def replaced(modules: Sequence[nn.Module] | nn.ModuleList, forward: Callable[..., Any]) -> Iterator[None]:
    """Have modules do something else."""
    for module in modules:
        module.forward = forward
    try:
        yield
    finally:
        for module in modules:
            del module.forward
