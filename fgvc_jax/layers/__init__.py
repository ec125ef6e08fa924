"""Shared parts of models: normalisation, initializers, gradient checkpointing."""
