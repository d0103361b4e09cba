"""What can be an id of a datastore: text that no file system, address or log takes for more than a name."""


def is_id(value: str) -> bool:
    """Whether `value` can be an id; nothing like a path is, nor what cannot be printed or encoded."""
    plain = value.isprintable() and not set(value) & set('/\\:*?"<>|')
    return plain and 0 < len(value) <= 255 and not value.startswith(".")
