"""Pictures for TensorBoard's Images tab."""

import io
import os
import time
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

SUFFIX = ".pictures"  # tells these event files from those of metrics


def write(directory: str | os.PathLike, pictures: Mapping[str, Image.Image], step: int = 0) -> None:
    """Writes pictures to an event file of a folder, in place of an earlier one.

    Args:
      pictures: by tag, the title under which each is shown; 'group/title' puts some together.
      step: where they stand on the slider.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for old in Path(directory).glob(f"events.out.tfevents.*{SUFFIX}"):
        old.unlink()
    writer = EventFileWriter(os.fspath(directory), filename_suffix=SUFFIX)
    for tag, picture in pictures.items():
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "PNG")
        image = Summary.Image(
            height=picture.height,
            width=picture.width,
            colorspace=3,
            encoded_image_string=buffer.getvalue(),
        )
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
    writer.close()
