"""Low-rank updates of the query and output projections of attention (LoRA, Hu et al., ICLR 2022, section 4).

    projection(x) + up . down . x            down: [rank, inputs], up: [outputs, rank]

Keys and values stay those of the frozen model, which wrote the memory. Updates act from the first memory layer on, and
only at positions that read attention memory: an empty memory leaves the model as it was, and what stands in a prompt
before those positions is computed the same way with updates and without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from codemem.errors import CodememError
from codemem.memory.banks import Memory
from codemem.models.memory_layer import Reading

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# As transformers names them in models whose queries, keys and values are not one matrix.
PROJECTIONS = ("q_proj", "o_proj")


class LowRank(nn.Module):
    """The updates of a decoder, hooked to it until `remove`. `bank` may be replaced.

    tensors: "LAYER.PROJECTION.down" and "LAYER.PROJECTION.up" -> float32, as `untrained` makes them. Raises
    CodememError where the model has no such projections.
    """

    def __init__(self, base: PreTrainedModel, tensors: dict[str, Tensor], bank: Memory, reading: Reading) -> None:
        super().__init__()
        self.bank, self.reading = bank, reading
        # Names of parameters have no dots.
        self.updates = nn.ParameterDict(
            {name.replace(".", "/"): nn.Parameter(tensor.to(base.device)) for name, tensor in tensors.items()}
        )
        names = sorted({name.rpartition(".")[0] for name in tensors})
        projections = _projections(base, min(int(name.partition(".")[0]) for name in names))
        if unknown := [name for name in names if name not in projections]:
            raise CodememError(f"{type(base).__name__} has no projection {unknown[0]}", "codemem adapt MODEL")
        self._hooks = [projections[name].register_forward_hook(self._hook(name)) for name in names]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def tensors(self) -> dict[str, Tensor]:
        """The updates by name, float32, on the CPU."""
        return {name.replace("/", "."): update.detach().cpu().clone() for name, update in self.updates.items()}

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        down, up = (self.updates[f"{name.replace('.', '/')}/{side}"] for side in ("down", "up"))

        def update(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            length = output.shape[1]
            rows = self.reading.rows(length)
            if not self.reading.attention or not rows or not len(self.bank):
                return output
            x = args[0][:, length - rows :]
            added = x @ down.to(x.dtype).T @ up.to(x.dtype).T
            return torch.cat((output[:, : length - rows], output[:, length - rows :] + added), dim=1)

        return update


def untrained(base: PreTrainedModel, first: int, rank: int, seed: int) -> dict[str, Tensor]:
    """Updates of all layers from `first` on that change nothing yet, for `LowRank`.

    Raises CodememError where queries are not projected by a matrix of their own.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, projection in _projections(base, first).items():
        tensors[f"{name}.down"] = torch.randn(rank, projection.in_features, generator=generator)
        tensors[f"{name}.down"] *= projection.in_features**-0.5
        tensors[f"{name}.up"] = torch.zeros(projection.out_features, rank)
    return tensors


def _projections(base: PreTrainedModel, first: int) -> dict[str, nn.Linear]:
    """ "LAYER.PROJECTION" -> module, of all layers from `first` on."""
    from codemem.models.interface import attention_modules

    found = {}
    for layer, attention in sorted(attention_modules(base).items()):
        for name in PROJECTIONS if layer >= first else ():
            projection = getattr(attention, name, None)
            if not isinstance(projection, nn.Linear):
                raise CodememError(
                    f"{type(base).__name__} has no {name} of its own, which low-rank updates need",
                    "adapt it without them: codemem adapt MODEL",
                )
            found[f"{layer}.{name}"] = projection
    return found
