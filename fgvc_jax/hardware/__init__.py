"""What a compiled program takes of a chip, also of chips that are not there."""
