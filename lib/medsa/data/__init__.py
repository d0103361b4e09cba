"""Images and labels in and out: volumes, intensity windows, DICOM, label sets."""

from pydicom import config

# Warnings about values that break the standard quote them, names and ids of patients too.
config.settings.reading_validation_mode = config.IGNORE
config.settings.writing_validation_mode = config.IGNORE
