"""Settings of the whole suite, made before torch is imported."""

from __future__ import annotations

import os

# Two processes whose waiting threads spin slow each other down 10 to 100 times.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
