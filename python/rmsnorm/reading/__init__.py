"""What a norm computes, read from its source: nothing is imported or run. Needs no PyTorch."""
