"""Images and labels in and out: volumes, intensity windows, DICOM, label sets."""
