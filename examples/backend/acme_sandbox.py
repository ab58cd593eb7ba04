"""A backend that is not Aircell's own. Yours implements ``aircell.backends.base.Backend``; this one only has a name."""

from typing import ClassVar

from aircell.backends.cri.backend import CriBackend


class AcmeBackend(CriBackend):
    """containerd, as another package would offer it."""

    name: ClassVar[str] = "acme"
