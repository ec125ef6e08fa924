"""What the phases of a run share: the run itself, the data, the models."""
