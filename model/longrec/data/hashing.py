"""Stable hashes: of integers, of arrays, and of sets of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1 = np.uint64(30)
_SHIFT_2 = np.uint64(27)
_SHIFT_3 = np.uint64(31)


def splitmix64(values: npt.NDArray[Any]) -> UInt64:
    """Return one well-mixed uint64 per 64-bit value, the same on every machine.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
    """
    unsigned: UInt64 = np.ascontiguousarray(values).view(np.uint64)
    mixed = unsigned + _INCREMENT
    mixed ^= mixed >> _SHIFT_1
    mixed *= _MULTIPLIER_1
    mixed ^= mixed >> _SHIFT_2
    mixed *= _MULTIPLIER_2
    mixed ^= mixed >> _SHIFT_3
    return mixed


def fingerprint_arrays(prefix: str, arrays: Iterable[tuple[str, npt.NDArray[Any]]]) -> str:
    """Return the first 16 hex digits of the SHA-256 of a text and labelled arrays.

    Args:
        prefix: text that is hashed first.
        arrays: pairs of a label and an array, in a fixed order; dtype and shape count too.
    """
    digest = hashlib.sha256(prefix.encode())
    for label, array in arrays:
        header = f"{label}{array.dtype}:{array.shape}"
        digest.update(header.encode())
        if array.size:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def fingerprint_files(hashes: Mapping[str, str]) -> str:
    """Return 16 hex digits that identify files by path and content.

    Args:
        hashes: SHA-256 of each file, by relative path.
    """
    text = repr(sorted(hashes.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
