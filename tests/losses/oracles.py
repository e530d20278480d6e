"""A second, simple implementation of every loss from the papers: dense, in double precision, with loops and autograd.

It only shares the meaning of sparse targets with the losses. An oracle is called once per step and keeps its state,
so its second step depends on the first, as in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from afl.losses import ClassificationTarget, FederatedSampling, IouBalancedSampling, MapInfo
from afl.losses.reference import alpha_t, cross_entropy, quality_focal_loss
from tests.losses.cases import UNWEIGHTED, dense, loss_and_gradient
from tests.losses.test_ap_loss import by_pairs
from tests.losses.test_dr_loss import by_image
from tests.losses.test_ghm import Official
from tests.losses.test_pisa import official_weights
from tests.losses.test_seesaw import published_factors

Step = Callable[[Tensor, ClassificationTarget, float, float], tuple[Tensor, Tensor]]
"""Maps logits (R, C) that require a gradient, target, normaliser and value of the box terms to the loss and its gradient."""


def class_weights(counts: Tensor, beta: float, normalize: str, cap: float) -> Tensor:
    """(C,) 1 / effective number (Cui et al. 2019), by their formula; the factor of the mean by bisection."""
    n = counts.double().clamp(min=1)
    weight = (1 - beta) / (1 - beta**n)
    if normalize == "head":
        return (weight / weight[counts.argmax()]).clamp(max=cap)
    mass = counts.double() if normalize == "instances" else torch.ones_like(n)
    low, high = 0.0, cap / weight.min().item()
    for _ in range(200):
        scale = (low + high) / 2
        mean = (mass * (scale * weight).clamp(max=cap)).sum() / mass.sum()
        low, high = (scale, high) if mean < 1 else (low, scale)
    return (scale * weight).clamp(max=cap)


@dataclass
class Maturity:
    """Running mean of g over positives, (C,) or a scalar, and its distance from ``threshold``."""

    prior: float
    threshold: float
    classes: int | None = None
    momentum: float = 0.99

    def __post_init__(self) -> None:
        self.ghat = torch.full((self.classes or 1,), 1 - self.prior, dtype=torch.float64)

    def value(self) -> Tensor:
        return ((self.ghat - self.threshold) / (1 - self.prior - self.threshold)).clamp(0, 1)

    def update(self, g: Tensor, positive: Tensor) -> None:
        groups = range(g.shape[1]) if self.classes else [slice(None)]
        for k, columns in enumerate(groups):
            seen = g[:, columns][positive[:, columns]]
            if seen.numel():
                self.ghat[k] = self.momentum * self.ghat[k] + (1 - self.momentum) * seen.mean()


class Family:
    """w^y A alpha_t g^gamma BCE: cross-entropy and focal loss with class weights, gate and balance.

    Args:
        info: the map.
        gamma, alpha: of the element loss; None: the map's alpha.
        weights: beta, normalisation and cap of the class weights, fading in over ``fade`` steps.
        scaled: the mean over instances of those weights on every positive instead.
        gate: tau, threshold and whether every class has its own; ``schedule``: opened over so many steps instead.
        gate_negatives: whether negatives are gated too.
        balance: decay, whether every class has its own, and the threshold of fading or None.
        warm_up: steps over which the whole loss rises from a tenth.
        anchor: kappa of FL-anchored weights.
        tempered: threshold of the progress that tempers the weights.
        cap: rho_0 and threshold of the cap on positives' gradients.
    """

    def __init__(
        self,
        info: MapInfo,
        *,
        gamma: float = 2.0,
        alpha: float | None = None,
        weights: tuple[float, str, float] | None = None,
        fade: int = 0,
        scaled: bool = False,
        gate: tuple[float, float, bool] | None = None,
        schedule: int = 0,
        gate_negatives: bool = True,
        balance: tuple[float, bool, float | None] | None = None,
        warm_up: int = 0,
        anchor: float | None = None,
        tempered: float | None = None,
        cap: tuple[float, float] | None = None,
    ) -> None:
        self.gamma, self.alpha = gamma, info.alpha if alpha is None else alpha
        counts = info.instances_per_class.double()
        self.weight = torch.ones_like(counts) if weights is None else class_weights(counts, *weights)
        if scaled:
            self.weight = ((counts * self.weight).sum() / counts.sum()).expand(len(counts))
        self.fade, self.gate, self.schedule, self.gate_negatives = fade, gate, schedule, gate_negatives
        self.balance, self.warm_up, self.steps = balance, warm_up, 0
        self.anchor, self.cap, self.present = anchor, cap, int((counts > 0).sum())
        self.progress = None if tempered is None else Maturity(info.prior, tempered, len(counts))
        if cap is not None:
            self.maturity = Maturity(info.prior, cap[1])
            fresh = torch.tensor(info.prior, dtype=torch.float64).logit().requires_grad_()
            (slope,) = torch.autograd.grad(quality_focal_loss(fresh, torch.ones(()).double(), gamma), fresh)
            self.mean_size = slope.abs()
        if gate is not None:
            self.maturity = Maturity(info.prior, gate[1], len(counts) if gate[2] else None)
        if balance is not None:
            self.masses = torch.zeros(2, len(counts) if balance[1] else 1, dtype=torch.float64)
            self.fading = None if balance[2] is None else Maturity(info.prior, balance[2])

    def __call__(self, logits, target, normalizer, box):
        y, weight = dense(logits, target)
        positive = y == 1
        weight = torch.where(
            positive, self.weight ** (min(1.0, self.steps / self.fade) if self.fade else 1.0), weight
        )
        if self.warm_up:
            weight = weight * (0.1 + 0.9 * min(1.0, self.steps / self.warm_up))
        each = quality_focal_loss(logits, y, self.gamma)
        (slope,) = torch.autograd.grad(each.sum(), logits, retain_graph=True)
        g = torch.where(positive, torch.sigmoid(-logits), torch.sigmoid(logits)).detach()
        if self.progress is not None:
            learnt_best = self.progress.value().sort().values[: math.ceil(self.present / 4)]
            weight = torch.where(positive, weight ** (1 - learnt_best.mean()), weight)
            self.progress.update(g, positive)
        if self.anchor is not None:
            between = weight * (1 + self.anchor * slope.abs()) / (1 + self.anchor * weight * slope.abs())
            weight = torch.where(positive, between, weight)
        if self.cap is not None:
            rho = self.cap[0] / self.maturity.value()
            limit = rho * self.mean_size
            weight = torch.where(positive, torch.minimum(weight, limit / slope.abs()), weight)
            self.maturity.update(g, positive)
            if positive.any():
                self.mean_size = 0.99 * self.mean_size + 0.01 * slope.abs()[positive].mean()
        if self.balance is not None:
            weight = torch.where(
                positive,
                weight,
                weight * self._factor(weight * slope.abs() * alpha_t(y, self.alpha), g, positive),
            )
        gated = 1.0
        if self.gate is not None or self.schedule:
            if self.schedule:
                strength = max(0.0, 1 - self.steps / self.schedule) ** 2
            else:
                strength = self.maturity.value() / self.gate[0]
                self.maturity.update(g, positive)
            gated = 1 / (1 + strength * weight * slope.abs())
            if not self.gate_negatives:
                gated = torch.where(positive, gated, 1.0)
        self.steps += 1
        return loss_and_gradient((gated * weight * alpha_t(y, self.alpha) * each).sum() / normalizer, logits)

    def _factor(self, size: Tensor, g: Tensor, positive: Tensor) -> Tensor:
        decay, by_class, _ = self.balance
        seen = torch.stack([(size * positive).sum(0), (size * ~positive).sum(0)])
        seen = seen if by_class else seen.sum(1, keepdim=True)
        masses = decay * self.masses + seen * bool(positive.any())
        factor = torch.where(masses[0] > 0, (masses[0] / masses[1].clamp(min=1e-300)).clamp(1e-4, 1.0), 1.0)
        if positive.any():
            self.masses = masses
        if self.fading is not None:
            factor = 1 - self.fading.value() * (1 - factor)
            self.fading.update(g, positive)
        return factor


class Mined:
    """Cross-entropy of the samples that a loop over images keeps."""

    def __init__(self, info: MapInfo, mine: Callable[..., Tensor]) -> None:
        self.by_location, self.mine = info.dense_positives, mine

    def __call__(self, logits, target, normalizer, box):
        # The loops divide by 7.
        loss = self.mine(logits, target, by_location=self.by_location) * (7.0 / normalizer)
        return loss_and_gradient(loss + 0.0 * logits.sum(), logits)


class Drawn:
    """Cross-entropy of positives and of the negatives that IoU-balanced sampling draws; test_libra.py tests the draw."""

    def __init__(self, info: MapInfo) -> None:
        self.sampling = IouBalancedSampling(info, minimum=6)

    def __call__(self, logits, target, normalizer, box):
        y, weight = dense(logits, target)
        drawn = self.sampling(logits.detach(), target, UNWEIGHTED).negative_location
        self.sampling.update()
        weight = torch.where(y == 1, weight, weight * drawn[:, None])
        return loss_and_gradient((weight * cross_entropy(logits, y)).sum() / normalizer, logits)


class Harmonised:
    """GHM-C by the official loop over bins, whose result needs no normaliser."""

    def __init__(self, info: MapInfo) -> None:
        self.official = Official(30, 0.75)

    def __call__(self, logits, target, normalizer, box):
        y, mass = dense(logits, target)
        weight = self.official.weights(logits.detach(), y, mass) * mass
        return loss_and_gradient((weight * cross_entropy(logits, y)).sum(), logits)


class PrimeSamples:
    """Focal loss whose positives are weighted by PISA's ranks."""

    def __init__(self, info: MapInfo) -> None:
        self.alpha = info.alpha

    def __call__(self, logits, target, normalizer, box):
        y, weight = dense(logits, target)
        each = alpha_t(y, self.alpha) * quality_focal_loss(logits, y, 2.0)
        index = target.positive[target.is_positive]
        if len(index):
            ranked = official_weights(target, each.detach().view(-1)[index], 2.0, 0.0)
            weight.view(-1)[index] = ranked
        return loss_and_gradient((weight * each).sum() / normalizer, logits)


