"""Image work on the device: views, crop boxes, augmentation, colour, mixup, resize protocols."""
