"""The chain: what is to be done, what is done already and why, and doing it."""
