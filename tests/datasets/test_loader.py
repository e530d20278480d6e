"""Order of images: every image once per epoch, for any number of processes and workers, from any step on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice, pairwise
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import (
    Batch,
    ColorJitter,
    CropTransform,
    DetectionDataset,
    EpochPlan,
    PadOnly,
    ResizeTransform,
    aspect_groups,
    exposure,
    make_eval_loader,
    make_train_loader,
    read_coco,
    read_shapes,
    repeat_factors,
)
from datasets.batch import padded_size
from datasets.transforms import resized_size

# The divisors of training with a compiled pass (afl.training.compiled).
DIVISORS_COMPILED = (128, 256)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**31))
def test_every_image_is_used_once_per_epoch_for_any_world_size(num_images, world_size, share, seed):
    batch_size = world_size * share
    plans = [
        EpochPlan(num_images, batch_size, seed=seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    seen: Counter = Counter()
    for step in range(-(-2 * num_images // batch_size)):
        parts = [plan.batch(step) for plan in plans]
        assert all(len(part) == share for part in parts)
        seen.update(key for part in parts for key in part)
    for epoch in (0, 1):
        assert all(seen[(epoch, i, 0)] == 1 for i in range(num_images))
    assert max(seen.values()) == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.integers(1, 4),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_grouped_epochs_have_the_same_images_and_few_mixed_batches(groups, world_size, share, repeated, seed):
    groups, batch_size = np.array(groups), world_size * share
    options = {"seed": seed, "repeat_factors": 1 + np.arange(len(groups)) % 3 / 2 if repeated else None}
    plan = EpochPlan(len(groups), batch_size, groups=groups, **options)
    plain = EpochPlan(len(groups), batch_size, **options)
    for epoch in range(3):
        assert sorted(plan.order(epoch)) == sorted(plain.order(epoch))
    # In each epoch, only the batch that the previous epoch began and the batches of the remaining images are mixed.
    steps = -(-sum(len(plan.order(epoch)) for epoch in range(3)) // batch_size)
    mixed = [len({int(groups[i]) for _, i, _ in plan.batch(step)}) > 1 for step in range(steps)]
    assert sum(mixed) <= 3 * (1 + len(set(groups.tolist()))) + 1
    # The stream can start at any step, and the ranks share the batch of one process.
    step = 2 * steps // 3
    fresh = [
        EpochPlan(len(groups), batch_size, rank=rank, world_size=world_size, groups=groups, **options)
        for rank in range(world_size)
    ]
    assert [key for part in fresh for key in part.batch(step)] == plan.batch(step)


def test_full_batches_of_a_large_epoch_have_one_group_and_a_random_order():
    groups = np.arange(1000) % 2
    plan = EpochPlan(1000, 4, seed=1, groups=groups)
    kinds = [{int(groups[i]) for _, i, _ in plan.batch(step)} for step in range(250)]
    assert all(len(kind) == 1 for kind in kinds)
    # 125 batches of each group in random order change the group about 125 times (standard deviation 8).
    assert 90 < sum(one != other for one, other in pairwise(kinds)) < 160


def test_an_epoch_that_begins_in_a_batch_has_full_batches_of_one_group():
    groups = np.arange(1001) % 2
    plan = EpochPlan(1001, 4, seed=1, groups=groups)
    mixed = [len({int(groups[i]) for _, i, _ in plan.batch(step)}) > 1 for step in range(4 * 1001 // 4)]
    # Of each of four epochs: the batch that the epoch before it began, and at most two of the images that fill no batch.
    assert sum(mixed) <= 12


def coco_like_sizes(count: int) -> np.ndarray:
    """Heights and widths (count, 2), with about COCO's shares of 4 : 3, 3 : 2, upright and square images and panoramas."""
    rng = np.random.default_rng(0)
    common = np.array([(480, 640), (427, 640), (640, 480), (640, 427), (640, 640), (375, 500), (426, 640)])
    sizes = common[rng.choice(len(common), count, p=[0.36, 0.22, 0.13, 0.08, 0.03, 0.1, 0.08])]
    aspect = np.exp(rng.uniform(-np.log(3.5), np.log(3.5), count))
    other = np.stack([640 / aspect.clip(min=1), 640 * aspect.clip(max=1)], 1).round().astype(int)
    return np.where(rng.random((count, 1)) < 0.08, other, sizes)