class ByGradients:
    """EQLv2 and EFL: the weight of a class depends on the sums of its previous gradients, computed by autograd."""

    def __init__(self, info: MapInfo, *, focal: bool) -> None:
        self.focal, self.alpha = focal, info.alpha if focal else -1.0
        self.up, self.down = torch.zeros(2, info.num_classes, dtype=torch.float64)

    def __call__(self, logits, target, normalizer, box):
        y, mass = dense(logits, target)
        ratio = torch.where(
            self.down > 0, self.up / self.down.clamp(min=1e-300), 1.0 if self.focal else 100.0
        )
        if self.focal:
            gamma = 2.0 + 8.0 * (1 - ratio.clamp(0, 1))
            each = gamma / 2.0 * alpha_t(y, self.alpha) * quality_focal_loss(logits, y, gamma)
        else:
            negative = 1 / (1 + torch.exp(-12.0 * (ratio - 0.8)))
            each = torch.where(y == 1, 1 + 4 * (1 - negative), negative) * cross_entropy(logits, y)
        value, gradient = loss_and_gradient((mass * each).sum() / normalizer, logits)
        size = gradient.abs() * normalizer
        self.up, self.down = self.up + (size * y).sum(0), self.down + (size * (1 - y)).sum(0)
        return value, gradient


