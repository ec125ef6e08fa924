"""Checkpoints that a method's authors wrote: `key(path)` of ours -> key of theirs, one file a method."""
