"""The conformance kit for authors of plugins: checks with names, for pytest and for `geobind plugins check`.

    import pytest
    from geobind_core.testing import modality_checks

    @pytest.mark.parametrize("check", modality_checks(Weather), ids=str)
    def test_conformance(check):
        check.run()

It needs no pytest: a check that fails raises `CheckError`, one that cannot be made `unittest.SkipTest`.
What is known to fail is declared with a reason, in `expected_failures` of the class or of the call. Calling
one of these functions is cheap and imports no torch; the work is done when a check runs.
"""

from geobind_core.testing.check import Check as Check
from geobind_core.testing.check import CheckError as CheckError
from geobind_core.testing.check import CheckResult as CheckResult
from geobind_core.testing.loss import loss_checks as loss_checks
from geobind_core.testing.modality import modality_checks as modality_checks
from geobind_core.testing.source import source_checks as source_checks

__all__ = ["Check", "CheckError", "CheckResult", "loss_checks", "modality_checks", "source_checks"]
