"""The records that functions of C take, as their sources describe them."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Array, Structure, c_double, c_float, c_long, c_void_p

import numpy as np

# Positions that a pass reads at once, at most: so many rows stay in the processor's cache.
TOGETHER = 64
GROUP = 32  # numbers of a row or a matrix that have one scale, see matrix.h


class MatrixRecord(Structure):
    """`Matrix` of matrix.h."""

    _fields_ = (
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_long),
        ("outputs", c_long),
        ("halves", c_long),
    )


def matrix_record(shape: Sequence[int], codes: int, scales: int, bias: int | None = None) -> MatrixRecord:
    """Of a tiled matrix, whose codes [halves, tiles, groups, ., outputs of a tile, .] and scales stand there."""
    halves, tiles, groups, _, outputs, _ = shape
    return MatrixRecord(codes, scales, bias, groups * GROUP, tiles * outputs, halves)


class LayerRecord(Structure):
    """`Layer` of layer.c."""

    _fields_ = (
        *((norm, c_void_p) for norm in ("norm", "query_norm", "key_norm", "mlp_norm")),
        *((matrix, MatrixRecord) for matrix in ("qkv", "output", "gate_up", "down")),
        ("keys", c_void_p),
        ("values", c_void_p),
    )


class PassRecord(Structure):
    """`Pass` of layer.c."""

    _fields_ = (
        *((size, c_long) for size in ("n", "start", "size", "kv_heads", "stride")),
        ("epsilon", c_float),
        ("scaling", c_float),
        *((room, c_void_p) for room in ("cos", "sin", "x", "placeless", "local", "mass", "rows", "wide")),
        ("numbers", c_void_p),
        ("steps", c_void_p),
    )


class Rooms:
    """What a pass over at most TOGETHER positions leaves, and room for what it computes; see layer.c.

    layers: those it is over, of which all have matrices of the same sizes; size: of a hidden state; heads: query heads,
    of d numbers each.
    """

    def __init__(self, layers: Array[LayerRecord], size: int, heads: int, d: int) -> None:
        matrices = layers[0].qkv, layers[0].output, layers[0].gate_up, layers[0].down
        inputs, outputs = (max(getattr(each, side) for each in matrices) for side in ("inputs", "outputs"))
        self.size = size
        self.x, self.placeless, self.local = (_room(*each) for each in ((size,), (heads, d), (heads, d)))
        self.mass, self.rows, self.wide = (_room(each) for each in (heads, inputs, outputs))
        self.numbers, self.steps = _room(inputs, dtype=np.int8), _room(inputs // GROUP, 2)

    def record(self, cos: int, sin: int, kv_heads: int, stride: int, epsilon: float) -> PassRecord:
        """cos, sin: where those of all positions stand; stride: numbers between two heads of the cache. Who calls
        holds the rooms."""
        rooms = self.x, self.placeless, self.local, self.mass, self.rows, self.wide, self.numbers, self.steps
        scaling = self.placeless.shape[-1] ** -0.5
        return PassRecord(
            0, 0, self.size, kv_heads, stride, epsilon, scaling, cos, sin, *(x.ctypes.data for x in rooms)
        )


def _room(*sizes: int, dtype: type[np.generic] = np.float32) -> np.ndarray:
    return np.zeros((TOGETHER, *sizes), dtype=dtype)


class FocusRecord(Structure):
    """`Focus` of focus.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("codes", "steps", "pairs", "rows")),
        ("n", c_long),
        ("k", c_long),
        *((name, c_void_p) for name in ("cos", "sin", "temperature", "bias", "discount", "found", "weights")),
        ("seconds", c_double),
    )


class FileRecord(Structure):
    """`File` of cells.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("centroids", "halves", "cells")),
        ("count", c_long),
        ("probed", c_long),
        *((name, c_void_p) for name in ("low", "step", "behind")),
        ("settled", c_long),
        ("more", c_long),
    )


class StatesRecord(Structure):
    """`States` of states.c."""

    _fields_ = (*((name, c_void_p) for name in ("starts", "codes", "scales")), ("count", c_long))


class IndexRecord(Structure):
    """`Index` of states.c."""

    _fields_ = (
        ("file", FileRecord),
        ("size", c_long),
        ("basis", c_void_p),
        ("centre", c_void_p),
        ("states", StatesRecord),
    )
