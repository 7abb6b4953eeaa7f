"""A decoder of transformers without its weights: the matrices stay in the checkpoint and are read where needed.

Small parameters, such as norms and biases, are in memory as ever. The matrices, which are nearly all of a decoder, have
a shape and no content until `with_weights` reads them for a part of the model, in float32 as transformers would.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers.modeling_utils import no_init_weights
from transformers.pytorch_utils import Conv1D

from exporters.checkpoint import Checkpoint, weight_files
from exporters.headers import STORED_AS, StoredTensor, stored_tensors
from exporters.pytorch_model import load_config, quiet, refusing_what_fails
from runtime.errors import CheckpointError

PRODUCTS = (nn.Linear, Conv1D)
"""The modules that are a product with a matrix."""
OF_NO_USE = ("rotary_emb.inv_freq",)
"""How tensors end that old versions of transformers saved and that are computed from the config."""


@dataclass(frozen=True)
class Held:
    """A matrix of a model that is not in memory: the parameter in its place, and where its content is."""

    name: str
    """As transformers has it."""
    tensor: StoredTensor
    inputs_first: bool = False
    """Whether it is (inputs, outputs), as products of GPT-2's code read them, and not (outputs, inputs)."""


@dataclass(frozen=True)
class WeightlessDecoder:
    """A decoder for causal language modelling in float32, ready to run but for its matrices."""

    model: Any
    held: Mapping[nn.Parameter, Held]
    """The parameters without content. Tied modules share theirs."""

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def layers(self) -> nn.ModuleList:
        """The layers that hidden states go through one after another."""
        count = self.config.num_hidden_layers
        lists = (module for module in self.model.modules() if isinstance(module, nn.ModuleList))
        return next(found for found in lists if len(found) == count)

    def held_in(self, module: nn.Module) -> Iterator[tuple[nn.Module, str, Held]]:
        """Each module inside a part of the model with a matrix that is not in memory, and its own name for it."""
        for inner in module.modules():
            for name, parameter in inner.named_parameters(recurse=False):
                if parameter in self.held:
                    yield inner, name, self.held[parameter]

    @contextmanager
    def with_weights(self, *modules: nn.Module) -> Iterator[None]:
        """Have the matrices of some parts of the model in memory."""
        with ExitStack() as stack:
            for module in modules:
                for inner, name, held in list(self.held_in(module)):
                    stack.callback(inner.register_parameter, name, getattr(inner, name))
                    inner.register_parameter(name, parameter_of(held.tensor))
            yield


def open_decoder(checkpoint: Checkpoint) -> WeightlessDecoder:
    """The model that a checkpoint holds; raises CheckpointError where its tensors do not fit its config."""
    config = load_config(checkpoint)
    with quiet(), refusing_what_fails(checkpoint):
        with no_init_weights(), parameters_without_memory():
            # The plain attention is the one that other ways of computing it are measured by.
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
            )
        model.tie_weights()
    stored = checkpoint.tensors
    if stored is None:
        stored = stored_tensors(weight_files(checkpoint.folder))
    tensors = named_as_in(model, stored)
    check_tensors(checkpoint, model, tensors)
    held = {}
    for name, parameter in list(model.named_parameters()):
        owner, own_name = owner_of(model, name)
        if isinstance(owner, (*PRODUCTS, nn.Embedding)) and own_name == "weight":
            held[parameter] = Held(name, tensors[name], isinstance(owner, Conv1D))
        else:
            owner.register_parameter(own_name, parameter_of(tensors[name]))
    for name, _ in stored_buffers(model):
        owner, own_name = owner_of(model, name)
        setattr(owner, own_name, torch.from_numpy(tensors[name].read()))
    return WeightlessDecoder(model.eval(), held)


@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """Give parameters a shape only, on torch's `meta` device; buffers, such as angles of rotations, are computed."""
    register = nn.Module.register_parameter

    def register_shape(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        shape = None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, shape)

    nn.Module.register_parameter = register_shape  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def parameter_of(tensor: StoredTensor) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(tensor.read()), requires_grad=False)


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has a parameter or buffer, and its name there."""
    path, _, own_name = name.rpartition(".")
    return model.get_submodule(path), own_name


def stored_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a checkpoint holds beside parameters."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    yield from ((name, found) for name, found in model.state_dict().items() if name not in parameters)


def named_as_in(model: Any, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Tensors by the names that the model has for them, as transformers renames what it loads."""
    renames: Mapping[str, str] = getattr(model, "_checkpoint_conversion_mapping", None) or {}
    found = {}
    for name, tensor in tensors.items():
        renamed = name
        for pattern, replacement in renames.items():
            renamed = re.sub(pattern, replacement, renamed)
        found[renamed] = tensor
    prefix = f"{model.base_model_prefix}."
    expected = model.state_dict()
    if any(name.startswith(prefix) for name in expected) and not any(name.startswith(prefix) for name in found):
        # Saved without the head that predicts tokens.
        found = {name if name in expected else prefix + name: tensor for name, tensor in found.items()}
    return found


def check_tensors(checkpoint: Checkpoint, model: Any, tensors: Mapping[str, StoredTensor]) -> None:
    """Raise CheckpointError unless every weight of the model is there in its shape, and nothing else is."""
    shapes = {name: tuple(found.shape) for name, found in model.named_parameters()}
    shapes |= {name: tuple(found.shape) for name, found in stored_buffers(model)}
    missing = shapes.keys() - tensors.keys()
    if missing:
        raise CheckpointError(
            f"`{checkpoint.folder}` lacks {len(missing)} of the weights that its config.json promises, "
            f"such as `{min(missing)}`"
        )
    # A tied matrix may be stored under each of its names.
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    # What a model computes for itself, such as GPT-2's mask, some publish with its weights.
    buffers = {name for name, _ in model.named_buffers()}
    superfluous = {
        name
        for name in tensors.keys() - model.state_dict().keys() - buffers
        if not name.endswith(OF_NO_USE) and not any(re.search(pattern, name) for pattern in ignored)
    }
    if superfluous:
        raise CheckpointError(
            f"`{checkpoint.folder}` holds {len(superfluous)} weights that its config.json says nothing of, "
            f"such as `{min(superfluous)}`",
            hint="without them the model would be another one",
        )
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise CheckpointError(
                f"in `{checkpoint.folder}`, `{tensor.name}` has the shape {tensor.shape}, "
                f"and its config.json promises {shape}"
            )
        if tensor.dtype not in STORED_AS:
            raise CheckpointError(
                f"in `{checkpoint.folder}`, `{tensor.name}` is of the type `{tensor.dtype}`",
                hint=f"read are {', '.join(f'`{known}`' for known in STORED_AS)}",
            )
