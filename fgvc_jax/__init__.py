"""Fine-grained visual classification in JAX/Flax."""

__version__ = "0.1.0"


def load(run, phase="", which="best"):
    """The classifier of a finished run: see `fgvc_jax.inference.load`."""
    from fgvc_jax.inference import load as load_run

    return load_run(run, phase, which)
