"""Failures that the Upscaler answers itself: with a smaller tile, or with another device."""

from esrgan_deploy._errors import DeviceLostError, OutOfMemoryError

__all__ = ["DeviceLostError", "OutOfMemoryError"]
