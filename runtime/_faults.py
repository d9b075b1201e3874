"""Failures that the Upscaler answers itself: with a smaller tile, or with another device."""

from esrgan_deploy._errors import InferenceError

__all__ = ["DeviceLostError", "OutOfMemoryError"]


class OutOfMemoryError(InferenceError):
    """A batch did not fit into memory; a smaller one may."""


class DeviceLostError(InferenceError):
    """The device computes nothing any more, whatever it is given; its context is broken."""
