"""How sure one may be of a mean over several seeds: Student's interval.

What this module does not do: tests of significance between systems.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


# Student's t, 97.5 %, by degrees of freedom: what NumPy does not know and one table settles.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101, 2.093)  # fmt: skip


def interval(values: Iterable[float]) -> Interval:
    """Mean over seeds and its 95 % interval by Student's t: mean ± t · s / sqrt(n).

    Raises:
        ValueError: for fewer than two values, since one run has no spread, or one that is not finite.
    """
    values = list(values)
    n = len(values)
    if not all(map(math.isfinite, values)):
        raise ValueError(f"values={values} holds nan or inf: a run failed; an interval cannot be had from it")
    if n < 2:
        raise ValueError(f"values holds {n} number(s): an interval needs at least two seeds, better five")
    mean = sum(values) / n
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = _student(n - 1) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def _student(freedom: int) -> float:
    """The table, and beyond it Student's t expanded around the normal quantile (Abramowitz and Stegun 26.7.5)."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
