"""How well a space is bound: ranks, recalls, the matrix of all pairs."""