def hits_of(target: ClassificationTarget) -> list[tuple[int, int]]:
    """(location, class) of every positive."""
    return [divmod(index, target.num_classes) for index in target.positive.tolist() if index >= 0]


class AtObjects:
    """Focal loss whose negatives of other classes at an object have the weight ``factor(probabilities, class, counts)``."""

    def __init__(self, info: MapInfo, *, factor: Callable[[Tensor, int, Tensor], Tensor]) -> None:
        self.alpha, self.counts, self.factor = info.alpha, info.images_per_class, factor

    def __call__(self, logits, target, normalizer, box):
        y, weight = dense(logits, target)
        at_object = torch.zeros_like(logits)
        for row, label in hits_of(target):
            own = self.factor(torch.sigmoid(logits[row].detach()), label, self.counts)
            at_object[row] = torch.maximum(at_object[row], own)
        for row in {row for row, _ in hits_of(target)}:
            weight[row] = torch.where(y[row] == 1, weight[row], weight[row] * at_object[row])
        each = alpha_t(y, self.alpha) * quality_focal_loss(logits, y, 2.0)
        return loss_and_gradient((weight * each).sum() / normalizer, logits)


def spare_rare(p: Tensor, label: int, counts: Tensor) -> Tensor:
    """EQL: 0 for classes in fewer than 100 images."""
    return torch.tensor([0.0 if n < 100 else 1.0 for n in counts.tolist()], dtype=torch.float64)


