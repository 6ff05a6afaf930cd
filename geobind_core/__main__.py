"""`python -m geobind_core` is `geobind`, for launchers that start a module."""

from geobind_core.cli import main

main()
