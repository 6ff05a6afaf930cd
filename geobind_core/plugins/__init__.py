"""Plugins: what they may provide, and the manager that finds and isolates them."""
