"""The records that functions of C take, as their sources describe them."""

from __future__ import annotations

from ctypes import Structure, c_double, c_float, c_long, c_void_p


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
