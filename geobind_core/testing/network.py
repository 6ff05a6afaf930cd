"""Checks of a modality's network: what it returns, what it learns, what is kept of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from geobind_core.plugins.modality import Modality
from geobind_core.testing.check import CheckError, Definition, require
from geobind_core.testing.modality_subject import SEED, ModalitySubject, embedding
from geobind_core.testing.values import CLOSE, distance, rows_of

if TYPE_CHECKING:
    import torch
    from torch import nn


def _output(subject: ModalitySubject) -> None:
    subject.output()


def _looks_at_its_input(subject: ModalitySubject) -> None:
    _, found = subject.needed_output
    unit = found / found.norm(dim=1, keepdim=True)
    require(distance(unit[0], unit[1]) > 1e-6, "the first two samples have the same embedding")


def _row_alone(subject: ModalitySubject) -> None:
    network, together = subject.needed_output
    for row in range(len(together)):
        alone = embedding(network, rows_of(subject.needed_batch, slice(row, row + 1)))
        apart = distance(alone[0], together[row])
        # Not `>`: NaN is no agreement.
        require(apart <= CLOSE, f"row {row} alone is embedded otherwise than in its batch, by {apart:.1%}")


def _gradients(subject: ModalitySubject) -> None:
    import torch

    network, _ = subject.need(subject.output, "output")
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    require(trainable, "no parameter of the network requires a gradient")
    _backward(network, subject.needed_batch)
    without = [name for name, p in trainable.items() if p.grad is None]
    require(not without, f"no gradient reaches {', '.join(without[:5])}" + (" and others" if len(without) > 5 else ""))
    bad = [name for name, p in trainable.items() if p.grad is not None and not torch.isfinite(p.grad).all()]
    require(not bad, f"the gradient of {', '.join(bad[:5])} is not finite")
    moving = [p for p in trainable.values() if p.grad is not None and p.grad.abs().sum() > 0]
    require(moving, "every gradient is zero")


def _backward(network: nn.Module, batch: Any) -> None:
    """Computes gradients of something that every number of the embedding counts in."""
    import torch

    from geobind_core.space.encoder import as_output

    network.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        found = as_output(network(batch)).embedding
        if not found.requires_grad:
            raise CheckError("the output of the network has no gradient")
        unit = torch.nn.functional.normalize(found.float(), dim=-1)
        (unit * torch.randn_like(unit)).sum().backward()  # type: ignore[no-untyped-call]


def _trained(subject: ModalitySubject) -> nn.Module:
    """Returns a network that is not as it was built: a step was made, running statistics have run."""
    import torch

    network, _ = subject.need(subject.output, "output")
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if trainable:
        subject.need(lambda: _backward(network, subject.needed_batch), "gradients")
        torch.optim.SGD(trainable, lr=0.01).step()
    return network.eval()


def _moved(subject: ModalitySubject, source: nn.Module, modality: Modality[Any]) -> torch.Tensor:
    """Returns the embeddings of a network built anew, with the state of another that went through a file."""
    from safetensors.torch import load, save

    state = load(save({k: v.detach().contiguous().clone() for k, v in source.state_dict().items()}))
    network = subject.build(SEED + 1, modality)
    network.load_state_dict(state)
    return embedding(network, subject.needed_batch)


def _state(subject: ModalitySubject) -> None:
    trained = _trained(subject)
    apart = distance(_moved(subject, trained, subject.modality), embedding(trained, subject.needed_batch))
    require(apart <= 1e-6, f"with its saved state, a network built anew embeds otherwise, by {apart:.1%}")


def _rebuild(subject: ModalitySubject) -> None:
    trained = _trained(subject)
    config = subject.modality.rebuild_config(trained)
    for name in ("pretrained", "init_from"):
        require(getattr(config, name) is None, f"`rebuild_config` keeps `{name}`: a saved space would load it again")
    stored = type(config).model_validate(json.loads(config.model_dump_json()))
    rebuilt = subject.owner(stored)
    apart = distance(_moved(subject, trained, rebuilt), embedding(trained, subject.needed_batch))
    require(apart <= 1e-6, f"the network of `rebuild_config` embeds otherwise, by {apart:.1%}")


NETWORK_CHECKS: tuple[Definition[ModalitySubject], ...] = (
    Definition(
        "output",
        "Losses, the cache and the space can use the embeddings: `[B, D]`, finite, float32.",
        "Pool over time or space before returning; divide by nothing that can be zero; end in `.float()` if need be.",
        _output,
    ),
    Definition(
        "looks_at_its_input",
        "Different observations have different embeddings.",
        "Look for a ReLU that is always zero, values that are far out of scale, or an input that is not used.",
        _looks_at_its_input,
    ),
    Definition(
        "row_alone",
        "An embedding does not depend on what else is in the batch, so that one query finds what a thousand find.",
        "In evaluation mode use running statistics, not those of the batch; pass a mask for padding.",
        _row_alone,
    ),
    Definition(
        "gradients",
        "A stage trains the whole network; on several GPUs a parameter without a gradient stops it.",
        "Look for detach(), no_grad() and .data; set requires_grad to False for parts that are to stay as they are.",
        _gradients,
    ),
    Definition(
        "state",
        "A network that is saved and loaded is the same one: in a space, after an interruption.",
        "What is learned or drawn is to be a Parameter, a buffer, or in a ModuleList; no plain attribute, no list.",
        _state,
    ),
    Definition(
        "rebuild_config",
        "A space loads on a machine that has neither a network nor the pretrained weights.",
        "Override `rebuild_config` where `pretrained` also decides the architecture.",
        _rebuild,
    ),
)
