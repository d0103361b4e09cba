"""MONAI Label glue: the app, its models and datastores, and HTTP routes that do not block."""
