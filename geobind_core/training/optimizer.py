"""The optimizer and the schedule of a stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from geobind_core.config.models import AdamW, ConstantSchedule, CosineWarmRestarts, CosineWarmup

ScheduleConfig = ConstantSchedule | CosineWarmRestarts | CosineWarmup


def build_optimizer(modules: Iterable[nn.Module], config: AdamW) -> Optimizer:
    """Builds AdamW; vectors and scalars (biases, norms, the logit scale) get no weight decay."""
    # Each once: modules may share parameters.
    parameters = list(dict.fromkeys(p for module in modules for p in module.parameters() if p.requires_grad))
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        # One kernel for all parameters, instead of a dozen; for parameters it cannot do, torch says so itself.
        fused=all(p.is_floating_point() for p in parameters),
    )
    optimizer.register_load_state_dict_post_hook(_lay_out_as_parameters)
    return optimizer


def _lay_out_as_parameters(optimizer: Optimizer) -> None:
    """Arranges what was loaded in memory as the parameters are.

    The fused kernel goes through both as they lie there. A stage may go on in another layout than it had
    when its checkpoint was written: `channels_last` is the default on CUDA devices alone.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if getattr(value, "shape", None) == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def build_scheduler(
    optimizer: Optimizer, config: ScheduleConfig, *, lr: float, steps_per_epoch: int, total_steps: int
) -> LambdaLR:
    """Builds a schedule that is stepped once after every step of the optimizer."""
    return LambdaLR(
        optimizer, learning_rate_factor(config, lr=lr, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
    )


def learning_rate_factor(
    config: ScheduleConfig, *, lr: float, steps_per_epoch: int, total_steps: int
) -> Callable[[int], float]:
    """Returns the learning rate as a share of `lr`, as a function of the steps done.

    A pure function of the step, so that a stage that goes on has the rate of one that never stopped.
    """
    if isinstance(config, ConstantSchedule):
        return lambda step: 1.0
    unit = steps_per_epoch if config.unit == "epoch" else 1
    lowest = config.min_lr / lr
    if isinstance(config, CosineWarmRestarts):
        first, multiplier = config.t0 * unit, config.t_mult
        return lambda step: lowest + (1 - lowest) * _cosine(_share_of_cycle(step, first, multiplier))
    warmup = config.warmup * unit

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)  # the very first step must not be lost to a rate of 0
        return lowest + (1 - lowest) * _cosine(min(1.0, (step - warmup) / max(1.0, total_steps - warmup)))

    return factor


def _cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


def _share_of_cycle(step: int, first: float, multiplier: int) -> float:
    """Returns how far a step is into its cycle, in [0, 1) (Loshchilov & Hutter 2016)."""
    if multiplier == 1:
        return (step % first) / first
    cycle = math.floor(math.log(step / first * (multiplier - 1) + 1, multiplier) + 1e-12)
    start = first * (multiplier**cycle - 1) / (multiplier - 1)
    return float((step - start) / (first * multiplier**cycle))
