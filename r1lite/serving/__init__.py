"""A small real server for R1-lite models: paged cache, continuous batching, API."""
