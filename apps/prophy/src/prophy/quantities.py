"""The physical quantities of an annotation as 18 numbers, for WISA's quantity embedding.

Nine values, each as mantissa and exponent to base 10: the middles of five density ranges, the bounds of the time, the
bounds of the temperature. What an annotation leaves out is 0. WISA's text does not settle what the 18 are; five
densities by their middles is our reading.

References: WISA (Wang et al., 2025).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["COUNT", "numbers", "scientific"]

DENSITIES = 5
COUNT = 2 * (DENSITIES + 4)


def numbers(annotation: Mapping[str, Any] | None) -> Float[Tensor, "18"]:
    """Read `quantify_n0` (density ranges), `quantify_n1` (time) and `quantify_n2` (temperature) of an annotation.

    ValueError for what is no number.

    >>> numbers({"quantify_n0": [[1.0, 3.0]], "quantify_n1": [0, 5], "quantify_n2": [20, 30]})[:4].tolist()
    [2.0, 0.0, 0.0, 0.0]
    """
    given = annotation or {}
    try:
        densities = [(float(low) + float(high)) / 2 for low, high in given.get("quantify_n0") or ()][:DENSITIES]
        bounds = [[float(x) for x in given.get(key) or (0.0, 0.0)] for key in ("quantify_n1", "quantify_n2")]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected quantify_n0 as ranges, quantify_n1 and quantify_n2 as (low, high): {error}"
        ) from None
    if any(len(pair) != 2 for pair in bounds):
        raise ValueError(f"expected quantify_n1 and quantify_n2 as (low, high), got {bounds}")
    values = [*densities, *[0.0] * (DENSITIES - len(densities)), *bounds[0], *bounds[1]]
    return torch.tensor([part for value in values for part in scientific(value)])


def scientific(value: float) -> tuple[float, float]:
    """Split a number into mantissa in [1, 10) and exponent; zero and what is not finite give zeros.

    >>> scientific(-250.0)
    (-2.5, 2.0)
    """
    if value == 0 or not math.isfinite(value):
        return 0.0, 0.0
    exponent = math.floor(math.log10(abs(value)))
    return value / 10**exponent, float(exponent)
