"""From gradients to new weights: clipping, the optimizer's step, the schedule."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from geobind_core.config.models import AlignConfig
from geobind_core.training.edges import EdgeLosses
from geobind_core.training.optimizer import build_optimizer, build_scheduler


class Updates:
    """The optimizer of a stage and its schedule, prepared together with the model.

    Args:
        accelerator: Accelerate.
        config: The stage's settings.
        model: The trained encoders; `self.model` is the prepared one.
        losses: The losses, which may have parameters of their own. They are not prepared: autocast
            must not touch the logits, which need float32.
        steps_per_epoch: For schedules that count in epochs.
        total_steps: For schedules that end with the stage.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: AlignConfig,
        model: nn.Module,
        losses: EdgeLosses,
        *,
        steps_per_epoch: int,
        total_steps: int,
    ) -> None:
        self.accelerator = accelerator
        self.clip_norm = config.optimizer.clip_norm
        self.losses = losses
        # FSDP2 divides the encoders' parameters among the processes; one optimizer cannot hold both kinds.
        divided = accelerator.distributed_type == DistributedType.FSDP
        learnable = any(p.requires_grad for p in losses.parameters())
        groups: list[list[nn.Module]] = [[model], [losses]] if divided and learnable else [[model, losses]]
        optimizers = [build_optimizer(group, config.optimizer) for group in groups]
        schedulers = [
            build_scheduler(
                optimizer,
                config.scheduler,
                lr=config.optimizer.lr,
                steps_per_epoch=steps_per_epoch,
                total_steps=total_steps,
            )
            for optimizer in optimizers
        ]
        self.model, optimizers[0], schedulers[0] = accelerator.prepare(model, optimizers[0], schedulers[0])
        if divided:
            _begin(optimizers[0])
        accelerator.register_for_checkpointing(losses, *optimizers[1:], *schedulers[1:])
        self._optimizers: list[Any] = optimizers
        self._schedulers: list[Any] = schedulers

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self._schedulers[0].get_last_lr()[0])

    def step(self) -> None:
        """Takes one step with the gradients that there are."""
        if self.clip_norm is not None:
            self._clip(self.clip_norm)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.losses.clamp_()

    def pass_time(self) -> None:
        """Takes the schedule one step further."""
        for scheduler in self._schedulers:
            scheduler.step()

    def _clip(self, largest: float) -> None:
        if len(self._optimizers) == 1:
            self.accelerator.clip_grad_norm_([*self.model.parameters(), *self.losses.parameters()], largest)
            return
        parts = [[p for p in module.parameters() if p.grad is not None] for module in (self.model, self.losses)]
        norms = [nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]) for part in parts]
        whole = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
        total = torch.linalg.vector_norm(torch.stack(whole))
        for part in parts:
            nn.utils.clip_grads_with_norm_(part, largest, total)


def _begin(optimizer: Any) -> None:
    """Gives each parameter the state that AdamW starts from; FSDP2's checkpoints need one, gradient or not."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            zeros = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p] = {"step": torch.zeros((), device=p.device), **zeros}


def full_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Returns a module's state on the CPU, put together again where it is divided among processes."""
    return {
        name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().cpu()
        for name, tensor in module.state_dict().items()
    }
