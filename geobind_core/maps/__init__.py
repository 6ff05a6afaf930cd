"""Scores over a part of the Earth, as GeoTIFF and as a picture."""
