"""A full or read-only disk ends in a message, whatever library met it."""

from pathlib import Path

import pytest

from fgvc_jax.errors import UserError, disk_explained


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always full device")
def test_a_full_disk_is_told_with_what_to_do():
    with (
        pytest.raises(UserError, match=r"No space left on device.*runs/x.*same command goes on"),
        disk_explained("runs/x"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")


def test_the_words_of_the_system_within_another_error_count_too():
    """As tensorstore says it: a ValueError of several lines."""
    with pytest.raises(UserError, match="Read-only file system") as told, disk_explained("runs/x"):
        raise ValueError('INTERNAL: first line\nError writing "a": Read-only file system [28]')
    assert "first line" not in str(told.value)


@pytest.mark.parametrize("error", [ValueError("shape"), FileNotFoundError("no such file")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as raised, disk_explained("runs/x"):
        raise error
    assert raised.value is error
