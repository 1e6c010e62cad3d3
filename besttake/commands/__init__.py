"""The commands, one file each; `cli` tells them apart."""
