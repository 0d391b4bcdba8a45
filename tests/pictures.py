"""A small set of labelled grey pictures."""

import numpy as np

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 3
