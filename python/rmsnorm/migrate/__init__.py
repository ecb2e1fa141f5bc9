"""Source that normalizes by small operators, or on an NPU alone, moved to the fused call.

Parses what it is given and never imports or runs it. Needs no PyTorch.
"""
