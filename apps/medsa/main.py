"""The door through which `monailabel start_server --app apps/medsa` finds the app, which is in lib/medsa."""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("medsa") is None:
    sys.path.append(str(Path(__file__).resolve().parents[2] / "lib"))

from medsa.server.app import MedsaApp

__all__ = ["MedsaApp"]
