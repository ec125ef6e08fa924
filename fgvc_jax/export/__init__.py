"""A trained classifier as the files of other libraries."""
