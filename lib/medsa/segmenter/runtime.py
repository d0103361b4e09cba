"""The runtime: a volume and a prompt in voxels become a mask on the volume's own grid."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from weakref import WeakKeyDictionary

from medsa.adapters.inject import AdaptedSam
from medsa.data.model_input import PICTURE
from medsa.data.orientation import Orientation
from medsa.data.volume import Volume
from medsa.data.window import Window, choose_window
from medsa.errors import BadInputError, ConfigurationError
from medsa.prompts.prompt import Prompt
from medsa.sam import Promptable
from medsa.segmenter.cache import ContentCache
from medsa.segmenter.request import Request, Result
from medsa.segmenter.session import Session
from medsa.segmenter.slices import Encoded, SliceDecoder
from medsa.segmenter.start import Start, check_start
from medsa.segmenter.turns import Turns
from medsa.segmenter.volumes import Following, clicks_of


class Segmenter:
    """One model for all users: it holds embeddings and nothing of any request; threads may share it.

    Encoder and decoder have a lock each: a click on an encoded slice does not wait while another slice is
    being encoded, and a volume lets others in after each of its slices. Raises `ConfigurationError` for a
    model that takes no prompts.
    """

    def __init__(self, sam: Promptable, cache_mb: int = 512) -> None:
        self.sam = sam
        self.decoder = _decoder_of(sam)
        self.cache: ContentCache[Encoded] = ContentCache(cache_mb * 2**20)
        self.encoding, self.decoding = Turns(), Turns()
        self._windows: WeakKeyDictionary[Volume, dict[str, Window]] = WeakKeyDictionary()
        self._seen: WeakKeyDictionary[Volume, tuple[Volume, Orientation]] = WeakKeyDictionary()

    def beside(self, sam: Promptable) -> Segmenter:
        """A segmenter for another model on the same base: they share embeddings, memory and locks.

        Embeddings of models whose encoders compute the same are the same entries of the cache.
        """
        other = copy(self)
        other.sam, other.decoder = sam, _decoder_of(sam)
        return other

    def about(self, label: str) -> Segmenter:
        """This segmenter when its model is told what is asked for; itself, where that says nothing to it."""
        sam = self.sam.about(label)
        return self if sam is self.sam else self.beside(sam)

    @property
    def depth(self) -> int:
        """Slices that the model's encoder sees at once in a volume."""
        return self.sam.method.depth if isinstance(self.sam, AdaptedSam) and self.sam.changes_encoder else 1

    @property
    def bytes_of_a_slice(self) -> int:
        """Memory of an encoded slice in the cache, about."""
        return 4 * self.sam.config.decoder.width * self.sam.embedding_size**2 + 2 * PICTURE**2

    def accelerate(self) -> None:
        """Compile the model for this CPU; requests are served meanwhile, and faster from then on."""
        self.sam.accelerate()
        self.decoder = SliceDecoder(self.sam)

    def segment_slice(
        self,
        volume: Volume,
        prompt: Prompt,
        k: int,
        *,
        window: str = "auto",
        session: Session | None = None,
        start: Start | None = None,
        zoom: bool = True,
    ) -> Result:
        """The object that the prompts on slice k mean; those on other slices are left out.

        With a `session`, further clicks refine the mask of the clicks before them; where `start` holds
        something they correct that, around them. Raises `BadInputError` when slice k or a prompt lies
        outside, or when no prompt on slice k says where the object is. With `zoom` the model looks closer at
        what a small box is around.
        """
        check_start(start, volume, prompt)
        if prompt.across:
            raise BadInputError("the box crosses the slices: draw it on one, or ask for the volume")
        request, orientation = self._request(volume, prompt, window, session, start, zoom=zoom)
        if not 0 <= k < volume.shape[2]:
            raise BadInputError(
                f"slice {k} lies outside the image: its slices are 0 to {volume.shape[2] - 1}"
            )
        at = orientation.slice_of(k)
        if not request.locates(at):
            raise BadInputError(
                f"nothing says where the object is on slice {k}: click on it or draw a box around it"
            )
        return request.result({at: request.answer(at)}).stored(orientation)

    def segment_volume(
        self,
        volume: Volume,
        prompt: Prompt,
        *,
        window: str = "auto",
        session: Session | None = None,
        start: Start | None = None,
        zoom: bool = True,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """The object through the volume: followed from the prompted slices to where it ends.

        A box that spans slices bounds the object and starts in its middle, unless clicks inside say where
        else. With a `session`, further clicks correct what was answered before, around them and on no slice
        that the user has spoken about; a request that is cancelled leaves the session as it was. With a
        `start` all clicks correct that mask, and what none of them changes stays as it is.
        `progress(done, most)` counts slices. Raises `BadInputError` like `segment_slice`, and
        `CancelledError` soon after `cancelled()` turns true.
        """
        check_start(start, volume, prompt)
        if prompt.empty and start is None:
            prompt.check_inside(volume.shape)
            raise BadInputError("nothing says where the object is: click on it or draw a box around it")
        request, orientation = self._request(volume, prompt, window, session, start, self.depth, zoom=zoom)
        middle = volume.slice_digest(volume.shape[2] // 2)  # another image under the same name is another one
        begun = start.digest if start is not None else ""
        clicks = clicks_of(request)
        remembered = middle, str(request.window), self.sam.adapter_digest, begun, request.frame
        known = session.recall_volume(remembered, clicks) if session is not None else None
        if known is not None and known[0] == clicks:
            return request.result(known[1].states).stored(orientation)
        answer = Following(request, progress, cancelled).answer(known)
        if session is not None:
            session.remember_volume(remembered, clicks, answer)
        return request.result(answer.states).stored(orientation)

    def seen(self, volume: Volume) -> tuple[Volume, Orientation]:
        """`volume` as it is looked at, and how it is stored."""
        if volume not in self._seen:
            orientation = Orientation.of(volume)
            if orientation.as_stored:
                return volume, orientation
            self._seen[volume] = orientation.volume(volume), orientation
        return self._seen[volume]

    def _request(
        self,
        volume: Volume,
        prompt: Prompt,
        window: str,
        session: Session | None,
        start: Start | None,
        depth: int = 1,
        *,
        zoom: bool,
    ) -> tuple[Request, Orientation]:
        """A request about `volume` as it is looked at."""
        prompt.check_inside(volume.shape)
        seen, orientation = self.seen(volume)
        begun = None if start is None else start.seen(orientation)
        request = Request(self, seen, orientation.prompt(prompt), window, session, depth, begun, zoom=zoom)
        return request, orientation

    def window(self, volume: Volume, spec: str) -> Window:
        """The window `spec` means for `volume`, looked up once."""
        windows = self._windows.setdefault(volume, {})
        if spec not in windows:
            windows[spec] = choose_window(volume, spec)
        return windows[spec]


def _decoder_of(sam: Promptable) -> SliceDecoder:
    if not sam.config.trained_prompts:
        raise ConfigurationError(
            "this model takes no clicks and no boxes: it segments all its classes at once, unasked"
        )
    return SliceDecoder(sam)
