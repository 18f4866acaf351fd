"""Activation memory: measured, given back by computing again, and split up."""
