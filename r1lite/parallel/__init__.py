"""Training on several processes: experts spread out, everything else repeated.

torch.distributed is the engine (gloo on CPUs, NCCL on GPUs); what is written here
is expert parallelism: who holds which expert, and how tokens travel there.
"""
