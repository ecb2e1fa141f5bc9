"""What a norm computes, read from its source or a traced graph: nothing is run."""
