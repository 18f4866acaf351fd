"""Training on several processes: experts spread out, the rest repeated or cut.

torch.distributed is the engine (gloo on CPUs, NCCL on GPUs; FSDP2, DTensor and its
checkpoints); what is written here is expert parallelism: who holds which expert,
how tokens travel there, and what a step, a checkpoint and a hang mean then.
"""
