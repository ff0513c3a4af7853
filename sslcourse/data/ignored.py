"""The label of a position that is not scored: every loss, score and gradient here leaves it out, as PyTorch's does."""

from __future__ import annotations

IGNORE = -100
