"""The joint space: encoders, their weights and lineage, and how things are embedded."""
