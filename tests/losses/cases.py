"""Random maps, targets and weights, shared by the tests of the losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import strategies as st
from torch import Tensor, nn

from afl.losses import PADDING, ClassificationTarget, ElementWeights, MapInfo
from afl.losses.reference import alpha_t, dense_target, quality_focal_loss

CONF = Path(__file__).parents[2] / "conf"
UNWEIGHTED = ElementWeights(alpha=-1.0, gamma=0.0)
SEEDS = st.integers(0, 2**31)
# Strategies of the arguments of random_target and random_weights.
TARGETS = {
    "positives": st.integers(0, 9),
    "scaled": st.integers(0, 20),
    "padding": st.integers(0, 3),
    "soft": st.booleans(),
    "ignored": st.booleans(),
    "verified": st.booleans(),
}
WEIGHTS = {
    "negatives": st.booleans(),
    "gamma": st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, "class"]),
    "alpha": st.sampled_from([-1.0, 0.0, 0.25, 1.0]),
    "gate": st.sampled_from(["none", "scalar", "class"]),
    "positive_gamma": st.sampled_from([None, 0.0, 1.5]),
    "slots": st.booleans(),
}


def loss_of_config(info: MapInfo, *overrides: str) -> nn.Module:
    """The loss of ``+loss=NAME``. Only this group is composed, because the project's defaults need a detector and a data set."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=list(overrides))
    return instantiate(config.loss)(info)


def make_info(
    counts: list[float],
    prior: float = 0.01,
    alpha: float = 0.25,
    *,
    name: str = "map",
    dense_positives: bool = True,
    images: list[float] | None = None,
) -> MapInfo:
    """The description of a map, as a detector creates it; by default an image has up to seven instances of a class."""
    tensor = torch.tensor(counts, dtype=torch.float32)
    return MapInfo(
        name=name,
        num_classes=len(counts),
        instances_per_class=tensor,
        images_per_class=(tensor / 7).ceil() if images is None else torch.tensor(images),
        prior=prior,
        alpha=alpha,
        dense_positives=dense_positives,
    )


def plain_target(locations: int, classes: int, positive: list[int], **fields) -> ClassificationTarget:
    """One image whose given flat indices are positive."""
    return ClassificationTarget(
        num_classes=classes,
        image=torch.zeros(locations, dtype=torch.int64),
        num_images=1,
        positive=torch.tensor(positive, dtype=torch.int64),
        **fields,
    )


def random_target(
    seed: int,
    *,
    images: int = 2,
    locations: int = 30,
    classes: int = 5,
    positives: int = 6,
    scaled: int = 12,
    soft: bool = False,
    ignored: bool = False,
    verified: bool = False,
    padding: int = 3,
    shifted: bool = False,
) -> ClassificationTarget:
    """``locations`` per image; lists padded anywhere; some of the scaled negatives are positives too."""
    random = torch.Generator().manual_seed(seed)
    total = images * locations
    skipped = torch.rand(total, generator=random) < 0.3 if ignored else None
    order = torch.randperm(total * classes, generator=random)
    positive = order if skipped is None else order[~skipped[order // classes]]
    positive = positive[:positives]
    others = order[~torch.isin(order, positive)]
    overlapping = torch.cat([positive[: positives // 2], others])[:scaled]

    def pad(values: Tensor, filler: float) -> Tensor:
        full = torch.full((len(values) + padding,), filler, dtype=values.dtype)
        full[torch.randperm(len(full), generator=random)[: len(values)].sort().values] = values
        return full

    index = pad(positive, PADDING)
    return ClassificationTarget(
        num_classes=classes,
        image=torch.arange(images).repeat_interleave(locations),
        num_images=images,
        positive=index,
        value=torch.rand(len(index), generator=random) if soft else None,
        ignored=skipped,
        negative_index=pad(overlapping, PADDING) if scaled else None,
        negative_scale=torch.rand(len(overlapping) + padding, generator=random) if scaled else None,
        verified=torch.rand(images, classes, generator=random) < 0.5 if verified else None,
        shift=4 * torch.rand(classes, generator=random) - 3 if shifted else None,
        positive_shift=-2 * torch.rand(len(index), generator=random) if shifted else None,
    )


def random_weights(
    seed: int,
    target: ClassificationTarget,
    *,
    gamma: float | str = 2.0,
    alpha: float = 0.25,
    gate: str = "none",
    negatives: bool = False,
    positive_gamma: float | None = None,
    slots: bool = False,
) -> ElementWeights:
    """``gate`` none | scalar | class; ``gamma`` a number or ``class`` for one per class; double precision.

    With ``slots`` some locations, and some sizes of gradients, have separate weights.
    """
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int, low: float = 0.0, high: float = 3.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=random, dtype=torch.float64)

    classes, locations = target.num_classes, target.num_locations
    chosen = torch.rand(locations, generator=random) < 0.3
    slot = torch.where(chosen, chosen.cumsum(0) - 1, -1).to(torch.int32)
    return ElementWeights(
        alpha=alpha,
        gamma=draw(classes, low=0.5) if gamma == "class" else gamma,
        positive=draw(len(target.positive), high=20.0),
        negative_class=draw(classes) if negatives else None,
        negative_location=draw(locations) if negatives else None,
        negative_element=draw(locations, classes) if negatives else None,
        slot=slot if slots else None,
        negative_slot=draw(int(chosen.sum()), classes) if slots else None,
        negative_bin=draw(7) if slots else None,
        gate={"none": None, "scalar": draw(1)[0], "class": draw(classes)}[gate],
        positive_gamma=positive_gamma,
    )


def random_logits(seed: int, target: ClassificationTarget, spread: float = 3.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    shape = target.num_locations, target.num_classes
    return (spread * torch.randn(shape, generator=random, dtype=torch.float64)).requires_grad_()


def loss_and_gradient(loss: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


def dense(logits: Tensor, target: ClassificationTarget) -> tuple[Tensor, Tensor]:
    """(R, C) targets and (R, C) weights of all elements."""
    return dense_target(target, UNWEIGHTED, logits)


def dense_losses(
    logits: Tensor,
    target: ClassificationTarget,
    *,
    gamma: float = 0.0,
    alpha: float = -1.0,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(R, C) weighted element losses by the slow reference, 0 where nothing is learnt, and (R, C) whether an
    element is listed as positive, as 1."""
    weights = ElementWeights(alpha=alpha, gamma=gamma)
    if class_weights is not None:
        weights = replace(weights, positive=class_weights[target.positive_class])
    y, weight = dense_target(target, weights, logits)
    listed = torch.zeros(logits.numel())
    listed[target.positive[target.is_positive]] = 1
    return weight * alpha_t(y, alpha) * quality_focal_loss(logits, y, gamma), listed.view_as(logits)
