"""Written while a run goes: progress, metrics as JSON lines and TensorBoard events, wall time."""
