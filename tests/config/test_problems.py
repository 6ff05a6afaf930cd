"""What pydantic finds, said so that a person can act on it."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from geobind_core.config.models import Name, StrictModel
from geobind_core.config.problems import Problem, from_pydantic, suggest


class Constant(StrictModel):
    name: Literal["constant"] = "constant"


class Warmup(StrictModel):
    name: Literal["cosine_warmup"]
    warmup: float = Field(ge=0, description="Length of the rise.")


class Inner(StrictModel):
    name: Literal["adamw"] = "adamw"
    lr: float = Field(1.0, gt=0, description="Learning rate at its highest.")
    betas: tuple[float, float] = (0.9, 0.98)


class Item(StrictModel):
    weight: float = 1.0


class Outer(StrictModel):
    name: Name = "outer"
    epochs: int = Field(1, ge=1)
    required: str = Field("x", description="Something needed.")
    optimizer: Inner = Inner()
    scheduler: Annotated[Constant | Warmup, Field(discriminator="name")] = Constant()
    items: list[Item] | None = None
    settings: dict[Name, Any] = Field(default_factory=dict)
    unit: Literal["step", "epoch"] = "step"
    share: float | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Outer":
        if self.epochs == 13:
            raise ValueError("13 epochs bring bad luck")
        return self


class Needy(StrictModel):
    lr: float = Field(description="Learning rate at its highest.")


def problems(raw: object, model: type[StrictModel] = Outer) -> list[Problem]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(raw)
    return from_pydantic(caught.value, model, ("stages", 2))


@pytest.mark.parametrize(
    ("raw", "path", "message"),
    [
        (
            {"epoch": 3},
            ("epoch",),
            "unknown key 'epoch'. Available: epochs, items, name, optimizer, required, scheduler, settings, share, "
            "unit. Did you mean 'epochs'?",
        ),
        (
            {"optimizer": {"learning_rate": 3}},
            ("optimizer", "learning_rate"),
            "unknown key 'learning_rate'. Available: betas, lr, name.",
        ),
        (
            {"items": [{}, {"wieght": 2}]},
            ("items", 1, "wieght"),
            "unknown key 'wieght'. Available: weight. Did you mean 'weight'?",
        ),
        (
            {"scheduler": {"name": "cosine_warmup", "warmup": 1, "warmpu": 1}},
            ("scheduler", "cosine_warmup", "warmpu"),
            "unknown key 'warmpu'. Available: name, warmup. Did you mean 'warmup'?",
        ),
        (
            {"scheduler": {"name": "cosine_warmup"}},
            ("scheduler", "cosine_warmup", "warmup"),
            "'warmup' is required (Length of the rise).",
        ),
        (
            {"scheduler": {"name": "cosine_warm"}},
            ("scheduler", "name"),
            "found 'cosine_warm'. Available: constant, cosine_warmup. Did you mean 'cosine_warmup'?",
        ),
        (
            {"scheduler": {"warmup": 1}},
            ("scheduler", "name"),
            "'name' is required. Available: constant, cosine_warmup.",
        ),
        ({"scheduler": "constant"}, ("scheduler",), "found 'constant'; expected a mapping, such as {name: constant}."),
        ({"optimizer": "adamw"}, ("optimizer",), "found 'adamw'; expected a mapping, such as {name: adamw}."),
        ({"optimizer": None}, ("optimizer",), "found nothing; expected a mapping."),
        ({"settings": ["x"]}, ("settings",), "found ['x']; expected a mapping."),
        (
            {"settings": {"my audio": 1}},
            ("settings", "my audio"),
            "found 'my audio'; expected a name: letters, digits, _ and -, a letter first.",
        ),
        ({"name": "1st"}, ("name",), "found '1st'; expected a name: letters, digits, _ and -, a letter first."),
        (
            {"epochs": "many"},
            ("epochs",),
            "found 'many'; expected a valid integer, unable to parse string as an integer.",
        ),
        ({"epochs": 2.5}, ("epochs",), "found 2.5; expected a valid integer, got a number with a fractional part."),
        ({"epochs": None}, ("epochs",), "found nothing; expected a valid integer."),
        ({"epochs": 0}, ("epochs",), "found 0; expected a number greater than or equal to 1."),
        (
            {"optimizer": {"lr": 0}},
            ("optimizer", "lr"),
            "found 0; expected a number greater than 0 (Learning rate at its highest).",
        ),
        (
            {"optimizer": {"lr": float("nan")}},
            ("optimizer", "lr"),
            "found nan; expected a finite number (Learning rate at its highest).",
        ),
        (
            {"optimizer": {"lr": float("inf")}},
            ("optimizer", "lr"),
            "found inf; expected a finite number (Learning rate at its highest).",
        ),
        ({"optimizer": {"betas": [0.9]}}, ("optimizer", "betas"), "found [0.9]; expected more values."),
        (
            {"optimizer": {"betas": [0.9, True, 0.9]}},
            ("optimizer", "betas"),
            "found [0.9, True, 0.9]; tuple should have at most 2 items after validation, not 3.",
        ),
        ({"unit": "epochs"}, ("unit",), "found 'epochs'; expected 'step' or 'epoch'. Did you mean 'epoch'?"),
        ({"unit": 3}, ("unit",), "found 3; expected 'step' or 'epoch'."),
        ({"required": 3}, ("required",), "found 3; expected a valid string (Something needed)."),
        ({"required": True}, ("required",), "found true; expected a valid string (Something needed)."),
        ({"epochs": 13}, (), "13 epochs bring bad luck."),
        (
            {"share": "x" * 99},
            ("share",),
            f"found '{'x' * 56}...; expected a valid number, unable to parse string as a number.",
        ),
    ],
)
def test_message(raw: object, path: tuple[str | int, ...], message: str) -> None:
    (problem,) = problems(raw)
    assert (problem.path, problem.message) == (("stages", 2, *path), message)


def test_missing_setting() -> None:
    (problem,) = problems({}, Needy)
    assert problem.path == ("stages", 2, "lr")
    assert problem.message == "'lr' is required (Learning rate at its highest)."


def test_all_findings_are_kept_in_order() -> None:
    found = problems({"epochs": 0, "optimizer": {"lr": 0, "rl": 1}, "unit": "x"})
    assert [p.path[2:] for p in found] == [("epochs",), ("optimizer", "lr"), ("optimizer", "rl"), ("unit",)]


@pytest.mark.parametrize(
    ("name", "available", "text"),
    [
        ("adio", ["text", "audio", "satellite"], "Available: audio, satellite, text. Did you mean 'audio'?"),
        ("sonar", ["text", "audio"], "Available: audio, text."),
        ("x", [], "Available: none."),
        (3, ["a3", "b"], "Available: a3, b. Did you mean 'a3'?"),
    ],
)
def test_suggestion(name: object, available: list[str], text: str) -> None:
    assert suggest(name, available) == text
