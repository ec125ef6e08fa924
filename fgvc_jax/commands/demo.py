"""fgvc demo RUN [--port=7860]

A page in the browser, on this machine alone (127.0.0.1): drop a photo, see the likeliest classes with their
probabilities, and why the first and not the second, by heat maps and the nearest training photos of both.
"""

import argparse

from fgvc_jax.errors import UserError


def main() -> None:
    """Serves the page of the run that the command line names, until Ctrl-C."""
    parser = argparse.ArgumentParser("fgvc demo", description=__doc__.partition("\n\n")[2])
    parser.add_argument("run", help="the run's workdir, or one of its training phases")
    parser.add_argument("--port", type=int, default=7860)
    arguments = parser.parse_args()
    if not 1 <= arguments.port <= 65535:
        raise UserError(f"--port={arguments.port}; it must be 1 to 65535.")
    from fgvc_jax import demo
    from fgvc_jax.inference import load

    demo.serve(demo.Demo(load(arguments.run)), arguments.port)
