"""The runtime: encode once, click many; slices, volumes, sessions."""

from medsa.segmenter.cache import ContentCache
from medsa.segmenter.finish import Finish, finished
from medsa.segmenter.request import Result
from medsa.segmenter.runtime import Segmenter
from medsa.segmenter.served import ServedModels
from medsa.segmenter.session import Session, Sessions
from medsa.segmenter.start import Start

__all__ = [
    "ContentCache",
    "Finish",
    "Result",
    "Segmenter",
    "ServedModels",
    "Session",
    "Sessions",
    "Start",
    "finished",
]
