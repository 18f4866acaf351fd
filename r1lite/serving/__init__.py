"""A small real server for R1-lite models: paged cache, continuous batching, API.

`engine.py` is the heart, `dynamic.py` the simple way it is compared with, `api/`
puts it behind HTTP (`r1lite serve DIR`). DEPLOY.md, beside this file, says how to
run several servers behind a proxy, and how vLLM and SGLang load the same directory.
"""
