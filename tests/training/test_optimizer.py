"""Learning rates, step by step, and what is decayed."""

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from geobind_core.config.models import AdamW, ConstantSchedule, CosineWarmRestarts, CosineWarmup
from geobind_core.training.optimizer import ScheduleConfig, build_optimizer, build_scheduler

LR = 3e-4


def rates(config: ScheduleConfig, steps: int, *, steps_per_epoch: int = 7, total: int | None = None) -> list[float]:
    """Returns the learning rate that each of so many steps of the optimizer is taken with."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = build_scheduler(optimizer, config, lr=LR, steps_per_epoch=steps_per_epoch, total_steps=total or steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def rates_of_torch(t0: int, t_mult: int, minimum: float, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=t0, T_mult=t_mult, eta_min=minimum)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("t_mult", [1, 2, 3])
@pytest.mark.parametrize("t0", [1, 5, 12])
@pytest.mark.parametrize("minimum", [0.0, 1e-5])
def test_warm_restarts_are_torchs(t0: int, t_mult: int, minimum: float) -> None:
    config = CosineWarmRestarts(name="cosine_warm_restarts", t0=t0, t_mult=t_mult, min_lr=minimum)
    assert rates(config, 400) == pytest.approx(rates_of_torch(t0, t_mult, minimum, 400), rel=1e-6, abs=1e-12)


def test_warm_restarts_in_epochs() -> None:
    config = CosineWarmRestarts(name="cosine_warm_restarts", t0=2, t_mult=2, unit="epoch")
    assert rates(config, 100, steps_per_epoch=7) == pytest.approx(rates_of_torch(14, 2, 0.0, 100), rel=1e-6, abs=1e-12)


def test_long_schedules_restart_on_the_step() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    config = CosineWarmRestarts(name="cosine_warm_restarts", t0=3000, t_mult=2)
    scheduler = build_scheduler(optimizer, config, lr=LR, steps_per_epoch=1, total_steps=1)
    factor = scheduler.lr_lambdas[0]
    for cycle in range(1, 12):
        start = 3000 * (2**cycle - 1)
        assert factor(start) == pytest.approx(1.0, abs=1e-9)
        assert factor(start - 1) < 1e-5


def test_warmup_rises_in_a_line_and_falls_in_a_cosine() -> None:
    found = rates(CosineWarmup(name="cosine_warmup", warmup=4, min_lr=1e-5), 24)
    assert found[:4] == pytest.approx([LR * (i + 1) / 5 for i in range(4)])
    assert found[4] == pytest.approx(LR)
    assert found[4:] == sorted(found[4:], reverse=True)
    middle = 4 + (24 - 4) // 2
    assert found[middle] == pytest.approx((LR + 1e-5) / 2)
    expected = [1e-5 + (LR - 1e-5) * (1 + math.cos(math.pi * i / 20)) / 2 for i in range(20)]
    assert found[4:] == pytest.approx(expected)


def test_warmup_in_epochs() -> None:
    found = rates(CosineWarmup(name="cosine_warmup", warmup=1, unit="epoch"), 21, steps_per_epoch=7)
    assert found[:8] == pytest.approx([LR * (i + 1) / 8 for i in range(8)])


def test_warmup_longer_than_the_stage_still_trains() -> None:
    found = rates(CosineWarmup(name="cosine_warmup", warmup=100), 10)
    assert min(found) > 0
    assert found == sorted(found)


def test_constant() -> None:
    assert rates(ConstantSchedule(), 5) == [LR] * 5


def test_vectors_and_scalars_are_not_decayed() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.norm = nn.LayerNorm(2)
            self.convolution = nn.Conv2d(1, 1, 2)
            self.scale = nn.Parameter(torch.tensor(2.0))

    module = Scaled()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = build_optimizer([module], AdamW(lr=0.1, weight_decay=0.5))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in module.named_parameters():
        shrunk = before[name] * (1 - 0.1 * 0.5) if parameter.ndim >= 2 else before[name]
        torch.testing.assert_close(parameter.detach(), shrunk, msg=name)


def test_settings_reach_the_optimizer_and_frozen_parameters_do_not() -> None:
    module, fixed = nn.Linear(3, 2), nn.Linear(2, 2)
    fixed.requires_grad_(False)
    config = AdamW(lr=LR, betas=(0.99, 0.98), eps=1e-7, weight_decay=0.3)
    optimizer = build_optimizer([module, fixed], config)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in module.parameters()}
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (LR, (0.99, 0.98), 1e-7)


def test_a_parameter_of_two_modules_is_updated_once() -> None:
    shared = nn.Linear(2, 2, bias=False)
    optimizer = build_optimizer([nn.Sequential(shared), nn.Sequential(shared)], AdamW(lr=0.1))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1
