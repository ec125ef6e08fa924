"""How an embedding changes while it is trained: projections, cosines, a page and a GIF."""
