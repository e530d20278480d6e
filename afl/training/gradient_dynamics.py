"""Measures the gradient of a loss: |dL/dz| of positives and negatives by frequency group.

On the steps that are logged, each loss module receives a view of its logits, and a hook on this view reads the gradient during the
step's backward pass. A second hook reads the factor of the value in the total (its weight in the sum, accumulation); the figures are
divided by this factor. This works for every loss that follows the contract. The measurement does not affect training: it changes
neither the gradients nor the run's random numbers. It needs no additional backward pass. On an accelerator it reads the gradient in
blocks, and only ``figures`` waits for the device.

Names of the figures, where MAP is a classification map of the detector, SIGN ``positive`` or ``negative`` and GROUP
``r``, ``c``, ``f``, or ``all`` on a map without classes:

    gradient/MAP/SIGN/GROUP/count        number of elements that contribute to the loss
    gradient/MAP/SIGN/GROUP/sum          sum of |dL/dz|
    gradient/MAP/SIGN/GROUP/q10          quantile of |dL/dz|; also q50, q90
    gradient/MAP/SIGN/GROUP/gate_q10     quantile of the Adaptive Gradient Function's gate; also q50, q90
    gradient/MAP/positive/GROUP/weight   mean weight W of the chain for positives
    gradient/MAP/LINK/KEY                statistics of a link, such as ghat and kappa
    gradient/MAP/LINK/KEY/GROUP          mean of a statistic over a group's classes, if it has a value for each class, (C,)

|dL/dz| is measured before division by the normaliser, so that losses and batches are comparable. The figures describe the
last part of the step's batch on the main process, like the losses that are logged with them. A group without elements in the
batch has no quantiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from afl.losses import ClassificationTarget, ElementWeights, MapLoss
from afl.losses.gradient import alpha_balance, computing_type, gate_of_gated
from afl.losses.negatives import Eraser
from afl.losses.sampling import on_host

QUANTILES = (0.1, 0.5, 0.9)
ALL = "all"
# Quantiles are computed from at most this many elements; larger maps are sampled.
SAMPLE = 100_000
# Number of elements of a gradient in one block on an accelerator; a CPU reads all elements together.
BLOCK = 1 << 22


class GradientDynamics:
    """A context manager that measures the losses called inside it; ``figures`` returns the latest measurements.

    A loss is measured when its gradient is computed, which may be after the end of the context.

    Args:
        losses: by name of their map.
        groups: (C,) "r", "c" or "f" of each class.
    """

    def __init__(self, losses: Mapping[str, MapLoss], groups: Sequence[str]) -> None:
        self._losses = dict(losses)
        self._groups = list(groups)
        self._hooks: list[Any] = []
        self._seen: dict[str, dict[str, Tensor]] = {}
        self._watched: dict[str, _Watched] = {}
        self._by_device: dict[torch.device, dict[str, Tensor]] = {}

    def __enter__(self) -> GradientDynamics:
        self._seen, self._watched = {}, {}
        for name, loss in self._losses.items():
            self._hooks += [
                loss.register_forward_pre_hook(partial(self._enter_loss, name), with_kwargs=True),
                loss.register_forward_hook(partial(self._leave_loss, name), with_kwargs=True),
            ]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def figures(self) -> dict[str, float]:
        """All figures that the module docstring lists; waits for the device once."""
        for name, watched in self._watched.items():
            if name not in self._seen:
                # The total does not depend on these logits.
                self._measure(name, torch.zeros(watched.shape, device=watched.target.image.device))
        self._watched = {}
        named = {f"{name}/{key}": value for name, seen in self._seen.items() for key, value in seen.items()}
        kept = {
            f"{name}/{key}": torch.as_tensor(value).detach().float()
            for name, loss in self._losses.items()
            for key, value in loss.statistics().items()
        }
        numbers = _copied(named | kept)
        # A group without elements has no quantiles and no mean weight.
        figures = {
            f"gradient/{key}": float(numbers[key])
            for key in named
            if key.endswith(("/count", "/sum")) or float(numbers[f"{key.rpartition('/')[0]}/count"]) > 0
        }
        for key in kept:
            value = numbers[key].to(kept[key].dtype)
            figures[f"gradient/{key}"] = float(value.mean())
            if value.ndim == 1:
                for group, members in self._members(len(value), value.device).items():
                    figures[f"gradient/{key}/{group}"] = float(value[members].mean())
        return figures

    def _enter_loss(
        self, name: str, loss: MapLoss, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict]:
        call = dict(zip(("logits", "target", "normalizer"), args, strict=False)) | kwargs
        logits = call["logits"]
        self._watched[name] = watched = _Watched(loss, call["target"], call["normalizer"], logits.shape)
        if torch.is_grad_enabled() and logits.requires_grad:
            # Only the loss reads this view, so its gradient is that of the loss alone.
            call["logits"] = logits.view_as(logits)
            call["logits"].register_hook(partial(self._measure, name, watched=watched))
        return (), call

    def _leave_loss(self, name: str, loss: MapLoss, args: tuple, kwargs: dict, value: Tensor) -> None:
        watched = self._watched[name]
        watched.seen = loss.seen
        if value.requires_grad:
            value.register_hook(watched.set_factor)

    def _measure(self, name: str, gradient: Tensor, watched: _Watched | None = None) -> None:
        watched = watched or self._watched[name]
        members = self._members(watched.target.num_classes, gradient.device)
        with torch.no_grad():
            self._seen[name] = element_figures(
                gradient.detach(), watched.scale, watched.target, members, watched.seen
            )

    def _members(self, num_classes: int, device: torch.device) -> dict[str, Tensor]:
        """(C,) bool by group; a map whose classes are not those of the data set has one group."""
        if num_classes != len(self._groups):
            return {ALL: torch.ones(num_classes, dtype=torch.bool, device=device)}
        if device not in self._by_device:
            self._by_device[device] = {
                group: torch.tensor([own == group for own in self._groups]).to(device)
                for group in "rcf"
                if group in self._groups
            }
        return self._by_device[device]


class _Watched:
    """One call of a loss, with the data that is needed to measure its gradient.

    Args:
        loss: the module; target, normalizer: of the call; shape: of its logits.
    """

    def __init__(
        self, loss: MapLoss, target: ClassificationTarget, normalizer: Tensor, shape: torch.Size
    ) -> None:
        self.target, self.shape = target, shape
        self.scale, self.normalizer = normalizer, normalizer
        self.seen: tuple[Tensor | None, ElementWeights] | None = loss.seen

    def set_factor(self, upstream: Tensor) -> None:
        """Store d total / d value, which the backward pass computes before the gradient of the logits."""
        # A loss that does not contribute to the total has the gradient 0.
        self.scale = torch.where(upstream != 0, self.normalizer / upstream, 0.0)


def element_figures(
    gradient: Tensor,
    scale: Tensor,
    target: ClassificationTarget,
    members: Mapping[str, Tensor],
    seen: tuple[Tensor | None, ElementWeights] | None = None,
) -> dict[str, Tensor]:
    """Count, sum and quantiles by sign and group, as ``SIGN/GROUP/FIGURE``: scalars on the device, NaN if undefined.

    Sums cover all elements. Quantiles of negatives use at most ``SAMPLE`` elements, drawn from the whole map.

    Args:
        gradient: (R, C); scale: scalar, |gradient| times it is |dL/dz|.
        target: of the map; ignored locations and unverified classes are excluded.
        members: (C,) bool by group, on the device.
        seen: soft values (P,) and weights of the positives and the gate, as ``ClassificationLoss`` keeps them; None
            for other losses.
    """
    value, weights = seen if seen is not None else (None, None)
    classes = target.num_classes
    flat = gradient.reshape(-1)

    def size_at(index: Tensor) -> Tensor:
        own = flat[index] if flat.numel() else flat.new_zeros(index.shape)
        return own.abs().to(computing_type(own.dtype)) * scale

    present, positive = target.is_positive, target.positive.clamp(min=0)
    sampled = _sample(flat)
    counted = _negative_at(sampled, target)
    sizes = size_at(positive)
    by_class = torch.zeros(2, classes, dtype=torch.float64, device=flat.device)
    both = torch.stack([torch.ones_like(sizes), sizes])
    by_class.index_add_(1, positive % classes, torch.where(present, both, 0.0).double())
    # By sign: the elements for the quantiles, a mask of the valid ones, their sizes and soft targets, and sums by class.
    parts: dict[str, tuple[Tensor, Tensor, Tensor, Tensor | float, Iterable[Tensor]]] = {
        "positive": (positive, present, sizes, 1.0 if value is None else value, by_class),
        "negative": (sampled, counted, size_at(sampled), 0.0, _negatives_by_class(gradient, scale, target)),
    }
    figures = {}
    for sign, (index, valid, size, y, (count, total)) in parts.items():
        label = index % classes
        quantities = {"": size}
        if weights is not None and weights.gate is not None:
            strength = weights.gate[label] if weights.gate.ndim else weights.gate
            quantities["gate_"] = gate_of_gated(size / alpha_balance(y, weights.alpha), strength)
        for group, member in members.items():
            of_group = member[label] & valid
            figures[f"{sign}/{group}/count"] = torch.where(member, count, 0).sum()
            figures[f"{sign}/{group}/sum"] = torch.where(member, total, 0.0).sum()
            for prefix, numbers in quantities.items():
                own = _only(numbers, of_group)
                # Filled on the device: a list of numbers would be copied there.
                cuts = torch.linspace(QUANTILES[0], QUANTILES[-1], 3, dtype=own.dtype, device=own.device)
                for q, cut in zip(QUANTILES, torch.nanquantile(own, cuts), strict=True):
                    figures[f"{sign}/{group}/{prefix}q{round(100 * q)}"] = cut
            if sign == "positive" and weights is not None and weights.positive is not None:
                figures[f"{sign}/{group}/weight"] = _only(weights.positive, of_group).nanmean()
    return figures


def _only(numbers: Tensor, wanted: Tensor) -> Tensor:
    """The selected numbers of (K,); on an accelerator all of them, with NaN instead of the others, so that the host does not wait."""
    if not on_host(numbers):
        return torch.where(wanted, numbers, torch.nan)
    own = numbers[wanted]
    return own if len(own) else numbers.new_full((1,), torch.nan)


def _negatives_by_class(
    gradient: Tensor, scale: Tensor, target: ClassificationTarget
) -> tuple[Tensor, Tensor]:
    """The number (C,) int64 of the negatives and the sum (C,) float64 of |gradient| times ``scale``, computed block by block."""
    locations, classes = gradient.shape
    count = torch.zeros(classes, dtype=torch.int64, device=gradient.device)
    total = torch.zeros(classes, dtype=torch.float64, device=gradient.device)
    rows = max(locations, 1) if on_host(gradient) else max(BLOCK // classes, 1)
    # One element after the block, where positives of other blocks are written.
    buffer = torch.empty(min(rows, max(locations, 1)) * classes + 1, dtype=torch.bool, device=gradient.device)
    eraser = Eraser(replace(target, negative_index=None), locations, rows, filler=False)
    for number, start in enumerate(range(0, locations, rows)):
        part = gradient[start : start + rows]
        buffer.fill_(True)
        negative = buffer[: part.numel()].view(part.shape)
        eraser.erase(buffer, number, part.numel())
        if target.verified is not None:
            negative &= target.verified[target.image[start : start + rows]]
        eraser.erase_rows(negative, number)
        size = part.abs().to(computing_type(part.dtype)) * scale
        count += negative.sum(0)
        total += (size * negative).sum(0, dtype=torch.float64)
    return count, total


def _negative_at(index: Tensor, target: ClassificationTarget) -> Tensor:
    """(K,) bool, elements that are negatives and contribute to the loss."""
    location = torch.div(index, target.num_classes, rounding_mode="floor")
    negative = ~torch.isin(index, target.positive)
    if target.ignored is not None:
        negative &= ~target.ignored[location]
    if target.verified is not None:
        negative &= target.verified[target.image[location], index % target.num_classes]
    return negative


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the CPU as float64, in one transfer from each device."""
    found: dict[str, Tensor] = {}
    for device in {value.device for value in tensors.values()}:
        own = {name: value for name, value in tensors.items() if value.device == device}
        flat = torch.cat([value.detach().double().reshape(-1) for value in own.values()]).cpu()
        parts = flat.split([value.numel() for value in own.values()])
        found |= {name: part.view(own[name].shape) for name, part in zip(own, parts, strict=True)}
    return found


def _sample(flat: Tensor) -> Tensor:
    """Indices of all elements, or of a random sample of ``SAMPLE`` elements.

    The sample is random because a fixed stride may share a factor with the number of classes. It has a separate generator, so
    that the run's random numbers do not change.
    """
    if flat.numel() <= SAMPLE:
        return torch.arange(flat.numel(), device=flat.device)
    if flat.device.type == "meta":
        return torch.empty(SAMPLE, dtype=torch.int64, device=flat.device)
    generator = torch.Generator(flat.device).manual_seed(0)
    return torch.randint(flat.numel(), (SAMPLE,), generator=generator, device=flat.device)
