"""Mining of look-alike pairs, and re-ranking by the comparator."""
