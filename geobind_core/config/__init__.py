"""`stages.yaml`: its grammar, its lines, and the messages when something in it is wrong."""
