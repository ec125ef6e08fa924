"""Named data sets: from official archives to tensorflow-datasets folders, and back, without TensorFlow.

One file a set says what its archives are called, how many images and classes the official list has, and how
that list is read; `prepare` writes the set, `read` reads it and other image-classification sets of TFDS.
"""

SETS = ("aircraft", "cars", "cub", "dogs", "dtd", "flowers", "nabirds")
