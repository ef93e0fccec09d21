"""The craft: torch lives here. Axes: latents (B, C, F, H, W), embeddings (B, L, D), frames (H, W, 3) uint8."""
