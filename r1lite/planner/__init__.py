"""What a run will need before it runs: parameters, FLOPs, memory, bytes, time.

Arithmetic on a configuration; nothing is built. Every formula is checked against
something real: the model on the meta device, measured activations and messages,
and the published numbers of DeepSeek-V3.
"""
