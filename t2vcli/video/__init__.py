"""Video files in and out through ffmpeg, one frame at a time. A frame is a (H, W, 3) uint8 RGB array."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Frame: TypeAlias = npt.NDArray[np.uint8]
