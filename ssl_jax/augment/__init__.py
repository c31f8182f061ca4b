"""Augmentations that run inside the compiled training step.

Images are float32 in [0, 1] of shape (H, W, C).
"""
