"""Peak memory of every stage without a GPU: the engine's own functions run on tensors without data, under a tracker.

pretend    tensors that have a place (host or device) and no data
tracker    which storages are alive, block by block
kernels    what CUDA's kernels take besides their results
allocator  what torch's caching allocator makes of it
stages     the four stages of a run put through these
"""

from t2vcli.engine.estimate.stages import StageEstimate, estimate

__all__ = ["StageEstimate", "estimate"]
