"""Data: tables of paired observations, their splits, and how their cells become batches."""
