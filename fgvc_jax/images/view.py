"""The specification of a view: how an image becomes a network's input."""

from typing import NamedTuple

from fgvc_jax.ops.crop import Interpolation


class View(NamedTuple):
    """How a canvas becomes a network's input. Hashable, so it can be a static argument.

    Attributes:
      size: side S of the input.
      resize: length of the shorter side before the central crop, at evaluation, and before the
        random crop of crop='random'.
      mean, std: by channel, of values in 0..1.
      interpolation: 'bilinear' or 'bicubic'.
      crop_scale: range of the random crop's share of the image's area.
      crop_ratio: range of the random crop's width / height.
      flip: probability of mirroring left to right.
      crop: in training, 'random_resized', or 'random': `size` x `size` anywhere in the resized image.
      crop_pad: black pixels around the resized image, into which crop='random' may reach.
      squash: (height, width) to which the image is resized in place of `resize`, whatever its aspect;
        () keeps the aspect.
      augment: 'none', 'trivial_augment_wide' or 'auto_augment' (the ImageNet policy).
      augment_probability: that `augment` is applied to an example at all.
      augment_first: on the whole image before the crop, instead of on the crop; the cost is the
        canvas's in place of the input's. A rotation or a translation by 32 pixels then means the
        image's pixels, and black corners shrink with the crop: the results differ.
      jitter: strengths of brightness, contrast, saturation and hue (torchvision's ColorJitter).
      blur: probability of a 5 x 5 Gaussian blur.
      blur_sigma: range of its sigma, uniform, in pixels.
      sharpen: probability of sharpening.
      sharpness: its factor; 1 leaves the image as it is.
      erase: probability of random erasing (Zhong et al. 2017), of the normalised image.
      erase_scale: range of the erased rectangle's share of the area.
      erase_ratio: range of its height / width.
      erase_mode: its new content, 'pixel' (standard normal noise) or 'const' (zero: the mean colour).
    """

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    crop: str = "random_resized"
    crop_pad: int = 0
    squash: tuple[int, ...] = ()
    augment: str = "none"
    augment_probability: float = 1.0
    augment_first: bool = False
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 5.0)
    sharpen: float = 0.0
    sharpness: float = 1.5
    erase: float = 0.0
    erase_scale: tuple[float, float] = (0.02, 1 / 3)
    erase_ratio: tuple[float, float] = (0.3, 1 / 0.3)
    erase_mode: str = "pixel"
