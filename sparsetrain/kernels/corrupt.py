"""The one error of all decoders."""


class CorruptCode(ValueError):
    """Bytes that no encoder of the stated count and size has written."""
