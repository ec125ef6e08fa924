"""Mining of look-alike pairs: nearest neighbours, pairs, contact sheet."""
