"""Layouts of data files: one file a layout, reading and writing side by side."""
