"""What a check is, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar
from unittest import SkipTest

from geobind_core.config.problems import suggest

Status = Literal["ok", "failed", "expected failure", "skipped"]
SubjectT = TypeVar("SubjectT")


class CheckError(AssertionError):
    """A check found something wrong. The message says which check, what, and where to look."""


@dataclass(frozen=True)
class CheckResult:
    """How a check ended.

    Attributes:
        status: `ok`, `failed`, `expected failure` or `skipped`.
        message: What was found, or why it was skipped or expected; empty where all is well.
        error: What was raised.
    """

    status: Status
    message: str = ""
    error: BaseException | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Check:
    """One thing that a plugin promises.

    Attributes:
        name: Its name; `str()` of it, so that it serves as an id in pytest.
        protects: What the check protects, in a sentence.
        hint: Where to look when it fails.
        body: Raises where the promise is not kept, and `unittest.SkipTest` where that cannot be told.
        expected_failure: Why it is known to fail; empty if it is to pass.
    """

    name: str
    protects: str
    hint: str
    body: Callable[[], None] = field(repr=False)
    expected_failure: str = ""

    def __str__(self) -> str:
        return self.name

    def result(self) -> CheckResult:
        """Makes the check and returns how it ended; raises nothing."""
        try:
            self.body()
        except SkipTest as reason:
            return CheckResult("skipped", str(reason))
        # What is checked is not ours, and may raise what it likes.
        except Exception as error:
            if self.expected_failure:
                return CheckResult("expected failure", self.expected_failure, error)
            message = str(error) if isinstance(error, CheckError) else f"{type(error).__name__}: {error}"
            return CheckResult("failed", message, error)
        if self.expected_failure:
            return CheckResult("failed", f"passes, and is declared to fail: {self.expected_failure}")
        return CheckResult("ok")

    def run(self) -> None:
        """Makes the check, for a test.

        Raises:
            CheckError: It failed, or passed although it is declared to fail.
            unittest.SkipTest: It could not be made, or failed as expected; pytest shows the reason.
        """
        result = self.result()
        if result.status == "failed":
            text = f"{self.name}: {result.message}\n  protects: {self.protects}\n  hint: {self.hint}"
            raise CheckError(text) from result.error
        if result.status != "ok":
            raise SkipTest(f"{result.status}: {result.message}")


@dataclass(frozen=True)
class Definition(Generic[SubjectT]):
    """A check before it is known what is checked."""

    name: str
    protects: str
    hint: str
    body: Callable[[SubjectT], None]


def checks_of(
    definitions: Sequence[Definition[SubjectT]],
    subject: SubjectT,
    owner: type,
    expected_failures: Mapping[str, str] | None,
) -> list[Check]:
    """Returns the checks of one subject.

    Args:
        definitions: The kit.
        subject: What is checked.
        owner: The class of it, which may declare `expected_failures`.
        expected_failures: Check -> why it is known to fail, beside what the class declares.

    Raises:
        ValueError: There is no check of a declared name, or a reason is empty.
    """
    expected: dict[str, Any] = {**getattr(owner, "expected_failures", {}), **(expected_failures or {})}
    names = [definition.name for definition in definitions]
    for name, reason in expected.items():
        if name not in names:
            raise ValueError(f"expected_failures: no check '{name}'. {suggest(name, names)}")
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(f"expected_failures: '{name}' has no reason")
    return [Check(d.name, d.protects, d.hint, _bound(d.body, subject), expected.get(d.name, "")) for d in definitions]


def _bound(body: Callable[[SubjectT], None], subject: SubjectT) -> Callable[[], None]:
    return lambda: body(subject)


def require(condition: object, message: str) -> None:
    """Raises CheckError unless a condition holds."""
    if not condition:
        raise CheckError(message)
