"""INT8 and FP8 that keep the picture: where to quantise, with which scales, and what it costs in decibels.

`_structure` says what can be quantised; `_pictures` chooses what to calibrate on; `_ranges` turns what is seen there
into scales; `_equalise`, `_bias` and `_reconstruct` rewrite the weights; `_simulation` computes in PyTorch what the
graph will; `_sensitivity` and `_search` decide what stays in half precision; `_recipe` keeps it all, and the export's
`_qdq` writes it into the graph.
"""
