"""panbench: a modular benchmarking suite for panoptic Gaussian splatting."""

__version__ = "0.1.0"
