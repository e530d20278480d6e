"""Means over LVIS's frequency groups, for any metric that is a mean over classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

GROUPS = ("r", "c", "f")
GROUP_NAMES = {"r": "rare", "c": "common", "f": "frequent", "all": "all classes"}


def mean_defined(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are not None; None if there are none."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def group_means(
    per_class: Mapping[str, float | None], groups: Sequence[str] | None
) -> dict[str, float | None]:
    """AP_r, AP_c and AP_f: mean AP of the rare, common and frequent classes (Gupta et al. 2019, section 4).

    Classes without ground truth in the evaluated images (None) are left out, as in the official LVIS evaluation.

    Args:
        per_class: (C,) AP by class name, in class order.
        groups: (C,) "r", "c" or "f"; None if classes have no groups.

    Returns:
        The three means; None for a group without a defined class.
    """
    if groups is None:
        return {f"AP_{group}": None for group in GROUPS}
    values = list(per_class.values())
    return {
        f"AP_{group}": mean_defined([value for value, g in zip(values, groups, strict=True) if g == group])
        for group in GROUPS
    }
