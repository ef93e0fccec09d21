"""Video files in and out through ffmpeg, one frame at a time. A frame is a (H, W, 3) uint8 RGB array."""

from __future__ import annotations

from typing import TypeAlias

from t2vcli.limits import load_libraries

load_libraries("numpy")  # before anything imports it

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402

Frame: TypeAlias = npt.NDArray[np.uint8]
