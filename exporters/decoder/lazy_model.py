"""Lazy decoders: a transformers model on the meta device, its weights streamed from the checkpoint when needed.

Small parameters, such as norms and biases, are loaded. The matrices, nearly all of a decoder, stay on the meta device
until `with_weights` reads those of some modules, in float32 as transformers would.
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

from ..checkpoint.checkpoint import Checkpoint, weight_files
from ..checkpoint.safetensors_reader import STORED_AS, StoredTensor, stored_tensors
from ..models.library_errors import library_errors
from ..models.loading import load_config, quiet
from ..models.weight_errors import check_tensor, missing_weights, unexpected_weights

LINEAR_MODULES = (nn.Linear, Conv1D)
"""Modules that are linear layers."""
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)
"""Suffixes of tensors that old versions of transformers saved and that are computed from the config."""


@dataclass(frozen=True)
class LazyWeight:
    """A matrix of a model that is not in memory, and where its content is."""

    name: str
    """Its name in the transformers model."""
    tensor: StoredTensor
    inputs_first: bool = False
    """Whether it is (inputs, outputs), as in GPT-2's Conv1D, and not (outputs, inputs)."""


@dataclass(frozen=True)
class LazyDecoder:
    """A causal language model in float32 whose matrices are on the meta device."""

    model: Any
    lazy_weights: Mapping[nn.Parameter, LazyWeight]
    """The parameters on the meta device. Tied modules share one."""

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        count = self.config.num_hidden_layers
        lists = (module for module in self.model.modules() if isinstance(module, nn.ModuleList))
        return next(found for found in lists if len(found) == count)

    def lazy_weights_in(self, module: nn.Module) -> Iterator[tuple[nn.Module, str, LazyWeight]]:
        """Yield the submodules with a lazy weight, the parameter's name there, and the weight."""
        for inner in module.modules():
            for name, parameter in inner.named_parameters(recurse=False):
                if parameter in self.lazy_weights:
                    yield inner, name, self.lazy_weights[parameter]

    @contextmanager
    def with_weights(self, *modules: nn.Module) -> Iterator[None]:
        """Load the lazy weights of some modules for a while."""
        with ExitStack() as stack:
            for module in modules:
                for inner, name, lazy in list(self.lazy_weights_in(module)):
                    stack.callback(inner.register_parameter, name, getattr(inner, name))
                    inner.register_parameter(name, _read_parameter(lazy.tensor))
            yield


def open_decoder(checkpoint: Checkpoint) -> LazyDecoder:
    """Open a checkpoint's model lazily; raises CheckpointError where its tensors do not fit its config."""
    config = load_config(checkpoint)
    with quiet(), library_errors(f"`{checkpoint.folder}` cannot be loaded"):
        with no_init_weights(), _parameters_on_meta():
            # Eager attention is the reference that other implementations are compared with.
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
            )
        model.tie_weights()
    stored = checkpoint.tensors
    if stored is None:
        stored = stored_tensors(weight_files(checkpoint.folder))
    tensors = _renamed_tensors(model, stored)
    _check_tensors(checkpoint, model, tensors)
    lazy_weights = {}
    for name, parameter in list(model.named_parameters()):
        owner, own_name = _owner_of(model, name)
        if isinstance(owner, (*LINEAR_MODULES, nn.Embedding)) and own_name == "weight":
            lazy_weights[parameter] = LazyWeight(name, tensors[name], isinstance(owner, Conv1D))
        else:
            owner.register_parameter(own_name, _read_parameter(tensors[name]))
    for name, _ in _stored_buffers(model):
        owner, own_name = _owner_of(model, name)
        setattr(owner, own_name, torch.from_numpy(tensors[name].read()))
    return LazyDecoder(model.eval(), lazy_weights)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Create parameters on the meta device; buffers, such as rotary frequencies, are computed."""
    register = nn.Module.register_parameter

    def register_shape(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        shape = None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, shape)

    nn.Module.register_parameter = register_shape  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _read_parameter(tensor: StoredTensor) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(tensor.read()), requires_grad=False)


def _owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that owns a parameter or buffer, and its name there."""
    path, _, own_name = name.rpartition(".")
    return model.get_submodule(path), own_name


def _stored_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the buffers that a checkpoint stores."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    yield from ((name, found) for name, found in model.state_dict().items() if name not in parameters)


def _renamed_tensors(model: Any, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Rename tensors to the model's names, as transformers does when it loads them."""
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
        # Saved without the LM head.
        found = {name if name in expected else prefix + name: tensor for name, tensor in found.items()}
    return found


def _check_tensors(checkpoint: Checkpoint, model: Any, tensors: Mapping[str, StoredTensor]) -> None:
    """Raise CheckpointError unless every weight of the model is there in its shape, and nothing else is."""
    shapes = {name: tuple(found.shape) for name, found in model.named_parameters()}
    shapes |= {name: tuple(found.shape) for name, found in _stored_buffers(model)}
    missing = shapes.keys() - tensors.keys()
    if missing:
        raise missing_weights(checkpoint.folder, len(missing), min(missing))
    # A tied matrix may be stored under each of its names.
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    # Some checkpoints hold buffers that the model computes itself, such as GPT-2's mask.
    buffers = {name for name, _ in model.named_buffers()}
    superfluous = {
        name
        for name in tensors.keys() - model.state_dict().keys() - buffers
        if not name.endswith(_IGNORED_SUFFIXES) and not any(re.search(pattern, name) for pattern in ignored)
    }
    if superfluous:
        raise unexpected_weights(checkpoint.folder, superfluous)
    for name, shape in shapes.items():
        check_tensor(checkpoint.folder, tensors[name], shape, STORED_AS)
