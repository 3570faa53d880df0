"""The native library is part of a hub kernel: ``_ops`` has loaded it, or importing the kernel has failed."""

from __future__ import annotations

from pathlib import Path

NATIVE = Path(__file__).parent
WHY_NOT = None
