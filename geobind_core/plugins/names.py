"""How names are compared."""


def normalise(name: str) -> str:
    """Returns a name as distributions and modalities are compared: `my.Plugin-x` is `my_plugin_x`."""
    return name.lower().replace("-", "_").replace(".", "_")
