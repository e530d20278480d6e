"""One step of an optimiser compared with the formula of SGD with weight decay."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from afl.training.optimizer import build_optimizer, set_learning_rate


def test_only_kernels_and_matrices_decay_and_frozen_parameters_stay():
    """p - rate (gradient + decay p), without the decay for biases and norms."""
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2), nn.Linear(2, 2)
    )
    model[4].requires_grad_(False)
    optimizer = build_optimizer(partial(torch.optim.SGD, lr=0.5), model, weight_decay=0.1)
    set_learning_rate(optimizer, [0.5, 0.5], 0.4)
    model(torch.randn(2, 2, 4, 4)).square().sum().backward()
    decays = {"0.weight": 0.1, "3.weight": 0.1}
    expected = {
        name: (value - 0.2 * (value.grad + decays.get(name, 0.0) * value)).detach()
        for name, value in model.named_parameters()
        if value.requires_grad
    }
    frozen = model[4].weight.clone()
    optimizer.step()
    found = dict(model.named_parameters())
    assert len(expected) == 6 and torch.equal(model[4].weight, frozen)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].detach(), value)
