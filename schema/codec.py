"""The codec of stored attention: encode and decode pairs, each with its greatest error, and the codecs of chunks as Zarr names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from .record import require

PROBABILITY_SCALE: Final = 2.0**-15
"""Stored float16 = P * 2**15: exact to scale by, and as far from fp16's subnormals as [0, 1] goes."""
MANTISSA: Final = 10
"""Mantissa bits of float16."""

_LITTLE: Final = {"name": "bytes", "configuration": {"endian": "little"}}
_INFINITY: Final = 0x7C00
"""Bits of float16's infinity; above are NaN and all that is negative."""
_REBIAS: Final = 2.0**112
"""Moving float16's bits into float32's places leaves the exponent 112 too low."""


@dataclass(frozen=True, slots=True)
class Codec:
    """How bytes are packed: blosc with bitshuffle, then crc32c."""

    name: Literal["lz4", "zstd"] = "lz4"
    level: int = 5
    keep_bits: int = 10
    """Mantissa bits that stored probabilities were rounded to before packing; 10 is all that float16 has."""

    def __post_init__(self) -> None:
        bits = self.keep_bits
        whole = isinstance(bits, int) and not isinstance(bits, bool) and 1 <= bits <= 10
        require(whole, f"keep_bits {bits!r}; float16 has mantissa bits to keep from 1 to 10")
        require(self.name in ("lz4", "zstd"), f"codec {self.name!r}; codecs are lz4, zstd")
        require(isinstance(self.level, int) and 0 <= self.level <= 9, f"codec level {self.level}; levels are 0 to 9")


def encode_probability(probability: NDArray[Any]) -> NDArray[np.float16]:
    """Probabilities to stored float16.

    Range    [0, 1] -> [0, 32768]
    Error    relative 2**-11 for P >= 2**-29, absolute 2**-40 below; 0 stays 0, NaN (absent) stays NaN
    """
    return (np.asarray(probability, dtype=np.float32) * np.float32(1 / PROBABILITY_SCALE)).astype(np.float16)


def decode_probability(stored: NDArray[np.float16]) -> NDArray[np.float32]:
    """Stored float16 to float32 probabilities; exact.

    Range    [0, 32768] -> [0, 1]; NaN stays NaN
    """
    if stored.view(np.uint16).max(initial=0) >= _INFINITY:
        return stored.astype(np.float32) * np.float32(PROBABILITY_SCALE)
    out = np.empty_like(stored, np.float32)
    out *= np.float32(decode_bits(stored, out))
    return out


def decode_bits(stored: NDArray[np.float16], out: NDArray[np.float32]) -> float:
    """Fill `out` with numbers proportional to the stored probabilities, and return the factor that makes them P.

    Several times faster than a cast, and exact for finite P >= 0, subnormals too. Fold the factor into weights. NaN does
    not survive: use it on blocks that are known to be present.

    Dims     any -> the same; `out` is contiguous float32
    """
    bits = out.view(np.uint32)
    np.left_shift(stored.view(np.uint16), 13, out=bits, dtype=np.uint32, casting="unsafe")
    return _REBIAS * PROBABILITY_SCALE


def factor_dtype(model_dtype: str) -> str:
    """The dtype that keeps q and k of `model_dtype` exactly: float16 stays, bfloat16 and float32 go as float32."""
    return "float16" if model_dtype == "float16" else "float32"


def chunk_codecs(codec: Codec | None, itemsize: int, order: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """The codecs of a chunk in Zarr's metadata: axes brought into an order, bytes, packing if there is any, a checksum."""
    found: list[dict[str, Any]] = [] if order is None else [{"name": "transpose", "configuration": {"order": list(order)}}]
    found.append(_LITTLE if itemsize > 1 else {"name": "bytes"})
    if codec is not None:
        settings = {"typesize": itemsize, "cname": codec.name, "clevel": codec.level, "shuffle": "bitshuffle", "blocksize": 0}
        found.append({"name": "blosc", "configuration": settings})
    return [*found, {"name": "crc32c"}]


def shard_codec(chunks: tuple[int, ...], inner: list[dict[str, Any]]) -> dict[str, Any]:
    """The codec of a shard in Zarr's metadata: its chunks, then an index with a checksum."""
    index = [_LITTLE, {"name": "crc32c"}]
    settings = {"chunk_shape": list(chunks), "codecs": inner, "index_codecs": index, "index_location": "end"}
    return {"name": "sharding_indexed", "configuration": settings}
