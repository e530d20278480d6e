"""AP loss and DR loss on a GPU: two passes over the logits, one for their sums and one for their gradient.

``mark`` of ``triton_kernel`` makes the bitmap of everything that is not a plain negative. The passes treat plain negatives
alone; the gradient is 0 at all other elements, and the caller adds theirs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from afl.losses.fused import gradient_type
from afl.losses.target import ClassificationTarget
from afl.losses.triton_element import GAMMA_ZERO, hard_terms
from afl.losses.triton_kernel import bytes_of, mark
from afl.losses.triton_launch import WARPS, block_size, on_device_of, stored_type, tile_of

# Entries of all copies of AP loss's table together, and the most copies. Programs that write to separate copies do not wait
# for each other's atomic additions.
_ENTRIES, _COPIES = 1 << 22, 1 << 12


class PlainNegatives:
    """The plain negatives of one map, read by the kernels.

    Args:
        logits: (R, C), not float64; target: of the map.
    """

    def __init__(self, logits: Tensor, target: ClassificationTarget) -> None:
        self.logits = logits.detach().contiguous()
        self.elements, self.classes = logits.numel(), target.num_classes
        self.block = block_size(self.elements)
        self.image, self.num_images = target.image.contiguous(), target.num_images
        with on_device_of(logits):
            marked, _ = mark(target, self.elements, logits.device)
        self.exceptions = {
            "marked": marked,
            "verified": bytes_of(target.verified),
            "image": None if target.verified is None else self.image,
        }

    def tilted_sums(self, temperature: float) -> Tensor:
        """Sums of e and e p over each image's plain negatives, e = exp((p - 1) / temperature): (2, B) float64."""
        locations = len(self.logits)
        rows, columns = tile_of(locations, self.classes)
        sums = torch.zeros(2, locations, device=self.logits.device)
        with on_device_of(self.logits):
            _tilted_sums[(triton.cdiv(locations, rows),)](
                self.logits,
                sums,
                inverse=1.0 / temperature,
                locations=locations,
                C=self.classes,
                ROWS=rows,
                COLUMNS=columns,
                **self.exceptions,
            )
        by_image = torch.zeros(2, self.num_images, dtype=torch.float64, device=sums.device)
        return by_image.index_add_(1, self.image, sums.double())

    def tilted_gradient(self, temperature: float, pull: Tensor, mean: Tensor) -> Tensor:
        """pull e (1 + (p - mean) / temperature) p (1 - p) at plain negatives.

        Args:
            pull, mean: (B,) of each image.
        """
        gradient = self._empty_gradient()
        with on_device_of(self.logits):
            _tilted_gradient[(triton.cdiv(self.elements, self.block),)](
                self.logits,
                gradient,
                pull[self.image].float(),
                mean[self.image].float(),
                inverse=1.0 / temperature,
                elements=self.elements,
                C=self.classes,
                BLOCK=self.block,
                num_warps=WARPS,
                **self.exceptions,
            )
        return self._finished(gradient)

    def collect(self, bends: Tensor) -> Tensor:
        """Numbers and sums of logits of the plain negatives between K bends, as a (2, K + 1) float64 table.

        Logits above the last bend count as that bend, because every step H is 1 there. A logit that is not finite makes the
        table NaN. Sums are integers, so two runs agree to the bit.

        Args:
            bends: (K,) float64, sorted.
        """
        places = len(bends) + 1
        programs = triton.cdiv(self.elements, self.block)
        copies = max(1, min(_COPIES, programs, _ENTRIES // places))
        table = torch.zeros(2, copies, places, dtype=torch.int64, device=bends.device)
        # The largest power of two with which the sum of all elements still fits 63 bits.
        span = (bends[-1] - bends[0]).clamp(min=1e-3)
        scale = torch.exp2(torch.floor(62.0 - torch.log2(span * self.elements))).float()
        sane = torch.zeros(programs, device=bends.device)
        with on_device_of(self.logits):
            _collect[(programs,)](
                self.logits,
                bends.float(),
                table,
                scale,
                sane,
                copies=copies,
                bend_count=len(bends),
                STEPS=_steps(len(bends)),
                elements=self.elements,
                C=self.classes,
                BLOCK=self.block,
                num_warps=WARPS,
                **self.exceptions,
            )
        count, above_first = table.sum(1).double()
        return torch.stack([count, above_first / scale.double() + bends[0] * count]) + sane.sum().double()

    def piecewise_linear(self, bends: Tensor, slope: Tensor, intercept: Tensor) -> Tensor:
        """slope z + intercept of the interval between bends that holds z, at least 0, at plain negatives.

        Args:
            bends: (K,) float64, sorted; slope, intercept: (K + 1,) float64, 0 below the first bend.
        """
        # Values relative to an interval's lower end, so that single precision is enough.
        start = torch.cat([bends[:1], bends])
        value = slope * start + intercept
        gradient = self._empty_gradient()
        with on_device_of(self.logits):
            _piecewise_linear[(triton.cdiv(self.elements, self.block),)](
                self.logits,
                gradient,
                bends.float(),
                start.float(),
                value.float(),
                slope.float(),
                bend_count=len(bends),
                STEPS=_steps(len(bends)),
                elements=self.elements,
                C=self.classes,
                BLOCK=self.block,
                num_warps=WARPS,
                **self.exceptions,
            )
        return self._finished(gradient)

    def _empty_gradient(self) -> Tensor:
        return torch.empty_like(self.logits, dtype=stored_type(gradient_type(self.logits.dtype)))

    def _finished(self, gradient: Tensor) -> Tensor:
        return gradient.to(gradient_type(self.logits.dtype))


def _steps(bends: int) -> int:
    """Steps of a search among the bends, a multiple of 4 because the kernels are compiled for every number."""
    return -(-bends.bit_length() // 4) * 4


@triton.jit
def plain_block(logits, marked, verified, image, start, elements, C: tl.constexpr, BLOCK: tl.constexpr):
    """Logits of a block in float32, which of them are plain negatives, and their offsets from ``start``."""
    inside = tl.arange(0, BLOCK)
    # Only the last block needs a mask; all others access memory by whole vectors.
    if start + BLOCK <= elements:
        z = tl.load(logits + start + inside)
        word = tl.load(marked + start // 32 + inside // 32)
    else:
        within = inside < elements - start
        z = tl.load(logits + start + inside, mask=within, other=0.0)
        word = tl.load(marked + start // 32 + inside // 32, mask=within, other=-1)
    counted = ((word >> (inside % 32)) & 1) == 0
    if verified is not None:
        first_row = start // C
        place = (start - first_row * C).to(tl.int32) + inside
        own = tl.load(image + first_row + place // C, mask=counted, other=0)
        counted = counted & (tl.load(verified + own * C + place % C, mask=counted, other=0) != 0)
    return z.to(tl.float32), counted, inside


@triton.jit
def _store_block(into, start, inside, elements, values, BLOCK: tl.constexpr):
    if start + BLOCK <= elements:
        tl.store(into + start + inside, values.to(into.dtype.element_ty))
    else:
        tl.store(into + start + inside, values.to(into.dtype.element_ty), mask=inside < elements - start)


@triton.jit(do_not_specialize=["locations"])
def _tilted_sums(
    logits,
    sums,
    marked,
    verified,
    image,
    inverse,
    locations,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < locations
    tilts = tl.zeros((ROWS,), tl.float32)
    means = tl.zeros((ROWS,), tl.float32)
    for first in range(0, C, COLUMNS):
        label = first + tl.arange(0, COLUMNS)[None, :]
        element = row[:, None] * C + label
        valid = real[:, None] & (label < C)
        word = tl.load(marked + element // 32, mask=valid, other=-1)
        counted = ((word >> (element % 32).to(tl.int32)) & 1) == 0
        if verified is not None:
            own = tl.load(image + row, mask=real, other=0)[:, None]
            counted = counted & (tl.load(verified + own * C + label, mask=counted, other=0) != 0)
        z = tl.load(logits + element, mask=valid, other=0.0).to(tl.float32)
        p, _, _, _ = hard_terms(z, 0.0, GAMMA_ZERO)
        tilt = tl.where(counted, tl.exp((p - 1.0) * inverse), 0.0)
        tilts += tl.sum(tilt, 1)
        means += tl.sum(tl.where(counted, tilt * p, 0.0), 1)
    tl.store(sums + row, tilts, mask=real)
    tl.store(sums + locations + row, means, mask=real)


@triton.jit
def _tilted_gradient(
    logits,
    gradient,
    pull,
    mean,
    marked,
    verified,
    image,
    inverse,
    elements,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    z, counted, inside = plain_block(logits, marked, verified, image, start, elements, C, BLOCK)
    first_row = start // C
    row = ((start - first_row * C).to(tl.int32) + inside) // C
    p, q, _, _ = hard_terms(z, 0.0, GAMMA_ZERO)
    own_pull = tl.load(pull + first_row + row, mask=counted, other=0.0)
    own_mean = tl.load(mean + first_row + row, mask=counted, other=0.0)
    slope = own_pull * tl.exp((p - 1.0) * inverse) * (1.0 + (p - own_mean) * inverse) * p * q
    _store_block(gradient, start, inside, elements, tl.where(counted, slope, 0.0), BLOCK)


@triton.jit
def _interval(bends, z, bend_count, STEPS: tl.constexpr):
    """How many of the sorted bends are at most z; 0 for NaN."""
    low = tl.zeros(z.shape, tl.int32)
    high = tl.zeros(z.shape, tl.int32) + bend_count
    for _ in range(STEPS):
        middle = (low + high) // 2
        searching = low < high
        above = searching & (tl.load(bends + middle, mask=searching, other=0.0) <= z)
        low = tl.where(above, middle + 1, low)
        high = tl.where(searching & ~above, middle, high)
    return low


@triton.jit(do_not_specialize=["copies", "bend_count"])
def _collect(
    logits,
    bends,
    table,
    scale,
    sane,
    marked,
    verified,
    image,
    copies,
    bend_count,
    elements,
    STEPS: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    z, counted, inside = plain_block(logits, marked, verified, image, start, elements, C, BLOCK)
    first, last = tl.load(bends), tl.load(bends + bend_count - 1)
    # No step reaches a logit below the first bend.
    counted = counted & ~(z < first)
    tl.store(sane + tl.program_id(0), tl.sum(tl.where(counted, z * 0.0, 0.0)))
    place = _interval(bends, z, bend_count, STEPS)
    height = (tl.minimum(tl.maximum(z, first), last) - first) * tl.load(scale)
    own = table + (tl.program_id(0) % copies).to(tl.int64) * (bend_count + 1) + place
    size = copies.to(tl.int64) * (bend_count + 1)
    tl.atomic_add(own, tl.full(z.shape, 1, tl.int64), mask=counted, sem="relaxed")
    tl.atomic_add(own + size, height.to(tl.int64), mask=counted, sem="relaxed")


@triton.jit(do_not_specialize=["bend_count"])
def _piecewise_linear(
    logits,
    gradient,
    bends,
    begin,
    value,
    slope,
    marked,
    verified,
    image,
    bend_count,
    elements,
    STEPS: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    z, counted, inside = plain_block(logits, marked, verified, image, start, elements, C, BLOCK)
    place = _interval(bends, z, bend_count, STEPS)
    rise = tl.load(slope + place) * (z - tl.load(begin + place))
    push = tl.maximum(tl.load(value + place) + rise, 0.0)
    # Below the first bend nothing is pushed, however far below it a logit lies.
    push = tl.where(counted & (place > 0), push, 0.0)
    _store_block(gradient, start, inside, elements, push, BLOCK)
