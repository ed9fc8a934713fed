"""Conversion of columns to whole numbers, floats, labels, text and times, with named faults."""
