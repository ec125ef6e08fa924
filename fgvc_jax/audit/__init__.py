"""Which training images may have a wrong label: ranked, shown, and changed by a file of their corrections."""
