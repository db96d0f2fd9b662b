"""Which method finds the clouds, and on which days it wants help against snow.

Responsible for the names under which results are kept; the method itself is `clouds.coverage`. Apart from it so that naming a result, as every plan
and every listing does, loads no array library.
"""

from datetime import date
from typing import Final

from clouds.box import Box

METHOD: Final = "F"
METHOD_VERSION: Final = 1
"""Rises whenever the same picture may give another result."""

SNOW_LATITUDE: Final = 45.0


def snow_screen_wanted(box: Box, day: date) -> bool:
    """Tell whether snow is likely enough that colour alone misleads: beyond 45 degrees in the cold half of the year."""
    northern_winter = not 4 <= day.month <= 9
    return box.lat_max > SNOW_LATITUDE if northern_winter else box.lat_min < -SNOW_LATITUDE
