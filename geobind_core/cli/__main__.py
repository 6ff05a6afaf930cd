"""`python -m geobind_core.cli`."""

from geobind_core.cli import main

main()
