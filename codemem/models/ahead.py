"""Reading a prompt before PyTorch is there.

To import PyTorch takes longer than to read a prompt, and occupies one processor. What functions of C read a prompt with
stands in files: packed weights, the embedding, and a few small tensors, which a process that has PyTorch writes beside
the packed weights with what else it knows, the plan. One that has a plan maps these files, and a thread reads the
prompt while PyTorch is imported. The cache that it leaves is that of `LlamaDecoder`, the same bit by bit.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from ctypes import byref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from codemem.cache import cache_folder
from codemem.errors import CodememError
from codemem.models.checkpoint import Stored, stored_in, weight_files, weights_hash
from codemem.native.library import opened, sources, threads
from codemem.native.records import TOGETHER, LayerRecord, MatrixRecord, Rooms, matrix_record

if TYPE_CHECKING:
    from codemem.models.llama import Weights

_EMBEDDING = "model.embed_tokens.weight"
_NORMS = ("norm", "query_norm", "key_norm", "mlp_norm")
_MATRICES = ("qkv", "output", "gate_up", "down")
_PLAN = "plan"  # its name among what the file says of itself


@dataclass(frozen=True)
class Plan:
    """description: what the weights' own process would write of them, JSON; small: the tensors beside it."""

    description: str
    small: Stored


def plan_path(weights: str) -> Path:
    """Where the plan for the model with this hash is kept."""
    return cache_folder("packed") / f"{weights[:20]}.plan.safetensors"


def find_plan(directory: Path) -> Plan | None:
    """The plan for the model in a directory; None where there is none, or it is of another version of ours."""
    with suppress(OSError, ValueError, KeyError, CodememError):
        stored = stored_in(plan_path(weights_hash(directory)))
        if stored is not None and json.loads(stored.says[_PLAN])["sources"] == sources():
            return Plan(stored.says[_PLAN], stored)
    return None


def keep_plan(weights: Weights, packs: Path, directory: Path, room: int) -> str | None:
    """Write the plan for these weights, which are packed in the file `packs`, if it is not there. directory: that of
    the model; room: positions that are read by it, at most. Returns its description; None where functions of C do not
    read these weights, or their file has another dtype."""
    from codemem.models.compiled import functions_for
    from codemem.tensor_files import write_tensors

    stored = map(stored_in, weight_files(directory))
    files = (each.path for each in stored if each is not None and each.dtypes.get(_EMBEDDING) == "BF16")
    if not weights.compiled or (embedding := next(files, None)) is None:
        return None
    openmp, file = threads(), plan_path(packs.name)
    known = {
        "sources": sources(),
        "functions": functions_for(weights)._name,
        "openmp": openmp and str(openmp),
        "packs": str(packs),
        "embedding": str(embedding),
        "size": weights.embedding.shape[1],
        "layers": len(weights.layers),
        "heads": weights.heads,
        "kv_heads": weights.kv_heads,
        "d": weights.d,
        "epsilon": weights.epsilon,
        "room": room,
    }
    description = json.dumps(known)
    if (kept := stored_in(file)) is None or kept.says.get(_PLAN) != description:
        small = dict(zip(("cos", "sin"), (turn.float() for turn in weights.turns(room)), strict=True))
        for number, layer in enumerate(weights.layers):
            norms = {name: norm.weight for name in _NORMS if (norm := getattr(layer, name)) is not None}
            biases = {name: bias for name in _MATRICES if (bias := getattr(layer, name).bias) is not None}
            small |= {f"{number}.{name}": tensor.clone() for name, tensor in (norms | biases).items()}
        with suppress(CodememError):  # then a later process tries again
            write_tensors(file, small, {_PLAN: description})
    return description


class Ahead:
    """Tokens that are read from now on, in a thread of their own. Raises OSError, KeyError or ValueError where the
    plan's files are not as it says, or a token is not the model's.

    ids: the tokens, no more than the plan has room for; keys, values: the cache [layers, kv_heads, room, d] of bf16, as
    uint16.
    """

    def __init__(self, plan: Plan, ids: Sequence[int]) -> None:
        known = json.loads(plan.description)
        self.description, self.ids = plan.description, list(ids[: known["room"]])
        self._functions = opened("layer", Path(known["functions"]), known["openmp"] and Path(known["openmp"]))
        kv_heads, d = known["kv_heads"], known["d"]
        shape = known["layers"], kv_heads, known["room"], d
        self.keys, self.values = np.zeros(shape, np.uint16), np.zeros(shape, np.uint16)
        small = _Mapped(plan.small)
        packs, whole = (_Mapped(_whole(Path(known[name]))) for name in ("packs", "embedding"))
        self._table = whole.at(_EMBEDDING)
        if max(self.ids, default=0) >= whole.shape(_EMBEDDING)[0]:
            raise ValueError(f"{known['embedding']} has no token {max(self.ids)}")
        self._layers = (LayerRecord * known["layers"])()
        for number, layer in enumerate(self._layers):
            for name in _NORMS:
                setattr(layer, name, small.find(f"{number}.{name}"))
            for place, name in enumerate(_MATRICES, len(_MATRICES) * number):
                setattr(layer, name, _matrix(packs, place, small.find(f"{number}.{name}")))
            layer.keys, layer.values = (part[number].ctypes.data for part in (self.keys, self.values))
        rooms = Rooms(self._layers, known["size"], known["heads"], d)
        turning = small.at("cos"), small.at("sin")
        self._pass = rooms.record(*turning, kv_heads, known["room"] * d, known["epsilon"])
        self._held = rooms, small, packs, whole
        self._whole = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def done(self) -> bool:
        """Wait until the tokens are read; whether they were."""
        self._thread.join()
        return self._whole

    def _read(self) -> None:
        functions, record = self._functions, self._pass
        with suppress(AttributeError):  # of functions that know no threads
            functions.omp_set_num_threads(max(1, (os.cpu_count() or 1) - 1))
        tokens = np.array(self.ids, dtype=np.int64)
        for start in range(0, len(tokens), TOGETHER):
            piece = tokens[start : start + TOGETHER]
            record.n, record.start = len(piece), start
            functions.embed(byref(record), self._table, piece.ctypes.data)
            functions.layers(self._layers, len(self._layers), byref(record), None)
        self._whole = True


class _Mapped:
    """The tensors of a file, mapped into memory."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        with stored.path.open("rb") as file:
            self._bytes = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)

    def at(self, name: str) -> int:
        """Where a tensor stands. Raises KeyError for one that is not there."""
        return int(self._bytes.ctypes.data) + self._stored.offsets[name]

    def find(self, name: str) -> int | None:
        """The same, None for one that is not there."""
        return self.at(name) if name in self._stored.offsets else None

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored.shapes[name]


def _matrix(packs: _Mapped, number: int, bias: int | None) -> MatrixRecord:
    """One that is packed as matrix.h has it."""
    codes, scales = (packs.at(f"{number}.{name}") for name in ("codes", "scales"))
    return matrix_record(packs.shape(f"{number}.codes"), codes, scales, bias)


def _whole(path: Path) -> Stored:
    stored = stored_in(path)
    if stored is None:
        raise ValueError(f"{path} is damaged")
    return stored