def padding_and_shapes(sizes: np.ndarray, grouped: bool, divisors: tuple[int, int]) -> tuple[float, int]:
    """The ratio of padded to real pixels, and the number of shapes of batches, in 2,400 steps of 16 images."""
    index = SimpleNamespace(heights=sizes[:, 0], widths=sizes[:, 1])
    plan = EpochPlan(len(sizes), 16, groups=aspect_groups(index) if grouped else None)
    rng = np.random.default_rng(1)
    padded, real, shapes = 0, 0, set()
    for step in range(2400):
        sides = rng.choice((640, 672, 704, 736, 768, 800), 16)
        images = [
            resized_size(*sizes[i].tolist(), sides[0 if grouped else k], 1333)
            for k, (_, i, _) in enumerate(plan.batch(step))
        ]
        height, width = padded_size(images, divisors)
        padded += height * width * len(images)
        real += sum(height * width for height, width in images)
        shapes.add((height, width))
    return padded / real, len(shapes)


def test_groups_and_one_scale_per_batch_save_padding_and_compiled_shapes():
    sizes = coco_like_sizes(40_000)
    plain, _ = padding_and_shapes(sizes, grouped=False, divisors=(32, 32))
    grouped, _ = padding_and_shapes(sizes, grouped=True, divisors=(32, 32))
    assert plain > 1.8 and grouped <= 1.2
    plain, shapes_of_plain = padding_and_shapes(sizes, grouped=False, divisors=(128, 128))
    grouped, shapes_of_grouped = padding_and_shapes(sizes, grouped=True, divisors=DIVISORS_COMPILED)
    assert plain > 1.9 and grouped <= 1.35
    assert shapes_of_grouped < shapes_of_plain and shapes_of_grouped <= 16


def test_images_of_a_batch_share_their_short_side(shapes_folder):
    index = read_shapes(shapes_folder, split="val", annotation_format="coco").select(range(24))
    dataset = DetectionDataset(index, ResizeTransform((64, 80, 96, 112), 400, flip=0.0), seed=3)
    plan = EpochPlan(24, 4, seed=5)
    batches = first(12, make_train_loader(dataset, plan))
    sides = [{int(size.min()) for size in batch.sizes} for batch in batches]
    assert all(len(side) == 1 for side in sides) and len(set.union(*sides)) > 1
    (again,) = first(1, make_train_loader(dataset, plan, start_step=7))
    assert torch.equal(again.sizes, batches[7].sizes)
    dataset.seed = 4
    others = [
        {int(size.min()) for size in batch.sizes} for batch in first(12, make_train_loader(dataset, plan))
    ]
    assert others != sides


def test_a_square_batch_is_padded_to_multiples_of_the_short_side():
    assert padded_size([(90, 96), (96, 40)], (32, 64)) == (96, 96)
    assert padded_size([(90, 97), (96, 40)], (32, 64)) == (96, 128)
    assert padded_size([(130, 97), (96, 40)], (32, 64)) == (192, 128)


def test_the_ranks_share_the_batch_of_one_process():
    whole = EpochPlan(23, 6, seed=4)
    parts = [EpochPlan(23, 6, seed=4, rank=rank, world_size=3) for rank in range(3)]
    for step in range(20):
        assert whole.batch(step) == [key for part in parts for key in part.batch(step)]


def test_a_batch_is_a_function_of_its_step():
    plan = EpochPlan(11, 4, seed=1)
    expected = [plan.batch(step) for step in range(30)]
    order = np.random.default_rng(0).permutation(30)
    assert [plan.batch(step) for step in order] == [expected[step] for step in order]
    assert EpochPlan(11, 4, seed=1).batch(17) == expected[17]
    assert [EpochPlan(11, 4, seed=2).batch(step) for step in range(30)] != expected


