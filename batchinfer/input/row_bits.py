"""Which rows of a file are selected: a bit a row, with the count before a row and the place of the n-th row. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

_WORD = 64
"""Rows whose selected ones are counted together. Fewer, and the counts take more memory than the bits."""

_COUNTS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


class RowBits:
    """The selected rows of one file. Rows are numbered in the file, from 0."""

    def __init__(self, bits: npt.NDArray[np.uint8], rows: int) -> None:
        """`bits` as np.packbits packs them; behind the last row they are 0."""
        self.rows = rows
        self._bits = np.zeros(-(-rows // _WORD) * _WORD // 8, dtype=np.uint8)
        self._bits[: len(bits)] = bits
        counts = _COUNTS[self._bits].reshape(-1, _WORD // 8).sum(axis=1, dtype=np.int64)
        self._before = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])

    @property
    def count(self) -> int:
        return int(self._before[-1])

    def mask(self, start: int, end: int) -> Mask:
        """For each row from `start` to `end`, whether it is selected."""
        first = start // 8
        bits = np.unpackbits(self._bits[first : -(-end // 8)])
        return bits[start - first * 8 : end - first * 8].astype(bool)

    def before(self, row: int) -> int:
        """How many selected rows lie before `row`."""
        word = row // _WORD
        return int(self._before[word]) + (int(self.mask(word * _WORD, row).sum()) if row % _WORD else 0)

    def counts(self, bounds: Rows) -> Rows:
        """How many selected rows lie between each bound and the next."""
        words, rest = np.divmod(bounds, _WORD)
        bits = np.concatenate([self._bits, np.zeros(_WORD // 8, np.uint8)]).reshape(-1, _WORD // 8)[words]
        inside = np.unpackbits(bits, axis=1) * (np.arange(_WORD) < rest[:, None])
        return np.diff(self._before[words] + inside.sum(axis=1, dtype=np.int64))

    def nth(self, number: int) -> int:
        """The row that `number` selected rows lie before."""
        word = int(np.searchsorted(self._before, number, side="right")) - 1
        inside = np.flatnonzero(self.mask(word * _WORD, min(self.rows, (word + 1) * _WORD)))
        return word * _WORD + int(inside[number - int(self._before[word])])


class BitsWriter:
    """Gathers masks of the rows of one file, front to back."""

    def __init__(self) -> None:
        self._packed: list[npt.NDArray[np.uint8]] = []
        self._open = np.zeros(0, dtype=bool)
        self.rows = 0

    def add(self, mask: Mask) -> None:
        bits = np.concatenate([self._open, mask])
        whole = len(bits) // 8 * 8
        self._packed.append(np.packbits(bits[:whole]))
        self._open = bits[whole:]
        self.rows += len(mask)

    def done(self, rows: int) -> RowBits:
        """The bits of a file of `rows` rows; those that were not added are not selected."""
        return RowBits(np.concatenate([*self._packed, np.packbits(self._open)]), rows)


def all_rows(rows: int) -> RowBits:
    """Every row of a file."""
    return first_rows(rows, rows)


def first_rows(selected: int, rows: int) -> RowBits:
    """The first `selected` rows of a file of `rows` rows."""
    bits = np.full(-(-selected // 8), 255, dtype=np.uint8)
    if selected % 8:
        bits[-1] = 256 - (1 << (8 - selected % 8))
    return RowBits(bits, rows)


_AT_ONCE = 2**20
"""Rows that are looked at together: their numbers take 8 MB."""


def _numbers(files: Iterable[RowBits]) -> Iterator[tuple[int, int, Rows]]:
    """(file, first row, numbers in the whole input of the selected rows) of stretches of rows, in order."""
    place = 0
    for index, bits in enumerate(files):
        for start in range(0, bits.rows, _AT_ONCE):
            end = min(bits.rows, start + _AT_ONCE)
            yield index, start, place + start + np.flatnonzero(bits.mask(start, end))
        place += bits.rows


def sampled(files: list[RowBits], rows: int, seed: int) -> list[RowBits]:
    """Of the selected rows, `rows` random ones: those with the least hashes of their numbers in the whole input.

    So it needs one number a sampled row of memory, no release of NumPy draws another sample, and a sample of more rows
    holds that of fewer.
    """
    least = np.zeros(0, dtype=np.uint64)
    for _, _, numbers in _numbers(files):
        least = np.concatenate([least, _hashes(numbers, seed)])
        if len(least) > rows:
            least = np.partition(least, rows - 1)[:rows]
    if sum(bits.count for bits in files) <= rows:
        return files
    most = least.max()
    writers = [BitsWriter() for _ in files]
    place = np.cumsum([0, *(bits.rows for bits in files)])
    for index, start, numbers in _numbers(files):
        mask = np.zeros(min(files[index].rows - start, _AT_ONCE), dtype=bool)
        mask[numbers[_hashes(numbers, seed) <= most] - int(place[index]) - start] = True
        writers[index].add(mask)
    return [writer.done(bits.rows) for writer, bits in zip(writers, files, strict=True)]


def _hashes(numbers: Rows, seed: int) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) of each number: no two numbers have the same hash."""
    with np.errstate(over="ignore"):
        x = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + _mixed(
            np.array([seed], np.uint64)
        )
        return _mixed(x)


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def limited(files: list[RowBits], rows: int) -> list[RowBits]:
    """Of the selected rows, the first `rows`."""
    kept = []
    for bits in files:
        if bits.count > rows:
            end = bits.nth(rows - 1) + 1 if rows else 0
            bits = RowBits(np.packbits(bits.mask(0, end)), bits.rows)
        kept.append(bits)
        rows = max(0, rows - bits.count)
    return kept
