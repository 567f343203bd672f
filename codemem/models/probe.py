"""Finding out, by running it, whether and how memory can be attached to a decoder.

One token is read twice, at position 0, where a rotary embedding turns nothing, and at the memory angle D. What the
attention layers receive tells the number of heads, the head size, and the cosines and sines of D, for every layer its
own (Gemma 3 has two rotary embeddings). And it proves the convention: the query at D must be the query at 0 turned by
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from codemem.errors import CodememError
from codemem.models.interface import (
    Call,
    StopForwardError,
    attention_modules,
    handlers,
    route_attention,
)
from codemem.models.rotary import rotate, unrotate
from codemem.models.site import Site, length_of, site

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUPPORTED = "use a Llama, Qwen, Mistral, StarCoder2, Gemma, Phi-3 or GPT-NeoX style model"


class _Probe:
    """A handler that notes what one layer receives."""

    def __init__(self, seen: dict[int, Call], layer: int, last: bool) -> None:
        self.seen, self.layer, self.last = seen, layer, last

    def __call__(self, call: Call) -> tuple[Tensor, Tensor | None]:
        self.seen[self.layer] = call
        if self.last:
            raise StopForwardError
        return call.plain()


@torch.no_grad()
def find_sites(model: PreTrainedModel, layers: tuple[int, ...], angle: int) -> dict[int, Site]:
    """The sites of the layers given. Raises CodememError, naming architecture and cause, where there is none."""
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise CodememError(f"{name} is an encoder-decoder; memory attaches to decoders only", SUPPORTED)
    route_attention(model)
    modules = attention_modules(model)
    if not modules:
        raise CodememError(f"{name} has no attention layers", SUPPORTED)
    if absent := [layer for layer in layers if layer not in modules]:
        raise CodememError(
            f"{name} has no attention layer {absent[0]}; its layers are 0 to {len(modules) - 1}", SUPPORTED
        )
    seen: dict[int, Call] = {}
    chosen = {layer: modules[layer] for layer in sorted(layers)}
    # The two batch rows hold the same token, so that all that differs between them is the position.
    token = torch.full((2, 1), min(100, model.config.get_text_config().vocab_size - 1), device=model.device)
    positions = torch.tensor([[0], [angle]], device=model.device)
    with handlers(chosen, lambda layer: _Probe(seen, layer, layer == max(chosen))):
        try:
            model(input_ids=token, position_ids=positions, use_cache=False)
        except StopForwardError:
            pass
        except (TypeError, IndexError) as error:  # no position ids, or a table of positions with an end
            raise CodememError(f"{name} has no rotary positions up to {angle}: {error}", SUPPORTED) from error
    return {layer: _site(name, layer, seen.get(layer)) for layer in chosen}


def _site(name: str, layer: int, seen: Call | None) -> Site:
    if seen is None:
        raise CodememError(f"{name} does not run layer {layer} through transformers' attention interface", SUPPORTED)
    query, key, value = seen.query, seen.key, seen.value
    if seen.rotary is None:
        raise CodememError(f"{name} has no rotary position embedding in layer {layer}", SUPPORTED)
    if seen.kwargs.get("s_aux") is not None:
        raise CodememError(
            f"{name} has learned attention sinks in layer {layer}, which memory attention does not know", SUPPORTED
        )
    if key.shape[-1] != value.shape[-1] or query.shape[-1] != key.shape[-1]:
        raise CodememError(f"{name} has queries, keys and values of different sizes in layer {layer}", SUPPORTED)
    cos, sin = (x.expand(2, -1, -1)[1, 0].float() for x in seen.rotary)
    scale = length_of(cos, sin)
    for x in (query, key):
        start, turned = x[0].float(), x[1].float()
        expected = rotate(unrotate(start, torch.ones_like(cos) * scale, torch.zeros_like(sin)), cos, sin)
        if (expected - turned).abs().max() > 0.05 * turned.abs().max():
            raise CodememError(f"{name} does not rotate halves of its heads in layer {layer}", SUPPORTED)
    return site(layer, query.shape[1], key.shape[1], query.shape[-1], cos, sin)
