"""Many lines of metrics at once, as columns: rows that hold the same keys in the same order are read together.

What is written in any other way than ours is read as JSON, which takes a few times as long.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from sparsetrain.track.jsonl import parsed

LONGEST = 26  # characters of a number
DIGITS = 16  # of them that are read, in most
LOWER = 32  # the bit of small letters
LAYOUTS = 12  # that are looked for among rows of as many keys
STEP = "train/step"
COLON, QUOTE, COMMA, NEWLINE, MINUS, BLANK, OPEN, CLOSE, POINT, EXPONENT = (ord(each) for each in ':",\n- {}.e')
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """`values`: of each key, a number a row, not a number where a row lacks it. `wrong`: lines that are no rows.
    `latest`: the last row with each set of keys, by its number."""

    values: dict[str, NDArray[np.float64]]
    rows: int
    wrong: int
    latest: dict[tuple[bytes, ...], tuple[int, bytes]]


def columns(block: bytes, keys: Sequence[str]) -> Columns:
    """Return the rows in a block of whole lines, each with its end."""
    reading = _Block(block, keys)
    if b"\\" not in block and b"\0" not in block:
        reading.alike()
    return reading.rest()


class _Block:
    """Where signs stand in a block, the values found so far, and the lines that are still to be read."""

    def __init__(self, block: bytes, keys: Sequence[str]) -> None:
        self.block, self.keys = block, keys
        self.signs = np.frombuffer(block + b" " * 64, dtype=np.uint8)
        self.ends = np.flatnonzero(self.signs == NEWLINE)
        self.starts = np.concatenate([[0], self.ends[:-1] + 1]) if len(self.ends) else self.ends
        self.values = {key: np.full(len(self.ends), np.nan) for key in keys}
        self.todo = np.ones(len(self.ends), dtype=bool)
        self.good = np.zeros(len(self.ends), dtype=bool)
        self.latest: dict[tuple[bytes, ...], int] = {}
        self.views: dict[int, NDArray[np.uint8]] = {}

    def alike(self) -> None:
        """Read what is written as we do."""
        places = {sign: np.flatnonzero(self.signs == sign) for sign in (COLON, QUOTE, COMMA)}
        first = {sign: np.searchsorted(found, self.starts) for sign, found in places.items()}
        count = {sign: np.searchsorted(found, self.ends) - first[sign] for sign, found in places.items()}
        plain = (self.signs[self.starts] == OPEN) & (self.signs[self.ends - 1] == CLOSE) & (count[COLON] > 0)
        plain &= (count[QUOTE] == 2 * count[COLON]) & (count[COMMA] == count[COLON] - 1)
        for number in np.unique(count[COLON][plain]):
            rows = np.flatnonzero(plain & (count[COLON] == number))
            at = {
                sign: places[sign][first[sign][rows][:, None] + np.arange(count[sign][rows[0]])]
                for sign in (COLON, QUOTE, COMMA)
            }
            self._same_count(rows, at[COLON], at[QUOTE], at[COMMA])

    def _same_count(self, rows: Ints, colons: Ints, quotes: Ints, commas: Ints) -> None:
        """Read rows of as many keys, those with one layout after the other."""
        stops = np.concatenate([commas, self.ends[rows][:, None] - 1], axis=1)
        after, then = self.signs[colons + 2], self.signs[colons + 3]
        number = _digit(after) | ((after == MINUS) & _digit(then))
        fits = (quotes[:, 1::2] == colons - 1) & (self.signs[colons + 1] == BLANK) & number & (stops > colons)
        open_at = np.concatenate([self.starts[rows][:, None] - 1, commas], axis=1)
        fits &= quotes[:, ::2] == open_at + 2
        left = fits.all(axis=1)
        for _ in range(LAYOUTS):
            if not left.any():
                return
            model = int(np.argmax(left))
            names = [self.block[a + 1 : b] for a, b in zip(quotes[model, ::2], quotes[model, 1::2], strict=True)]
            same = left & (quotes[:, 1::2] - quotes[:, ::2] == [len(name) + 1 for name in names]).all(axis=1)
            for column, name in enumerate(names):
                if name.decode("utf-8", "replace") not in self.keys:
                    continue  # of these the length is enough: rows of one writer differ in more than that
                same[same] = self._texts(quotes[same, 2 * column] + 1, len(name)) == name
            left &= ~same
            if len(set(names)) == len(names):
                self._take(rows[same], names, colons[same] + 2, stops[same])

    def _take(self, rows: Ints, names: Sequence[bytes], begin: Ints, stop: Ints) -> None:
        """Note the wanted numbers of rows of one layout; what does not fit is left to JSON."""
        wanted = [(names.index(key.encode()), key) for key in self.keys if key.encode() in names]
        short = np.ones(len(rows), dtype=bool)
        found: dict[str, NDArray[np.float64]] = {}
        for column, key in wanted:
            short &= stop[:, column] - begin[:, column] <= LONGEST
            try:
                found[key] = self._numbers(begin[:, column], stop[:, column])
            except ValueError:
                return
            short &= np.isfinite(found[key])
        if STEP not in found:
            return
        good = short & (found[STEP] >= 0)
        for key, values in found.items():
            self.values[key][rows[good]] = values[good]
        self.good[rows[good]], self.todo[rows[good]] = True, False
        if good.any():
            shape = tuple(sorted(names))
            self.latest[shape] = max(self.latest.get(shape, 0), int(rows[good][-1]))

    def rest(self) -> Columns:
        """Read what is left as JSON, and return all."""
        wrong = 0
        for row in np.flatnonzero(self.todo):
            line = self.block[self.starts[row] : self.ends[row]]
            values = parsed(line)
            if values is None:
                wrong += bool(line.strip())
                continue
            self.good[row] = True
            shape = tuple(sorted(key.encode("utf-8", "replace") for key in values))
            self.latest[shape] = max(self.latest.get(shape, 0), int(row))
            for key in self.keys:
                if key in values:
                    self.values[key][row] = values[key]
        number = np.cumsum(self.good)
        return Columns(
            values={key: values[self.good] for key, values in self.values.items()},
            rows=int(self.good.sum()),
            wrong=wrong,
            latest={
                shape: (int(number[row]), self.block[self.starts[row] : self.ends[row]])
                for shape, row in self.latest.items()
            },
        )

    def _numbers(self, begin: Ints, stop: Ints) -> NDArray[np.float64]:
        """Return the numbers that stand there, to 14 digits or so: more take twice the time. Raises ValueError."""
        texts = self._texts_to(begin, stop, DIGITS)
        cut = np.flatnonzero(stop - begin > DIGITS)
        # Without their ends these would be other numbers.
        ends = self.signs[stop[cut][:, None] - np.arange(2, 6)] | LOWER
        whole = cut[(ends == EXPONENT).any(axis=1) | ~(self._windows(begin[cut], DIGITS) == POINT).any(axis=1)]
        texts[whole] = b"0"
        values = texts.astype(np.float64)
        values[whole] = self._texts_to(begin[whole], stop[whole], LONGEST).astype(np.float64)
        return values

    def _texts_to(self, begin: Ints, stop: Ints, length: int) -> NDArray[np.bytes_]:
        """Return the texts from begin to stop, at most so long."""
        texts = self._windows(begin, length)
        texts[np.arange(length) >= (stop - begin)[:, None]] = 0
        return texts.view(f"S{length}")[:, 0]

    def _windows(self, places: Ints, length: int) -> NDArray[np.uint8]:
        """Return so many signs from each place on."""
        if length not in self.views:  # which costs more than to look through it
            self.views[length] = sliding_window_view(self.signs, length)
        return self.views[length][places]

    def _texts(self, places: Ints, length: int) -> NDArray[np.bytes_]:
        if not length:
            return np.full(len(places), b"", dtype="S1")
        return np.ascontiguousarray(self._windows(places, length)).view(f"S{length}")[:, 0]


def _digit(signs: NDArray[np.uint8]) -> Bools:
    return (signs >= ord("0")) & (signs <= ord("9"))