def test_epochs_have_different_uniform_orders():
    plan = EpochPlan(5, 5, seed=0)
    firsts = Counter(int(plan.order(epoch)[0]) for epoch in range(2000))
    # The counts of five outcomes with probability 0.2 have a standard deviation of 18.
    assert all(abs(count - 400) < 90 for count in firsts.values()) and len(firsts) == 5


@pytest.mark.parametrize(("num_images", "batch_size", "world_size"), [(0, 4, 1), (5, 0, 1), (5, 4, 3)])
def test_impossible_plans_are_rejected(num_images, batch_size, world_size):
    with pytest.raises(ValueError, match="no images|cannot be divided evenly"):
        EpochPlan(num_images, batch_size, world_size=world_size)


@pytest.mark.parametrize("count_instances", [False, True])
def test_repeat_factors_equal_the_published_formulas(shapes_folder, count_instances):
    """Of LVIS, and of instance-aware sampling; crowd regions and difficult objects do not count."""
    index = read_shapes(shapes_folder, split="train", annotation_format="lvis")
    kind = np.random.default_rng(0).integers(0, 8, len(index.labels))
    index = replace(index, crowd=kind == 0, difficult=kind == 1)
    threshold = 0.05
    factors = repeat_factors(index, threshold, count_instances=count_instances)
    chosen = [index.annotations(i) for i in range(len(index))]
    labels = [index.labels[own][kind[own] > 1].tolist() for own in chosen]
    everything = [label for own in labels for label in own]
    for i in range(0, len(index), 7):
        expected = 1.0
        for c in labels[i]:
            share = sum(c in own for own in labels) / len(labels)
            if count_instances:
                share = (share * everything.count(c) / len(everything)) ** 0.5
            expected = max(expected, (threshold / share) ** 0.5)
        assert factors[i] == pytest.approx(expected)
    assert factors.min() == 1 and factors.max() > 3


def test_images_are_repeated_according_to_their_factor():
    factors = np.array([1.0, 1.25, 2.5, 3.0])
    plan = EpochPlan(4, 3, seed=0, repeat_factors=factors)
    counts = np.array([np.bincount(plan.order(epoch), minlength=4) for epoch in range(800)])
    np.testing.assert_allclose(counts.mean(axis=0), factors, atol=0.08)
    assert set(counts[:, 2]) == {2, 3} and set(counts[:, 3]) == {3}
    # The stream consists of the orders of the epochs, and it can start at any step.
    fresh = EpochPlan(4, 3, seed=0, repeat_factors=factors)
    late = fresh.batch(40)
    stream = []
    for epoch in range(30):
        seen = Counter()
        for i in plan.order(epoch):
            stream.append((epoch, int(i), seen[i]))
            seen[i] += 1
    assert late == stream[120:123]
    assert [key for step in range(41) for key in fresh.batch(step)] == stream[:123]


def test_each_image_draws_its_own_repetition():
    plan = EpochPlan(400, 4, seed=0, repeat_factors=np.full(400, 1.5))
    # Half of 400 images, with a standard deviation of 10.
    assert all(150 < len(plan.order(epoch)) - 400 < 250 for epoch in range(20))


def test_exposure_equals_the_objects_that_the_epochs_show(shapes_folder):
    index = read_shapes(shapes_folder, split="train", annotation_format="lvis")
    kind = np.random.default_rng(1).integers(0, 8, len(index.labels))
    index = replace(index, crowd=kind == 0, difficult=kind == 1)
    factors = repeat_factors(index, 0.3, count_instances=True)
    plan = EpochPlan(len(index), 4, seed=0, repeat_factors=factors)
    objects = np.array(
        [
            np.bincount(index.labels[own][kind[own] > 1], minlength=index.num_classes)
            for own in map(index.annotations, range(len(index)))
        ]
    )
    times = sum(np.bincount(plan.order(epoch), minlength=len(index)) for epoch in range(400))
    shown, images = times @ objects, times.sum()
    without = np.bincount(index.labels[kind > 1], minlength=index.num_classes) / len(index)
    expected = np.divide(shown / images, without, out=np.full(len(without), np.nan), where=without > 0)
    np.testing.assert_allclose(exposure(index, factors), expected, rtol=0.03)
    assert np.nanmax(expected) > 1.5 and np.nanmin(expected) < 0.95


