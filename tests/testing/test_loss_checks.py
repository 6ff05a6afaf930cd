"""The kit for losses finds what is planted, by the check that is meant for it."""

from typing import Any

import pytest
import torch
from pydantic import ConfigDict
from torch import nn

from geobind_core import EncoderOutput, LocalPair, Loss, LossConfig, LossOutput
from geobind_core.testing import loss_checks

pytestmark = pytest.mark.usefixtures("one_thread")


class PullConfig(LossConfig):
    strength: float = 2.0


def cross_entropy(query: torch.Tensor, gallery: torch.Tensor, offset: int, total: int) -> torch.Tensor:
    own = torch.arange(len(query)) + offset
    return nn.functional.cross_entropy(query @ gallery.T, own, reduction="sum") / total


class PullModule(nn.Module):
    """Cross-entropy by shares, in both directions. Those below differ from it in one thing each."""

    def __init__(self, config: PullConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.tensor(config.strength))

    def total(self, pair: LocalPair) -> int:
        return len(pair.all_first.embedding)

    def forward_local(self, pair: LocalPair) -> LossOutput:
        parts = []
        if self.config.direction != "second_to_first":
            parts.append((pair.first, pair.all_second))
        if self.config.direction != "first_to_second":
            parts.append((pair.second, pair.all_first))
        found = [
            cross_entropy(self.scale * query.embedding, gallery.embedding, pair.offset, self.total(pair))
            for query, gallery in parts
        ]
        return LossOutput(torch.stack(found).mean(), {"scale": self.scale.detach()})


class Pull(Loss[Any]):
    name = "pull"
    Config = PullConfig
    module: type[nn.Module] = PullModule

    def build(self) -> nn.Module:
        return self.module(self.config)


class WholeOnly(Pull):
    """Without forward_local, with labels; nothing is wrong with it."""

    class module(nn.Module):
        def __init__(self, config: PullConfig) -> None:
            super().__init__()

        def forward(self, first: EncoderOutput, second: EncoderOutput, same_label: Any = None) -> LossOutput:
            similarity = first.embedding @ second.embedding.T
            own = torch.eye(len(similarity), dtype=torch.bool)
            wrong = ~own if same_label is None else ~(own | same_label)
            value = (similarity * wrong).sum() / wrong.sum() - similarity.diag().mean()
            return LossOutput(value, {"rows": float(len(similarity))})


class UsesTokens(WholeOnly):
    """A loss that needs more than embeddings gets it."""

    needs = ("tokens", "log_variance")

    class module(nn.Module):
        def __init__(self, config: PullConfig) -> None:
            super().__init__()

        def forward(self, first: EncoderOutput, second: EncoderOutput, same_label: Any = None) -> LossOutput:
            assert first.tokens is not None
            assert first.mask is not None
            assert first.log_variance is not None
            assert second.log_variance is not None
            apart = (first.embedding - second.embedding).pow(2).sum(1)
            variance = first.log_variance.mean(1).exp() + second.log_variance.mean(1).exp()
            return LossOutput((apart * variance).mean() + 0 * first.tokens.sum())


class DividesByItsShare(Pull):
    class module(PullModule):
        def total(self, pair: LocalPair) -> int:
            return len(pair.first.embedding)


class ForgetsTheOffset(Pull):
    class module(PullModule):
        def forward_local(self, pair: LocalPair) -> LossOutput:
            return super().forward_local(LocalPair(**{**vars(pair), "offset": 0}))


class WrongSign(Pull):
    class module(PullModule):
        def forward_local(self, pair: LocalPair) -> LossOutput:
            return LossOutput(-super().forward_local(pair).value)


class LogsAGraph(Pull):
    class module(PullModule):
        def forward_local(self, pair: LocalPair) -> LossOutput:
            return LossOutput(super().forward_local(pair).value, {"scale": self.scale})


class NotANumber(Pull):
    class module(PullModule):
        def forward_local(self, pair: LocalPair) -> LossOutput:
            found = super().forward_local(pair)
            return found if pair.labels is None else LossOutput(found.value * torch.nan)


class Detached(Pull):
    class module(PullModule):
        def forward_local(self, pair: LocalPair) -> LossOutput:
            still = {"second": _still(pair.second), "all_second": _still(pair.all_second)}
            return super().forward_local(LocalPair(**{**vars(pair), **still}))


def _still(output: EncoderOutput) -> EncoderOutput:
    return EncoderOutput(output.embedding.detach())


class Slip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value * 1

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient * 1.01


class WrongGradient(Pull):
    class module(PullModule):
        def forward_local(self, pair: LocalPair) -> LossOutput:
            return LossOutput(Slip.apply(super().forward_local(pair).value))


class OrderCounts(Pull):
    class module(PullModule):
        def forward_local(self, pair: LocalPair) -> LossOutput:
            first = pair.first.embedding * torch.linspace(1, 2, len(pair.first.embedding))[:, None]
            return super().forward_local(LocalPair(**{**vars(pair), "first": EncoderOutput(first)}))


class BothAreOne(Pull):
    class module(PullModule):
        def forward_local(self, pair: LocalPair) -> LossOutput:
            turned = {**vars(pair), "first": pair.second, "all_second": pair.all_first}
            return super().forward_local(LocalPair(**turned) if self.config.direction == "first_to_second" else pair)


class LostScale(Pull):
    class module(PullModule):
        def __init__(self, config: PullConfig) -> None:
            super().__init__(config)
            self.offset = float(torch.rand(()))

        def forward_local(self, pair: LocalPair) -> LossOutput:
            return LossOutput(super().forward_local(pair).value + self.offset)


class Lenient(Pull):
    class Config(PullConfig):
        model_config = ConfigDict(extra="ignore")


def failures(loss: Any) -> dict[str, str]:
    checks = [check for check in loss_checks(loss) if check.name != "import_without_torch"]
    results = {str(check): check.result() for check in checks}
    return {name: result.message for name, result in results.items() if result.status == "failed"}


@pytest.mark.parametrize("loss", [Pull, WholeOnly, UsesTokens])
def test_good_losses_pass_every_check(loss: type[Pull]) -> None:
    assert failures(loss) == {}


@pytest.mark.parametrize(
    ("faulty", "checks", "message"),
    [
        (DividesByItsShare, {"shares"}, "add up to"),
        (ForgetsTheOffset, {"shares"}, "add up to"),
        (WrongSign, {"prefers_what_belongs_together"}, "rows that belong together have the loss"),
        (LogsAGraph, {"value"}, "logs['scale'] is not detached"),
        (NotANumber, {"value", "order_of_rows", "shares"}, "with labels the value is nan"),
        (Detached, {"gradients", "differences"}, "no gradient reaches second"),
        (WrongGradient, {"differences"}, "differences say"),
        (OrderCounts, {"order_of_rows", "shares", "directions"}, "the rows in another order give"),
        (BothAreOne, {"directions"}, "of the sides exchanged"),
        (LostScale, {"state", "order_of_rows", "shares", "directions", "differences"}, "with its saved state"),
        (Lenient, {"config_unknown_key"}, "without a word"),
    ],
)
def test_finds_what_is_planted(faulty: type[Pull], checks: set[str], message: str) -> None:
    found = failures(faulty)
    assert found
    assert set(found) <= checks
    assert any(message in text for text in found.values())
