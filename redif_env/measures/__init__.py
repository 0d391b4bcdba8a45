"""Measures of samples: distances between pairs, distances between sets, the feature networks of both, and rendering.
Read ``distances`` first."""
