"""Adaptive Focal Loss: losses, training, evaluation, tracking and reporting."""
