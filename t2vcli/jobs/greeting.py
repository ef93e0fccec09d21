"""What a worker says of itself before it is given a job."""

from __future__ import annotations

import os
import socket
from typing import Any

import torch

from t2vcli import metadata


def greeting() -> dict[str, Any]:
    """Returns what must be alike among the workers of a batch, for their frames to be: versions, GPU, threads on a CPU."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    return {
        "versions": metadata.versions(),
        "gpu": gpu,
        "threads": 0 if gpu else torch.get_num_threads(),
        "node": socket.gethostname(),
        "pid": os.getpid(),
    }
