"""One stage: losses, steps, checkpoints, and the loop that Accelerate runs."""
