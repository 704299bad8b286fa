"""Region-level data attribution for text-to-image models: which box of which training image a generated box came from."""

import os

# Spinning OpenMP threads make shared cores 3 to 10 times slower; this must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"
