"""Image work on the device: what a view of an image is, augmentation, colour, resize protocols."""
