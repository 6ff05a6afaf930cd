"""The examples in the docstrings of the hooks and of the base classes run as they stand."""

import doctest
from types import ModuleType

import pytest

from geobind_core.plugins import hooks, metric, modality


@pytest.mark.parametrize("module", [hooks, metric, modality], ids=lambda module: module.__name__)
def test_examples_run(module: ModuleType) -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted > 0
    assert failed == 0


@pytest.mark.parametrize("hook", [name for name in dir(hooks) if name.startswith("geobind_")])
def test_every_hook_has_an_example(hook: str) -> None:
    (found,) = doctest.DocTestFinder(recurse=False).find(getattr(hooks, hook), hook)
    assert any(hook in example.source for example in found.examples)
    assert any(example.want for example in found.examples)
