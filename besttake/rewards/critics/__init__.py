"""One file per critic, each with a `load(path, device)`."""
