"""The errors a user can meet: each says what was wrong and what to do, and carries its HTTP status.

The command line prints the message and ends with status 2; the server answers `{"detail": message}` with
`status`. A message never holds a patient's name or id.
"""


class MedsaError(Exception):
    """Something a person can act on."""

    status = 400


class BadInputError(MedsaError):
    """A prompt, an option or a parameter that cannot be used."""


class NotFoundError(MedsaError):
    """An image, series, label or model that does not exist (any more)."""

    status = 404


class UnreadableImageError(MedsaError):
    """A file or series that is no image, is damaged, or has a geometry that is refused."""

    status = 422


class TooLargeError(MedsaError):
    """An image or upload beyond what memory or the configured limit allows."""

    status = 413


class LabelMismatchError(MedsaError):
    """A label that does not fit the image it claims to belong to (grid, names, emptiness)."""

    status = 422


class ConfigurationError(MedsaError):
    """An unknown or invalid option, backbone, label set or method."""


class WeightsError(MedsaError):
    """Weights that are missing, damaged, or not those of the model."""

    status = 503


class AdapterError(WeightsError):
    """An adapter version that is damaged, or was made for another model."""

    status = 422


class StoreError(MedsaError):
    """The DICOMweb store refused or answered with nonsense."""

    status = 502


class StoreUnavailableError(StoreError):
    """The DICOMweb store is down or too slow."""

    status = 503


class CancelledError(MedsaError):
    """The computation was overtaken by a newer request of the same session."""

    status = 409
