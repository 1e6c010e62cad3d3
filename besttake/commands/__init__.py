"""The commands, one file each; `cli` dispatches to them."""
