"""Puts the helpers of these tests (`evaluation_data`) on the path: test folders are no packages."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
