"""Runtime: settings, devices, processes, signals, console output, and embedded files."""
