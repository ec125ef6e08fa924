"""What the package logs, on standard output, from the first of several processes."""

import logging
import sys


class _FirstProcess(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        import jax

        return record.levelno > logging.WARNING or jax.process_index() == 0


def to_stdout() -> None:
    """Prints what the package logs at level INFO and above, messages alone. Called once by the commands."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(_FirstProcess())
    # What goes wrong in the libraries is raised, too; they would print each of it with stack traces before.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logger = logging.getLogger("fgvc_jax")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
