"""MemorizingModel: a pretrained decoder that reads a memory inside its attention."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from codemem.memory.bank import Bank
from codemem.memory.banks import Memory
from codemem.memory.entries import Entries, Shapes
from codemem.memory.knn import IndexKind
from codemem.models.adapter import DEFAULT_ANGLE, Adapter, default_layers, uniform_adapter
from codemem.models.ahead import keep_plan
from codemem.models.attention import MemoryGate
from codemem.models.decoder import Decoder, TransformersDecoder
from codemem.models.encode import Reader, encode, transformers_reader
from codemem.models.llama import ROOM, LlamaDecoder, Weights
from codemem.models.low_rank import LowRank
from codemem.models.memory_layer import Reading, ReadingLayer
from codemem.models.mixture import Mixture
from codemem.models.plain import PlainModel
from codemem.models.rotary import Rotary
from codemem.models.shape import shape_of
from codemem.models.site import Site
from codemem.models.token_memory import TokenMemory
from codemem.models.tokenizer import Tokenizer
from codemem.texts import Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MemorizingModel(nn.Module):
    """A decoder whose memory layers attend, by k-nearest-neighbour search, to everything it was told to remember.

    Memorizing Transformers (Wu et al., ICLR 2022) on pretrained weights: the model given is changed in place, and
    `detach` changes it back. With an empty memory its logits are those of the model given, bit by bit.

        model = MemorizingModel(base, tokenizer)
        model.remember("def area(r): ...", path="geometry.py")
        model.generate(**tokenizer("from geometry import", return_tensors="pt"))

    base: a causal language model of transformers with rotary position embeddings, or one that `read_plain` read, of
    which transformers' is loaded when something needs it; adapter: memory layers and gates, by default those of an
    uncalibrated model; bank: the memory, by default an empty one. Raises CodememError, naming the architecture, for a
    model that memory cannot be attached to.
    """

    def __init__(
        self,
        base: PreTrainedModel | PlainModel,
        tokenizer: Tokenizer,
        adapter: Adapter | None = None,
        bank: Memory | None = None,
    ) -> None:
        super().__init__()
        self._source, self.tokenizer = base, tokenizer
        self._plain = base if isinstance(base, PlainModel) else None
        self._loading, self._attaching = threading.Lock(), threading.Lock()
        self.sites, self.state_size = _sites(base, adapter)
        layers = tuple(sorted(self.sites))
        self.adapter = adapter = adapter or uniform_adapter(layers, self.sites[layers[0]].heads)
        self.reading = Reading(k=adapter.k)
        self.gates = {
            layer: MemoryGate(
                adapter.bias[layer], adapter.temperature[layer], adapter.discount[layer], adapter.gate
            ).to(self.device)
            for layer in adapter.layers
        }
        self.gate_modules = nn.ModuleList(self.gates.values())
        self.mixture = Mixture().to(self.device)
        if adapter.mixture:
            self.mixture.load_state_dict(adapter.mixture)
        self._bank: Memory = self.new_bank() if bank is None else bank
        self._weights: Weights | None = None
        self.token_memory = TokenMemory(self.mixture, self._bank, self.reading)
        self.low_rank: LowRank | None = None
        self.bank = self._bank
        if not isinstance(base, PlainModel):
            self._attach(base)
        if adapter.low_rank:
            self.low_rank = LowRank(self.base, adapter.low_rank, self._bank, self.reading)

    @property
    def base(self) -> PreTrainedModel:
        """The model in transformers, loaded when it is first asked for; others may complete meanwhile."""
        with self._loading:
            if isinstance(self._source, PlainModel):
                base = self._source.load()
                with self._attaching:
                    self._source = base
                    self._attach(base)
            return self._source

    @property
    def dtype(self) -> torch.dtype:
        return self._source.dtype

    @property
    def device(self) -> torch.device:
        return self._source.device

    def _attach(self, base: PreTrainedModel) -> None:
        from codemem.models.interface import route_attention

        route_attention(base)
        self.token_memory.attach(base)
        self._set_handlers(base)

    def _set_handlers(self, base: PreTrainedModel) -> None:
        from codemem.models.interface import attention_modules, set_handler

        modules = attention_modules(base)
        for layer, reading in self.layers.items():
            set_handler(modules[layer], reading)

    @property
    def shapes(self) -> Shapes:
        """Memory layer -> (key/value heads, head size)."""
        return {layer: (site.kv_heads, site.d) for layer, site in self.sites.items()}

    def new_bank(self, index: IndexKind = "auto", *, capacity: int | None = None) -> Bank:
        """An empty bank for what this model remembers, on the model's device; see `Bank`."""
        return Bank(self.shapes, self.dtype, str(self.device), index, state_size=self.state_size, capacity=capacity)

    @property
    def bank(self) -> Memory:
        """The memory that is read."""
        return self._bank

    @bank.setter
    def bank(self, bank: Memory) -> None:
        with self._attaching:
            self._bank = self.token_memory.bank = bank
            if self.low_rank is not None:
                self.low_rank.bank = bank
            self.layers = {
                layer: ReadingLayer(site, self.gates[layer], bank, self.reading) for layer, site in self.sites.items()
            }
            if not isinstance(self._source, PlainModel):
                self._set_handlers(self._source)

    def detach(self) -> PreTrainedModel:
        """Take memory away again and return the model as it was."""
        from codemem.models.interface import attention_modules, remove_handler

        for layer, module in attention_modules(self.base).items():
            if layer in self.sites:
                remove_handler(module)
        self.token_memory.remove()
        if self.low_rank is not None:
            self.low_rank.remove()
        return self.base

    def decoder(self) -> Decoder:
        """An empty cache with the fastest forward pass that there is for this architecture."""
        if self._weights is None and self.low_rank is None:
            self._weights = self._own_weights()
        return TransformersDecoder(self) if self._weights is None else LlamaDecoder(self._weights, self)

    def _own_weights(self) -> Weights | None:
        """What our own forward pass computes with; None for a model that it is not for."""
        if (plain := self._plain) is not None:
            weights = Weights(plain.shape, plain.tensors, plain.rotary, plain.packs)
            if plain.packs is not None:
                weights.plan = keep_plan(weights, plain.packs, plain.directory, ROOM)
            return weights
        shape = shape_of(self.base.config.to_dict())
        if shape is None:
            return None
        embedding = self.base.model.rotary_emb
        return Weights(shape, self.base.state_dict(), Rotary(embedding.inv_freq, embedding.attention_scaling))

    def remember(self, text: str, path: str = "memory") -> int:
        """Add a text to memory, in place of what was remembered under this path. Returns the number of its entries."""
        (entries,) = self.encode([Text(path, text)])
        self.bank.add(path, entries)
        return len(entries)

    def warm(self) -> None:
        """Load what `encode` needs now, so that the first text does not wait for it."""
        self._reader()

    def _reader(self) -> Reader:
        """What `encode` reads with: our own forward pass where functions of C compute it, else transformers'."""
        decoder = self.decoder()
        if isinstance(decoder, LlamaDecoder) and decoder.weights.compiled:
            own = decoder
            return Reader(self.state_size, self.dtype, lambda batch: (own.record(ids, self.sites) for ids in batch))
        return transformers_reader(self.base, self.sites)

    def encode(self, texts: Sequence[Text], **options: Any) -> list[Entries]:
        """The entries of each text, as the base model reads it without memory; options: those of `encode.encode`, which
        says what is raised."""
        with self.reads(attention=False, tokens=False):
            return encode(self._reader(), self.tokenizer, self.sites, texts, **options)

    def forget(self, path: str) -> None:
        """Remove what was remembered under a path."""
        self.bank.drop(path)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's forward pass; its memory layers read the bank, and where token memory does too, its logits
        are log-probabilities of the mixture."""
        return self.base(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Tensor:
        """transformers' `generate`; the last positions of the prompt and every generated token read the bank."""
        ids: Tensor = self.base.generate(*args, **kwargs)  # type: ignore[operator]
        return ids

    @contextmanager
    def reads(
        self, *, attention: bool = True, tokens: bool = True, last: int | None = 64, traced: bool = False
    ) -> Iterator[Reading]:
        """Within this context, read memory like this; see `Reading`. Yields it; its traces are empty lists if `traced`
        and else None."""
        before = dict(vars(self.reading))
        now = Reading(self.reading.k, attention=attention, tokens=tokens, last=last)
        if traced:
            now.trace, now.token_trace = [], []
        vars(self.reading).update(vars(now))
        try:
            yield self.reading
        finally:
            vars(self.reading).update(before)


def _sites(base: PreTrainedModel | PlainModel, adapter: Adapter | None) -> tuple[dict[int, Site], int]:
    """The sites of an adapter's memory layers, or of those of a model that nobody has calibrated, and the size of a
    hidden state."""
    angle = adapter.angle if adapter else DEFAULT_ANGLE
    if isinstance(base, PlainModel):
        layers = adapter.layers if adapter else default_layers(base.shape.layers)
        return base.sites(layers, angle), base.shape.size
    from codemem.models.interface import attention_modules
    from codemem.models.probe import find_sites

    layers = adapter.layers if adapter else default_layers(len(attention_modules(base)))
    return find_sites(base, layers, angle), base.config.get_text_config().hidden_size