def spare_unlikely(p: Tensor, label: int, counts: Tensor) -> Tensor:
    """ACSL: 1 for classes with a probability of at least 0.7."""
    return torch.tensor([1.0 if one >= 0.7 else 0.0 for one in p.tolist()], dtype=torch.float64)


def of_shifted(p: Tensor, s: Tensor) -> Tensor:
    """Gradient of -ln(1 - sigmoid(z + ln s)) over that of -ln(1 - sigmoid(z)), from p = sigmoid(z)."""
    return s / (1 - p + s * p)


class Seesaw(AtObjects):
    """The other classes at an object have the weight S / (1 - p + S p), where S depends on the previous samples."""

    def __init__(self, info: MapInfo) -> None:
        self.samples = [0.0] * info.num_classes
        super().__init__(info, factor=self._factor)

    def _factor(self, p, label, counts):
        s = published_factors(p.logit(), label, self.samples, 0.8, 2.0, 1e-2)
        return of_shifted(p, s)

    def __call__(self, logits, target, normalizer, box):
        found = super().__call__(logits, target, normalizer, box)
        for _, label in hits_of(target):
            self.samples[label] += 1
        return found


class Equilibrium(AtObjects):
    """LOCE: the same weight, where S is the ratio of the classes' mean scores."""

    def __init__(self, info: MapInfo) -> None:
        self.score = [info.prior] * info.num_classes
        super().__init__(info, factor=self._factor)

    def _factor(self, p, label, counts):
        score = torch.tensor(self.score, dtype=torch.float64).clamp(min=1e-6)
        return of_shifted(p, score / score[label])

    def __call__(self, logits, target, normalizer, box):
        found = super().__call__(logits, target, normalizer, box)
        for label in {label for _, label in hits_of(target)}:
            own = [torch.sigmoid(logits[hit]).item() for hit in hits_of(target) if hit[1] == label]
            self.score[label] = 0.9 * self.score[label] + 0.1 * sum(own) / len(own)
        return found


def margin_factor(own: float, other: float) -> float:
    """ln of the sum of the fourth roots over the fourth root of ``own``."""
    return math.log((own**0.25 + other**0.25) / own**0.25)


class Grouped:
    """BAGS: focal loss; at an object, the classes of other groups have the weight min(1, 8 own / others), counted image by image."""

    def __init__(self, info: MapInfo) -> None:
        self.alpha = info.alpha
        self.group = [sum(n >= bound for bound in (10, 100, 1000)) for n in info.instances_per_class.tolist()]

    def __call__(self, logits, target, normalizer, box):
        y, weight = dense(logits, target)
        at_object: dict[tuple[int, int], float] = {}
        for row, label in hits_of(target):
            image = target.image[row]
            groups = [self.group[one] for place, one in hits_of(target) if target.image[place] == image]
            for other in range(target.num_classes):
                own = groups.count(self.group[other])
                apart = self.group[other] != self.group[label]
                factor = min(1.0, 8.0 * own / (len(groups) - own)) if apart else 1.0
                at_object[row, other] = max(at_object.get((row, other), 0.0), factor)
        for (row, other), factor in at_object.items():
            if y[row, other] == 0:
                weight[row, other] *= factor
        each = alpha_t(y, self.alpha) * quality_focal_loss(logits, y, 2.0)
        return loss_and_gradient((weight * each).sum() / normalizer, logits)


class Shifted:
    """Focal loss of z + delta_c, with an explicit delta for each form."""

    def __init__(self, info: MapInfo, *, form: str) -> None:
        n = [max(1.0, count) for count in info.instances_per_class.tolist()]
        of_form = {
            "adjustment": [math.log(one / max(n)) for one in n],
            "balanced": [math.log(one / (sum(n) - one)) for one in n],
            # As in the official code: the factors of e^f and e^-f for f = z / 2, and 6.3313 backgrounds for each object.
            "ecm": [
                margin_factor(7.3313 * sum(n) - one, one) - margin_factor(one, 7.3313 * sum(n) - one)
                for one in n
            ],
        }
        self.alpha, self.shift = info.alpha, torch.tensor(of_form[form], dtype=torch.float64)

    def __call__(self, logits, target, normalizer, box):
        y, weight = dense(logits, target)
        each = alpha_t(y, self.alpha) * quality_focal_loss(logits + self.shift, y, 2.0)
        return loss_and_gradient((weight * each).sum() / normalizer, logits)