def test_every_repetition_of_an_image_is_augmented_differently(dataset):
    plan = EpochPlan(len(dataset), 10, seed=0, repeat_factors=np.full(len(dataset), 3.0))
    plain = EpochPlan(len(dataset), 10, seed=0)
    shown = {}
    for batch in first(18, make_train_loader(dataset, plan)):
        for image_id, matrix in zip(batch.image_ids.tolist(), batch.matrices, strict=True):
            shown.setdefault(image_id, []).append(tuple(matrix.flatten().tolist()))
    assert len(shown) == 60 and all(len(set(matrices)) == 3 for matrices in shown.values())
    # The first occurrence is the one of a training without repetition.
    for batch in first(6, make_train_loader(dataset, plain)):
        for image_id, matrix in zip(batch.image_ids.tolist(), batch.matrices, strict=True):
            assert shown[image_id][0] == tuple(matrix.flatten().tolist())


def first(count: int, batches: Iterable[Batch]) -> list[Batch]:
    return list(islice(batches, count))


def equal(one: Batch, other: Batch) -> bool:
    names = ("images", "boxes", "labels", "ignored", "sizes", "image_ids", "matrices", "extreme_points")
    return all(
        torch.equal(torch.nan_to_num(getattr(one, name)), torch.nan_to_num(getattr(other, name)))
        for name in names
    )


@pytest.fixture(scope="module")
def dataset(shapes_folder) -> DetectionDataset:
    index = read_shapes(shapes_folder, split="val", annotation_format="coco").select(range(60))
    transform = CropTransform(64, border=16, color=ColorJitter())
    return DetectionDataset(index, transform, seed=3, extreme_source="masks")


def test_batches_do_not_depend_on_the_number_of_workers(dataset):
    plan = EpochPlan(len(dataset), 8, seed=5)
    alone = first(6, make_train_loader(dataset, plan))
    helped = first(6, make_train_loader(dataset, plan, num_workers=2))
    assert len(alone) == len(helped) == 6
    assert all(equal(a, b) for a, b in zip(alone, helped, strict=True))
    assert not equal(alone[0], alone[1])


def test_the_runs_of_a_sweep_can_use_workers(dataset):
    # A sweep runs in joblib's processes, whose default start method loaders do not support.
    plan = EpochPlan(len(dataset), 8, seed=5)
    (ids,) = joblib.Parallel(n_jobs=2)([joblib.delayed(loaded_ids)(dataset, plan)])
    assert ids == [batch.image_ids.tolist() for batch in first(3, make_train_loader(dataset, plan))]


def loaded_ids(dataset: DetectionDataset, plan: EpochPlan) -> list[list[int]]:
    batches = first(3, make_train_loader(dataset, plan, num_workers=1))
    return [batch.image_ids.tolist() for batch in batches]


def test_continuing_in_an_epoch_gives_its_remaining_batches(dataset):
    plan = EpochPlan(len(dataset), 8, seed=5)
    through = first(10, make_train_loader(dataset, plan))
    resumed = first(4, make_train_loader(dataset, EpochPlan(len(dataset), 8, seed=5), start_step=6))
    assert all(equal(a, b) for a, b in zip(through[6:], resumed, strict=True))
    endless = iter(make_train_loader(dataset, plan, start_step=9))
    assert equal(next(endless), through[9])


def test_loading_does_not_change_the_global_generator(dataset):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first(2, make_train_loader(dataset, EpochPlan(len(dataset), 4)))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_shows_each_image_exactly_once(shared_data, world_size):
    folder = shared_data / "coco_sample"
    index = read_coco(folder / "annotations" / "instances_val2017.json", folder / "val2017").select(range(14))
    dataset = DetectionDataset(index, PadOnly())
    seen = []
    for rank in range(world_size):
        for batch in make_eval_loader(dataset, 4, rank=rank, world_size=world_size):
            assert 1 <= len(batch) <= 4
            seen += batch.image_ids.tolist()
    assert sorted(seen) == sorted(index.image_ids.tolist())
