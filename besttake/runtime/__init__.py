"""What everything stands on: settings, devices, processes, signals, the console, and the files that come along."""
