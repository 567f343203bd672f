"""The seam between transformers and memory: handlers for single attention layers, without a fork of any modelling file.

transformers calls the function registered under the configured name of its AttentionInterface for every attention
layer, with queries and keys already rotated. The functions registered here pass each call to the layer's handler, if it
has one, together with the cosines and sines that rotated it, and otherwise to the implementation that the model had
before.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from codemem.errors import CodememError

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]
_PREFIX = "codemem_"


@dataclass(frozen=True)
class Call:
    """One call of an attention layer.

    base: the implementation that the model had before; query: [batch, heads, T, d]; key, value: [batch, kv_heads, S,
    d]; query and key rotated by rotary: cosines and sines [batch, T, r]; mask: [batch, 1 or heads, T, S] or None;
    kwargs: what else that implementation takes, "scaling" among it.
    """

    base: AttentionFunction
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    rotary: tuple[Tensor, Tensor]
    kwargs: dict[str, Any]

    def plain(self) -> tuple[Tensor, Tensor | None]:
        """What the layer gives by itself: the output [batch, T, heads, d], and the weights or None."""
        return self.base(self.module, self.query, self.key, self.value, self.mask, **self.kwargs)


# What an attention layer calls in place of its implementation. Returns what `Call.plain` returns.
Handler = Callable[[Call], tuple[Tensor, Tensor | None]]


class StopForwardError(Exception):
    """Raised by a handler that has seen all it needs: the layers above are not computed."""


@dataclass
class _Attached:
    """An attention layer's handler, the hook that sees the layer's arguments, and from them the cosines and sines of
    the pass that is running."""

    handler: Handler
    hook: RemovableHandle
    rotary: Any = None


_attached: WeakKeyDictionary[nn.Module, _Attached] = WeakKeyDictionary()


def _eager(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    result: tuple[Tensor, Tensor | None] = sys.modules[type(module).__module__].eager_attention_forward(
        module, *args, **kwargs
    )
    return result


def _dispatching(base: AttentionFunction) -> AttentionFunction:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        attached = _attached.get(module)
        if attached is None:
            return base(module, query, key, value, mask, **kwargs)
        return attached.handler(Call(base, module, query, key, value, mask, attached.rotary, kwargs))

    return attend


for _name, _function in (("sdpa", ALL_ATTENTION_FUNCTIONS["sdpa"]), ("eager", _eager)):
    ALL_ATTENTION_FUNCTIONS.register(_PREFIX + _name, _dispatching(_function))
    ALL_MASK_ATTENTION_FUNCTIONS.register(_PREFIX + _name, ALL_MASK_ATTENTION_FUNCTIONS[_name])


def attention_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """The attention module of every decoder layer, by layer number."""
    numbered = (
        (getattr(module, "layer_idx", None), module)
        for module in model.modules()
        if "Attention" in type(module).__name__
    )
    return {number: module for number, module in numbered if isinstance(number, int)}


def route_attention(model: PreTrainedModel) -> None:
    """Make the model's attention layers ask for a handler. Raises CodememError where its architecture cannot."""
    name = model.config._attn_implementation or "sdpa"
    if name.startswith(_PREFIX):
        return
    if not model._can_set_attn_implementation():
        raise CodememError(
            f"{type(model).__name__} does not call transformers' attention interface, so no memory attaches to it",
            "use a Llama, Qwen, Mistral, StarCoder2, Gemma, Phi-3 or GPT-NeoX style model",
        )
    # sdpa cannot cap scores, and flash attention neither returns nor accepts what a joint softmax needs.
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    model.set_attn_implementation(_PREFIX + ("eager" if capped or name == "eager" else "sdpa"))


def set_handler(module: nn.Module, handler: Handler) -> None:
    """Give one attention layer a handler, replacing an earlier one."""
    signature = inspect.signature(type(module).forward)

    def note_rotary(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        embeddings = kwargs.get("position_embeddings")
        if embeddings is None and args:
            embeddings = signature.bind_partial(module, *args).arguments.get("position_embeddings")
        _attached[module].rotary = embeddings

    remove_handler(module)
    _attached[module] = _Attached(handler, module.register_forward_pre_hook(note_rotary, with_kwargs=True))


def remove_handler(module: nn.Module) -> None:
    """Give an attention layer its own implementation back."""
    if attached := _attached.pop(module, None):
        attached.hook.remove()


@contextmanager
def handlers(modules: dict[int, nn.Module], make: Callable[[int], Handler]) -> Iterator[None]:
    """Give each of the modules a handler of its own for a while, then restore what was there."""
    before = {layer: _attached.get(module) for layer, module in modules.items()}
    for layer, module in modules.items():
        set_handler(module, make(layer))
    try:
        yield
    finally:
        for layer, module in modules.items():
            if (earlier := before[layer]) is None:
                remove_handler(module)
            else:
                set_handler(module, earlier.handler)
