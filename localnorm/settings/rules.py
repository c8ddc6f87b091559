"""What more than one block checks."""

import math
from collections.abc import Iterable


def check_choice(name: str, value, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")


def check_count(name: str, value, otherwise: str = "") -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1{otherwise}, got {value!r}")


def check_number(name: str, value) -> None:
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        hint = " (YAML reads 1e-3 as text: write 1.0e-3)" if isinstance(value, str) else ""
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}{hint}")
