"""What a device is: profiles as data, and a look at the host.

>>> from planish import profiles
>>> profiles.load("jetson-orin-nano-8gb").gpu.sm
'8.7'
"""

from __future__ import annotations

from .detect import Detection, detect
from .load import load, names
from .schema import Profile

__all__ = ["Detection", "Profile", "detect", "load", "names"]
