"""What makes entries of one model and layout unreadable for another."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

FORMAT = 4


@dataclass(frozen=True)
class Fingerprint:
    """Everything that stored entries depend on, besides the documents.

    model: its name, for people; weights: hash of weights and tokenizer; dtype: of keys and values; layers: the memory
    layers; window, overlap: the encoding window in tokens; format: of blobs and manifest.
    """

    model: str
    weights: str
    dtype: str
    layers: tuple[int, ...]
    window: int
    overlap: int
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """64 hexadecimal digits. The model's name is not part of it."""
        parts = {key: value for key, value in asdict(self).items() if key != "model"}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Fingerprint:
        parts = json.loads(text)
        return Fingerprint(**{**parts, "layers": tuple(parts["layers"])})

    def differences(self, other: Fingerprint) -> str:
        """In words, what differs: "layers (16, 18), not (16, 20); dtype float32, not bfloat16"."""
        mine, theirs = asdict(self), asdict(other)
        return "; ".join(
            f"{key} {_short(mine[key])}, not {_short(theirs[key])}" for key in mine if mine[key] != theirs[key]
        )


def _short(value: object) -> str:
    return value[:12] if isinstance(value, str) else str(value)
