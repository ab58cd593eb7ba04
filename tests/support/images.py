"""The images that tests run in sandboxes; see ``images/build.py`` for what each one is."""

from images.build import IMAGES, archive

__all__ = ["archive", "reference"]


def reference(name: str) -> str:
    """What engines call the image, such as ``localhost/aircell/task:3.3.2``."""
    return IMAGES[name].reference
