"""Shared parts of models: convolution, attention, normalisation, initializers, gradient checkpointing."""
