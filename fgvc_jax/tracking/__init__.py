"""What a run writes while it goes: progress, metrics as JSON lines and TensorBoard events, timers."""
