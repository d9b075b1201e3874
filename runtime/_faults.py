"""Failures that are answered here: with a smaller tile, with another device, or with another try."""

from esrgan_deploy._errors import DeviceLostError, InferenceError, OutOfMemoryError

__all__ = ["CaptureBrokenError", "DeviceLostError", "OutOfMemoryError"]


class CaptureBrokenError(InferenceError):
    """The capture of a graph was broken, maybe by another thread; a later one may succeed."""