class Margin:
    """LDAM: focal loss of z - 2 (1 / n_c)^(1/4) on positives; the rarest class has a count of 1 here."""

    def __init__(self, info: MapInfo, *, fade: int = 0) -> None:
        n = info.instances_per_class.double().clamp(min=1)
        self.alpha, self.margin, self.fade, self.steps = info.alpha, 2.0 * n**-0.25, fade, 0
        self.weight = (
            class_weights(info.instances_per_class, 0.999, "head", 5.0) if fade else torch.ones_like(n)
        )

    def __call__(self, logits, target, normalizer, box):
        y, weight = dense(logits, target)
        power = min(1.0, self.steps / self.fade) if self.fade else 1.0
        self.steps += 1
        weight = torch.where(y == 1, self.weight**power, weight)
        each = alpha_t(y, self.alpha) * quality_focal_loss(logits - y * self.margin, y, 2.0)
        return loss_and_gradient((weight * each).sum() / normalizer, logits)


def asymmetric(logits, target, normalizer, box):
    """Cross-entropy on positives, p^4 (-ln(1 - p)) on negatives."""
    y, weight = dense(logits, target)
    own = torch.where(y == 1, 1.0, torch.sigmoid(logits) ** 4)
    return loss_and_gradient((weight * own * cross_entropy(logits, y)).sum() / normalizer, logits)


class ByFrequency:
    """Focal loss whose positives have the weight (n of the most frequent class / n_c)^power, at most 5."""

    def __init__(self, info: MapInfo, *, power: float) -> None:
        n = [max(1.0, count) for count in info.instances_per_class.tolist()]
        self.alpha = info.alpha
        self.weight = torch.tensor([min(5.0, (max(n) / one) ** power) for one in n], dtype=torch.float64)

    def __call__(self, logits, target, normalizer, box):
        y, weight = dense(logits, target)
        weight = torch.where(y == 1, self.weight, weight)
        each = alpha_t(y, self.alpha) * quality_focal_loss(logits, y, 2.0)
        return loss_and_gradient((weight * each).sum() / normalizer, logits)


def quality(logits, target, normalizer, box):
    """QFL: |y - p|^2 BCE with y the IoU of the box at a positive."""
    y, weight = dense(logits, replace(target, value=target.overlap))
    return loss_and_gradient((weight * quality_focal_loss(logits, y, 2.0)).sum() / normalizer, logits)


def varifocal(logits, target, normalizer, box):
    """q BCE(p, q) on positives, 3/4 p^2 BCE(p, 0) on negatives."""
    q, weight = dense(logits, replace(target, value=target.overlap))
    own = torch.where(q > 0, q, 0.75 * torch.sigmoid(logits) ** 2)
    return loss_and_gradient((weight * own * cross_entropy(logits, q)).sum() / normalizer, logits)


class Federated:
    """A step that only uses the negatives of the classes in S_b; test_federated.py tests the draw of S_b."""

    def __init__(self, info: MapInfo, *, inner: Callable[[MapInfo], Step], size: int | None = None) -> None:
        self.sampling, self.inner = FederatedSampling(info, size=size), inner(info)

    def __call__(self, logits, target, normalizer, box):
        kept = self.sampling.classes(target)
        self.sampling.update()
        verified = kept if target.verified is None else target.verified & kept
        return self.inner(logits, replace(target, verified=verified), normalizer, box)


def guided(logits, target, normalizer, box):
    """Sampling-Free: cross-entropy, scaled to the value of the box terms."""
    y, weight = dense(logits, target)
    loss = (weight * cross_entropy(logits, y)).sum() / normalizer
    return loss_and_gradient(loss * (box / loss.detach().clamp(min=1e-12)), logits)


def average_precision(logits, target, normalizer, box):
    """AP loss pair by pair."""
    value, gradient = by_pairs(logits, target, normalizer=normalizer)
    return torch.tensor(value, dtype=torch.float64), gradient


def ranking(logits, target, normalizer, box):
    """DR loss image by image."""
    return loss_and_gradient(by_image(logits, target), logits)
