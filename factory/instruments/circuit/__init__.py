"""A decoder as a graph: embeddings, heads and MLPs add to the residual stream, heads, MLPs and the logits read it."""
