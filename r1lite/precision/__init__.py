"""Fewer bits a number: autocast, master weights, V3's FP8 recipe simulated."""
