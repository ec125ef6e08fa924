"""Lengths of training against arithmetic in exact fractions."""

from fractions import Fraction
from math import ceil

import pytest

from fgvc_jax import lengths
from fgvc_jax.errors import UserError

HERE = {
    "where": "config.pairs.length",
    "images_per_step": 64,
    "images_per_epoch": 1000,
    "total_steps": 500,
    "earlier": {"finetune": 4800, "retrain2": 6400},
}


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ("12 steps", 12 * 64),
        ("1 step", 64),
        ("0 steps", 0),
        ("2 epochs", 2000),
        ("1 epoch", 1000),
        ("0.5 epochs", 500),
        (".5 epochs", 500),
        ("640 images", 640),
        ("641 images", 641),
        ("1 image", 1),
        ("2k images", 2000),
        ("2 k images", 2000),
        ("1.5M images", 1_500_000),
        ("15.6e6 images", 15_600_000),
        ("5 %", Fraction(5, 100) * 500 * 64),
        ("5%", Fraction(5, 100) * 500 * 64),
        ("12.5 %", Fraction(125, 1000) * 500 * 64),
        ("2 x finetune", 9600),
        ("2x finetune", 9600),
        ("0.5 finetune", 2400),
        ("finetune", 4800),
        ("finetune + retrain2", 11200),
        ("2 x finetune + 3 epochs+10 steps", 9600 + 3000 + 640),
        ("  2   epochs ", 2000),
    ],
)
def test_units_and_sums_are_rounded_up_to_steps(text, images):
    assert lengths.steps(text, **HERE) == ceil(Fraction(images) / 64)


def test_whole_numbers_of_steps_are_not_rounded_up_by_a_float_error():
    """Every tenth of an epoch that is a whole number of steps gives just that."""
    for tenths in range(1, 200):
        for batch in (3, 7, 48, 100):
            exact = Fraction(tenths, 10) * 10 * batch * 7  # epochs of 10 batches of 7 parts
            found = lengths.steps(
                f"{tenths / 10} epochs",
                where="",
                images_per_step=batch,
                images_per_epoch=70 * batch,
            )
            assert found == exact / batch


def test_one_image_more_than_whole_steps_costs_a_step():
    for images in (1, 64, 65, 10**9 * 64, 10**9 * 64 + 1):
        assert lengths.steps(f"{images} images", **HERE) == -(-images // 64)


@pytest.mark.parametrize(
    "text", ["", "12", "epochs 12", "-3 epochs", "3 epochs +", "3 ** epochs", "1,000 images", "x"]
)
def test_what_is_no_length_is_refused_by_its_key(text):
    with pytest.raises(UserError, match=r"config\.pairs\.length = ") as error:
        lengths.steps(text, **HERE)
    assert "'12 epochs'" in str(error.value)  # an example of what is allowed


def test_an_unknown_unit_lists_the_units():
    with pytest.raises(UserError, match=r"'epocs'.*steps, epochs, images, finetune"):
        lengths.steps("3 epocs", **HERE)


def test_percent_needs_a_whole():
    with pytest.raises(UserError, match="unknown unit '%'"):
        lengths.steps("5 %", **HERE | {"total_steps": None})


def test_terms_name_the_phases_a_length_reads():
    assert lengths.terms("2 x pairs + 100 steps + retrain", "") == [
        (2.0, "pairs"),
        (100.0, "steps"),
        (1.0, "retrain"),
    ]
